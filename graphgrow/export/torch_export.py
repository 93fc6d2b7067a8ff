"""`.pt2`: the program as torch.export's own file, for tools that know torch but not graphgrow."""

# torch.export.save and load are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch.utils offers it under no other name

from graphgrow.atomic import atomic_file
from graphgrow.errors import FileError
from graphgrow.export.agreement import Agreement, Run
from graphgrow.export.capture import brief, captured, prepared, quiet, respond
from graphgrow.export.interface import Interface
from graphgrow.module import Outputs
from graphgrow.program import Program


def export_pt2(
    program: Program, path: str | Path, *, check: bool = True, sizes: Sequence[Mapping[str, int]] | None = None
) -> Path:
    """Write the program, in evaluation mode, for `torch.export.load`; it appears complete or not at all.

    Inputs are keywords, named outputs a dict. With `check` the file is read again and must compute what the module
    does, at several sizes. torch.export adds guards against sizes that it has not thought through (a length of 1, or
    of all positions): `.module(check_guards=False)` runs these too. Raises ExportError, CheckFailed, FileError.
    """
    ready = prepared(program, str(path))
    needed = sum(tensor.nbytes for tensor in ready.tensors.values())
    with atomic_file(path, needed=needed) as place, quiet():
        module = respond(ready.module(share=True).eval(), _plain)
        exported = captured(ready, module, str(path))
        torch.export.save(exported, place, extra_files={"graphgrow.digest": program.digest})
        if check:
            Agreement(ready, Interface.of(ready.graph).outputs, sizes).require(_loaded(place), "a .pt2 file")
    return Path(path)


def _plain(outputs: Any) -> Any:
    """Outputs in containers that torch knows: graphgrow's own dictionary would need graphgrow to be loaded."""
    if isinstance(outputs, Outputs):
        return {name: _plain(value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return tuple(_plain(value) for value in cast(Sequence[Any], outputs))
    return outputs


def _loaded(place: Path) -> Run:
    """Runs the file as it is read back. (Reading a `.pt2` runs code: this one is our own.)"""
    try:
        module = torch.export.load(place).module(check_guards=False)
    except Exception as error:  # whatever torch.export says of a file it wrote itself
        raise FileError(found=f"a .pt2 file that can't be read again: {brief(error)}", where=str(place)) from error

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [value for value in pytree.tree_leaves(module(**inputs)) if value is not None]  # pyright: ignore

    return run

"""The program file: an ordinary `.pt` of plain values. Loading one runs no code and maps the weights.

`torch.save` of `{"format", "version", "header", "tensors"}`: the header is JSON text with the graph, the
tensors are plain, contiguous and each on a storage of its own; ties are in the header. Read with
`torch.load(weights_only=True, mmap=True)` only, and the header is checked before a graph is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from graphgrow.atomic import atomic_file
from graphgrow.errors import FileError
from graphgrow.files import check
from graphgrow.files.contents import DTYPES, Contents, contents_from, header_text
from graphgrow.files.nodes import located
from graphgrow.files.read import FORMAT, What, examine, foreign, identify, refusal
from graphgrow.files.text import graph_from_text, graph_to_text

__all__ = ["Contents", "What", "graph_from_text", "graph_to_text", "identify", "load", "refusal", "save"]

VERSION = 2
_KEYS = {"format", "version", "header", "tensors"}
_DTYPES = frozenset(DTYPES.values())
_REAL = "give the program real weights first (it was traced without), in one of torch's plain data types"
_OVERHEAD = 4096  # bytes of a file per tensor, beside the tensor


def save(path: str | Path, contents: Contents) -> None:
    """Write a program file; it appears complete or not at all. What `load` would refuse is refused here.

    Raises FileError: a part of the program that no file can hold, or a file that can't be written.
    """
    with located(str(path)):
        tensors = _compact(contents.tensors)
        header = header_text(contents)
        contents_from(header, tensors)
        value = {"format": FORMAT, "version": VERSION, "header": header, "tensors": tensors}
        needed = sum(tensor.nbytes + _OVERHEAD for tensor in tensors.values()) + len(header)
    try:
        with atomic_file(path, needed=needed) as temporary, temporary.open("wb") as file:
            torch.save(value, file)
    except (OSError, RuntimeError) as error:
        raise FileError(found=f"a file that could not be written: {error}", where=str(path)) from error


def load(path: str | Path) -> Contents:
    """Read a program file. Runs no code from it; tensors are mapped from the file, on the CPU, not copied.

    Raises FileError: another kind of file, a damaged one, or one with anything in it that no program has.
    """
    path = Path(path)
    what, flaw = examine(path)
    if what != "program":
        raise refusal(path, what)
    if flaw:
        raise FileError(found=f"a program file {flaw}", where=str(path), fix="use the .pt as graphgrow saved it")
    with located(str(path)):
        return contents_from(*_parts(_loaded(path)))


def _loaded(path: Path) -> object:
    try:
        return cast(object, torch.load(str(path), map_location=_mapped, weights_only=True, mmap=True))
    except Exception as error:  # torch's reader meets bytes that anyone may have written, and fails in every way
        if name := foreign(path):
            fix = "don't use it: somebody made it to run code where it is loaded; nothing was run"
            raise FileError(found=f"{name} in a program file, where only tensors and text may be", fix=fix) from error
        raise FileError(found="a damaged program file, of which torch can't read the tensors", fix=check.FIX) from error


def _mapped(storage: torch.types.Storage, _: str) -> torch.types.Storage:
    """Storages stay where they are, in the mapped file, whatever device the file names."""
    return storage


def _parts(value: object) -> tuple[str, dict[str, Tensor]]:
    """Header and tensors out of the dictionary in the file."""
    if type(value) is not dict:
        raise check.bad("a program file without its dictionary")
    found = cast(dict[object, Any], value)
    version = found.get("version")
    if type(version) is int and version != VERSION:
        age, fix = ("newer", "update graphgrow: pip install -U graphgrow")
        if version < VERSION:
            age, fix = ("older", "trace its model again")
        what = f"a program file of version {version}, {age} than this graphgrow reads ({VERSION})"
        raise FileError(found=what, fix=fix)
    if type(version) is not int or found.keys() != _KEYS:
        raise check.bad(f"a program file of version {check.shown(version)} with unknown parts")
    header, tensors = found["header"], found["tensors"]
    if type(header) is not str or type(tensors) is not dict:
        raise check.bad("a program file without header or tensors")
    return header, _checked(cast(dict[object, object], tensors))


def _checked(tensors: dict[object, object]) -> dict[str, Tensor]:
    """Tensors by name, each plain, contiguous and on a storage no other one has bytes of."""
    spans: list[tuple[int, int]] = []
    for name, tensor in tensors.items():
        if type(name) is not str or type(tensor) is not Tensor or not _is_plain(tensor):
            raise check.bad(f"{check.shown(name)}, which is no plain tensor on its own storage")
        spans.append((tensor.data_ptr(), tensor.nbytes))
    spans = sorted(span for span in spans if span[1])
    if any(start + length > following for (start, length), (following, _) in pairwise(spans)):
        raise check.bad("two tensors with the same bytes")
    return cast(dict[str, Tensor], tensors)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _DTYPES
        and not tensor.requires_grad
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def _compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file holds them: plain, on the CPU, contiguous, each on a storage of its size."""
    seen: set[int] = set()
    compact: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach()
        if type(plain) is not Tensor or plain.layout != torch.strided or plain.is_meta or plain.dtype not in _DTYPES:
            raise FileError(found=f"the tensor {name!r}, which no file can hold: {_kind(plain)}", fix=_REAL)
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
        if plain.untyped_storage().nbytes() != plain.nbytes or plain.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.data_ptr())
        compact[name] = plain
    return compact


def _kind(tensor: Tensor) -> str:
    return f"{type(tensor).__name__}, {tensor.layout}, {tensor.dtype}, on {tensor.device}"

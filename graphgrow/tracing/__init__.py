"""Everything that becomes a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from graphgrow.errors import OptionError, TraceError
from graphgrow.graph import Graph, Kind
from graphgrow.program import Program
from graphgrow.tracing.agreement import require_agreement
from graphgrow.tracing.capture import Captured, bind, capture
from graphgrow.tracing.checkpoint import Checkpoint
from graphgrow.tracing.convert import Converted, convert
from graphgrow.tracing.guards import assumed
from graphgrow.tracing.huggingface import Folder
from graphgrow.tracing.merge import merge
from graphgrow.tracing.outputs import chosen, pruned
from graphgrow.tracing.source import Model, resolve, shapes
from graphgrow.tracing.tensors import Named, named, renamed, snapshot

__all__ = ["trace", "trace_settings"]

Mode = Literal["both", "eval"]


def trace(
    source: nn.Module | ExportedProgram | Program | str | Path,
    example: object = None,
    *,
    trust_pickle: bool = False,
    mode: Mode = "both",
    outputs: str | Sequence[str] = (),
    check: bool = True,
    lazy: bool = False,
) -> Program:
    """Make a program of a model: the same function, with dynamic batch and sequence sizes.

    `source` is a module (with example inputs: a tensor, a tuple, or a dict by name), a `pkg.module:factory` that
    returns a model or (model, example inputs), a Hugging Face folder, or a program file. With `trust_pickle` also a
    pickled module or a `.pt2`, which run code when loaded. `mode="eval"` captures evaluation only. `outputs` names
    those that are kept (`"logits"`; all by default): axes seen in others can grow then. With `check` the outputs are
    compared with the model's. With `lazy` the weights of a Hugging Face folder stay on the disk: the program has their
    shapes, and `program.tensors.load(name)` reads one. Raises TraceError, FileError, OptionError.
    """
    if mode not in ("both", "eval"):
        raise OptionError.unknown("mode", str(mode), ("both", "eval"), where="trace")
    found = _lazy(source) if lazy else resolve(source, example, trust_pickle)
    if isinstance(found, Program):
        program = found
    elif isinstance(found, ExportedProgram):
        program = _from_exported(found)
    else:
        program = _from_models(found, mode, check)
    graph = chosen(program.graph, (outputs,) if isinstance(outputs, str) else outputs)
    return program if graph is program.graph else program.replace(graph=pruned(graph), journal=())  # of another program


def _lazy(source: object) -> Program:
    """A Hugging Face folder whose weights stay where they are."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        raise OptionError(found="lazy=True for what is no folder", where="trace", fix="give a Hugging Face folder")
    network = Folder.read(Path(source))
    program = _from_models(shapes(network), "both", check=False)
    return program.replace(tensors=Checkpoint(network, network.shapes()).tensors(program))


def trace_settings(folder: Folder, settings: dict[str, Any]) -> Program:
    """The class of a folder with another configuration, as a program without weights. Raises what building and tracing
    it raise."""
    return _from_models(shapes(folder, settings), "both", check=False)


def _from_models(found: Model, mode: Mode, check: bool) -> Program:
    """Trace the model, or what it can be built as instead where it can't be traced."""
    model = found.build()
    example = found.example(model)
    try:
        return _from_model(model, example, found.owned, mode, check)
    except TraceError:
        if found.instead is None:
            raise
    return _from_models(found.instead, mode, check)


def _from_model(model: nn.Module, example: object, owned: bool, mode: Mode, check: bool) -> Program:
    inputs = bind(model, example)
    names = named(model)
    captured = capture(model, inputs, training=mode == "both")
    graph, converted = _graph(captured)
    dtype = str(captured.dtype).removeprefix("torch.")
    program = _assembled(pruned(renamed(graph, names.aliases)), converted, names, dtype, copy=not owned)
    if check and program.has_weights:
        require_agreement(model, program, inputs)
    return program


def _graph(captured: Captured) -> tuple[Graph, Converted]:
    """The merged graph of both captures."""
    train = convert(captured.train)
    if captured.twin is None:
        return train.graph, train
    twin = convert(captured.twin)
    return merge(train.graph, twin.graph, captured.dtype, captured.twin_dtype), train


def _assembled(graph: Graph, converted: Converted, names: Named, dtype: str, copy: bool) -> Program:
    """The model's tensors under their names, and the constants of its code."""
    constants = {name: tensor for name, tensor in converted.tensors.items() if converted.kinds[name].role == "constant"}
    tensors = {name: snapshot(tensor, copy) for name, tensor in names.tensors.items()}
    tensors |= {name: snapshot(tensor, True) for name, tensor in constants.items()}
    kinds: dict[str, Kind] = {**names.kinds, **{name: converted.kinds[name] for name in constants}}
    _require_known(graph, tensors)
    return Program(graph, tensors, kinds, names.aliases, dtype)


def _require_known(graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    for name, node in graph.parameters.items():
        if name not in tensors:
            fix = "register it as a parameter or buffer of the traced module"
            raise TraceError(
                found=f"{name!r}, which forward() reads but the module does not have", where=node.source, fix=fix
            )


def _from_exported(exported: ExportedProgram) -> Program:
    """A program of an exported one, as it is: in the mode and the data types that it was exported in."""
    if conditions := [*assumed(exported).values()]:
        fix = "export it with that dimension static"
        raise TraceError(found=f"an exported program that holds for some sizes only: {conditions[0]}", fix=fix)
    converted = convert(exported)
    dtypes = {tensor.dtype for tensor in exported.parameters() if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    tensors = {name: snapshot(tensor, True) for name, tensor in converted.tensors.items()}
    return Program(pruned(converted.graph), tensors, converted.kinds, {}, str(dtype).removeprefix("torch."))

"""The only caller of `torch.export`.

A model is captured twice: in training mode as it is, and, on fake tensors, in evaluation mode with its weights in
another data type. Where the two graphs differ is what depends on the mode and on the type of the weights (`merge`).
"""

# torch.fx and torch.export are untyped where this file speaks to them.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false, reportPrivateUsage=false

from __future__ import annotations

import copy
import inspect
import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram, export

from graphgrow import ops
from graphgrow.errors import TraceError
from graphgrow.tracing.guards import assumed
from graphgrow.tracing.merge import EXPERTS

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Captured:
    """The two captures. The second has the other data type where the model has one floating type to change and runs
    in the other; it is None where it would be the same as the first."""

    train: ExportedProgram
    twin: ExportedProgram | None
    dtype: torch.dtype
    twin_dtype: torch.dtype


def bind(model: nn.Module, example: object) -> dict[str, Tensor]:
    """Example inputs by the names of `forward`'s parameters, in its order. Takes a tensor, a sequence or a mapping."""
    parameters = inspect.signature(model.forward).parameters
    if isinstance(example, Tensor):
        example = (example,)
    if isinstance(example, Mapping):
        unknown = [name for name in example if name not in parameters]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise TraceError(
                found=f"example input {unknown[0]!r}, which forward() of {type(model).__name__} does not take",
                fix=f"it takes {', '.join(parameters)}",
            )
        named = dict(example)
    elif isinstance(example, Sequence):
        named = dict(zip(parameters, example, strict=False))
        if len(named) < len(example):
            raise TraceError(
                found=f"{len(example)} example inputs for {len(parameters)} parameters of forward()",
                fix=f"it takes {', '.join(parameters)}",
            )
    else:
        raise TraceError(
            found=f"example inputs of type {type(example).__name__}", fix="give a tensor, a tuple or a dict of tensors"
        )
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TraceError(
                found=f"example input {name!r} of type {type(value).__name__}",
                fix="inputs must be tensors; bind others before",
            )
    return {
        name: named[name]
        for name in (*[p for p in parameters if p in named], *[n for n in named if n not in parameters])
    }


def capture(model: nn.Module, inputs: Inputs, training: bool = True) -> Captured:
    """Capture `model` with named dynamic sizes, in training mode or in evaluation mode only. The model is left in the
    mode it was in."""
    inputs = {name: _at_least_two(value) for name, value in inputs.items()}
    if any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in model.parameters()):
        mode = _fake_mode(model)
        model = _fake_copy(model, mode, None)
        inputs = {name: _fake(value, mode, None) for name, value in inputs.items()}
    dtypes = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    other = torch.bfloat16 if dtype != torch.bfloat16 else torch.float32
    shapes, train = _export_dynamic(model, inputs, training)
    if len(dtypes) == 1 and (twin := _twin(model, inputs, shapes, (dtype, other))) is not None:
        return Captured(train, twin, dtype, other)
    return Captured(train, _twin(model, inputs, shapes, None) if training else None, dtype, dtype)


def _twin(
    model: nn.Module, inputs: Inputs, shapes: Any, change: tuple[torch.dtype, torch.dtype] | None
) -> ExportedProgram | None:
    """The capture in evaluation mode, with the type of the weights changed; None for a model that runs in one only."""
    mode = _fake_mode(model)
    fake_inputs = {name: _fake(value, mode, change) for name, value in inputs.items()}
    try:
        other = _fake_copy(model, mode, change)
        twin = _export(other, fake_inputs, shapes, training=False)
        return twin if change is None or not _mixes(twin) else None
    except Exception as error:
        if change is None:
            raise _explained(model, error) from error
        logging.getLogger("graphgrow").info("no second capture", exc_info=True)
        return None


def _mixes(exported: ExportedProgram) -> bool:
    """Whether factors of different types meet in a sum of products: fake tensors let it pass, real ones don't."""
    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    return any(
        len({_dtype(argument) for argument in node.args[:3]} - {None}) > 1
        for graph in graphs
        for node in graph.nodes
        if ops.kind(str(node.target)) in ("contraction", "convolution", "attention")
    )


def _dtype(argument: Any) -> torch.dtype | None:
    value = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def _at_least_two(value: Tensor) -> Tensor:
    """A batch of one becomes two: the exporter takes sizes of one for constants. Every input is a tensor of its own:
    the exporter takes one that is given twice for one input."""
    return torch.cat([value, value]) if value.ndim and value.shape[0] == 1 else value.clone()


def _fake_mode(model: nn.Module) -> FakeTensorMode:
    for tensor in model.parameters():
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _fake(tensor: Tensor, mode: FakeTensorMode, change: tuple[torch.dtype, torch.dtype] | None) -> Tensor:
    dtype = change[1] if change and tensor.dtype == change[0] else tensor.dtype
    if isinstance(tensor, FakeTensor) and dtype == tensor.dtype:
        return tensor
    with mode:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype, device="cpu")


def _fake_copy(model: nn.Module, mode: FakeTensorMode, change: tuple[torch.dtype, torch.dtype] | None) -> nn.Module:
    """A copy of the module tree over fake tensors; no weights are copied, ties are kept."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(tensor): tensor.detach() for tensor in held}
    for tensor in (*model.parameters(), *model.buffers()):
        fake = _fake(tensor, mode, change)
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    return copy.deepcopy(model, memo)


def _export_dynamic(model: nn.Module, inputs: Inputs, training: bool) -> tuple[Any, ExportedProgram]:
    """Batch and sequence as dynamic sizes, under one name for all inputs if the model allows it. A dimension is fixed
    where the capture holds for some of its sizes only."""
    error: Exception | None = None
    for batch in (Dim("batch"), Dim.AUTO):
        shapes = {name: _dynamic(value, batch) for name, value in inputs.items()}
        try:
            exported = _export(model, inputs, shapes, training)
            while restricted := assumed(exported):
                for place, dim in restricted:
                    del shapes[list(inputs)[place]][dim]
                exported = _export(model, inputs, shapes, training)
            return shapes, exported
        except Exception as caught:  # noqa: BLE001  the exporter raises whatever the model's code does
            error = error or caught
    assert error is not None
    raise _explained(model, error) from error


def _dynamic(value: Tensor, batch: Any) -> dict[int, Any]:
    """The first dimension is the batch; tokens and sequences of features have a dynamic second one."""
    dims = {0: batch} if value.ndim else {}
    if (value.ndim == 2 and not value.is_floating_point()) or (value.ndim == 3 and value.shape[1] > 1):
        dims[1] = Dim.AUTO
    return dims


def _export(model: nn.Module, inputs: Inputs, shapes: Any, training: bool) -> ExportedProgram:
    before = {module: (dict(vars(module)), _tables(module)) for module in model.modules()}
    try:
        model.train(training)
        with _quiet():
            return export(model, (), kwargs=dict(inputs), dynamic_shapes=shapes, strict=False)
    finally:
        for module, (attributes, tables) in before.items():  # the mode, hooks, what forward() keeps for the next call
            vars(module).clear()
            vars(module).update(attributes)
            for name, table in tables.items():
                attributes[name].clear()
                attributes[name].update(table)


def _tables(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """Copies of the dictionaries that a module has: its hooks, which a first call may install."""
    return {name: dict(value) for name, value in vars(module).items() if type(value) in (dict, OrderedDict)}


@contextmanager
def _quiet() -> Generator[None]:
    """No warnings and errors from torch's loggers, and no graphs on the screen: what fails is raised, and told once.
    Loggers that somebody wants to tell more (TORCH_LOGS) are left alone."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] == "torch"]
    levels = {logger: logger.level for logger in loggers if logger.level >= logging.WARNING}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(), redirect_stderr(StringIO()) as said:
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(said.getvalue())
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


_BRANCHES = (
    "replace branches and loops over tensor values by torch.where or masking; if only training has them (layers "
    "dropped at random), trace it in evaluation mode: trace(..., mode='eval')"
)
_ADVICE = {
    "use_cache": "trace with use_cache=False: a growing cache has no place in a graph",
    "DynamicCache": "trace with use_cache=False: a growing cache has no place in a graph",
    "experts": EXPERTS,
    "Could not guard on data-dependent": _BRANCHES,
    "GuardOnDataDependent": _BRANCHES,
    "lstm": "recurrent modules need a static length: unroll them, or leave them out of the traced module",
    "is_causal": "pass is_causal=True (or False) beside the mask",
}


def _explained(model: nn.Module, error: Exception) -> TraceError:
    text = str(error)
    fix = next(
        (advice for word, advice in _ADVICE.items() if word in text),
        "the cause above is torch.export's; make forward() traceable there",
    )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(
        found=f"{type(model).__name__} can't be captured: {type(error).__name__}: {first[:300]}",
        where=_frame(model, error),
        fix=fix,
    )


def _frame(model: nn.Module, error: Exception) -> str:
    """The innermost source line outside torch that the error passed through."""
    trace = error.__traceback__
    while error.__cause__ is not None and trace is None:
        trace = error.__cause__.__traceback__
    where = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/graphgrow/" not in file:
            where = f"{file}:{trace.tb_lineno} in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return where or type(model).__name__

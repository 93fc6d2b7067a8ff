"""A program as an `ExportedProgram` again: in evaluation mode, with its dynamic sizes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.export import Dim, ExportedProgram, export

from graphgrow.errors import ExportError
from graphgrow.graph import Graph, Origin
from graphgrow.program import Program
from graphgrow.sizes import symbol

_LOUD = ("torch", "torch.onnx", "onnxscript", "onnx_ir", "onnx")
_FIRST = {"batch": 3}
_OTHERS = 5


def prepared(program: Program, what: str) -> Program:
    """The program on the CPU. Raises ExportError where it has no weights to export."""
    if not program.has_weights:
        raise ExportError(
            found="a program without weights: it was traced from shapes only",
            where=what,
            fix="trace the model with its weights, then export that program",
        )
    return program.replace(tensors={name: tensor.cpu() for name, tensor in program.tensors.items()})


def captured(program: Program, module: nn.Module, what: str) -> ExportedProgram:
    """`module`, which computes `program`, as torch.export sees it. Raises ExportError."""
    inputs = program.example(clamped(program.graph, _ordinary(program.graph)))
    try:
        with quiet():
            return export(module, (), kwargs=dict(inputs), dynamic_shapes=_dynamic(program.graph), strict=False)
    except Exception as error:  # torch.export fails in many ways
        fix = "report it with the program file: a traced program should export again"
        raise ExportError(found=f"a program that torch.export refuses: {brief(error)}", where=what, fix=fix) from error


def _ordinary(graph: Graph) -> dict[str, int]:
    """Sizes of at least two (the exporter takes one for a constant), each another one."""
    return {name: _FIRST.get(name, _OTHERS + index) for index, name in enumerate(graph.symbols)}


def clamped(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` within the bounds that the graph has for them."""
    return {name: _within(graph.symbols[name], value) for name, value in sizes.items()}


def _within(origin: Origin, value: int) -> int:
    value = max(value, origin.low)
    return value if origin.high is None else min(value, origin.high)


def _dynamic(graph: Graph) -> dict[str, Any]:
    """For each input the dimensions that vary. A symbol must stay dynamic; what is computed from some follows them."""
    plain = {symbol(name) for name in graph.symbols}
    return {
        node.name: {
            dim: Dim.DYNAMIC if size in plain else Dim.AUTO
            for dim, size in enumerate(node.shape)
            if not isinstance(size, int)
        }
        for node in graph.inputs
    }


@contextmanager
def quiet() -> Generator[None, None, None]:
    """No warnings and no log lines: the exporters write about their own insides."""
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _LOUD}
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def brief(error: BaseException) -> str:
    """An error's type and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def respond(module: nn.Module, result: Any) -> nn.Module:
    """`module` with `result(outputs)` in place of its outputs; its parameters keep their names."""
    cls: Any = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return result(cls.forward(self, *args, **kwargs))

    forward.__wrapped__ = cls.forward  # pyright: ignore[reportFunctionMemberAccess]
    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return module

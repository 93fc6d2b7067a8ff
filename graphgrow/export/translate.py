"""From a program to an ONNX model in memory: torch.onnx does it; names and errors are ours."""

# The types of onnx_ir and torch.onnx are partial.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from graphgrow.errors import ExportError, OptionError
from graphgrow.export.capture import brief, captured, quiet
from graphgrow.export.interface import Interface
from graphgrow.graph import Graph, Node
from graphgrow.program import Program

_OPSETS = range(18, 26)  # what torch.onnx can write and ONNX Runtime reads


def translated(program: Program, interface: Interface, opset: int, path: str, digest: str) -> Any:
    """The ONNX model (of onnx_ir) of a program, with the digest of what it was made from. Raises ExportError where
    torch.onnx can't convert it."""
    if opset not in _OPSETS:
        fix = f"use {_OPSETS[0]} to {_OPSETS[-1]}; 20 is a safe choice"
        raise OptionError(found=f"opset {opset}", where="export_onnx", fix=fix)
    flat = program.replace(graph=interface.graph)
    exported = captured(flat, flat.module(share=True).eval(), path)
    names = (list(program.inputs), list(interface.outputs))
    with quiet():
        try:
            made = _converted(exported, opset, names)
        except torch.onnx.OnnxExporterError as error:
            made = _decomposed(program.graph, exported, opset, names, error, path)
        _require_dynamic(made.model, program, path)
        made.rename_axes(_axes(made.model, program))
    return _plain(made.model, digest)


def _converted(exported: ExportedProgram, opset: int, names: tuple[list[str], list[str]]) -> Any:
    inputs, outputs = names
    return torch.onnx.export(
        exported, dynamo=True, opset_version=opset, verbose=False, input_names=inputs, output_names=outputs
    )


def _decomposed(
    graph: Graph, exported: ExportedProgram, opset: int, names: tuple[list[str], list[str]], first: Exception, path: str
) -> Any:
    """Converted from the core ATen operators: torch.onnx's own decomposition fails in some attention layouts."""
    try:
        return _converted(exported.run_decompositions(), opset, names)
    except torch.onnx.OnnxExporterError:
        raise _refused(graph, first, path) from first


def _refused(graph: Graph, error: BaseException, path: str) -> ExportError:
    """The error for a model that torch.onnx can't convert: the operator, and the line it comes from."""
    chain = list(_chain(error))
    texts = [str(link) for link in chain]
    nodes = list(_culprits(graph, "\n".join([*texts, *(stack for link in chain for stack in _stacks(link))])))
    what = nodes[0].op if nodes else brief(error)
    lines = [node.source or node.scope or node.name for node in nodes[:3]]
    return ExportError(
        found=f"{what}, which torch.onnx can't convert ({_reason(texts)})",
        where="\n".join(lines) or path,
        fix="write that line with other operators and trace the model again, or export it with export_pt2",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it comes from, the innermost last."""
    while error is not None:
        yield error
        error = error.__cause__


def _stacks(error: BaseException) -> Iterator[str]:
    """The lines of the program's code that made the nodes which torch.onnx was at, where it still knows them."""
    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            yield str(node.meta.get("stack_trace", ""))
        trace = trace.tb_next


def _culprits(graph: Graph, text: str) -> Iterator[Node]:
    """The nodes that an error of torch.onnx is about: those it names, else those of the operator it names."""
    named = re.findall(r"^\s*(\w+) = torch\.ops\.", text, re.MULTILINE)
    if named:
        yield from (graph[name] for name in dict.fromkeys(named) if name in graph.by_name)
        return
    found = re.findall(r"OpOverload\(op='(\w+\.\w+)', overload='(\w+)'\)", text)
    operators = {f"{name}.{overload}" for name, overload in found} or set(re.findall(r"\baten\.\w+\.\w+", text))
    yield from (node for node in graph.nodes if node.op in operators)


def _reason(texts: list[str]) -> str:
    """The first line of the innermost message."""
    return next((line.strip()[:300] for line in texts[-1].splitlines() if line.strip()), "it gives no reason")


def _dimensions(model: Any, program: Program) -> Iterator[tuple[str, str, Any]]:
    """For every dynamic dimension of the inputs: the input, the size in the program, and the one in the model."""
    for value, (name, kind) in zip(model.graph.inputs, program.inputs.items(), strict=True):
        for size, found in zip(kind.shape, value.shape, strict=True):
            if not isinstance(size, int):
                yield name, str(size), found


def _require_dynamic(model: Any, program: Program, path: str) -> None:
    for name, size, found in _dimensions(model, program):
        if isinstance(found, int):
            raise ExportError(
                found=f"size {size!r} of input {name!r}, which became fixed at {found} in the export",
                where=path,
                fix="please report this model: its program says that the size is dynamic",
            )


def _axes(model: Any, program: Program) -> dict[str, str]:
    """The program's names for the model's symbols."""
    return {found.value: size for _, size, found in _dimensions(model, program)}


def _plain(model: Any, digest: str) -> Any:
    """The model without torch.onnx's notes on each node (they hold paths of this machine), with the digest."""
    for noted in _noted(model):
        noted.metadata_props.clear()
    model.metadata_props["graphgrow.digest"] = digest
    return model


def _noted(model: Any) -> Iterator[Any]:
    """Everything in a model that can hold notes."""
    held = model.graph.initializers.values()
    yield from (model, *held, *(value.const_value for value in held if value.const_value is not None))
    for part in (model.graph, *model.functions.values()):
        yield from (part, *part.inputs, *part.outputs)
        for node in part.all_nodes():
            yield from (node, *node.outputs)

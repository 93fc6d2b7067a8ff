"""What a capture assumes of its dynamic sizes: a branch on `length % 2` holds for odd lengths only."""

# torch.fx and torch.export are untyped where this file speaks to them.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

TRIED = (*range(2, 10), 16, 17, 33)


def assumed(exported: ExportedProgram) -> dict[tuple[int, int], str]:
    """Dimensions of inputs (by the input's place) that an assumption beyond their range restricts, with that."""
    sizes = list(_dynamic(exported))
    environment: Any = sizes[0][2].node.shape_env if sizes else None
    hints = {size.node.expr: sympy.Integer(size.node.hint) for _, _, size in sizes}
    failing: dict[sympy.Symbol, str] = {}
    for guard in environment.guards if environment else ():
        condition = environment.replace(guard.expr)
        for symbol in condition.free_symbols:
            bounds = exported.range_constraints.get(symbol)
            tried = [size for size in TRIED if bounds is None or bounds.lower <= size <= bounds.upper]
            if any(condition.xreplace({**hints, symbol: sympy.Integer(size)}) == sympy.false for size in tried):
                failing.setdefault(symbol, str(condition))
    return {(place, dim): failing[size.node.expr] for place, dim, size in sizes if size.node.expr in failing}


def _dynamic(exported: ExportedProgram) -> Iterator[tuple[int, int, torch.SymInt]]:
    """The dimensions of inputs that are one symbol each."""
    users = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    inputs = [node for node in exported.graph.find_nodes(op="placeholder") if node.name in users]
    for place, node in enumerate(inputs):
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                yield place, dim, size

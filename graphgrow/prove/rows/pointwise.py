"""Facts of pointwise operators, and of tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphgrow import ops
from graphgrow.graph import Argument, ByMode, Lowest, Node, Ref
from graphgrow.prove.cells import ANY, SAME, ZERO, Cells, scale, scaled
from graphgrow.prove.rows.base import Context, Value, all_same, flat, row
from graphgrow.sizes import Size


@row("pointwise")
def _pointwise(context: Context, node: Node) -> Value:
    """Cell by cell. Old: the same where all operands are. New: zero as the operator's row in the table says."""
    arguments = node.args[1:2] if node.op == "by_mode" else flat(node.args)
    old = context.layout.is_old(context.axes.terms[node.name])
    given = [a for a in arguments if isinstance(a, Ref | int | float | Size | ByMode | Lowest)]
    found = [context.spread(context.facts(a), old.shape, old) for a in given if isinstance(a, Ref)]
    kept = _combined(node, found, given)
    zeros = _zeros(ops.TABLE[node.op].zero, node, given, found, old.shape)
    return np.where(zeros, ZERO, np.where(old, kept, ANY)).astype(np.int16)


LINEAR = {"neg", "to.dtype", "detach", "clone", "dropout", "feature_dropout"}


def _combined(node: Node, found: Sequence[Cells], given: Sequence[Argument]) -> Cells:
    """Facts in old cells: products multiply scales, sums need equal ones, anything else needs the original itself."""
    name = node.op.removeprefix("aten.").removesuffix(".default")
    if not found:
        return np.array(SAME, dtype=np.int16)
    stacked = np.stack(found)
    if (stacked == SAME).all():
        return stacked[0]
    same = (stacked == stacked[0]).all(axis=0)
    if name in LINEAR or name == "by_mode" or (name in ("add.Tensor", "sub.Tensor") and len(found) == len(given)):
        return np.where(same & (stacked[0] != ZERO), stacked[0], ANY).astype(np.int16)
    if name in ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"):
        return _multiplied(stacked, divide=name.startswith("div"))
    return np.where(same & (stacked[0] == SAME), SAME, ANY).astype(np.int16)


def _multiplied(stacked: Cells, divide: bool) -> Cells:
    result = np.full(stacked.shape[1:], ANY, dtype=np.int16)
    for cell in np.ndindex(result.shape):
        facts = [int(fact) for fact in stacked[(slice(None), *cell)]]
        if all(fact >= SAME for fact in facts):
            first, *others = (scale(fact) for fact in facts)
            result[cell] = scaled(first / prod(others) if divide else first * prod(others))
    return result


def _zeros(
    rule: str, node: Node, given: Sequence[Argument], found: Sequence[Cells], shape: tuple[int, ...]
) -> np.ndarray:
    """Where the result is zero."""
    waiting = iter(found)
    each = [next(waiting) == ZERO if isinstance(a, Ref) else np.full(shape, a == 0) for a in given]
    if not each or not rule or _off_zero(node):
        return np.zeros(shape, dtype=bool)
    if rule == "any":
        return np.logical_or.reduce(each)
    unary = len(found) == 1 and node.op not in BINARY
    if rule == "first" or unary:
        return each[0]
    return np.logical_and.reduce(each)


def _off_zero(node: Node) -> bool:
    """Whether the operator's settings move zero: a clamp to a range without it."""
    low, high = node.argument(1, "min_val", -1), node.argument(2, "max_val", 1)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return node.op == "aten.hardtanh.default"
    return node.op == "aten.hardtanh.default" and not low <= 0 <= high


# Operators whose second number is an operand and not a setting (a slope, a probability).
BINARY = {
    f"aten.{name}"
    for name in [
        "add.Tensor",
        "sub.Tensor",
        "rsub.Tensor",
        "add.Scalar",
        "sub.Scalar",
        "rsub.Scalar",
        "maximum.default",
        "minimum.default",
    ]
}


@row("power")
def _power(context: Context, node: Node) -> Value:
    """x to a positive power is zero where x is."""
    facts = context.facts(node.args[0])
    positive = isinstance(node.args[1], int | float) and node.args[1] > 0
    kept = facts if positive else np.where(facts == ZERO, ANY, facts)
    return np.where(kept > SAME, ANY, kept).astype(np.int16)


@row("like", "factory")
def _made(context: Context, node: Node) -> Value:
    zero = node.op.startswith(("aten.zeros", "aten.new_zeros"))
    return context.filled(node, SAME, ZERO if zero else ANY)


@row("arange")
def _arange(context: Context, node: Node) -> Value:
    return context.filled(node, SAME, ANY)


@row("prelu")
def _prelu(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    old = context.layout.is_old(context.terms(node.args[0]))
    shape = [1] * old.ndim
    if old.ndim > 1:
        shape[1] = -1
    slope = context.facts(node.args[1]).reshape(shape)
    return np.where(facts == ZERO, ZERO, all_same([facts, slope], context, old)).astype(np.int16)


@row("getitem")
def _getitem(context: Context, node: Node) -> Value:
    source, index = node.args
    assert isinstance(source, Ref) and isinstance(index, int)
    value = context.values[source.name]
    assert isinstance(value, tuple)
    return value[index]

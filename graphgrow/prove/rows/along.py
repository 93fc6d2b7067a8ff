"""Facts of operators along one dimension that stays: softmax, topk, sorting, gates."""

from __future__ import annotations

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom, Term
from graphgrow.graph import Node
from graphgrow.prove.facts import (
    ANY,
    CONSTANT,
    NAMES,
    NONNEGATIVE,
    POSITIVE,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    each,
    every,
    fact,
    function_of,
    functional,
    kind,
    multiplied,
    scale,
    times,
)  # fmt: skip
from graphgrow.prove.rows.base import Context, Value, along, cut, row, settled, unknown
from graphgrow.prove.rows.reductions import complete, growth


@row("along", "ordered", "sort", "diff", "flip", "roll", "triangle")
def _along(context: Context, node: Node) -> Value:
    """Along a dimension that stays: cell by cell, and what is made of zeros is not promised."""
    terms = context.terms(node.args[0])
    op = ops.kind(node.op)
    position = 2 if op in ("diff", "roll") else 1
    dims = context.dims(node, position) if op != "triangle" else (len(terms) - 2, len(terms) - 1)
    facts = context.facts(node.args[0])
    moved = op in ("flip", "roll", "triangle")
    if context.grown([terms[dim] for dim in dims]):
        shared = op == "along" and "log" not in node.op and len(dims) == 1
        return _shared(context, node, facts, dims[0]) if shared else unknown(context, node)

    def moves(number: int) -> int:
        if op == "triangle" and (number == POSITIVE or kind(number) in ("affine", "names")):
            return NONNEGATIVE if number == POSITIVE else ANY
        if moved or number == UNDEFINED or (op == "ordered" and number == ZERO):
            return number
        result = function_of((number,))
        return NONNEGATIVE if op == "along" and result == ANY and "log" not in node.op else result

    result = each(moves, facts)
    return (result, result) if isinstance(node.type, tuple) else result


def _shared(context: Context, node: Node, facts: Cells, dim: int) -> Value:
    """A softmax over m complete copies: each has 1/m of what the original has."""
    term = context.terms(node.args[0])[dim]
    if not complete(context.layout.cells(term)):
        return unknown(context, node)
    share = fact("constant", 1 / growth(context, [term]))

    def part(found: tuple[int, ...]) -> int:
        common, own = found
        return times(share, own) if common in (SAME, CONSTANT) else min(common, NONNEGATIVE)

    return every(part, alike(facts, dim), facts)


def alike(facts: Cells, dim: int) -> Cells:
    """The one multiple that all cells along a dimension are, in one cell; ANY where they are not."""

    def common(found: tuple[int, ...]) -> int:
        kinds = {kind(f) for f in found}
        if UNDEFINED in found or not kinds <= {"same", "constant"} or len({scale(f) for f in found}) > 1:
            return UNDEFINED if UNDEFINED in found else ANY
        return fact("same" if "same" in kinds else "constant", scale(found[0]))

    return every(common, *(facts.take([index], axis=dim) for index in range(facts.shape[dim])))


@row("topk")
def _topk(context: Context, node: Node) -> Value:
    """The largest along a dimension, which are multiples where all are. Of m complete copies m times as many are the
    same ones, copies next to each other; their numbers name all copies of what is named in the original. (Which of
    several equal units are named is open there too, and when they are not sorted, their order.)"""
    facts, terms = context.facts(node.args[0]), context.terms(node.args[0])
    dim = along(node) % len(terms)
    kept = context.axes.several[node.name][0]
    by = growth(context, [terms[dim]])
    if by != growth(context, [kept[dim]]) or (by != 1 and not _follows(context, terms[dim], kept[dim])):
        return unknown(context, node)
    found = alike(facts, dim)
    values = each(lambda f: f if f >= SAME and scale(f) > 0 else UNDEFINED if f == UNDEFINED else ANY, found)
    named = fact("same", 1.0) if by == 1 else NAMES
    names = each(lambda f: f if f < SAME else named if kind(f) == "same" or by != 1 else CONSTANT, values)
    old = context.layout.is_old(kept)
    wide = (np.broadcast_to(cells, old.shape).astype(np.int32) for cells in (values, names))
    return tuple(settled(cells, old) for cells in wide)


def _follows(context: Context, term: Term, kept: Term) -> bool:
    """Whether what is kept of a grown dimension can stand for what was kept of it: of complete copies."""
    return complete(context.layout.cells(term)) and isinstance(kept, Atom) and kept in context.ranked


@row("glu")
def _glu(context: Context, node: Node) -> Value:
    """a * sigmoid(b): zero where a is."""
    terms = context.terms(node.args[0])
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (len(terms) - 1,)
    half = context.result(node)[dim]
    halves = cut(context, context.facts(node.args[0]), dim, terms[dim], [half, half])
    if halves is None:
        return unknown(context, node)
    return multiplied(halves[0], functional(halves[1]))

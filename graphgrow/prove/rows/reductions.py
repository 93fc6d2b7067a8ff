"""Facts of reductions over dimensions and over windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import numpy as np

from graphgrow import ops, sizes
from graphgrow.axes import Atom, Term
from graphgrow.graph import Node, Ref
from graphgrow.prove.cells import Cell
from graphgrow.prove.facts import (
    ANY,
    NONNEGATIVE,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    each,
    every,
    fact,
    kind,
    scale,
)  # fmt: skip
from graphgrow.prove.rows.base import Context, Value, row, settled, unknown
from graphgrow.prove.rows.contractions import contract


@row("sum", "mean")
def _sum_row(context: Context, node: Node) -> Value:
    """A sum is a contraction with nothing; a mean is divided by its new size."""
    dims = context.dims(node, 1)
    terms = context.terms(node.args[0])
    letters = "abcdefghijkl"[: len(terms)]
    kept = "".join(letter for dim, letter in enumerate(letters) if dim not in dims)
    facts = context.facts(node.args[0])
    result = contract(context, [letters], kept, [facts], [terms])
    over = [terms[dim] for dim in dims]
    if context.grown(over):
        share = 1 / growth(context, over) if ops.kind(node.op) == "mean" else 1.0
        result = each(lambda f: fact(kind(f), scale(f) * share) if f >= SAME else f, result)
    return result.reshape(context.layout.shape(context.result(node)))


def complete(cells: Sequence[Cell]) -> bool:
    """Whether a dimension of copies would hold each old unit equally often."""
    counts: dict[int, float] = {}
    for cell in cells:
        counts[cell.origin] = counts.get(cell.origin, 0.0) + cell.ratio
    return all(cell.whole for cell in cells) and len(set(counts.values())) == 1


def growth(context: Context, terms: Sequence[Term]) -> float:
    """How many units dimensions have, for one that they had."""
    return prod(
        sizes.number(term.resized(context.layout.grown)) / sizes.number(term.size)
        for term in terms
        if context.layout.touches(term)
    )


EXTREMA = ("aten.amax", "aten.amin", "aten.max", "aten.min", "aten.any", "aten.all")
SPREADS = ("aten.var", "aten.std")
NORMS = ("aten.linalg_vector_norm", "aten.norm")
KEEP_ZERO = (*EXTREMA, *SPREADS, *NORMS)


@row("reduction", "norm_reduction", "reduction2")
def _reduction(context: Context, node: Node) -> Value:
    """Over dimensions that stay: cell by cell. Over a grown one: a norm does not see zeros and grows by a power of the
    number of copies, an extremum does not see copies, a variance falls by what has the mean."""
    dims = context.dims(node, 2 if ops.kind(node.op) == "norm_reduction" else 1)
    terms = context.terms(node.args[0])
    facts = context.facts(node.args[0])
    shapes = context.axes.several.get(node.name) or (context.result(node),)
    grown = [dim for dim in dims if context.layout.touches(terms[dim])]
    if len(grown) > 1 or any(len(context.layout.cells(terms[dim])) != 2 for dim in grown):
        return unknown(context, node)
    parts = [facts.take([i], axis=grown[0]) for i in range(2)] if grown else [facts]
    others_old = context.layout.is_old(terms).take([0], axis=grown[0]) if grown else context.layout.is_old(terms)
    over = _Over(context, [terms[dim] for dim in dims], terms[grown[0]] if grown else None)

    def reduced(result: Callable[[tuple[int, ...], bool], int], at: int) -> Cells:
        cells = every(lambda found: result(found[:-1], bool(found[-1])), *parts, others_old.astype(np.int32))
        old = context.layout.is_old(shapes[at])
        return settled(cells.reshape(old.shape), old)

    first = reduced(lambda found, outer: _reduced(node, found, over, outer), 0)
    if not isinstance(node.type, tuple):
        return first
    if "_mean" in node.op:
        return (first, reduced(over.centre, 1))
    return (first, np.where((first == SAME) & (not grown), SAME, ANY).astype(np.int32))


class _Over:
    """The dimensions that are reduced, at most one of which has grown."""

    def __init__(self, context: Context, terms: Sequence[Term], grown: Term | None) -> None:
        self.grown = grown
        self.complete = grown is not None and complete(context.layout.cells(grown))
        self.single = isinstance(grown, Atom) and all(term.size == 1 or term is grown for term in terms)
        counts = [term.size for term in terms if isinstance(term.size, int)]
        self.old: int | None = prod(counts) if len(counts) == len(terms) else None
        self.by = growth(context, [grown]) if grown is not None else 1.0

    def centred(self, found: tuple[int, ...], outer: bool) -> bool:
        """Whether new units have the mean of the old ones, which are those of the original where `outer`, that is in
        old cells of the other dimensions."""
        return self.single and kind(found[1]) == "mean" and (outer or kind(found[0]) == "constant")

    def copies(self, found: tuple[int, ...]) -> bool:
        """Whether there are complete copies only."""
        return self.complete and {kind(f) for f in found} <= {"same", "constant"}

    def centre(self, found: tuple[int, ...], outer: bool) -> int:
        """The mean over the dimensions."""
        if any(kind(f) == "affine" for f in found):
            return ANY
        if self.grown is None or UNDEFINED in found:
            return found[0] if self.grown is None else UNDEFINED
        alike = found[0] >= SAME and found[1] >= SAME and scale(found[0]) == scale(found[1])
        return found[0] if alike and (self.centred(found, outer) or self.copies(found)) else ANY

    def spread(self, degrees: float, copies: bool) -> float:
        """By how much the variance is multiplied; 0 where that is not known."""
        if degrees == 0:
            return 1.0 if copies else 1 / self.by
        if self.old is None or self.old <= degrees:
            return 0.0
        return (self.by if copies else 1.0) * (self.old - degrees) / (self.old * self.by - degrees)


def _reduced(node: Node, found: tuple[int, ...], over: _Over, outer: bool) -> int:
    """The fact of one reduction; `found` are the facts over the dimension, old and new ones when it has grown."""
    op, order = node.op, _order(node)
    if UNDEFINED in found:
        return UNDEFINED
    if op.startswith(NORMS) and order > 0 and len(found) > 1 and found[1] == ZERO:
        found = found[:1]
    first = next(iter(found))
    if first == ZERO and len(found) == 1:
        return ZERO if op.startswith(KEEP_ZERO) else ANY
    otherwise = NONNEGATIVE if op.startswith((*NORMS, *SPREADS)) else ANY
    if any(f < SAME for f in found) or len({scale(f) for f in found}) > 1 or kind(first) not in ("same", "constant"):
        return otherwise
    by = scale(first)
    if op.startswith(NORMS) and order > 0 and len(found) > 1 and over.copies(found):
        return fact(kind(first), abs(by) * over.by ** (1 / order))
    if op.startswith(SPREADS):
        copies = len(found) == 1 or over.copies(found)
        degrees = _degrees(node)
        share = 1.0 if len(found) == 1 else over.spread(degrees, copies)
        if share and (copies or over.centred(found, outer)):
            return fact(kind(first), by**2 * share if "var" in op else abs(by) * sqrt(share))
    elif len(found) == 1 or (op.startswith(EXTREMA) and {kind(f) for f in found} <= {"same", "constant"}):
        if op.startswith(NORMS):
            return fact(kind(first), abs(by) if order else 1.0)
        if by == 1 or (by > 0 and op.startswith(("aten.amax", "aten.amin"))):
            return first
    return otherwise


def _order(node: Node) -> float:
    """The p of a p-norm."""
    order = node.argument(1, "ord" if "vector" in node.op else "p", 2)
    return order if isinstance(order, int | float) else 2


def _degrees(node: Node) -> float:
    """By how much less than the number of units a variance is divided."""
    position, name = (2, "correction") if "correction" in node.op else (2 if ".dim" in node.op else 1, "unbiased")
    degrees = node.argument(position, name, 1)
    return degrees if isinstance(degrees, int | float) else 1


@row("pool")
def _pool(context: Context, node: Node) -> Value:
    """Windows over space, channel by channel; zeros stay zero, and averages are linear."""
    facts = context.facts(node.args[0])
    several = isinstance(node.type, tuple)
    terms = context.axes.several[node.name][0] if several else context.result(node)
    if any((context.facts(a) != SAME).any() for a in node.args[1:] if isinstance(a, Ref)):  # a grid to sample at
        return unknown(context, node)
    linear = any(word in node.op for word in ("avg", "nearest", "bilinear", "bicubic"))
    known = ("same", "constant", "mean", "zero") if linear else ("same", "constant", "zero")

    def pooled(number: int) -> int:
        if number < ZERO:
            return UNDEFINED if number == UNDEFINED else ANY
        return number if kind(number) in known and (linear or number == ZERO or scale(number) > 0) else ANY

    kept = each(pooled, facts).reshape(context.layout.shape(terms))
    return (kept, np.where(kept == SAME, SAME, ANY).astype(np.int32)) if several else kept

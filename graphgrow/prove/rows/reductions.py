"""Facts of reductions, of operators along one dimension, of norms and pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import copysign, prod, sqrt

import numpy as np

from graphgrow import ops, sizes
from graphgrow.axes import UNIT, Atom, Product, Term
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.cells import Cell
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
    added,
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
from graphgrow.prove.rows.base import Context, Flags, Value, along, cut, row, settled, spread, unknown
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
    """Over dimensions that stay: cell by cell. Over a grown one: a norm does not see zeros, an extremum no copies, a
    variance falls by what has the mean."""
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


def statistics(context: Context, facts: Cells, over: Sequence[int], terms: Sequence[Term], centred: bool) -> Cells:
    """What a norm over the dimensions `over` leaves of x, its eps following: (x - mean) / sqrt(var), or x / sqrt(mean
    of squares) when not `centred`. By the facts of x over these dimensions:

    only complete copies: as in the original, of any multiple;
    zeros in new cells, not centred: the mean of squares falls by old/new, so old cells are sqrt(new/old) times the
    original's and new ones zero;
    the mean in new cells, centred: the mean stays, the variance falls by old/new; the same."""
    grown = [dim for dim in over if context.layout.touches(terms[dim])]
    if not grown:
        return each(_normalised_alone, facts)
    inside = np.ones(facts.shape, dtype=bool)
    whole = all(complete(context.layout.cells(terms[dim])) for dim in grown)
    for dim in grown:
        shape = [-1 if d == dim else 1 for d in range(facts.ndim)]
        inside &= np.array(context.layout.old(terms[dim])).reshape(shape)
    result: Cells = np.full(facts.shape, ANY, dtype=np.int32)
    factor = sqrt(growth(context, [terms[dim] for dim in grown]))
    single = isinstance(terms[grown[0]], Atom) and all(terms[dim].size == 1 for dim in over if dim != grown[0])
    outer = context.layout.is_old([UNIT if dim in grown else term for dim, term in enumerate(terms)])
    others = [dim for dim in range(facts.ndim) if dim not in grown]
    for place in np.ndindex(*(facts.shape[dim] for dim in others)):
        at: list[int | slice] = [slice(None)] * facts.ndim
        for dim, index in zip(others, place, strict=True):
            at[dim] = index
        index_ = tuple(at)
        there = inside[index_]
        old = {int(f) for f in facts[index_][there]}
        new = {int(f) for f in facts[index_][~there]}
        mean = single and (bool(outer[index_].all()) or {kind(f) for f in old} == {"constant"})
        found = _normal(old, new, whole, centred, mean)
        sign = copysign(1.0, scale(next(iter(old)))) if found else 1.0
        if found == "copies":
            kinds = {kind(f) for f in old | new}
            result[index_] = fact("same" if "same" in kinds else "constant", sign)
        elif found:
            number = fact(kind(next(iter(old))), sign * factor)
            result[index_] = np.where(there, number, ZERO)
        elif UNDEFINED in old | new:
            result[index_] = UNDEFINED
    return result


def _normalised_alone(number: int) -> int:
    """A norm over dimensions that stay."""
    if number >= SAME:
        return fact(kind(number), copysign(1.0, scale(number))) if kind(number) in ("same", "constant") else ANY
    return UNDEFINED if number == UNDEFINED else ANY


def _normal(old: set[int], new: set[int], whole: bool, centred: bool, mean: bool) -> str:
    """Which of the cases of `statistics` facts are: `copies`, `padded`, or none. `mean`: a mean in new cells is that
    over the dimension."""
    if len(old) != 1 or min(old) < SAME or not {kind(f) for f in old} <= {"same", "constant"}:
        return ""
    factor = scale(next(iter(old)))
    if all(f >= SAME and kind(f) in ("same", "constant") and scale(f) == factor for f in new):
        return "copies" if whole or all(kind(f) == "constant" for f in old | new) else ""
    if not centred and new == {ZERO}:
        return "padded"
    return "padded" if centred and mean and new == {fact("mean", factor)} else ""


def normalised(context: Context, node: Node) -> Cells:
    """A layer norm or RMS norm before its gain."""
    terms = context.terms(node.args[0])
    normal = node.args[1]
    count = len(normal) if isinstance(normal, tuple) else 1
    over = range(len(terms) - count, len(terms))
    facts = context.facts(node.args[0])
    result = statistics(context, facts, over, terms, centred="layer_norm" in node.op)
    scales = {scale(f) for f in map(int, facts.reshape(-1)) if f >= SAME and kind(f) in ("same", "constant")}
    if not scales or not (result >= SAME).any():
        return result
    padded = bool((result == ZERO).any())
    share = 1 / growth(context, [terms[dim] for dim in over]) if padded else 1.0
    path = _eps_path(node, 4 if "layer_norm" in node.op else 3)
    if len(scales) > 1 or not context.needs(node, scales.pop() ** 2 * share, *path):  # eps follows the variance
        return np.where(result == UNDEFINED, UNDEFINED, ANY).astype(np.int32)
    return result


def _eps_path(node: Node, position: int) -> tuple[int | str, ...]:
    return ("args", position) if position < len(node.args) else ("eps",)


@row("layer_norm")
def _layer_norm(context: Context, node: Node) -> Value:
    old = context.old(node)
    result = normalised(context, node)
    weight, bias = node.argument(2, "weight"), node.argument(3, "bias") if "layer_norm" in node.op else None
    if isinstance(weight, Ref):
        result = multiplied(result, context.spread(weight, old))
    if isinstance(bias, Ref):
        result = added(result, context.spread(bias, old))
    return settled(result, old)


def _by_channel(context: Context, argument: Argument, old: Flags) -> Cells | None:
    if not isinstance(argument, Ref):
        return None
    facts = context.facts(argument).reshape([-1 if dim == 1 else 1 for dim in range(old.ndim)])
    source = context.layout.is_old(context.terms(argument)).reshape(facts.shape)
    return spread(facts, source, old)


@row("batch_norm")
def _batch_norm(context: Context, node: Node) -> Value:
    """Channel by channel, (x - mean) / sqrt(var + eps) * weight + bias: zero where weight and bias are, or x, mean and
    bias. Not defined for a negative variance."""
    terms = context.terms(node.args[0])
    old = context.old(node)
    if context.grown((*terms[:1], *terms[2:])):
        return unknown(context, node, UNDEFINED)  # its statistics may be those of the input it is given
    weight, bias, mean, variance = (_by_channel(context, a, old) for a in node.args[1:5])
    image = context.facts(node.args[0])
    given = [image, *(a for a in (weight, bias, mean, variance) if a is not None)]
    result = functional(*given)
    if weight is not None and bias is not None and mean is not None:
        zero = ((weight == ZERO) | ((image == ZERO) & (mean == ZERO))) & (bias == ZERO)
        result = np.where(zero & ~(old & (result >= SAME)) & (result != UNDEFINED), ZERO, result)
    if variance is not None:
        bad = ~each(_not_negative, variance).astype(bool)
        result = np.where(bad, UNDEFINED, result)
    return settled(result.astype(np.int32), old)


def _not_negative(number: int) -> int:
    """Whether a variance is not negative, the original's being so."""
    if number < SAME:
        return number in (POSITIVE, NONNEGATIVE, ZERO)
    return kind(number) != "affine" and scale(number) > 0


@row("group_norm")
def _group_norm(context: Context, node: Node) -> Value:
    """Groups are independent; inside a group there may be complete copies of channels."""
    terms = context.terms(node.args[0])
    old = context.old(node)
    channels = terms[1]
    facts = context.facts(node.args[0])
    grouped = isinstance(channels, Product) and channels.parts and channels.parts[0].size == node.args[1]
    inner: tuple[Term, ...] = channels.parts[1:] if grouped and isinstance(channels, Product) else (channels,)
    alike = complete(context.layout.cells(channels)) and bool((facts == SAME).all())
    if context.grown(terms[2:]) or (context.grown(inner) and not alike):
        return unknown(context, node, UNDEFINED)
    result = facts if context.grown(inner) else functional(facts)
    weight, bias = (_by_channel(context, a, old) for a in (node.argument(2, "weight"), node.argument(3, "bias")))
    if weight is not None:
        result = multiplied(result, weight)
    if bias is not None:
        result = added(result, bias)
    return settled(result, old)


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

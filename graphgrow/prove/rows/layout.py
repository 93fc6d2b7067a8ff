"""Facts of operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom, Product, Term
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.facts import (
    ANY,
    CONSTANT,
    POSITIVE,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    each,
    fact,
    join,
    kind,
    permuted,
    scale,
)
from graphgrow.prove.rows.base import Context, Flags, Value, constant, cut, flat, joined, row, settled, spread, unknown
from graphgrow.sizes import add, sub


@row("reshape")
def _reshape(context: Context, node: Node) -> Value:
    """Cells of products in row-major order, as the elements are."""
    facts = context.facts(node.args[0])
    shape = context.layout.shape(context.axes.terms[node.name])
    if facts.size == prod(shape):
        return facts.reshape(shape)
    found = join(facts.reshape(-1).tolist())
    return np.full(shape, found if found < SAME or (facts == CONSTANT).all() else ANY, dtype=np.int32)


@row("permute")
def _permute(context: Context, node: Node) -> Value:
    return permuted(context.shared(node.args[0]), context.dims(node, 1, "dims"))


@row("unsqueeze")
def _unsqueeze(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    return facts.reshape(context.layout.shape(context.axes.terms[node.name]))


@row("expand")
def _expand(context: Context, node: Node) -> Value:
    return context.spread(node.args[0], context.old(node))


@row("repeat", "repeat_interleave")
def _repeat(context: Context, node: Node) -> Value:
    facts, old = context.facts(node.args[0]), context.old(node)
    source = context.layout.is_old(context.terms(node.args[0]))
    lead = old.ndim - facts.ndim
    facts, source = facts.reshape((1,) * lead + facts.shape), source.reshape((1,) * lead + source.shape)
    for dim, count in enumerate(old.shape):
        if facts.shape[dim] != count:
            times = count // facts.shape[dim]
            facts, source = (_repeated(a, times, dim, ops.kind(node.op)) for a in (facts, source))
    return np.where(source & ~old, each(constant, facts), facts).astype(np.int32)


def _repeated(cells: np.ndarray, times: int, dim: int, op: str) -> np.ndarray:
    return np.repeat(cells, times, axis=dim) if op == "repeat_interleave" else np.concatenate([cells] * times, axis=dim)


@row("cat")
def _cat(context: Context, node: Node) -> Value:
    parts = [a for a in flat(node.args) if isinstance(a, Ref) and len(context.terms(a)) == len(node.shape)]
    terms = context.axes.terms[node.name]
    value = node.argument(1, "dim", 0)
    dim = (value if isinstance(value, int) else 0) % len(terms)
    pairs = context.layout.pieces(terms[dim], [context.terms(a)[dim] for a in parts])
    if pairs is None:
        return unknown(context, node)
    shape = context.layout.shape(terms)
    found: list[list[Cells]] = [[] for _ in range(shape[dim])]
    old = context.old(node)
    for argument, chosen in zip(parts, pairs, strict=True):
        along = np.moveaxis(_aligned(context, argument, old, dim), dim, 0)
        for part, whole in chosen:
            found[whole].append(along[part])
    return np.moveaxis(np.stack([joined(cells) for cells in found]), 0, dim)


def _aligned(context: Context, argument: Argument, old: Flags, dim: int) -> Cells:
    """The facts of a part of a concatenation, wide in all dimensions but `dim`."""
    facts, source = context.facts(argument), context.layout.is_old(context.terms(argument))
    shape = tuple(size if d != dim else facts.shape[dim] for d, size in enumerate(old.shape))
    target = np.broadcast_to(source, shape)
    if facts.shape == shape:
        return facts
    rest = np.broadcast_to(old.any(axis=dim, keepdims=True), shape)
    return spread(facts, source, target & rest)


@row("pad")
def _pad(context: Context, node: Node) -> Value:
    """Constants around dimensions that stay; zeros stay zero where the constant is."""
    facts = context.facts(node.args[0])
    mode, value = node.argument(2, "mode", "constant"), node.argument(3, "value", 0)
    constant = value if isinstance(mode, str) else mode
    if facts.shape != context.layout.shape(context.axes.terms[node.name]):
        return unknown(context, node, UNDEFINED if (facts == UNDEFINED).any() else ANY)
    zero = constant in (None, 0)

    def padded(number: int) -> int:
        if number == UNDEFINED or (zero and number != POSITIVE and kind(number) not in ("affine", "names")):
            return number
        return number if number >= SAME and scale(number) == 1 and kind(number) not in ("affine", "names") else ANY

    return each(padded, facts)


@row("slice_scatter")
def _slice_scatter(context: Context, node: Node) -> Value:
    """Between two positions what is laid there, elsewhere what was; both where a cell lies across a position."""
    dim, terms, before = node.args[2], context.result(node), context.before(node, 3)
    assert isinstance(dim, int)
    if before is None or node.argument(5, "step", 1) != 1:
        return unknown(context, node)
    piece = context.terms(node.args[1])[dim]
    rest = Atom(-1, sub(sub(terms[dim].size, add(*(term.size for term in before))), piece.size))
    pairs = context.layout.pieces(terms[dim], [*before, piece, rest])
    facts, laid = (np.moveaxis(context.facts(argument), dim, 0) for argument in node.args[:2])
    if pairs is None or facts.shape[1:] != laid.shape[1:]:
        return unknown(context, node)
    *around, inside, behind = pairs
    kept = {whole for chosen in (*around, behind) for _, whole in chosen}
    found = [[cells] if at in kept else [] for at, cells in enumerate(facts)]
    for part, whole in inside:
        found[whole].append(laid[part])
    return np.moveaxis(np.stack([joined(cells or [old]) for cells, old in zip(found, facts, strict=True)]), 0, dim)


@row("stack", "select_scatter")
def _laid_together(context: Context, node: Node) -> Value:
    """Tensors side by side along a dimension that stays: cell by cell what holds for all."""
    shape = context.layout.shape(context.axes.terms[node.name])
    found = [context.facts(a) for a in flat(node.args) if isinstance(a, Ref)]
    value = node.argument(1 if ops.kind(node.op) == "stack" else 2, "dim", 0)
    dim = (value if isinstance(value, int) else 0) % len(shape)
    wide = [np.expand_dims(f, dim) if f.ndim < len(shape) else f for f in found]
    if shape[dim] != 1 or any(f.shape != shape for f in wide):
        return unknown(context, node)
    return joined(wide)


@row("view_as_complex", "view_as_real")
def _complex(context: Context, node: Node) -> Value:
    """Real and imaginary part lie side by side in a dimension that never grows."""
    facts = each(lambda f: ANY if kind(f) == "affine" else f, context.facts(node.args[0]))
    if ops.kind(node.op) == "view_as_real":
        return facts[..., None]
    return facts[..., 0] if facts.shape[-1] == 1 else unknown(context, node)


@row(
    "meshgrid", "pixel_shuffle", "pixel_unshuffle", "diagonal", "index_put", "loss", "searchsorted", "opaque", "unknown"
)
def plain(context: Context, node: Node) -> Value:
    """Nothing grown in sight and all operands the same: so is the result. With one fact everywhere, that fact."""
    found = {f for name in node.operands() for f in _facts_of(context.values[name])}
    moved = ops.kind(node.op) not in ("loss", "searchsorted", "opaque", "unknown")
    number = found.pop() if len(found) == 1 else UNDEFINED if UNDEFINED in found else ANY
    if number > SAME or (number == SAME and _reads_new(context, node)):
        number = ANY
    if not moved and number != SAME:
        number = UNDEFINED
    several = context.axes.several.get(node.name)
    if several is not None:
        return tuple(np.full(context.layout.shape(terms), number, dtype=np.int32) for terms in several)
    return np.full(context.old(node).shape, number, dtype=np.int32)


def _reads_new(context: Context, node: Node) -> bool:
    """Whether an operand has new units: copies there do not make the result a copy."""
    return any(context.grown(terms) for name in node.operands() for terms in _shapes(context, name))


def _shapes(context: Context, name: str) -> Sequence[Sequence[Term]]:
    return context.axes.several.get(name) or (context.axes.terms.get(name, ()),)


def _facts_of(value: Value) -> list[int]:
    return [f for part in (value if isinstance(value, tuple) else (value,)) for f in part.reshape(-1).tolist()]


@row("split")
def _split(context: Context, node: Node) -> Value:
    value = node.argument(2, "dim", 0)
    terms = context.terms(node.args[0])
    dim = (value if isinstance(value, int) else 0) % len(terms)
    parts = [shape[dim] for shape in context.axes.several[node.name]]
    found = cut(context, context.facts(node.args[0]), dim, terms[dim], parts)
    return tuple(found) if found is not None else unknown(context, node)


@row("unbind")
def _unbind(context: Context, node: Node) -> Value:
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (0,)
    whole = _one_of(context, node, dim)
    return tuple(whole for _ in context.axes.several[node.name])


def _one_of(context: Context, node: Node, dim: int) -> Cells:
    """One unit of a dimension, whichever: of a grown one only what does not vary along its new units."""
    facts = np.moveaxis(context.facts(node.args[0]), dim, 0)
    cells = context.layout.cells(context.terms(node.args[0])[dim])
    if len(cells) == 1:
        return np.asarray(facts[0])
    made: list[Cells] = []
    for part, cell in zip(facts, cells, strict=True):
        made.append(part if cell.old else each(_varied, part))
    return joined(made)


def _varied(number: int) -> int:
    if kind(number) == "constant":
        return fact("same", scale(number))
    return number if number <= ZERO else ANY


def _one_of_each(whole: Term, piece: Term, step: Argument) -> bool:
    """Whether a slice with a step takes one unit of every group: (pairs * 2)[::2] is the pairs."""
    return isinstance(whole, Product) and Product.of(whole.parts[:-1]) == piece and whole.parts[-1].size == step


@row("slice", "select")
def _slice(context: Context, node: Node) -> Value:
    """The cells between two positions."""
    terms = context.terms(node.args[0])
    dim = node.args[1]
    assert isinstance(dim, int)
    facts = context.facts(node.args[0])
    if not context.layout.touches(terms[dim]):
        return facts if ops.kind(node.op) == "slice" else np.asarray(facts.take(0, axis=dim))
    piece = context.result(node)[dim] if ops.kind(node.op) == "slice" else None
    if piece is not None and (piece.size == 0 or _one_of_each(terms[dim], piece, node.args[4])):
        return facts if piece.size != 0 else np.full(context.old(node).shape, SAME, dtype=np.int32)
    if piece is not None and node.args[4] == 1:
        before = context.before(node, 2)
        if before is not None:
            found = cut(context, facts, dim, terms[dim], [*before, piece])
            if found is not None:
                return found[-1]
    one = _one_of(context, node, dim)
    if ops.kind(node.op) == "select":
        return settled(one, context.old(node))
    old = context.old(node)
    return settled(np.broadcast_to(np.expand_dims(one, dim), old.shape).astype(np.int32), old)

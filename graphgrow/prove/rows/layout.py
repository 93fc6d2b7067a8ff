"""Facts of operators that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphgrow import ops
from graphgrow.axes import Term
from graphgrow.graph import Node, Ref
from graphgrow.prove.cells import ANY, ZERO, Cells, join
from graphgrow.prove.rows.base import Context, Value, cut, flat, row, unknown


@row("reshape")
def _reshape(context: Context, node: Node) -> Value:
    """Cells of products in row-major order, as the elements are."""
    facts = context.facts(node.args[0])
    shape = context.layout.shape(context.axes.terms[node.name])
    if facts.size == prod(shape):
        return facts.reshape(shape)
    return np.full(shape, join(facts.reshape(-1).tolist()), dtype=np.int16)


@row("permute")
def _permute(context: Context, node: Node) -> Value:
    return np.transpose(context.facts(node.args[0]), context.dims(node, 1, "dims"))


@row("unsqueeze")
def _unsqueeze(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    return facts.reshape(context.layout.shape(context.axes.terms[node.name]))


@row("expand")
def _expand(context: Context, node: Node) -> Value:
    old = context.layout.is_old(context.axes.terms[node.name])
    return context.spread(context.facts(node.args[0]), old.shape, old)


@row("repeat", "repeat_interleave")
def _repeat(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    old = context.layout.is_old(context.axes.terms[node.name])
    lead = old.ndim - facts.ndim
    facts = facts.reshape((1,) * lead + facts.shape)
    for dim, count in enumerate(old.shape):
        if facts.shape[dim] != count:
            times = count // facts.shape[dim]
            repeat = np.repeat(facts, times, axis=dim)
            tile = np.concatenate([facts] * times, axis=dim)
            facts = repeat if ops.kind(node.op) == "repeat_interleave" else tile
    return context.spread(facts, old.shape, old)


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
    for argument, chosen in zip(parts, pairs, strict=True):
        along = np.moveaxis(context.facts(argument), dim, 0)
        for part, whole in chosen:
            found[whole].append(along[part])
    rows = [np.where(np.logical_and.reduce([f == fs[0] for f in fs]), fs[0], ANY) for fs in found]
    return np.moveaxis(np.stack(rows), 0, dim).astype(np.int16)


@row("pad")
def _pad(context: Context, node: Node) -> Value:
    """Constants around dimensions that stay; zeros stay zero where the constant is."""
    facts = context.facts(node.args[0])
    mode, value = node.argument(2, "mode", "constant"), node.argument(3, "value", 0)
    constant = value if isinstance(mode, str) else mode
    if facts.shape != context.layout.shape(context.axes.terms[node.name]):
        return unknown(context, node)
    return facts if constant in (None, 0) else np.where(facts == ZERO, ANY, facts).astype(np.int16)


@row("stack", "slice_scatter", "select_scatter")
def _laid_together(context: Context, node: Node) -> Value:
    """Tensors side by side along a dimension that stays: cell by cell what holds for all."""
    shape = context.layout.shape(context.axes.terms[node.name])
    found = [context.facts(a) for a in flat(node.args) if isinstance(a, Ref)]
    position = {"stack": 1, "select_scatter": 2, "slice_scatter": 2}[ops.kind(node.op)]
    value = node.argument(position, "dim", 0)
    dim = (value if isinstance(value, int) else 0) % len(shape)
    wide = [np.expand_dims(f, dim) if f.ndim < len(shape) else f for f in found]
    if shape[dim] != 1 or any(f.shape != shape for f in wide):
        return unknown(context, node)
    same = np.logical_and.reduce([f == wide[0] for f in wide])
    return np.where(same, wide[0], ANY).astype(np.int16)


@row("meshgrid", "view_as_complex", "view_as_real", "pixel_shuffle", "pixel_unshuffle", "diagonal", "index_put", "loss",
     "searchsorted", "opaque", "unknown")  # fmt: skip
def plain(context: Context, node: Node) -> Value:
    """Nothing grown in sight and all operands the same: so is the result. With one fact everywhere, that fact."""
    found = {int(fact) for name in node.operands() for fact in _facts_of(context.values[name])}
    moved = ops.kind(node.op) not in ("loss", "searchsorted", "opaque", "unknown")
    fact = found.pop() if len(found) == 1 else ANY
    if fact == ZERO and not moved:
        fact = ANY
    several = context.axes.several.get(node.name)
    if several is not None:
        return tuple(_fill(context, terms, fact) for terms in several)
    return _fill(context, context.axes.terms[node.name], fact)


def _facts_of(value: Value) -> list[int]:
    return [f for part in (value if isinstance(value, tuple) else (value,)) for f in part.reshape(-1).tolist()]


def _fill(context: Context, terms: Sequence[Term], fact: int) -> Cells:
    old = context.layout.is_old(terms)
    return context.spread(np.full(old.shape, fact, dtype=np.int16), old.shape, old)


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
    facts = context.facts(node.args[0])
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (0,)
    whole: Cells = np.asarray(facts.take(0, axis=dim))
    if facts.shape[dim] != 1:
        whole = np.full(whole.shape, ANY, dtype=np.int16)
    return tuple(whole for _ in context.axes.several[node.name])


@row("slice", "select")
def _slice(context: Context, node: Node) -> Value:
    """The cells between two positions."""
    terms = context.terms(node.args[0])
    dim = node.args[1]
    assert isinstance(dim, int)
    facts = context.facts(node.args[0])
    if not context.layout.touches(terms[dim]):
        return facts if ops.kind(node.op) == "slice" else np.asarray(facts.take(0, axis=dim))
    if ops.kind(node.op) == "slice" and node.args[4] == 1:
        piece = context.axes.terms[node.name][dim]
        before = context.before(node)
        if before is not None:
            found = cut(context, facts, dim, terms[dim], [*before, piece])
            if found is not None:
                return found[-1]
    flat = np.moveaxis(facts, dim, 0)
    same = np.logical_and.reduce([flat[0] == other for other in flat])
    joined = np.where(same, flat[0], ANY).astype(np.int16)
    if ops.kind(node.op) == "select":
        return joined
    old = context.layout.is_old(context.axes.terms[node.name])
    return context.spread(np.expand_dims(joined, dim), old.shape, old)

"""Facts of lookups by index: an index that is the same picks old units."""

from __future__ import annotations

import numpy as np

from graphgrow import ops
from graphgrow.graph import Node, Ref
from graphgrow.prove.facts import ANY, CONSTANT, NAMES, SAME, UNDEFINED, ZERO, each, scale, scaled
from graphgrow.prove.rows.along import alike
from graphgrow.prove.rows.base import Context, Value, row, settled, spread, unknown
from graphgrow.prove.rows.pointwise import short


@row("embedding", "index_select", "index", "gather")
def _lookup(context: Context, node: Node) -> Value:
    terms = context.terms(node.args[0])
    facts = context.facts(node.args[0])
    op = ops.kind(node.op)
    indices = node.args[1] if op in ("embedding", "index") else node.args[2]
    chosen = list(indices) if isinstance(indices, tuple) else [indices]
    given = node.args[1]
    dims = [0] if op == "embedding" else [d for d, i in enumerate(chosen) if i is not None]
    if op in ("index_select", "gather"):
        dims = [(given if isinstance(given, int) else 0) % len(terms)]
    used = [index for index in chosen if isinstance(index, Ref)]
    out = context.result(node)
    if (facts == ZERO).all():
        return context.filled(node, ZERO, ZERO)
    over = [terms[dim] for dim in dims]
    named = node.name in context.own and len(used) == 1 and bool((context.facts(used[0]) == NAMES).all())
    if not named and not all(_known(context, index) for index in used):
        return unknown(context, node, UNDEFINED if (facts == UNDEFINED).any() else ANY)
    if (not named and op == "index" and context.grown(over)) or context.by_rank(over) or (facts == NAMES).any():
        return unknown(context, node)  # a negative index counts from the end, where the new units are
    source = context.layout.is_old(terms)
    for dim in dims:
        if named:  # whichever of the copies
            facts, source = alike(facts, dim), np.logical_or.reduce(source, axis=dim, keepdims=True)
            continue
        flags = context.layout.old(terms[dim])
        kept = [(facts.take(i, axis=dim), source.take(i, axis=dim)) for i, old in enumerate(flags) if old]
        same = np.logical_and.reduce([k == kept[0][0] for k, _ in kept])
        facts = np.expand_dims(np.where(same, kept[0][0], ANY), dim)
        source = np.expand_dims(kept[0][1], dim)
    if op == "gather":
        if any(size not in (1, count) for size, count in zip(facts.shape, context.old(node).shape, strict=True)):
            return unknown(context, node)  # an index that is narrower than what it picks from
        if named:
            return np.broadcast_to(facts, context.old(node).shape).astype(np.int32)
        return settled(spread(facts.astype(np.int32), source, context.old(node)), context.old(node))
    rest = [facts.shape[d] for d in range(facts.ndim) if d not in dims]
    width = len(out) - len(rest)
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if adjacent else 0
    shape = [*rest[:first], *[1] * width, *rest[first:]]
    if named:
        return np.broadcast_to(facts.reshape(shape), context.old(node).shape).astype(np.int32)
    return spread(facts.reshape(shape).astype(np.int32), source.reshape(shape), context.old(node))


def _known(context: Context, index: Ref) -> bool:
    """Whether an index is the same, for new units that of an old one, whichever."""
    facts, old = context.facts(index), context.layout.is_old(context.terms(index))
    return bool((facts[old] == SAME).all() and (facts[~old] == CONSTANT).all())


@row("scatter", "index_add")
def _scatter(context: Context, node: Node) -> Value:
    facts, terms = context.facts(node.args[0]), context.terms(node.args[0])
    dim = node.args[1] if isinstance(node.args[1], int) else 0
    others = [a for a in node.args[2:] if isinstance(a, Ref)]
    shapes = (terms, *(context.terms(other) for other in others))
    along = [shape[dim] if len(shape) == len(terms) else shape[0] for shape in shapes if shape]
    if ops.kind(node.op) == "scatter" and (context.facts(node.args[2]) == NAMES).all():
        return _scattered(context, node, dim % len(terms))
    if len(node.args) - len(others) <= 2 and all((context.facts(a) == ZERO).all() for a in (node.args[0], *others[1:])):
        return context.filled(node, ZERO, ZERO)
    same = all((context.facts(a) == SAME).all() for a in (node.args[0], *others))
    return facts if same and not context.grown(along) else unknown(context, node)


def _scattered(context: Context, node: Node, dim: int) -> Value:
    """One number, or what goes with the units of a topk, put among zeros at their places: at those of all copies."""
    base, index, source = node.args[0], node.args[2], node.args[3] if len(node.args) > 3 else None
    zeros = isinstance(base, Ref) and short(context.axes.graph[base.name]) in ("zeros_like", "zeros", "new_zeros")
    chosen, old = context.terms(index), context.old(node)
    others = [(one, two) for d, (one, two) in enumerate(zip(chosen, context.result(node), strict=True)) if d != dim]
    whole = context.by_rank([chosen[dim]]) and all(one == two for one, two in others)
    if not (zeros and whole and node.name in context.own and "reduce" not in node.op):
        return unknown(context, node)
    if isinstance(source, int | float):
        return np.full(old.shape, SAME, dtype=np.int32)
    if context.terms(source) != chosen:
        return unknown(context, node)
    put = each(lambda f: scaled(scale(f)) if f >= SAME else f, alike(context.facts(source), dim))
    return np.broadcast_to(put, old.shape).astype(np.int32)


@row("one_hot")
def _one_hot(context: Context, node: Node) -> Value:
    index = context.facts(node.args[0])
    if (index != SAME).any() or context.by_rank(context.result(node)[-1:]):
        return unknown(context, node)
    kept = np.array(context.layout.old(context.result(node)[-1]))
    return np.where(kept, index[..., None], ZERO).astype(np.int32)

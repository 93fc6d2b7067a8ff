"""Facts of reductions, of operators along one dimension, of norms and pools."""

from __future__ import annotations

import numpy as np

from graphgrow import ops
from graphgrow.axes import Product
from graphgrow.graph import Node, Ref
from graphgrow.prove.cells import ANY, SAME, ZERO, scale, scaled
from graphgrow.prove.rows.base import Context, Value, all_same, cut, row, unknown
from graphgrow.prove.rows.contractions import contract


@row("sum", "mean")
def _sum_row(context: Context, node: Node) -> Value:
    """Sums need zeros in new cells; a mean over a grown dimension is divided by its new size."""
    dims = context.dims(node, 1)
    terms = context.terms(node.args[0])
    letters = "abcdefghijkl"[: len(terms)]
    kept = "".join(letter for dim, letter in enumerate(letters) if dim not in dims)
    result = contract(context, [letters], kept, [context.facts(node.args[0])], [terms])
    if ops.kind(node.op) == "mean" and context.grown([terms[dim] for dim in dims]):
        factor = 1.0
        for dim in dims:
            new = terms[dim].resized(context.layout.grown)
            factor *= float(str(terms[dim].size)) / float(str(new)) if context.layout.touches(terms[dim]) else 1.0
        facts = [scaled(scale(fact) * factor) if fact >= SAME else fact for fact in map(int, result.reshape(-1))]
        result = np.array(facts, dtype=np.int16).reshape(result.shape)
    return result.reshape(context.layout.shape(context.axes.terms[node.name]))


@row("reduction", "norm_reduction", "reduction2")
def _reduction(context: Context, node: Node) -> Value:
    """Over dimensions that stay as they are: cell by cell."""
    dims = context.dims(node, 2 if ops.kind(node.op) == "norm_reduction" else 1)
    terms = context.terms(node.args[0])
    facts = context.facts(node.args[0])
    names = [node.name] if not isinstance(node.type, tuple) else []
    shape = context.layout.shape(context.axes.terms[names[0]] if names else context.axes.several[node.name][0])
    if context.grown([terms[dim] for dim in dims]):
        result = np.full(shape, ANY, dtype=np.int16)
    else:
        keeps_zero = node.op.startswith(("aten.amax", "aten.amin", "aten.linalg", "aten.norm", "aten.max", "aten.min"))
        result = np.where((facts == SAME) | ((facts == ZERO) & keeps_zero), facts, ANY).reshape(shape).astype(np.int16)
    indices = np.where(result == SAME, SAME, ANY).astype(np.int16)
    return result if names else (result, *(indices for _ in context.axes.several[node.name][1:]))


@row("along", "ordered", "sort", "topk", "diff", "flip", "roll", "triangle")
def _along(context: Context, node: Node) -> Value:
    """Along a dimension that stays: cell by cell, and what is made of zeros is not promised."""
    terms = context.terms(node.args[0])
    position = {"topk": 2, "diff": 2, "roll": 2}.get(ops.kind(node.op), 1)
    dims = context.dims(node, position) if ops.kind(node.op) != "triangle" else (len(terms) - 2, len(terms) - 1)
    facts = context.facts(node.args[0])
    moved = ops.kind(node.op) in ("flip", "roll", "triangle", "ordered")
    if context.grown([terms[dim] for dim in dims]):
        return unknown(context, node)
    result = np.where((facts == SAME) | ((facts == ZERO) & moved), facts, ANY).astype(np.int16)
    return (result, result) if isinstance(node.type, tuple) else result


@row("glu")
def _glu(context: Context, node: Node) -> Value:
    """a * sigmoid(b): zero where a is."""
    terms = context.terms(node.args[0])
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (len(terms) - 1,)
    half = context.axes.terms[node.name][dim]
    halves = cut(context, context.facts(node.args[0]), dim, terms[dim], [half, half])
    if halves is None:
        return np.full(context.layout.shape(context.axes.terms[node.name]), ANY, dtype=np.int16)
    value, gate = halves
    return np.where(value == ZERO, ZERO, np.where((value == SAME) & (gate == SAME), SAME, ANY)).astype(np.int16)


@row("layer_norm")
def _layer_norm(context: Context, node: Node) -> Value:
    """Statistics over dimensions that stay: cell by cell. Over a grown dimension nothing is promised (yet)."""
    terms = context.terms(node.args[0])
    normal = node.args[1]
    count = len(normal) if isinstance(normal, tuple) else 1
    old = context.layout.is_old(terms)
    if context.grown(terms[len(terms) - count :]):
        return np.full(old.shape, ANY, dtype=np.int16)
    weights = [context.facts(a) for a in node.args[2:4] if isinstance(a, Ref)]
    return all_same([context.facts(node.args[0]), *weights], context, old)


@row("batch_norm")
def _batch_norm(context: Context, node: Node) -> Value:
    """Channel by channel, (x - mean) / std * weight + bias: zero where weight and bias are, or x, mean and bias."""
    old = context.layout.is_old(context.terms(node.args[0]))
    terms = context.terms(node.args[0])
    if context.grown((*terms[:1], *terms[2:])):
        return np.full(old.shape, ANY, dtype=np.int16)  # its statistics may be those of the input it is given
    shape = [1] * old.ndim
    shape[1] = -1
    facts = [context.facts(node.args[0])]
    given = [isinstance(a, Ref) for a in node.args[1:5]]
    facts += [context.facts(a).reshape(shape) for a in node.args[1:5] if isinstance(a, Ref)]
    wide = [context.spread(f, old.shape, old) == ZERO for f in facts]
    result = all_same(facts, context, old)
    if all(given):
        zero = (wide[1] | (wide[0] & wide[3])) & wide[2]
        result = np.where(zero & ~old, ZERO, result).astype(np.int16)
    return result


@row("group_norm")
def _group_norm(context: Context, node: Node) -> Value:
    """Groups are independent; inside a group the number of channels must stay."""
    terms = context.terms(node.args[0])
    old = context.layout.is_old(terms)
    channels = terms[1]
    grouped = isinstance(channels, Product) and channels.parts and channels.parts[0].size == node.args[1]
    inner = channels.parts[1:] if grouped and isinstance(channels, Product) else (channels,)
    if context.grown((*inner, *terms[2:])):
        return np.full(old.shape, ANY, dtype=np.int16)
    shape = [1] * old.ndim
    shape[1] = -1
    weights = [context.facts(a).reshape(shape) for a in node.args[2:4] if isinstance(a, Ref)]
    return all_same([context.facts(node.args[0]), *weights], context, old)


@row("pool")
def _pool(context: Context, node: Node) -> Value:
    """Windows over space, channel by channel; zeros stay zero."""
    facts = context.facts(node.args[0])
    several = isinstance(node.type, tuple)
    terms = context.axes.several[node.name][0] if several else context.axes.terms[node.name]
    if any((context.facts(a) != SAME).any() for a in node.args[1:] if isinstance(a, Ref)):  # a grid to sample at
        facts = np.full_like(facts, ANY)
    kept = np.where(facts > SAME, ANY, facts).reshape(context.layout.shape(terms)).astype(np.int16)
    return (kept, np.where(kept == SAME, SAME, ANY).astype(np.int16)) if several else kept

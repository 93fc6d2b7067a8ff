"""Facts of sums of products: linear, matmul, einsum, attention, convolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as cartesian
from math import prod

import numpy as np

from graphgrow.axes import Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.cells import ANY, SAME, ZERO, Cells, scale, scaled
from graphgrow.prove.rows.base import Context, Value, added, row


@row("contraction")
def _contraction(context: Context, node: Node) -> Value:
    """A sum of products: what is summed over old cells must be the same, over new cells zero."""
    found, bias = operands(node)
    inputs, output = equation(node, [len(context.terms(operand)) for operand in found])
    facts = [context.facts(operand) for operand in found]
    terms = [context.terms(operand) for operand in found]
    result = contract(context, inputs, output, facts, terms)
    return _plus(context, node, result, bias)


def _plus(context: Context, node: Node, result: Cells, bias: Argument) -> Cells:
    if bias is None:
        return result
    old = context.layout.is_old(context.axes.terms[node.name])
    return added(result, context.spread(context.facts(bias), old.shape, old), old)


def contract(
    context: Context, inputs: Sequence[str], output: str, facts: Sequence[Cells], terms: Sequence[Sequence[Term]]
) -> Cells:
    """The facts of an einsum. `terms` tell old from new along every letter."""
    old: dict[str, tuple[bool, ...]] = {}
    for text, shape in zip(inputs, terms, strict=True):
        for letter, term in zip(text, shape, strict=True):
            flags = context.layout.old(term)
            if letter not in old or len(flags) > len(old[letter]):
                old[letter] = flags
    summed = [letter for letter in old if letter not in output]
    result: Cells = np.full(tuple(len(old[letter]) for letter in output), ANY, dtype=np.int16)
    for cell in cartesian(*(range(len(old[letter])) for letter in output)):
        place = dict(zip(output, cell, strict=True))
        is_old = all(old[letter][index] for letter, index in place.items())
        result[cell] = _sum(inputs, facts, old, summed, place, is_old)
    return result


def _sum(
    inputs: Sequence[str],
    facts: Sequence[Cells],
    old: dict[str, tuple[bool, ...]],
    summed: Sequence[str],
    place: dict[str, int],
    is_old: bool,
) -> int:
    total: int | None = None
    for chosen in cartesian(*(range(len(old[letter])) for letter in summed)):
        at = place | dict(zip(summed, chosen, strict=True))
        factors = [
            int(f[tuple(min(at[c], size - 1) for c, size in zip(text, f.shape, strict=True))])
            for text, f in zip(inputs, facts, strict=True)
        ]
        if ZERO in factors:
            term = ZERO
        elif is_old and all(old[letter][at[letter]] for letter in summed) and ANY not in factors:
            term = scaled(prod(scale(fact) for fact in factors))
        else:
            return ANY
        if term != ZERO:
            if total not in (None, term):
                return ANY
            total = term
        elif all(old[letter][at[letter]] for letter in summed) and is_old:
            return ANY  # the original has something here
    return ZERO if total is None else total


@row("attention")
def _attention(context: Context, node: Node) -> Value:
    """softmax(q k) v per head: the weights of a head are the same where q k and the mask are; new heads are free."""
    query, key, value = (context.facts(argument) for argument in node.args[:3])
    terms = [context.terms(argument) for argument in node.args[:3]]
    out_terms = context.axes.terms[node.name]
    old = context.layout.is_old(out_terms)
    rank = query.ndim
    letters = "abcdefgh"[: rank - 2]
    if context.grown((terms[1][-2], terms[0][-2])):
        return np.full(old.shape, ANY, dtype=np.int16)
    heads = old.shape[:-2]
    wide = [_wide(facts, heads) for facts in (query, key, value)]
    lead = out_terms[:-2]
    scores = contract(
        context, [letters + "ni", letters + "mi"], letters + "nm", wide[:2], [(*lead, *t[-2:]) for t in terms[:2]]
    )
    mask = node.args[3]
    if isinstance(mask, Ref):
        flags = context.layout.is_old((*lead, terms[0][-2], terms[1][-2]))
        scores = np.where(context.spread(context.facts(mask), scores.shape, flags) == SAME, scores, ANY)
    weights = np.where(scores == SAME, SAME, ANY).astype(np.int16)
    return contract(
        context, [letters + "nm", letters + "mv"], letters + "nv", [weights, wide[2]],
        [(*lead, terms[0][-2], terms[1][-2]), (*lead, *terms[2][-2:])],
    )  # fmt: skip


def _wide(facts: Cells, heads: tuple[int, ...]) -> Cells:
    """Facts per query head: a head of keys or values serves a group of them, cells of a product in order."""
    for dim, count in enumerate(heads):
        have = facts.shape[dim]
        if have not in (1, count):
            facts = np.repeat(facts, count // have, axis=dim) if count % have == 0 else np.full_like(facts, ANY)
    return np.broadcast_to(facts, (*heads, *facts.shape[-2:]))


@row("convolution")
def _convolution(context: Context, node: Node) -> Value:
    """A contraction over channels inside each group, at every position of the window."""
    image, weight, bias = (context.facts(a) for a in (*node.args[:2], node.argument(2, "bias")))
    image_terms, weight_terms = context.terms(node.args[0]), context.terms(node.args[1])
    out_terms = context.axes.terms[node.name]
    channel = len(image_terms) - len(weight_terms) + 1
    groups = node.argument(6, "groups", 1)
    old = context.layout.is_old(out_terms)
    if "transpose" in node.op and groups == 1:
        weight = np.swapaxes(weight, 0, 1)
        weight_terms = (weight_terms[1], weight_terms[0], *weight_terms[2:])
    elif "transpose" in node.op and context.grown((*image_terms, *out_terms)):
        return np.full(old.shape, ANY, dtype=np.int16)
    if groups == 1:
        space = "xyz"[: len(weight_terms) - 2]
        window = "uvw"[: len(space)]
        batch = "ab"[:channel]
        result = contract(
            context,
            [batch + "i" + space, "oi" + window],
            batch + "o" + space,
            [image, weight],
            [image_terms, weight_terms],
        )
    else:
        result = _grouped(context, image, weight, (channel, image_terms, weight_terms, out_terms))
    shape = [1] * len(out_terms)
    shape[channel] = -1
    if node.argument(2, "bias") is None:
        return result
    return added(result, context.spread(bias.reshape(shape), old.shape, old), old)


def _grouped(
    context: Context,
    image: Cells,
    weight: Cells,
    where: tuple[int, Sequence[Term], Sequence[Term], Sequence[Term]],
) -> Cells:
    """Group by group: the output cells of a group depend on the input cells of the same group."""
    channel, image_terms, weight_terms, out_terms = where
    old_in, old_out = context.layout.old(image_terms[channel]), context.layout.old(out_terms[channel])
    inner = len(context.layout.old(weight_terms[1]))
    group_cells = max(1, len(old_in) // inner)
    each = len(old_out) // group_cells
    if group_cells * inner != len(old_in) or each * group_cells != len(old_out):
        return np.full(context.layout.shape(out_terms), ANY, dtype=np.int16)
    facts_in = np.moveaxis(image, channel, 0).reshape(len(old_in), -1)
    facts_weight = weight.reshape(len(old_out), inner)
    into = context.layout.old(weight_terms[1])
    result: Cells = np.full((len(old_out), facts_in.shape[1]), ANY, dtype=np.int16)
    for out, rest in cartesian(range(len(old_out)), range(facts_in.shape[1])):
        group = out // each
        rows = [(int(facts_in[group * inner + i, rest]), int(facts_weight[out, i]), into[i]) for i in range(inner)]
        result[out, rest] = _group_sum(rows, old_out[out])
    lead = [size for dim, size in enumerate(image.shape) if dim != channel]
    return np.moveaxis(result.reshape(len(old_out), *lead), 0, channel)


def _group_sum(rows: Sequence[tuple[int, int, bool]], is_old: bool) -> int:
    found = [
        (ZERO if ZERO in (a, b) else scaled(scale(a) * scale(b)) if ANY not in (a, b) else ANY, old)
        for a, b, old in rows
    ]
    if all(fact == ZERO for fact, _ in found):
        return ZERO if not is_old else ANY
    kept = {fact for fact, old in found if old}
    new = {fact for fact, old in found if not old}
    return kept.pop() if is_old and new <= {ZERO} and len(kept) == 1 and ZERO not in kept else ANY

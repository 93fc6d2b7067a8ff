"""Facts of norms: layer, batch and group."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign, sqrt

import numpy as np

from graphgrow.axes import UNIT, Atom, Product, Term
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.facts import (
    ANY,
    NONNEGATIVE,
    POSITIVE,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    added,
    each,
    fact,
    functional,
    kind,
    multiplied,
    scale,
)  # fmt: skip
from graphgrow.prove.rows.base import Context, Flags, Value, row, settled, spread, unknown
from graphgrow.prove.rows.reductions import complete, growth


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

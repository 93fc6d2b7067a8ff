"""Facts of sums of products: linear, matmul, einsum, attention, convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as cartesian
from math import prod

import numpy as np

from graphgrow.axes import Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.cells import Cell
from graphgrow.prove.facts import (
    ANY,
    CONSTANT,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    added,
    each,
    fact,
    free,
    functional,
    kind,
    multiple,
    permuted,
    plus,
    product,
    scale,
    settle,
    times,
)  # fmt: skip
from graphgrow.prove.rows.base import Context, Value, row, unknown


@row("contraction")
def _contraction(context: Context, node: Node) -> Value:
    found, bias = operands(node)
    return _plus(context, node, multiplied(context, node), bias if found else None)


def multiplied(context: Context, node: Node) -> Cells:
    """A contraction or convolution before its bias is added."""
    if node.op.startswith("aten.conv"):
        return _convolved(context, node)
    found, _ = operands(node)
    inputs, output = equation(node, [len(context.terms(operand)) for operand in found])
    facts = [context.shared(operand) for operand in found]
    return contract(context, inputs, output, facts, [context.terms(operand) for operand in found])


def _plus(context: Context, node: Node, result: Cells, bias: Argument) -> Cells:
    return result if bias is None else added(result, context.spread(bias, context.old(node)))


def contract(
    context: Context, inputs: Sequence[str], output: str, facts: Sequence[Cells], terms: Sequence[Sequence[Term]]
) -> Cells:
    """The facts of an einsum. `terms` tell old from new along every letter."""
    cells: dict[str, tuple[Cell, ...]] = {}
    for text, shape in zip(inputs, terms, strict=True):
        for letter, term in zip(text, shape, strict=True):
            found = context.layout.cells(term)
            if letter not in cells or len(found) > len(cells[letter]):
                cells[letter] = found
    summed = [letter for letter in cells if letter not in output]
    result: Cells = np.full(tuple(len(cells[letter]) for letter in output), ANY, dtype=np.int32)
    for place in cartesian(*(range(len(cells[letter])) for letter in output)):
        at = dict(zip(output, place, strict=True))
        result[place] = _summed(inputs, facts, cells, summed, at)
    return result


def _summed(
    inputs: Sequence[str],
    facts: Sequence[Cells],
    cells: dict[str, tuple[Cell, ...]],
    summed: Sequence[str],
    place: dict[str, int],
) -> int:
    """One cell of the result: for every old cell that is summed over, how many times it comes in all; the sum is that
    multiple of the original's where all come equally often."""
    totals: dict[tuple[int, ...], float] = {}
    kinds: set[str] = set()
    lost: int | None = None
    shares = _Shares(inputs, cells, summed)
    for chosen in cartesian(*(range(len(cells[letter])) for letter in summed)):
        at = place | dict(zip(summed, chosen, strict=True))
        origin = tuple(cells[letter][index].origin for letter, index in zip(summed, chosen, strict=True))
        totals.setdefault(origin, 0.0)
        factors = [_factor(f, text, at, cells) for text, f in zip(inputs, facts, strict=True)]
        term = product(factors)
        if term != UNDEFINED and any(kind(f) == "share" for f in factors):
            shares.take(factors, facts, at, origin)
            continue
        repeated = any(
            kind(f) == "mean" and len(set(text)) < len(text) for f, text in zip(factors, inputs, strict=True)
        )
        if kind(term) in ("affine", "names") or (
            repeated and term >= SAME
        ):  # a mean of a matrix is none of its diagonal
            term = ANY
        over = [cells[letter][at[letter]] for letter in summed]
        if term == ZERO:
            continue
        if term >= SAME and any(not cell.old for cell in over):
            new = {letter for letter in summed if not cells[letter][at[letter]].old}
            copies = any(kind(f) == "same" and new & set(text) for f, text in zip(factors, inputs, strict=True))
            if kind(term) == "mean" and all(cells[c][i].old for c, i in place.items()):
                term = fact("constant", scale(term))  # a mean of what is summed is no longer one of what is left
            if copies and not all(cell.whole for cell in over):
                term = ANY
        if term < SAME:
            lost = term if lost is None else plus(lost, term)
            continue
        totals[origin] += scale(term) * prod(cell.ratio for cell in over)
        kinds.add(kind(term))
    for origin, term, times_ in shares.totals():
        if term < SAME:
            lost = term if lost is None else plus(lost, term)
            continue
        totals[origin] += scale(term) * times_
        kinds.add(kind(term))
    is_old = all(cells[letter][index].old for letter, index in place.items())
    return _total(totals, kinds, lost, is_old)


class _Shares:
    """The terms of one sum in which an operand holds shares. Where the others hold copies of one multiple along the
    dimensions of the shares, and all the shares of an old unit are there, their terms together are that multiple of the
    original's: sum_j x_j w_j = x sum_j w_j. Copies need not be complete."""

    def __init__(self, inputs: Sequence[str], cells: dict[str, tuple[Cell, ...]], summed: Sequence[str]) -> None:
        self.inputs, self.cells, self.summed = inputs, cells, summed
        self.groups: dict[tuple[object, ...], tuple[tuple[int, ...], float, list[int], int]] = {}
        self.lost: list[tuple[int, ...]] = []

    def take(self, factors: Sequence[int], facts: Sequence[Cells], at: dict[str, int], origin: tuple[int, ...]) -> None:
        """One term."""
        index = next(i for i, f in enumerate(factors) if kind(f) == "share")
        text, found = self.inputs[index], multiple(factors[index])
        along = [text[dim] for dim in found.along]
        own = [c for c, size in zip(text, facts[index].shape, strict=True) if size == len(self.cells[c])]
        rest = product([SAME if i == index else f for i, f in enumerate(factors)])
        over = {c: self.cells[c][at[c]] for c in self.summed if c not in along}
        copies = kind(rest) in ("same", "constant") and all(cell.old or cell.whole for cell in over.values())
        if not copies or not set(along) <= set(own).intersection(self.summed) or len(set(text)) < len(text):
            self.lost.append(origin)
            return
        varies = any(not self.cells[c][at[c]].old for c in own if c not in along)
        others = product([fact("same" if varies else "constant", found.scale), *_without(factors, index)])
        ratio = prod(cell.ratio for cell in over.values())
        count = prod(sum(cell.origin == self.cells[c][at[c]].origin for cell in self.cells[c]) for c in along)
        key = (index, factors[index], origin, *((c, at[c]) for c in over))
        self.groups.setdefault(key, (origin, ratio, [], count))[2].append(others)

    def totals(self) -> Iterator[tuple[tuple[int, ...], int, float]]:
        """What the shares of each old cell make together, and how often it comes."""
        yield from ((origin, ANY, 1.0) for origin in self.lost)
        for origin, ratio, terms, count in self.groups.values():
            kinds = {kind(term) for term in terms}
            whole = len(terms) == count and len({scale(term) for term in terms if term >= SAME}) == 1
            if whole and kinds <= {"same", "constant"}:
                yield origin, max(terms, key=lambda term: kind(term) == "same"), ratio
            else:
                yield origin, ANY, 1.0


def _without(factors: Sequence[int], index: int) -> list[int]:
    return [f for i, f in enumerate(factors) if i != index]


def _factor(facts: Cells, text: str, at: dict[str, int], cells: dict[str, tuple[Cell, ...]]) -> int:
    """The fact of an operand at a place. What is old in all its dimensions does not vary along new ones."""
    number = int(facts[tuple(min(at[c], size - 1) for c, size in zip(text, facts.shape, strict=True))])
    constant = kind(number) == "same" and all(
        cells[c][at[c]].old or size == 1 for c, size in zip(text, facts.shape, strict=True)
    )
    return fact("constant", scale(number)) if constant else number


def _total(totals: dict[tuple[int, ...], float], kinds: set[str], lost: int | None, is_old: bool) -> int:
    if lost is not None:
        return ANY if kinds and lost != UNDEFINED else lost
    if not kinds:
        return ZERO
    shares = {settle(share) for share in totals.values()}
    if len(shares) > 1:
        return ANY
    if is_old:
        return fact("same", shares.pop())
    rest = kinds - {"constant"}
    return ANY if len(rest) > 1 else fact("mean" if "mean" in rest else "same" if rest else "constant", shares.pop())


@row("attention")
def _attention(context: Context, node: Node) -> Value:
    """softmax(q k) v per head: the weights of a head are the same where q k and the mask are; new heads are free."""
    terms = [context.terms(argument) for argument in node.args[:3]]
    old = context.old(node)
    if context.grown((terms[1][-2], terms[0][-2])):
        return unknown(context, node)
    letters = "abcdefgh"[: len(terms[0]) - 2]
    lead = context.result(node)[:-2]
    value = _wide(context.facts(node.args[2]), old.shape[:-2])
    scores = attention_scores(context, node)
    flags = context.layout.is_old((*lead, terms[0][-2], terms[1][-2]))
    mask = node.args[3]
    masks = context.spread(mask, flags) if isinstance(mask, Ref) else np.full(scores.shape, CONSTANT, dtype=np.int32)
    weights = functional(scores, masks)
    return contract(
        context, [letters + "nm", letters + "mv"], letters + "nv", [weights, value],
        [(*lead, terms[0][-2], terms[1][-2]), (*lead, *terms[2][-2:])],
    )  # fmt: skip


def attention_scores(context: Context, node: Node) -> Cells:
    """The facts of q k times the scale."""
    terms = [context.terms(argument) for argument in node.args[:2]]
    letters = "abcdefgh"[: len(terms[0]) - 2]
    heads, lead = context.old(node).shape[:-2], context.result(node)[:-2]
    factors = [_wide(context.facts(argument), heads) for argument in node.args[:2]]
    shapes = [(*lead, *shape[-2:]) for shape in terms]
    scores = contract(context, [letters + "ni", letters + "mi"], letters + "nm", factors, shapes)
    factor = fact("constant", context.factor(node, "scale"))
    return each(lambda f: times(f, factor), scores)


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
    result = _convolved(context, node)
    bias = node.argument(2, "bias")
    if not isinstance(bias, Ref):
        return result
    old = context.old(node)
    channel = len(context.terms(node.args[0])) - len(context.terms(node.args[1])) + 1
    facts = context.facts(bias).reshape([-1 if dim == channel else 1 for dim in range(old.ndim)])
    return added(result, np.broadcast_to(facts, old.shape))


def _convolved(context: Context, node: Node) -> Cells:
    image, weight = context.facts(node.args[0]), context.shared(node.args[1])
    image_terms, weight_terms = context.terms(node.args[0]), context.terms(node.args[1])
    out_terms = context.result(node)
    channel = len(image_terms) - len(weight_terms) + 1
    groups = node.argument(6, "groups", 1)
    if "transpose" in node.op and groups == 1:
        weight = permuted(weight, (1, 0, *range(2, weight.ndim)))
        weight_terms = (weight_terms[1], weight_terms[0], *weight_terms[2:])
    elif "transpose" in node.op and context.grown((*image_terms, *out_terms)):
        return _lost(context, node)
    if groups == 1:
        space = "xyz"[: len(weight_terms) - 2]
        batch = "ab"[:channel]
        letters = [batch + "i" + space, "oi" + "uvw"[: len(space)]]
        return contract(context, letters, batch + "o" + space, [image, weight], [image_terms, weight_terms])
    found = _grouped(context, image, weight, (channel, image_terms, weight_terms, out_terms))
    return _lost(context, node) if found is None else found


def _lost(context: Context, node: Node) -> Cells:
    result = unknown(context, node)
    assert isinstance(result, np.ndarray)
    return result


def _grouped(
    context: Context,
    image: Cells,
    weight: Cells,
    where: tuple[int, Sequence[Term], Sequence[Term], Sequence[Term]],
) -> Cells | None:
    """Group by group: the output cells of a group depend on the input cells of the same group. None where cells do not
    fall into groups."""
    channel, image_terms, weight_terms, out_terms = where
    cells_in, old_out = context.layout.cells(image_terms[channel]), context.layout.old(out_terms[channel])
    into = context.layout.cells(weight_terms[1])
    inner = len(into)
    group_cells = max(1, len(cells_in) // inner)
    each = len(old_out) // group_cells
    if group_cells * inner != len(cells_in) or each * group_cells != len(old_out):
        return None
    facts_in = np.moveaxis(image, channel, 0).reshape(len(cells_in), -1)
    facts_weight = weight.reshape(len(old_out), inner)
    result: Cells = np.full((len(old_out), facts_in.shape[1]), ANY, dtype=np.int32)
    for out, rest in cartesian(range(len(old_out)), range(facts_in.shape[1])):
        group = out // each
        pairs = [(int(facts_in[group * inner + i, rest]), int(facts_weight[out, i])) for i in range(inner)]
        result[out, rest] = _group_sum(pairs, into, old_out[out])
    lead = [size for dim, size in enumerate(image.shape) if dim != channel]
    return np.moveaxis(result.reshape(len(old_out), *lead), 0, channel)


def _group_sum(pairs: Sequence[tuple[int, int]], into: Sequence[Cell], is_old: bool) -> int:
    """The sum over the channels of one group. A new group copies an old one where all its factors do."""
    totals: dict[tuple[int, ...], float] = {}
    lost: int | None = None
    found = False
    for (a, b), cell in zip(pairs, into, strict=True):
        totals.setdefault((cell.origin,), 0.0)
        term = times(a, b)
        if term == ZERO:
            continue
        if free(term) or kind(term) == "mean" or not (cell.old or cell.whole):
            lost = ANY if term >= SAME else term if lost is None else plus(lost, term)
            continue
        totals[(cell.origin,)] += scale(term) * cell.ratio
        found = True
    return _total(totals, {"same"} if found else set(), lost, is_old)

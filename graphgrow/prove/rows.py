"""What each kind of operator makes of facts: one row per kind, soundness argued beside it.

A row gets the facts of the operands and returns those of the result. A cell is *old* when the original has it, *new*
otherwise; in a new cell only ZERO and ANY mean something. Everything is said of evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as cartesian
from math import prod

import numpy as np

from graphgrow import ops
from graphgrow.axes import Axes, Term
from graphgrow.axes.rules import equation, operands
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.cells import ANY, SAME, ZERO, Cells, Layout, join, scale, scaled

Value = Cells | tuple[Cells, ...]
Row = Callable[["Context", Node], Value]
ROWS: dict[str, Row] = {}


def row(*kinds: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        ROWS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Context:
    """What a row may read: facts of operands (`values`), terms, and how terms fall into cells."""

    def __init__(self, axes: Axes, layout: Layout, values: dict[str, Value]) -> None:
        self.axes, self.layout, self.values = axes, layout, values

    def facts(self, argument: Argument) -> Cells:
        """The facts of a tensor operand; a number is the same everywhere."""
        if isinstance(argument, Ref):
            value = self.values[argument.name]
            assert isinstance(value, np.ndarray)
            return value
        return np.array(SAME, dtype=np.int16)

    def terms(self, argument: Argument) -> tuple[Term, ...]:
        return self.axes.terms.get(argument.name, ()) if isinstance(argument, Ref) else ()

    def filled(self, node: Node, old: int, new: int) -> Cells:
        """One fact in all old cells of the result, one in all new ones."""
        flags = self.layout.is_old(self.axes.terms[node.name])
        return np.where(flags, old, new).astype(np.int16)

    def spread(self, facts: Cells, shape: tuple[int, ...], old: np.ndarray) -> Cells:
        """Facts broadcast to a shape of cells; what is spread into new cells is zero or anything."""
        wide = np.broadcast_to(facts, shape)
        return np.where(old | (wide == ZERO), wide, ANY).astype(np.int16)

    def grown(self, terms: Sequence[Term]) -> bool:
        return any(self.layout.touches(term) for term in terms)

    def dims(self, node: Node, index: int, name: str = "dim") -> tuple[int, ...]:
        """A dimension argument or a list of them, all when there is none."""
        value = node.argument(index, name)
        rank = len(self.terms(node.args[0]))
        items = value if isinstance(value, tuple) else (value,)
        return tuple(item % rank for item in items if isinstance(item, int)) or tuple(range(rank))


@row("pointwise")
def _pointwise(context: Context, node: Node) -> Value:
    """Cell by cell. Old: the same where all operands are. New: zero as the operator's row in the table says."""
    arguments = node.args[1:2] if node.op == "by_mode" else _flat(node.args)
    old = context.layout.is_old(context.axes.terms[node.name])
    given = [a for a in arguments if isinstance(a, Ref) or (isinstance(a, int | float) and not isinstance(a, bool))]
    found = [context.spread(context.facts(a), old.shape, old) for a in given if isinstance(a, Ref)]
    kept = _combined(node, found, given)
    zeros = _zeros(ops.TABLE[node.op].zero, node, given, found, old.shape)
    return np.where(zeros, ZERO, np.where(old, kept, ANY)).astype(np.int16)


def _flat(arguments: Sequence[Argument]) -> list[Argument]:
    return [item for argument in arguments for item in (_flat(argument) if isinstance(argument, tuple) else [argument])]


LINEAR = {"neg", "to.dtype", "detach", "clone", "dropout", "feature_dropout"}


def _combined(node: Node, found: Sequence[Cells], given: Sequence[Argument]) -> Cells:
    """Facts in old cells: products multiply scales, sums need equal ones, anything else needs the original itself."""
    name = node.op.removeprefix("aten.").removesuffix(".default")
    if not found:
        return np.array(SAME, dtype=np.int16)
    stacked = np.stack(found)
    if (stacked == SAME).all():
        return stacked[0]
    same = (stacked == stacked[0]).all(axis=0)
    if name in LINEAR or name == "by_mode" or (name in ("add.Tensor", "sub.Tensor") and len(found) == len(given)):
        return np.where(same & (stacked[0] != ZERO), stacked[0], ANY).astype(np.int16)
    if name in ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"):
        return _multiplied(stacked, divide=name.startswith("div"))
    return np.where(same & (stacked[0] == SAME), SAME, ANY).astype(np.int16)


def _multiplied(stacked: Cells, divide: bool) -> Cells:
    result = np.full(stacked.shape[1:], ANY, dtype=np.int16)
    for cell in np.ndindex(result.shape):
        facts = [int(fact) for fact in stacked[(slice(None), *cell)]]
        if all(fact >= SAME for fact in facts):
            first, *others = (scale(fact) for fact in facts)
            result[cell] = scaled(first / prod(others) if divide else first * prod(others))
    return result


def _zeros(
    rule: str, node: Node, given: Sequence[Argument], found: Sequence[Cells], shape: tuple[int, ...]
) -> np.ndarray:
    """Where the result is zero."""
    waiting = iter(found)
    each = [next(waiting) == ZERO if isinstance(a, Ref) else np.full(shape, a == 0) for a in given]
    if not each or not rule:
        return np.zeros(shape, dtype=bool)
    if rule == "any":
        return np.logical_or.reduce(each)
    unary = len(found) == 1 and node.op not in BINARY
    if rule == "first" or unary:
        return each[0]
    return np.logical_and.reduce(each)


# Operators whose second number is an operand and not a setting (a slope, a probability).
BINARY = {
    f"aten.{name}"
    for name in "add.Tensor sub.Tensor rsub.Tensor add.Scalar sub.Scalar rsub.Scalar maximum.default minimum.default".split()
}


@row("power")
def _power(context: Context, node: Node) -> Value:
    """x to a positive power is zero where x is."""
    facts = context.facts(node.args[0])
    positive = isinstance(node.args[1], int | float) and node.args[1] > 0
    kept = facts if positive else np.where(facts == ZERO, ANY, facts)
    return np.where(kept > SAME, ANY, kept).astype(np.int16)


@row("like", "factory")
def _made(context: Context, node: Node) -> Value:
    zero = node.op.startswith(("aten.zeros", "aten.new_zeros"))
    return context.filled(node, SAME, ZERO if zero else ANY)


@row("arange")
def _arange(context: Context, node: Node) -> Value:
    return context.filled(node, SAME, ANY)


# Contractions


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


def added(left: Cells, right: Cells, old: np.ndarray) -> Cells:
    """Facts of a sum."""
    zero = (left == ZERO) & (right == ZERO)
    kept = np.where((left == right) & (left != ZERO), left, ANY)
    return np.where(zero, ZERO, np.where(old, kept, ANY)).astype(np.int16)


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
    result = np.full([len(old[letter]) for letter in output], ANY, dtype=np.int16)
    for cell in np.ndindex(result.shape):
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
            context, [batch + "i" + space, "oi" + window], batch + "o" + space, [image, weight], [image_terms, weight_terms]
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
    result = np.full((len(old_out), facts_in.shape[1]), ANY, dtype=np.int16)
    for out, rest in np.ndindex(result.shape):
        group = out // each
        rows = [(int(facts_in[group * inner + i, rest]), int(facts_weight[out, i]), into[i]) for i in range(inner)]
        result[out, rest] = _group_sum(rows, old_out[out])
    lead = [size for dim, size in enumerate(image.shape) if dim != channel]
    return np.moveaxis(result.reshape(len(old_out), *lead), 0, channel)


def _group_sum(rows: Sequence[tuple[int, int, bool]], is_old: bool) -> int:
    found = [(ZERO if ZERO in (a, b) else scaled(scale(a) * scale(b)) if ANY not in (a, b) else ANY, old) for a, b, old in rows]
    if all(fact == ZERO for fact, _ in found):
        return ZERO if not is_old else ANY
    kept = {fact for fact, old in found if old}
    new = {fact for fact, old in found if not old}
    return kept.pop() if is_old and new <= {ZERO} and len(kept) == 1 and ZERO not in kept else ANY


# Reductions


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
        ratio = np.vectorize(lambda fact: scaled(scale(fact) * factor) if fact >= SAME else fact, otypes=[np.int16])
        result = ratio(result) if result.size else result
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
    return result if names else tuple(result for _ in context.axes.several[node.name])


@row("along", "ordered", "sort", "topk", "diff", "flip", "roll", "triangle")
def _along(context: Context, node: Node) -> Value:
    """Along a dimension that stays: cell by cell, and what is made of zeros is not promised."""
    terms = context.terms(node.args[0])
    position = {"topk": 2, "diff": 2, "roll": 2}.get(ops.kind(node.op), 1)
    dims = context.dims(node, position) if ops.kind(node.op) != "triangle" else (len(terms) - 2, len(terms) - 1)
    facts = context.facts(node.args[0])
    moved = ops.kind(node.op) in ("flip", "roll", "triangle", "ordered")
    if context.grown([terms[dim] for dim in dims]):
        return _unknown(context, node)
    result = np.where((facts == SAME) | ((facts == ZERO) & moved), facts, ANY).astype(np.int16)
    return (result, result) if isinstance(node.type, tuple) else result


@row("glu")
def _glu(context: Context, node: Node) -> Value:
    """a * sigmoid(b): zero where a is."""
    terms = context.terms(node.args[0])
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (len(terms) - 1,)
    half = context.axes.terms[node.name][dim]
    halves = _cut(context, context.facts(node.args[0]), dim, terms[dim], [half, half])
    if halves is None:
        return np.full(context.layout.shape(context.axes.terms[node.name]), ANY, dtype=np.int16)
    value, gate = halves
    return np.where(value == ZERO, ZERO, np.where((value == SAME) & (gate == SAME), SAME, ANY)).astype(np.int16)


# Normalisations


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
    return _all_same([context.facts(node.args[0]), *weights], context, old)


def _all_same(facts: Sequence[Cells], context: Context, old: np.ndarray) -> Cells:
    wide = [context.spread(f, old.shape, old) for f in facts]
    return np.where(old & np.logical_and.reduce([f == SAME for f in wide]), SAME, ANY).astype(np.int16)


@row("batch_norm")
def _batch_norm(context: Context, node: Node) -> Value:
    """Channel by channel, (x - mean) / std * weight + bias: zero where weight and bias are, or x, mean and bias."""
    old = context.layout.is_old(context.terms(node.args[0]))
    shape = [1] * old.ndim
    shape[1] = -1
    facts = [context.facts(node.args[0])]
    given = [isinstance(a, Ref) for a in node.args[1:5]]
    facts += [context.facts(a).reshape(shape) for a in node.args[1:5] if isinstance(a, Ref)]
    wide = [context.spread(f, old.shape, old) == ZERO for f in facts]
    result = _all_same(facts, context, old)
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
    inner = getattr(channels, "parts", (channels, channels))[1:]
    if any(context.layout.touches(part) for part in inner) or context.grown(terms[2:]):
        return np.full(old.shape, ANY, dtype=np.int16)
    shape = [1] * old.ndim
    shape[1] = -1
    weights = [context.facts(a).reshape(shape) for a in node.args[2:4] if isinstance(a, Ref)]
    return _all_same([context.facts(node.args[0]), *weights], context, old)


@row("prelu")
def _prelu(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    old = context.layout.is_old(context.terms(node.args[0]))
    shape = [1] * old.ndim
    if old.ndim > 1:
        shape[1] = -1
    slope = context.facts(node.args[1]).reshape(shape)
    return np.where(facts == ZERO, ZERO, _all_same([facts, slope], context, old)).astype(np.int16)


# Layout


def _cut(context: Context, facts: Cells, dim: int, whole: Term, parts: Sequence[Term]) -> list[Cells] | None:
    """The facts of the parts of a dimension."""
    pairs = context.layout.pieces(whole, parts)
    if pairs is None:
        return None
    along = np.moveaxis(facts, dim, 0)
    found: list[Cells] = []
    for part, chosen in zip(parts, pairs, strict=True):
        made = np.full((len(context.layout.old(part)), *along.shape[1:]), SAME, dtype=np.int16)
        for cell in range(made.shape[0]):
            sources = [along[b] for a, b in chosen if a == cell]
            if sources:
                made[cell] = np.where(np.logical_and.reduce([s == sources[0] for s in sources]), sources[0], ANY)
        found.append(np.moveaxis(made, 0, dim))
    return found


def _unknown(context: Context, node: Node) -> Value:
    if isinstance(node.type, tuple):
        return tuple(np.full(context.layout.shape(terms), ANY, np.int16) for terms in context.axes.several[node.name])
    return np.full(context.layout.shape(context.axes.terms[node.name]), ANY, dtype=np.int16)


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
    parts = [a for a in _flat(node.args) if isinstance(a, Ref) and len(context.terms(a)) == len(node.shape)]
    terms = context.axes.terms[node.name]
    value = node.argument(1, "dim", 0)
    dim = (value if isinstance(value, int) else 0) % len(terms)
    pairs = context.layout.pieces(terms[dim], [context.terms(a)[dim] for a in parts])
    if pairs is None:
        return _unknown(context, node)
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
        return _unknown(context, node)
    return facts if constant in (None, 0) else np.where(facts == ZERO, ANY, facts).astype(np.int16)


@row("stack", "slice_scatter", "select_scatter")
def _laid_together(context: Context, node: Node) -> Value:
    """Tensors side by side along a dimension that stays: cell by cell what holds for all."""
    shape = context.layout.shape(context.axes.terms[node.name])
    found = [context.facts(a) for a in _flat(node.args) if isinstance(a, Ref)]
    position = {"stack": 1, "select_scatter": 2, "slice_scatter": 2}[ops.kind(node.op)]
    value = node.argument(position, "dim", 0)
    dim = (value if isinstance(value, int) else 0) % len(shape)
    wide = [np.expand_dims(f, dim) if f.ndim < len(shape) else f for f in found]
    if shape[dim] != 1 or any(f.shape != shape for f in wide):
        return _unknown(context, node)
    same = np.logical_and.reduce([f == wide[0] for f in wide])
    return np.where(same, wide[0], ANY).astype(np.int16)


@row("meshgrid", "view_as_complex", "view_as_real", "pixel_shuffle", "pixel_unshuffle", "diagonal", "index_put", "loss",
     "searchsorted", "opaque", "unknown")  # fmt: skip
def plain(context: Context, node: Node) -> Value:
    """Nothing grown in sight and all operands the same: so is the result. With one fact everywhere, that fact."""
    found = {int(fact) for name in node.operands() for fact in _facts(context.values[name])}
    moved = ops.kind(node.op) not in ("loss", "searchsorted", "opaque", "unknown")
    fact = found.pop() if len(found) == 1 else ANY
    if fact == ZERO and not moved:
        fact = ANY
    several = context.axes.several.get(node.name)
    if several is not None:
        return tuple(_fill(context, terms, fact) for terms in several)
    return _fill(context, context.axes.terms[node.name], fact)


def _facts(value: Value) -> list[int]:
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
    found = _cut(context, context.facts(node.args[0]), dim, terms[dim], parts)
    return tuple(found) if found is not None else _unknown(context, node)


@row("unbind")
def _unbind(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    (dim,) = context.dims(node, 1) if node.argument(1, "dim") is not None else (0,)
    whole = facts.take(0, axis=dim) if facts.shape[dim] == 1 else np.full(facts.take(0, axis=dim).shape, ANY, np.int16)
    return tuple(whole for _ in context.axes.several[node.name])


@row("slice", "select")
def _slice(context: Context, node: Node) -> Value:
    """The cells between two positions."""
    terms = context.terms(node.args[0])
    dim = node.args[1]
    assert isinstance(dim, int)
    facts = context.facts(node.args[0])
    if not context.layout.touches(terms[dim]):
        return facts if ops.kind(node.op) == "slice" else facts.take(0, axis=dim)
    if ops.kind(node.op) == "slice" and node.args[4] == 1:
        piece = context.axes.terms[node.name][dim]
        before = context.before(node)
        if before is not None:
            found = _cut(context, facts, dim, terms[dim], [*before, piece])
            if found is not None:
                return found[-1]
    flat = np.moveaxis(facts, dim, 0)
    same = np.logical_and.reduce([flat[0] == other for other in flat])
    joined = np.where(same, flat[0], ANY).astype(np.int16)
    if ops.kind(node.op) == "select":
        return joined
    old = context.layout.is_old(context.axes.terms[node.name])
    return context.spread(np.expand_dims(joined, dim), old.shape, old)


# Lookups: an index that is the same picks old units.


@row("embedding", "index_select", "index", "gather")
def _lookup(context: Context, node: Node) -> Value:
    terms = context.terms(node.args[0])
    facts = context.facts(node.args[0])
    kind = ops.kind(node.op)
    indices = node.args[1] if kind in ("embedding", "index") else node.args[2]
    chosen = list(indices) if isinstance(indices, tuple) else [indices]
    given = node.args[1]
    dims = [0] if kind == "embedding" else [d for d, i in enumerate(chosen) if i is not None]
    if kind in ("index_select", "gather"):
        dims = [(given if isinstance(given, int) else 0) % len(terms)]
    used = [index for index in chosen if isinstance(index, Ref)]
    out = context.axes.terms[node.name]
    if any((context.facts(index) != SAME).any() for index in used):
        return _unknown(context, node)
    for dim in dims:
        flags = context.layout.old(terms[dim])
        kept = [facts.take(i, axis=dim) for i, old in enumerate(flags) if old]
        same = np.logical_and.reduce([k == kept[0] for k in kept])
        facts = np.expand_dims(np.where(same, kept[0], ANY), dim)
    if kind == "gather":
        old = context.layout.is_old(out)
        return context.spread(facts, old.shape, old)
    rest = [facts.shape[d] for d in range(facts.ndim) if d not in dims]
    width = len(out) - len(rest)
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    first = dims[0] if adjacent else 0
    shape = [*rest[:first], *[1] * width, *rest[first:]]
    old = context.layout.is_old(out)
    return context.spread(facts.reshape(shape).astype(np.int16), old.shape, old)


@row("scatter", "index_add")
def _scatter(context: Context, node: Node) -> Value:
    facts = context.facts(node.args[0])
    others = [context.facts(a) for a in node.args[2:] if isinstance(a, Ref)]
    if (facts == SAME).all() and all((other == SAME).all() for other in others):
        return facts
    return np.full_like(facts, ANY)


@row("one_hot")
def _one_hot(context: Context, node: Node) -> Value:
    same = (context.facts(node.args[0]) == SAME).all()
    return context.filled(node, SAME, ZERO) if same else _unknown(context, node)


@row("pool")
def _pool(context: Context, node: Node) -> Value:
    """Windows over space, channel by channel; zeros stay zero."""
    facts = context.facts(node.args[0])
    several = isinstance(node.type, tuple)
    terms = context.axes.several[node.name][0] if several else context.axes.terms[node.name]
    kept = np.where(facts > SAME, ANY, facts).reshape(context.layout.shape(terms)).astype(np.int16)
    return (kept, kept) if several else kept


@row("getitem")
def _getitem(context: Context, node: Node) -> Value:
    source, index = node.args
    assert isinstance(source, Ref) and isinstance(index, int)
    value = context.values[source.name]
    assert isinstance(value, tuple)
    return value[index]

"""Facts of pointwise operators, and of tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom
from graphgrow.graph import Argument, ByMode, Lowest, Node, Ref
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
    free,
    function_of,
    functional,
    kind,
    multiple,
    multiplied,
    plus,
    power,
    scale,
    times,
)  # fmt: skip
from graphgrow.prove.rows.base import Context, Flags, Value, flat, row, settled
from graphgrow.sizes import Size

LINEAR = {"neg", "to.dtype", "detach", "clone", "dropout", "feature_dropout", "positive", "alpha_dropout"}
KEPT = {"to.dtype", "detach", "clone"}
POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}
HOMOGENEOUS = {"abs", "relu", "leaky_relu", "maximum", "minimum", "max.other", "min.other"}
FLOORS = {"clamp_min", "clamp"}
CHOICES = {"where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", "masked_fill.Scalar",
           "masked_fill.Tensor"}  # fmt: skip
# What free values become, where more is known of it than that it is finite.
SIGNS = {
    "exp": POSITIVE, "exp2": POSITIVE, "sigmoid": POSITIVE, "softplus": POSITIVE, "cosh": POSITIVE, "abs": NONNEGATIVE,
    "relu": NONNEGATIVE, "relu6": NONNEGATIVE, "hardsigmoid": NONNEGATIVE,
}  # fmt: skip
# Functions that are not defined everywhere; those of the second row are where their argument is positive.
PARTIAL = {"acos", "asin", "acosh", "atanh", "erfinv", "logit", "pow.Tensor_Tensor", "pow.Scalar", "xlogy.Tensor",
           "addcdiv", "log", "log2", "log10", "log1p"}  # fmt: skip
LOGARITHMS = {"log", "log2", "log10", "log1p"}
WHOLE = ("int", "uint")
QUOTIENTS = {"div.Tensor", "div.Scalar"}
ROUNDED = {"div.Tensor_mode", "div.Scalar_mode", "floor_divide", "floor_divide.Scalar", "remainder.Scalar",
           "remainder.Tensor", "fmod.Scalar", "fmod.Tensor"}  # fmt: skip
PRODUCTS = {"mul.Tensor", "mul.Scalar"}
SUMS = {"add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Tensor", "rsub.Scalar"}


def short(node: Node) -> str:
    """The operator's name without what all have."""
    return node.op.removeprefix("aten.").removesuffix(".default")


@row("pointwise")
def _pointwise(context: Context, node: Node) -> Value:
    """Cell by cell."""
    old = context.old(node)
    name = short(node)
    if node.op == "by_mode":
        return context.spread(node.args[1], old)
    given = [a for a in flat(node.args) if isinstance(a, Ref | int | float | Size | ByMode | Lowest)]
    found = [
        context.spread(a, old) if isinstance(a, Ref) else np.full(old.shape, CONSTANT, dtype=np.int32) for a in given
    ]
    if name in KEPT and context.terms(node.args[0]) == context.result(node):
        found = [context.shared(node.args[0])]
    if not (name in ("clone", "detach") or (name == "to.dtype" and node.tensor.dtype == "int64")):
        found = [np.where(cells == NAMES, ANY, cells) for cells in found]  # numbers that are computed with
    numbers = [a for a in given if not isinstance(a, Ref)]
    if not found:
        return context.filled(node, SAME, CONSTANT)
    if name in LINEAR and not (name == "to.dtype" and _rounds(context, node)):
        result = each(_negated, found[0]) if name == "neg" else found[0]
    elif name in SUMS:
        result = _sum(context, node, name, given, found)
    elif name in PRODUCTS or name in QUOTIENTS:
        result = _product(context, node, name, given, found)
    elif name in ROUNDED:
        result = every(lambda facts: _rounded(*facts), *found[:2])
    elif name in POWERS:
        result = each(lambda f: power(f, POWERS[name]), found[0])
    elif name in HOMOGENEOUS and (name == "leaky_relu" or not numbers):
        tensors = found[:1] if name == "leaky_relu" else found
        result = every(lambda facts: _homogeneous(name, facts), *tensors)
    elif name in FLOORS and len(numbers) == 1 and node.argument(2, "max") is None:
        result = _floor(context, node, numbers[0], found[0])
    elif name in CHOICES:
        result = _choice(given, found)
    else:
        result = _function(context, node, name, found)
    zeros = _zeros(ops.TABLE[node.op].zero, node, given, found) & ~(old & (result >= SAME))
    return settled(np.where(zeros & (result != UNDEFINED), ZERO, result).astype(np.int32), old)


def _rounds(context: Context, node: Node) -> bool:
    """Whether a cast makes whole numbers of others, or truth values of numbers."""
    before, after = context.axes.graph[next(node.operands())].tensor.dtype, node.tensor.dtype
    return after == "bool" or (after.startswith(WHOLE) and not before.startswith((*WHOLE, "bool")))


def _negated(number: int) -> int:
    if kind(number) == "affine":
        return ANY
    return ANY if number in (POSITIVE, NONNEGATIVE) else number


def _sign(number: Argument) -> int:
    """The fact of a number in the arguments, as far as it is free."""
    if not isinstance(number, int | float):
        return ANY
    return POSITIVE if number > 0 else ZERO if number == 0 else ANY


def _sum(context: Context, node: Node, name: str, given: Sequence[Argument], found: Sequence[Cells]) -> Cells:
    alpha = node.argument(2, "alpha", 1)
    plain = name.startswith("add") and isinstance(alpha, int | float) and alpha > 0
    where = next((index for index, a in enumerate(given[:2]) if not isinstance(a, Ref)), None)
    if where is None or len(found) < 2:
        signed = found[1] if plain or len(found) < 2 else each(_negated, found[1])
        first = each(_negated, found[0]) if name.startswith("rsub") else found[0]
        if name == "sub.Tensor" and alpha == 1 and _takes_own_mean(context, node):
            return every(lambda facts: _centred(*facts), first, signed)
        return added(first, signed) if len(found) > 1 else found[0]
    number, cells = given[where], found[1 - where]
    scales = {scale(f) for f in map(int, cells.reshape(-1)) if f >= SAME and kind(f) != "affine"}
    if len(scales) == 1:
        context.needs(node, scales.pop(), "args", where)
    factor = context.factor(node, "args", where)
    return each(lambda f: _shifted(f, number, factor, plain), cells)


def _takes_own_mean(context: Context, node: Node) -> bool:
    """Whether a node is x - mean(x) over the one dimension that has new units."""
    whole, mean = node.args[:2]
    if not isinstance(whole, Ref) or not isinstance(mean, Ref):
        return False
    source = context.axes.graph[mean.name]
    if ops.kind(source.op) != "mean" or source.args[0] != whole:
        return False
    terms = context.terms(whole)
    dims = [dim for dim in context.dims(source, 1) if terms[dim].size != 1]
    grown = [dim for dim, term in enumerate(terms) if context.layout.touches(term)]
    kept = len(context.terms(mean)) == len(terms)
    return kept and dims == grown and len(dims) == 1 and isinstance(terms[dims[0]], Atom)


def _centred(whole: int, mean: int) -> int:
    """x - mean(x): nothing where x has the mean."""
    if kind(whole) == "mean" and mean >= SAME and scale(whole) == scale(mean) and kind(mean) in ("same", "constant"):
        return ZERO
    return plus(whole, mean)


def _times(number: Argument, factor: float) -> Argument:
    return number * factor if isinstance(number, int | float) else number


def _shifted(number: int, term: Argument, factor: float, plain: bool) -> int:
    """A fact plus a number in the arguments, which is multiplied by `factor`."""
    if number < SAME:
        return plus(number, _sign(_times(term, factor))) if plain else ANY if number != UNDEFINED else UNDEFINED
    found = multiple(number)
    if found.kind in ("same", "affine") and plain and isinstance(term, int | float):
        shift = found.shift + (factor - found.scale) * term
        lost = abs(shift) <= 1e-12 * max(abs(found.shift), abs(factor * term))  # what rounding leaves of zero
        return fact("affine", found.scale, 0.0 if lost else shift)
    return number if found.kind != "affine" and abs(found.scale - factor) <= 1e-12 else ANY


def _product(context: Context, node: Node, name: str, given: Sequence[Argument], found: Sequence[Cells]) -> Cells:
    divides = name in QUOTIENTS
    operands: list[Cells] = []
    for index, (argument, cells) in enumerate(zip(given[:2], found, strict=False)):
        exponent = -1.0 if divides and index else 1.0
        if isinstance(argument, Ref):
            operands.append(each(lambda f: power(f, -1.0), cells) if exponent < 0 else cells)
        else:
            factor = context.factor(node, "args", index) ** exponent
            positive = isinstance(argument, int | float) and argument > 0
            number = fact("constant", factor)
            operands.append(np.full(cells.shape, number, dtype=np.int32))
            if positive and not divides:
                return _multiplied(found[1 - index], number)
            if positive and divides and index:
                return _multiplied(found[0], number)
    if len(operands) == 2 and given[0] == given[1] and not divides:
        return each(lambda f: power(f, 2.0) if free(f) else times(f, f), operands[0])
    return multiplied(operands[0], operands[1]) if len(operands) > 1 else operands[0]


def _multiplied(cells: Cells, by: int) -> Cells:
    """Facts times a positive number, which keeps signs."""
    return each(lambda f: f if f < SAME else times(f, by), cells)


def _rounded(left: int, right: int) -> int:
    if right != POSITIVE and kind(right) not in ("same", "constant"):
        return UNDEFINED
    return ZERO if left == ZERO else function_of((left, right))


def _homogeneous(name: str, facts: Sequence[int]) -> int:
    """f(c x) = c f(x) for c > 0; abs(c x) = abs(c) abs(x)."""
    if any(f < SAME for f in facts):
        if UNDEFINED in facts:
            return UNDEFINED
        if all(f == ZERO for f in facts):
            return ZERO
        lower = max(NONNEGATIVE, facts[0] if free(facts[0]) else ANY)
        return lower if name in ("abs", "relu") else ANY
    kinds, scales = {kind(f) for f in facts}, {scale(f) for f in facts}
    factor = abs(scales.pop()) if name == "abs" else scales.pop()
    if scales or factor < 0 or not kinds <= {"same", "constant"}:
        return SIGNS.get(name, ANY)
    return fact("same" if "same" in kinds else "constant", factor)


def _floor(context: Context, node: Node, low: Argument, cells: Cells) -> Cells:
    """max(x, number): the number must follow the scale of x."""
    scales = {scale(f) for f in map(int, cells.reshape(-1)) if f >= SAME}
    by = next(iter(scales)) if len(scales) == 1 else 0.0
    moved = by > 0 and low != 0 and context.needs(node, by, "args", 1)
    factor = context.factor(node, "args", 1)

    sign = _sign(_times(low, factor))

    def floored(number: int) -> int:
        if number >= SAME:
            still = factor == 1 and scale(number) == 1
            known = kind(number) in ("same", "constant") and (moved or still or (low == 0 and scale(number) > 0))
            return number if known else sign if sign != ZERO else NONNEGATIVE
        if number == ZERO and sign in (ANY, ZERO) and isinstance(low, int | float):
            return ZERO
        return UNDEFINED if number == UNDEFINED else sign if sign != ZERO else NONNEGATIVE

    return each(floored, cells)


def _choice(given: Sequence[Argument], found: Sequence[Cells]) -> Cells:
    """One or the other by a mask. Where the mask does not vary along new dimensions, a mean is one of what it picks;
    zero and infinity are any multiple of themselves."""
    masked = len(given) > 1 and isinstance(given[0], Ref)
    order = [1, 0, 2] if masked else [0, 1, 2]
    picked = [given[i] for i in order[1:] if i < len(given)]
    mask, *cells = (found[i] for i in order if i < len(found))
    neutral = [isinstance(a, int | float) and (a == 0 or abs(a) == inf) for a in picked]
    zero = [isinstance(a, int | float) and a == 0 for a in picked]
    infinite = any(isinstance(a, int | float) and abs(a) == inf for a in picked)

    def chosen(found: tuple[int, ...]) -> int:
        by, *facts = found
        rest = [f for f, skip in zip(facts, neutral, strict=True) if not skip]
        if by < SAME or scale(by) != 1 or kind(by) not in ("same", "constant"):
            return UNDEFINED if UNDEFINED in (by, *facts) or infinite else ANY
        if all(f == ZERO or z for f, z in zip(facts, zero, strict=True)):
            return ZERO
        if not rest:
            return SAME if kind(by) == "same" else CONSTANT
        result = rest[0] if len(rest) == 1 else plus(rest[0], rest[1])
        if kind(by) == "same" and kind(result) == "mean":
            return ANY
        return fact("same", scale(result)) if kind(by) == "same" and kind(result) == "constant" else result

    return every(chosen, mask, *cells)


def _function(context: Context, node: Node, name: str, found: Sequence[Cells]) -> Cells:
    """An operator of which nothing more is known: the same where its operands are; free otherwise."""
    exponent = node.args[1] if name == "pow.Tensor_Tensor" else None
    whole = isinstance(exponent, Ref) and context.axes.graph[exponent.name].tensor.dtype.startswith("int")
    real = name.startswith("pow") and not node.tensor.dtype.startswith(WHOLE)
    base = _sign(node.args[0]) if real and name == "pow.Scalar" else UNDEFINED

    def result(facts: tuple[int, ...]) -> int:
        value = function_of(facts)
        if value >= SAME or value == UNDEFINED:
            return value
        if name in LOGARITHMS:
            return ANY if facts[0] == POSITIVE else UNDEFINED
        if base == POSITIVE or (real and len(facts) == 2 and facts[0] == POSITIVE):
            return POSITIVE
        if whole and facts[1] in (NONNEGATIVE, POSITIVE):
            return ANY
        return UNDEFINED if name in PARTIAL else SIGNS.get(name, ANY)

    return every(result, *found)


def _zeros(rule: str, node: Node, given: Sequence[Argument], found: Sequence[Cells]) -> Flags:
    """Where the operator's row in the table says that the result is zero."""
    each = [f == ZERO if isinstance(a, Ref) else np.full(f.shape, a == 0) for a, f in zip(given, found, strict=True)]
    if not each or not rule or _off_zero(node):
        return np.zeros(found[0].shape, dtype=bool)
    if rule == "any":
        return np.logical_or.reduce(each)
    tensors = sum(isinstance(a, Ref) for a in given)
    unary = tensors == 1 and short(node) not in BINARY
    if rule == "first" or unary:
        return each[0]
    return np.logical_and.reduce(each)


def _off_zero(node: Node) -> bool:
    """Whether the operator's settings move zero: a clamp to a range without it."""
    low, high = node.argument(1, "min_val", -1), node.argument(2, "max_val", 1)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return node.op == "aten.hardtanh.default"
    return node.op == "aten.hardtanh.default" and not low <= 0 <= high


# Operators whose second number is an operand and not a setting (a slope, a probability).
BINARY = SUMS | {"maximum", "minimum"}


@row("power")
def _power(context: Context, node: Node) -> Value:
    """x to a number."""
    exponent = node.args[1]
    facts = context.facts(node.args[0])
    if not isinstance(exponent, int | float):
        return functional(facts)
    return each(lambda f: power(f, float(exponent)), facts)


@row("like", "factory")
def _made(context: Context, node: Node) -> Value:
    """Zeros, ones, one number everywhere; random numbers and what is counted are something else in new cells."""
    name = short(node)
    if name.startswith(("zeros", "new_zeros")):
        return context.filled(node, SAME, ZERO)
    even = name.startswith(("ones", "new_ones", "full", "new_full"))
    if not even and context.by_rank(context.result(node)):
        return context.filled(node, ANY, ANY)
    return context.filled(node, SAME, CONSTANT if even else ANY)


@row("arange")
def _arange(context: Context, node: Node) -> Value:
    start = node.args[0] if node.op in ("aten.arange.start", "aten.arange.start_step") else 0
    step = node.args[2] if node.op == "aten.arange.start_step" else 1
    counts = all(isinstance(number, int) and number >= 0 for number in (start, step))
    if context.by_rank(context.result(node)):
        return context.filled(node, ANY, ANY)
    return context.filled(node, SAME, NONNEGATIVE if counts and "arange" in node.op else ANY)


@row("prelu")
def _prelu(context: Context, node: Node) -> Value:
    old = context.old(node)
    facts, slope = context.facts(node.args[0]), context.facts(node.args[1])
    if slope.ndim and slope.size > 1:
        slope = slope.reshape([-1 if dim == 1 else 1 for dim in range(old.ndim)])
    else:
        slope = np.full(old.shape, CONSTANT, dtype=np.int32) if (slope == SAME).all() else np.full(old.shape, ANY)
    result = functional(facts, np.broadcast_to(slope, facts.shape))
    return settled(np.where((facts == ZERO) & (slope != UNDEFINED), ZERO, result).astype(np.int32), old)


@row("getitem")
def _getitem(context: Context, node: Node) -> Value:
    source, index = node.args
    assert isinstance(source, Ref) and isinstance(index, int)
    value = context.values[source.name]
    assert isinstance(value, tuple)
    return value[index]

"""Facts: what is known of one block of a tensor, as small numbers.

Of a block that the original has: a multiple of what the original holds there. Of a new block: how it follows from the
original's, or, where it does not, how free it is. Arithmetic on facts is that of real numbers; "anything" is finite,
and UNDEFINED is what a logarithm or a quotient makes of it.

    zero            all zeros
    c * the same    c times the original. In a new block: a copy, unit j holding what unit j mod n of the old ones does
    c * the mean    c times the mean of the original over all its units
    c * constant    both: the original does not vary along the new dimensions
    affine          c times the original plus a number, on its way to lose that number (the 1 of Gemma's 1 + gain)
    names           of indices into complete copies: where the original names a unit, these name its copies, each once
    share           of several blocks together: along some dimensions, what all copies of an old unit have (and what it
                    has itself) adds up to c times the original; along the others it is a copy
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from math import isfinite, log
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Cells: TypeAlias = NDArray[np.int32]
Kind = Literal["free", "zero", "same", "mean", "constant", "affine", "names", "share"]

UNDEFINED, ANY, NONNEGATIVE, POSITIVE, ZERO, SAME, MEAN, CONSTANT, NAMES = range(9)
_NAMES = {
    UNDEFINED: "anything, even undefined", ANY: "anything", NONNEGATIVE: "anything not negative",
    POSITIVE: "anything positive", ZERO: "zero",
}  # fmt: skip


class Multiple(NamedTuple):
    """A fact that follows from the original: `scale` times it, plus `shift` (of an affine one). Of a share `along` has
    the dimensions."""

    kind: Kind
    scale: float
    shift: float = 0.0
    along: tuple[int, ...] = ()


_multiples: dict[Multiple, int] = {
    Multiple("same", 1.0): SAME,
    Multiple("mean", 1.0): MEAN,
    Multiple("constant", 1.0): CONSTANT,
    Multiple("names", 1.0): NAMES,
}
_by_number: dict[int, Multiple] = {number: multiple for multiple, number in _multiples.items()}
_shares: set[int] = set()


def fact(kind: Kind, scale: float, shift: float = 0.0, along: tuple[int, ...] = ()) -> int:
    """The number of a fact: the same one for scales that differ by rounding only."""
    scale, shift = settle(scale), settle(shift)
    if kind == "affine" and shift == 0:
        kind = "same"
    if scale == 0 == shift:
        return ZERO if kind != "share" else ANY
    key = Multiple(kind, scale, shift, along)
    number = _multiples.setdefault(key, len(_multiples) + SAME)
    _by_number.setdefault(number, key)
    if kind == "share":
        _shares.add(number)
    return number


ROUNDING = 1e-12  # numbers as near to each other as this, relatively, are one number
_KNOWN: dict[int, float] = {0: 1.0}


def settle(number: float) -> float:
    """The first number that was met so near to this one."""
    if number <= 0 or not isfinite(number):
        return -settle(-number) if number < 0 else number
    bucket = round(log(number) / ROUNDING)
    for near in (bucket, bucket - 1, bucket + 1):
        if near in _KNOWN:
            return _KNOWN[near]
    return _KNOWN.setdefault(bucket, number)


@contextmanager
def fresh() -> Generator[None]:
    """Inside, numbers that were met before do not count: what a pass writes follows from its program alone, to the last
    bit, whatever the process has proved before."""
    before = dict(_KNOWN)
    _know({0: 1.0})
    try:
        yield
    finally:
        _know(before)


def _know(numbers: Mapping[int, float]) -> None:
    _KNOWN.clear()
    _KNOWN.update(numbers)
    for table in (times, plus, power, function_of):  # their results are of the numbers that were known
        table.cache_clear()


def scaled(factor: float) -> int:
    """The fact that a block is `factor` times the original's."""
    return fact("same", factor)


def multiple(number: int) -> Multiple:
    """What a fact from SAME up says."""
    return _by_number[number]


def scale(number: int) -> float:
    """The factor of a fact from SAME up."""
    return _by_number[number].scale


def kind(number: int) -> Kind:
    """What sort of fact a number stands for."""
    return _by_number[number].kind if number >= SAME else "zero" if number == ZERO else "free"


def free(number: int) -> bool:
    """Whether a fact says nothing of the original."""
    return number < ZERO


def text(number: int) -> str:
    """A fact for people."""
    if number in _NAMES:
        return _NAMES[number]
    found = multiple(number)
    if found.kind == "share":
        times = "" if found.scale == 1 else f"{found.scale:g} times "
        return f"shares that add up to {times}the same along dimension {' and '.join(map(str, found.along))}"
    what = {
        "same": "the same",
        "mean": "the mean",
        "constant": "the same everywhere",
        "affine": "the same, shifted",
        "names": "the numbers of copies",
    }
    return what[found.kind] if found.scale == 1 else f"{found.scale:g} times {what[found.kind]}"


def each(function: Callable[[int], int], cells: Cells) -> Cells:
    """A function of facts, cell by cell."""
    return np.array([function(int(f)) for f in cells.reshape(-1)], dtype=np.int32).reshape(cells.shape)


def every(function: Callable[[tuple[int, ...]], int], *arrays: Cells) -> Cells:
    """A function of the facts of several tensors, cell by cell."""
    wide = np.broadcast_arrays(*arrays)
    rows = zip(*(a.reshape(-1).tolist() for a in wide), strict=True)
    return np.array([function(facts) for facts in rows], dtype=np.int32).reshape(wide[0].shape)


def join(facts: Sequence[int]) -> int:
    """What holds for several blocks together."""
    return facts[0] if len(set(facts)) == 1 else worst(facts)


def worst(facts: Sequence[int]) -> int:
    """The free fact that covers all of these."""
    signs = [f if free(f) else NONNEGATIVE if f == ZERO else ANY for f in facts]
    return min(signs, default=ANY)


_PRODUCTS: dict[tuple[Kind, Kind], Kind] = {
    ("constant", "constant"): "constant", ("constant", "same"): "same", ("constant", "mean"): "mean",
    ("same", "constant"): "same", ("mean", "constant"): "mean", ("same", "same"): "same",
}  # fmt: skip


@cache
def times(left: int, right: int) -> int:
    """A product. Zero times what is finite is zero; a mean of products is no product of means."""
    if UNDEFINED in (left, right):
        return UNDEFINED
    if ZERO in (left, right):
        return ZERO
    if free(left) or free(right):
        return min(left, right) if free(left) and free(right) and ANY not in (left, right) else ANY
    found = _PRODUCTS.get((kind(left), kind(right)))
    return ANY if found is None else fact(found, scale(left) * scale(right))


@cache
def plus(left: int, right: int) -> int:
    """A sum, of what the original adds too: only equal multiples add up to one."""
    if UNDEFINED in (left, right):
        return UNDEFINED
    if free(left) or free(right) or ZERO in (left, right):
        return _free_sum(left, right)
    first, second = multiple(left), multiple(right)
    if {"affine", "names", "share"} & {first.kind, second.kind} or first.scale != second.scale:
        return ANY
    if second.kind in (first.kind, "constant"):
        return left
    return right if first.kind == "constant" else ANY


def _free_sum(left: int, right: int) -> int:
    if left == right == ZERO:
        return ZERO
    signs = [NONNEGATIVE if f == ZERO else f for f in (left, right)]
    if all(f in (NONNEGATIVE, POSITIVE) for f in signs):
        return max(signs)
    return ANY


@cache
def power(number: int, exponent: float) -> int:
    """x to a power, as far as it is defined: of a multiple the power of the factor."""
    whole = exponent == int(exponent)
    if number >= SAME:
        found = multiple(number)
        if found.kind in ("same", "constant") and (whole or found.scale > 0):
            return fact(found.kind, found.scale**exponent)
        number = ANY  # of other signs than the original, zero where that is not
    if number == UNDEFINED or (exponent < 0 and number != POSITIVE):
        return UNDEFINED
    if number == ZERO:
        return ZERO if exponent > 0 else ANY
    if number == ANY:
        return UNDEFINED if not whole else NONNEGATIVE if int(exponent) % 2 == 0 else ANY
    return number


@cache
def function_of(facts: tuple[int, ...]) -> int:
    """A function that is defined everywhere: the same of what is the same, unit by unit."""
    if UNDEFINED in facts:
        return UNDEFINED
    kinds = {multiple(f).kind if f >= SAME and scale(f) == 1 else "free" for f in facts}
    if kinds <= {"same", "constant"}:
        return SAME if "same" in kinds else CONSTANT
    return ANY


def added(left: Cells, right: Cells) -> Cells:
    """Facts of a sum of tensors."""
    return every(lambda facts: plus(*facts), left, right)


def multiplied(left: Cells, right: Cells) -> Cells:
    """Facts of a product of tensors, cell by cell."""
    return every(lambda facts: times(*facts), left, right)


def functional(*cells: Cells) -> Cells:
    """Facts of a function of tensors, cell by cell."""
    return every(function_of, *cells)


def product(facts: Sequence[int]) -> int:
    """A product of several factors."""
    return reduce(times, facts)


def unshared(cells: Cells) -> Cells:
    """Facts without shares, of which a row that does not know the others can say nothing."""
    if not _shares or not (shared := np.isin(cells, list(_shares))).any():
        return cells
    return np.where(shared, ANY, cells).astype(np.int32)


def permuted(cells: Cells, order: Sequence[int]) -> Cells:
    """Facts with dimensions in another order: shares follow theirs."""

    def follows(number: int) -> int:
        if kind(number) != "share":
            return number
        found = multiple(number)
        return fact(*found[:3], tuple(sorted(order.index(dim) for dim in found.along)))

    moved = np.transpose(cells, order)
    return moved if unshared(cells) is cells else each(follows, moved)

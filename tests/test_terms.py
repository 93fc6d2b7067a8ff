"""Terms under inference (unify, split, cut, conflicts, symbolic sizes), and the sizes they are made of."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphgrow import sizes
from graphgrow.axes.terms import (
    UNIT,
    Axis,
    Conflict,
    atom,
    cut,
    factors,
    freeze,
    order,
    product,
    split,
    summands,
    total,
    unify,
)
from graphgrow.errors import FileError
from graphgrow.sizes import Dim, Size, add, evaluate, exact_div, mul, parse, sub, symbol

BATCH, LENGTH = symbol("batch"), symbol("length")


def parts(axis: Axis) -> list[Dim]:
    return [part.size for part in axis.root().parts]


# Splitting


def test_a_split_atom_becomes_a_product():
    axis = Axis(12)
    outer, inner = split(axis, 3, 4)
    assert (axis.form, parts(axis)) == ("*", [3, 4])
    assert factors(axis) == [outer, inner]
    assert split(axis, 3, 4) == (outer, inner), "splitting again finds the same parts"


def test_a_split_by_one_is_no_split():
    axis = Axis(12)
    assert split(axis, 1, 12) == (UNIT, axis)
    assert split(axis, 12, 1) == (axis, UNIT)
    assert axis.form == "atom"


def test_splits_refine_each_other():
    axis = Axis(24)
    heads, _ = split(axis, 6, 4)
    groups, rest = split(axis, 2, 12)
    assert [part.size for part in factors(axis)] == [2, 3, 4]
    assert factors(heads) == [groups, factors(rest)[0]]


def test_a_split_across_a_factor_is_a_conflict():
    axis = Axis(24)
    split(axis, 4, 6)
    with pytest.raises(Conflict, match="no outer part of size 3"):
        split(axis, 3, 8)


def test_a_sum_is_split_with_one_inner_factor():
    """q + k + v seen as heads: (q' + k' + v') * key."""
    axis = Axis(36)
    pieces = cut(axis, [12, 24])
    outer, inner = split(axis, 9, 4)
    assert axis.root().form == "*"
    assert [part.size for part in summands(outer)] == [3, 3, 3]
    assert all(factors(piece)[1].root() is inner.root() for piece in pieces)


def test_a_sum_with_an_odd_part_is_not_split():
    axis = Axis(12)
    cut(axis, [5])
    with pytest.raises(Conflict, match="5, which is no multiple of 4"):
        split(axis, 3, 4)


def test_symbolic_sizes_are_split():
    axis = Axis(mul(BATCH, LENGTH, 8))
    outer, inner = split(axis, mul(BATCH, LENGTH), 8)
    first, second = split(outer, BATCH, LENGTH)
    assert [part.size for part in factors(axis)] == [BATCH, LENGTH, 8]
    assert (first.size, second.size, inner.size) == (BATCH, LENGTH, 8)
    with pytest.raises(Conflict):
        split(axis, LENGTH, mul(BATCH, 8))


# Cutting


def test_a_cut_atom_becomes_a_sum():
    axis = Axis(10)
    assert [piece.size for piece in cut(axis, [2, 7])] == [2, 5, 3]
    assert (axis.form, parts(axis)) == ("+", [2, 5, 3])


def test_a_cut_without_positions_is_the_axis():
    axis = Axis(10)
    assert cut(axis, []) == [axis]
    assert axis.form == "atom"


def test_cuts_refine_each_other():
    axis = Axis(10)
    cut(axis, [4])
    left, right = cut(axis, [6])
    assert [part.size for part in summands(axis)] == [4, 2, 4]
    assert (left.size, right.size) == (6, 4)
    assert [part.size for part in summands(left)] == [4, 2]


def test_a_product_is_cut_at_whole_units_only():
    axis = Axis(12)
    split(axis, 3, 4)
    first, second = cut(axis, [4])
    assert (first.size, second.size) == (4, 8)
    assert [part.size for part in factors(second)] == [2, 4]
    other = Axis(12)
    split(other, 3, 4)
    with pytest.raises(Conflict, match="through units of 4"):
        cut(other, [6])


def test_cuts_at_symbolic_places():
    axis = Axis(add(LENGTH, 1))
    first, rest = cut(axis, [1])
    assert (first.size, rest.size) == (1, LENGTH)
    again, _ = cut(axis, [1])
    assert again.size == 1 and len(summands(axis)) == 2


def test_a_cut_through_the_unit_leaves_it_whole():
    """All dimensions of size one are the same axis: a cut of one must not be one of all, in every model to come."""
    pieces = cut(UNIT, [sub(1, LENGTH)], units=True)
    assert [piece.size for piece in pieces] == [sub(1, LENGTH), LENGTH]
    assert UNIT.form == "atom" and not UNIT.parts and UNIT.root() is UNIT


def test_a_cut_whose_place_is_not_known():
    axis = Axis(add(BATCH, LENGTH))
    cut(axis, [BATCH])
    with pytest.raises(Conflict, match="whose place is not known"):
        cut(axis, [LENGTH])


# Unifying


def test_an_atom_takes_the_form_of_the_other():
    for make in (lambda: split(Axis(12), 3, 4), lambda: tuple(cut(Axis(12), [5]))):
        left, right = make()
        whole = product([left, right]) if mul(left.size, right.size) == 12 else total([left, right])
        single = Axis(12)
        unify(single, whole)
        assert single.root() is whole.root()


def test_sizes_that_differ_are_a_conflict():
    with pytest.raises(Conflict, match="12 and 13"):
        unify(Axis(12), Axis(13))
    with pytest.raises(Conflict):
        unify(Axis(BATCH), Axis(LENGTH))


def test_products_refine_to_a_common_partition():
    left, right = Axis(24), Axis(24)
    split(left, 4, 6)
    split(right, 2, 12)
    unify(left, right)
    assert left.root() is right.root()
    assert [part.size for part in factors(left)] == [2, 2, 6]


def test_products_without_a_common_partition():
    left, right = Axis(36), Axis(36)
    split(left, 4, 9)
    split(right, 6, 6)
    with pytest.raises(Conflict, match="cut between 4 and 6"):
        unify(left, right)


def test_cutting_a_sum_takes_one_walk(monkeypatch: pytest.MonkeyPatch):
    """As many steps for each further part."""

    def steps(count: int) -> int:
        taken: list[object] = []
        monkeypatch.setattr(sizes, "sub", lambda a, b: taken.append(a) or sub(a, b))
        pieces = cut(total([Axis(4) for _ in range(count)]), [2 * place for place in range(1, 2 * count)])
        assert [piece.size for piece in pieces] == [2] * 2 * count
        return len(taken)

    assert steps(120) - steps(80) == steps(80) - steps(40)


def test_sums_refine_to_a_common_partition():
    left, right = Axis(10), Axis(10)
    cut(left, [4])
    cut(right, [7])
    unify(left, right)
    assert [part.size for part in summands(left)] == [part.size for part in summands(right)] == [4, 3, 3]
    assert all(a.root() is b.root() for a, b in zip(summands(left), summands(right), strict=True))


def test_a_sum_meets_a_product():
    """GPT-2's q + k + v beside three times heads * key: the sum is distributed over the inner factor."""
    add_, multiply = Axis(24), Axis(24)
    cut(add_, [8])
    split(multiply, 6, 4)
    unify(add_, multiply)
    assert add_.root() is multiply.root()
    outer, inner = factors(add_)
    assert [part.size for part in summands(outer)] == [2, 4] and inner.size == 4


def test_unified_axes_move_as_one():
    left, right = Axis(12), Axis(12)
    unify(left, right)
    split(left, 3, 4)
    assert [part.size for part in factors(right)] == [3, 4]


def test_reasons_are_kept_by_what_remains():
    left, right = Axis(12), Axis(12)
    freeze(left, "frozen here")
    order(right, "in order")
    unify(left, right)
    assert list(left.root().frozen) == ["frozen here"] and list(left.root().ordered) == ["in order"]


def test_units_have_no_reasons():
    freeze(UNIT, "never")
    order(UNIT, "never")
    assert not UNIT.frozen and not UNIT.ordered
    assert atom(1) is UNIT and atom(2) is not atom(2)
    assert product([UNIT, UNIT]) is UNIT


# Sizes: a reader and arithmetic of its own.

NAMES = ("batch", "length", "s0")
VALUES = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})


def _joined(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(inner, inner)
    functions = st.sampled_from(["//", "%", "max", "min"])
    return st.one_of(
        pairs.map(lambda pair: add(*pair)),
        pairs.map(lambda pair: sub(*pair)),
        pairs.map(lambda pair: mul(*pair)),
        # a divisor that no values make zero
        st.tuples(functions, inner, st.integers(1, 9)).map(lambda item: sizes.apply(*item)),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(lambda item: sizes.apply(*item)),
    )


BASE: st.SearchStrategy[Dim] = st.one_of(st.integers(-99, 99), st.sampled_from([symbol(name) for name in NAMES]))
DIMS: st.SearchStrategy[Dim] = st.recursive(BASE, _joined, max_leaves=6)
check = settings(max_examples=150, deadline=None, derandomize=True)


@check
@given(DIMS)
def test_what_is_printed_reads_back(size: Dim):
    assert parse(str(size)) == size


@check
@given(DIMS, DIMS, DIMS, VALUES)
def test_arithmetic_is_that_of_numbers(a: Dim, b: Dim, c: Dim, values: dict[str, int]):
    left, middle, right = (evaluate(size, values) for size in (a, b, c))
    assert evaluate(add(a, b, c), values) == left + middle + right
    assert evaluate(mul(a, b), values) == left * middle
    assert evaluate(sub(a, b), values) == left - middle
    assert add(a, b) == add(b, a) and mul(a, b) == mul(b, a)
    assert mul(a, add(b, c)) == add(mul(a, b), mul(a, c))
    assert sub(a, a) == 0 and mul(a, 1) == a == add(a, 0)


@check
@given(DIMS, st.sampled_from([2, 3, BATCH, mul(2, LENGTH), mul(BATCH, LENGTH)]))
def test_division_undoes_multiplication(size: Dim, divisor: Dim):
    assert exact_div(mul(size, divisor), divisor) == size


@check
@given(DIMS, DIMS, VALUES)
def test_exact_division_is_exact_or_none(a: Dim, b: Dim, values: dict[str, int]):
    quotient = exact_div(a, b)
    if quotient is not None:
        assert evaluate(quotient, values) * evaluate(b, values) == evaluate(a, values)


def test_plain_numbers_stay_plain():
    assert sub(add(BATCH, 3), BATCH) == 3 and isinstance(sub(add(BATCH, 3), BATCH), int)
    assert isinstance(parse("2*3 + 1"), int)
    assert exact_div(BATCH, 0) is None and exact_div(7, 0) is None and exact_div(0, 0) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("12*batch", mul(12, BATCH)), ("(length + 1) // 2", sizes.apply("//", add(LENGTH, 1), 2)), ("-3", -3),
     ("7 // 2", 3), ("-7 % 4", 1), ("max(batch, 3)", sizes.apply("max", BATCH, 3)), ("batch - batch", 0),
     ("(4*batch) // 2", mul(2, BATCH)), ("2 - -2", 4)],
)  # fmt: skip
def test_sizes_that_are_read(text: str, value: Dim):
    assert parse(text) == value


HOSTILE = {
    "division by zero": "batch // 0",
    "remainder by zero": "batch % 0",
    "division of numbers by zero": "1 // 0",
    "division by what cancels": "1 // (batch - batch)",
    "a long run of signs": "-" * 1900 + "1",
    "deep parentheses": "(" * 900 + "1" + ")" * 900,
    "deep functions": "max(1," * 300 + "1" + ")" * 300,
    "a product of sums": "*".join(["(" + "+".join(f"a{i}" for i in range(20)) + ")"] * 20),
    "powers of a sum": "*".join(["(a+b+c+d+e+f)"] * 100),
    "digits of another script": "\uff11\uff12",
    "arabic digits": "٣*batch",
    "superscripts": "batch²",
    "a space that is none": "1 +\u00a02",
    "a line break": "1 +\n2",
    "code": "__import__('os')",
    "attribute": "batch.__class__",
    "power": "2**9",
    "a number too long": "1" * 19,
    "a capital": "Batch",
    "nothing": "",
    "an open end": "batch +",
    "two values": "1 2",
    "too long": "1+" * 1000 + "1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_that_is_no_size(text: str):
    start = time.perf_counter()
    with pytest.raises(FileError) as caught:
        parse(text)
    assert caught.value.found
    # Linear work on 2,000 characters takes milliseconds; what grows with 2**n or 20**n would take hours.
    assert time.perf_counter() - start < 2


def test_honest_text_beside_the_bounds():
    """The bounds are no tighter than sizes need."""
    assert parse("-" * 20 + "1") == 1
    assert parse("(" * 20 + "batch" + ")" * 20) == BATCH
    small = parse("(batch + 1)*(length + 1)*(batch + length)")
    assert isinstance(small, Size) and evaluate(small, {"batch": 2, "length": 3}) == 3 * 4 * 5


def test_a_size_that_becomes_a_division_by_zero():
    """A symbol in a divisor that turns out to be zero is an error of its own kind, not of Python."""
    size = sizes.apply("//", LENGTH, sub(BATCH, 1))
    assert evaluate(size, {"length": 6, "batch": 3}) == 3
    with pytest.raises(FileError, match="divides by zero"):
        evaluate(size, {"length": 6, "batch": 1})


@pytest.mark.parametrize("function", [lambda: evaluate(BATCH, {}), lambda: evaluate(add(BATCH, LENGTH), {"batch": 1})])
def test_missing_values_are_named(function: Callable[[], int]):
    with pytest.raises(KeyError, match=r"batch|length"):
        function()

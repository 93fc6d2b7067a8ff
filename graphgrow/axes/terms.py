"""Axis terms while they are being inferred: union-find over atoms, products and sums.

    Term ::= Atom(size) | Product(Term, ...) | Sum(Term, ...)

Two terms that meet in an operator are unified: an atom takes on the other's form, two products (or two sums) are
refined to a common partition, and a sum is distributed over the inner factors of a product. What can't be reconciled
raises `Conflict`; the caller freezes what is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Literal

from graphgrow import sizes
from graphgrow.sizes import Dim

Form = Literal["atom", "*", "+"]


class Conflict(Exception):
    """Two terms that are not one."""


class Axis:
    """One term under inference. Read `size` from any member of a union, the rest from its `root()`."""

    __slots__ = ("form", "frozen", "link", "number", "ordered", "parts", "size")
    _numbers = count()

    def __init__(self, size: Dim, form: Form = "atom", parts: tuple[Axis, ...] = ()) -> None:
        self.size, self.form, self.parts = size, form, parts
        self.link: Axis | None = None
        self.frozen: dict[str, None] = {}  # reasons, in order: the size can't change
        self.ordered: dict[str, None] = {}  # reasons: units are told apart by their position
        self.number = next(Axis._numbers)

    def root(self) -> Axis:
        root = self
        while root.link is not None:
            root = root.link
        axis = self
        while axis.link is not None and axis.link is not root:
            axis.link, axis = root, axis.link
        return root

    def __repr__(self) -> str:
        root = self.root()
        if root.form == "atom":
            return f"a{root.number}[{root.size}]"
        return "(" + f" {root.form} ".join(repr(part) for part in root.parts) + ")"


UNIT = Axis(1)


def atom(size: Dim) -> Axis:
    """A fresh atom; sizes of one are all the same unit."""
    return UNIT if size == 1 else Axis(size)


def product(parts: Sequence[Axis]) -> Axis:
    """The row-major product of axes, outermost first."""
    flat = [factor for part in parts for factor in factors(part)]
    if len(flat) == 1:
        return flat[0]
    return Axis(sizes.total(part.size for part in flat), "*", tuple(flat)) if flat else UNIT


def total(parts: Sequence[Axis]) -> Axis:
    """The concatenation of axes."""
    flat = [part for part in parts if part.size != 0]
    if len(flat) == 1:
        return flat[0]
    return Axis(sizes.add(*(part.size for part in flat)), "+", tuple(flat))


def factors(axis: Axis) -> list[Axis]:
    """The factors of a product, flattened; units left out."""
    root = axis.root()
    if root is UNIT:
        return []
    if root.form != "*":
        return [root]
    return [factor for part in root.parts for factor in factors(part)]


def summands(axis: Axis) -> list[Axis]:
    """The parts of a sum, flattened."""
    root = axis.root()
    if root.form != "+":
        return [root]
    return [part for one in root.parts for part in summands(one)]


def freeze(axis: Axis, reason: str) -> None:
    """The axis can't change its size, for `reason`."""
    if axis is not UNIT:
        axis.root().frozen.setdefault(reason)


def order(axis: Axis, reason: str) -> None:
    """The axis's units are told apart by position, for `reason`: it may grow at its end but not be permuted."""
    if axis is not UNIT:
        axis.root().ordered.setdefault(reason)


def unify(left: Axis, right: Axis) -> None:
    """Make two terms one. Raises Conflict where they can't be."""
    left, right = left.root(), right.root()
    if left is right:
        return
    if left.size != right.size or UNIT in (left, right):
        raise Conflict(f"sizes {left.size} and {right.size}")
    if left in factors(right) or right in factors(left):
        raise Conflict("an axis and its product with one of size 1")
    if left.form == "atom":
        _link(left, right)
    elif right.form == "atom":
        _link(right, left)
    elif left.form == right.form == "*":
        _unify_products(factors(left), factors(right))
        _join(left, right)
    elif left.form == right.form == "+":
        _unify_sums(left, right)
        _join(left, right)
    else:
        add, multiply = (left, right) if left.form == "+" else (right, left)
        if factors(multiply)[0].size == 1:
            raise Conflict("a sum seen as a single unit")
        inner = factors(multiply)[1:]
        outer_size = factors(multiply)[0].size
        outer, rest = split(add, outer_size, sizes.total(part.size for part in inner))
        unify(outer, factors(multiply)[0])
        unify(rest, product(inner))
        _join(left, right)


def _link(loser: Axis, winner: Axis) -> None:
    winner.frozen.update(loser.frozen)
    winner.ordered.update(loser.ordered)
    loser.link = winner


def _join(left: Axis, right: Axis) -> None:
    left, right = left.root(), right.root()
    if left is not right:
        _link(left, right)


def _unify_products(left: list[Axis], right: list[Axis]) -> None:
    left, right = left[::-1], right[::-1]
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size == b.size:
            unify(a, b)
        elif a.size == 1 or b.size == 1:
            one, other, waiting = (a, b, right) if a.size == 1 else (b, a, left)
            outer, inner = lead(other)
            if outer is UNIT:
                raise Conflict("a sum seen as a single unit")
            unify(outer, one)
            waiting += factors(inner)[::-1]
        elif (rest := sizes.exact_div(a.size, b.size)) is not None:
            outer, inner = split(a, b.size, rest)
            unify(outer, b)
            left += factors(inner)[::-1]
        elif (rest := sizes.exact_div(b.size, a.size)) is not None:
            outer, inner = split(b, a.size, rest)
            unify(outer, a)
            right += factors(inner)[::-1]
        else:
            raise Conflict(f"products that cut between {a.size} and {b.size}")
    if left or right:
        raise Conflict("products of different sizes")


def lead(axis: Axis) -> tuple[Axis, Axis]:
    """See `axis` as the product of an axis of size 1, which may grow, and what it is: one that is no sum."""
    root = axis.root()
    if root.form == "+":
        return UNIT, root
    if root.form == "atom":
        root.parts, root.form = (Axis(1), Axis(root.size)), "*"
    first, *rest = factors(root)
    if first.size != 1:
        first, inner = lead(first)
        rest = [inner, *rest]
    return first, product(rest)


def split(axis: Axis, outer: Dim, inner: Dim) -> tuple[Axis, Axis]:
    """See `axis` as the row-major product of an axis of size `outer` and one of size `inner`."""
    root = axis.root()
    if outer == 1:
        return UNIT, root
    if inner == 1:
        return root, UNIT
    if root.form == "atom":
        root.parts, root.form = (Axis(outer), Axis(inner)), "*"
        return root.parts[0], root.parts[1]
    if root.form == "*":
        return _split_product(root, outer)
    return _split_sum(root, outer, inner)


def _split_product(root: Axis, outer: Dim) -> tuple[Axis, Axis]:
    parts = factors(root)
    done: list[Axis] = []
    reached: Dim = 1
    while parts and reached != outer:
        part = parts.pop(0)
        if sizes.exact_div(outer, sizes.mul(reached, part.size)) is not None:
            done.append(part)
            reached = sizes.mul(reached, part.size)
            continue
        need = sizes.exact_div(outer, reached)
        rest = sizes.exact_div(part.size, need) if need is not None else None
        if need is None or rest is None:
            raise Conflict(f"a product that has no outer part of size {outer}")
        first, second = split(part, need, rest)
        done.append(first)
        parts.insert(0, second)
        break
    return product(done), product(parts)


def _split_sum(root: Axis, outer: Dim, inner: Dim) -> tuple[Axis, Axis]:
    pieces: list[Axis] = []
    rest: Axis | None = None
    for part in summands(root):
        share = sizes.exact_div(part.size, inner)
        if share is None:
            raise Conflict(f"a sum with a part of {part.size}, which is no multiple of {inner}")
        first, second = split(part, share, inner)
        pieces.append(first)
        if rest is None:
            rest = second
        else:
            unify(rest, second)
    assert rest is not None
    whole = total(pieces)
    root.parts, root.form = (whole, rest), "*"
    return whole, rest


def _unify_sums(left: Axis, right: Axis) -> None:
    units = any(part.size == 1 and part is not UNIT for part in (*summands(left), *summands(right)))
    cut(right, _boundaries(summands(left)), units)
    cut(left, _boundaries(summands(right)), units)
    for a, b in zip(summands(left), summands(right), strict=True):
        unify(a, b)


def _boundaries(parts: Sequence[Axis]) -> list[Dim]:
    """The inner positions where parts meet."""
    positions: list[Dim] = []
    for part in parts[:-1]:
        positions.append(sizes.add(positions[-1] if positions else 0, part.size))
    return positions


def cut(axis: Axis, positions: Sequence[Dim], units: bool = False) -> list[Axis]:
    """See `axis` as a sum cut at `positions` (increasing, inside it); the pieces between the cuts. With `units` those
    of size 1 are axes, too."""
    root = axis.root()
    if not positions:
        return [root]
    if root is UNIT:  # every dimension of size one is this: the one that is cut is another
        root = Axis(1)
    if root.form == "atom":
        ends = [*positions, root.size]
        made = Axis if units else atom
        root.parts = tuple(made(sizes.sub(end, start)) for start, end in zip([0, *positions], ends, strict=True))
        root.form = "+"
        return list(root.parts)
    if root.form == "*":
        return _cut_product(root, positions, units)
    return _cut_sum(root, positions, units)


def _cut_product(root: Axis, positions: Sequence[Dim], units: bool) -> list[Axis]:
    outer, *rest = factors(root)
    inner = sizes.total(part.size for part in rest)
    shares = [sizes.exact_div(position, inner) for position in positions]
    found = [share for share in shares if share is not None]
    if len(found) < len(shares):
        raise Conflict(f"a cut at {positions[0]} through units of {inner}")
    return [product([piece, *rest]) for piece in cut(outer, found, units)]


def _cut_sum(root: Axis, positions: Sequence[Dim], units: bool) -> list[Axis]:
    waiting = list(positions)[::-1]
    pieces: list[list[Axis]] = [[]]
    start: Dim = 0
    for part in summands(root):
        end = sizes.add(start, part.size)
        inside: list[Dim] = []
        while waiting and _within(start, waiting[-1], end):
            inside.append(sizes.sub(waiting.pop(), start))
        first, *others = cut(part, inside, units)
        pieces[-1].append(first)
        pieces += [[piece] for piece in others]
        if waiting and waiting[-1] == end:
            waiting.pop()
            pieces.append([])
        start = end
    if waiting:
        raise Conflict(f"a cut at {waiting[-1]} whose place is not known")
    return [total(piece) for piece in pieces]


def _within(start: Dim, position: Dim, end: Dim) -> bool:
    """Whether `position` lies strictly between the two, as far as symbols (all at least one) tell."""
    return _positive(sizes.sub(position, start)) and _positive(sizes.sub(end, position))


def _positive(size: Dim) -> bool:
    if isinstance(size, int):
        return size > 0
    return all(value > 0 for _, value in size.terms)

"""Sizes: integers, or polynomials with integer coefficients in the dynamic sizes of a program's inputs.

A size is written and read in a small syntax of its own (`12*batch`, `(sequence + 1) // 2`), never by
evaluating text. A size that is a plain number is always a plain `int`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeAlias

from graphgrow.errors import FileError

Dim: TypeAlias = "int | Size"


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A dynamic size, by name: `batch`, `sequence`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Function:
    """An integer function that is no polynomial: `a // b`, `a % b`, `max(a, b)`, `min(a, b)`."""

    name: str
    left: Dim
    right: Dim

    def __str__(self) -> str:
        if self.name in ("//", "%"):
            return f"({_grouped(self.left)} {self.name} {_grouped(self.right)})"
        return f"{self.name}({self.left}, {self.right})"


Factor: TypeAlias = Symbol | Function
Monomial: TypeAlias = tuple[Factor, ...]


@dataclass(frozen=True)
class Size:
    """A sum of monomials, `((factors, coefficient), ...)`, sorted by text; build it with the functions below."""

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def text(self) -> str:
        parts: list[str] = []
        for factors, coefficient in self.terms:
            names = [str(factor) for factor in factors]
            if abs(coefficient) != 1 or not names:
                names.insert(0, str(abs(coefficient)))
            sign = ("- " if coefficient < 0 else "+ ") if parts else ("-" if coefficient < 0 else "")
            parts.append(sign + "*".join(names))
        return " ".join(parts)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __hash__(self) -> int:
        return hash(self.terms)


def _grouped(size: Dim) -> str:
    plain = isinstance(size, int) or (len(size.terms) == 1 and len(size.terms[0][0]) == 1)
    return str(size) if plain and not str(size).startswith("-") else f"({size})"


def symbol(name: str) -> Size:
    """The dynamic size called `name`."""
    return Size((((Symbol(name),), 1),))


def _terms(size: Dim) -> dict[Monomial, int]:
    return {(): size} if isinstance(size, int) else dict(size.terms)


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: value for monomial, value in terms.items() if value}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Size(tuple(sorted(kept.items(), key=lambda item: (-len(item[0]), [str(f) for f in item[0]]))))


def add(*sizes: Dim) -> Dim:
    """The sum of `sizes`."""
    if all(isinstance(size, int) for size in sizes):
        return sum(size for size in sizes if isinstance(size, int))
    total: dict[Monomial, int] = {}
    for size in sizes:
        for monomial, value in _terms(size).items():
            total[monomial] = total.get(monomial, 0) + value
    return _normal(total)


def mul(*sizes: Dim) -> Dim:
    """The product of `sizes`."""
    if all(isinstance(size, int) for size in sizes):
        return prod(size for size in sizes if isinstance(size, int))
    total: dict[Monomial, int] = {(): 1}
    for size in sizes:
        step: dict[Monomial, int] = {}
        for left, a in total.items():
            for right, b in _terms(size).items():
                monomial = tuple(sorted(left + right, key=str))
                step[monomial] = step.get(monomial, 0) + a * b
        total = step
    return _normal(total)


def sub(left: Dim, right: Dim) -> Dim:
    """`left - right`."""
    return add(left, mul(-1, right))


def exact_div(size: Dim, divisor: Dim) -> Dim | None:
    """`size / divisor` when it is a size (the divisor one monomial that divides every term), else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if divisor and size % divisor == 0 else None
    if divisor == 0:
        return None
    if size == 0:
        return 0
    if size == divisor:
        return 1
    terms = _terms(divisor)
    if len(terms) != 1:
        return None
    ((factors, coefficient),) = terms.items()
    quotient: dict[Monomial, int] = {}
    for monomial, value in _terms(size).items():
        rest = list(monomial)
        for factor in factors:
            if factor not in rest:
                return None
            rest.remove(factor)
        if value % coefficient:
            return None
        quotient[tuple(rest)] = value // coefficient
    return _normal(quotient)


def apply(name: str, left: Dim, right: Dim) -> Dim:
    """One of the functions `//`, `%`, `max`, `min`, computed where it can be."""
    if name in ("//", "%") and right == 0:
        raise FileError(found=f"a size that divides by zero: {left} {name} {right}")
    if isinstance(left, int) and isinstance(right, int):
        return {"//": lambda: left // right, "%": lambda: left % right, "max": lambda: max(left, right),
                "min": lambda: min(left, right)}[name]()  # fmt: skip
    if name == "//" and (quotient := exact_div(left, right)) is not None:
        return quotient
    if name == "%" and exact_div(left, right) is not None:
        return 0
    if name in ("max", "min") and left == right:
        return left
    return Size((((Function(name, left, right),), 1),))


def symbols(size: Dim) -> frozenset[str]:
    """The names of the dynamic sizes in `size`."""
    if isinstance(size, int):
        return frozenset()
    found: set[str] = set()
    for factors, _ in size.terms:
        for factor in factors:
            found |= {factor.name} if isinstance(factor, Symbol) else symbols(factor.left) | symbols(factor.right)
    return frozenset(found)


def evaluate(size: Dim, values: Mapping[str, int]) -> int:
    """The number that `size` is when its symbols have `values`."""
    replaced = substitute(size, values)
    if not isinstance(replaced, int):
        raise KeyError(f"no value for {sorted(symbols(replaced))}")
    return replaced


def number(size: Dim) -> int:
    """A size that is known to be a number."""
    assert isinstance(size, int), size
    return size


def substitute(size: Dim, values: Mapping[str, Dim]) -> Dim:
    """`size` with symbols replaced by sizes."""
    if isinstance(size, int):
        return size
    parts: list[Dim] = []
    for factors, coefficient in size.terms:
        product: list[Dim] = [coefficient]
        for factor in factors:
            if isinstance(factor, Symbol):
                product.append(values.get(factor.name, symbol(factor.name)))
            else:
                product.append(apply(factor.name, substitute(factor.left, values), substitute(factor.right, values)))
        parts.append(mul(*product))
    return add(*parts)


def total(dims: Iterable[Dim]) -> Dim:
    """The product of a shape's sizes."""
    return mul(1, *dims)


_TOKEN = re.compile(r"[ ]*(?:([0-9]{1,18})|([a-z][a-z0-9_]{0,63})|(//|[-+*%(),]))")
_DEPTH = 32
_MONOMIALS = 256  # of a size that is read: products of sums grow fast


def parse(text: str) -> Dim:
    """Read a size from its text. Raises FileError for anything that is not one."""
    if len(text) > 2000:
        raise FileError(found=f"a size of {len(text)} characters", fix="sizes are short expressions")
    tokens: list[str] = []
    position = 0
    text = text.rstrip(" ")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FileError(found=f"{text!r}, which is not a size", where=f"character {position}")
        tokens.append(match.group(match.lastindex or 0))
        position = match.end()
    reader = _Reader(text, tokens)
    size = reader.sum(0)
    if reader.tokens:
        raise FileError(found=f"{text!r}, which is not a size", where=f"at {reader.tokens[0]!r}")
    return size


class _Reader:
    """Recursive descent over the tokens of one size."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text, self.tokens = text, tokens

    def take(self, *allowed: str) -> str | None:
        if self.tokens and self.tokens[0] in allowed:
            return self.tokens.pop(0)
        return None

    def expect(self, token: str) -> None:
        if self.take(token) is None:
            raise FileError(found=f"{self.text!r}, which is not a size", where=f"where {token!r} is missing")

    def sum(self, depth: int) -> Dim:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            right = self.product(depth)
            value = add(value, right) if sign == "+" else sub(value, right)
        return value

    def product(self, depth: int) -> Dim:
        value = self.factor(depth)
        while operator := self.take("*", "//", "%"):
            right = self.factor(depth)
            if operator == "*" and len(_terms(value)) * len(_terms(right)) > _MONOMIALS:
                raise FileError(found=f"{self.text[:60]!r}..., a product of too many terms for a size")
            value = mul(value, right) if operator == "*" else apply(operator, value, right)
        return value

    def factor(self, depth: int) -> Dim:
        if depth > _DEPTH:
            raise FileError(found=f"{self.text[:60]!r}..., nested too deeply for a size")
        if self.take("-"):
            return mul(-1, self.factor(depth + 1))
        if self.take("("):
            value = self.sum(depth + 1)
            self.expect(")")
            return value
        if name := self.take("max", "min"):
            self.expect("(")
            left = self.sum(depth + 1)
            self.expect(",")
            right = self.sum(depth + 1)
            self.expect(")")
            return apply(name, left, right)
        if not self.tokens or not self.tokens[0][0].isalnum():
            raise FileError(found=f"{self.text!r}, which is not a size")
        token = self.tokens.pop(0)
        return int(token) if token.isdigit() else symbol(token)

"""Tensors as small arrays of facts: every dimension cut into cells, each all old or all new.

When atoms grow, a dimension falls into one cell per monomial of its term, old or new: a grown atom is (old, new), a
product all combinations, a sum one after the other; a term without a grown atom is one cell. Facts are small numbers,
so a tensor's abstract value is a little integer array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphgrow import sizes
from graphgrow.axes import Atom, Product, Sum, Term
from graphgrow.sizes import Dim

Cells: TypeAlias = NDArray[np.int16]

# Facts. Numbers from SAME up stand for multiples of the original: see `scaled`.
ANY, ZERO, SAME = 0, 1, 2
_scales: list[float] = [1.0]


def scaled(factor: float) -> int:
    """The fact that a block is `factor` times the original's."""
    for index, known in enumerate(_scales):
        if abs(known - factor) <= 1e-12 * abs(factor):
            return SAME + index
    _scales.append(factor)
    return SAME + len(_scales) - 1


def scale(fact: int) -> float:
    """The factor of a `scaled` fact."""
    return _scales[fact - SAME]


def text(fact: int) -> str:
    """A fact for people."""
    names = {ANY: "anything", ZERO: "zero", SAME: "the same"}
    return names.get(fact) or f"{scale(fact):g} times the same"


def join(facts: Sequence[int]) -> int:
    """What holds for several blocks together."""
    return int(facts[0]) if len(set(facts)) == 1 else ANY


class Layout:
    """How terms fall into cells when the atoms in `grown` take new sizes."""

    def __init__(self, grown: Mapping[Atom, Dim]) -> None:
        self.grown = dict(grown)
        self.old = lru_cache(maxsize=None)(self._old)

    def touches(self, term: Term) -> bool:
        """Whether a grown atom is in the term."""
        return any(atom in self.grown for atom in term.atoms)

    def _old(self, term: Term) -> tuple[bool, ...]:
        """For every cell of the term, whether it is old."""
        if not self.touches(term):
            return (True,)
        if isinstance(term, Atom):
            return (True, False)
        parts = [self.old(part) for part in term.parts]
        if isinstance(term, Sum):
            return tuple(flag for part in parts for flag in part)
        flags: tuple[bool, ...] = (True,)
        for part in parts:
            flags = tuple(a and b for a in flags for b in part)
        return flags

    def shape(self, terms: Sequence[Term]) -> tuple[int, ...]:
        """The number of cells per dimension."""
        return tuple(len(self.old(term)) for term in terms)

    def is_old(self, terms: Sequence[Term]) -> NDArray[np.bool_]:
        """For every cell of a tensor, whether it is old in all dimensions."""
        flags = np.ones(self.shape(terms), dtype=bool)
        for dim, term in enumerate(terms):
            shape = [1] * len(terms)
            shape[dim] = -1
            flags &= np.array(self.old(term)).reshape(shape)
        return flags

    def spans(self, term: Term) -> list[tuple[Dim, tuple[int, ...]]]:
        """The term as a concatenation: each part's old size and the numbers of its cells."""
        count = len(self.old(term))
        if isinstance(term, Sum):
            if not self.touches(term):
                return [(part.size, (0,)) for part in term.parts]
            found: list[tuple[Dim, tuple[int, ...]]] = []
            start = 0
            for part in term.parts:
                found += [(size, tuple(start + i for i in cells)) for size, cells in self.spans(part)]
                start += len(self.old(part))
            return found
        if isinstance(term, Product) and term.parts and isinstance(term.parts[0], Sum):
            rest = Product(term.parts[1:])
            inner = len(self.old(rest))
            return [
                (sizes.mul(size, rest.size), tuple(cell * inner + i for cell in cells for i in range(inner)))
                for size, cells in self.spans(term.parts[0])
            ]
        return [(term.size, tuple(range(count)))]

    def pieces(self, whole: Term, parts: Sequence[Term]) -> list[list[tuple[int, int]]] | None:
        """For each part of a concatenation the pairs (cell of the part, cell of the whole); None if they don't fit."""
        if not self.touches(whole) and not any(self.touches(part) for part in parts):
            return [[(0, 0)] for _ in parts]
        spans = self.spans(whole)[::-1]
        found: list[list[tuple[int, int]]] = []
        for part in parts:
            pairs: list[tuple[int, int]] = []
            for size, cells in self.spans(part):
                if size == 0:
                    continue
                left: Dim = size
                while left != 0:
                    if not spans:
                        return None
                    step, others = spans.pop()
                    rest = sizes.sub(left, step)
                    if isinstance(rest, int) and rest < 0:
                        spans.append((sizes.sub(step, left), others))
                        rest = 0
                    if len(cells) != len(others) and 1 not in (len(cells), len(others)):
                        return None
                    count = max(len(cells), len(others))
                    pairs += zip(cells * (count // len(cells)), others * (count // len(others)), strict=True)
                    left = rest
            found.append(list(dict.fromkeys(pairs)))
        return found

"""How tensors fall into cells: every dimension is cut so that each cell is all old or all new.

When atoms grow, a dimension falls into one cell per monomial of its term, old or new: a grown atom is (old, new), a
product all combinations, a sum one after the other; a term without a grown atom is one cell. A tensor's abstract value
is a little array with one fact per cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product as cartesian
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphgrow import sizes
from graphgrow.axes import Atom, Product, Sum, Term
from graphgrow.sizes import Dim


class Cell(NamedTuple):
    """One cell of a dimension: `origin` is the old cell whose units it would copy, `ratio` how many units it has to
    one of those, `whole` whether it would hold complete copies of them."""

    old: bool
    origin: int
    ratio: float = 1.0
    whole: bool = True


class Layout:
    """How terms fall into cells when the atoms in `grown` take new sizes. One that keeps its size has no new cell, but
    the parts of a concatenation with it have a cell each."""

    def __init__(self, grown: Mapping[Atom, Dim]) -> None:
        self.grown = dict(grown)
        self.cells = lru_cache(maxsize=None)(self._cells)
        self.old = lru_cache(maxsize=None)(self._old)

    def touches(self, term: Term) -> bool:
        """Whether a grown atom is in the term."""
        return any(atom in self.grown for atom in term.atoms)

    def _cells(self, term: Term) -> tuple[Cell, ...]:
        if not self.touches(term):
            return (Cell(True, 0),)
        if isinstance(term, Atom):
            old, new = sizes.number(term.size), sizes.number(self.grown[term])
            if old == new:
                return (Cell(True, 0),)
            return (Cell(True, 0), Cell(False, 0, (new - old) / old, (new - old) % old == 0))
        parts = [self.cells(part) for part in term.parts]
        if isinstance(term, Sum):
            starts = np.cumsum([0, *(len(part) for part in parts)])
            return tuple(
                cell._replace(origin=cell.origin + int(start))
                for part, start in zip(parts, starts, strict=False)
                for cell in part
            )
        found: list[Cell] = []
        for chosen in cartesian(*parts):
            origin = 0
            for cell, part in zip(chosen, parts, strict=True):
                origin = origin * len(part) + cell.origin
            ratio = float(np.prod([cell.ratio for cell in chosen]))
            found.append(Cell(all(c.old for c in chosen), origin, ratio, all(c.whole for c in chosen)))
        return tuple(found)

    def _old(self, term: Term) -> tuple[bool, ...]:
        """For every cell of the term, whether it is old."""
        return tuple(cell.old for cell in self.cells(term))

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

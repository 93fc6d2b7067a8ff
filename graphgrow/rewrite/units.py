"""Where the units of a resized dimension come from.

For every position of a dimension after resizing: the position it had before, or -1 when it is new; and the cell of the
prover's layout it lies in. Both follow the term, so q + k + v, heads*key or half + half need no special care.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphgrow.axes import Atom, Sum, Term
from graphgrow.prove import Layout

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Resizing:
    """New sizes of atoms; `kept` lists the old units that stay, in their new order (default: the first), `picked` for
    every unit the old one that a copy copies (default: one after the other)."""

    sizes: Mapping[Atom, int]
    kept: Mapping[Atom, Sequence[int]] = field(default_factory=dict[Atom, Sequence[int]])
    picked: Mapping[Atom, Positions] = field(default_factory=dict[Atom, Positions])

    @cached_property
    def layout(self) -> Layout:
        """How terms fall into cells: by the axes that do not get smaller."""
        return Layout({atom: size for atom, size in self.sizes.items() if size >= number(atom)})

    def touches(self, terms: Sequence[Term]) -> bool:
        return any(atom in self.sizes for term in terms for atom in term.atoms)

    def source(self, term: Term) -> Positions:
        """For every new position of the term its old one, or -1."""
        if not self.touches([term]):
            return np.arange(number(term))
        if isinstance(term, Atom):
            old = number(term)
            new = self.sizes.get(term, old)
            if new < old or term in self.kept:
                return np.array(self.kept.get(term, range(new)), dtype=np.int64)
            return np.concatenate([np.arange(old), np.full(new - old, -1)]).astype(np.int64)
        if isinstance(term, Sum):
            starts = np.cumsum([0, *(number(part) for part in term.parts)])
            parts = [self.source(part) for part in term.parts]
            return np.concatenate([np.where(p >= 0, p + s, -1) for p, s in zip(parts, starts[:-1], strict=True)])
        result = np.zeros(1, dtype=np.int64)
        for part in term.parts:
            inner = self.source(part)
            joined = result[:, None] * number(part) + inner[None, :]
            result = np.where((result[:, None] >= 0) & (inner[None, :] >= 0), joined, -1).reshape(-1)
        return result

    def copied(self, term: Term) -> Positions:
        """For every new position of a term the old position that a copy takes its values from: unit j mod n, or the
        unit in `picked`."""
        if not any(atom in self.sizes for atom in term.atoms):
            return np.arange(number(term))
        if isinstance(term, Atom):
            old = number(term)
            return self.picked.get(term, np.arange(self.sizes.get(term, old)) % old)
        parts = [self.copied(part) for part in term.parts]
        if isinstance(term, Sum):
            starts = np.cumsum([0, *(number(part) for part in term.parts)])
            return np.concatenate([part + start for part, start in zip(parts, starts[:-1], strict=True)])
        result = np.zeros(1, dtype=np.int64)
        for part, inner in zip(term.parts, parts, strict=True):
            result = (result[:, None] * number(part) + inner[None, :]).reshape(-1)
        return result

    def cells(self, layout: Layout, term: Term) -> Positions:
        """For every new position of the term the cell of the layout it lies in."""
        if not layout.touches(term):
            return np.zeros(self.number(term), dtype=np.int64)
        if isinstance(term, Atom):
            return (np.arange(self.number(term)) >= number(term)).astype(np.int64)
        if isinstance(term, Sum):
            starts = np.cumsum([0, *(len(layout.old(part)) for part in term.parts)])
            return np.concatenate([self.cells(layout, p) + s for p, s in zip(term.parts, starts[:-1], strict=True)])
        result = np.zeros(1, dtype=np.int64)
        for part in term.parts:
            inner = self.cells(layout, part)
            result = (result[:, None] * len(layout.old(part)) + inner[None, :]).reshape(-1)
        return result

    def number(self, term: Term) -> int:
        """The term's new size."""
        size = term.resized(self.sizes)
        assert isinstance(size, int)
        return size


def units_of(term: Term, atom: Atom) -> Positions:
    """For every position of the term the unit of the atom that it belongs to, or -1."""
    if atom not in term.atoms:
        return np.full(number(term), -1)
    if isinstance(term, Atom):
        return np.arange(number(term))
    parts = [units_of(part, atom) for part in term.parts]
    if isinstance(term, Sum):
        return np.concatenate(parts)
    result = np.full(1, -1)
    for inner in parts:
        result = np.maximum(result[:, None], inner[None, :]).reshape(-1)
    return result


def number(term: Term) -> int:
    """The size of a term in a parameter: always a number."""
    assert isinstance(term.size, int), term
    return term.size


def runs(positions: Positions) -> list[tuple[int, int, int]]:
    """Maximal runs of consecutive old positions: (new start, old start, length); new ones (-1) are left out."""
    if not len(positions):
        return []
    breaks = np.flatnonzero((np.diff(positions) != 1) | (positions[1:] < 0) | (positions[:-1] < 0)) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(positions)]])
    return [(int(s), int(positions[s]), int(e - s)) for s, e in zip(starts, ends, strict=True) if positions[s] >= 0]


def spans(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal runs of true: (start, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(s), int(e - s)) for s, e in zip(edges[::2], edges[1::2], strict=True)]

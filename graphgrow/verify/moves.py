"""Where the old values of a program went: for the state of optimizers, which goes with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from graphgrow.axes import Term
from graphgrow.certificate import Move, Run
from graphgrow.layers import stacks
from graphgrow.program import Program
from graphgrow.prove import SAME, Assignment, kind, multiple
from graphgrow.rewrite import Resizing
from graphgrow.rewrite.prune import Kept
from graphgrow.sizes import number
from graphgrow.verify.align import Alignment

Cell = tuple[int, ...]
Positions = NDArray[np.int64]


def moves(old: Program, new: Program, alignment: Alignment, assignment: Assignment) -> tuple[Move, ...]:
    """What became of the parameters that have other shapes or values than before: every block that follows from an old
    one. New blocks that do not are in no move."""
    resizing = Resizing(alignment.sizes)
    facts = _by_parameter(assignment)
    found: list[Move] = []
    for name, terms in old.axes.parameters.items():
        known = facts.get(name, {})
        if _learns(old, name) and (resizing.touches(terms) or any(fact != SAME for fact in known.values())):
            found += _moved(name, terms, tuple(new.tensors[name].shape), resizing, known)
    return tuple(found)


def kept_moves(old: Program, new: Program, kept: Kept, growth: Alignment, assignment: Assignment) -> Iterator[Move]:
    """What became of parameters of which units went: what is left of each, and by how much it was divided to make the
    old program a growth of the new one."""
    before, after = Resizing({atom: len(units) for atom, units in kept.items()}, kept), Resizing(growth.sizes)
    facts = _by_parameter(assignment)
    for name, terms in old.axes.parameters.items():
        known = facts.get(name, {})
        if not _learns(old, name) or not (before.touches(terms) or any(fact != SAME for fact in known.values())):
            continue
        theirs = new.axes.parameters[name]
        cells = [after.cells(after.layout, term)[after.source(term) >= 0] for term in theirs]
        origins = [before.source(term) for term in terms]
        for cell in dict.fromkeys(itertools.product(*(dict.fromkeys(found.tolist()) for found in cells))):
            there = [np.flatnonzero(found == number) for found, number in zip(cells, cell, strict=True)]
            runs = tuple(tuple(pieces(at, origin[at])) for at, origin in zip(there, origins, strict=True))
            scale = 1 / multiple(known.get(cell, SAME)).scale
            yield Move(old=name, new=name, shape=tuple(new.tensors[name].shape), scale=scale, runs=runs)


def _learns(program: Program, name: str) -> bool:
    return program.kinds[name].role == "parameter" and program.tensors[name].is_floating_point()


def _by_parameter(assignment: Assignment) -> dict[str, dict[Cell, int]]:
    facts: dict[str, dict[Cell, int]] = {}
    for block, fact in assignment.blocks.items():
        facts.setdefault(block.parameter, {})[block.cell] = fact
    return facts


def _moved(
    name: str, terms: Sequence[Term], shape: tuple[int, ...], resizing: Resizing, facts: Mapping[Cell, int]
) -> Iterator[Move]:
    layout = resizing.layout
    known = {cell: facts.get(cell, SAME if old else 0) for cell, old in np.ndenumerate(layout.is_old(terms))}
    follow = {cell: multiple(fact) for cell, fact in known.items() if kind(fact) in ("same", "affine", "share")}
    dims = [_Dimension(resizing, term) for term in terms]
    for cell, found in follow.items():
        # Shares have one gradient, that of the whole weight: what counts are the copies of all of them together.
        alike = {tuple(-1 if d in found.along else at for d, at in enumerate(c)) for c in follow}
        parts = [dim.parts(at, {c[d] for c in alike}) for d, (dim, at) in enumerate(zip(dims, cell, strict=True))]
        for part in itertools.product(*parts):
            copies = sum(prod(one.counts.get(at, 1) for one, at in zip(part, c, strict=True)) for c in alike)
            runs = tuple(tuple(pieces(one.there, one.origins)) for one in part)
            yield Move(old=name, new=name, shape=shape, scale=found.scale, copies=copies, runs=runs)


@dataclass(frozen=True)
class _Part:
    """Positions in one cell of a dimension, their origins, and how many copies each of these has, by cell."""

    there: Positions
    origins: Positions
    counts: Mapping[int, int]


class _Dimension:
    """A dimension of a resized parameter."""

    def __init__(self, resizing: Resizing, term: Term) -> None:
        self.cells = np.asarray(resizing.cells(resizing.layout, term))
        self.origins = np.asarray(resizing.copied(term))
        rows = [
            np.bincount(self.origins[self.cells == cell], minlength=number(term.size))
            for cell in range(len(resizing.layout.old(term)))
        ]
        self.counts = np.stack(rows, axis=1)

    def parts(self, cell: int, among: Set[int]) -> list[_Part]:
        """The positions in a cell by how many copies their origins have in others."""
        there, counted = np.flatnonzero(self.cells == cell), sorted(among - {-1})
        origins = self.origins[there]
        kinds, which = np.unique(self.counts[origins][:, counted], axis=0, return_inverse=True)
        return [
            _Part(there[which == index], origins[which == index], dict(zip(counted, counts.tolist(), strict=True)))
            for index, counts in enumerate(kinds)
        ]


def pieces(there: Positions, origins: Positions) -> Iterator[Run]:
    """Places and their origins as pieces in which both count on."""
    cuts = np.flatnonzero((np.diff(there) != 1) | (np.diff(origins) != 1)) + 1
    for part, source in zip(np.split(there, cuts), np.split(origins, cuts), strict=True):
        yield Run(to=int(part[0]), start=int(source[0]), length=len(part))


def renamed(old: Program, new: Program, added: frozenset[str]) -> tuple[Move, ...]:
    """What became of parameters in a deeper program: those that have another name, and for those of new layers the
    parameter at the same place in an old layer, which they have nothing of."""
    found: list[Move] = []
    before = {node.name: name for name, node in old.graph.parameters.items()}
    for name, node in new.graph.parameters.items():
        origin = before.get(node.name)
        if name not in added and origin is not None and origin != name and new.kinds[name].role == "parameter":
            found.append(Move(old=origin, new=name, shape=tuple(new.tensors[name].shape)))
    for stack in stacks(new.graph):
        for place, name in ((p, n) for layer in stack.layers for p, n in enumerate(layer.tensors) if n in added):
            like = next((o.tensors[place] for o in stack.layers if o.tensors[place] not in added), "")
            origin = before.get(new.graph.parameters[like].name, "") if like else ""
            if new.kinds[name].role == "parameter":
                found.append(Move(old=origin, new=name, shape=tuple(new.tensors[name].shape), fresh=True))
    return tuple(found)

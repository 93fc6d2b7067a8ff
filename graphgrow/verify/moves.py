"""Where the old values of a program went: for the state of optimizers, which goes with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

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
    cells = [np.asarray(resizing.cells(layout, term)) for term in terms]
    blocks: list[tuple[float, list[tuple[Positions, Positions]]]] = []
    for cell in np.ndindex(layout.shape(terms)):
        dims = [dim for dim, term in enumerate(terms) if not layout.old(term)[cell[dim]]]
        fact = facts.get(cell, SAME if not dims else 0)
        if kind(fact) not in ("same", "affine"):
            continue
        places: list[tuple[Positions, Positions]] = []
        for dim, term in enumerate(terms):
            origins = resizing.copied(term) if dims else resizing.source(term)
            there = np.flatnonzero(cells[dim] == cell[dim])
            places.append((there, np.asarray(origins)[there]))
        blocks.append((multiple(fact).scale, places))
    size = [float(np.prod([len(there) for there, _ in places])) for _, places in blocks]
    whole = float(np.prod([number(term.size) for term in terms]))
    copies = max(1, round(sum(size) / whole)) if size else 1
    for scale, places in blocks:
        if all(len(there) for there, _ in places):
            runs = tuple(tuple(pieces(there, origins)) for there, origins in places)
            yield Move(old=name, new=name, shape=shape, scale=scale, copies=copies, runs=runs)


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

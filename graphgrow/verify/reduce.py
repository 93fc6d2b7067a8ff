"""Two large programs shrunk alike, so that they can be run in float64 in little memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphgrow.axes import Atom
from graphgrow.program import Program
from graphgrow.rewrite import Fills, Resizing, resize
from graphgrow.verify.align import Alignment

UNITS = 4  # old units that stay of each axis, and at most as many new ones


def reduced(old: Program, new: Program, alignment: Alignment) -> tuple[Program, Program]:
    """Both programs with the first units of every axis only, and of what has grown the first new units too.

    Axes that an index picks from, or that are frozen, stay as they are."""
    kept_old, kept_new = dict[Atom, Sequence[int]](), dict[Atom, Sequence[int]]()
    counterpart = {named.atom.number: named.atom for named in new.axes.named}
    looked_up = {atom for _, term in old.axes.lookups for atom in term.atoms}
    for named in old.axes.named:
        atom, size = named.atom, int(str(named.size))
        target = alignment.sizes.get(atom, size)
        if atom in looked_up or atom in old.axes.frozen or target < size:
            continue
        units = list(range(min(size, UNITS)))
        kept_old[atom] = units
        copies = (target - size) % size == 0
        added = len(units) if copies else UNITS
        kept_new[counterpart[atom.number]] = units + list(range(size, size + min(added, target - size)))
    return _shrunk(old, kept_old), _shrunk(new, kept_new)


def _shrunk(program: Program, kept: Mapping[Atom, Sequence[int]]) -> Program:
    sizes = {atom: len(units) for atom, units in kept.items() if len(units) != atom.size}
    return resize(program, Resizing(sizes, kept), Fills())

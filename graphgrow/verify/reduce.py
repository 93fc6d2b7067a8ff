"""Two large programs shrunk alike, so that they can be run in float64 in little memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphgrow.axes import Atom
from graphgrow.program import Program
from graphgrow.rewrite import Fills, Resizing, resize
from graphgrow.sizes import number
from graphgrow.verify.align import Alignment

UNITS = 4  # old units that stay of each axis, and at most as many new ones


def reduced(old: Program, new: Program, alignment: Alignment) -> tuple[Program, Program]:
    """Both programs with the first units of every axis only, and of what has grown the first new units too."""
    counterpart = {named.atom.number: named.atom for named in new.axes.named}
    kept_old, kept_new = dict[Atom, Sequence[int]](), dict[Atom, Sequence[int]]()
    for atom, units in first_units(old).items():
        size = number(atom.size)
        target = alignment.sizes.get(atom, size)
        if target < size:
            continue
        kept_old[atom] = units
        copies = (target - size) % size == 0
        added = len(units) if copies else UNITS
        kept_new[counterpart[atom.number]] = [*units, *range(size, size + min(added, target - size))]
    return shrunk_to(old, kept_old), shrunk_to(new, kept_new)


def first_units(program: Program) -> dict[Atom, Sequence[int]]:
    """The first units of every axis. Axes that an index picks from, or that are frozen, stay as they are."""
    looked_up = {atom for _, term in program.axes.lookups for atom in term.atoms}
    fixed = looked_up | set(program.axes.frozen)
    sizes = {named.atom: number(named.size) for named in program.axes.named if named.atom not in fixed}
    return {atom: range(min(size, UNITS)) for atom, size in sizes.items()}


def shrunk_to(program: Program, kept: Mapping[Atom, Sequence[int]]) -> Program:
    """The program with only these units of axes."""
    sizes = {atom: len(units) for atom, units in kept.items() if len(units) != atom.size}
    return resize(program, Resizing(sizes, kept), Fills())

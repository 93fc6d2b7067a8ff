"""The judge of programs that have fewer units: the old one must be a growth of the new one.

Which units were kept is not told by who took the others away, but found by their values. The old program with these
units first does the same, as axes that are neither frozen nor ordered have no order; and it is a growth of the new one
if the proof for that growth goes through with the values there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphgrow.axes import Atom
from graphgrow.certificate import Proof, Test
from graphgrow.program import Program
from graphgrow.rewrite import Resizing
from graphgrow.rewrite.prune import Kept, reordered
from graphgrow.rewrite.units import Positions, units_of
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.equivalence import FULL_SIZE, as_stored, test, verdict
from graphgrow.verify.proof import Proved, prove


@dataclass(frozen=True)
class Pruned:
    """What was found: the units that are kept, the old program with these first, how it is a growth of the new one,
    and the proof."""

    kept: Kept
    large: Program
    growth: Alignment
    proved: Proved

    @property
    def proof(self) -> Proof:
        """The proof, said of the units that went."""
        found = self.proved.proof
        if not found.holds:
            return found.model_copy(update={"why": f"what was removed does something: {found.why}"})
        rows = tuple(row.model_copy(update={"removed": True}) for row in found.constraints)
        why = f"the old program is a growth of this one: {found.why}"
        return found.model_copy(update={"why": why, "constraints": rows})


def prove_pruned(old: Program, new: Program, alignment: Alignment) -> Pruned:
    """Whether the units that `new` does not have do nothing in `old`."""
    kept = _kept(old, new, alignment.sizes)
    large = reordered(old, kept)
    growth = align(new, large)
    return Pruned(kept, large, growth, prove(new, large, growth))


def test_pruned(old: Program, new: Program, found: Pruned, seed: int) -> Test:
    """The test of that growth, and, as it starts from the old program in another order, one of the old program itself
    (of outputs that both have whole)."""
    tested = test(new, found.large, found.growth, found.proved, seed)
    same = all(old.graph[name].type == new.graph[name].type for name in old.graph.output_names)
    if found.large is old or not same or old.size + new.size > FULL_SIZE:
        return tested
    trial = as_stored(old, new, seed)
    return verdict([*tested.trials, trial], tested.reduced, seed)


def _kept(old: Program, new: Program, sizes: Mapping[Atom, int]) -> Kept:
    """For every axis the old units that are there: those whose values a parameter has whose other dimensions are known;
    the first ones where no parameter tells."""
    found: dict[Atom, Sequence[int]] = {}
    waiting = [atom for atom in sizes if atom not in old.axes.positional and atom not in old.axes.frozen]
    while waiting:
        told = ((atom, next(_told(old, new, atom, found, waiting), None)) for atom in waiting)
        atom, units = next((row for row in told if row[1] is not None), (None, None))
        if atom is None or units is None:
            break
        found[atom] = units
        waiting.remove(atom)
    return {atom: found.get(atom, range(size)) for atom, size in sizes.items()}


def _told(old: Program, new: Program, atom: Atom, known: Kept, waiting: Sequence[Atom]) -> Iterator[list[int]]:
    """The units of an axis that are kept, as each parameter tells them."""
    twin = {named.atom.number: named.atom for named in new.axes.named}[atom.number]
    resizing = Resizing({a: len(units) for a, units in known.items()}, known)
    for name in old.axes.holders.get(atom, ()):
        terms = old.axes.parameters[name]
        dims = [dim for dim, term in enumerate(terms) if atom in term.atoms]
        others = any(a in waiting and a != atom for term in terms for a in term.atoms)
        if others or len(dims) != 1 or old.tensors[name].is_meta or new.tensors[name].is_meta:
            continue
        positions = [resizing.source(term) for term in terms]
        tensor = old.tensors[name].detach()
        for dim, term in enumerate(terms):
            if resizing.touches([term]):
                tensor = tensor.index_select(dim, torch.as_tensor(positions[dim]))
        before = _rows(tensor, dims[0], units_of(terms[dims[0]], atom)[positions[dims[0]]])
        after = _rows(new.tensors[name].detach(), dims[0], units_of(new.axes.parameters[name][dims[0]], twin))
        places = {row: unit for unit, row in enumerate(before)}
        if len(places) == len(before) and places.keys() >= set(after):
            yield [places[row] for row in after]


def _rows(tensor: Tensor, dim: int, units: Positions) -> list[bytes]:
    """What a tensor holds for each unit of an axis, as bytes."""
    found: list[bytes] = []
    for unit in range(int(units.max()) + 1):
        part = tensor.index_select(dim, torch.as_tensor((units == unit).nonzero()[0]))
        found.append(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found

"""The judge of programs whose units stand in another order.

The order is not told by who made it, but found by the values: a unit is where all that it holds, sorted, is found
again. Put back into the old order, on axes that no operator tells units of apart and that neither inputs nor outputs
show, every tensor must be bit for bit what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphgrow.axes import Atom, Term
from graphgrow.certificate import Move, Proof, Test
from graphgrow.program import Program
from graphgrow.prove import Assignment
from graphgrow.rewrite.prune import Kept, reordered, seen
from graphgrow.rewrite.reading import same
from graphgrow.rewrite.units import number, units_of
from graphgrow.verify.align import Alignment
from graphgrow.verify.equivalence import FULL_SIZE, as_stored, verdict
from graphgrow.verify.moves import kept_moves


@dataclass(frozen=True)
class Reordered:
    """The old units of each axis in their new order, and the proof."""

    orders: Kept
    proof: Proof

    def test(self, old: Program, new: Program, seed: int) -> Test | None:
        """Both as they are; sums are rounded in another order. None where they are too large."""
        if old.size + new.size > FULL_SIZE:
            return None
        trial = as_stored(old, new, seed)
        found = verdict([trial], False, seed)
        why = f"largest deviation {trial.output64:.1e} in float64 (outputs), at {trial.sizes or 'fixed sizes'}"
        return found.model_copy(update={"why": why}) if found.holds else found

    def moves(self, old: Program, new: Program) -> Iterator[Move]:
        """Where the values of parameters went."""
        return kept_moves(old, new, self.orders, Alignment(), Assignment())


def prove_reordered(old: Program, new: Program) -> Reordered | None:
    """The order of units that makes `new` of `old`, if there is one; both have the same graph."""
    if old.graph != new.graph or not (old.has_weights and new.has_weights):
        return None
    changed = {name for name, tensor in old.tensors.items() if not same(tensor, new.tensors[name])}
    orders: dict[Atom, Sequence[int]] = {}
    for named in old.axes.named:
        atom, holders = named.atom, old.axes.holders.get(named.atom, ())
        told = atom in old.axes.positional or atom in old.axes.frozen or any(seen(old, atom))
        if not told and changed.intersection(holders):
            found = next(_orders(old, new, atom, [name for name in holders if name in changed]), None)
            if found is not None and found != sorted(found):
                orders[atom] = found
    back = reordered(old, orders)
    if not orders or not all(same(tensor, new.tensors[name]) for name, tensor in back.tensors.items()):
        return None
    names = {named.atom: named.name for named in old.axes.named}
    which = ", ".join(names[atom] for atom in list(orders)[:3]) + (f" and {len(orders) - 3} more" * (len(orders) > 3))
    why = f"the units of {which} in another order, by which no operator tells them apart; all values are the old ones"
    return Reordered(orders, Proof(holds=True, why=why))


def _orders(old: Program, new: Program, atom: Atom, names: Sequence[str]) -> Iterator[list[int]]:
    """The order of an axis, as each tensor tells it."""
    for name in names:
        terms = old.axes.parameters[name]
        dims = [dim for dim, term in enumerate(terms) if atom in term.atoms]
        if len(dims) == 1 and not old.tensors[name].is_complex():
            before, after = (_contents(one.tensors[name].detach(), terms, dims[0], atom) for one in (old, new))
            places = {row: unit for unit, row in enumerate(before)}
            if len(places) == len(before) and sorted(after) == sorted(before):
                yield [places[row] for row in after]


def _contents(tensor: Tensor, terms: Sequence[Term], dim: int, atom: Atom) -> list[bytes]:
    """What a tensor holds of each unit, sorted, as bytes."""
    units = torch.as_tensor(units_of(terms[dim], atom))
    parts = [tensor.index_select(dim, (units == unit).nonzero()[:, 0]) for unit in range(number(atom))]
    return [part.reshape(-1).sort().values.view(torch.uint8).numpy().tobytes() for part in parts]

"""The proof for two programs at hand: facts are read off the weights, then carried through the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphgrow.axes import Axes, Term
from graphgrow.certificate import Constraint, Fill, Proof
from graphgrow.program import Program
from graphgrow.prove import ANY, ZERO, Block, Prover
from graphgrow.rewrite import Resizing
from graphgrow.rewrite.blocks import kept_views, view_cells
from graphgrow.verify.align import Alignment


def prove(old: Program, new: Program, alignment: Alignment) -> tuple[Proof, frozenset[Block] | None]:
    """Whether every output of `new` equals that of `old` whatever the new blocks hold, but for those that are zero and
    needed; and these blocks (None without a proof)."""
    prover = Prover(old.axes, dict(alignment.sizes))
    if not alignment.grows:
        return Proof(holds=False, why="axes became smaller: nothing is promised"), None
    facts = read_facts(old, new, prover, alignment)
    if isinstance(facts, str):
        return Proof(holds=False, why=facts), None
    found = prover.derive(facts)
    if not found.holds:
        return Proof(holds=False, why=found.why), None
    constraints = [_constraint(old.axes, block, "zero", reason) for block, reason in found.needed.items()]
    constraints += [
        _constraint(old.axes, block, "one", "must be positive")
        for block in prover.blocks
        if block.parameter in prover.positive
    ]
    return Proof(holds=True, why=found.why, constraints=tuple(constraints)), frozenset(found.needed)


def _constraint(axes: Axes, block: Block, fill: Fill, reason: str) -> Constraint:
    names = {named.atom: named.name for named in axes.named}
    terms = axes.parameters[block.parameter]
    along = [names.get(atom, str(atom)) for dim in block.dims for atom in terms[dim].atoms]
    return Constraint(
        parameter=block.parameter, dim=block.dims[0], axis=along[0] if along else "", fill=fill, reason=reason
    )


def changed(old: Program, new: Program, alignment: Alignment) -> str:
    """The first tensor of `new` that is no growth of the old one, as text; empty when all are."""
    facts = read_facts(old, new, Prover(old.axes, dict(alignment.sizes)), alignment)
    return facts if isinstance(facts, str) else ""


def broken(old: Program, alignment: Alignment) -> str:
    """Whether other new values would have been a proof, as text: then a constraint is broken. Empty when none would."""
    provable = alignment.grows and Prover(old.axes, dict(alignment.sizes)).derive().holds
    return "new values are not zero where this growth needs them to be" if provable else ""


def read_facts(old: Program, new: Program, prover: Prover, alignment: Alignment) -> dict[Block, int] | str:
    """For every new block, zero or anything; or, as text, the parameter whose old block is not what it was, or whose
    new one holds what no number is (NaN, infinity, a variance that is not positive)."""
    without = [tensor.is_meta for tensor in (*old.tensors.values(), *new.tensors.values())]
    if any(without) and not all(without):
        return "some tensors have no values: nothing can be said of them"
    if any(without):
        return dict(prover.derive().assignment)
    resizing = Resizing(alignment.sizes, {})
    facts: dict[Block, int] = {}
    for name, tensor in new.tensors.items():
        before = old.tensors[name]
        terms = old.axes.parameters.get(name, ())
        if not resizing.touches(terms):
            if before is not tensor and not (before.is_meta or tensor.is_meta) and not same(before, tensor):
                return f"{name} has other values than before"
            continue
        for cell, dims, views in view_cells(tensor, terms, resizing, prover.layout):
            if dims:
                facts[Block(name, cell, dims)] = ZERO if all(_zero(view) for view, _ in views) else ANY
                if not all(_sound(view, name in prover.positive) for view, _ in views):
                    return f"new values of {name} that are not finite, or a variance that is not positive"
            elif not before.is_meta and not _kept(before, tensor, resizing, terms):
                return f"the old block of {name} has other values than before"
    return facts


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal bit for bit (NaN equals NaN)."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and bool(torch.equal(left, right) or _equal_nan(left, right))
    )


def _equal_nan(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.is_floating_point() and bool(((left == right) | (left.isnan() & right.isnan())).all())


def _zero(view: torch.Tensor) -> bool:
    return not bool(view.count_nonzero())


def _sound(view: torch.Tensor, positive: bool) -> bool:
    return not view.is_floating_point() or bool(view.isfinite().all() and (not positive or (view > 0).all()))


def _kept(old: torch.Tensor, new: torch.Tensor, resizing: Resizing, terms: Sequence[Term]) -> bool:
    return all(same(a, b) for a, b in kept_views(old, new, resizing, terms))

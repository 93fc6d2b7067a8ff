"""The proof for two programs at hand: facts are read off the weights, then carried through the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphgrow.axes import Axes, Term
from graphgrow.certificate import Constraint, Fill, Proof, Rescaled
from graphgrow.program import Program
from graphgrow.prove import ANY, POSITIVE, SAME, ZERO, Assignment, Block, Prover, free, kind, multiple, text
from graphgrow.prove.engine import Strategy
from graphgrow.prove.facts import ROUNDING
from graphgrow.prove.propose import STRATEGIES, chosen, propose
from graphgrow.rewrite import Resizing, literal
from graphgrow.rewrite.blocks import derived, view_cells
from graphgrow.verify.align import Alignment
from graphgrow.verify.explain import growth_steps

ULPS = 2  # a value that was multiplied is rounded once, its factor once


@dataclass(frozen=True)
class Proved:
    """A proof, and for which assignment of blocks and numbers it holds, made in the way of `strategy`; `read` is what
    the blocks of the new program do hold."""

    proof: Proof
    assignment: Assignment = field(default_factory=Assignment)
    strategy: Strategy = "zeros"
    read: Assignment = field(default_factory=Assignment)


def prove(old: Program, new: Program, alignment: Alignment) -> Proved:
    """Whether every output of `new` equals that of `old` whatever the free blocks hold."""
    if not alignment.grows:
        return Proved(Proof(holds=False, why="axes became smaller: nothing is promised"))
    prover = Prover(old.axes, dict(alignment.sizes), old.fixed)
    reader = Reader(old.axes, old.tensors, new.tensors, alignment)
    failures: list[str] = []
    for strategy in STRATEGIES:
        facts = reader.facts(proposed(old, prover, strategy, alignment))
        found = facts if isinstance(facts, str) else proved(old, prover, strategy, facts, alignment)
        if isinstance(found, Proved):
            return found
        failures.append(found)
    return Proved(Proof(holds=False, why=failures[0]))


def proposed(old: Program, prover: Prover, strategy: Strategy, alignment: Alignment) -> Assignment:
    """What one way to keep the function wants of all blocks."""
    return propose(prover, strategy, chosen(old.graph, alignment.factors))[0]


def proved(
    old: Program, prover: Prover, strategy: Strategy, facts: Mapping[Block, int], alignment: Alignment
) -> Proved | str:
    """The proof from facts that were read, or as text why there is none."""
    read = Assignment(dict(facts), alignment.factors)
    found = prover.derive(read)
    if not found.holds:
        return found.why
    rows = constraints(old.axes, found.assignment, found.needed)
    numbers, steps = _rescaled(old, alignment), growth_steps(prover)
    proof = Proof(holds=True, why=found.why, constraints=rows, numbers=numbers, steps=steps)
    return Proved(proof, found.assignment, strategy, read)


def _rescaled(old: Program, alignment: Alignment) -> tuple[Rescaled, ...]:
    found: list[Rescaled] = []
    for place, value in alignment.numbers.items():
        node = old.graph[place[0]]
        where = f"{node.op} ({node.source or node.name})"
        found.append(Rescaled(node=node.name, place=where, old=literal(old, place), new=value))
    return tuple(found)


def constraints(axes: Axes, assignment: Assignment, needed: Mapping[Block, str]) -> tuple[Constraint, ...]:
    """What blocks must hold, for people: new ones that are not free, old ones that are multiplied."""
    names = {named.atom: named.name for named in axes.named}
    rows: list[Constraint] = []
    for block, fact in assignment.blocks.items():
        if fact == ANY or (not block.dims and fact == SAME):
            continue
        terms = axes.parameters[block.parameter]
        along = [names.get(atom, str(atom)) for dim in block.dims for atom in terms[dim].atoms]
        rows.append(
            Constraint(
                parameter=block.parameter, dim=block.dims[0] if block.dims else -1, axis=along[0] if along else "",
                fill=_fill(block, fact), text=text(fact), reason=needed.get(block, ""),
            )
        )  # fmt: skip
    return tuple(rows)


def _fill(block: Block, fact: int) -> Fill:
    if not block.dims:
        return "scaled"
    fills: dict[str, Fill] = {"zero": "zero", "mean": "mean", "free": "positive"}
    return fills.get(kind(fact), "copy")


def changed(old: Program, new: Program, alignment: Alignment) -> str:
    """The first tensor of `new` that is no growth of the old one, as text; empty when all are."""
    facts = Reader(old.axes, old.tensors, new.tensors, alignment).facts(Assignment())
    return facts if isinstance(facts, str) else ""


def broken(old: Program, alignment: Alignment) -> str:
    """Whether other new values would have been a proof, as text: then a constraint is broken. Empty when none would."""
    provable = alignment.grows and Prover(old.axes, dict(alignment.sizes), old.fixed).derive().holds
    return "new values are not zero where this growth needs them to be" if provable else ""


class Reader:
    """Reads what the blocks of a grown program hold."""

    def __init__(self, axes: Axes, old: Mapping[str, Tensor], new: Mapping[str, Tensor], alignment: Alignment) -> None:
        self.terms, self.old, self.new, self.resizing = axes.parameters, old, new, Resizing(alignment.sizes)
        self.known: dict[tuple[Block, int], bool] = {}

    def facts(self, proposal: Assignment) -> dict[Block, int] | str:
        """For every block a fact that its values are, if they are what is proposed that; or, as text, the parameter
        whose old block is not what it was, or whose new one holds what no number is (NaN, infinity)."""
        without = [tensor.is_meta for tensor in (*self.old.values(), *self.new.values())]
        if any(without):
            return dict(proposal.blocks) if all(without) else "some tensors have no values: nothing can be said of them"
        touched = {block.parameter for block in proposal.blocks}
        found: dict[Block, int] = {}
        for name, tensor in self.new.items():
            before = self.old[name]
            terms = self.terms.get(name, ())
            if not self.resizing.touches(terms) and name not in touched:
                if before is not tensor and not same(before, tensor):
                    return f"{name} has other values than before"
                continue
            for block, views in self._blocks(name, terms):
                fact = self._fact(block, views, proposal.blocks.get(block, SAME if not block.dims else ZERO))
                if isinstance(fact, str):
                    return fact
                found[block] = fact
        return found

    def _blocks(self, name: str, terms: Sequence[Term]) -> Iterator[tuple[Block, list[tuple[Tensor, list[slice]]]]]:
        for cell, dims, views in view_cells(self.new[name], terms, self.resizing, self.resizing.layout):
            yield Block(name, cell, dims), views

    def _fact(self, block: Block, views: Sequence[tuple[Tensor, list[slice]]], proposed: int) -> int | str:
        if block.dims and not all(_finite(view) for view, _ in views):
            return f"new values of {block.parameter} that are not finite"
        if self._holds(block, views, proposed):
            return proposed
        if not block.dims:
            if self._holds(block, views, SAME):
                return SAME
            return f"the old block of {block.parameter} has other values than before"
        if self._holds(block, views, ZERO):
            return ZERO
        return POSITIVE if all(_positive(view) for view, _ in views) else ANY

    def _holds(self, block: Block, views: Sequence[tuple[Tensor, list[slice]]], fact: int) -> bool:
        key = (block, fact)
        if key not in self.known:
            self.known[key] = all(self._is(block, view, at, fact) for view, at in views)
        return self.known[key]

    def _is(self, block: Block, view: Tensor, at: list[slice], fact: int) -> bool:
        if free(fact):
            return False
        if fact == ZERO:
            return not bool(view.count_nonzero())
        old = self.old[block.parameter]
        terms = self.terms[block.parameter]
        if not block.dims and fact == SAME:
            return same(_old_part(old, terms, self.resizing, at), view)
        expected = derived(old, terms, self.resizing, fact, at, block.dims)
        if not view.is_floating_point():
            return bool(torch.equal(expected.to(view.dtype), view))
        allowed = expected.abs() + abs(multiple(fact).shift) + _size(old, fact)
        error = (view.double() - expected.double()).abs()
        unit = torch.finfo(view.dtype).eps + ROUNDING  # factors are known no better than this
        return bool((error <= ULPS * unit * allowed.double()).all())


def _size(old: Tensor, fact: int) -> float:
    """How large the values are that a mean is made of: it is rounded by theirs."""
    return float(old.abs().max()) if kind(fact) == "mean" and old.numel() else 0.0


def _old_part(old: Tensor, terms: Sequence[Term], resizing: Resizing, at: Sequence[slice]) -> Tensor:
    """The old units that stand at a place of the new tensor."""
    for dim, (term, part) in enumerate(zip(terms, at, strict=True)):
        positions = resizing.copied(term)[part]
        old = old.narrow(dim, int(positions[0]), len(positions))
    return old


def same(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit (NaN equals NaN)."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and bool(torch.equal(left, right) or _equal_nan(left, right))
    )


def _equal_nan(left: Tensor, right: Tensor) -> bool:
    return left.is_floating_point() and bool(((left == right) | (left.isnan() & right.isnan())).all())


def _finite(view: Tensor) -> bool:
    return not view.is_floating_point() or bool(view.isfinite().all())


def _positive(view: Tensor) -> bool:
    return view.is_floating_point() and bool((view > 0).all())

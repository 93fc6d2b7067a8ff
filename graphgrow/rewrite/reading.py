"""What the blocks of a grown program hold, read off its values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import torch
from torch import Tensor

from graphgrow.axes import Atom, Axes, Term
from graphgrow.prove import ANY, POSITIVE, SAME, ZERO, Assignment, Block, free, kind, multiple
from graphgrow.prove.facts import ROUNDING, scaled
from graphgrow.rewrite.blocks import Place, derived, view_cells
from graphgrow.rewrite.shares import groups
from graphgrow.rewrite.units import Resizing

ULPS = 2  # a value that was multiplied is rounded once, its factor once


class Reader:
    """Reads what the blocks of a program hold that is a growth of another one to these sizes."""

    def __init__(
        self,
        axes: Axes,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        sizes: Mapping[Atom, int],
        numbers: Iterable[float] = (),
    ) -> None:
        """`numbers`: by which those in the graph were multiplied. Weights may make up for them."""
        self.terms, self.old, self.new, self.resizing = axes.parameters, old, new, Resizing(sizes)
        self.factors = list(_factors(set(numbers)))
        self.known: dict[tuple[Block, int], bool] = {}
        self.held: dict[tuple[str, Place, int], bool] = {}  # of shares, by parameter and cell

    def facts(self, proposal: Assignment) -> dict[Block, int] | str:
        """For every block a fact that its values are, if they are what is proposed that; or, as text, the parameter
        whose old block is not what it was, or whose new one holds what no number is (NaN, infinity)."""
        without = [tensor.is_meta for tensor in (*self.old.values(), *self.new.values())]
        if any(without):
            return dict(proposal.blocks) if all(without) else "some tensors have no values: nothing can be said of them"
        touched = {block.parameter for block in proposal.blocks}
        found: dict[Block, int] = {}
        self._propose_shares(proposal)
        for name, tensor in self.new.items():
            before = self.old[name]
            terms = self.terms.get(name, ())
            if not self.resizing.touches(terms) and name not in touched:
                if before is tensor or same(before, tensor):
                    continue
                if not self.factors:
                    return f"{name} has other values than before"
            for block, views in self._blocks(name, terms):
                fact = self._fact(block, views, proposal.blocks.get(block, SAME if not block.dims else ZERO))
                if isinstance(fact, str):
                    return fact
                found[block] = fact
        return found

    def _propose_shares(self, proposal: Assignment) -> None:
        """Look at the shares that are proposed, all of a group together."""
        shares: dict[str, dict[Place, int]] = {}
        for block, fact in proposal.blocks.items():
            if kind(fact) == "share":
                shares.setdefault(block.parameter, {})[block.cell] = fact
        for name, facts in shares.items():
            terms = self.terms[name]
            for group in groups(terms, self.resizing, facts):
                holds = group.holds(self.old[name], self.new[name])
                self.held.update({(name, cell, group.fact): holds for cell in group.cells})

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
            if found := next((f for f in self._multiples(block, views) if self._holds(block, views, f)), None):
                return found
            return f"the old block of {block.parameter} has other values than before"
        if self._holds(block, views, ZERO):
            return ZERO
        return POSITIVE if all(_positive(view) for view, _ in views) else ANY

    def _multiples(self, block: Block, views: Sequence[tuple[Tensor, list[slice]]]) -> Iterator[int]:
        """The multiples of the old values that new ones could be, by the largest of them."""
        view, at = views[0]
        old = _old_part(self.old[block.parameter], self.terms[block.parameter], self.resizing, at).detach().reshape(-1)
        if old.is_floating_point() and old.numel():
            place = int(old.abs().argmax())
            ratio = float(view.detach().reshape(-1)[place]) / (float(old[place]) or 1.0)
            unit = 2 * ULPS * torch.finfo(old.dtype).eps
            yield from (scaled(factor) for factor in self.factors if abs(ratio - factor) <= unit * abs(factor))

    def _holds(self, block: Block, views: Sequence[tuple[Tensor, list[slice]]], fact: int) -> bool:
        key = (block, fact)
        if key not in self.known:
            self.known[key] = all(self._is(block, view, at, fact) for view, at in views)
        return self.known[key]

    def _is(self, block: Block, view: Tensor, at: list[slice], fact: int) -> bool:
        if free(fact) or kind(fact) == "share":
            return self.held.get((block.parameter, block.cell, fact), False)
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


def _factors(numbers: Set[float]) -> Iterator[float]:
    """What makes up for one number, for half of one, or for two."""
    powers = {number**sign for number in numbers for sign in (1, -1) if number}
    yield from sorted(powers)
    yield from sorted(abs(power) ** 0.5 for power in powers)
    yield from sorted({first * second for first in powers for second in powers})


def _size(old: Tensor, fact: int) -> float:
    """How large the values are that a mean is made of: it is rounded by theirs."""
    return float(old.detach().abs().max()) if kind(fact) == "mean" and old.numel() else 0.0


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

"""Shares: blocks of a weight that add up, along dimensions that are summed over, to a multiple of the old weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphgrow.axes import Term
from graphgrow.prove import kind, multiple
from graphgrow.prove.facts import ROUNDING
from graphgrow.rewrite.units import Positions, Resizing

Place = tuple[int, ...]
_BUFFER = 2**20  # values that are added up at a time


@dataclass(frozen=True)
class Share:
    """One dimension along which shares add up: for each its unit among those of `Group.origins`, and whether it is that
    unit itself and not a copy."""

    units: Positions
    old: NDArray[np.bool_]

    @property
    def counts(self) -> Positions:
        """How many shares each unit has."""
        return np.bincount(self.units)


@dataclass(frozen=True)
class Group:
    """All shares of one old cell: where they are in the new tensor, and the old positions that they come from,
    dimension by dimension; along those that are summed over every old unit once."""

    head: Place
    cells: tuple[Place, ...]  # `head`, and those of its copies
    fact: int
    there: tuple[Positions, ...]
    origins: tuple[Positions, ...]
    along: Mapping[int, Share]

    @property
    def scale(self) -> float:
        return multiple(self.fact).scale

    def fill(self, old: Tensor, new: Tensor, noise: Callable[[Tensor], None]) -> None:
        """Even shares, and noise as large relative to them as it is made, which cancels. What is left over when the
        copies are rounded goes to the old units: then stored shares add up but for one rounding. Differentiable by
        `old`."""
        for part in self.parts():
            whole, counts = part.whole(old), part.counts()
            drawn = torch.zeros([len(positions) for positions in part.there], dtype=torch.float64)
            noise(drawn)
            drawn = (drawn - part.spread(part.added(drawn) / counts)) * self.scale
            copies = part.spread(whole / counts) + drawn / part.spread(counts)
            copies = copies.to(new.dtype).double()
            own = part.own()
            rest = part.spread(whole - part.added(copies.masked_fill(own, 0.0)))
            new[_at(part.there)] = torch.where(own, rest, copies).to(new.dtype)

    def holds(self, old: Tensor, new: Tensor) -> bool:
        """Whether shares add up. Rounding allowed: of each share, and of the factor that it was made with, by half a
        unit in its last place; of each addition here; of a factor of the sum other than one as far as it is known."""
        if not new.is_floating_point():
            return False
        limits, most = torch.finfo(new.dtype), prod(int(share.counts.max()) for share in self.along.values())
        unit = limits.eps + most * torch.finfo(torch.float64).eps
        for part in self.parts():
            whole, shares = part.whole(old.detach()), new.detach()[_at(part.there)].double()
            error = (part.added(shares) - whole).abs()
            size = part.added(shares.abs())
            allowed = unit * (size + most * limits.smallest_normal)
            allowed += ROUNDING * whole.abs() if self.scale != 1 else 0.0
            if not bool((size.isfinite() & (error <= allowed)).all()):
                return False
        return True

    def total(self, new: Tensor, old: Tensor) -> None:
        """Write what the shares add up to, divided by its factor, where they come from."""
        for part in self.parts():
            old[_at(part.origins)] = (part.added(new[_at(part.there)].double()) / self.scale).to(old.dtype)

    def parts(self) -> Iterator[Group]:
        """The same a few places at a time of a dimension that is not summed over, so that little lies beside it."""
        dim = next((dim for dim in range(len(self.there)) if dim not in self.along), None)
        if dim is None:
            yield self
            return
        count = len(self.there[dim])
        size = max(1, _BUFFER * count // max(1, prod(map(len, self.there))))
        for start in range(0, count, size):
            there, origins = (
                tuple(at[start : start + size] if d == dim else at for d, at in enumerate(positions))
                for positions in (self.there, self.origins)
            )
            yield replace(self, there=there, origins=origins)

    def whole(self, old: Tensor) -> Tensor:
        """What shares are to add up to."""
        return old[_at(self.origins)].double() * self.scale

    def added(self, values: Tensor) -> Tensor:
        """Sums over the shares of each old unit."""
        for dim, share in self.along.items():
            shape = list(values.shape)
            shape[dim] = len(self.origins[dim])
            units = torch.as_tensor(share.units)
            values = torch.zeros(shape, dtype=values.dtype).index_add(dim, units, values)
        return values

    def spread(self, values: Tensor) -> Tensor:
        """For every share what its old unit has."""
        for dim, share in self.along.items():
            values = values.index_select(dim, torch.as_tensor(share.units))
        return values

    def counts(self) -> Tensor:
        """How many shares each old unit has, broadcast along the other dimensions."""
        found = torch.ones([1] * len(self.there), dtype=torch.float64)
        for dim, share in self.along.items():
            found = found * _along(torch.as_tensor(share.counts), dim, len(self.there))
        return found

    def own(self) -> Tensor:
        """Which shares are those of old units themselves."""
        found = torch.ones([1] * len(self.there), dtype=torch.bool)
        for dim, share in self.along.items():
            found = found & _along(torch.as_tensor(share.old), dim, len(self.there))
        return found


def groups(terms: Sequence[Term], resizing: Resizing, facts: Mapping[Place, int]) -> Iterator[Group]:
    """The shares in a tensor."""
    layout = resizing.layout
    heads = {cell: multiple(fact) for cell, fact in facts.items() if kind(fact) == "share"}
    cells = [resizing.cells(layout, term) for term in terms] if heads else []
    copied = [resizing.copied(term) for term in terms] if heads else []
    for head, found in heads.items():
        if not all(layout.cells(terms[dim])[head[dim]].old for dim in found.along):
            continue
        there, origins, along = list[Positions](), list[Positions](), dict[int, Share]()
        inside = list[list[int]]()
        for dim, term in enumerate(terms):
            mine = [head[dim]]
            if dim in found.along:
                mine = [index for index, cell in enumerate(layout.cells(term)) if cell.origin == head[dim]]
            inside.append(mine)
            there.append(np.flatnonzero(np.isin(cells[dim], mine)))
            from_ = copied[dim][there[-1]]
            if dim in found.along:
                units, numbers = np.unique(from_, return_inverse=True)
                along[dim] = Share(numbers, cells[dim][there[-1]] == head[dim])
                from_ = units
            origins.append(from_)
        yield Group(head, tuple(product(*inside)), facts[head], tuple(there), tuple(origins), along)


def _at(positions: Sequence[Positions]) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(found) for found in np.ix_(*positions))


def _along(values: Tensor, dim: int, rank: int) -> Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(rank)])

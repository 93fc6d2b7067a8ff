"""Orders of columns under which N:M keeps more: search by swaps.

Let column a leave its group and b join it. In each row the N largest of what is then there add up to those of the
group without a, plus max(0, x - t): x is what b holds there, t the N-th largest of what a leaves behind. Over all rows
that is half of |x - t| + x - t, a distance between columns, so all swaps of all pairs are weighed by one table of
distances, without sorting a group for each. Swaps of groups that have no part in each other add up, so many are made
at a time; only columns of changed groups are weighed again. Where no swap gains, some groups are mixed at random, and
the best order that was met is kept (as in Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphgrow.axes import Atom
from graphgrow.patterns import Pattern
from graphgrow.program import Program
from graphgrow.rewrite.masks import Weight
from graphgrow.rewrite.units import Positions, units_of

_ROWS = 1024  # of a matrix that are looked at: more are sampled
_SHAKEN = 4  # pairs of groups that are mixed at random where no swap gains, at least


def kept(columns: Tensor, pattern: Pattern) -> float:
    """How much magnitude N:M along the rows (rows, columns) keeps."""
    total = 0.0
    step = max(1, 2**22 // columns.shape[1])
    for start in range(0, len(columns), step):
        groups = columns[start : start + step].abs().view(-1, columns.shape[1] // pattern.group, pattern.group)
        total += float(groups.topk(pattern.kept, 2, sorted=False).values.double().sum())
    return total


def matrix(program: Program, weights: Sequence[Weight], atom: Atom, pattern: Pattern) -> Tensor | None:
    """All that is summed over an axis in groups that its order makes, (rows, units); None where there is nothing."""
    found: list[Tensor] = []
    for weight in weights:
        terms = program.axes.parameters[weight.name]
        if weight.inputs is None or atom not in terms[weight.inputs].atoms:
            continue
        units = units_of(terms[weight.inputs], atom)
        if len(units) % pattern.group or not _moves(units, pattern.group):
            continue
        values = program.tensors[weight.name].detach().movedim(weight.inputs, -1)
        whole = values[..., torch.as_tensor(units >= 0)].float()
        found.append(whole.reshape(-1, int(units.max()) + 1))
    return torch.cat(found) if found else None


def _moves(units: Positions, size: int) -> bool:
    """Whether every group holds units of the axis that follow each other, or none of them."""
    groups = units.reshape(-1, size)
    inside = (groups[:, :1] % size == 0) & (np.diff(groups, axis=1) == 1).all(1, keepdims=True)
    return bool((inside | (groups < 0).all(1, keepdims=True)).all())


def search(columns: Tensor, pattern: Pattern, rounds: int, seed: int = 0) -> NDArray[np.int64]:
    """An order of columns (rows, columns) under which N:M keeps more magnitude; the one there is, if none is found.
    `rounds` is how often it shakes the order where no swap gains any more."""
    generator = torch.Generator().manual_seed(seed)
    values = columns.abs().float()
    if len(values) > _ROWS:
        values = values[torch.randperm(len(values), generator=generator)[:_ROWS]]
    state = _Search(values / (values.mean() or 1.0), pattern.kept, pattern.group)
    state.climb()
    best = state.order.clone(), state.total
    for _ in range(rounds):
        state.shake(generator)
        state.climb()
        if state.total > best[1]:
            best = state.order.clone(), state.total
        elif state.total < best[1]:
            state.restore(best[0])
    order = best[0].reshape(-1)
    if kept(columns[:, order], pattern) <= kept(columns, pattern):
        order = torch.arange(columns.shape[1])
    return order.numpy()


class _Search:
    """An order of columns, as groups of them, and what every swap would gain.

    `joined[a, b]` is what the group of a keeps when b takes the place of a."""

    def __init__(self, values: Tensor, kept: int, size: int) -> None:
        self.values, self.kept, self.size = values.t().contiguous(), kept, size  # (columns, rows)
        self.sums = self.values.sum(1)
        self.order = torch.arange(len(self.values)).view(-1, size)
        self.group = torch.empty(len(self.values), dtype=torch.int64)
        self.now = torch.empty(len(self.order))
        self.joined = torch.empty(len(self.values), len(self.values))
        self.weigh(torch.arange(len(self.order)))

    @property
    def total(self) -> float:
        return float(self.now.double().sum())

    def weigh(self, groups: Tensor) -> None:
        """Weigh the columns of some groups anew."""
        step = max(1, 2**22 // (self.size * self.values.shape[1]))
        for start in range(0, len(groups), step):
            some = groups[start : start + step]
            columns = self.order[some]  # (groups, size)
            self.group[columns] = some[:, None].expand(columns.shape)
            held = self.values[columns]  # (groups, size, rows)
            self.now[some] = held.topk(self.kept, 1, sorted=False).values.sum((1, 2))
            for index in range(self.size):
                rest = held[:, [other for other in range(self.size) if other != index]]
                largest = rest.topk(self.kept, 1)
                bound = largest.values[:, -1].contiguous()  # (groups, rows)
                gained = torch.cdist(bound, self.values, p=1) + self.sums - bound.sum(1, keepdim=True)
                self.joined[columns[:, index]] = gained / 2 + largest.values.sum((1, 2))[:, None]

    def climb(self) -> None:
        """Swap columns while that gains."""
        while True:
            pairs = list(self._swaps())
            if not pairs:
                return
            self.swap(pairs)

    def _swaps(self) -> Iterator[tuple[int, int]]:
        """The best swap of each pair of groups that gains, the largest first, each group once."""
        now = self.now[self.group]
        gain = self.joined + self.joined.t() - now[:, None] - now
        count = len(self.order)
        by_group = gain[self.order.view(-1)][:, self.order.view(-1)].view(count, self.size, count, self.size)
        best, where = by_group.permute(0, 2, 1, 3).reshape(count, count, -1).max(2)
        best = best.triu(1)
        least = 1e-5 * max(1.0, self.total / count)
        used = torch.zeros(count, dtype=torch.bool)
        first, second = (best > least).nonzero(as_tuple=True)
        for index in map(int, torch.sort(best[first, second], descending=True, stable=True).indices):
            a, b = int(first[index]), int(second[index])
            if not used[a] and not used[b]:
                used[[a, b]] = True
                place = int(where[a, b])
                yield int(self.order[a, place // self.size]), int(self.order[b, place % self.size])

    def swap(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Swap columns of groups that have no part in each other."""
        changed: list[int] = []
        for left, right in pairs:
            a, b = int(self.group[left]), int(self.group[right])
            self.order[a][self.order[a] == left] = -1
            self.order[b][self.order[b] == right] = left
            self.order[a][self.order[a] == -1] = right
            changed += [a, b]
        self.weigh(torch.tensor(sorted(changed)))

    def shake(self, generator: torch.Generator) -> None:
        """Mix the columns of some pairs of groups."""
        pairs = min(len(self.order) // 2, max(_SHAKEN, len(self.order) // 16))
        chosen = torch.randperm(len(self.order), generator=generator)[: 2 * pairs].view(pairs, 2)
        for pair in chosen:
            mixed = torch.randperm(2 * self.size, generator=generator)
            self.order[pair] = self.order[pair].reshape(-1)[mixed].view(2, self.size)
        self.weigh(chosen.reshape(-1).sort().values)

    def restore(self, order: Tensor) -> None:
        """Go back to an order that was met."""
        changed = (self.order != order).any(1).nonzero()[:, 0]
        self.order = order.clone()
        self.weigh(changed)

"""Two factors of a matrix: by its singular values, all of them or the largest found by random projections; weighted by
what the matrix is applied to; and how a number of parameters is shared out between matrices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

Start = Literal["spectral", "ones", "random"]
OVERSAMPLING, ITERATIONS = 10, 1  # Halko, Martinsson & Tropp (arXiv 0909.4061), section 4.5
_linalg = cast(Any, torch.linalg)  # its functions have no types
_RIDGE = 1e-6  # of the mean of a moment's diagonal: directions that no data has shown


@dataclass(frozen=True)
class Spectrum:
    """A matrix (m, n) as left diag(values) right, largest values first; `energy` is the sum of all squared values."""

    left: Tensor  # (m, k)
    values: Tensor  # (k,)
    right: Tensor  # (k, n)
    energy: float

    def factors(self, rank: int, start: Start) -> tuple[Tensor, Tensor]:
        """(m, r) and (r, n): each takes the root of the singular values; `ones` gives all directions the root mean
        square of those that are kept."""
        values = self.values[:rank]
        if start == "ones":
            values = values.square().mean().sqrt().expand(rank)
        root = values.sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def lost(self, rank: int) -> float:
        """The norm of what is cut off, over that of the matrix."""
        kept = float(self.values[:rank].double().square().sum())
        return max(0.0, 1 - kept / (self.energy or 1.0)) ** 0.5

    def rank(self, energy: float, eps: float) -> int:
        """The smallest rank that keeps this share of the squared singular values (one more than there are where these
        don't); for all, the number of values that are not rounding, at
        the weights' `eps`."""
        squares = self.values.double().square()
        if energy >= 1:
            smallest = self.values[0] * eps * max(len(self.left), self.right.shape[1])
            return max(1, int((self.values > smallest).sum()))
        short = squares.cumsum(0) < energy * self.energy
        return int(short.sum()) + 1


class Weighting(NamedTuple):
    """Which side of a matrix meets data (0: its rows), and the sum of the outer products of the data."""

    side: int
    moment: Tensor


def decompose(matrix: Tensor, most: int | None = None, weighting: Weighting | None = None) -> Spectrum:
    """The singular value decomposition, of which the first `most` values are kept. Weighted, that of the matrix times
    the root of the moment, with the root taken out again (arXiv 2403.07378): cut off anywhere, what the matrix makes of
    the data is as near as it can be."""
    if weighting is None:
        left, values, right = _svd(_precise(matrix))
        energy = float(values.double().square().sum())
        return Spectrum(left[:, :most].clone(), values[:most].clone(), right[:most].clone(), energy)
    root, back = _roots(weighting.moment.double())
    whole = matrix.double()
    found = decompose(root @ whole if weighting.side == 0 else whole @ root, most)
    if weighting.side == 0:
        return Spectrum(back @ found.left, found.values, found.right, found.energy)
    return Spectrum(found.left, found.values, found.right @ back, found.energy)


def refined(matrix: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors whose product is the matrix but for the rounding of its terms, from ones that are that near already."""
    left = left + (matrix - left @ right) @ _linalg.pinv(right)
    return left, right + _linalg.pinv(left) @ (matrix - left @ right)


def sketch(matrix: Tensor, rank: int, seed: int, name: str) -> Spectrum:
    """The `rank` largest singular values, nearly, by random projections with oversampling and a power iteration. What
    its factors are off by is known: the matrix is projected on their rows, so that squared norms add up."""
    tall = _precise(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    rows = _gaussian((tall.shape[1], min(rank + OVERSAMPLING, tall.shape[1])), seed, name).to(tall)
    for _ in range(ITERATIONS):
        rows = _orthonormal(tall.T @ (tall @ rows))  # (n, r + p)
    there = tall @ rows
    found: tuple[Tensor, Tensor] = _linalg.eigh(there.T @ there)  # smallest first
    turn = found[1].flip(1)[:, :rank]
    scaled, rows = there @ turn, rows @ turn
    values = scaled.square().sum(0).sqrt()
    left, energy = scaled / values.clamp_min(torch.finfo(tall.dtype).tiny), float(_linalg.vector_norm(tall)) ** 2
    return (
        Spectrum(left, values, rows.T, energy) if tall.shape == matrix.shape else Spectrum(rows, values, left.T, energy)
    )


def drawn(matrix: Tensor, rank: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Gaussian factors (m, r) and (r, n) whose product has the deviation that the matrix has."""
    deviation = (float(matrix.double().std()) / rank**0.5) ** 0.5
    left = _gaussian((matrix.shape[0], rank), seed, f"{name}:left") * deviation
    return left, _gaussian((rank, matrix.shape[1]), seed, f"{name}:right") * deviation


def _precise(matrix: Tensor) -> Tensor:
    """In the type of the computation: float32 at the least."""
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a tall matrix, which takes half the time that its transpose does."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    found: tuple[Tensor, Tensor, Tensor] = _linalg.svd(tall, full_matrices=False)
    left, values, right = found
    return found if tall is matrix else (right.T, values, left.T)


def _orthonormal(matrix: Tensor) -> Tensor:
    """A basis of what the columns span."""
    found: tuple[Tensor, Tensor] = _linalg.qr(matrix)
    return found[0]


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a moment and its inverse, of a mean square of one."""
    mean = moment.diagonal().mean()
    scaled = moment / mean if mean > 0 else moment
    found: tuple[Tensor, Tensor] = _linalg.eigh(scaled)
    values, vectors = found
    root = (values.clamp_min(0) + _RIDGE).sqrt()
    return vectors * root @ vectors.T, vectors / root @ vectors.T


def _gaussian(shape: Sequence[int], seed: int, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    return torch.randn(*shape, generator=generator)


def allocate(spectra: Mapping[str, Spectrum], budget: int) -> dict[str, int | None] | int:
    """Ranks for matrices whose factors together hold at most `budget` numbers, None for one that stays whole; or the
    smallest budget, where this one is below. Each rank goes where it keeps the largest share of a matrix' energy for
    its numbers, until the next would be too many; whole matrices are one step from the rank from which on that step is
    worth more than one rank more. Each spectrum has the values that pay: with one more the whole is no larger."""
    costs = {name: len(found.left) + found.right.shape[1] for name, found in spectra.items()}
    left = budget - sum(costs.values())
    if left < 0:
        return budget - left
    ranks: dict[str, int | None] = dict.fromkeys(spectra, 1)
    names, steps, later = list(spectra), list[_Step](), list[_Step]()
    for index, name in enumerate(names):
        found, cost = spectra[name], costs[name]
        size = len(found.left) * found.right.shape[1]
        share = found.values.double().square().numpy() / (found.energy or 1.0)
        kept = np.cumsum(share)
        ones = np.arange(1, len(share) + 1)
        whole = (1 - kept) / (size - ones * cost)  # for every rank, what the step to the whole matrix is worth
        leaps = np.append(whole[:-1] >= share[1:] / cost, True)
        leap = int(np.argmax(leaps))  # the first index (rank - 1) from which to leap
        worth = share / cost
        steps += [_Step(worth[rank], index, rank + 1, cost) for rank in range(1, leap + 1)]
        later += [_Step(worth[rank], index, rank + 1, cost) for rank in range(leap + 1, len(share))]
        steps.append(_Step(float(whole[leap]), index, None, size - (leap + 1) * cost))
    closed = set[int]()
    for step in (*sorted(steps, key=_worth), *sorted(later, key=_worth)):
        done = ranks[names[step.matrix]]
        if step.rank is None:
            if step.matrix not in closed and step.cost <= left:
                ranks[names[step.matrix]], left = None, left - step.cost
        elif done is not None and step.rank == done + 1 and step.matrix not in closed:
            if step.cost <= left:
                ranks[names[step.matrix]], left = step.rank, left - step.cost
            else:
                closed.add(step.matrix)
    return ranks


class _Step(NamedTuple):
    """From one rank of a matrix to the next (None: the whole matrix), what it is worth and costs."""

    worth: float
    matrix: int
    rank: int | None
    cost: int


def _worth(step: _Step) -> tuple[float, int, int]:
    return -step.worth, step.matrix, step.rank or 2**62

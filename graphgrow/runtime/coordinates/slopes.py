"""What a coordinate check found: the sizes of activations, and how they follow width and density.

The slope of the logarithm of an activation's size over that of width, and over that of sparsity (1/density), is fitted
with an intercept for every seed and every size of the other kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from statistics import fmean
from typing import Literal

from graphgrow.errors import OptionError
from graphgrow.rewrite.parameterize import Optimizer

Scheme = Literal["sp", "mup", "supar"]
Verdict = Literal["stable", "grows", "vanishes", "unclear"]
Over = Literal["width", "sparsity"]
Row = tuple[object, float, float]  # a group, x, the size of an activation
# 97.5 % points of Student's t by degrees of freedom; the last is for all larger ones, for which it is wide enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_LEAST = 1e-300  # a size that has a logarithm


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run: `base` is the width of the base model; `tolerance` the largest slope that counts as none: 0.2 is a
    factor of 2 over a range of 32."""

    widths: tuple[int, ...]
    densities: tuple[float, ...] = (1.0,)
    schemes: tuple[Scheme, ...] = ("supar",)
    base: int
    steps: int = 10
    seeds: int = 5
    lr: float = 1e-3
    optimizer: Optimizer = "adamw"
    batch: int = 8
    length: int = 64
    tolerance: float = 0.2

    def __post_init__(self) -> None:
        if min(len(set(self.widths)), len(set(self.densities))) < 1 or max(len(self.widths), len(self.densities)) < 2:
            raise OptionError(found="one width and one density", fix="give several of one of them to compare")
        if not all(0 < density <= 1 for density in self.densities):
            raise OptionError(found=f"densities {self.densities}", fix="give densities above 0 and at most 1")
        if min((*self.widths, self.base, self.steps, self.batch, self.length)) < 1:
            raise OptionError(found="a width, a number of steps or a size below 1", fix="give positive numbers")
        if self.seeds < 2:
            raise OptionError(found=f"{self.seeds} seeds, which give no interval", fix="give at least 2")
        if not (self.lr > 0 and self.tolerance > 0):
            raise OptionError(found=f"lr={self.lr}, tolerance={self.tolerance}", fix="give positive numbers")

    @property
    def runs(self) -> int:
        return len(self.schemes) * len(self.widths) * len(self.densities) * self.seeds


@dataclass(frozen=True)
class Point:
    """The mean absolute value of one activation after training."""

    scheme: Scheme
    activation: str
    width: int
    density: float
    seed: int
    size: float


@dataclass(frozen=True)
class Slope:
    """How one activation follows width or 1/density: the exponent, its 95 % interval, and what that says."""

    scheme: Scheme
    activation: str
    over: Over
    value: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Coordinates:
    """All points of a check, and their slopes."""

    settings: Settings
    points: tuple[Point, ...]

    @cached_property
    def slopes(self) -> tuple[Slope, ...]:
        found: list[Slope] = []
        for scheme in self.settings.schemes:
            for activation in dict.fromkeys(point.activation for point in self.points):
                mine = [one for one in self.points if (one.scheme, one.activation) == (scheme, activation)]
                over_width = [((one.density, one.seed), float(one.width), one.size) for one in mine]
                over_sparsity = [((one.width, one.seed), 1 / one.density, one.size) for one in mine]
                found += self._slope(scheme, activation, "width", over_width)
                found += self._slope(scheme, activation, "sparsity", over_sparsity)
        return tuple(found)

    def _slope(self, scheme: Scheme, activation: str, over: Over, rows: Sequence[Row]) -> Iterator[Slope]:
        if len({x for _, x, _ in rows}) > 1:
            value, half = fitted(rows)
            low, high = value - half, value + half
            yield Slope(scheme, activation, over, value, low, high, verdict(low, high, self.settings.tolerance))

    def verdict(self, scheme: Scheme) -> Verdict:
        """Stable where every slope is; else what the first that is not does, those that are sure before others."""
        found = [slope.verdict for slope in self.slopes if slope.scheme == scheme]
        worst: tuple[Verdict, ...] = ("vanishes", "grows", "unclear", "stable")
        return worst[min((worst.index(one) for one in found), default=-1)]

    @property
    def stable(self) -> bool:
        return all(self.verdict(scheme) == "stable" for scheme in self.settings.schemes)


def verdict(low: float, high: float, tolerance: float) -> Verdict:
    """What an interval of a slope says: stable if all of it is within the tolerance."""
    if -tolerance <= low and high <= tolerance:
        return "stable"
    return "grows" if low > tolerance else "vanishes" if high < -tolerance else "unclear"


def fitted(rows: Sequence[Row]) -> tuple[float, float]:
    """The slope of log size over log x, each group with an intercept of its own (least squares), and half its 95 %
    interval by Student's t."""
    pairs: list[tuple[float, float]] = []  # from the mean of the group
    groups = {row[0] for row in rows}
    for group in groups:
        own = [(log(x), log(max(size, _LEAST))) for one, x, size in rows if one == group]
        x_mean, y_mean = fmean(x for x, _ in own), fmean(y for _, y in own)
        pairs += [(x - x_mean, y - y_mean) for x, y in own]
    below = sum(x * x for x, _ in pairs)
    slope = sum(x * y for x, y in pairs) / below
    freedom = len(rows) - len(groups) - 1
    if freedom < 1:
        return slope, float("inf")
    error = sqrt(sum((y - slope * x) ** 2 for x, y in pairs) / freedom / below)
    return slope, _T[min(freedom, len(_T)) - 1] * error

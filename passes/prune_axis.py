"""prune-axis: fewer units in any axis.

Statement. Take units of an axis away everywhere: from every weight, table, norm and number of the graph. If the units
that go are dead, in the sense that the old program is a growth of the new one, every output is what it was; what that
growth would have multiplied (gains and eps of norms) is divided. Otherwise the function changes, and by how much is
measured.

Proof. That of the growth passes, read backwards: the kept units are put first, which changes nothing on an axis whose
units are not told apart; then the old program is the new one with more units, of which `prove` shows on the graph at
hand, from the values there are, that they add nothing.

Reference. Li et al., Pruning Filters for Efficient ConvNets (arXiv 1608.08710), for whole units by magnitude; Fang et
al., DepGraph (arXiv 2301.12900), for groups of weights that go together; Sun et al., Wanda (arXiv 2306.11695), for
activations times weights; Molchanov et al., Importance Estimation for Neural Network Pruning (arXiv 1906.10771), for
gradients times weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pass, option, select
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.prune import seen
from graphgrow.rewrite.saliency import activation, magnitude, taylor
from graphgrow.sizes import number


@dataclass(frozen=True, kw_only=True)
class PruneAxis(Pass):
    """Remove units of axes: the least salient, or those named; exact when they are dead, else measured."""

    name: ClassVar[str] = "prune-axis"
    claim: ClassVar[Literal["Changes"]] = "Changes"

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes; auto: inner axes of MLPs and convolutions", default="auto"
    )
    to: int | None = option("new number of units", default=None)
    factor: float | None = option("new number of units as a part of the old (0.5 if nothing is given)", default=None)
    units: tuple[int, ...] = option("the units to remove, from 0: 3+7+9", default=())
    multiple_of: int = option("round the new number of units up to a multiple of this", default=1)
    score: Literal["magnitude", "activation", "taylor"] = option(
        "what to keep: units with large weights; with large activations on --data, too; or without which the loss on "
        "--data would change most (gradient times weight)",
        default="magnitude",
    )
    allocation: Literal["uniform", "global"] = option(
        "the same part of every axis, or the most salient units of all axes together (each axis' mean counts as one)",
        default="uniform",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.to is not None, self.factor is not None, bool(self.units)]
        if sum(given) > 1:
            raise OptionError(found=self.spec, fix="give one of `to`, `factor` and `units`")
        if self.factor is not None and not 0 < self.factor <= 1:
            raise OptionError(found=f"{self.name}:factor={self.factor}", fix="give a factor above 0 and at most 1")
        if self.to is not None and self.to < 1:
            raise OptionError(found=f"{self.name}:to={self.to}", fix="give a positive number of units")
        if self.allocation == "global" and (self.to is not None or self.units):
            raise OptionError(
                found=self.spec, fix="give `factor` with allocation=global: the part of all units to keep"
            )
        if self.multiple_of < 1:
            raise OptionError(found=f"{self.name}:multiple_of={self.multiple_of}", fix="give a positive number")
        if len(set(self.units)) < len(self.units) or any(unit < 0 for unit in self.units):
            raise OptionError(
                found=f"{self.name}:units={'+'.join(map(str, self.units))}", fix="name units from 0, once"
            )

    def rewrite(self, rewriter: Rewriter) -> None:
        if self.score != "magnitude" and not rewriter.data:
            raise OptionError(found=f"{self.spec} without data", fix="give batches of inputs: --data FILE, or data=[…]")
        chosen = self.chosen(rewriter)
        kept = {axis.atom: units for axis, units in zip(chosen, self.kept(rewriter, chosen), strict=True)}
        kept = {atom: units for atom, units in kept.items() if len(units) != atom.size}
        if not kept:
            raise Refusal(found=f"{self.spec}: all chosen axes have that size already", fix="give a smaller one")
        rewriter.prune(kept)

    def chosen(self, rewriter: Rewriter) -> list[Named]:
        """The axes that are asked for. Raises Refusal where there is none, or one is seen outside."""
        program = rewriter.program
        if self.axis == "auto":
            named = [a for a in program.axes.named if a.role in ("mlp", "channels") and a.inner and not a.frozen]
            if not named:
                raise Refusal(
                    found="no inner axis of an MLP or a convolution block",
                    where="the axes of the program",
                    fix=f"name another axis, {self.name}:axis=NAME: `graphgrow axes` lists them",
                )
            return named
        found = list(select(program.axes, self.axis, self.name))
        for axis in found:
            for place in seen(program, axis.atom):
                raise Refusal(
                    found=f"{axis.name}, which {place} shows",
                    where="the inputs and outputs",
                    fix="choose another axis: what is seen outside stays",
                )
        return found

    def kept(self, rewriter: Rewriter, axes: Sequence[Named]) -> list[list[int]]:
        """The units that stay of each axis, in their order."""
        if self.units:
            return [self._without(axis) for axis in axes]
        program = rewriter.program
        if not program.has_weights:
            fix = f"name the units that go: {self.name}:units=3+7"
            raise Refusal(found=f"{self.spec} of a program without weights to judge by", where=axes[0].name, fix=fix)
        if self.score == "activation":
            scores = activation(program, axes, rewriter.data)
        elif self.score == "taylor":
            scores = taylor(program, axes, rewriter.data)
        else:
            scores = [magnitude(program, axis) for axis in axes]
        wanted = self._together(scores) if self.allocation == "global" else [self.size(axis) for axis in axes]
        return [self._largest(program, *each) for each in zip(axes, scores, wanted, strict=True)]

    def _together(self, scores: Sequence[Tensor]) -> list[int]:
        """How many units of each axis are among the most salient ones of all; at least one stays."""
        relative = [score / (score.mean() or 1.0) for score in scores]
        every = torch.cat(relative)
        kept = max(1, round(len(every) * (self.factor or 0.5)))
        threshold = every.sort(descending=True).values[kept - 1]
        counts = [max(1, int((score >= threshold).sum())) for score in relative]
        return [min(len(s), ceil(n / self.multiple_of) * self.multiple_of) for s, n in zip(scores, counts, strict=True)]

    def _without(self, axis: Named) -> list[int]:
        """All units but those that are named."""
        old = number(axis.size)
        if max(self.units) >= old or len(self.units) == old:
            fix = f"name some of 0 to {old - 1}, not all"
            raise Refusal(found=f"{self.spec}: {axis.name} has {old} units", where=axis.name, fix=fix)
        return [unit for unit in range(old) if unit not in set(self.units)]

    def _largest(self, program: Program, axis: Named, score: Tensor, size: int) -> list[int]:
        """The most salient units, or the first where units are told apart by their position."""
        if axis.atom in program.axes.positional:
            return list(range(size))
        order = torch.argsort(score, descending=True, stable=True)
        return sorted(int(unit) for unit in order[:size])

    def size(self, axis: Named) -> int:
        """The new number of units of an axis."""
        old = number(axis.size)
        wanted = self.to if self.to is not None else max(1, round(old * (self.factor or 0.5)))
        size = ceil(wanted / self.multiple_of) * self.multiple_of
        if size > old and self.to is not None:
            fix = f"give at most {old}, or grow it with a growth pass"
            raise Refusal(
                found=f"{self.name}: {axis.name} has {old} units; {size} would be more", where=axis.name, fix=fix
            )
        return min(size, old)

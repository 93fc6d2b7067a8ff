"""upcycle: mixtures of experts from dense MLPs.

Statement. Put E copies of an MLP in its place, and a router that gives every token weights for k of them: a softmax
over the k best of its scores. Then every output is what it was, whatever the router's weights hold.

Proof. All experts compute the same y, and the weights of a token sum to one, so their weighted sum is y. `verify` finds
this in the new graph by value numbering: what operators make of weights that are the same for all experts is the same
for all; a softmax whose numbers are put among zeros, each at a place of its own, sums to one.

While the experts are equal no score matters, and the router gets no gradient. The experts get different ones at the
first step, as a token counts for each by another weight, and from the second step on the router learns too. With k = 1
it never would, as its one weight is always one: at least two are chosen.

Every expert sees every token, and those that are not chosen have the weight zero. That takes E/k times as many products
as are needed, but no shapes that depend on data, and it is far faster than to look up the weights of k experts for each
token.

Reference. Sparse upcycling (arXiv 2212.05055): there a softmax over all experts, which changes the function unless the
weights are divided by their sum. No token is dropped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.growth import AUTO, LARGEST
from graphgrow.pipeline import Pass, option, select
from graphgrow.program import Program
from graphgrow.rewrite import Mixture, Region, Rewriter


@dataclass(frozen=True, kw_only=True)
class Upcycle(Pass):
    """Make mixtures of experts of dense MLPs without changing the function."""

    name: ClassVar[str] = "upcycle"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option("name, glob or re:EXPRESSION of the inner axes whose MLPs to copy; auto: all", default=AUTO)
    every: int = option("of these MLPs the last of every so many, in execution order", default=1)
    experts: int = option("number of copies", default=8)
    top_k: int = option("how many of them a token goes to", default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.top_k <= self.experts <= LARGEST:
            found = f"{self.name}:experts={self.experts},top_k={self.top_k}"
            fix = f"choose at least 2 (one alone has the weight one, and its router never learns) of at most {LARGEST}"
            raise OptionError(found=found, fix=fix)
        if self.every < 1:
            raise OptionError(found=f"{self.name}:every={self.every}", fix="give a positive number")

    def rewrite(self, rewriter: Rewriter) -> None:
        axes = self.candidates(rewriter.program)
        found = rewriter.regions(axis.atom for axis in axes)
        regions = {axis: region for axis in axes if isinstance(region := found[axis.atom], Region)}
        reasons = {axis: reason for axis in axes if isinstance(reason := found[axis.atom], str)}
        order = rewriter.program.graph.order
        chosen = sorted(regions.values(), key=lambda region: order[region.exit])[self.every - 1 :: self.every]
        if not chosen:
            raise self._none(reasons, len(regions))
        for axis, reason in reasons.items():
            rewriter.leave(axis.name, reason)
        rewriter.upcycle(chosen, Mixture(self.experts, self.top_k))

    def candidates(self, program: Program) -> list[Named]:
        """The inner axes that are asked for: by default those of MLPs that are not experts already."""
        if self.axis != AUTO:
            return list(select(program.axes, self.axis, self.name))
        stacked = {site.parameter for axis in program.axes.named if axis.role == "experts" for site in axis.sites}
        return [
            axis
            for axis in program.axes.named
            if axis.role == "mlp" and axis.inner and not any(site.parameter in stacked for site in axis.sites)
        ]

    def _none(self, reasons: dict[Named, str], fitting: int) -> Refusal:
        if fitting:
            fix = f"give every={fitting} or less"
            return Refusal(found=f"{self.spec}: {fitting} MLPs", where="the graph", fix=fix)
        axis, reason = next(iter(reasons.items()), (None, "no inner axis of an MLP that is not one of experts"))
        return Refusal(
            found=f"no MLP that copies can stand for: {reason}",
            where=axis.name if axis else "the graph",
            fix="name another axis: `graphgrow axes` lists them",
        )

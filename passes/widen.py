"""widen: more units in the inner axes of MLPs and convolution blocks.

Statement. Let an axis be emitted by some weights and summed over by others, with only operators between that act unit
by unit. Give it new units whose outgoing weights (the new slices of every weight that sums over it) are zero. Then
every output of the program is what it was, whatever all other new weights, biases and statistics hold.

Proof. In each contraction over the axis the sum splits into old and new units. The old part is unchanged, as units do
not mix before it; every new term has a zero factor. On the graph at hand `prove` carries this out operator by operator,
finds which blocks must be zero, and that no smaller set would do.

Reference. Gesmundo & Maile, Composable Function-preserving Expansions for Transformer Architectures (arXiv 2308.06103),
Theorem 3.1, there for one ReLU layer; here for any graph on which the proof goes through (gates, depthwise and grouped
convolutions, batch norm, concatenations, experts, residual channels).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

from graphgrow.axes import Atom
from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pass, option, select
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter

DEFAULT = "auto"
LARGEST = 10_000  # factor
WIDE = ("mlp", "channels")


@dataclass(frozen=True, kw_only=True)
class Widen(Pass):
    """Grow the inner axes of MLPs and convolution blocks without changing the function."""

    name: ClassVar[str] = "widen"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes to grow; auto: all inner mlp and channels", default=DEFAULT
    )
    to: int | None = option("new number of units", default=None)
    factor: float | None = option("new number of units as a multiple of the old (2 if neither is given)", default=None)
    multiple_of: int = option("round the new number of units up to a multiple of this", default=1)
    init: Literal["scaled", "copy", "zero"] = option(
        "free new blocks: scaled like the old weights, copies of old units with noise, or zero", default="scaled"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to is not None and self.factor is not None:
            raise OptionError(found=f"widen:to={self.to},factor={self.factor}", fix="give `to` or `factor`, not both")
        if self.factor is not None and not 1 <= self.factor <= LARGEST:
            raise OptionError(
                found=f"widen:factor={self.factor}", fix=f"give a factor of at least 1 and at most {LARGEST}"
            )
        if self.to is not None and self.to < 1:
            raise OptionError(found=f"widen:to={self.to}", fix="give a positive number of units")
        if self.multiple_of < 1:
            raise OptionError(found=f"widen:multiple_of={self.multiple_of}", fix="give a positive number")

    def rewrite(self, rewriter: Rewriter) -> None:
        chosen = self.chosen(rewriter.program)
        sizes = {axis.atom: self._size(axis) for axis in chosen}
        grown = {atom: size for atom, size in sizes.items() if size != atom.size}
        if not grown:
            raise Refusal(found=f"{self.spec}: all chosen axes have that size already", fix="give a larger one")
        if self.axis == DEFAULT:
            grown = self._without_obstacles(rewriter, chosen, grown)
        rewriter.grow(grown, self.init)

    def _without_obstacles(self, rewriter: Rewriter, chosen: list[Named], grown: dict[Atom, int]) -> dict[Atom, int]:
        """What `auto` can grow; what it can't is left, with a note."""
        obstacles = rewriter.obstacles(grown)
        if grown.keys() <= obstacles.keys():
            raise Refusal(
                found=f"no axis that can grow without changing the function: {next(iter(obstacles.values()))}",
                where="the proof on this graph",
                fix="see `graphgrow axes` for the axes there are",
            )
        for axis in chosen:
            if axis.atom in obstacles:
                rewriter.leave(axis.name, obstacles[axis.atom])
        return {atom: size for atom, size in grown.items() if atom not in obstacles}

    def chosen(self, program: Program) -> list[Named]:
        """The axes that are asked for. Raises Refusal where there is none."""
        if self.axis != DEFAULT:
            return list(select(program.axes, self.axis, self.name))
        found = [axis for axis in program.axes.named if axis.role in WIDE and axis.inner and not axis.frozen]
        if not found:
            roles = [*dict.fromkeys(axis.role for axis in program.axes.named if not axis.frozen)]
            other = next((role for role in WIDE if role in roles), "NAME")
            raise Refusal(
                found="no inner axis of an MLP or a convolution block: one that weights emit and sum over, no residual "
                "stream, and seen neither in inputs nor outputs",
                where=f"a program with the axes {', '.join(roles)}"
                if roles
                else "a program without axes that can grow",
                fix=f"name another axis, widen:axis={other}: `graphgrow axes` lists them",
            )
        return found

    def _size(self, axis: Named) -> int:
        old = int(str(axis.size))
        wanted = self.to if self.to is not None else ceil(round(old * (self.factor or 2.0), 6))
        size = ceil(wanted / self.multiple_of) * self.multiple_of
        if size < old:
            raise Refusal(
                found=f"widen: axis {axis.name!r} has {old} units; {size} would be fewer",
                where=axis.name,
                fix=f"give more than {old}",
            )
        return size

"""What passes that grow axes have in common: which axes, how many units, how new blocks start."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar, Literal

from graphgrow import sizes
from graphgrow.axes import Atom
from graphgrow.axes.names import Named
from graphgrow.errors import DeadGrowth, OptionError, Refusal
from graphgrow.pipeline import Pass, option, select
from graphgrow.program import Program
from graphgrow.prove.engine import Strategy
from graphgrow.rewrite import APART, Data, Rewriter

AUTO = "auto"
LARGEST = 10_000  # factor
_REASONS = "see `graphgrow axes` for the reasons"


@dataclass(frozen=True, kw_only=True)
class Growth(Pass):
    """A pass that gives axes more units and keeps the function."""

    claim: ClassVar[Literal["Exact"]] = "Exact"
    roles: ClassVar[tuple[str, ...]]  # of the axes that are grown when none is named
    inner: ClassVar[bool] = False  # of these only axes that carry no residual stream and are not seen outside

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes to grow; auto: all that this pass is for", default=AUTO
    )
    to: int | None = option("new number of units", default=None)
    factor: float | None = option("new number of units as a multiple of the old (2 if neither is given)", default=None)
    multiple_of: int = option("round the new number of units up to a multiple of this", default=1)
    init: Literal["scaled", "copy", "zero", "mup"] = option(
        "free new blocks: scaled like the old weights, copies of old units with noise, zero, or scaled as muP has it "
        "for the larger fan-in",
        default="scaled",
    )
    by: Literal["auto", "zeros", "means", "copies", "shares"] = option(
        "what keeps the function: zeros in new units, the mean of the old ones (layer norm), complete copies, shares: "
        "copies that do not stay alike, as weights that sum over them hold random parts which add up to the old "
        "weights; auto: the first of zeros, means, copies that is proved, copies where new units could never learn "
        "otherwise",
        default="auto",
    )
    noise: float | None = option(
        f"of by=shares: the noise that cancels, relative to even shares of the old weights ({APART} if not given)",
        default=None,
    )

    outputs: Literal["keep", "extend"] = option(
        "axes that outputs show: keep does not grow them; extend puts new units beside the old ones, which stay",
        default="keep",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.name
        if self.to is not None and self.factor is not None:
            raise OptionError(found=f"{name}:to={self.to},factor={self.factor}", fix="give `to` or `factor`, not both")
        if self.factor is not None and not 1 <= self.factor <= LARGEST:
            fix = f"give a factor of at least 1 and at most {LARGEST}"
            raise OptionError(found=f"{name}:factor={self.factor}", fix=fix)
        if self.to is not None and self.to < 1:
            raise OptionError(found=f"{name}:to={self.to}", fix="give a positive number of units")
        if self.multiple_of < 1:
            raise OptionError(found=f"{name}:multiple_of={self.multiple_of}", fix="give a positive number")

        if self.noise is not None and self.by != "shares":
            raise OptionError(found=f"{name}:noise={self.noise},by={self.by}", fix="give `noise` with by=shares only")
        if self.noise is not None and not 0 < self.noise <= LARGEST:
            fix = f"give a positive number, at most {LARGEST}: without noise copies stay alike"
            raise OptionError(found=f"{name}:noise={self.noise}", fix=fix)

    def __call__(self, program: Program, data: Data = ()) -> Program:
        """As any pass; with `by=auto` copies are taken where what is proved first is a dead growth."""
        try:
            return super().__call__(program, data)
        except DeadGrowth:
            if self.by != "auto" or self.init == "zero":
                raise
            with suppress(Refusal):
                return replace(self, by="copies")(program, data)
            raise

    @property
    def extends(self) -> bool:
        """Whether outputs may have new units."""
        return self.outputs == "extend"

    @property
    def apart(self) -> float:
        """The noise of shares."""
        return APART if self.noise is None else self.noise

    @property
    def strategies(self) -> tuple[Strategy, ...] | None:
        """The ways to keep the function that may be taken; None for all."""
        return None if self.by == "auto" else (self.by,)

    def rewrite(self, rewriter: Rewriter) -> None:
        chosen = self.chosen(rewriter.program)
        wanted = {axis.atom: self.size(axis) for axis in chosen}
        grown = {atom: size for atom, size in wanted.items() if size != atom.size}
        if not grown:
            raise Refusal(found=f"{self.spec}: all chosen axes have that size already", fix="give a larger one")
        if self.axis == AUTO:
            grown = self._possible(rewriter, chosen, grown)
        self.grow(rewriter, grown)

    def grow(self, rewriter: Rewriter, grown: dict[Atom, int]) -> None:
        """Ask for the growth itself."""
        rewriter.grow(grown, self.init, strategies=self.strategies, extend_outputs=self.extends, noise=self.apart)

    def _possible(self, rewriter: Rewriter, chosen: Sequence[Named], grown: dict[Atom, int]) -> dict[Atom, int]:
        """What `auto` can grow: all axes; or those that are no obstacle; or those that can grow alone. What it leaves
        is noted."""
        why = rewriter.why_not(grown, self.strategies, self.extends)
        if not why:
            return grown
        obstacles = rewriter.obstacles(grown, self.extends)
        left = {atom: size for atom, size in grown.items() if atom not in obstacles}
        if not left:
            obstacles = {
                atom: rewriter.why_not({atom: size}, self.strategies, self.extends) for atom, size in grown.items()
            }
            left = {atom: size for atom, size in grown.items() if not obstacles[atom]}
        if not left or rewriter.why_not(left, self.strategies, self.extends):
            why = next(iter(obstacles.values()), "") or why
            raise Refusal(
                found=f"no axis that can grow without changing the function: {why}",
                where="the proof on this graph",
                fix="choose other axes: `graphgrow axes` lists them; outputs=extend grows what outputs show, too",
            )
        for axis in chosen:
            if axis.atom not in left:
                rewriter.leave(axis.name, obstacles[axis.atom])
        return left

    def chosen(self, program: Program) -> list[Named]:
        """The axes that are asked for. Raises Refusal where there is none."""
        if self.axis != AUTO:
            return list(select(program.axes, self.axis, self.name))
        named = program.axes.named
        found = [axis for axis in named if axis.role in self.roles and (axis.inner or not self.inner)]
        free = [axis for axis in found if not axis.frozen]
        if not free:
            raise self._none(program, found)
        return free

    def _none(self, program: Program, found: Sequence[Named]) -> Refusal:
        """There is no axis that this pass is for."""
        what = f"axis of the role {' or '.join(self.roles)}"
        if self.inner:
            what = (
                "inner axis of an MLP or a convolution block: one that weights emit and sum over, no residual stream, "
                "and seen neither in inputs nor outputs"
            )
        if found:
            return Refusal(
                found=f"no {what} that can be resized; {found[0].name} is frozen: {found[0].frozen[0]}",
                fix=_REASONS,
            )
        roles = dict.fromkeys(axis.role for axis in program.axes.named if not axis.frozen)
        near = next((role for role in self.roles if role in roles), "NAME")
        if not roles:
            return Refusal(found=f"no {what}", where="a program without axes that can grow", fix=_REASONS)
        where = f"a program with the axes {', '.join(roles)}"
        return Refusal(
            found=f"no {what}",
            where=where,
            fix=f"name another axis, {self.name}:axis={near}: `graphgrow axes` lists them",
        )

    def size(self, axis: Named) -> int:
        """The new number of units of an axis."""
        old = sizes.number(axis.size)
        wanted = self.to if self.to is not None else ceil(round(old * (self.factor or 2.0), 6))
        size = ceil(wanted / self.multiple_of) * self.multiple_of
        if size < old:
            raise Refusal(
                found=f"{self.name}: axis {axis.name!r} has {old} units; {size} would be fewer",
                where=axis.name,
                fix=f"give more than {old}",
            )
        return size

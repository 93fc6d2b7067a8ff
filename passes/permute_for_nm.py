"""permute-for-nm: units of axes in an order under which N:M keeps more.

Statement. Put the units of an axis into another order in every weight, bias, norm and table that has it. Every output
is what it was. N of every M along the axis, as sparsify would choose them, then keep more of the weights' magnitude.

Proof. No operator tells the units of an axis apart that is neither frozen nor ordered nor seen at inputs and outputs:
sums over it have the same terms in another order. `verify` finds the order by the values, undoes it, and requires every
tensor to be bit for bit what it was.

Reference. Pool & Yu, Channel Permutations for N:M Sparsity (NeurIPS 2021); the search here weighs all swaps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.patterns import Pattern
from graphgrow.pipeline import Pass, option, select
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.masks import Weight, weights
from graphgrow.rewrite.permute import kept, matrix, search
from graphgrow.rewrite.prune import seen
from graphgrow.sizes import number

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class PermuteForNm(Pass):
    """Reorder units of axes so that N:M keeps more magnitude, without changing the function."""

    name: ClassVar[str] = "permute-for-nm"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes; auto: all that can be reordered and that weights sum over",
        default=AUTO,
    )
    pattern: str = option("the N:M to come", default="2:4")
    rounds: int = option("how often the search starts again from a shaken order", default=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = Pattern.parse(self.pattern)
        if asked.kind != "n:m" or asked.tile > 1 or asked.inputs is not None or asked.kept == asked.group:
            raise OptionError(found=self.spec, fix="give a pattern N:M with N below M: pattern=2:4")
        if self.rounds < 0:
            raise OptionError(found=f"{self.name}:rounds={self.rounds}", fix="give 0 or more rounds")

    def rewrite(self, rewriter: Rewriter) -> None:
        program, asked = rewriter.program, Pattern.parse(self.pattern)
        if not program.has_weights:
            raise Refusal(found="a program without weights to judge by", where=self.spec, fix="trace it with weights")
        cut = [one for one in weights(program).values() if isinstance(one, Weight) and not one.head]
        orders: dict[Named, list[int]] = {}
        for axis in self.chosen(rewriter):
            found = matrix(program, cut, axis.atom, asked) if number(axis.size) > asked.group else None
            if found is None:
                if self.axis != AUTO:
                    rewriter.leave(axis.name, f"no weight sums over it in groups of {asked.group} that its order makes")
                continue
            order = search(found, asked, self.rounds, self.seed).tolist()
            whole = float(found.abs().double().sum()) or 1.0
            before, after = (kept(columns, asked) / whole for columns in (found, found[:, order]))
            if order == sorted(order):
                rewriter.leave(axis.name, f"no order was found under which {asked} keeps more than {before:.2%}")
                continue
            orders[axis] = order
            rewriter.notes.append(f"{axis.name}: {asked} keeps {after:.2%} of the magnitude, {before:.2%} before")
        if not orders:
            raise Refusal(
                found=f"no axis whose order matters to {asked}",
                where=next(iter(rewriter.notes), "the axes of the program"),
                fix="name another axis: `graphgrow axes` lists them",
            )
        rewriter.reorder({axis.atom: order for axis, order in orders.items()})

    def chosen(self, rewriter: Rewriter) -> Sequence[Named]:
        """The axes that are asked for; with `auto` those that can be reordered."""
        program = rewriter.program
        if self.axis != AUTO:
            return select(program.axes, self.axis, self.name)
        told = program.axes.positional
        return [a for a in program.axes.named if not a.frozen and a.atom not in told and not any(seen(program, a.atom))]

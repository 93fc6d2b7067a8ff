"""split-kv-heads: more heads of keys and values for the same query heads.

Statement. Where r query heads share one head of keys and values, repeat each of these c times, c a divisor of r, and
let r/c query heads share each copy. Multi-query attention (one head for all) becomes grouped-query attention, that gets
more groups, and with c = r every query head has keys and values of its own. Every output is what it was.

Proof. Every query head meets keys and values equal to those that it met before, and heads stand in the order in which
they stood: copy j of head i is head i*c + j, whose query heads are those from j*(r/c) on. `verify` compares the weights
and shows operator by operator that each treats all heads alike. The copies are told apart by training at once, as other
query heads use them.

Reference. Ainslie et al., GQA (arXiv 2305.13245), read backwards: there heads are merged by their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes import Atom, Axes
from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pass, option, select
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.regroup import groups
from graphgrow.sizes import number


@dataclass(frozen=True, kw_only=True)
class SplitKvHeads(Pass):
    """Repeat heads of keys and values, each for a part of its query heads, without changing the function."""

    name: ClassVar[str] = "split-kv-heads"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes of heads of keys and values; auto: all", default="auto"
    )
    factor: int | None = option("how many heads are made of one (2 if neither is given)", default=None)
    to: int | None = option("new number of heads of keys and values", default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to is not None and self.factor is not None:
            raise OptionError(found=self.spec, fix="give `to` or `factor`, not both")
        if (self.factor is not None and self.factor < 2) or (self.to is not None and self.to < 2):
            raise OptionError(found=self.spec, fix="give a whole number from 2")

    def rewrite(self, rewriter: Rewriter) -> None:
        if not _shared(rewriter.program.unit_axes):
            rewriter.single_heads()
        axes = rewriter.program.unit_axes
        names, shared = {named.atom: named.name for named in axes.named}, _shared(axes)
        if self.axis != "auto":
            wanted = {axis.atom for axis in select(axes, self.axis, self.name)}
            shared = {keys: queries for keys, queries in shared.items() if keys in wanted}
        if not shared:
            raise Refusal(
                found="no heads of keys and values that several query heads share",
                where="the attention of the program",
                fix="grow others with add-heads or add-kv-heads",
            )
        rewriter.regroup({keys: (q, self.copies(keys, q, names[keys])) for keys, q in shared.items()})

    def copies(self, keys: Atom, queries: Atom, name: str) -> int:
        """How many heads are made of one. Raises Refusal where the query heads can't be shared out so."""
        old, uses = number(keys.size), number(queries.size)
        copies = self.factor or 2 if self.to is None else self.to // old
        if (self.to is not None and self.to != copies * old) or copies < 2 or uses % copies:
            possible = [str(old * count) for count in range(2, uses + 1) if uses % count == 0]
            raise Refusal(
                found=f"{self.spec}: {name} has {old} heads, each used by {uses} query heads",
                where=name,
                fix=f"choose a number of heads of {', '.join(possible)}",
            )
        return copies


def _shared(axes: Axes) -> dict[Atom, Atom]:
    """The heads of keys and values that several query heads share, with those of each."""
    heads = {named.atom for named in axes.named if named.role in ("kv_heads", "heads")}
    return {keys: queries for keys, queries in groups(axes).items() if keys in heads}

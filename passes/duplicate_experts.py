"""duplicate-experts: all experts several times, and as many times as many chosen.

Statement. Let a router take the k best of E experts. Give it m copies of every expert, rows of the router included, and
let it take the m k best. Then every output is what it was, where weights are a softmax over the k chosen, or one over
all experts before the choice, or either divided by their sum. Of experts in groups every group gets copies of its own.

Proof. Scores of copies are equal, so the m k best are all copies of the k best. A softmax over m copies gives each 1/m
of what it gave, and sums over copies have m times each term. Which of several experts with equal scores are the best is
open, before and after: the statement is about scores that differ. On the graph at hand `prove` follows copies through
the choice, through what is looked up or put at the places chosen, and through sums; numbers that are added to sums
follow (the 1e-20 in a quotient). A router that takes one expert only is refused: a dimension of one can't grow.

Copies are chosen together and get equal gradients: alone they stay equal for ever. What tells them apart without a
change of the function is new units of their own, `widen-experts` with free blocks (the default): the gradients of these
differ from copy to copy at the first step.

Reference. Derived here. Copies of experts whose rows of the router are copied, in upcycling: virtual groups (arXiv
2410.07524).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow import ops, sizes
from graphgrow.axes import Atom, Axes
from graphgrow.axes.names import Named
from graphgrow.errors import OptionError, Refusal
from graphgrow.growth import AUTO, LARGEST
from graphgrow.pipeline import Pass, option, select
from graphgrow.rewrite import Rewriter


@dataclass(frozen=True, kw_only=True)
class DuplicateExperts(Pass):
    """Copy all experts of mixtures, and choose as many times as many, without changing the function."""

    name: ClassVar[str] = "duplicate-experts"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option("role, name, glob or re:EXPRESSION of the experts to copy; auto: all", default=AUTO)
    factor: int = option("how many times as many experts", default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.factor <= LARGEST:
            raise OptionError(found=f"{self.name}:factor={self.factor}", fix=f"give a number from 2 to {LARGEST}")

    def rewrite(self, rewriter: Rewriter) -> None:
        axes = rewriter.program.axes
        grown = {axis.atom: self.factor * sizes.number(axis.size) for axis in self.chosen(axes)}
        kept = _kept(axes, grown)
        rewriter.grow(grown | {atom: self.factor * sizes.number(atom.size) for atom in kept}, strategies=("copies",))

    def chosen(self, axes: Axes) -> list[Named]:
        """The experts that are asked for; of experts in groups those inside of each. Raises Refusal where there are
        none."""
        named = axes.named if self.axis == AUTO else select(axes, self.axis, self.name)
        inside = {term.atoms[-1] for terms in axes.parameters.values() for term in terms if term.atoms}
        found = [axis for axis in named if axis.role == "experts" and (self.axis != AUTO or axis.atom in inside)]
        if not found:
            where = f"a program with the axes {', '.join(dict.fromkeys(axis.role for axis in axes.named))}"
            fix = "name an axis of experts: `graphgrow axes` lists them"
            raise Refusal(found="no experts that a router chooses from", where=where, fix=fix)
        return found


def _kept(axes: Axes, experts: dict[Atom, int]) -> list[Atom]:
    """The axes of what is taken of these experts. Raises Refusal for one that can't grow."""
    found: dict[Atom, None] = {}
    for node in axes.graph.nodes:
        if ops.kind(node.op) != "topk":
            continue
        dim = node.argument(2, "dim", -1)
        assert isinstance(dim, int)
        if not any(atom in experts for atom in axes.terms[next(node.operands())][dim].atoms):
            continue
        kept = axes.several[node.name][0][dim]
        if not isinstance(kept, Atom) or kept in axes.frozen:
            reason = axes.frozen[kept][0] if isinstance(kept, Atom) else f"it is {kept}"
            raise Refusal(
                found=f"a choice of {kept.size} experts that can't grow: {reason}",
                where=node.source or node.name,
                fix="choose other experts with `axis`, or grow them inside: `widen-experts`",
            )
        found[kept] = None
    return list(found)

"""deepen: more layers.

Statement. Let layers x + f(x) follow one another. A further one, with its weights copied or random, keeps every output
if what makes f zero is zero: the last weights and biases of each branch, or the gain of the norm after them (Gemma's
1 + gain: the gain is -1), or the branch's own scale. Whatever all its other weights hold, it computes x + 0 = x. Where
the stream has gains of its own, w * x + f(x), w is one. In residual blocks that end with relu(x + f(x)) it computes
relu(x), which is x because the stream came out of a relu.

Proof. `verify` numbers the values of both graphs: nodes have one number when they apply the same operator to the same
numbers, x + 0 and x * 1 have the number of x, relu of what a relu made has its operand's. Every output has one number
in both. A norm after the addition, LN(x + 0), is not x: layers of that kind are refused, with the norm's place.

Layers are found in the graph: residual additions whose blocks repeat, whatever their names are. Names of new layers
count on as the module list's would.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.6, for ReLU MLPs and attention without biases. Copies with
zero output weights between old layers: LLaMA Pro (arXiv 2401.02415). The whole stack once more on top is the order of
G_stack (arXiv 2405.15319), here without changing the function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

from graphgrow.errors import OptionError, Refusal
from graphgrow.layers import Stack, stacks
from graphgrow.pipeline import Pass, matching, option
from graphgrow.rewrite import Place, Rewriter, planned


@dataclass(frozen=True, kw_only=True)
class Deepen(Pass):
    """Add layers to stacks of residual layers without changing the function."""

    name: ClassVar[str] = "deepen"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    stack: str = option("name, glob or re:EXPRESSION of the stacks to deepen; auto: all", default="auto")
    to: int | None = option("new number of layers", default=None)
    factor: float | None = option("new number of layers as a multiple of the old (2 if neither is given)", default=None)
    order: Literal["interleave", "stack"] = option(
        "where new layers go: evenly between the old ones, each after the one it is made from; or all on top, made "
        "from the old ones in order",
        default="interleave",
    )
    at: int | None = option(
        "put all new layers after this many old ones instead, made from the last of them (from the first at 0)",
        default=None,
    )
    init: Literal["copy", "scaled"] = option(
        "what of a new layer is free: copies of the layer it is made from, or random like its weights", default="copy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to is not None and self.factor is not None:
            raise OptionError(found=f"deepen:to={self.to},factor={self.factor}", fix="give `to` or `factor`, not both")
        if self.factor is not None and not 1 <= self.factor <= 1000:
            raise OptionError(found=f"deepen:factor={self.factor}", fix="give a factor of at least 1 and at most 1000")
        if self.at is not None and (self.at < 0 or self.order != "interleave"):
            fix = "give `at` as a number of old layers from 0, without `order`"
            raise OptionError(found=f"deepen:at={self.at},order={self.order}", fix=fix)

    def rewrite(self, rewriter: Rewriter) -> None:
        grown = False
        for stack in reversed(self.chosen(stacks(rewriter.program.graph))):  # names of later ones count on
            plan = self.plan(len(stack.layers))
            if len(plan) > len(stack.layers):
                rewriter.deepen(stack, plan, self.init)
                grown = True
        if not grown:
            raise Refusal(found=f"{self.spec}: all stacks have that many layers already", fix="give a larger number")

    def chosen(self, found: Sequence[Stack]) -> list[Stack]:
        """The stacks that are asked for. Raises Refusal where there are none."""
        if not found:
            raise Refusal(
                found="no layers that add to a stream",
                where="the additions of the graph",
                fix="depth grows where layers are x + f(x), with all of f between the two x",
            )
        if self.stack == "auto":
            return list(found)
        names = [stack.name for stack in found]
        chosen = matching(names, self.stack)
        if not chosen:
            raise OptionError.unknown("stack for deepen", self.stack, names)
        return [stack for stack in found if stack.name in chosen]

    def plan(self, old: int) -> list[Place]:
        """The layers of a deeper stack of `old` layers."""
        new = self.to if self.to is not None else ceil(round(old * (self.factor or 2.0), 6))
        if new < old:
            raise Refusal(found=f"deepen: {old} layers; {new} would be fewer", fix=f"give more than {old}")
        if self.at is not None and self.at > old:
            raise Refusal(found=f"deepen:at={self.at} in a stack of {old} layers", fix=f"give a number up to {old}")
        if self.at is None:
            return planned(old, new, self.order)
        places = [Place(layer, new=False) for layer in range(old)]
        places[self.at : self.at] = [Place(max(self.at - 1, 0), new=True)] * (new - old)
        return places

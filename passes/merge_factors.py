"""merge-factors: one weight in place of two factors.

Statement. Let an axis be made by one product with a weight and summed over by the next, with nothing between and
nothing else that reads it. With the product of both weights, one node gives what the two gave, for every input.

Proof. Matrix products are associative: (x V) U = x (V U). A convolution is a matrix product at every position of space,
so the same holds of two where along each dimension of space only one of them has a window. `verify` multiplies the old
weights, and compares: the new weight is their product, rounded once.

Reference. The reverse of factorize: Kamalakara et al. (arXiv 2209.13569); for inference of what was trained with two
linear layers, Ding et al., RepVGG (arXiv 2101.03697).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes.names import Named
from graphgrow.errors import Refusal
from graphgrow.pipeline import Pass, option, select
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.merge import Chain

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class MergeFactors(Pass):
    """Multiply two factors, and all products through an axis that nothing else reads, without changing the function."""

    name: ClassVar[str] = "merge-factors"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    axis: str = option(
        "role, name, glob or re:EXPRESSION of the axes between two factors; auto: all of the role rank", default=AUTO
    )

    def rewrite(self, rewriter: Rewriter) -> None:
        axes = rewriter.program.axes
        chosen = [axis for axis in axes.named if axis.role == "rank"]
        if self.axis != AUTO:
            chosen = list(select(axes, self.axis, self.name))
        known = rewriter.weights("pointwise")
        chains, left = list[Chain](), dict[Named, str]()
        for axis in chosen:
            found = rewriter.chain(axis.atom, known)
            if not isinstance(found, str):
                taken = {name for one in chains for name in (one.first, one.second)}
                if not taken.isdisjoint((found.first, found.second)):
                    found = "one of its weights is merged already: run the pass again"
            if isinstance(found, str):
                left[axis] = found
            else:
                chains.append(found)
        if not chains:
            axis, reason = next(
                iter(left.items()), (None, "no axis is made by one product and summed over by the next")
            )
            fix = "name another axis: `graphgrow axes` lists them"
            raise Refusal(found=f"no factors to merge: {reason}", where=axis.name if axis else "the graph", fix=fix)
        for axis, reason in left.items():
            rewriter.leave(axis.name, reason)
        rewriter.merge(chains)

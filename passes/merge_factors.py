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

from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pass, matching, option
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.merge import Chain

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class MergeFactors(Pass):
    """Multiply two factors, and all products through an axis that nothing else reads, without changing the function."""

    name: ClassVar[str] = "merge-factors"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    at: str = option("name, glob or re:EXPRESSION of the factors; auto: all", default=AUTO)

    def rewrite(self, rewriter: Rewriter) -> None:
        known = rewriter.chains()
        names = list(dict.fromkeys(name for pair in known for name in pair))
        wanted = set(names if self.at == AUTO else matching(names, self.at))
        if names and not wanted:
            raise OptionError.unknown(f"factor for {self.name}", self.at, names)
        chosen, left, taken = list[Chain](), dict[str, str](), set[str]()
        for pair, found in known.items():
            if wanted.isdisjoint(pair):
                continue
            if isinstance(found, str):
                left[" and ".join(pair)] = found
            elif taken.isdisjoint(pair):
                chosen.append(found)
                taken.update(pair)
            else:
                left[" and ".join(pair)] = "one of both is merged already: run the pass again"
        if not chosen:
            where, reason = next(iter(left.items()), ("the graph", "no weight is multiplied by what another one makes"))
            raise Refusal(found=f"no factors to merge: {reason}", where=where, fix="leave the program as it is")
        for pair, reason in left.items():
            rewriter.leave(pair, reason)
        rewriter.merge(chosen)

"""widen-keys: larger query and key vectors in attention heads.

Statement. Give the queries and keys of every head more units. If the new units of all keys (or of all queries) are
zero, every score is what it was, whatever the others are. The number that scores are multiplied by stays; or, with
`scale=weights`, follows the new size as a model computes it, 1/sqrt(size), and the old keys are multiplied by
sqrt(new/old).

Proof. A score is a sum over these units: every new term has a zero factor. Rotary positions turn pairs of units:
old pairs keep their frequencies, which are old blocks of a table, and what turns zeros is free. A norm of queries
and of keys (QK norm) sees its mean square fall to old/new when new units are zero: eps and gains follow, or, where
there are no gains, the number that scores are multiplied by. Both are zero then, and neither ever gets a gradient:
copies are the way, to a multiple of the size, and other sizes are refused. Unit vectors (cosine attention) are
copied the same way.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes import Atom
from graphgrow.growth import Growth
from graphgrow.pipeline import option
from graphgrow.rewrite import Rewriter


@dataclass(frozen=True, kw_only=True)
class WidenKeys(Growth):
    """Grow the size of queries and keys in attention heads without changing the function."""

    name: ClassVar[str] = "widen-keys"
    roles: ClassVar[tuple[str, ...]] = ("key",)

    scale: Literal["literal", "weights"] = option(
        "attention's 1/sqrt(size): stays the number it is, or follows the new size while the keys make up for it (what "
        "a Hugging Face class of the new size computes)",
        default="literal",
    )

    def grow(self, rewriter: Rewriter, grown: dict[Atom, int]) -> None:
        rewriter.grow(grown, self.init, self.scale == "weights", self.strategies, self.extends, self.apart)

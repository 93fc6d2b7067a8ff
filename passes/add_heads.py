"""add-heads: more attention heads.

Statement. Give attention more heads (where groups of query heads share keys: more query heads in every group). If the
rows of the output projection that read them are zero, every output is what it was, whatever the new heads compute.

Proof. Heads do not mix before the output projection; there, every new term has a zero factor. What tells heads apart by
number (ALiBi's slopes, relative position tables) keeps its old values; those of new heads are free.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.2. Groups: a new query head belongs inside each group, as the
head's number tells its group; `prove` and `rewrite` see this from the axis, a product of groups and heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.growth import Growth


@dataclass(frozen=True, kw_only=True)
class AddHeads(Growth):
    """Add attention heads (query heads in every group, where there are groups) without changing the function."""

    name: ClassVar[str] = "add-heads"
    roles: ClassVar[tuple[str, ...]] = ("heads",)

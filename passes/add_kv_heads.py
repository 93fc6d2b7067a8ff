"""add-kv-heads: more groups of attention heads, each with its own keys and values.

Statement. Where groups of query heads share one head of keys and values, add whole groups. If the rows of the output
projection that read them are zero, every output is what it was, whatever the new groups compute.

Proof. As for heads (`add-heads`): a group is a head of keys and values with all query heads that use it.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.2, carried over to grouped-query attention (arXiv 2305.13245).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.growth import Growth


@dataclass(frozen=True, kw_only=True)
class AddKvHeads(Growth):
    """Add groups of query heads with their keys and values without changing the function."""

    name: ClassVar[str] = "add-kv-heads"
    roles: ClassVar[tuple[str, ...]] = ("kv_heads",)

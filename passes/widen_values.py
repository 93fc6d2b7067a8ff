"""widen-values: larger value vectors in attention heads.

Statement. Give the values of every head more units. If the rows of the output projection that read the new units,
inside each head's part, are zero, every output is what it was, whatever the new values are.

Proof. Attention's weights do not depend on values; each unit of a value is averaged by itself; in the output projection
every new term has a zero factor.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.growth import Growth


@dataclass(frozen=True, kw_only=True)
class WidenValues(Growth):
    """Grow the size of values in attention heads without changing the function."""

    name: ClassVar[str] = "widen-values"
    roles: ClassVar[tuple[str, ...]] = ("value",)

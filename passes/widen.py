"""widen: more units in the inner axes of MLPs and convolution blocks.

Statement. Let an axis be emitted by some weights and summed over by others, with only operators between that act unit
by unit. Give it new units whose outgoing weights (the new slices of every weight that sums over it) are zero. Then
every output of the program is what it was, whatever all other new weights, biases and statistics hold.

Proof. In each contraction over the axis the sum splits into old and new units. The old part is unchanged, as units do
not mix before it; every new term has a zero factor. On the graph at hand `prove` carries this out operator by operator,
finds which blocks must be zero, and that no smaller set would do.

With `by=shares` new units copy old ones, any number of them, and what sums over them takes random parts that add up
to the old weights: sum_j w_j x = w x where sum_j w_j = w. Gradients of copies then differ from the first step on.

Reference. Gesmundo & Maile, Composable Function-preserving Expansions for Transformer Architectures (arXiv 2308.06103),
Theorem 3.1, there for one ReLU layer; here for any graph on which the proof goes through (gates, depthwise and grouped
convolutions, batch norm, concatenations, experts, residual channels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.growth import Growth


@dataclass(frozen=True, kw_only=True)
class Widen(Growth):
    """Grow the inner axes of MLPs and convolution blocks without changing the function."""

    name: ClassVar[str] = "widen"
    roles: ClassVar[tuple[str, ...]] = ("mlp", "channels")
    inner: ClassVar[bool] = True

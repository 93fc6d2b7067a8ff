"""widen-hidden: more units in the residual stream.

Statement. Let everything that writes an axis of size n give m units. Four ways keep every output:

zeros    what is written is zero in the new units. RMS norms see their mean square fall to n/m of what it was, so
         their eps takes the factor n/m and their gains sqrt(n/m). All that reads the stream is free in the new
         units.
means    what is written is, in every new unit, the mean of the old ones. Layer norms keep their mean, and their
         variance falls to n/m: eps and gains as above, new biases zero. After the norm the new units are zero;
         readers are free.
copies   m is a multiple of n, and every new unit copies an old one, everywhere. Norms of all kinds, also after the
         addition, see what they saw; what sums over the units is divided by m/n.
shares   (where asked for) copies, but weights that only sum over the units are random parts that add up to the old
         ones: copies do not stay alike. A tied table, which is looked up as well, keeps plain copies.

Proof. Zeros: sums over the stream get no new terms; rms([x, 0]) = sqrt(n/m) rms(x). Means: the mean of [x, mean x]
is the mean of x, and the squared deviations of the new units are zero. Copies: sums of complete copies are
multiples of sums. Shares: sum_j w_j x = w x where sum_j w_j = w. On the graph at hand `prove` tries the first three
in this order, finds each factor, and drops every constraint that is not needed; what multiplies the stream by a
number (an embedding's sqrt(n)) keeps its number.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.5, for zeros without eps, with the gains free: in the
paper's table they are zero, which gives new units no gradient ever. Means: LEMON's average padding (arXiv
2310.07999). Copies: HyperCloning (arXiv 2409.12903).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.growth import Growth


@dataclass(frozen=True, kw_only=True)
class WidenHidden(Growth):
    """Grow residual streams, with all norms, embeddings, readers and writers, without changing the function."""

    name: ClassVar[str] = "widen-hidden"
    roles: ClassVar[tuple[str, ...]] = ("hidden",)

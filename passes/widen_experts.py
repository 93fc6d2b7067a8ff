"""widen-experts: more units inside the experts of mixtures.

Statement. Give the inner axis of all experts of a mixture new units whose outgoing weights are zero. Then every output
is what it was, whatever the router chooses and whatever all other new weights hold.

Proof. As for `widen`, expert by expert: which expert a token goes to does not depend on what is inside of experts.

An inner axis is that of experts where a weight on it also has the axis that a router's choice picks from: the experts.
Experts that are kept as modules of their own have no such axis; their inner axes are grown by `widen`.

Reference. Gesmundo & Maile (arXiv 2308.06103), Theorem 3.1, inside of each expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphgrow.axes.names import Named
from graphgrow.errors import Refusal
from graphgrow.growth import AUTO, Growth
from graphgrow.program import Program


@dataclass(frozen=True, kw_only=True)
class WidenExperts(Growth):
    """Grow the inner axes of experts without changing the function."""

    name: ClassVar[str] = "widen-experts"
    roles: ClassVar[tuple[str, ...]] = ("mlp", "channels")
    inner: ClassVar[bool] = True

    def chosen(self, program: Program) -> list[Named]:
        """Of the axes that are asked for those inside of experts. Raises Refusal where there is none."""
        stacked = {site.parameter for axis in program.axes.named if axis.role == "experts" for site in axis.sites}
        found = [axis for axis in super().chosen(program) if any(site.parameter in stacked for site in axis.sites)]
        inside = [axis for axis in found if axis.inner and not axis.frozen]
        if inside:
            return inside
        where = f"a program with {'' if stacked else 'no '}weights that a router picks from"
        fix = (
            "grow them with `widen`"
            if self.axis == AUTO
            else f"see `graphgrow axes`, or leave {self.axis!r} to `widen`"
        )
        raise Refusal(found="no inner axis of experts that can grow", where=where, fix=fix)

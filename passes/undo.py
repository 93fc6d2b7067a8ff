"""undo: the program before the last growth.

Statement. Take away what the last growth in the journal has added, and divide what it has multiplied. The function is
what it was, and the program is the one before that growth: bit for bit, unless old values had been multiplied by
something else than a power of two (gains of norms, keys that make up for a scale), which rounds; then to one unit in
the last place.

Proof. The growth's own, read backwards: `prove` finds that the grown program is a growth of this one.

Reference. That of the pass that is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.axes import Atom
from graphgrow.certificate import Certificate
from graphgrow.errors import Refusal
from graphgrow.layers import stacks
from graphgrow.pipeline import Pass
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter


def _only_grew(certificate: Certificate) -> bool:
    shrunk = any(row.new < row.old for row in certificate.growth)
    return bool(certificate.growth) and not shrunk and not any(move.stacked for move in certificate.moves)


@dataclass(frozen=True, kw_only=True)
class Undo(Pass):
    """Take back the last growth that the journal tells of."""

    name: ClassVar[str] = "undo"
    claim: ClassVar[Literal["Exact"]] = "Exact"

    def rewrite(self, rewriter: Rewriter) -> None:
        last = self.last(rewriter.program)
        sizes = {row.axis: row.old for row in last.growth}
        fresh = {move.new for move in last.moves if move.fresh}
        for stack in reversed(stacks(rewriter.program.graph)):
            if stack.name in sizes:
                new = {place for place, layer in enumerate(stack.layers) if fresh.intersection(layer.tensors)}
                rewriter.drop(stack, new)
                del sizes[stack.name]
        axes = {axis.name: axis.atom for axis in rewriter.program.axes.named}
        if lost := sizes.keys() - axes.keys():
            raise Refusal(found=f"no axis called {min(lost)}", where="the program", fix="keep the file from before")
        kept: dict[Atom, range] = {axes[name]: range(size) for name, size in sizes.items()}
        if kept:
            rewriter.prune(kept, {row.node: row.old for row in last.proof.numbers} if last.proof else None)
        if rewriter.program.digest == last.old:
            rewriter.notes.append(f"bit for bit the program before {last.spec}")
        else:
            rewriter.notes.append(f"the program before {last.spec} to rounding: values had been multiplied")

    def last(self, program: Program) -> Certificate:
        """The certificate of the last growth that is not undone. Raises Refusal where there is none, or it is not what
        made the program as it is."""
        grown: list[Certificate] = []
        for certificate in program.journal:
            if certificate.spec.partition(":")[0] == self.name and grown:
                grown.pop()
            else:
                grown.append(certificate)
        if not grown or not _only_grew(grown[-1]):
            found = f"{grown[-1].spec}, which did more than grow axes" if grown else "no growth in the journal"
            raise Refusal(found=found, where="the journal", fix="keep the file from before: only growths can be undone")
        if program.journal[-1].new != program.digest:
            raise Refusal(
                found=f"values that have changed since {grown[-1].spec}",
                where="the parameters",
                fix="remove units with prune-axis, which measures what that changes",
            )
        return grown[-1]

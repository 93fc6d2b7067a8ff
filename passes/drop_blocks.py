"""drop-blocks: fewer layers.

Statement. Take layers x + f(x) out of a stack: what read a layer's end reads its start. If f is zero the function
stays; else it changes, and by how much is measured. Without names, those layers go that turn the stream the least: the
mean of 1 - cos(x, x + f(x)) over all positions of the data given.

Evidence. Layers that add nothing are proved to (the proof of `deepen`, read backwards). Otherwise the change of all
outputs is measured, on the same data.

Reference. Men et al., ShortGPT (arXiv 2403.03853), for the influence of a block; Gromov et al. (arXiv 2403.17887).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from graphgrow.errors import OptionError, Refusal
from graphgrow.layers import Stack, stacks
from graphgrow.pipeline import Pass, matching, option
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.saliency import influence


@dataclass(frozen=True, kw_only=True)
class DropBlocks(Pass):
    """Take layers out of stacks: those with the least influence, or those named; exact when they add nothing."""

    name: ClassVar[str] = "drop-blocks"
    claim: ClassVar[Literal["Changes"]] = "Changes"

    stack: str = option("name, glob or re:EXPRESSION of the stacks; auto: all", default="auto")
    to: int | None = option("new number of layers", default=None)
    factor: float | None = option("new number of layers as a part of the old (0.75 if nothing is given)", default=None)
    layers: tuple[int, ...] = option("the layers to take out, from 0: 3+7", default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum([self.to is not None, self.factor is not None, bool(self.layers)]) > 1:
            raise OptionError(found=self.spec, fix="give one of `to`, `factor` and `layers`")
        if self.factor is not None and not 0 < self.factor <= 1:
            raise OptionError(found=f"{self.name}:factor={self.factor}", fix="give a factor above 0 and at most 1")
        if self.to is not None and self.to < 1:
            raise OptionError(found=f"{self.name}:to={self.to}", fix="give a positive number of layers")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            fix = "name layers from 0, once"
            raise OptionError(found=f"{self.name}:layers={'+'.join(map(str, self.layers))}", fix=fix)

    def rewrite(self, rewriter: Rewriter) -> None:
        if not self.layers and not rewriter.data:
            fix = f"give batches of inputs (--data FILE, or data=[...]), or name layers: {self.name}:layers=3+7"
            raise OptionError(found=f"{self.spec} without data", fix=fix)
        chosen = self.chosen(stacks(rewriter.program.graph))
        gone = [self.gone(rewriter, stack) for stack in chosen]
        if not any(gone):
            raise Refusal(found=f"{self.spec}: all stacks have that many layers already", fix="give a smaller number")
        for stack, layers in reversed(list(zip(chosen, gone, strict=True))):  # names of later ones count on
            if layers:
                rewriter.drop(stack, layers)

    def chosen(self, found: Sequence[Stack]) -> list[Stack]:
        """The stacks that are asked for, of several layers each. Raises Refusal where there are none."""
        names = [stack.name for stack in found]
        asked = names if self.stack == "auto" else matching(names, self.stack)
        if not asked and names:
            raise OptionError.unknown(f"stack for {self.name}", self.stack, names)
        chosen = [stack for stack in found if stack.name in asked and len(stack.layers) > 1]
        if not chosen:
            raise Refusal(
                found="no stack of several layers that add to a stream",
                where="the additions of the graph",
                fix="layers can go where they are x + f(x), with all of f between the two x",
            )
        return chosen

    def gone(self, rewriter: Rewriter, stack: Stack) -> set[int]:
        """The layers that go."""
        old = len(stack.layers)
        if self.layers:
            if max(self.layers) >= old or len(self.layers) == old:
                fix = f"name some of 0 to {old - 1}, not all"
                raise Refusal(found=f"{self.spec}: {stack.name} has {old} layers", where=stack.name, fix=fix)
            return set(self.layers)
        wanted = self.to if self.to is not None else max(1, round(old * (self.factor or 0.75)))
        if wanted > old:
            fix = f"give at most {old}, or add layers with deepen"
            raise Refusal(found=f"{self.name}: {stack.name} has {old} layers", where=stack.name, fix=fix)
        moved = influence(rewriter.program, stack, rewriter.data)
        return set(sorted(range(old), key=lambda layer: moved[layer])[: old - wanted])

"""sparsify: masks on weights.

Statement. Multiply weights with masks, buffers of zeros and ones that stand beside them in the graph, in the state dict
and in files. What a mask cuts away counts as zero and gets no gradient; the weights themselves stay what they were. A
mask keeps to its pattern: any entries, N of every M along the dimension that is summed over, one such choice for a tile
of outputs, or whole blocks. If only zeros are cut away the function is what it was; otherwise it changes, and by how
much is measured.

Evidence. W * mask is W where masked entries are zero. Which weights are factors of sums, and which of their dimensions
are summed over, is read from the operators. Left alone unless they are named: what is looked up, and weights whose
results are outputs.

Reference. N:M: Mishra et al., Accelerating Sparse Deep Neural Networks (arXiv 2104.08378). Densities by layer (erk):
Evci et al., RigL (arXiv 1911.11134); Liu et al., In-Time Over-Parameterization (arXiv 2102.02887). Activation norms:
Sun et al., Wanda (arXiv 2306.11695). Gradients: Molchanov et al. (arXiv 1611.06440).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from graphgrow.errors import OptionError, Refusal
from graphgrow.patterns import Pattern, erdos_renyi, select, select_together
from graphgrow.pipeline import Pass, matching, option
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.masks import Weight, masks, weights
from graphgrow.rewrite.scores import gradients, input_norms

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Sparsify(Pass):
    """Put masks on weights: N:M, tiles, blocks or unstructured; exact when only zeros are cut away, else measured."""

    name: ClassVar[str] = "sparsify"
    claim: ClassVar[Literal["Changes"]] = "Changes"

    at: str = option(
        "name, glob or re:EXPRESSION of the weights; auto: all that are summed over, without those of outputs",
        default=AUTO,
    )
    keep: str = option("name, glob or re:EXPRESSION of weights that stay dense", default="")
    pattern: str = option(
        "2:4 or any N:M, 2:4x8 (one choice for 8 outputs), block4x4 (outputs by inputs), or unstructured", default="2:4"
    )
    density: float | None = option("the part that stays of unstructured weights and blocks (default 0.5)", default=None)
    allocation: Literal["uniform", "global", "erk"] = option(
        "how density is spread over weights: the same for all, by score over all together, or by shape (erk)",
        default="uniform",
    )
    score: Literal["magnitude", "random", "wanda", "gradient"] = option(
        "what stays: large weights, any, or large weights times the norm of their inputs (wanda) or their gradient, "
        "both on --data",
        default="magnitude",
    )
    pad: bool = option("cut dimensions that are no multiple of M, too: the last group is then shorter", default=False)
    masked: Literal["refine", "replace"] = option(
        "what becomes of masks that are there: refine cuts more away, replace chooses anew", default="refine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = Pattern.parse(self.pattern)
        if asked.inputs is not None:
            raise OptionError(found=self.spec, fix="give the pattern without dimensions: they are read from the graph")
        if asked.kind == "n:m" and (self.density is not None or self.allocation != "uniform"):
            fix = f"leave density and allocation away: {asked} says both"
            raise OptionError(found=self.spec, fix=fix)
        if self.density is not None and not 0 < self.density <= 1:
            raise OptionError(found=f"{self.name}:density={self.density}", fix="give a density above 0 and at most 1")

    def rewrite(self, rewriter: Rewriter) -> None:
        program = rewriter.program
        if not program.has_weights:
            raise Refusal(
                found="a program without weights to choose from", where=self.spec, fix="trace it with weights"
            )
        if self.score in ("wanda", "gradient") and not rewriter.data:
            raise OptionError(found=f"{self.spec} without data", fix="give batches of inputs: --data FILE, or data=[…]")
        chosen = self.fitting(rewriter, self.chosen(rewriter))
        there = {name: program.tensors[mask] for name, mask in masks(program).items()}
        known = there if self.masked == "refine" else {}
        scores = self.scores(program, [weight for weight, _ in chosen], rewriter)
        found = dict(zip(scores, self.masks(scores, [p for _, p in chosen], known), strict=True))
        patterns = {weight.name: str(pattern) for weight, pattern in chosen}
        old = {name: program.kinds[mask].pattern for name, mask in masks(program).items()}
        new = {
            name: (mask, patterns[name])
            for name, mask in found.items()
            if name not in there or old[name] != patterns[name] or not torch.equal(mask, there[name])
        }
        if not new:
            raise Refusal(
                found=f"{self.spec}: all masks are what they would become",
                where=", ".join(list(found)[:3]),
                fix="give another pattern or a lower density, or masked=replace",
            )
        rewriter.mask(new)

    def chosen(self, rewriter: Rewriter) -> list[Weight]:
        """The weights that are asked for; what is left of those that could be meant is noted. Raises Refusal where
        there are none."""
        found = weights(rewriter.program)
        auto = self.at == AUTO
        named = list(found) if auto else matching(list(found), self.at)
        if not named and not auto:
            raise OptionError.unknown("weight", self.at, found)
        kept = set(matching(list(found), self.keep)) if self.keep else set[str]()
        if self.keep and not kept:
            raise OptionError.unknown("weight", self.keep, found)
        left, chosen = dict[str, list[str]](), list[Weight]()
        for name in named:
            one = found[name]
            if name in kept:
                left.setdefault("it is to be kept", []).append(name)
            elif isinstance(one, str):
                left.setdefault(one, []).append(name)
            elif auto and one.head:
                left.setdefault("what it gives is an output", []).append(name)
            else:
                chosen.append(one)
        self.leave(rewriter, left)
        if not chosen:
            reason, names = next(iter(left.items()), ("there is none", ["a weight that is summed over"]))
            raise Refusal(found=f"no weight to cut: {names[0]}: {reason}", where=self.spec, fix="name others with at=")
        return chosen

    def fitting(self, rewriter: Rewriter, chosen: Sequence[Weight]) -> list[tuple[Weight, Pattern]]:
        """The weights that the pattern fits, with its dimensions. Raises Refusal where there are none."""
        asked, left, found = Pattern.parse(self.pattern), dict[str, list[str]](), list[tuple[Weight, Pattern]]()
        for weight in chosen:
            reason = self.misfit(rewriter.program, weight, asked)
            if reason:
                left.setdefault(reason, []).append(weight.name)
            else:
                found.append((weight, asked.along(weight.outputs, weight.inputs or 0)))
        self.leave(rewriter, left)
        if not found:
            reason, names = next(iter(left.items()))
            raise Refusal(
                found=f"no weight that {asked} fits: {names[0]}: {reason}", where=self.spec,
                fix="choose another pattern, or pad=true",
            )  # fmt: skip
        return found

    def misfit(self, program: Program, weight: Weight, asked: Pattern) -> str:
        """Why a weight can't have a pattern; empty when it can."""
        if asked.kind == "unstructured":
            return ""
        if weight.inputs is None or (asked.shared and weight.outputs is None):
            return "its uses differ in the dimension that they sum over"
        for dim, size in asked.along(weight.outputs, weight.inputs).steps:
            length = program.tensors[weight.name].shape[dim]
            if length % size and not (self.pad and length > size):
                return f"{length} {'inputs' if dim == weight.inputs else 'outputs'} are no multiple of {size}"
        return ""

    def leave(self, rewriter: Rewriter, left: Mapping[str, Sequence[str]]) -> None:
        """Note what stays dense, reason by reason."""
        for reason, names in left.items():
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            rewriter.leave(", ".join(names[:2]) + more, reason)

    def scores(self, program: Program, chosen: Sequence[Weight], rewriter: Rewriter) -> dict[str, Tensor]:
        """What masks are chosen by, as large as the weights."""
        values = {weight.name: program.tensors[weight.name].detach() for weight in chosen}
        if self.score == "magnitude":
            found = values
        elif self.score == "random":
            found = {name: self._random(name, value) for name, value in values.items()}
        elif self.score == "wanda":
            norms = input_norms(program, chosen, rewriter.data)
            found = {name: value * norms[name] for name, value in values.items()}
        else:
            slopes = gradients(program, [one.name for one in chosen], rewriter.data)
            found = {name: value * slopes[name] for name, value in values.items()}
        for name, score in found.items():
            if not bool(score.isfinite().all()):
                raise Refusal(found="scores that are no numbers", where=name, fix="mend the weights or the data")
        return found

    def _random(self, name: str, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
        return torch.rand(like.shape, generator=generator)

    def masks(
        self, scores: Mapping[str, Tensor], patterns: Sequence[Pattern], known: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """The masks: what is cut away in those that are `known` stays so."""
        given = [score * known[name] if name in known else score for name, score in scores.items()]
        density = 0.5 if self.density is None else self.density
        if self.allocation == "global":
            found = select_together(given, patterns, density)
        else:
            densities = [density] * len(given)
            if self.allocation == "erk":
                densities = erdos_renyi([score.shape for score in given], density)
            found = [select(*each) for each in zip(given, patterns, densities, strict=True)]
        return [mask & known[name] if name in known else mask for name, mask in zip(scores, found, strict=True)]

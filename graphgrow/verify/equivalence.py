"""The numeric equivalence test: both programs in float64, on random inputs, with random values in every free block.

Tolerance. Rounding scales with the type's epsilon: what the old program is off by in float32 (`rounding32`, measured
against its own float64 run) shrinks by eps64 / eps32 = 1.9e-9 in float64. The two programs round differently, so 500
times that is allowed: TOLERANCE * rounding32, and never less than FLOOR, some hundred units in the last place. An error
of logic does not shrink: off by 1e-7 in a program with rounding32 = 1e-5 is ten thousand times the tolerance. A program
that is off by its own size in float32 (or overflows there) tells nothing more: rounding32 counts as 1 at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphgrow.certificate import Measured, Test, Trial
from graphgrow.graph import Graph
from graphgrow.module import lower
from graphgrow.program import Program
from graphgrow.prove import POSITIVE, SAME, Assignment, Number, free, kind, scale
from graphgrow.prove.propose import chosen, propose
from graphgrow.rewrite import Resizing, literal, resize_graph
from graphgrow.rewrite.blocks import Fill, Place, fill_normal, grown
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.proof import Proved, prover_of
from graphgrow.verify.reduce import reduced

TOLERANCE = 1e-6
STORED = 10.0
FLOOR = 1e-13
FULL_SIZE = 30_000_000  # parameters of both programs up to which they are tested as they are


@dataclass(frozen=True)
class Pair:
    """Two programs to compare, the axes by which they differ, and what is known of the new blocks."""

    old: Program
    new: Program
    alignment: Alignment
    assignment: Assignment = field(default_factory=Assignment)

    @cached_property
    def resizing(self) -> Resizing:
        return Resizing(self.alignment.sizes)

    @cached_property
    def facts(self) -> Mapping[str, Mapping[Place, int]]:
        """What blocks hold, by parameter and cell."""
        found: dict[str, dict[Place, int]] = {}
        for block, fact in self.assignment.blocks.items():
            found.setdefault(block.parameter, {})[block.cell] = fact
        return found

    def old_units(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of the new program's outputs what the old one has; all of them where they are others."""
        if len(outputs) != len(self.old.graph.output_names):
            return list(outputs)
        found: list[Tensor] = []
        for name, output in zip(self.old.graph.output_names, outputs, strict=True):
            for dim, term in enumerate(self.old.axes.terms[name]):
                if self.resizing.touches([term]):
                    kept = np.flatnonzero(self.resizing.source(term) >= 0)
                    output = output.index_select(dim, torch.as_tensor(kept))
            found.append(output)
        return found

    @property
    def inexact(self) -> bool:
        """Whether what blocks hold was computed, so that storing it rounds."""
        kinds = {(kind(fact), scale(fact)) for fact in self.assignment.blocks.values() if fact >= SAME}
        return bool(kinds - {("same", 1.0)} or self.assignment.numbers)

    def grow(self, name: str, old: Tensor, new: Tensor, fill: Fill = lambda view, at, fact: None) -> Tensor:
        """`new` with what is known of its blocks computed from `old` (differentiable by it), free ones by `fill`."""
        terms = self.old.axes.parameters.get(name)
        if terms is None or not (self.resizing.touches(terms) or name in self.facts):
            return old
        return grown(old, new.detach().clone(), terms, self.resizing, self.facts.get(name, {}), fill)


def shrunk(pair: Pair, proved: Proved) -> Pair:
    """Both programs shrunk alike, and the same growth between them."""
    return regrown(*reduced(pair.old, pair.new, pair.alignment), proved)


def regrown(old: Program, new: Program, proved: Proved) -> Pair:
    """The growth between two programs that were shrunk alike: scales follow the smaller sizes."""
    alignment = align(old, new)
    if not proved.proof.holds:
        return Pair(old, new, alignment)
    proposal, _ = propose(prover_of(old, alignment), proved.strategy, chosen(old.graph, alignment.factors))
    blocks = {
        block: fact if free(fact) else proposal.blocks.get(block, fact)
        for block, fact in proved.assignment.blocks.items()
    }
    numbers = {place: literal(old, place) * factor for place, factor in proposal.numbers.items()}
    new = new.replace(graph=resize_graph(old.axes, alignment.sizes, numbers))
    return Pair(old, new, align(old, new), Assignment(blocks, proposal.numbers))


def test(old: Program, new: Program, alignment: Alignment, proved: Proved, seed: int) -> Test:
    """Compare outputs and input gradients on several sizes. With a proof all free blocks get random values first, and
    what the others hold is computed in float64; without one the new program is taken as it is."""
    if not (old.has_weights and new.has_weights):
        return Test(holds=False, why="not run: the programs have no weights", seed=seed)
    small = old.size + new.size > FULL_SIZE
    pair = Pair(old, new, alignment, proved.assignment)
    if small:
        pair = shrunk(pair, proved)
    return compared(pair, proved.proof.holds, small, seed)


def compared(pair: Pair, holds: bool, small: bool, seed: int) -> Test:
    """The test of a pair, with or without a proof; `small` tells that it was shrunk."""
    before = runners(pair.old, pair.old.tensors)
    drawn = runners(pair.new, drawn_values(pair, seed) if holds else pair.new.tensors, pair)
    trials = [trial(pair, before, drawn, sizes, seed + index) for index, sizes in enumerate(sizes_to_try(pair.old))]
    if holds and not (small and pair.inexact):  # as it is, too: random values hide what 0 / 0 makes of its own
        stored = runners(pair.new, pair.new.tensors, pair)
        trials.append(trial(pair, before, stored, sizes_to_try(pair.old)[0], seed, stored=pair.inexact))
    return verdict(trials, small, seed)


def verdict(trials: Sequence[Trial], small: bool, seed: int) -> Test:
    """What trials say together; `small` tells that they ran on shrunk programs."""
    bad = [one for one in trials if not _passes(one)]
    worst = max(max(one.output64, one.gradient64) for one in trials)
    where = "on both programs with their axes shrunk alike" if small else "at full size"
    why = f"largest deviation {worst:.1e} in float64 (outputs and input gradients), {len(trials)} sizes, {where}"
    if bad:
        first = max(bad, key=lambda one: max(one.output64, one.gradient64))
        why = (
            f"outputs differ by {first.output64:.1e}, gradients by {first.gradient64:.1e} "
            f"(allowed {first.tolerance64:.1e}) in float64 at {first.sizes or 'fixed sizes'}"
        )
    return Test(holds=not bad, trials=tuple(trials), reduced=small, why=why, seed=seed)


def _passes(trial: Trial) -> bool:
    """Within the tolerance in float64, and finite in float32 wherever the old program is."""
    return max(trial.output64, trial.gradient64) <= trial.tolerance64 and trial.output32 < float("inf")


def sizes_to_try(program: Program) -> list[dict[str, int]]:
    """Sizes to try: batch 1, odd and even lengths, within the bounds of the trace."""
    wanted = [(1, 5), (2, 8), (3, 3)]
    found: list[dict[str, int]] = []
    for batch, length in wanted if program.graph.symbols else wanted[:1]:
        sizes: dict[str, int] = {}
        for index, (name, origin) in enumerate(program.graph.symbols.items()):
            size = batch if name.startswith("batch") else length + index
            sizes[name] = max(origin.low, min(size, origin.high or size))
        found.append(sizes)
    return found


def drawn_values(pair: Pair, seed: int) -> Mapping[str, Tensor]:
    """The new tensors in float64: free blocks random, as large as the old values, all others computed anew."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(pair.new.tensors)
    for name, terms in pair.old.axes.parameters.items():
        old = pair.old.tensors[name].detach()
        if not (pair.resizing.touches(terms) or name in pair.facts) or not old.is_floating_point():
            continue
        deviation = float(old.double().std(unbiased=False)) or 0.1

        def fill(view: Tensor, at: Sequence[slice], fact: int, deviation: float = deviation) -> None:
            fill_normal(view, 0.0, deviation, generator)
            if fact == POSITIVE:
                view.abs_().add_(deviation)

        tensors[name] = pair.grow(name, old.double(), tensors[name].detach().double(), fill)
    return tensors


def trial(pair: Pair, old: Runners, new: Runners, sizes: Mapping[str, int], seed: int, stored: bool = False) -> Trial:
    """Both programs on one random input. `stored` tells that the new values were rounded when they were stored."""
    inputs = pair.old.example(sizes, seed)
    old64, grads = old[0](inputs)
    new64, new_grads = new[0](inputs)
    old32, _ = old[1](inputs, gradients=False)
    new32, _ = new[1](inputs, gradients=False)
    rounding = deviation(old64, old32)
    common = [name for name in grads if name in new_grads]
    return Trial(
        sizes=", ".join(f"{name}={size}" for name, size in sizes.items()),
        output64=deviation(old64, new64),
        output32=deviation(old32, new32),
        gradient64=deviation([grads[name] for name in common], [new_grads[name] for name in common]),
        rounding32=rounding,
        tolerance64=_stored(pair.new.dtype, rounding) if stored else max(FLOOR, TOLERANCE * min(rounding, 1.0)),
    )


def as_stored(old: Program, new: Program, seed: int) -> Trial:
    """Outputs of two programs that may differ in rounding only, on one random input, as they are; no gradients."""
    sizes = sizes_to_try(old)[0]
    inputs = old.example(sizes, seed)
    first, second = (runners(program, program.tensors) for program in (old, new))
    left, right = ([run(inputs, gradients=False)[0] for run in pair] for pair in (first, second))
    rounding = deviation(*left)
    return Trial(
        sizes=", ".join(f"{name}={size}" for name, size in sizes.items()), output64=deviation(left[0], right[0]),
        output32=deviation(left[1], right[1]), gradient64=0.0, rounding32=rounding,
        tolerance64=_stored(new.dtype, rounding),
    )  # fmt: skip


def measure(old: Program, new: Program, batches: Sequence[Mapping[str, Tensor]], seed: int) -> Measured:
    """How much the outputs of two programs differ, on given inputs or else on random ones."""
    given = batches or [old.example(sizes, seed + index) for index, sizes in enumerate(sizes_to_try(old))]
    words = f"data (batches: {len(batches)})" if batches else f"{len(given)} random inputs"
    modules = [program.module(share=True).eval() for program in (old, new)]
    difference = total = largest = top = 0.0
    with torch.no_grad():
        for inputs in given:
            left, right = (pytree.tree_leaves(_run(module, inputs)) for module in modules)
            for a, b in ((a.double(), b.double()) for a, b in zip(left, right, strict=True) if a.is_floating_point()):
                difference, total = difference + float((a - b).square().sum()), total + float(a.square().sum())
                largest, top = max(largest, float((a - b).abs().max())), max(top, float(a.abs().max()))
    return Measured(norm=(difference / (total or 1.0)) ** 0.5, largest=largest / (top or 1.0), inputs=words)


def _run(module: nn.Module, inputs: Mapping[str, Tensor], tables: Mapping[str, Tensor] | None = None) -> Any:
    """What a module gives, with other `tables`; random numbers that it draws are the same in every run."""
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
        return torch.func.functional_call(module, dict(tables or {}), kwargs=dict(inputs))


def _stored(dtype: str, rounding: float) -> float:
    """What storing computed values in the weights' type may cost: each weight is off by half a unit in its last place,
    as every product is that a run in this type rounds."""
    unit = torch.finfo(getattr(torch, dtype)).eps / torch.finfo(torch.float32).eps
    return max(FLOOR, STORED * unit * min(rounding, 1.0))


class Runner:
    """A program in evaluation mode with everything in one type: lowered once, run many times.

    `pair` tells how tables of the new program follow from the old ones: gradients are then by the old values, however
    many new ones follow from each."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        pair: Pair | None = None,
    ) -> None:
        self.dtype, self.pair = dtype, pair
        self.module = lowered(program, tensors, dtype)
        self.parameters = dict(self.module.named_parameters(remove_duplicate=False))
        self.tables = [name for name in _tables(program) if name in self.parameters]
        self.buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]

    def __call__(self, inputs: Mapping[str, Tensor], gradients: bool = True) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, and gradients of a random combination of them by the floating inputs and by the tables that integer
        inputs index. What a run writes to buffers is undone before the next; random numbers that a model draws are the
        same in every run."""
        for buffer, value in self.buffers:
            buffer.detach_().copy_(value)
        given = {name: _cast(value, self.dtype) for name, value in inputs.items()}
        floating = {name: value for name, value in given.items() if value.is_floating_point()}
        leaves = {name: self._origin(name) for name in self.tables} if gradients else {}
        watched = {name: value.requires_grad_() for name, value in (floating | leaves).items() if gradients}
        with torch.set_grad_enabled(bool(watched)):
            tables = {name: self._table(name, leaf) for name, leaf in leaves.items()}
            result = _run(self.module, given, tables)
            outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            outputs = [_real(leaf) for leaf in (self.pair.old_units(outputs) if self.pair else outputs)]
        found: dict[str, Tensor] = {}
        total = combined(outputs)
        if watched and total.requires_grad:  # an argmax has no gradient
            grads = torch.autograd.grad(total, list(watched.values()), allow_unused=True)
            found = dict(used(zip(watched, grads, strict=True)))
        return [output.detach() for output in outputs], found

    def _origin(self, name: str) -> Tensor:
        if self.pair is None:
            return self.parameters[name].detach().clone()
        return self.pair.old.tensors[name].detach().to(self.dtype).clone()

    def _table(self, name: str, leaf: Tensor) -> Tensor:
        """The table's values, as a function of the old table's."""
        if self.pair is None:
            return leaf
        stored = self.parameters[name].detach()
        followed = self.pair.grow(name, leaf, stored)
        return stored + (followed - followed.detach())


Runners = tuple[Runner, Runner]


def runners(program: Program, tensors: Mapping[str, Tensor], pair: Pair | None = None) -> Runners:
    """A program in float64 and in float32."""
    return Runner(program, tensors, torch.float64, pair), Runner(program, tensors, torch.float32, pair)


def used(gradients: Iterable[tuple[str, Tensor | None]]) -> Iterator[tuple[str, Tensor]]:
    """The gradients there are."""
    for name, gradient in gradients:
        if gradient is not None:
            yield name, gradient


def lowered(program: Program, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The program's module in evaluation mode, computing everything in `dtype`."""
    cast = {name: _cast(tensor.detach(), dtype) for name, tensor in tensors.items()}
    owned = {name: c.clone() if c.data_ptr() == tensors[name].data_ptr() else c for name, c in cast.items()}
    module = lower(_explicit(program), owned, program.kinds, program.aliases, program.dtype, precision=dtype)
    return module.eval().requires_grad_(False)


def _explicit(program: Program) -> Graph:
    """The graph with the eps that an RMS norm takes when it has none: by the type that it runs in, not the one here."""
    norms = [node for node in program.graph.nodes if node.op == "aten.rms_norm.default"]
    places: list[Number] = [(node.name, ("args", 3) if len(node.args) > 3 else ("eps",)) for node in norms]
    given = {place: literal(program, place) for place in places}
    return resize_graph(program.axes, {}, given) if given else program.graph


def combined(outputs: Sequence[Tensor]) -> Tensor:
    """A fixed random combination of all floating outputs."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        if output.is_floating_point():
            total = total + (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
    return total


def _tables(program: Program) -> Iterator[str]:
    for name, node in program.graph.parameters.items():
        if any(user.op == "aten.embedding.default" for user in program.graph.users[node.name]):
            yield name


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(dtype.to_complex())
    return value.to(dtype) if value.is_floating_point() else value.clone()


def _real(value: Tensor) -> Tensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def deviation(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value, tensor by tensor; infinite where shapes differ or one side
    is not finite where the other is."""
    if len(left) != len(right):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(left, right, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.is_floating_point():
        return float((a != b).any())
    a, b = a.double(), b.double()
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    largest = float(a[finite].abs().max())
    return float((a - b)[finite].abs().max()) / (largest or 1.0)

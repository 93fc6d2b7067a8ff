"""The judge of programs whose weights stay on the disk.

What a proof without weights takes for granted is read off each tensor when it is made, against the one that it is made
from; the proof is then made anew from what was read. On the way the first units of every axis are kept, which is what
the numeric test runs on for all large programs. Certificates are the ones that programs in memory would get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from graphgrow.certificate import Certificate, Proof, Test
from graphgrow.errors import CheckFailed, Refusal
from graphgrow.lazy import Lazy
from graphgrow.program import Program
from graphgrow.prove import Assignment, Block, free
from graphgrow.prove.engine import Strategy
from graphgrow.prove.propose import STRATEGIES
from graphgrow.rewrite import Resizing
from graphgrow.rewrite.blocks import kept_views
from graphgrow.rewrite.reading import Reader, same
from graphgrow.verify.align import align
from graphgrow.verify.depth import compared_depth, constant, dead_layers, prove_depth, shrunk_alike, silent
from graphgrow.verify.equivalence import compared, regrown
from graphgrow.verify.gradients import dead_axes
from graphgrow.verify.proof import Proved, proposed, proved, prover_of
from graphgrow.verify.reduce import reduced

_UNITS = 4  # in the last place
_MOST = 500_000_000  # bytes of both shrunk programs; where axes are frozen they are no smaller than the whole ones


class Witness:
    """Sees the tensors of programs that passes have made one from the other, first to last, and judges the passes."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.steps = [_step(old, new) for old, new in pairwise(programs)]

    def see(self, name: str, level: int = -1) -> None:
        """Look at a tensor of the last program (or of that at a level), and at those that it is made from. Raises
        CheckFailed for one that is not what the proof needs."""
        for index in reversed(range(len(self.steps) if level < 0 else level)):
            step = self.steps[index]
            if name in step.seen:
                return
            step.seen.add(name)
            origin = step.origin(name)
            before = None if origin is None else _load(self.programs[index], origin)
            step.see(name, before, _load(self.programs[index + 1], name))
            if origin is None:
                return
            name = origin

    def follows(self, name: str, value: Tensor) -> bool:
        """Whether a tensor of the last program could hold this: what the proofs leave free is, and the rest is what
        the first program has."""
        for step in reversed(self.steps):
            origin, before = step.origin(name), step.undone(name, value)
            if origin is None or before is None:
                return False
            name, value = origin, before
        return _near(_load(self.programs[0], name), value)

    def certificates(self) -> tuple[Certificate, ...]:
        """What was found, when all tensors have been seen (those that were not are, now). Raises CheckFailed where a
        claim does not hold, Refusal for a dead growth."""
        for level, program in enumerate(self.programs[1:], 1):
            for name in program.tensors:
                self.see(name, level)
        found: list[Certificate] = []
        for step, program in zip(self.steps, self.programs[1:], strict=True):
            plan = program.journal[-1]
            found.append(_judged(step, plan) if plan.claim == "Exact" else plan)
        return tuple(found)


def _step(old: Program, new: Program) -> _Deeper | _Larger:
    plan = new.journal[-1]
    count = len(new.graph.nodes) - len(old.graph.nodes)
    if plan.claim == "Exact" and any(row.new < row.old for row in plan.growth):
        raise _in_memory(plan)
    try:
        return _Larger(old, new) if count == 0 else _Deeper(old, new)
    except CheckFailed as error:
        raise _in_memory(plan) from error


def _in_memory(plan: Certificate) -> Refusal:
    return Refusal(
        found=f"{plan.spec}, whose result is judged with all its weights",
        where="a folder that is larger than memory",
        fix="apply it without --stream, on a machine that holds the weights; or leave it out",
    )


def _load(program: Program, name: str) -> Tensor:
    assert isinstance(program.tensors, Lazy)
    return program.tensors.load(name)


def _near(left: Tensor, right: Tensor) -> bool:
    """Equal, or as near as two ways to compute one number come in its type: a power and a division, each to a unit or
    two in the last place."""
    if left.shape != right.shape or left.dtype != right.dtype or not left.is_floating_point():
        return same(left, right)
    error = (left.double() - right.double()).abs()
    return bool((error <= _UNITS * torch.finfo(left.dtype).eps * left.double().abs()).all()) or same(left, right)


class _Step(Protocol):
    small: _Small

    def proof(self) -> Proof: ...
    def test(self, seed: int) -> Test: ...
    def dead(self, seed: int) -> list[str]: ...


def _judged(step: _Step, plan: Certificate) -> Certificate:
    proof, seed = step.proof(), plan.test.seed if plan.test else 0
    test = step.test(seed) if proof.holds and step.small.fits else None
    failed = [evidence.why for evidence in (proof, test) if evidence and not evidence.holds]
    if failed:
        raise CheckFailed(found=f"a rewrite that does not keep the function: {'; '.join(failed)}", where=plan.spec)
    if step.small.fits and (dead := step.dead(seed)):
        fix = "start the free blocks with init=scaled or init=copy, and deepen last"
        found = f"a dead growth: no new parameter on {', '.join(dead[:3])} ever gets a gradient"
        raise Refusal(found=found, where=plan.spec, fix=fix)
    notes = () if step.small.fits else ("not tested: its axes can't be shrunk, and the programs don't fit into memory",)
    return plan.model_copy(update={"proof": proof, "test": test, "notes": (*plan.notes, *notes)})


@dataclass
class _Small:
    """Both programs with the first units of every axis only: lazy first, then with what was seen."""

    old: Program
    new: Program

    def __post_init__(self) -> None:
        self.kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        both = (*self.old.tensors.values(), *self.new.tensors.values())
        self.fits = sum(tensor.nbytes for tensor in both) <= _MOST

    def keep(self, name: str, origin: str | None) -> None:
        if not self.fits:
            return
        if origin is not None:
            self.kept[0][origin] = _load(self.old, origin).clone()
        self.kept[1][name] = _load(self.new, name).clone()

    @cached_property
    def programs(self) -> tuple[Program, Program]:
        old, new = (_held(p, kept) for p, kept in zip((self.old, self.new), self.kept, strict=True))
        return old, new


def _held(program: Program, kept: Mapping[str, Tensor]) -> Program:
    values = {name: kept[name] if name in kept else _load(program, name) for name in program.tensors}
    trained = {n: v.requires_grad_(program.kinds[n].trainable) for n, v in values.items() if n not in program.fixed}
    return program.replace(tensors={**values, **trained})


def _by_name(blocks: Mapping[Block, int]) -> dict[str, dict[Block, int]]:
    found: dict[str, dict[Block, int]] = {}
    for block, fact in blocks.items():
        found.setdefault(block.parameter, {})[block] = fact
    return found


class _Larger:
    """One pass that made axes larger."""

    def __init__(self, old: Program, new: Program) -> None:
        self.old, self.new, self.seen = old, new, set[str]()
        self.alignment = align(old, new)
        self.resizing = Resizing(self.alignment.sizes)
        self.prover = prover_of(old, self.alignment)
        self.small = _Small(*reduced(old, new, self.alignment))
        self.facts: dict[Strategy, dict[str, dict[Block, int]]] = {}
        self.wanted: dict[Strategy, dict[str, dict[Block, int]]] = {}
        self.needed: dict[Strategy, dict[str, dict[Block, int]]] = {}  # without what the proof can do without
        self.failures: dict[Strategy, str] = {}
        ways: tuple[Strategy, ...] = STRATEGIES if self.alignment.grows else ()
        for way in ways:
            proposal = proposed(old, self.prover, way, self.alignment)
            plan = proved(old, self.prover, way, proposal.blocks, self.alignment)
            if isinstance(plan, Proved):
                self.facts[way] = {}
                self.wanted[way], self.needed[way] = _by_name(proposal.blocks), _by_name(plan.assignment.blocks)

    def origin(self, name: str) -> str | None:
        return name

    def see(self, name: str, before: Tensor | None, after: Tensor) -> None:
        assert before is not None
        reader = Reader(self.old.axes, {name: before}, {name: after}, self.alignment.sizes)
        for way in self.facts.keys() - self.failures.keys():
            found = reader.facts(Assignment(self.wanted[way].get(name, {})))
            if isinstance(found, str):
                self.failures[way] = found
            else:
                self.facts[way][name] = found
        self.small.keep(name, name)

    def undone(self, name: str, after: Tensor) -> Tensor | None:
        """The old units of a new tensor; None for one that does not follow from these."""
        terms = self.old.axes.parameters.get(name, ())
        if not self.resizing.touches(terms):
            return after
        before = torch.empty(self.old.tensors[name].shape, dtype=after.dtype)
        for origin, target in kept_views(before, after, self.resizing, terms):
            origin.copy_(target)
        reader = Reader(self.old.axes, {name: before}, {name: after}, self.alignment.sizes)
        for needed in self.needed.values():
            facts = needed.get(name, {})
            found = reader.facts(Assignment(facts))
            if not isinstance(found, str) and all(free(fact) or found[block] == fact for block, fact in facts.items()):
                return before
        return None

    @cached_property
    def proved(self) -> Proved:
        why = next(iter(self.failures.values()), "no growth that could be proved without weights")
        for way, read in self.facts.items():
            if way in self.failures:
                continue
            facts = {block: fact for name in self.new.tensors for block, fact in read.get(name, {}).items()}
            found = proved(self.old, self.prover, way, facts, self.alignment)
            if isinstance(found, Proved):
                return found
            why = found
        return Proved(Proof(holds=False, why=why))

    def proof(self) -> Proof:
        return self.proved.proof

    def test(self, seed: int) -> Test:
        return compared(regrown(*self.small.programs, self.proved), True, True, seed)

    def dead(self, seed: int) -> list[str]:
        read = replace(self.proved, assignment=self.proved.read)
        return dead_axes(regrown(*self.small.programs, read), seed)


class _Deeper:
    """One pass that put layers in."""

    def __init__(self, old: Program, new: Program) -> None:
        self.seen = set[str]()
        self.found = prove_depth(old, new)
        self.needed = {n: v for n, v in silent(new, self.found.new).items() if n in self.found.constrained}
        before = {node.name: name for name, node in old.graph.parameters.items()}
        self.origins = {name: before.get(node.name) for name, node in new.graph.parameters.items()}
        self.unread = old.tensors.keys() - old.graph.parameters.keys()
        self.small = _Small(*shrunk_alike(old, new))

    def origin(self, name: str) -> str | None:
        return self.origins.get(name, name if name in self.unread else None)

    def see(self, name: str, before: Tensor | None, after: Tensor) -> None:
        if name in self.needed and constant(after) != self.needed[name]:
            raise CheckFailed(found=f"{name} is not {self.needed[name]:g} everywhere", where="the new layers")
        if before is None and after.is_floating_point() and not bool(after.isfinite().all()):
            raise CheckFailed(found=f"new values of {name} that are not finite", where="the new layers")
        if before is not None and before is not after and not same(before, after):
            raise CheckFailed(found=f"{name} has other values than before", where="the old layers")
        self.small.keep(name, self.origin(name))

    def undone(self, name: str, after: Tensor) -> Tensor | None:
        return after

    def proof(self) -> Proof:
        return self.found.proof

    def test(self, seed: int) -> Test:
        return compared_depth(*self.small.programs, self.found, True, seed)

    def dead(self, seed: int) -> list[str]:
        return dead_layers(*self.small.programs, self.found, seed)

"""Targets: passes that lead to sizes, or to a number of parameters.

The number of parameters is a polynomial in the sizes, read off the axes: of each parameter the product of its terms, of
a stack its first layer times the layers. Layers, hidden size, inner size of MLPs and the number of heads, whose size
stays, grow by one factor, and each is rounded to what its old size is a multiple of. Of all that come near the number
within the same percent the one that keeps the proportions best is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import gcd, lcm, log, prod
from typing import Any

from graphgrow.errors import OptionError, Refusal
from graphgrow.layers import stacks
from graphgrow.plan import Sizes, measured, named, plan, refuse_smaller
from graphgrow.program import Program
from graphgrow.prove.silence import silenced
from graphgrow.rewrite import Rewriter
from graphgrow.sizes import Dim, add, number, symbol, total

MISSED = 0.05  # of the number of parameters: a target that is missed by more is refused
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_COARSEST, _FINEST = 64, 8  # a size grows in steps of at most 64, and of at most an eighth of what it was
_NEAR = range(-2, 3)  # steps from the proportional size that are tried


@dataclass(frozen=True)
class Planned:
    """Passes that lead to a target. For a number of parameters, `wanted`: the sizes that it takes, how many parameters
    they have, and what is left as it is, with the reason."""

    specs: tuple[str, ...]
    sizes: Sizes | None = None
    wanted: int = 0
    parameters: int = 0
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> dict[str, Any]:
        """As plain values; nothing where sizes or passes were given."""
        found = {name: value for name, value in asdict(self).items() if name != "specs"}
        return {"target": found} if self.wanted else {}

    def __str__(self) -> str:
        if not self.wanted:
            return ""
        off = self.parameters / self.wanted - 1
        found = f"{self.parameters:,} parameters, {off:+.2%} of the {self.wanted:,} wanted: {self.sizes}"
        return "\n".join([found, *self.notes])


def planned(program: Program, target: Sizes, params: str | int | None = None) -> Planned:
    """The passes that lead to sizes, or to a number of parameters, `params`: 2x, 350M. Beside that, numbers of layers
    and the size of MLPs may be given. Raises OptionError, or Refusal where no sizes come near the number."""
    if params is None:
        return Planned(plan(program, target))
    if target != Sizes(layers=target.layers, mlp=target.mlp):
        fix = "leave it out: with a number of parameters only layers and mlp can be given"
        raise OptionError(found=f"params={params} and {target}", fix=fix)
    goal = parsed(params, program.size)
    search = _Search(program, target)
    found = search.nearest(goal)
    reached = search.count(found)
    if abs(reached - goal) > MISSED * goal:
        why = "".join(f"; {note}" for note in search.notes)
        raise Refusal(
            found=f"{goal:,} parameters, where the nearest that its sizes lead to are {reached:,}{why}",
            where=f"params={params}",
            fix=f"take params={reached} ({found})" if reached > program.size else "apply passes to axes that can grow",
        )
    larger = {name: size for name, size in vars(found).items() if size != getattr(search.now, name)}
    return Planned(plan(program, Sizes(**larger)), found, goal, reached, tuple(search.notes))


def parsed(text: str | int, now: int) -> int:
    """A number of parameters: 350M, 1.5B, or a multiple of those there are, 2x. Raises OptionError."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)(x|[kmbgt]?)", str(text).replace("_", "").strip().lower(), re.ASCII)
    if match is None:
        fix = "write a multiple, params=2x, or a number, params=350M"
        raise OptionError(found=f"params={text}, which is no number of parameters", fix=fix)
    found = round(float(match[1]) * _UNITS[match[2]]) if match[2] != "x" else round(float(match[1]) * now)
    if found <= now:
        raise OptionError(found=f"params={text}, where the model has {now:,}", fix="give a larger number, or params=2x")
    return found


def counted(program: Program, now: Sizes) -> Dim:
    """The number of parameters as a polynomial in those sizes that it has one of."""
    symbols = {
        axis.atom: symbol(kind)
        for kind in ("hidden", "mlp", "kv_heads", "heads")
        if getattr(now, kind) is not None
        for axis in named(program, kind)
    }
    found = stacks(program.graph) if now.layers is not None else ()
    first = {name for stack in found for name in stack.layers[0].tensors}
    further = {name for stack in found for layer in stack.layers[1:] for name in layer.tensors}
    parts: list[Dim] = []
    for name, tensor in program.tensors.items():
        if program.kinds[name].role == "parameter" and name not in further:
            terms = program.axes.parameters.get(name)
            shape: list[Dim] = [tensor.numel()] if terms is None else [term.resized(symbols) for term in terms]
            parts.append(total([*shape, symbol("layers")] if name in first else shape))
    return add(*parts)


@dataclass(frozen=True)
class _Steps:
    """What a size can become: what it was, and more in steps; with a step of 0 nothing else."""

    old: int
    step: int

    def near(self, size: float, further: int = 0) -> int:
        """The size that comes nearest, or one so many steps from it."""
        return self.old + max(0, round((size - self.old) / self.step) + further) * self.step if self.step else self.old


class _Search:
    """Sizes for a number of parameters, in which `given` ones are what they are; `notes` tells what can't grow."""

    def __init__(self, program: Program, given: Sizes) -> None:
        self.program, self.now, self.notes = program, measured(program), list[str]()
        refuse_smaller(self.now, given)
        polynomial = counted(program, self.now)
        terms = [((), polynomial)] if isinstance(polynomial, int) else polynomial.terms
        self.terms = [([str(factor) for factor in factors], count) for factors, count in terms]
        self.heads, self.head_size = self.now.heads or 0, self.now.head_size or 0
        self.inside = self.heads // (self.now.kv_heads or self.heads or 1)  # heads that come together
        self.steps = {kind: self._steps(kind, given) for kind in ("hidden", "mlp", "heads", "layers")}
        self.tied = self.heads > 0 and self.heads * self.head_size == self.now.hidden
        if self.tied:  # heads follow the hidden size, in steps that both can take
            step = lcm(self.steps["hidden"].step, self.steps["heads"].step * self.head_size)
            self.steps |= {"hidden": _Steps(self.heads * self.head_size, step), "heads": _Steps(self.heads, 0)}

    def _steps(self, kind: str, given: Sizes) -> _Steps:
        """The steps in which a size can grow: none where there is no such size, or it is given, or can't, which is
        noted."""
        old, wanted = getattr(self.now, kind), getattr(given, kind)
        if old is None or wanted is not None:
            self._note_unlike(kind)
            return _Steps(wanted or 1, 0)
        if kind == "heads":
            groups = self.now.kv_heads
            return _Steps(old, self.inside * self._step("kv_heads" if groups else kind, groups or old, 1))
        step = 1 if kind == "layers" else gcd(old, _COARSEST)
        while step > 1 and step * _FINEST > old:
            step //= 2
        return _Steps(old, self._step(kind, old, step))

    def _note_unlike(self, kind: str) -> None:
        """Note axes of a kind that have several sizes."""
        depths = [len(stack.layers) for stack in stacks(self.program.graph)]
        found = {number(axis.size) for axis in named(self.program, kind)} if kind != "layers" else {*depths}
        if len(found) > 1 and getattr(self.now, kind) is None:
            several = ", ".join(str(size) for size in sorted(found))
            self.notes.append(f"{kind} left as it is: there are several, of {several}")

    def _step(self, kind: str, old: int, step: int) -> int:
        """The step in which a kind grows: the old size where it does so by copies only, 0 where it does not."""
        reasons: list[str] = []
        for wanted in (step, old):
            reasons.append(self._deeper() if kind == "layers" else self._wider(kind, old + wanted))
            if not reasons[-1]:
                return wanted
        self.notes.append(f"{kind} left as it is: {reasons[0]}")
        return 0

    def _wider(self, kind: str, size: int) -> str:
        """Why all axes of a kind can't have a size. Empty when they can."""
        axes = [axis for axis in self.program.axes.named if axis.role == kind]
        frozen = [axis.frozen[0] for axis in axes if axis.frozen]
        return frozen[0] if frozen else Rewriter(self.program).why_not({axis.atom: size for axis in axes})

    def _deeper(self) -> str:
        """Why layers can't be added. Empty when they can."""
        learned = self.program.kinds.keys() - self.program.fixed
        try:
            for layer in (layer for stack in stacks(self.program.graph) for layer in stack.layers):
                silenced(self.program.graph, layer, learned)
        except Refusal as refusal:
            return refusal.found
        return ""

    # What comes near

    def nearest(self, goal: int) -> Sizes:
        """The sizes that come nearest to a number of parameters."""
        return min(self._candidates(goal), key=lambda found: self._score(found, goal))

    def _score(self, found: Sizes, goal: int) -> tuple[int, float, float]:
        """The smaller, the better: whole percents missed, how far the proportions are from what they were, and all that
        is missed."""
        missed = abs(self.count(found) / goal - 1)
        ratios = [log(getattr(found, kind) / steps.old) for kind, steps in self.steps.items() if steps.step]
        return int(100 * missed), max(ratios, default=0.0) - min(ratios, default=0.0), missed

    def _candidates(self, goal: int) -> Iterator[Sizes]:
        """Sizes near the proportional ones, and one of each brought to where it makes up for the others."""
        yield self.sizes({})
        factor = self._factor(goal, {})
        for layers in self._near("layers", factor):
            around = self._factor(goal, {"layers": layers})
            for hidden, heads, mlp in product(*(self._near(kind, around) for kind in ("hidden", "heads", "mlp"))):
                taken = {"layers": layers, "hidden": hidden, "heads": heads, "mlp": mlp}
                yield self.sizes(taken)
                for kind in ("hidden", "heads", "mlp"):
                    rest = {other: size for other, size in taken.items() if other != kind}
                    steps = self.steps[kind]
                    yield self.sizes({**rest, kind: steps.near(steps.old * self._factor(goal, rest))})

    def _near(self, kind: str, factor: float) -> list[int]:
        steps = self.steps[kind]
        return sorted({steps.near(factor * steps.old, further) for further in _NEAR})

    def _factor(self, goal: int, fixed: dict[str, int]) -> float:
        """The factor by which all sizes but those in `fixed` grow to a number of parameters."""
        free = {kind: steps for kind, steps in self.steps.items() if steps.step and kind not in fixed}

        def small(factor: float) -> bool:
            return (
                self.count(self.sizes({k: steps.near(factor * steps.old) for k, steps in free.items()} | fixed)) < goal
            )

        low, high = 1.0, 2.0
        while free and small(high) and high < goal:  # what has no parameters reaches nothing
            high *= 2
        while free and high - low > 1e-4 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if small(middle) else (low, middle)
        return low if free else 1.0

    def sizes(self, taken: Mapping[str, int]) -> Sizes:
        """All sizes: those taken, others as they are; heads follow the hidden size, and groups the heads."""
        chosen = {kind: taken.get(kind, steps.old) for kind, steps in self.steps.items()}
        if self.tied:
            chosen["heads"] = chosen["hidden"] // self.head_size
        if self.now.kv_heads:
            chosen["kv_heads"] = chosen["heads"] // self.inside
        return replace(self.now, **{kind: size for kind, size in chosen.items() if getattr(self.now, kind) is not None})

    def count(self, found: Sizes) -> int:
        """How many parameters there are at some sizes."""
        values: dict[str, Any] = {**vars(found), "heads": self.inside if self.now.kv_heads else found.heads}
        return sum(count * prod(int(values[name]) for name in factors) for factors, count in self.terms)

"""Coordinate checks: whether activations keep their size as width and density change, over a few steps of training.

A factory makes the model at several widths. What scales is found by laying the graphs over each other. At every size
hidden weights get random masks, the model takes some steps, and the mean of the absolute values of what each residual
block adds is taken (of a model without such blocks, of what each hidden weight makes; and of the output). The slope of
its logarithm over that of width, and over that of sparsity (1/density), is fitted with an intercept for every seed and
every size of the other kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import log, sqrt
from statistics import fmean
from typing import Literal, cast

import torch
from torch import Tensor, nn

from graphgrow import ops, sizes
from graphgrow.axes import Atom
from graphgrow.errors import CheckFailed, OptionError, Refusal
from graphgrow.graph import Graph, Node, Ref, TensorType
from graphgrow.program import Program
from graphgrow.rewrite import Parameterization, Rewriter
from graphgrow.rewrite.masks import masked
from graphgrow.rewrite.parameterize import Optimizer, measured
from graphgrow.rewrite.widths import Widths
from graphgrow.runtime.groups import parameter_groups
from graphgrow.tracing import trace
from graphgrow.verify.align import align

Scheme = Literal["sp", "mup", "supar"]
Verdict = Literal["stable", "grows", "vanishes", "unclear"]
Data = Callable[[Program, int, int], Mapping[str, Tensor]]  # inputs of a program for a seed and a step
Over = Literal["width", "sparsity"]
Row = tuple[object, float, float]  # a group, x, the size of an activation
# 97.5 % points of Student's t by degrees of freedom; the last is for all larger ones, for which it is wide enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_LEAST = 1e-300  # a size that has a logarithm
_PASSING = {"reshape", "permute", "unsqueeze", "expand", "getitem"}
_KEEPING = {"aten.to.dtype", "aten.clone.default", "aten.dropout.default", "aten.add.Tensor", "aten.mul.Tensor"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run: `base` is the width of the base model; `tolerance` the largest slope that counts as none: 0.2 is a
    factor of 2 over a range of 32."""

    widths: tuple[int, ...]
    densities: tuple[float, ...] = (1.0,)
    schemes: tuple[Scheme, ...] = ("supar",)
    base: int
    steps: int = 10
    seeds: int = 3
    lr: float = 1e-2
    optimizer: Optimizer = "adamw"
    batch: int = 8
    length: int = 64
    tolerance: float = 0.2

    def __post_init__(self) -> None:
        if min(len(set(self.widths)), len(set(self.densities))) < 1 or max(len(self.widths), len(self.densities)) < 2:
            raise OptionError(found="one width and one density", fix="give several of one of them to compare")
        if not all(0 < density <= 1 for density in self.densities):
            raise OptionError(found=f"densities {self.densities}", fix="give densities above 0 and at most 1")
        if min((*self.widths, self.base, self.steps, self.batch, self.length)) < 1:
            raise OptionError(found="a width, a number of steps or a size below 1", fix="give positive numbers")
        if self.seeds < 2:
            raise OptionError(found=f"{self.seeds} seeds, which give no interval", fix="give at least 2")
        if not (self.lr > 0 and self.tolerance > 0):
            raise OptionError(found=f"lr={self.lr}, tolerance={self.tolerance}", fix="give positive numbers")

    @property
    def runs(self) -> int:
        return len(self.schemes) * len(self.widths) * len(self.densities) * self.seeds


@dataclass(frozen=True)
class Point:
    """The mean absolute value of one activation after training."""

    scheme: Scheme
    activation: str
    width: int
    density: float
    seed: int
    size: float


@dataclass(frozen=True)
class Slope:
    """How one activation follows width or 1/density: the exponent, its 95 % interval, and what that says."""

    scheme: Scheme
    activation: str
    over: Over
    value: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Coordinates:
    """All points of a check, and their slopes."""

    settings: Settings
    points: tuple[Point, ...]

    @cached_property
    def slopes(self) -> tuple[Slope, ...]:
        found: list[Slope] = []
        for scheme in self.settings.schemes:
            for activation in dict.fromkeys(point.activation for point in self.points):
                mine = [one for one in self.points if (one.scheme, one.activation) == (scheme, activation)]
                over_width = [((one.density, one.seed), float(one.width), one.size) for one in mine]
                over_sparsity = [((one.width, one.seed), 1 / one.density, one.size) for one in mine]
                found += self._slope(scheme, activation, "width", over_width)
                found += self._slope(scheme, activation, "sparsity", over_sparsity)
        return tuple(found)

    def _slope(self, scheme: Scheme, activation: str, over: Over, rows: Sequence[Row]) -> Iterator[Slope]:
        if len({x for _, x, _ in rows}) > 1:
            value, half = fitted(rows)
            low, high = value - half, value + half
            yield Slope(scheme, activation, over, value, low, high, verdict(low, high, self.settings.tolerance))

    def verdict(self, scheme: Scheme) -> Verdict:
        """Stable where every slope is; else what the first that is not does, those that are sure before others."""
        found = [slope.verdict for slope in self.slopes if slope.scheme == scheme]
        worst: tuple[Verdict, ...] = ("vanishes", "grows", "unclear", "stable")
        return worst[min((worst.index(one) for one in found), default=-1)]

    @property
    def stable(self) -> bool:
        return all(self.verdict(scheme) == "stable" for scheme in self.settings.schemes)


def verdict(low: float, high: float, tolerance: float) -> Verdict:
    """What an interval of a slope says: stable if all of it is within the tolerance."""
    if -tolerance <= low and high <= tolerance:
        return "stable"
    return "grows" if low > tolerance else "vanishes" if high < -tolerance else "unclear"


def fitted(rows: Sequence[Row]) -> tuple[float, float]:
    """The slope of log size over log x, each group with an intercept of its own (least squares), and half its 95 %
    interval by Student's t."""
    pairs: list[tuple[float, float]] = []  # from the mean of the group
    groups = {row[0] for row in rows}
    for group in groups:
        own = [(log(x), log(max(size, _LEAST))) for one, x, size in rows if one == group]
        x_mean, y_mean = fmean(x for x, _ in own), fmean(y for _, y in own)
        pairs += [(x - x_mean, y - y_mean) for x, y in own]
    below = sum(x * x for x, _ in pairs)
    slope = sum(x * y for x, y in pairs) / below
    freedom = len(rows) - len(groups) - 1
    if freedom < 1:
        return slope, float("inf")
    error = sqrt(sum((y - slope * x) ** 2 for x, y in pairs) / freedom / below)
    return slope, _T[min(freedom, len(_T)) - 1] * error


# Running


def coordinates(
    factory: Callable[[int], object],
    settings: Settings,
    data: Data | None = None,
    done: Callable[[], None] | None = None,
) -> Coordinates:
    """Train a model of every size and look at its activations. `factory(width)` gives a model, or a model and its
    example inputs; `data` inputs by seed and step (default: random ones, the same at every size). Raises Refusal or
    CheckFailed where sizes have other graphs, OptionError where the factory does not scale."""
    check = _Check(factory, settings, data or random_inputs(settings))
    return Coordinates(settings, tuple(check.points(done or (lambda: None))))


@dataclass(frozen=True, eq=False)
class _Check:
    factory: Callable[[int], object]
    settings: Settings
    data: Data
    traced: dict[int, Program] = field(default_factory=dict[int, Program])

    def points(self, done: Callable[[], None]) -> Iterator[Point]:
        settings = self.settings
        for width in settings.widths:
            base = self.base_sizes(width)
            for seed in range(settings.seeds):
                begun, started = self.program(width, seed), self.program(settings.base, seed)
                sigma = {name: measured(tensor, None) for name, tensor in started.tensors.items()
                         if tensor.is_floating_point()}  # fmt: skip
                for density in settings.densities:
                    masked = with_masks(begun, Widths(begun, base), density, seed)
                    for scheme in settings.schemes:
                        program = parameterized(masked, scheme, base, density, sigma, seed, settings.optimizer)
                        for activation, size in self.measured(program, Widths(program, base), seed).items():
                            yield Point(scheme, activation, width, density, seed, size)
                        done()

    def program(self, width: int, seed: int) -> Program:
        """The model of a width with the weights of a seed. Its graph is traced once."""
        before = torch.get_rng_state()
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        try:
            made = self.factory(width)
        finally:
            torch.set_rng_state(before)
        model, example = cast("tuple[object, object]", made) if isinstance(made, tuple) else (made, None)
        if not isinstance(model, nn.Module):
            raise OptionError(found=f"a factory that gives a {type(model).__name__}", fix="return a module")
        if width not in self.traced:
            self.traced[width] = trace(model, example, check=False)
        return self.traced[width].trained(model)

    def base_sizes(self, width: int) -> dict[Atom, int]:
        """The axes that scale with the width, with their sizes in the base model."""
        base, other = self.settings.base, width if width != self.settings.base else 2 * width
        own, against = self.program(width, 0), self.program(base if width != base else other, 0)
        try:
            scaled = align(own, against).sizes
        except CheckFailed as error:
            error.where = f"the models of width {width} and {base}: {error.where}"
            error.fix = "write a factory whose models differ in the sizes of axes only"
            raise
        if not scaled:
            fix = "let the sizes of its axes follow the width that it is called with"
            raise OptionError(found=f"a factory whose models of width {base} and {other} are the same size", fix=fix)
        return {atom: size if width != base else sizes.number(atom.size) for atom, size in scaled.items()}

    def measured(self, program: Program, widths: Widths, seed: int) -> dict[str, float]:
        """Train for some steps, and give the mean absolute value of every activation."""
        settings, watched, output = self.settings, activations(widths), output_of(widths)
        names = (*watched.values(), output)
        graph = replace(program.graph, outputs=tuple(Ref(name) for name in names))
        module = program.replace(graph=graph).module()
        optimizer = _optimizer(module, settings)
        for step in range(settings.steps):
            inputs = self.data(program, seed, step)
            optimizer.zero_grad()
            loss = loss_of(module.train()(**inputs)[-1], inputs, seed)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        with torch.no_grad():
            values: tuple[Tensor, ...] = module.eval()(**self.data(program, seed, 0))
        return {
            name: float(value.double().abs().mean()) for name, value in zip((*watched, "output"), values, strict=True)
        }


def _optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = parameter_groups(module, settings.lr)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[settings.optimizer](groups, lr=settings.lr)


def parameterized(
    program: Program,
    scheme: Scheme,
    base: Mapping[Atom, int],
    density: float,
    sigma: Mapping[str, float],
    seed: int,
    optimizer: Optimizer = "adamw",
) -> Program:
    """A program by one of three parameterizations: as the factory has it (`sp`), muP, which knows nothing of density,
    or SmuPar. `sigma` has the deviations of the base model's weights."""
    if scheme == "sp":
        return program
    rewriter = Rewriter(program, seed)
    known = density if scheme == "mup" else 1.0  # to muP the density is that of the base model
    rewriter.restart(Parameterization(base, known, optimizer=optimizer), sigma)
    return rewriter.program


# What is masked, watched and minimised


def with_masks(program: Program, widths: Widths, density: float, seed: int) -> Program:
    """The program with random masks on its hidden weights, each with exactly that part of ones."""
    chosen: dict[str, tuple[Tensor, str]] = {}
    for name, weight in widths.weights.items() if density < 1 else ():
        if weight.part == "hidden" and name not in widths.masks:
            shape = program.tensors[name].shape
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            order = torch.randperm(shape.numel(), generator=generator)
            mask = torch.zeros(len(order), dtype=torch.bool)
            mask[order[: max(1, round(density * len(order)))]] = True
            chosen[name] = (mask.reshape(shape), "unstructured")
    return masked(program, chosen)


def activations(widths: Widths) -> dict[str, str]:
    """What every hidden weight adds to a residual stream, or, where none does, what each makes: nodes by the weights'
    names."""
    graph, hidden = widths.program.graph, dict[str, str]()
    for name, weight in widths.weights.items():
        if weight.part == "hidden":
            hidden |= {name if len(weight.uses) == 1 else f"{name} ({use})": use for use in weight.uses}
    joined = {name: found for name, use in hidden.items() if (found := _joined(widths, use))}
    found = joined or {name: _followed(graph, use, widths.made)[0] for name, use in hidden.items()}
    return {name.removesuffix(".weight"): node for name, node in found.items()}


def _followed(graph: Graph, name: str, made: Mapping[str, tuple[str, ...]]) -> tuple[str, Node | None]:
    """What becomes of a value until the first operator that has another activation or is not linear, and that."""
    while True:
        users = graph.users[name]
        if len(users) != 1:
            return name, None
        user = users[0]
        others = [operand for operand in user.operands() if operand != name]
        passing = ops.kind(user.op) in _PASSING or user.op in _KEEPING
        if not passing or any(operand not in made for operand in others):
            return name, user
        name = user.name


def _joined(widths: Widths, use: str) -> str:
    """The value that a weight adds to another activation of the same shape; empty where it adds none."""
    graph = widths.program.graph
    value, user = _followed(graph, use, widths.made)
    if user is None or user.op != "aten.add.Tensor":
        return ""
    return value if all(graph[name].shape == graph[value].shape for name in user.operands()) else ""


def output_of(widths: Widths) -> str:
    """The output that is trained: the first of floating numbers that no width is in."""
    program = widths.program
    for name in program.graph.output_names:
        node = program.graph[name]
        floating = isinstance(node.type, TensorType) and node.type.dtype.startswith(("weights", "float", "bfloat"))
        if floating and not widths.wide(program.axes.terms[name]):
            return name
    raise Refusal(
        found="no output of numbers whose size is the same at every width",
        where="the outputs of the model",
        fix="give a model with a head: logits, or a loss",
    )


def loss_of(output: Tensor, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
    """What is minimised: a loss as it is; of logits for tokens the cross-entropy of the next one; of other outputs
    that of random classes, the same at every size."""
    if output.dim() == 0:
        return output
    rows = output.float().flatten(0, -2)
    tokens = next((one for one in inputs.values() if one.dtype == torch.long and one.shape == output.shape[:-1]), None)
    if tokens is not None and output.dim() > 2 and int(tokens.max()) < output.shape[-1]:
        return nn.functional.cross_entropy(output[:, :-1].float().flatten(0, -2), tokens[:, 1:].flatten())
    generator = torch.Generator().manual_seed(seed)
    if rows.shape[-1] == 1:
        return (rows - torch.randn(rows.shape, generator=generator)).square().mean()
    return nn.functional.cross_entropy(rows, torch.randint(rows.shape[-1], rows.shape[:1], generator=generator))


# Data


def random_inputs(settings: Settings) -> Data:
    """Random inputs: the same at every step, so that there is something to learn, and at every size."""

    def inputs(program: Program, seed: int, step: int) -> Mapping[str, Tensor]:
        return program.example(dynamic(program, settings), seed=seed)

    return inputs


def text_inputs(settings: Settings, text: Tensor) -> Data:
    """Windows of a text, in place of every input of tokens; others are as in the examples."""

    def inputs(program: Program, seed: int, step: int) -> Mapping[str, Tensor]:
        found = program.example(dynamic(program, settings), seed=seed)
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for name, size in vocabularies(program).items():
            batch, length = found[name].shape
            starts = torch.randint(len(text) - length, (batch, 1), generator=generator)
            found[name] = text[starts + torch.arange(length)] % size
        return found

    return inputs


def vocabularies(program: Program) -> dict[str, int]:
    """The inputs of tokens, (batch, length), each with the number of rows of the table that it picks from."""
    found: dict[str, int] = {}
    for lookup, term in program.axes.lookups:
        node = program.graph[lookup.index]
        if node.op == "input" and len(node.shape) == 2 and ops.kind(lookup.node.op) == "embedding":
            found[node.name] = min(found.get(node.name, sizes.number(term.size)), sizes.number(term.size))
    return found


def dynamic(program: Program, settings: Settings) -> dict[str, int]:
    """The dynamic sizes: the batch and the length of the settings, within the bounds of the trace."""
    found: dict[str, int] = {}
    for name, origin in program.graph.symbols.items():
        wanted = max(settings.batch if name.startswith("batch") else settings.length, origin.low)
        found[name] = wanted if origin.high is None else min(wanted, origin.high)
    return found

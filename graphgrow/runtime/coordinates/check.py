"""The check itself: sizes, seeds and steps.

A factory makes the model at several widths. What scales is found by laying the graphs over each other. At every size
hidden weights get random masks, the model takes some steps, and the mean of the absolute values of what each residual
block adds is taken (of a model without such blocks, of what each hidden weight makes; and of the output). How these
follow the sizes is fitted (`slopes`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from graphgrow import sizes
from graphgrow.axes import Atom
from graphgrow.errors import CheckFailed, OptionError
from graphgrow.graph import Ref
from graphgrow.program import Program
from graphgrow.rewrite import Parameterization, Rewriter
from graphgrow.rewrite.masks import masked
from graphgrow.rewrite.parameterize import Optimizer, measured
from graphgrow.rewrite.widths import Widths
from graphgrow.runtime.coordinates.activations import activations, loss_of, output_of
from graphgrow.runtime.coordinates.inputs import Data, random_inputs
from graphgrow.runtime.coordinates.slopes import Coordinates, Point, Scheme, Settings
from graphgrow.runtime.groups import parameter_groups
from graphgrow.tracing import trace
from graphgrow.verify.align import align


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
                    sparse = with_masks(begun, Widths(begun, base), density, seed)
                    for scheme in settings.schemes:
                        program = parameterized(sparse, scheme, base, density, sigma, seed, settings.optimizer)
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

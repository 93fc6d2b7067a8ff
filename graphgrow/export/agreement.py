"""Whether an exported program computes what the program's module does, to within what rounding explains.

The tolerance is measured: the deviation of the module in its own data type from the same module in float64 is what
rounding does to this model, and another order of the same operations may do a few times that. Deviations are
relative to an output's largest value over all trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch.utils offers it under no other name

from graphgrow.errors import CheckFailed, ExportError
from graphgrow.export.capture import brief, clamped
from graphgrow.graph import Graph
from graphgrow.module import lower
from graphgrow.program import Program

# A deviation may be this many times the one between the data type and float64. In the tests' models it is up to 4.
_TIMES = 10
# And so many units of rounding in any case: the measured gap may happen to be (almost) none.
_UNITS = 16
_LONGEST = 128  # a bounded size is tried at its bound up to here

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Trial:
    """Inputs of certain sizes, the module's outputs for them, and those it has in float64."""

    sizes: Mapping[str, int]
    inputs: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    exact: tuple[Tensor, ...]


@dataclass(frozen=True)
class Deviation:
    """The worst deviation there was, the tolerance it was held to, and the output and sizes it appeared at."""

    worst: float
    tolerance: float
    output: str = ""
    sizes: Mapping[str, int] | None = None

    @property
    def share(self) -> float:
        """How much of the tolerance it takes; infinite for any deviation where none is tolerated."""
        return self.worst / self.tolerance if self.tolerance else 0.0 if self.worst == 0 else float("inf")


class Agreement:
    """The trials of one program: what an exported one must reproduce."""

    def __init__(self, program: Program, names: Sequence[str], sizes: Sequence[Mapping[str, int]] | None) -> None:
        """`names` are those of the outputs. Raises ExportError where the program itself does not run."""
        self.names = names
        self.trials = tuple(_trials(program, list(sizes or _sizes(program.graph))))
        unit = torch.finfo(getattr(torch, program.dtype)).eps
        self.tolerances = [self._tolerance(index, unit) for index in range(len(names))]

    @property
    def sizes(self) -> tuple[Mapping[str, int], ...]:
        return tuple(trial.sizes for trial in self.trials)

    def require(self, run: Run, what: str) -> Deviation:
        """The worst deviation of `run` in all trials. Raises CheckFailed where one is beyond its tolerance."""
        worst = max((found for trial in self.trials for found in self._deviations(trial, run)), key=lambda it: it.share)
        if worst.share <= 1:
            return worst
        raise CheckFailed(
            found=f"{what} that computes something else: output {worst.output!r} deviates by {worst.worst:.1e} of its "
            f"largest value, where rounding explains {worst.tolerance:.1e}",
            where=f"at {_shown(worst.sizes or {})}",
            fix="nothing was written; please report this model, it is an error of the exporter or the runtime",
        )

    def _deviations(self, trial: Trial, run: Run) -> Iterator[Deviation]:
        found = [_real(value) for value in run(trial.inputs)]
        for index, (name, expected, given) in enumerate(zip(self.names, trial.outputs, found, strict=True)):
            same = given.shape == expected.shape and given.dtype == expected.dtype
            near = _limited(given, given.dtype)
            distance = _distance(near, expected) / self.scale(index) if same else float("inf")
            yield Deviation(distance, self.tolerances[index], name, trial.sizes)

    def scale(self, index: int) -> float:
        """The largest finite value of an output over all trials (1 for integers, and where there is none)."""
        if not self.trials[0].outputs[index].is_floating_point():
            return 1.0
        return max(_largest(trial.exact[index]) for trial in self.trials) or 1.0

    def _tolerance(self, index: int, unit: float) -> float:
        """The largest relative deviation of an output that is rounding."""
        output = self.trials[0].outputs[index]
        if not output.is_floating_point():
            return 0.0
        unit = max(unit, torch.finfo(output.dtype).eps)
        gap = max(_distance(trial.outputs[index], trial.exact[index]) for trial in self.trials) / self.scale(index)
        return min(max(_TIMES * gap, _UNITS * unit), unit**0.5)


def _distance(left: Tensor, right: Tensor) -> float:
    """The largest difference; infinities and not-a-numbers must be the same in both."""
    left, right = left.double(), right.double()
    same = (left == right) | (left.isnan() & right.isnan())
    difference = torch.where(same, 0.0, (left - right).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(difference.max()) if difference.numel() else 0.0


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _sizes(graph: Graph) -> Iterator[Mapping[str, int]]:
    """Ordinary sizes, batch 1, shorter ones, all ones, and bounded ones at their bound."""
    names = list(graph.symbols)
    yield {}
    wanted: list[dict[str, int]] = []
    if "batch" in names:
        wanted += [{"batch": 1}, {name: 3 if name == "batch" else 4 + index for index, name in enumerate(names)}]
    wanted.append(dict.fromkeys(names, 1))
    bounds = {name: origin.high for name, origin in graph.symbols.items() if origin.high is not None}
    wanted.append({name: bound for name, bound in bounds.items() if bound <= _LONGEST})
    tried: list[dict[str, int]] = [{}]
    for sizes in (clamped(graph, wish) for wish in wanted):
        if sizes not in tried:
            tried.append(sizes)
            yield sizes


def _trials(program: Program, sizes: Sequence[Mapping[str, int]]) -> Iterator[Trial]:
    plain = lower(program.graph, program.tensors, program.kinds, program.aliases, program.dtype).eval()
    exact = lower(
        program.graph, {name: _wide(tensor) for name, tensor in program.tensors.items()},
        program.kinds, program.aliases, program.dtype, precision=torch.float64,
    ).eval()  # fmt: skip
    for number, given in enumerate(sizes):
        inputs = program.example(given, seed=number)
        if number:
            inputs = {name: _padded(tensor) for name, tensor in inputs.items()}
        found = _found(program.graph, inputs)
        wide = {name: _wide(tensor) for name, tensor in inputs.items()}
        pairs = list(zip(_outputs(plain, inputs, found), _outputs(exact, wide, found), strict=True))
        yield Trial(
            found, inputs,
            tuple(_limited(value, value.dtype) for value, _ in pairs),
            tuple(_limited(value, like.dtype) for like, value in pairs),
        )  # fmt: skip


def _found(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The dynamic sizes that inputs have."""
    read = {name: origin for name, origin in graph.symbols.items() if origin.node in inputs}
    return {name: inputs[origin.node].shape[origin.dim] for name, origin in read.items()}


def _padded(tensor: Tensor) -> Tensor:
    """A mask of ones with the end of its first row set to zero; another tensor as it is."""
    if tensor.ndim < 2 or tensor.is_floating_point() or tensor.is_complex() or not bool((tensor == 1).all()):
        return tensor
    padded = tensor.clone()
    padded[0, ..., tensor.shape[-1] * 2 // 3 + 1 :] = 0
    return padded


def _real(tensor: Tensor) -> Tensor:
    """The tensor without its history; complex numbers as pairs, as ONNX has them."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _limited(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers at the end of a type's range become infinite: masks are filled with the lowest number, and relative to
    that no deviation would show."""
    if not dtype.is_floating_point:
        return tensor
    return torch.where(tensor.abs() > torch.finfo(dtype).max / 4, tensor.sign() * torch.inf, tensor)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@torch.no_grad()  # pyright: ignore[reportUntypedFunctionDecorator]
def _outputs(module: nn.Module, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """The module's outputs in order. Raises ExportError where it does not run, or gives no numbers."""
    try:
        values: list[Any] = pytree.tree_leaves(module(**inputs))  # pyright: ignore[reportUnknownMemberType]
        outputs = [_real(torch.as_tensor(value)) for value in values if value is not None]
    except Exception as error:  # a model may fail in any way
        raise ExportError(
            found=f"a program that does not run itself: {brief(error)}",
            where=f"at {_shown(sizes)}",
            fix="give sizes that the model takes: sizes=[{'batch': 1, 'sequence': 4}]",
        ) from error
    if any(value.is_floating_point() and bool(value.isnan().all()) for value in outputs if value.numel()):
        raise ExportError(
            found="a program whose output is not a number anywhere",
            where=f"at {_shown(sizes)}",
            fix="look at its weights first: there is nothing to compare an exported model with",
        )
    return tuple(outputs)


def _shown(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its only sizes"

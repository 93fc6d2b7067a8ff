"""Programs that use one operator between parameters; `tests.operator_table` has some for every operator.

A program is written as a function of what it needs. An argument without a default is an activation, computed from the
input by a weight of its own: `u` and `v` of shape (batch, 6), others of shape (batch, 4, 6); `[3, 5]` is one of shape
(batch, 3, 5), `(3, 5)` a parameter, `Positive(3)` a buffer, and `Picks(n, k)` k indices below n for each row of the
batch. What the function returns has the batch first, or is a single number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from graphgrow import ops
from graphgrow.graph import Graph, Ref
from graphgrow.program import Program
from graphgrow.tracing import trace

Body = Callable[..., Any]
FEATURES = 5
TURNS = ("weighed", "summed")


@dataclass(frozen=True)
class _Picks:
    """Indices from the input: `count` below `size` for each row."""

    size: int
    count: int


@dataclass(frozen=True)
class _Positive:
    """A buffer of positive numbers: a running variance, the weights of a loss."""

    size: int


Picks: Any = _Picks  # defaults that stand for tensors
Positive: Any = _Positive


class Between(nn.Module):
    """The operator twice, on activations and parameters of its own each time. What it gives is once summed over with
    weights, so that new units can be kept out behind it, and once without, so that they must be zero before it."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.wanted = {
            name: one.default if one.default is not one.empty else [6] if name in ("u", "v") else [4, 6]
            for name, one in inspect.signature(body).parameters.items()
        }
        for turn in TURNS:
            for name, wanted in self.wanted.items():
                if isinstance(wanted, list | tuple):
                    shape = (prod(wanted), FEATURES) if isinstance(wanted, list) else wanted
                    self.register_parameter(f"{turn}_{name}", nn.Parameter(torch.randn(shape)))
                elif isinstance(wanted, _Positive):
                    self.register_buffer(f"{turn}_{name}", torch.rand(wanted.size) + 0.5)
        self.requires_grad_(False)
        found = self._values(TURNS[0], torch.randn(2, FEATURES).requires_grad_())
        self.types = [value.dtype for value in found]
        self.smooth = [value.requires_grad for value in found]
        for at, value in enumerate(found):
            count = (torch.view_as_real(value) if value.is_complex() else value).numel() // (
                len(value) if value.dim() else 1
            )
            self.register_parameter(f"out_{at}", nn.Parameter(torch.randn(3, count)))

    def _values(self, turn: str, x: Tensor) -> list[Tensor]:
        given: dict[str, Any] = {}
        for name, wanted in self.wanted.items():
            if isinstance(wanted, _Picks):
                given[name] = (x[:, : wanted.count].abs() * 7).long() % wanted.size
            elif isinstance(wanted, list):
                given[name] = nn.functional.linear(x, self.get_parameter(f"{turn}_{name}")).unflatten(1, wanted)
            else:
                given[name] = getattr(self, f"{turn}_{name}") if isinstance(wanted, tuple | _Positive) else wanted
        found = self.body(**given)
        return [found] if isinstance(found, Tensor) else [value for value in found if isinstance(value, Tensor)]

    def forward(self, x: Tensor) -> list[Tensor]:
        weighed, summed = ([self._plain(at, v, x) for at, v in enumerate(self._values(turn, x))] for turn in TURNS)
        found = [nn.functional.linear(v.flatten(1), self.get_parameter(f"out_{at}")) for at, v in enumerate(weighed)]
        return found + [value.sum(list(range(1, value.dim()))) for value in summed]

    def _plain(self, at: int, value: Tensor, x: Tensor) -> Tensor:
        """A floating tensor with the batch first, through which gradients of the input pass."""
        value = torch.view_as_real(value) if value.is_complex() else value
        value = value if value.is_floating_point() else value.to(x.dtype)
        if value.dim() == 0 or not self.smooth[at]:
            value = value * x.sum(1).reshape(-1, *[1] * (value.dim() - 1))
        return value if value.dim() > 1 else value[:, None]


class Modes(nn.Module):
    """What only two captures give: an operand and an argument by mode, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.up(x))
        h = h * torch.rand(h.shape[0], 1).floor() if self.training else h
        return self.down(torch.cat(h.split([2, 4], 1)[::-1], 1))


Template = Callable[[Any], Body]
CASES: list[tuple[str, Template]] = []
MODES = ("input", "parameter", "getitem", "by_mode", "aten.add_.Tensor")


def rows(names: str, *templates: Template) -> None:
    """Programs for several operators, `relu` or `add.Tensor`, that are called alike: functions from the operator."""
    for name in names.split():
        full = f"aten.{name}" if "." in name else f"aten.{name}.default"
        CASES.extend((full, template) for template in templates)


def row(name: str, *bodies: Body) -> None:
    """Programs for one operator."""
    rows(name, *((lambda op, body=body: body) for body in bodies))


def programs(kind: str) -> list[tuple[str, Program]]:
    """The programs of all operators of a kind. Capturing takes most of the time, so it is done once for all; of the
    operators that are called alike and give the same types, only the first is captured and then exchanged."""
    torch.manual_seed(0)
    by_modes = [op for op in MODES if ops.kind(op) == kind]
    found = [(op, trace(Modes(), {"x": torch.randn(2, FEATURES)})) for op in by_modes]
    first: dict[Any, str] = {}
    parts: dict[Any, Between] = {}
    wanted: list[tuple[str, Any]] = []
    for op, template in CASES:
        if ops.kind(op) == kind:
            _, base, overload = op.split(".")
            part = Between(template(getattr(getattr(torch.ops.aten, base), overload)))
            key = (template, *part.types)
            wanted.append((op, key))
            if key not in first:
                first[key], parts[key] = op, part
    if not wanted:
        return found
    whole = trace(_All(list(parts.values())), {"x": torch.randn(2, FEATURES)}, mode="eval", check=False)
    sliced = dict(zip(parts, _sliced(whole), strict=True))
    return found + [(op, _exchanged(sliced[key], first[key], op)) for op, key in wanted]


class _All(nn.Module):
    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.other = nn.Parameter(
            torch.zeros((), dtype=torch.float64)
        )  # weights of two types: captured once, not twice

    def forward(self, x: Tensor) -> Any:
        return [part(x) for part in self.parts]


def _sliced(whole: Program) -> list[Program]:
    """A program for each group of outputs."""
    assert isinstance(whole.graph.outputs, tuple)
    return [_part(whole, outputs) for outputs in whole.graph.outputs]


def _part(whole: Program, outputs: Any) -> Program:
    needed = {ref.name for ref in outputs if isinstance(ref, Ref)} | {node.name for node in whole.graph.inputs}
    for node in reversed(whole.graph.nodes):
        if node.name in needed:
            needed.update(node.operands())
    graph = Graph(tuple(node for node in whole.graph.nodes if node.name in needed), outputs, whole.graph.symbols)
    tensors = {name: whole.tensors[name] for name in graph.parameters}
    return whole.replace(graph=graph, tensors=tensors, kinds={name: whole.kinds[name] for name in tensors})


def _exchanged(program: Program, old: str, new: str) -> Program:
    nodes = tuple(replace(node, op=new) if node.op == old else node for node in program.graph.nodes)
    return program.replace(graph=replace(program.graph, nodes=nodes))

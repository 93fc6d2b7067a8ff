"""Mixtures made of dense parts: what the judge reads off their weights, and whether all that is new can learn."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from graphgrow.axes import Atom
from graphgrow.certificate import WHOLE, Constraint, Growth, Move, Run
from graphgrow.digest import fingerprint
from graphgrow.graph import Graph
from graphgrow.program import Program
from graphgrow.prove.numbering import Numbering
from graphgrow.verify.gradients import DRAWS, gradients_of

STEP = 0.1  # how far a step of gradient descent moves a parameter, in standard deviations
ROUNDING = 1e-9  # a gradient this small, relative to the largest, may be one of rounding


def stacked(program: Program, old: Program) -> dict[str, Hashable]:
    """The tensors that hold the same at every place of their first dimension, with what that is: equal for equal
    contents. Those without values are taken for copies of the old program's tensor of the same node."""
    before = old.graph.by_name
    found: dict[str, Hashable] = {}
    for name, node in program.graph.parameters.items():
        tensor = program.tensors[name].detach()
        if tensor.dim() < 2 or tensor.shape[0] < 2:
            continue
        one = tuple(tensor.shape[1:])
        if tensor.is_meta:
            if node.name in before and before[node.name].shape == one:
                found[name] = (tensor.dtype, torch.Size(one), node.name)
        elif all(torch.equal(tensor[0], other) for other in tensor[1:]):
            found[name] = (tensor.dtype, torch.Size(one), fingerprint(tensor[0]))
    return found


@dataclass(frozen=True)
class Mixture:
    """The parameters of one mixture: stacks of equal experts, and all others, the router's."""

    experts: tuple[str, ...]
    others: tuple[str, ...]


def mixtures(graph: Graph, numbering: Numbering, numbers: Mapping[str, int], known: Set[int]) -> Iterator[Mixture]:
    """Where a sum over experts is what each of them has: what is read there and was not `known` before."""
    for end in numbering.averages:
        seen, waiting = set[str](), [*graph[end].operands()]
        while waiting:
            name = waiting.pop()
            if name not in seen and numbers.get(name, -1) not in known:
                seen.add(name)
                waiting += graph[name].operands()
        found = [name for name in sorted(seen, key=graph.order.__getitem__) if graph[name].op == "parameter"]
        parts: dict[bool, list[str]] = {True: [], False: []}
        for name in found:
            parts[numbers[name] in numbering.alike].append(str(graph[name].args[0]))
        yield Mixture(tuple(parts[True]), tuple(parts[False]))


def copies(program: Program, found: Mixture) -> Iterator[Constraint]:
    """What stacked parameters must hold."""
    for name in found.experts:
        text = "the same for all experts"
        yield Constraint(parameter=name, dim=WHOLE, axis=_axis(program, name), fill="copy", text=text)


def growth(program: Program, found: Mixture) -> Growth:
    """The axis along which experts are stacked."""
    name = found.experts[0]
    return Growth(axis=_axis(program, name), old=1, new=program.tensors[name].shape[0])


def _axis(program: Program, parameter: str) -> str:
    first = program.axes.parameters[parameter][0]
    named = {axis.atom: axis.name for axis in program.axes.named}
    return named.get(first, "") if isinstance(first, Atom) else ""


def stacks(old: Program, new: Program, found: Mixture) -> Iterator[Move]:
    """Every expert has the old values, and on average its share of the gradient. A router has nothing of them, and
    belongs where the first expert's weights do."""
    before = {node.name: name for name, node in old.graph.parameters.items()}
    origins = {name: before.get(new.graph.parameters[name].name, "") for name in found.experts}
    for name, origin in origins.items():
        shape = tuple(new.tensors[name].shape)
        if origin:
            runs = tuple((Run(to=0, start=0, length=size),) for size in shape)
            yield Move(old=origin, new=name, shape=shape, copies=shape[0], runs=runs, stacked=True)
    like = next((origin for origin in origins.values() if origin), "")
    for name in found.others:
        yield Move(old=like, new=name, shape=tuple(new.tensors[name].shape), fresh=True)


def dead_parameters(program: Program, names: Set[str], seed: int) -> list[str]:
    """The parameters among these that get no gradient, neither now nor after a step of gradient descent: while all
    experts are the same, no score of a router matters."""
    alive: set[str] = set()
    for draw in range(DRAWS):
        tensors = dict(program.tensors)
        for _ in range(2):
            found = gradients_of(program, tensors, names, seed + draw)
            if found is None:
                return []
            largest = max((float(gradient.abs().max()) for gradient in found.values()), default=0.0)
            alive.update(n for n, gradient in found.items() if float(gradient.abs().max()) > ROUNDING * largest)
            if alive >= names:
                return []
            tensors |= {name: _moved(tensors[name], gradient) for name, gradient in found.items()}
    return sorted(names - alive)


def _moved(tensor: Tensor, gradient: Tensor) -> Tensor:
    size = float(tensor.detach().double().std()) / (float(gradient.std()) or 1.0)
    return tensor.detach().double() - STEP * size * gradient

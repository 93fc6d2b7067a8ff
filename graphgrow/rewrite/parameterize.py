"""The parts of a maximal update parameterization: multipliers in the graph, the training recipe, fresh weights.

A multiplier is one `mul` by a number, right after the sum of embeddings and right before the weight that makes an
output. One that is there already is used, whoever put it there: numbers that follow a width (a table's sqrt(d)) are
held at what they are in the base model, and any other is exchanged.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from math import isclose, prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.axes import Atom
from graphgrow.graph import Graph, Kind, Node, Ref, Tuning, leaves
from graphgrow.program import Program
from graphgrow.prove import Number
from graphgrow.rewrite.resize import literal
from graphgrow.rewrite.widths import Weight, Widths, data_operand

Optimizer = Literal["adamw", "adam", "sgd"]
MARK = "width multiplier"  # the source of the nodes that are put in here
_CLOSE = 1e-6
_POWERS = (-1.0, -0.5, 0.5, 1.0)
_CASTS = {"aten.to.dtype", "aten.clone.default"}


@dataclass(frozen=True)
class Parameterization:
    """What is asked for: base sizes of the axes that are widths, the base density of weights, constants, and for which
    optimizer. `attention`: scores are divided by the size of keys, not its root."""

    base: Mapping[Atom, int]
    density: float = 1.0
    alpha_in: float | None = None
    alpha_out: float = 1.0
    attention: bool = True
    optimizer: Optimizer = "adamw"
    keep_decay: bool = True


@dataclass(frozen=True)
class Multipliers:
    """A program with a place for every multiplier (a new one is 1.0), and the numbers that are to stand there."""

    program: Program
    numbers: Mapping[Number, float]

    @property
    def factors(self) -> dict[Number, float]:
        """By how much each number is to be multiplied, where it is."""
        found = {place: value / literal(self.program, place) for place, value in self.numbers.items()}
        return {place: factor for place, factor in found.items() if factor != 1.0}


def multipliers(widths: Widths, wanted: Parameterization) -> Multipliers:
    """The multipliers of embeddings (`alpha_in` None leaves what there is), outputs and attention's scores."""
    found = _Multipliers(widths)
    for name in widths.streams:
        found.after(name, wanted.alpha_in)
    for use, per_neuron in widths.outputs.items():
        found.before(use, wanted.alpha_out / per_neuron)
    for one in widths.attentions if wanted.attention else ():
        found.scores(one.node, sqrt(one.base) / one.size, one.base / one.size)
    found.insert()
    return Multipliers(widths.program.replace(graph=found.graph), found.numbers)


class _Multipliers:
    """Puts multipliers into a graph one by one."""

    def __init__(self, widths: Widths) -> None:
        self.widths, self.graph = widths, widths.program.graph
        self.numbers: dict[Number, float] = {}
        self.made = 0
        self.waiting: list[tuple[Node, str, list[str]]] = []  # new nodes, and for whom each takes the place of what

    def after(self, name: str, value: float | None) -> None:
        """A multiplier of a value, in front of all that reads it."""
        at, place = name, None
        while place is None and (factor := _factor(self._only(at))):
            place, at = self._own(factor, name), factor.name
        if value is None:
            return
        if place is None and value != 1:
            place = self._put(at, [user.name for user in self.graph.users[at]])
            self.insert()
        if place is not None:
            self.numbers[place] = value

    def before(self, use: str, value: float) -> None:
        """A multiplier of what an operator with a weight reads; one of what it makes serves as well."""
        name = data_operand(self.graph[use], self.widths.made)
        place, at = None, self.graph[name]
        while place is None and (at.op in _CASTS or _factor(at)):
            place = self._own(at, name) if _factor(at) and (at.name, _SECOND) not in self.numbers else None
            at = self.graph[next(at.operands())]
        following = self._only(use)
        while place is None and following and (following.op in _CASTS or _factor(following)):
            place = self._own(following, name) if _factor(following) else None
            following = self._only(following.name)
        if place is None and value != 1:
            place = self._put(name, [use])
            self.insert()
        if place is not None:
            self.numbers[place] = value

    def scores(self, name: str, value: float, relative: float) -> None:
        """Attention's scale: of several numbers the first makes up for the others; where there is none, one that is 1
        in the base model."""
        scales = self._scales(name)
        own = [one for one in scales if one.source == MARK]
        if own:
            self.numbers[own[0].name, _SECOND] = relative
        elif scales:
            wanted = value / prod(_value(other) for other in scales[1:])
            first = scales[0]
            place = ("scale",) if ops.kind(first.op) == "attention" else _SECOND
            self.numbers[first.name, place] = 1 / wanted if first.op in _DIVISIONS else wanted
        else:
            query = next(self.graph[name].operands())
            self.numbers[self._put(query, [name])] = relative

    def _scales(self, name: str) -> list[Node]:
        """The nodes that multiply scores by a number other than 1: the operator itself, those right after, and right
        before of queries and keys."""
        node = self.graph[name]
        found = [node] if ops.kind(node.op) == "attention" else []
        at = None if found else self._only(name)
        while at is not None and _passes(at):
            found.append(at)
            at = self._only(at.name)
        for operand in list(node.operands())[:2]:
            at = self.graph[operand]
            while _passes(at):
                found.append(at)
                at = self.graph[next(at.operands())]
        scales = [one for one in found if one is node or _factor(one, _DIVISIONS)]
        return [one for one in scales if _value(one) != 1 or one.source == MARK]

    def _own(self, factor: Node, name: str) -> Number | None:
        """The place of a number that is a multiplier; None for one that follows the width of a value: it is held at
        what it is in the base model."""
        if factor.source == MARK:
            return factor.name, _SECOND
        now, base = self.widths.grown(self.widths.program.axes.terms[name][-1:])
        for power in _POWERS:
            if base > 1 and any(isclose(_value(factor), size**power, rel_tol=_CLOSE) for size in (now, base)):
                self.numbers[factor.name, _SECOND] = base**power
                return None
        return factor.name, _SECOND

    def _only(self, name: str) -> Node | None:
        """The one reader of a value."""
        users = self.graph.users[name]
        return users[0] if len(users) == 1 and name not in leaves(self.graph.outputs) else None

    def _put(self, name: str, users: list[str]) -> Number:
        """Have what some nodes read of a value multiplied by 1.0, from `insert` on."""
        while (new := f"multiplier_{self.made}") in self.graph.by_name:
            self.made += 1
        self.made += 1
        source = self.graph[name]
        node = Node(new, "aten.mul.Tensor", (Ref(name), 1.0), (), source.type, source.scope, MARK)
        self.waiting.append((node, name, users))
        return new, _SECOND

    def insert(self) -> None:
        """Put the nodes that wait into the graph."""
        read = {(user, Ref(name)): Ref(node.name) for node, name, users in self.waiting for user in users}
        after = dict[str, list[Node]]()
        for node, name, _ in self.waiting:
            after.setdefault(name, []).append(node)
        nodes: list[Node] = []
        for one in self.graph.nodes:
            changed = one.map(lambda a: read.get((one.name, a), a) if isinstance(a, Ref) else a)  # noqa: B023
            nodes += [changed, *after.get(one.name, ())]
        if self.waiting:
            self.graph = Graph(tuple(nodes), self.graph.outputs, self.graph.symbols)
            self.waiting.clear()


_SECOND: tuple[int | str, ...] = ("args", 1)
_PRODUCTS = {"aten.mul.Tensor", "aten.mul.Scalar"}
_DIVISIONS = {"aten.div.Tensor", "aten.div.Scalar"}
_MOVES = {"reshape", "permute", "unsqueeze", "expand"}


def _factor(node: Node | None, more: Set[str] = frozenset()) -> Node | None:
    """A node that multiplies by a number."""
    if node is None or node.op not in _PRODUCTS | more or len(node.args) < 2:
        return None
    return node if isinstance(node.args[1], float) and node.args[1] else None


def _passes(node: Node) -> bool:
    """Whether a node only moves values, or multiplies them by a number."""
    return node.op in _CASTS or ops.kind(node.op) in _MOVES or _factor(node, _DIVISIONS) is not None


def _value(node: Node) -> float:
    """What a node multiplies by: attention its scores."""
    value = dict(node.kwargs)["scale"] if ops.kind(node.op) == "attention" else node.args[1]
    assert isinstance(value, float)
    return 1 / value if node.op in _DIVISIONS else value


# What training follows


def tuned(widths: Widths, wanted: Parameterization) -> dict[str, Kind]:
    """The kinds of all tensors, with the recipe of every parameter that learns."""
    kinds = dict(widths.program.kinds)
    for name, weight in widths.weights.items():
        kinds[name] = replace(kinds[name], tuning=tuning(weight, wanted.optimizer, wanted.keep_decay))
    return kinds


def tuning(weight: Weight, optimizer: Optimizer, keep_decay: bool) -> Tuning:
    """The recipe of one parameter. Adam: hidden weights learn 1/(m rho) as fast, and their gradients, to which eps is
    added, are 1/m of the base model's. SGD: hidden weights 1/rho, all others as many times as fast as their width. A
    weight decay that is multiplied by the rate is kept by the inverse; vectors have none."""
    if weight.part == "vector":
        return Tuning(weight.width if optimizer == "sgd" else 1.0, 0.0)
    if optimizer == "sgd":
        rates = {"input": weight.width / weight.density, "output": weight.per_neuron, "hidden": 1 / weight.density}
        rate = rates[weight.part] if not weight.looked_up or weight.uses else weight.width
    else:
        rate = 1.0 if weight.part == "output" else 1 / weight.per_neuron
    decay = 1 / rate if keep_decay and optimizer != "adam" else 1.0
    eps = 1 / weight.multiplier if weight.part == "hidden" and optimizer != "sgd" else 1.0
    return Tuning(rate, decay, eps)


# Fresh weights


def restarted(widths: Widths, sigma: float | Mapping[str, float] | None, seed: int) -> dict[str, Tensor]:
    """All tensors, with new random weights and tables; `sigma` is their deviation in the base model (of each its own,
    or as it is now). Vectors stay, and rows of zeros in tables (padding)."""
    tensors = dict(widths.program.tensors)
    for name, weight in widths.weights.items():
        if weight.part == "vector":
            continue
        old, mask = tensors[name].detach(), tensors[widths.masks[name]] if name in widths.masks else None
        base = sigma if isinstance(sigma, float | int) else (sigma or {}).get(name, measured(old, mask))
        new = drawn(name, old, mask, deviation(weight, base), seed)
        if weight.looked_up:
            new[(old == 0).flatten(1).all(1)] = 0
        tensors[name] = new.requires_grad_(tensors[name].requires_grad)
    return tensors


def deviation(weight: Weight, base: float) -> float:
    """The standard deviation with which a weight starts that has `base` in the base model: its variance is by
    the number of weights that a unit sums over; tables and output weights keep it."""
    return base if weight.looked_up or weight.part == "output" else base / sqrt(weight.per_neuron)


def measured(values: Tensor, mask: Tensor | None) -> float:
    """The standard deviation (around zero) of the weights that a mask lets through."""
    live = values.detach() if mask is None else values.detach()[mask]
    return float(live.double().square().mean().sqrt())


def drawn(name: str, values: Tensor, mask: Tensor | None, std: float, seed: int) -> Tensor:
    """Normal values for a weight; zero where it is masked."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    new = torch.empty(values.shape, dtype=values.dtype).normal_(0.0, std, generator=generator)
    return new if mask is None else new * mask

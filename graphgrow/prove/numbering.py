"""Value numbering over two graphs: nodes with one number hold one value.

A node's number stands for its operator, the numbers of what it reads, and its other arguments; a parameter's for its
contents. These laws bring different graphs together: x + 0 = x and x * 1 = x; an operator that does nothing to its own
results (relu(relu(x)) = relu(x), also through max-pooling) is left out; so is a reshape to the shape from before
another one, and a permutation that moves dimensions of size 1 is a reshape; all zeros of one type are equal;
contractions are einsums, and what they add is a sum; and what is the same for all experts is what each of them has,
also when it is added up with weights that sum to one (`mixtures`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from graphgrow import ops
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Argument, Graph, Node, Ref, TensorType
from graphgrow.prove import mixtures

_NEUTRAL = {"aten.add.Tensor": 0, "aten.sub.Tensor": 0, "aten.mul.Tensor": 1}
_IDEMPOTENT = {"aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp_min.default",
               "aten.to.dtype", "aten.clamp.default"}  # fmt: skip
_CHOOSES = {"aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default"}
_DRAWS = ("aten.rand", "aten.bernoulli", "aten.dropout", "aten.normal", "aten.uniform", "aten.exponential")


class Made(NamedTuple):
    """What a value is: the operator, the number of its first operand, all other arguments, and the type."""

    op: str
    first: int
    rest: Hashable
    type: Hashable


@dataclass
class Numbering:
    """Numbers for the values of any number of graphs."""

    numbers: dict[Made, int] = field(default_factory=dict[Made, int])
    values: list[Made] = field(default_factory=list[Made])
    alike: dict[int, int] = field(default_factory=dict[int, int])  # values that do not vary along their first dimension
    averages: list[str] = field(default_factory=list[str])  # nodes that are what all experts have

    def number(self, value: Made) -> int:
        if value not in self.numbers:
            self.numbers[value] = len(self.values)
            self.values.append(value)
        return self.numbers[value]

    def graph(
        self,
        graph: Graph,
        contents: Mapping[str, Hashable],
        known: Mapping[str, float],
        slices: Mapping[str, Hashable] | None = None,
    ) -> dict[str, int]:
        """The number of every node that outputs and counters need. `contents` says what each tensor holds, by name;
        `known` gives the nodes that are zero or one everywhere; `slices` says what tensors hold at every place of their
        first dimension, where that is the same."""
        found: dict[str, int] = {}
        draws = Counter[Made]()
        live = needed(graph, known)
        for node in graph.nodes:
            if node.name not in live:
                continue
            if known.get(node.name) == 0:
                found[node.name] = self.number(Made("zero", -1, None, node.type))
            elif node.op == "parameter":
                found[node.name] = self.number(Made("tensor", -1, contents[str(node.args[0])], node.type))
                if (one := (slices or {}).get(str(node.args[0]))) is not None:
                    self.alike[found[node.name]] = self.number(
                        Made("tensor", -1, one, mixtures.without_first(node.type))
                    )
            elif node.op == "input":
                found[node.name] = self.number(Made("input", -1, node.name, node.type))
            elif (stays := kept(graph, node, known)) is not None:
                found[node.name] = found[stays]
            else:
                found[node.name] = self._mixed(graph, node, found, draws)
        return found

    def _mixed(self, graph: Graph, node: Node, found: Mapping[str, int], draws: Counter[Made]) -> int:
        """The number of a node; of one that is the same for all experts through what each has."""
        alike = {name: self.alike[found[name]] for name in node.operands() if found[name] in self.alike}
        one = mixtures.of_one(graph, node, alike) if alike else None
        if one is not None:
            value = self._computed(one, {**found, **alike}, draws)
            number = self.number(Made("alike", value, None, node.type))
            self.alike[number] = value
            return number
        summed = mixtures.summed(node)
        average = mixtures.average(self.values, self.alike, found[summed]) if summed else None
        if average is not None and self.values[average].type == node.type:
            self.averages.append(node.name)
            return average
        return self._computed(node, found, draws)

    def _computed(self, node: Node, found: Mapping[str, int], draws: Counter[Made]) -> int:
        pointwise = ops.kind(node.op) == "pointwise" and len(list(node.operands())) > 1

        def read(argument: Argument) -> Hashable:
            if isinstance(argument, tuple):
                return tuple(map(read, argument))
            if not isinstance(argument, Ref):
                return (type(argument), argument)
            return ("value", self._unpadded(found[argument.name]) if pointwise else found[argument.name])

        if ops.kind(node.op) == "contraction" and not node.kwargs:
            return self._contracted(node, found)
        first, rest = -1, node.args
        if rest and isinstance(rest[0], Ref):
            first = found[rest[0].name]
            kind = self.values[first].type
            rest = mixtures.from_the_front(node, len(kind.shape) if isinstance(kind, TensorType) else 1).args[1:]
            first = self._unpadded(first) if pointwise else first
        value = Made(node.op, first, (read(rest), *((name, read(given)) for name, given in node.kwargs)), node.type)
        if node.op in _IDEMPOTENT and self._does_nothing(value):
            return first
        if node.op == "aten.to.dtype" and self.values[first].type == node.type:
            return first
        if first >= 0 and (ops.kind(node.op) == "reshape" or _moves_ones(node, self.values[first].type)):
            return self._reshaped(value._replace(op="aten.reshape.default"))
        if node.op.startswith(_DRAWS):
            draws[value] += 1
            value = value._replace(rest=(value.rest, draws[value]))
        return self.number(value)

    def _contracted(self, node: Node, found: Mapping[str, int]) -> int:
        """A contraction as an einsum over letters in the order in which they are met, and a sum with its bias."""
        factors, bias = operands(node)
        names = [factor.name for factor in factors if isinstance(factor, Ref)]
        shapes = [kind.shape for name in names if isinstance(kind := self.values[found[name]].type, TensorType)]
        inputs, output = equation(node, [len(shape) for shape in shapes])
        letters = {letter: index for index, letter in enumerate(dict.fromkeys("".join(inputs) + output))}
        spelled = tuple(tuple(letters[letter] for letter in text) for text in (*inputs, output))
        product = self.number(Made("contraction", -1, (spelled, *(found[name] for name in names)), node.type))
        if not isinstance(bias, Ref):
            return product
        added = self._unpadded(found[bias.name])
        return self.number(Made("aten.add.Tensor", product, ((("value", added),),), node.type))

    def _unpadded(self, number: int) -> int:
        """A value without its first dimensions of size one: it broadcasts as it did."""
        kind = self.values[number].type
        if not isinstance(kind, TensorType) or not kind.shape or kind.shape[0] != 1:
            return number
        start = next((dim for dim, size in enumerate(kind.shape) if size != 1), len(kind.shape))
        shape = replace(kind, shape=kind.shape[start:])
        return self._reshaped(Made("aten.reshape.default", number, None, shape))

    def _reshaped(self, value: Made) -> int:
        """A reshape of a reshape is one of what that one reads, and nothing when the shape is the first one again."""
        origin = value.first
        while self.values[origin].op == value.op:
            origin = self.values[origin].first
        if self.values[origin].type == value.type:
            return origin
        return self.number(Made(value.op, origin, None, value.type))

    def _does_nothing(self, value: Made) -> bool:
        """Whether an operator is given the result of the same one with the same settings, or what is chosen from it."""
        made = self.values[value.first]
        while made.op in _CHOOSES:
            made = self.values[made.first]
        return made.op == value.op and made.rest == value.rest


def _moves_ones(node: Node, kind: Hashable) -> bool:
    """Whether dimensions of size 1 change places, and no others."""
    dims = node.args[1] if ops.kind(node.op) == "permute" else None
    if not isinstance(dims, tuple) or not isinstance(kind, TensorType):
        return False
    order = [dim % len(dims) for dim in dims if isinstance(dim, int) and kind.shape[dim] != 1]
    return order == sorted(order)


def kept(graph: Graph, node: Node, known: Mapping[str, float]) -> str | None:
    """The operand that a sum or product is equal to, in type and shape too, because the other one is zero or one."""
    if node.op not in _NEUTRAL:
        return None
    left, right = node.args[:2]
    stays: Argument = None
    if isinstance(right, Ref) and known.get(right.name) == _NEUTRAL[node.op]:
        stays = left
    elif isinstance(left, Ref) and known.get(left.name) == _NEUTRAL[node.op] and _commutes(node):
        stays = right
    return stays.name if isinstance(stays, Ref) and graph[stays.name].type == node.type else None


def _commutes(node: Node) -> bool:
    return node.op != "aten.sub.Tensor" and not node.kwargs


def needed(graph: Graph, known: Mapping[str, float]) -> set[str]:
    """The nodes whose numbers outputs and counters need."""
    found = set(graph.output_names) | {node.name for node in graph.nodes if ops.kind(node.op) == "counter"}
    for node in reversed(graph.nodes):
        if node.name in found:
            found.update(_read(graph, node, known))
    return found


def _read(graph: Graph, node: Node, known: Mapping[str, float]) -> Iterator[str]:
    if known.get(node.name) == 0:
        return
    stays = kept(graph, node, known)
    yield from [stays] if stays is not None else node.operands()

"""Two linear maps by stored weights in a row as one: their weights' product."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from graphgrow import ops
from graphgrow.axes.contractions import each, equation, operands
from graphgrow.graph import Argument, Graph, Node, Ref, TensorType
from graphgrow.sizes import Dim


@dataclass(frozen=True)
class Product:
    """The weight of two maps in a row: `einsum(letters, outer, inner)`, of weights by their nodes' names. What letters
    of the outer weight stay are its rows as a matrix, those of the inner one its columns (or the other way round)."""

    name: str
    outer: str
    inner: str
    letters: tuple[str, str, str]
    type: TensorType

    @property
    def einsum(self) -> str:
        return "{},{}->{}".format(*self.letters)


@dataclass(frozen=True)
class _Map:
    """A linear map: its data and its weight, by name."""

    node: Node
    data: str
    weight: str
    bias: Argument = None


def product(
    graph: Graph, outer: Node, inner: Node, fixed: Set[str], products: Mapping[str, Product]
) -> tuple[Node, Product] | None:
    """One node for two, of which the outer one reads the inner one, and its weight; None where they are not linear maps
    by stored weights, with nothing between them, whose product is a map like the outer one. `fixed` names the nodes
    that are weights, as `products` does."""
    known = fixed | products.keys()
    first, second = linear_map(graph, inner, known), linear_map(graph, outer, known)
    if first is None or second is None or first.bias is not None or second.data != inner.name:
        return None
    kinds = [products[m.weight].type if m.weight in products else graph[m.weight].tensor for m in (second, first)]
    if first.node.op == "aten.embedding.default":
        found = _looked_up(graph, second, first, kinds)
    elif {ops.kind(outer.op), ops.kind(inner.op)} == {"convolution"}:
        return _slid(second, first, kinds)
    else:
        found = _summed(graph, second, first, kinds)
    if found is None:
        return None
    letters, shape = found
    made = _ordered(second.weight, first.weight, letters, TensorType(shape, kinds[0].dtype))
    if first.node.op == "aten.embedding.default":
        return replace(first.node, name=outer.name, args=(Ref(made.name), *first.node.args[1:]), type=outer.type), made
    swapped = {second.data: first.data, second.weight: made.name}
    return outer.map(lambda a: Ref(swapped.get(a.name, a.name)) if isinstance(a, Ref) else a), made


def _ordered(outer: str, inner: str, letters: tuple[str, str, str], kind: TensorType) -> Product:
    """The product, its factors in the order of its own dimensions: a tied weight is one, whichever side data meet."""
    if letters[2][0] not in letters[0]:
        outer, inner, letters = inner, outer, (letters[1], letters[0], letters[2])
    names = dict(
        zip(dict.fromkeys((*letters[2], *letters[0], *letters[1])), "abcdefghijklmnopqrstuvwxyz", strict=False)
    )
    first, second, result = ("".join(names[letter] for letter in text) for text in letters)
    return Product(f"{outer}*{inner}:{first},{second}", outer, inner, (first, second, result), kind)


def linear_map(graph: Graph, node: Node, weights: Set[str]) -> _Map | None:
    """The node as a map of one tensor by one weight."""
    kind = ops.kind(node.op)
    if kind == "contraction":
        factors, bias = operands(node)
        names = [factor.name for factor in factors if isinstance(factor, Ref)]
        data = [name for name in names if name not in weights]
        if len(names) == 2 and len(data) == 1 and not node.kwargs:
            return _Map(node, data[0], names[1 - names.index(data[0])], bias)
    if (kind == "convolution" and "transpose" not in node.op) or node.op == "aten.embedding.default":
        first, second = node.args[:2]
        if isinstance(first, Ref) and isinstance(second, Ref):
            data, weight = (second, first) if kind == "embedding" else (first, second)
            bias = node.argument(2, "bias") if kind == "convolution" else None
            if weight.name in weights and data.name not in weights:
                return _Map(node, data.name, weight.name, bias)
    return None


def _spelled(graph: Graph, found: _Map, weight: TensorType) -> tuple[str, str, str]:
    """The letters of a contraction's data, weight and output. The data's rank follows from the output's where the data
    are what another map makes."""
    factors, _ = operands(found.node)
    ranks = [
        len(weight.shape) if isinstance(f, Ref) and f.name == found.weight else len(graph[found.data].shape)
        for f in factors
    ]
    inputs, output = equation(found.node, ranks)
    at = next(i for i, f in enumerate(factors) if isinstance(f, Ref) and f.name == found.weight)
    return inputs[1 - at], inputs[at], output


Found = tuple[tuple[str, str, str], tuple[Dim, ...]]


def _summed(graph: Graph, outer: _Map, inner: _Map, kinds: list[TensorType]) -> Found | None:
    if ops.kind(outer.node.op) != "contraction" or ops.kind(inner.node.op) != "contraction":
        return None
    data, weight, output = _spelled(graph, outer, kinds[0])
    given, first, between = _spelled(graph, inner, kinds[1])
    rank = [c for c in first if c not in given]
    gone = [c for c in first if c in given and c not in between]
    if len(between) != len(data) or len(rank) != 1 or len(gone) != 1:
        return None
    named = dict(zip(between, data, strict=True))  # the inner map's letters as the outer one's
    middle, summed = named[rank[0]], "S"
    letters = {**named, gone[0]: summed}
    if middle in output or middle not in weight or [letters[c] for c in given] != list(data.replace(middle, summed)):
        return None
    if any(letters[c] not in weight for c in first if c not in (gone[0], rank[0])):
        return None
    inside, result = "".join(letters[c] for c in first), weight.replace(middle, summed)
    return (weight, inside, result), _shape((weight, inside, result), kinds)


def _looked_up(graph: Graph, outer: _Map, inner: _Map, kinds: list[TensorType]) -> Found | None:
    if ops.kind(outer.node.op) != "contraction" or outer.bias is not None:
        return None
    data, weight, output = _spelled(graph, outer, kinds[0])
    if len(weight) != 2 or data[-1] not in weight or output[:-1] != data[:-1] or output[-1] not in weight:
        return None
    letters = (weight, f"V{data[-1]}", f"V{output[-1]}")
    return letters, _shape(letters, kinds)


def _shape(letters: tuple[str, str, str], kinds: list[TensorType]) -> tuple[Dim, ...]:
    sizes: dict[str, Dim] = {}
    for text, kind in zip(letters, kinds, strict=False):
        sizes |= dict(zip(text, kind.shape, strict=True))
    return tuple(sizes[letter] for letter in letters[2])


def _slid(outer: _Map, inner: _Map, kinds: list[TensorType]) -> tuple[Node, Product] | None:
    """Of two convolutions one at most has a window along each dimension of space; the other one stands still there."""
    settings = [_settings(found.node) for found in (outer, inner)]
    if not all(settings):
        return None
    chosen: list[_Setting] = []
    letters = ["or", "ri", "oi"]
    for dim, both in enumerate(zip(*settings, strict=True)):
        still = [kind.shape[2 + dim] == 1 and one[:2] == (1, 0) for kind, one in zip(kinds, both, strict=True)]
        if not any(still):
            return None
        moving = 1 if still[0] else 0
        chosen.append(both[moving])
        names = "abc"[dim], "xyz"[dim]
        letters = [text + name for text, name in zip(letters, (*names, names[moving]), strict=True)]
    spelled = (letters[0], letters[1], letters[2])
    kind = TensorType(_shape(spelled, kinds), kinds[0].dtype)
    made = Product(f"{outer.weight}*{inner.weight}", outer.weight, inner.weight, spelled, kind)
    stride, padding, dilation = (tuple(column) for column in zip(*chosen, strict=True))
    args = (Ref(inner.data), Ref(made.name), outer.bias, stride, padding, dilation, 1)
    return replace(outer.node, args=args, kwargs=()), made


_Setting = tuple[Argument, Argument, Argument]


def _settings(node: Node) -> list[_Setting]:
    """A convolution's stride, padding and dilation along each dimension of space; none if it has groups."""
    stride, padding, dilation, groups = canonical(node).args[3:7]
    if groups != 1 or not (isinstance(stride, tuple) and isinstance(padding, tuple) and isinstance(dilation, tuple)):
        return []
    return list(zip(stride, padding, dilation, strict=True))


def canonical(node: Node) -> Node:
    """A convolution with all its settings in place, one for each dimension of space; any other node as it is."""
    if ops.kind(node.op) != "convolution" or "transpose" in node.op:
        return node
    rank = int(node.op.split("conv")[1][0])
    settings = (node.argument(3, "stride", 1), node.argument(4, "padding", 0), node.argument(5, "dilation", 1))
    spread = (value if isinstance(value, str) else each(value, rank) for value in settings)
    args = (*node.args[:2], node.argument(2, "bias"), *spread, node.argument(6, "groups", 1))
    return replace(node, args=args, kwargs=())

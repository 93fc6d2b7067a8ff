"""Products with stored weights, and how each comes apart: a linear or another product with a matrix, an embedding, a
convolution.

A weight is read as a matrix W of m rows and n columns, and stands for left @ right, m x r and r x n. What meets the
rows of W (x W, a lookup) meets `left` first, what meets its columns (x W^T, W x, a convolution) `right` first; the
node of the other product keeps the name of the old one. A convolution (o, i, k0, k1, ...) is cut in one of two ways:
"separable", rows (o, k0) and columns (i, k1, ...), is k0 x 1 after 1 x k1; "pointwise", rows o and all else columns, is
1 x 1 after k0 x k1. No norm, bias or other operator stands between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from torch import Tensor

from graphgrow import ops
from graphgrow.axes import Axes
from graphgrow.axes.contractions import each, equation, operands
from graphgrow.graph import WEIGHTS, Argument, Graph, Node, Ref
from graphgrow.program import Program
from graphgrow.sizes import Dim

Cut = Literal["separable", "pointwise"]
Form = Literal["product", "lookup", "convolution"]
ADDED = {"aten.addmm.default": "aten.mm.default", "aten.addmv.default": "aten.mv.default"}  # and without what is added
_MATRIX = {*ADDED, *ADDED.values(), "aten.linear.default", "aten.matmul.default", "aten.einsum.default"}
_TRIVIAL = (1, 0, 1)  # stride, padding and dilation


@dataclass(frozen=True)
class Use:
    """One node that multiplies `x` by a weight: dimension `dim` of what it reads `meets` the weight's rows (0) or
    columns (1), and the new one stands there after it, if `in_place`. For lookups there is no such dimension, for
    convolutions it is the channels'."""

    node: Node
    weight: str  # its node
    form: Form
    meets: int
    x: Node
    dim: int = -1
    in_place: bool = True
    points: tuple[bool, ...] = ()  # for each dimension of space, whether the window is one point that moves by one


@dataclass(frozen=True)
class Weight:
    """A stored weight that can come apart, as a matrix of `rows` x `columns`, and every use of it. `outside` says why
    it is left alone unless it is named: it is an embedding, or makes what outputs show."""

    name: str
    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    cut: Cut
    outside: str = ""

    @property
    def outer(self) -> int:
        """The number of spatial dimensions that the left factor has."""
        return 1 if self.cut == "separable" and len(self.shape) > 2 else 0

    @property
    def rows(self) -> int:
        return self.shape[0] * prod(self.shape[2 : 2 + self.outer])

    @property
    def columns(self) -> int:
        return prod(self.shape) // self.rows

    @property
    def most(self) -> int:
        """The largest rank with which the factors hold fewer numbers than the weight."""
        return (self.rows * self.columns - 1) // (self.rows + self.columns)

    def matrix(self, tensor: Tensor) -> Tensor:
        """The weight as a matrix."""
        spatial = range(2, len(self.shape))
        order = (0, *spatial[: self.outer], 1, *spatial[self.outer :])
        return tensor.detach().permute(order).reshape(self.rows, self.columns)

    def tensors(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the matrix, (m, r) and (r, n), as weights."""
        (first, second), spatial = self.shapes(left.shape[1]), self.shape[2:]
        upright = left.reshape(self.shape[0], *spatial[: self.outer], -1).movedim(-1, 1)
        return upright.reshape(first).contiguous(), right.reshape(second).contiguous()

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the factors as weights."""
        near, far = self.shape[2 : 2 + self.outer], self.shape[2 + self.outer :]
        first = (self.shape[0], rank, *near, *[1] * len(far))
        return first, (rank, self.shape[1], *[1] * len(near), *far)

    def apart(self, use: Use, rank: int, left: str, right: str, inner: str) -> tuple[Node, Node]:
        """The two nodes in place of one, from the names of the factors' nodes and one for the first."""
        if use.form == "convolution":
            return self._convolutions(use, rank, left, right, inner)
        near, far = (left, right) if use.meets == 0 else (right, left)
        if use.form == "product":
            return _products(use, rank, near, far, inner)
        first = replace(_sized(use.node, -1, rank), name=inner, args=(Ref(near), *use.node.args[1:]))
        return first, replace(use.node, op="aten.matmul.default", args=(Ref(inner), Ref(far)), kwargs=())

    def _convolutions(self, use: Use, rank: int, left: str, right: str, inner: str) -> tuple[Node, Node]:
        node, spatial = use.node, len(self.shape) - 2
        first = use.dim + 1 + self.outer  # the first dimension that the inner one slides along
        bias, *settings, _ = convolved(node)
        outer, own = list[Argument](), list[Argument]()
        for value, trivial in zip(settings, _TRIVIAL, strict=True):
            spread = each(value, spatial)
            outer.append(
                value if isinstance(value, str) else (*spread[: self.outer], *[trivial] * (spatial - self.outer))
            )
            own.append(value if isinstance(value, str) else (*[trivial] * self.outer, *spread[self.outer :]))
        shape = (*node.shape[: use.dim], rank, *use.x.shape[use.dim + 1 : first], *node.shape[first:])
        kind = replace(node.tensor, shape=shape)
        args = conv_arguments(Ref(use.x.name), Ref(right), None, *own, 1)
        return (
            replace(node, name=inner, args=args, kwargs=(), type=kind),
            replace(node, args=conv_arguments(Ref(inner), Ref(left), bias, *outer, 1), kwargs=()),
        )


def weights(program: Program, cut: Cut) -> Mapping[str, Weight | str]:
    """Every parameter of two dimensions or more that the graph reads: how it comes apart, or why it does not."""
    shown, graph = _heads(program.axes), program.graph
    found: dict[str, Weight | str] = {}
    for name, node in graph.parameters.items():
        if program.kinds[name].role != "parameter" or len(node.shape) < 2:
            continue
        uses = [_use(program, user, node) for user in graph.users[node.name]]
        reasons = [use for use in uses if isinstance(use, str)]
        if reasons:
            found[name] = reasons[0]
            continue
        good = tuple(use for use in uses if isinstance(use, Use))
        lookup = any(use.form == "lookup" for use in good)
        outside = "an embedding" if lookup else "it makes what outputs show" if name in shown else ""
        found[name] = Weight(name, good, tuple(program.tensors[name].shape), cut, outside)
    return found


def _heads(axes: Axes) -> set[str]:
    """The weights that make an axis that outputs show and nothing sums over."""
    shown = {atom for name in axes.graph.output_names for term in axes.terms.get(name, ()) for atom in term.atoms}
    last = [axis for axis in axes.named if axis.atom in shown and not any("contracts" in s.part for s in axis.sites)]
    return {site.parameter for axis in last for site in axis.sites if "emits" in site.part}


def _use(program: Program, node: Node, weight: Node) -> Use | str:
    """How a node reads a weight; or, as text, why that can't come apart."""
    graph, kind = program.graph, ops.kind(node.op)
    where = f"{node.op} ({node.source or node.name})"
    if any(is_mask(program, name) for name in node.operands()):
        return "it is masked: mask the factors instead"
    if list(node.operands()).count(weight.name) != 1 or weight.tensor.dtype != WEIGHTS:
        return f"{where} reads it twice, or in another type than that of the weights"
    if kind == "embedding" and node.args[0] == Ref(weight.name):
        return Use(node, weight.name, "lookup", 0, graph[next(name for name in node.operands() if name != weight.name)])
    if kind == "convolution" and node.args[1] == Ref(weight.name):
        return _convolution(graph, node, weight) or f"{where} is transposed, or in groups"
    found = _matrix(graph, node, weight.name) if node.op in _MATRIX else None
    return found or f"{where} reads it, which is no product with a matrix, lookup or convolution"


def _convolution(graph: Graph, node: Node, weight: Node) -> Use | None:
    image, (_, stride, padding, _, groups) = node.args[0], convolved(node)
    if "transpose" in node.op or groups != 1:
        return None
    assert isinstance(image, Ref)
    window = weight.shape[2:]
    around = each(0 if isinstance(padding, str) else padding, len(window))
    steps = zip(window, each(stride, len(window)), around, strict=True)
    points = tuple(one == (1, 1, 0) for one in steps)
    return Use(node, weight.name, "convolution", 1, graph[image.name], len(node.shape) - len(window) - 1, points=points)


def _matrix(graph: Graph, node: Node, weight: str) -> Use | None:
    """A product of two factors in which the weight has one dimension that is summed over and one that stays."""
    factors, _ = operands(node)
    names = [factor.name for factor in factors if isinstance(factor, Ref)]
    if len(factors) != 2 or len(names) != 2 or weight not in names:
        return None
    if graph[names[1 - names.index(weight)]].op == "parameter":
        return None
    inputs, output = equation(node, [len(graph[name].shape) for name in names])
    index = names.index(weight)
    mine, other = inputs[index], inputs[1 - index]
    summed = [letter for letter in mine if letter in other and letter not in output]
    free = [letter for letter in mine if letter in output and letter not in other]
    if len(mine) != 2 or len(summed) != 1 or len(free) != 1 or len({*other}) != len(other):
        return None
    if node.op == "aten.linear.default" and index == 0:
        return None
    in_place = other.replace(summed[0], free[0]) == output
    return Use(
        node, weight, "product", mine.index(summed[0]), graph[names[1 - index]], other.index(summed[0]), in_place
    )


def _products(use: Use, rank: int, near: str, far: str, inner: str) -> tuple[Node, Node]:
    """A product with a matrix as two: `near` is what `x` meets."""
    node = use.node
    factors, _ = operands(node)
    index = 0 if factors[1] == Ref(use.x.name) else 1
    ranks = [2 if place == index else len(use.x.shape) for place in (0, 1)]
    inputs, output = equation(node, ranks)
    free = inputs[index][1 - use.meets]
    first = replace(_sized(node, output.index(free), rank), name=inner, op=ADDED.get(node.op, node.op), kwargs=())
    pair: list[Argument] = [Ref(use.x.name), Ref(use.x.name)]
    pair[index] = Ref(near)
    outer: list[Argument] = [Ref(inner), Ref(inner)]
    outer[index] = Ref(far)
    if node.op != "aten.einsum.default":
        at = ops.FIRST_OPERAND.get(node.op, 0)
        return replace(first, args=tuple(pair)), replace(node, args=(*node.args[:at], *outer, *node.args[at + 2 :]))
    new = next(letter for letter in "rstuvwxyzabcdefghijklmnopq" if letter not in "".join([*inputs, output]))
    texts, summed = list(inputs), inputs[index][use.meets]
    texts[index] = inputs[index].replace(free, new)
    middle = inputs[1 - index].replace(summed, new)  # so that the outer one's equation stays
    shape = (*use.x.shape[: use.dim], rank, *use.x.shape[use.dim + 1 :])
    args = (f"{','.join(texts)}->{middle}", tuple(pair))
    inner_node = replace(node, name=inner, args=args, type=replace(node.tensor, shape=shape))
    return inner_node, replace(node, args=(node.args[0], tuple(outer)))


def is_mask(program: Program, name: str) -> bool:
    """Whether a node reads the mask of a weight."""
    node = program.graph[name]
    return node.op == "parameter" and bool(program.kinds[str(node.args[0])].pattern)


def convolved(node: Node) -> tuple[Argument, Argument, Argument, Argument, Argument]:
    """Bias, stride, padding, dilation and groups of a convolution."""
    names = (("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    if node.op.endswith(".padding"):
        names = (*names[:2], ("padding", "valid"), *names[3:])
    found = [node.argument(index, name, default) for index, (name, default) in enumerate(names, 2)]
    return found[0], found[1], found[2], found[3], found[4]


def conv_arguments(*given: Argument) -> tuple[Argument, ...]:
    """What a convolution is given, from image to groups, without defaults at the end: exporters leave them out."""
    plain = (None, 1, 0, 1, 1)
    kept = [*given]
    while len(kept) > 2:
        value, default = kept[-1], plain[len(kept) - 3]
        if value != default and value != (default,) * (len(value) if isinstance(value, tuple) else 0):
            break
        kept.pop()
    return tuple(kept)


def _sized(node: Node, dim: int, size: Dim) -> Node:
    """A node whose result has another size in one dimension."""
    shape = list(node.shape)
    shape[dim] = size
    return replace(node, type=replace(node.tensor, shape=tuple(shape)))

"""What inference has found so far; the rules read and extend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from graphgrow.axes.terms import UNIT, Axis, Conflict, freeze, order, unify
from graphgrow.graph import Argument, Graph, Node, Ref, TensorType
from graphgrow.sizes import Size

Shape: TypeAlias = tuple[Axis, ...]
Path: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in a node's arguments that is a size: the sizes of `axes` added up, plus `offset`."""

    node: str
    path: Path  # ("args" | keyword, index, ...)
    axes: Shape
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Contraction:
    """A sum of products: its operands' nodes, and the axes by their part in it."""

    node: Node
    operands: tuple[str, ...]
    shared: Shape  # in operands and output
    summed: Shape  # in the operands only
    free: tuple[Shape, ...]  # per operand: in the output, not in the other operands


@dataclass(frozen=True, slots=True)
class Lookup:
    """An axis whose units are picked by an index tensor; `own` when the index counts units of that same axis (what
    `topk` over a router's experts gives)."""

    node: Node
    axis: Axis
    index: str
    own: bool = False


@dataclass
class State:
    """Axes of every node so far (for several outputs a tuple of shapes), and what was seen on the way."""

    graph: Graph
    units: bool = False  # whether dimensions of size 1 that layouts and cuts make have axes, too
    shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])
    several: dict[str, tuple[Shape, ...]] = field(default_factory=dict[str, tuple[Shape, ...]])
    literals: list[Literal] = field(default_factory=list[Literal])
    contractions: list[Contraction] = field(default_factory=list[Contraction])
    lookups: list[Lookup] = field(default_factory=list[Lookup])
    ranges: dict[str, Axis] = field(default_factory=dict[str, Axis])  # index tensors: what their values count

    def shape(self, argument: Argument) -> Shape:
        """The axes of an operand (none for a number)."""
        return self.shapes.get(argument.name, ()) if isinstance(argument, Ref) else ()

    def dim(self, node: Node, index: int, name: str = "dim", default: Argument = None, rank: int | None = None) -> int:
        """A dimension argument, counted from the front of the first operand."""
        value = node.argument(index, name, default)
        assert isinstance(value, int)
        return value % (rank or max(1, len(self.shape(node.args[0]))))

    def dims(self, node: Node, index: int, name: str = "dim") -> tuple[int, ...]:
        """A list of dimensions, all of them when there is none."""
        value = node.argument(index, name)
        rank = len(self.shape(node.args[0]))
        items = value if isinstance(value, tuple) else (value,)
        found = tuple(item % rank for item in items if isinstance(item, int))
        return found or tuple(range(rank))

    def bind(self, node: Node, path: Path, *axes: Axis, offset: int = 0) -> None:
        """The number at `path` is the size of `axes`."""
        self.literals.append(Literal(node.name, path, axes, offset))

    def bind_sizes(self, node: Node, index: int, shape: Shape, name: str = "size") -> None:
        """The list of sizes at argument `index` is the sizes of `shape`."""
        place: Path = ("args", index) if index < len(node.args) else (name,)
        value = node.argument(index, name)
        if not isinstance(value, tuple):
            return
        for position, (axis, item) in enumerate(zip(shape, value, strict=False)):
            if isinstance(item, int | Size) and axis is not UNIT:
                self.bind(node, (*place, position), axis)


def fresh(type_: TensorType) -> Shape:
    """New atoms for every dimension."""
    return tuple(Axis(size) if size != 1 else UNIT for size in type_.shape)


def unified(node: Node, axes: Sequence[Axis], spread: bool = True) -> Axis:
    """The one axis of aligned dimensions: those of the full size unified, broadcast ones (size 1) left out. Without
    `spread` the operator does not broadcast."""
    full, single = [axis for axis in axes if axis.size != 1], [axis for axis in axes if axis.size == 1]
    if full or (UNIT in single and not spread):
        freeze_all(single, f"{place(node)} spreads it")
    found = full or [axis for axis in single if axis is not UNIT] or [UNIT]
    for other in found[1:]:
        meet(node, found[0], other)
    return found[0]


def meet(node: Node, left: Axis, right: Axis) -> None:
    """Unify two dimensions that an operator joins; where they differ in structure, both keep their sizes."""
    try:
        unify(left, right)
    except Conflict as conflict:
        reason = f"{place(node)} joins dimensions that can't be one: {conflict}"
        freeze(left, reason)
        freeze(right, reason)


def place(node: Node) -> str:
    """Where a node comes from, for messages."""
    return f"{node.op} ({node.source})" if node.source else f"{node.op} ({node.name})"


def pin(axis: Axis, reason: str) -> None:
    """The axis keeps its size, and its units their places."""
    freeze(axis, reason)
    order(axis, reason)


def freeze_all(shape: Sequence[Axis], reason: str) -> None:
    """No axis here can change its size."""
    for axis in shape:
        freeze(axis, reason)

"""Room for more heads where there is one, which a dimension put in between makes: `keys.unsqueeze(1)`.

Such a dimension is no factor of the keys' rows, and can't be more than 1. Made as a factor of the last dimension, and
moved to its place, it can; while it is 1 that is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from graphgrow import ops
from graphgrow.axes import UNIT, Axes
from graphgrow.graph import Graph, Node, Ref
from graphgrow.program import Program


def singled(program: Program) -> Program:
    """The program with an axis for each single head; the same one where there is nothing to do."""
    graph, nodes = program.graph, list[Node]()
    for node in graph.nodes:
        made = {Ref(name): _made(graph[name], dim, node) for name, dim in _without_axis(program.unit_axes, node)}
        nodes += [one for both in made.values() for one in both]
        nodes.append(_reading(node, {old: Ref(moved.name) for old, (_, moved) in made.items()}))
    if len(nodes) == len(graph.nodes):
        return program
    return program.replace(graph=Graph(tuple(nodes), graph.outputs, graph.symbols))


def _without_axis(axes: Axes, node: Node) -> Iterator[tuple[str, int]]:
    """The operands with a single head that several query heads use and that has no axis, and its dimension."""
    kind, names, found = ops.kind(node.op), list(node.operands()), list[tuple[str, int]]()
    if kind == "expand":
        before = axes.graph[names[0]].shape
        after = node.shape[len(node.shape) - len(before) :]
        spread = [dim for dim in range(1, len(before) - 1) if before[dim] == 1 and isinstance(after[dim], int)]
        found = [(names[0], dim - 1) for dim in spread if after[dim] != 1 and after[dim - 1] == 1]
    elif kind == "attention" and axes.graph[names[0]].shape[-3:-2] != (1,):
        found = [(name, len(axes.terms[name]) - 3) for name in dict.fromkeys(names[1:3])]
    for name, dim in found:
        terms = axes.terms[name]
        held = bool(terms[-1].atoms) and all(atom in axes.holders for atom in terms[-1].atoms)
        if dim >= 0 and terms[dim] == UNIT and held:
            yield name, dim


def _made(value: Node, dim: int, node: Node) -> tuple[Node, Node]:
    rest = (*value.shape[:dim], *value.shape[dim + 1 :])
    shape, last = (*rest[:-1], 1, rest[-1]), len(rest)
    order = list(range(last - 1))
    order.insert(dim, last - 1)
    blank = replace(node, kwargs=(), type=value.tensor)
    apart = replace(
        blank,
        name=f"{node.name}_{value.name}_apart",
        op="aten.reshape.default",
        args=(Ref(value.name), shape),
        type=replace(value.tensor, shape=shape),
    )
    args = (Ref(apart.name), (*order, last))
    return apart, replace(blank, name=f"{node.name}_{value.name}", op="aten.permute.default", args=args)


def _reading(node: Node, places: Mapping[Ref, Ref]) -> Node:
    return node.map(lambda argument: places.get(argument, argument) if isinstance(argument, Ref) else argument)

"""Random inputs for a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from graphgrow import sizes
from graphgrow.errors import OptionError
from graphgrow.graph import WEIGHTS, Graph, Node, Ref

_SMALL = {"batch": 2}
_OTHERS = 7
# Operators that hand indices on: their values stay what they were.
_SAME_VALUES = {
    f"aten.{name}"
    for name in ("reshape.default", "expand.default", "permute.default", "unsqueeze.default", "clone.default",
                 "to.dtype", "slice.Tensor", "select.int", "detach.default")
}  # fmt: skip


def example(graph: Graph, given: Mapping[str, int], seed: int, weights: torch.dtype) -> dict[str, Tensor]:
    """Inputs by name: normal numbers, indices within the tables they index, ones for masks."""
    for name in given:
        if name not in graph.symbols:
            raise OptionError.unknown("dynamic size", name, graph.symbols)
    values = {name: given.get(name, _default(graph, name)) for name in graph.symbols}
    generator = torch.Generator().manual_seed(seed)
    return {node.name: _random(graph, node, values, generator, weights) for node in graph.inputs}


def _default(graph: Graph, name: str) -> int:
    origin = graph.symbols[name]
    wanted = max(_SMALL.get(name, _OTHERS), origin.low)
    return wanted if origin.high is None else min(wanted, origin.high)


def _random(
    graph: Graph, node: Node, values: Mapping[str, int], generator: torch.Generator, weights: torch.dtype
) -> Tensor:
    shape = [sizes.evaluate(size, values) for size in node.shape]
    dtype = weights if node.tensor.dtype == WEIGHTS else getattr(torch, node.tensor.dtype)
    assert isinstance(dtype, torch.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
    rows = min(_rows(graph, node), default=None)
    if rows is None:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(rows, shape, generator=generator, dtype=dtype)


def _rows(graph: Graph, node: Node) -> Iterator[int]:
    """The numbers of rows of the tables that a node's values index."""
    for user in graph.users[node.name]:
        if user.op in _SAME_VALUES:
            yield from _rows(graph, user)
        elif user.op == "aten.embedding.default" and user.args[1] == Ref(node.name):
            yield from _table(graph, user, 0)
        elif user.op == "aten.index_select.default" and user.args[2] == Ref(node.name):
            yield from _table(graph, user, int(str(user.args[1])))
        elif user.op == "aten.index.Tensor" and isinstance(user.args[1], tuple) and Ref(node.name) in user.args[1]:
            yield from _table(graph, user, user.args[1].index(Ref(node.name)))


def _table(graph: Graph, user: Node, dim: int) -> Iterator[int]:
    table = user.args[0]
    rows = graph[table.name].shape[dim] if isinstance(table, Ref) else None
    if isinstance(rows, int):
        yield rows

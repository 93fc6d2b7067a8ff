"""Random inputs for a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from graphgrow import ops, sizes
from graphgrow.errors import OptionError
from graphgrow.graph import WEIGHTS, Argument, Graph, Node, Ref

_SMALL = {"batch": 2}
_OTHERS = 7
# Operators that hand indices on: their values stay what they were, but for some that code writes in (-100: ignored).
_SAME_VALUES = {
    f"aten.{name}"
    for name in ("reshape.default", "expand.default", "permute.default", "unsqueeze.default", "clone.default",
                 "to.dtype", "slice.Tensor", "select.int", "detach.default", "pad.default", "constant_pad_nd.default",
                 "cat.default", "masked_fill.Scalar", "where.self", "where.ScalarOther", "where.ScalarSelf")
}  # fmt: skip
_ALONG = ("index_select", "gather", "scatter", "index_add")  # kinds with a dimension and an index along it


def example(graph: Graph, given: Mapping[str, int], seed: int, weights: torch.dtype) -> dict[str, Tensor]:
    """Inputs by name: normal numbers (probabilities where a loss needs them), indices within the tables and classes
    that they pick from, ones for masks."""
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
    shape, users = [sizes.evaluate(size, values) for size in node.shape], graph.users[node.name]
    dtype = weights if node.tensor.dtype == WEIGHTS else getattr(torch, node.tensor.dtype)
    assert isinstance(dtype, torch.dtype)
    if any(user.op.startswith("aten.binary_cross_entropy.") and user.args[1] == Ref(node.name) for user in users):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
    ranges = [] if dtype == torch.bool else list(_ranges(graph, node))
    if not ranges:
        return torch.ones(shape, dtype=dtype)
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    return torch.randint(low, high, shape, generator=generator, dtype=dtype)


def _ranges(graph: Graph, node: Node) -> Iterator[tuple[int, int]]:
    """The smallest index that each operator takes which a node's values reach, and the first beyond the largest."""
    index = Ref(node.name)
    for user in graph.users[node.name]:
        kind = ops.kind(user.op)
        if user.op in _SAME_VALUES and index in _handed_on(user):
            yield from _ranges(graph, user)
        elif kind == "embedding" and user.args[1] == index:
            yield from _within(graph, user, 0)
        elif kind in _ALONG and user.args[2] == index:
            yield from _within(graph, user, user.args[1])
        elif kind in ("index", "index_put") and isinstance(user.args[1], tuple) and index in user.args[1]:
            yield from _within(graph, user, user.args[1].index(index), negative=True)
        elif kind == "one_hot" and isinstance(classes := user.argument(1, "num_classes"), int):
            yield (0, max(classes, 1))
        elif kind == "loss" and user.args[1] == index:
            yield from _within(graph, user, 1)


def _handed_on(node: Node) -> tuple[Argument, ...]:
    """The operands whose values are in the result: none where they become truth values or other numbers."""
    if not node.tensor.dtype.startswith(("int", "uint")):
        return ()
    given = node.args[1:] if node.op.startswith("aten.where") else node.args[:1]
    return given[0] if isinstance(given[0], tuple) else given


def _within(graph: Graph, user: Node, dim: Argument, negative: bool = False) -> Iterator[tuple[int, int]]:
    table = user.args[0]
    shape = graph[table.name].shape if isinstance(table, Ref) else ()
    rows = shape[min(dim, len(shape) - 1)] if isinstance(dim, int) and shape else None
    if isinstance(rows, int):
        yield (-rows if negative else 0, rows)

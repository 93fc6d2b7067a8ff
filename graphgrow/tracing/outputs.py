"""Which outputs a program gives, and the nodes that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphgrow import ops
from graphgrow.errors import OptionError
from graphgrow.graph import Graph, Record, Structure, structure_text


def pruned(graph: Graph) -> Graph:
    """The graph without nodes that no output and no dynamic size needs. Inputs stay, and counters, which are there for
    what they change."""
    needed = {*graph.output_names, *(origin.node for origin in graph.symbols.values())}
    needed.update(node.name for node in graph.nodes if node.op == "input" or ops.kind(node.op) == "counter")
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.operands())
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name in needed))


def chosen(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with only these of its outputs: keys of a dictionary, or positions in a tuple from 0.

    Raises OptionError for outputs that there are not."""
    if not names:
        return graph
    given = _items(graph.outputs)
    if not given:
        where = f"a model that returns {structure_text(graph.outputs)}"
        raise OptionError(found=f"outputs={','.join(names)}", where=where, fix="leave it out: there is one output")
    for name in names:
        if name not in given:
            raise OptionError.unknown("output", name, tuple(given), where="the model's outputs")
    items = tuple((name, value) for name, value in given.items() if name in names)
    outputs: Structure = Record(items) if isinstance(graph.outputs, Record) else tuple(value for _, value in items)
    return replace(graph, outputs=outputs)


def _items(outputs: Structure) -> dict[str, Structure]:
    """The outputs by what names them."""
    if isinstance(outputs, Record):
        return dict(outputs.items)
    return {str(at): value for at, value in enumerate(outputs)} if isinstance(outputs, tuple) else {}

"""Two captures of one model laid over each other: where they differ is what follows the mode or the weights' type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan

import torch

from graphgrow.errors import TraceError
from graphgrow.graph import WEIGHTS, Argument, ByMode, Dtype, Graph, Lowest, Node, Ref, TensorType, Type, leaves

EXPERTS = 'choose experts in batches: model.set_experts_implementation("batched_mm")'


@dataclass
class Merge:
    """`train` and `other` walked in step; `match` maps nodes of `other` to nodes of the result."""

    train: Graph
    other: Graph
    names: tuple[str, str]  # the floating type of the weights in each
    match: dict[str, str] = field(default_factory=dict[str, str])
    casts: dict[str, Node] = field(default_factory=dict[str, Node])  # those that change nothing in `train`
    idle: dict[str, Node] = field(default_factory=dict[str, Node])  # and those that change nothing in `other`
    made: dict[tuple[str, str], Node] = field(default_factory=dict[tuple[str, str], Node])


def merge(train: Graph, other: Graph, dtype: torch.dtype, other_dtype: torch.dtype) -> Graph:
    """The training capture, with `ByMode`, `by_mode`, `WEIGHTS` and `Lowest` where the other one differs.

    Raises TraceError when evaluation computes something that training does not."""
    names = (_name(dtype), _name(other_dtype)) if dtype != other_dtype else ("", "")  # one type: none to be followed
    state = Merge(train, other, names)
    for graph, found in ((train, state.casts), (other, state.idle)):
        for node in graph.nodes:
            source = node.args[0] if node.op == "aten.to.dtype" else None
            if isinstance(source, Ref) and graph[source.name].tensor.dtype == node.tensor.dtype:
                found[node.name] = node
    lowest = (torch.finfo(dtype).min, torch.finfo(other_dtype).min) if dtype != other_dtype else (nan, nan)
    result: list[Node] = []
    places: dict[object, list[int]] = {}
    for index in range(len(train.nodes) - 1, -1, -1):
        places.setdefault(_place(train.nodes[index]), []).append(index)
    position = 0
    for twin in other.nodes:
        ahead = places.get(_place(twin), [])
        while ahead and ahead[-1] < position:
            ahead.pop()
        if not ahead:
            result.append(_twin_only(state, twin))
            continue
        result += train.nodes[position : ahead[-1]]
        position = ahead.pop()
        node = train.nodes[position]
        position += 1
        inserted: list[Node] = []
        merged = replace(
            node,
            args=tuple(
                _argument(state, a, b, node, inserted, lowest) for a, b in zip(node.args, twin.args, strict=True)
            ),
            kwargs=tuple(
                (name, _argument(state, a, b, node, inserted, lowest))
                for (name, a), (_, b) in zip(node.kwargs, twin.kwargs, strict=True)
            ),
            type=_type(node.type, twin.type, state.names),
        )
        state.match[twin.name] = node.name
        result += [*inserted, merged]
    result += train.nodes[position:]
    outputs = train.outputs
    for a, b in zip(leaves(train.outputs), leaves(other.outputs), strict=True):
        if _common(state, a, b) is None:
            raise TraceError(
                found="a model whose output differs in evaluation mode",
                where=a,
                fix="trace it in evaluation mode only: trace(..., mode='eval')",
            )
    return Graph(tuple(_retyped(result, state.names)), outputs, train.symbols)


def _retyped(nodes: list[Node], names: tuple[str, str]) -> list[Node]:
    """Nodes that only training computes take the type of what they compute from."""
    typed = {node.name: node.type for node in nodes}
    result: list[Node] = []
    for node in nodes:
        first = next(iter(node.operands()), None)
        if node.op == "by_mode" and first is not None:
            node = replace(node, type=typed[[*node.operands()][1]])
        typed[node.name] = node.type
        result.append(node)
    return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _place(node: Node) -> object:
    """What two captures of one line of code have in common."""
    named = (node.args, node.name) if node.op in ("parameter", "input") else ()
    return (node.op, node.source, node.scope, len(node.args), len(node.kwargs), named)


def _twin_only(state: Merge, twin: Node) -> Node:
    """A cast that the model makes in one data type of its weights only becomes one to the type of the weights."""
    source = twin.args[0] if twin.args else None
    if twin.op != "aten.to.dtype" or twin.args[1] != Dtype(state.names[1]) or not isinstance(source, Ref):
        typed = f", or for weights of {state.names[1]}," if state.names[1] else ""
        raise TraceError(
            found=f"a model that computes something in evaluation mode{typed} which it does not in training mode",
            where=f"{twin.op} at {twin.source or twin.scope}",
            fix=EXPERTS if "grouped_mm" in twin.op else "trace it in evaluation mode only: trace(..., mode='eval')",
        )
    name = f"{twin.name}_{len(state.match)}"
    state.match[twin.name] = name
    matched = Ref(state.match[source.name])
    made = replace(twin, name=name, args=(matched, Dtype(WEIGHTS)), type=replace(twin.tensor, dtype=WEIGHTS))
    state.casts[name] = made
    return made


def _type(mine: Type, other: Type, names: tuple[str, str]) -> Type:
    if isinstance(mine, TensorType) and isinstance(other, TensorType):
        return replace(mine, dtype=WEIGHTS) if (mine.dtype, other.dtype) == names else mine
    if isinstance(mine, tuple) and isinstance(other, tuple):
        return tuple(_type(a, b, names) for a, b in zip(mine, other, strict=True))
    return mine


def _argument(
    state: Merge, mine: Argument, other: Argument, node: Node, inserted: list[Node], lowest: tuple[float, float]
) -> Argument:
    match mine, other:
        case Ref(a), Ref(b):
            common = _common(state, a, b)
            return Ref(common) if common is not None else _switch(state, a, state.match[b], node, inserted)
        case tuple(), tuple() if len(mine) == len(other):
            return tuple(_argument(state, a, b, node, inserted, lowest) for a, b in zip(mine, other, strict=True))
        case Dtype(a), Dtype(b) if (a, b) == state.names:
            return Dtype(WEIGHTS)
        case float(), float() if (mine, other) == lowest:
            return Lowest()
        case (bool() | int() | float(), bool() | int() | float()) if mine != other:
            return ByMode(mine, other)
        case _ if mine == other:
            return mine
        case _:
            raise TraceError(found=f"an argument that depends on the mode: {mine} or {other}", where=node.source)


def _common(state: Merge, mine: str, other: str) -> str | None:
    """The value that both captures read, if it is one. A cast that does nothing gives the tensor that it was given, and
    what reads that later seems to read the cast: the capture in which the cast does something tells."""
    matched = state.match[other]
    if _uncast(state.casts, matched) == _uncast(state.casts, mine):
        return matched
    return mine if state.match[_uncast(state.idle, other)] == mine else None


def _uncast(casts: Mapping[str, Node], name: str) -> str:
    """What `name` is a cast of, past casts that do nothing."""
    while True:
        node = casts.get(name)
        if node is None:
            return name
        source = node.args[0]
        assert isinstance(source, Ref)
        name = source.name


def _switch(state: Merge, train: str, evaluation: str, node: Node, inserted: list[Node]) -> Ref:
    """A node that is `train` in training mode, `evaluation` otherwise."""
    key = (train, evaluation)
    if key not in state.made:
        name = f"{train}_by_mode"
        made = Node(
            name, "by_mode", (Ref(train), Ref(evaluation)), (), state.train[train].type, node.scope, node.source
        )
        state.made[key] = made
        inserted.append(made)
    return Ref(state.made[key].name)

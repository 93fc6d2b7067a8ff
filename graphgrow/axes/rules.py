"""The axes of an operator's outputs from those of its operands: the registry, pointwise operators, reductions, norms.

Rules of other kinds are in `contractions`, `layout` and `lookups`. A rule may raise `Conflict`: then everything it
touches is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from graphgrow import ops, sizes
from graphgrow.axes.state import Shape, State, freeze_all, fresh, meet, pin, place, unified
from graphgrow.axes.terms import UNIT, Axis, Conflict, cut, freeze, order, split
from graphgrow.graph import Node, Ref, TensorType

Result: TypeAlias = "Shape | tuple[Shape, ...]"


Rule = Callable[[State, Node], Result]


RULES: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def tensors(state: State, node: Node) -> list[Shape]:
    """The axes of every tensor operand."""
    return [state.shapes[name] for name in node.operands() if name in state.shapes]


@rule("input", "parameter")
def _source(state: State, node: Node) -> Result:
    return fresh(node.tensor)


@rule("getitem")
def _getitem(state: State, node: Node) -> Result:
    source, index = node.args
    assert isinstance(source, Ref) and isinstance(index, int)
    return state.several[source.name][index]


@rule("pointwise", "power")
def broadcast(state: State, node: Node) -> Result:
    """Operands aligned from the right; what has size 1 is spread."""
    operands, ranks = tensors(state, node), range(len(node.shape), 0, -1)
    return tuple(unified(node, [operand[-back] for operand in operands if len(operand) >= back]) for back in ranks)


@rule("like")
def _like(state: State, node: Node) -> Result:
    return state.shape(node.args[0])


@rule("along", "ordered", "sort")
def _along(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    if ops.kind(node.op) == "ordered":
        order(shape[state.dim(node, 1)], f"{place(node)} goes along it in order")
    if ops.kind(node.op) == "sort":
        for axis in shape:
            order(axis, f"{place(node)} puts its units in another order")
    return (shape, shape) if isinstance(node.type, tuple) else shape


@rule("sum", "mean", "reduction", "reduction2", "norm_reduction")
def _reduce(state: State, node: Node) -> Result:
    kind = ops.kind(node.op)
    shape = state.shape(node.args[0])
    dims = state.dims(node, 2 if kind == "norm_reduction" else 1)
    target = node.type[0] if isinstance(node.type, tuple) else node.tensor
    assert isinstance(target, TensorType)
    if node.op.startswith(("aten.argmax", "aten.argmin", "aten.max.dim", "aten.min.dim", "aten.median.dim")):
        for dim in dims:
            order(shape[dim], f"{place(node)} tells its units by number")
    if len(target.shape) == len(shape):
        result = tuple(UNIT if dim in dims else axis for dim, axis in enumerate(shape))
    else:
        result = tuple(axis for dim, axis in enumerate(shape) if dim not in dims)
    return tuple(result for _ in node.type) if isinstance(node.type, tuple) else result


@rule("glu")
def _glu(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 1, default=-1)
    half = node.shape[dim]
    first, second = cut(shape[dim], [half])
    meet(node, first, second)
    shape[dim] = first
    return tuple(shape)


@rule("topk")
def _topk(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 2, default=-1)
    kept = Axis(node.args[1]) if isinstance(node.args[1], int) and node.args[1] > 1 else UNIT
    order(kept, f"{place(node)} puts its units in order")
    state.bind(node, ("args", 1), kept)
    state.ranges[node.name] = shape[dim]
    shape[dim] = kept
    return (tuple(shape), tuple(shape))


@rule("diff")
def _diff(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 2, default=-1)
    result = [*shape[:dim], fresh(node.tensor)[dim], *shape[dim + 1 :]]
    sides = [state.shape(node.argument(index, name)) for index, name in ((3, "prepend"), (4, "append"))]
    for side in filter(None, sides):
        for position, (axis, other) in enumerate(zip(shape, side, strict=True)):
            if position != dim:
                meet(node, axis, other)
    for axis in (shape[dim], result[dim], *(side[dim] for side in sides if side)):
        pin(axis, f"{place(node)} takes neighbours")
    return tuple(result)


@rule("layer_norm")
def _layer_norm(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    normal = node.args[1]
    assert isinstance(normal, tuple)
    over = shape[len(shape) - len(normal) :]
    for weight in map(state.shape, node.args[2:4]):
        for axis, other in zip(over, weight, strict=False):
            meet(node, axis, other)
    state.bind_sizes(node, 1, over)
    return shape


@rule("group_norm")
def _group_norm(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    groups = node.args[1]
    assert isinstance(groups, int)
    channels = shape[1].size
    each = sizes.exact_div(channels, groups)
    if each is None:
        raise Conflict(f"{channels} channels in {groups} groups")
    for weight in map(state.shape, node.args[2:4]):
        if weight:
            meet(node, weight[0], shape[1])
    outer, _ = split(shape[1], groups, each)
    if outer is not UNIT:
        state.bind(node, ("args", 1), outer)
    return shape


@rule("batch_norm")
def _batch_norm(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    for weight in map(state.shape, node.args[1:5]):
        if weight:
            meet(node, weight[0], shape[1])
    return shape


@rule("prelu")
def _prelu(state: State, node: Node) -> Result:
    shape, weight = state.shape(node.args[0]), state.shape(node.args[1])
    if weight and weight[0].size != 1:
        meet(node, weight[0], shape[1])
    return shape


@rule("arange")
def _arange(state: State, node: Node) -> Result:
    (axis,) = fresh(node.tensor)
    order(axis, f"{place(node)} numbers its units")
    if node.op == "aten.arange.default":
        state.bind(node, ("args", 0), axis)
    elif node.op == "aten.arange.start" and isinstance(node.args[0], int):
        state.bind(node, ("args", 1), axis, offset=node.args[0])
    else:
        freeze(axis, f"{place(node)} numbers its units")
    return (axis,)


@rule("factory")
def _factory(state: State, node: Node) -> Result:
    shape = fresh(node.tensor)
    at = 1 if node.op.startswith(("aten.new_", "aten.randint.default")) else 0
    if node.op.startswith(("aten.eye", "aten.tril_indices", "aten.triu_indices", "aten.hann", "aten.randint.low")):
        freeze_all(shape, f"{place(node)} has a fixed size")
    else:
        state.bind_sizes(node, at, shape)
    return shape


@rule("opaque", "unknown")
def opaque(state: State, node: Node) -> Result:
    """No rule: everything the operator touches is frozen."""
    reason = f"{place(node)}: no rule tells what it does with dimensions"
    for shape in tensors(state, node):
        freeze_all(shape, reason)
    types = node.type if isinstance(node.type, tuple) else (node.type,)
    results = tuple(fresh(type_) if isinstance(type_, TensorType) else () for type_ in types)
    for shape in results:
        freeze_all(shape, reason)
    return results if isinstance(node.type, tuple) else results[0]

"""The axes of lookups by index and of their reverse."""

from __future__ import annotations

from graphgrow import ops
from graphgrow.axes.rules import Result, rule, tensors
from graphgrow.axes.state import Lookup, Shape, State, meet, place, unified
from graphgrow.axes.terms import UNIT, Axis, Conflict, freeze, order
from graphgrow.graph import Argument, Node, Ref


@rule("embedding")
def _embedding(state: State, node: Node) -> Result:
    table, index = state.shape(node.args[0]), state.shape(node.args[1])
    _looked_up(state, node, table[0], node.args[1])
    return (*index, *table[1:])


def _looked_up(state: State, node: Node, axis: Axis, index: Argument) -> None:
    if isinstance(index, Ref) and axis is not UNIT:
        counted = state.ranges.get(index.name)
        own = counted is not None and counted.size == axis.size
        if counted is not None and own:
            meet(node, axis, counted)
        state.lookups.append(Lookup(node, axis, index.name, own))


@rule("index")
def _index(state: State, node: Node) -> Result:
    return _picked(state, node, state.shape(node.args[0]), node.args[1])


def _picked(state: State, node: Node, shape: Shape, indices: Argument) -> Shape:
    """The axes of `x[indices]`: those of the index tensors, broadcast, in place of what they pick from. They come first
    where they stand apart from each other."""
    assert isinstance(indices, tuple)
    used = [dim for dim, index in enumerate(indices) if index is not None]
    found = [state.shape(indices[dim]) for dim in used]
    for dim in used:
        if _is_mask(state, indices[dim]):
            raise Conflict("a mask among indices")
        _looked_up(state, node, shape[dim], indices[dim])
        if _is_fixed(state, indices[dim]):
            freeze(shape[dim], f"{place(node)} picks units by fixed numbers")
            order(shape[dim], f"{place(node)} picks units by fixed numbers")
    rank = max(len(index) for index in found)
    joined = [unified(node, [index[-back] for index in found if len(index) >= back]) for back in range(rank, 0, -1)]
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [axis for dim, axis in enumerate(shape) if dim not in used]
    return (*rest[:first], *joined, *rest[first:])


def _is_mask(state: State, index: Argument) -> bool:
    return isinstance(index, Ref) and state.graph[index.name].tensor.dtype == "bool"


def _is_fixed(state: State, index: Argument) -> bool:
    """Whether an index is a constant of the model, possibly laid out otherwise."""
    while isinstance(index, Ref):
        node = state.graph[index.name]
        if node.op == "parameter":
            return True
        index = node.args[0] if ops.kind(node.op) in ("reshape", "permute", "unsqueeze", "expand") else None
    return False


@rule("index_put")
def _index_put(state: State, node: Node) -> Result:
    """A mask goes along what is changed; otherwise the values do along what the indices pick."""
    shape, indices = state.shape(node.args[0]), node.args[1]
    if isinstance(indices, tuple) and len(indices) == 1 and _is_mask(state, indices[0]):
        for axis, other in zip(shape, state.shape(indices[0]), strict=False):
            meet(node, axis, other)
        return shape
    picked, values = _picked(state, node, shape, indices), state.shape(node.args[2])
    for axis, other in zip(reversed(picked), reversed(values), strict=False):
        unified(node, [axis, other])
    return shape


@rule("gather")
def _gather(state: State, node: Node) -> Result:
    shape, index = state.shape(node.args[0]), state.shape(node.args[2])
    dim = state.dim(node, 1)
    _looked_up(state, node, shape[dim], node.args[2])
    for position, (axis, other) in enumerate(zip(shape, index, strict=True)):
        if position != dim and axis.size == other.size:
            unified(node, [axis, other])
    return index


@rule("index_select")
def _index_select(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 1)
    _looked_up(state, node, shape[dim], node.args[2])
    (shape[dim],) = state.shape(node.args[2]) or (UNIT,)
    return tuple(shape)


@rule("scatter", "index_add")
def _scatter(state: State, node: Node) -> Result:
    shape, index = state.shape(node.args[0]), state.shape(node.args[2])
    dim = state.dim(node, 1)
    _looked_up(state, node, shape[dim], node.args[2])
    source = state.shape(node.argument(3, "src"))
    along = index if len(index) == len(shape) else ()
    if source and index:
        meet(node, source[dim % len(source)], index[dim % len(index)])
    for position, axis in enumerate(shape):
        if position != dim:
            for other in (*along[position : position + 1], *source[position : position + 1]):
                if other.size == axis.size:
                    unified(node, [axis, other])
    return shape


@rule("one_hot")
def _one_hot(state: State, node: Node) -> Result:
    added = Axis(node.shape[-1]) if node.shape[-1] != 1 else UNIT
    state.bind(node, ("args", 1), added)
    _looked_up(state, node, added, node.args[0])
    return (*state.shape(node.args[0]), added)


@rule("searchsorted")
def _searchsorted(state: State, node: Node) -> Result:
    chosen = 0 if "bucketize" in node.op else 1
    for axis in state.shape(node.args[1 - chosen]):
        freeze(axis, f"{place(node)} searches in it")
    return state.shape(node.args[chosen])


BY_CLASS = ("aten.cross_entropy_loss", "aten.nll_loss")


@rule("loss")
def _loss(state: State, node: Node) -> Result:
    """Number by number, or over classes, which the target picks or gives a probability each."""
    logits, target = state.shape(node.args[0]), state.shape(node.args[1])
    if not node.op.startswith(BY_CLASS):
        for shape in tensors(state, node):  # targets and weights
            for axis, other in zip(reversed(logits), reversed(shape), strict=False):
                unified(node, [axis, other])
        return logits if node.shape else ()
    dim = min(1, len(logits) - 1)
    classes, rest = logits[dim], (*logits[:dim], *logits[dim + 1 :])
    for axis in state.shape(node.argument(2, "weight")):
        meet(node, axis, classes)
    for axis, other in zip(logits if len(target) == len(logits) else rest, target, strict=True):
        meet(node, axis, other)
    if len(target) < len(logits):
        _looked_up(state, node, classes, node.args[1])
        ignored = node.argument(4, "ignore_index", -100)
        if isinstance(ignored, int) and ignored >= 0:
            order(classes, f"{place(node)} leaves out the class of number {ignored}")
    return rest if node.shape else ()

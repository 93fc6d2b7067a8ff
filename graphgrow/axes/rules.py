"""The axes of an operator's outputs from those of its operands: pointwise, reductions, norms, contractions, lookups.

Rules of layout operators are in `layout`. A rule may raise `Conflict`: then everything it touches is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from graphgrow import ops, sizes
from graphgrow.axes.state import Contraction, Lookup, Shape, State, fresh, freeze_all, meet, place, unified
from graphgrow.axes.terms import UNIT, Axis, Conflict, cut, freeze, order, split
from graphgrow.graph import Argument, Node, Ref, TensorType

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
    shape = node.shape
    result: list[Axis] = []
    operands = tensors(state, node)
    for dim, size in enumerate(shape):
        back = len(shape) - dim
        aligned = [operand[-back] for operand in operands if len(operand) >= back]
        result.append(unified(node, aligned) if size != 1 else UNIT)
    return tuple(result)


@rule("like")
def _like(state: State, node: Node) -> Result:
    return state.shape(node.args[0])


@rule("along", "ordered", "sort")
def _along(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    if ops.kind(node.op) == "ordered":
        order(shape[state.dim(node, 1)], f"{place(node)} goes along it in order")
    return (shape, shape) if isinstance(node.type, tuple) else shape


@rule("sum", "mean", "reduction", "reduction2", "norm_reduction")
def _reduce(state: State, node: Node) -> Result:
    kind = ops.kind(node.op)
    shape = state.shape(node.args[0])
    dims = state.dims(node, 2 if kind == "norm_reduction" else 1)
    target = node.type[0] if isinstance(node.type, tuple) else node.tensor
    assert isinstance(target, TensorType)
    if node.op.startswith(("aten.argmax", "aten.argmin")):
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
    freeze(kept, f"{place(node)} keeps a fixed number")
    state.ranges[node.name] = shape[dim]
    shape[dim] = kept
    return (tuple(shape), tuple(shape))


@rule("diff")
def _diff(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 2, default=-1)
    order(shape[dim], f"{place(node)} takes neighbours")
    freeze(shape[dim], f"{place(node)} takes neighbours")
    shape[dim] = fresh(node.tensor)[dim]
    return tuple(shape)


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
    assert each is not None
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


@rule("loss")
def _loss(state: State, node: Node) -> Result:
    logits, target = state.shape(node.args[0]), state.shape(node.args[1])
    labels = [axis for dim, axis in enumerate(logits) if dim != 1] if len(target) == len(logits) - 1 else logits
    for axis, other in zip(labels, target, strict=False):
        meet(node, axis, other)
    if len(target) == len(logits) - 1 and len(logits) > 1 and isinstance(node.args[1], Ref):
        state.lookups.append(Lookup(node, logits[1], node.args[1].name))
    return tuple(target) if node.shape else ()


# Contractions


def equation(node: Node, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The einsum of a contraction for operands of these ranks: the letters of each operand and of the output."""
    if node.op == "aten.einsum.default":
        return _explicit(str(node.args[0]).replace(" ", ""), ranks)
    if node.op == "aten.matmul.default":
        left, right = ranks
        batch = "abcdefgh"[: max(left, right, 2) - 2]
        first = (batch[len(batch) - left + 2 :] + "ni") if left > 1 else "i"
        second = (batch[len(batch) - right + 2 :] + "io") if right > 1 else "i"
        return [first, second], batch + ("n" if left > 1 else "") + ("o" if right > 1 else "")
    inputs, _, output = ops.TABLE[node.op].signature.partition("->")
    parts = [part.strip() for part in inputs.split(",")]
    extra = "abcdefgh"[: ranks[0] - len(parts[0].replace("*", ""))]
    return [part.replace("*", extra) for part in parts], output.strip().replace("*", extra)


def _explicit(text: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    inputs, arrow, output = text.partition("->")
    parts = inputs.split(",")
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in text]
    widths = [rank - len(part.replace("...", "")) for part, rank in zip(parts, ranks, strict=True)]
    width = max([w for part, w in zip(parts, widths, strict=True) if "..." in part], default=0)
    dots = "".join(spare[:width])
    filled = [part.replace("...", dots[width - w :]) for part, w in zip(parts, widths, strict=True)]
    if not arrow:
        letters = "".join(filled)
        output = "..." * ("..." in inputs) + "".join(sorted(c for c in set(inputs) - set(".,") if letters.count(c) == 1))
    return filled, output.replace("...", dots)


def operands(node: Node) -> tuple[list[Argument], Argument]:
    """The factors of a contraction and its bias."""
    if node.op == "aten.einsum.default":
        return list(node.args[1]) if isinstance(node.args[1], tuple) else [], None
    first = ops.FIRST_OPERAND.get(node.op, 0)
    if first:
        return list(node.args[first : first + 2]), node.args[0]
    if node.op == "aten.bilinear.default":
        return [node.args[0], node.args[2], node.args[1]], node.argument(3, "bias")
    return list(node.args[:2]), node.argument(2, "bias") if node.op == "aten.linear.default" else None


@rule("contraction")
def _contraction(state: State, node: Node) -> Result:
    found, bias = operands(node)
    shapes = [state.shape(operand) for operand in found]
    inputs, output = equation(node, [len(shape) for shape in shapes])
    if node.op == "aten.bilinear.default":
        inputs = [inputs[0], inputs[1], inputs[2]]
    letters: dict[str, Axis] = {}
    for text, shape in zip(inputs, shapes, strict=True):
        for letter, axis in zip(text, shape, strict=True):
            letters[letter] = unified(node, [letters.get(letter, UNIT), axis])
    result = tuple(letters[letter] for letter in output)
    for axis, other in zip(reversed(result), reversed(state.shape(bias)), strict=False):
        unified(node, [axis, other])
    _record(state, node, [op.name for op in found if isinstance(op, Ref)], inputs, output, letters)
    return result


def _record(
    state: State, node: Node, names: Sequence[str], inputs: Sequence[str], output: str, letters: dict[str, Axis]
) -> None:
    def pick(chosen: Sequence[str]) -> Shape:
        return tuple(letters[letter] for letter in chosen if letters[letter] is not UNIT)

    counts = {letter: sum(letter in text for text in inputs) for letter in letters}
    free = tuple(pick([c for c in text if c in output and counts[c] == 1]) for text in inputs)
    shared = pick([c for c in output if counts[c] > 1])
    state.contractions.append(Contraction(node, tuple(names), shared, pick([c for c in letters if c not in output]), free))


@rule("attention")
def _attention(state: State, node: Node) -> Result:
    query, key, value = (state.shape(argument) for argument in node.args[:3])
    mask = state.shape(node.args[3])
    meet(node, query[-1], key[-1])
    meet(node, key[-2], value[-2])
    batch = list(query[:-2])
    grouped = bool(dict(node.kwargs).get("enable_gqa")) and query[-3].size != key[-3].size
    for index in range(1, min(len(query), len(key)) - 1):
        q, k, v = query[-2 - index], key[-2 - index], value[-2 - index]
        unified(node, [k, v])
        if index == 1 and grouped:
            repeats = sizes.exact_div(q.size, k.size)
            if repeats is None:
                raise Conflict(f"{q.size} query heads over {k.size} key heads")
            outer, _ = split(q, k.size, repeats)
            meet(node, outer, k)
        else:
            batch[-index] = unified(node, [q, k])
    result = (*batch, query[-2], value[-1])
    for axis, other in zip(reversed((*batch, query[-2], key[-2])), reversed(mask), strict=False):
        unified(node, [axis, other])
    names = [argument.name for argument in node.args[:3] if isinstance(argument, Ref)]
    shared = tuple(axis for axis in batch if axis is not UNIT)
    state.contractions.append(Contraction(node, tuple(names[:2]), shared, (query[-1],), ((query[-2],), (key[-2],))))
    state.contractions.append(Contraction(node, (node.name, names[2]), shared, (key[-2],), ((query[-2],), (value[-1],))))
    return result


@rule("convolution")
def _convolution(state: State, node: Node) -> Result:
    image, weight = state.shape(node.args[0]), state.shape(node.args[1])
    bias = state.shape(node.argument(2, "bias"))
    transposed = "transpose" in node.op
    groups_at = 7 if transposed and len(node.args) > 7 else 6
    groups = node.argument(6, "groups", 1)
    spatial = len(weight) - 2
    channels = image[-spatial - 1]
    out, into = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    assert isinstance(groups, int)
    group = UNIT
    if groups > 1:
        share = sizes.exact_div(channels.size, groups)
        assert share is not None
        group, inner = split(channels, groups, share)
        if transposed:
            meet(node, channels, into)
            out = _prefixed(group, out)
        else:
            meet(node, inner, into)
            each = sizes.exact_div(out.size, groups)
            assert each is not None
            meet(node, split(out, groups, each)[0], group)
        place_ = ("args", groups_at if transposed else 6) if len(node.args) > 6 else ("groups",)
        state.bind(node, place_, group)
    else:
        inner = channels
        meet(node, channels, into)
    if bias:
        meet(node, bias[0], out)
    space = _slid(node, image[-spatial:], weight[2:])
    shared = (group,) if group is not UNIT else ()
    summed = tuple(axis for axis in (inner, *weight[2:]) if axis is not UNIT)
    names = tuple(argument.name for argument in node.args[:2] if isinstance(argument, Ref))
    state.contractions.append(Contraction(node, names, shared, summed, (space, (out,))))
    return (*image[: -spatial - 1], out, *space)


def _prefixed(group: Axis, rest: Axis) -> Axis:
    from graphgrow.axes.terms import product

    return product([group, rest])


def _slid(node: Node, image: Shape, window: Shape) -> Shape:
    """The space a window leaves as it slides: the same where it is a point, new axes elsewhere."""
    result: list[Axis] = []
    for axis, kernel, size in zip(image, window, node.shape[-len(window) :], strict=True):
        freeze(kernel, f"{place(node)}: a window over space")
        same = kernel.size == 1 and axis.size == size
        result.append(axis if same else (Axis(size) if size != 1 else UNIT))
        if not same:
            freeze(axis, f"{place(node)} slides a window along it")
            freeze(result[-1], f"{place(node)} slides a window along it")
    return tuple(result)


@rule("pool")
def _pool(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    target = node.type[0] if isinstance(node.type, tuple) else node.tensor
    assert isinstance(target, TensorType)
    kept = min(2, len(shape) - 1)
    result: list[Axis] = list(shape[:kept])
    for axis, size in zip(shape[kept:], target.shape[kept:], strict=True):
        freeze(axis, f"{place(node)} works on space")
        result.append(axis if axis.size == size else (Axis(size) if size != 1 else UNIT))
        freeze(result[-1], f"{place(node)} works on space")
    return (tuple(result), tuple(result)) if isinstance(node.type, tuple) else tuple(result)


# Lookups


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
    shape = state.shape(node.args[0])
    indices = node.args[1]
    assert isinstance(indices, tuple)
    used = [dim for dim, index in enumerate(indices) if index is not None]
    found = [state.shape(indices[dim]) for dim in used]
    rank = max(len(index) for index in found)
    joined: list[Axis] = []
    for back in range(rank, 0, -1):
        aligned = [index[-back] for index in found if len(index) >= back]
        joined.append(unified(node, aligned))
    for dim in used:
        _looked_up(state, node, shape[dim], indices[dim])
        if _is_fixed(state, indices[dim]):
            freeze(shape[dim], f"{place(node)} picks units by fixed numbers")
            order(shape[dim], f"{place(node)} picks units by fixed numbers")
    adjacent = used == list(range(used[0], used[-1] + 1))
    first = used[0] if adjacent else 0
    rest = [axis for dim, axis in enumerate(shape) if dim not in used]
    return (*rest[:first], *joined, *rest[first:])


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
    shape = state.shape(node.args[0])
    indices = node.args[1]
    assert isinstance(indices, tuple)
    for dim, index in enumerate(indices):
        if index is not None:
            _looked_up(state, node, shape[dim], index)
    values = state.shape(node.args[2])
    kept = [axis for dim, axis in enumerate(shape) if dim >= len(indices) or indices[dim] is None]
    for axis, other in zip(reversed(kept), reversed(values), strict=False):
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


# From nothing


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

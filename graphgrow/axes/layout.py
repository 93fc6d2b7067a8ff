"""The axes of layout operators, which move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

from graphgrow import sizes
from graphgrow.axes.rules import Result, rule, tensors
from graphgrow.axes.state import Shape, State, freeze_all, fresh, meet, pin, place, unified
from graphgrow.axes.terms import UNIT, Axis, Conflict, atom, cut, freeze, lead, order, product, split, total
from graphgrow.graph import Node
from graphgrow.sizes import Dim, Size


@rule("reshape")
def _reshape(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    result = _reshaped(node, shape, state.units)
    state.bind_sizes(node, 1, result)
    return result


def _reshaped(node: Node, shape: Shape, units: bool) -> Shape:
    """`shape` seen with other sizes: dimensions in groups of equal product, each one product. With `units` a dimension
    of size 1 that was not there before is an outer factor of what follows it."""
    target = node.shape
    ones = _ones(shape, target)
    sources = [axis for axis in shape if axis is not UNIT and axis not in ones.values()][::-1]
    wanted = [size for size in target if size != 1][::-1]
    found: list[Axis] = []
    while wanted:
        group_in, group_out = [sources.pop()] if sources else [], [wanted.pop()]
        while (left := sizes.total(a.size for a in group_in)) != (right := sizes.total(group_out)):
            if sources and (_grows(left, right) or not wanted):
                group_in.append(sources.pop())
            elif wanted:
                group_out.append(wanted.pop())
            else:
                raise Conflict(f"a reshape of {left} elements into {right}")
        found += _group(node, group_in, group_out)
    if sources:
        freeze_all(sources, f"{place(node)} leaves it out")
    kept, result = iter(found[::-1]), list[Axis]()
    for index, size in reversed(list(enumerate(target))):
        if size != 1:
            result.append(next(kept))
        elif index in ones or not units or not result or result[-1].size == 1 or not isinstance(result[-1].size, int):
            result.append(ones.get(index, UNIT))
        else:
            one, result[-1] = lead(result[-1])
            result.append(one)
    return tuple(result[::-1])


def _ones(shape: Shape, target: Sequence[Dim]) -> dict[int, Axis]:
    """The dimensions of size 1 that are there before and after: as much lies outside of them."""
    before, after = ([sizes.total(dims[:i]) for i in range(len(dims))] for dims in ([a.size for a in shape], target))
    left = [(before[index], axis) for index, axis in enumerate(shape) if axis.size == 1]
    found: dict[int, Axis] = {}
    for index in (index for index, size in enumerate(target) if size == 1):
        match = next((pair for pair in left if pair[0] == after[index]), None)
        if match:
            left.remove(match)
            found[index] = match[1]
    return found


def _grows(left: Dim, right: Dim) -> bool:
    """Whether the input side has to take in a further dimension: it is smaller, or lacks a factor of the other."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    return sizes.exact_div(right, left) is not None or sizes.exact_div(left, right) is None


def _group(node: Node, axes: list[Axis], target: list[Dim]) -> list[Axis]:
    """The product of some dimensions, cut otherwise. Where that can't be, they keep their sizes."""
    axis, parts = product(axes), list[Axis]()
    try:
        for index, size in enumerate(target[:-1]):
            outer, axis = split(axis, size, sizes.total(target[index + 1 :]))
            parts.append(outer)
    except Conflict as conflict:
        made = [atom(size) for size in target]
        freeze_all((*axes, *made), f"{place(node)}: {conflict}")
        return made
    return [*parts, axis]


@rule("permute")
def _permute(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    return tuple(shape[dim] for dim in state.dims(node, 1, "dims"))


@rule("unsqueeze")
def _unsqueeze(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    shape.insert(state.dim(node, 1, rank=len(shape) + 1), UNIT)
    return tuple(shape)


@rule("expand")
def _expand(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    new = len(node.shape) - len(shape)
    result = tuple(
        shape[dim - new] if dim >= new and shape[dim - new].size == size else atom(size)
        for dim, size in enumerate(node.shape)
    )
    freeze_all([axis for axis in shape if axis.size == 1 and axis not in result], f"{place(node)} spreads it")
    state.bind_sizes(node, 1, result)
    return result


@rule("repeat")
def _repeat(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    counts = node.args[1]
    assert isinstance(counts, tuple)
    new = len(counts) - len(shape)
    repeats = tuple(atom(count) if isinstance(count, int | Size) else UNIT for count in counts)
    state.bind_sizes(node, 1, repeats)
    return tuple(
        product([repeat, *shape[dim - new : dim - new + 1]]) if dim >= new else repeat
        for dim, repeat in enumerate(repeats)
    )


@rule("repeat_interleave")
def _repeat_interleave(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    if node.argument(2, "dim") is None:
        raise Conflict("repeat_interleave over all dimensions")
    dim = state.dim(node, 2)
    repeat = atom(node.args[1]) if isinstance(node.args[1], int | Size) else UNIT
    state.bind(node, ("args", 1), repeat)
    shape[dim] = product([shape[dim], repeat])
    if isinstance(node.argument(3, "output_size"), int | Size):
        state.bind(node, ("output_size",), shape[dim])
    return tuple(shape)


@rule("cat")
def _cat(state: State, node: Node) -> Result:
    parts = [shape for shape in tensors(state, node) if not (len(shape) == 1 and shape[0].size == 0)]
    dim = state.dim(node, 1, default=0, rank=len(node.shape))
    result = [unified(node, [part[d] for part in parts], spread=False) for d in range(len(node.shape)) if d != dim]
    result.insert(dim, total([part[dim] for part in parts]))
    return tuple(result)


@rule("stack")
def _stack(state: State, node: Node) -> Result:
    parts = tensors(state, node)
    dim = state.dim(node, 1, default=0, rank=len(node.shape))
    result = [unified(node, [part[d] for part in parts], spread=False) for d in range(len(parts[0]))]
    result.insert(dim, total([UNIT] * len(parts)))
    return tuple(result)


@rule("meshgrid")
def _meshgrid(state: State, node: Node) -> Result:
    axes = [shape[0] if shape else UNIT for shape in tensors(state, node)]
    if dict(node.kwargs).get("indexing") == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return tuple(tuple(axes) for _ in axes)


@rule("split")
def _split(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim, given = state.dim(node, 2, default=0), node.args[1]
    assert isinstance(given, tuple)
    lengths: list[Dim] = [size for size in given if isinstance(size, int | Size)]
    positions = [sizes.add(*lengths[:index]) for index in range(1, len(lengths))]
    total_size = shape[dim].size
    inside = [position for position in dict.fromkeys(positions) if position not in (0, total_size)]
    pieces = iter(cut(shape[dim], inside, state.units))
    empty = Axis(0)
    found = [next(pieces) if size != 0 else empty for size in lengths]
    state.bind_sizes(node, 1, tuple(found), "split_sizes")
    return tuple((*shape[:dim], piece, *shape[dim + 1 :]) for piece in found)


@rule("slice")
def _slice(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim, start, end, step = node.args[1:5]
    assert (
        isinstance(dim, int) and isinstance(start, int | Size) and isinstance(end, int | Size) and isinstance(step, int)
    )
    axis, length = shape[dim], node.shape[dim]
    if length == 0:
        shape[dim] = Axis(0)
    elif step == 1:
        before, shape[dim] = _piece(state, node, axis, start, end)
        state.bind(node, ("args", 2), *before)
        state.bind(node, ("args", 3), *before, shape[dim])
    else:
        shape[dim] = _strided(state, node, axis, start, step, length)
    return tuple(shape)


def _piece(state: State, node: Node, axis: Axis, start: Dim, end: Dim) -> tuple[list[Axis], Axis]:
    """The part of an axis between two positions, and what lies before it. Where the axis can't be cut there, it and
    the parts keep their sizes."""
    positions = [position for position in (start, end) if position not in (0, axis.size)]
    try:
        pieces = cut(axis, positions, state.units)
    except Conflict as conflict:
        ends = [*positions, axis.size]
        pieces = [atom(sizes.sub(to, at)) for at, to in zip([0, *positions], ends, strict=True)]
        for one in (axis, *pieces):
            freeze(one, f"{place(node)}: {conflict}")
    first = 0 if start == 0 else 1
    return pieces[:first], pieces[first]


def _strided(state: State, node: Node, axis: Axis, start: Dim, step: int, length: Dim) -> Axis:
    """Every `step`-th unit: the outer factor of a product, whose inner factor's units are told apart."""
    if sizes.mul(length, step) != axis.size or not isinstance(start, int) or start >= step:
        raise Conflict(f"a slice by {step} that does not divide {axis.size}")
    outer, inner = split(axis, length, step)
    freeze(inner, f"{place(node)} takes every {step}th unit")
    order(inner, f"{place(node)} takes every {step}th unit")
    state.bind(node, ("args", 3), axis, offset=start + 1 - step)
    return outer


@rule("select")
def _select(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim, index = node.args[1:3]
    assert isinstance(dim, int) and isinstance(index, int | Size)
    if shape[dim].size != 1:
        before, _ = _piece(state, node, shape[dim], index, sizes.add(index, 1))
        state.bind(node, ("args", 2), *before)
    del shape[dim]
    return tuple(shape)


@rule("unbind")
def _unbind(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    dim = state.dim(node, 1, default=0)
    count = shape[dim].size
    if not isinstance(count, int):
        raise Conflict("unbind of a dynamic size")
    cut(shape[dim], list(range(1, count)))
    if count == 1:
        freeze(shape[dim], f"{place(node)} takes its units apart")
    del shape[dim]
    return tuple(tuple(shape) for _ in range(count))


@rule("pad")
def _pad(state: State, node: Node) -> Result:
    shape = list(state.shape(node.args[0]))
    amounts, mode = node.args[1], node.argument(2, "mode", "constant")
    assert isinstance(amounts, tuple)
    for index in range(0, len(amounts), 2):
        dim = len(shape) - 1 - index // 2
        before, after = amounts[index], amounts[index + 1]
        if before == 0 and after == 0:
            continue
        known = isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
        if not known or (mode not in ("constant", None) and isinstance(mode, str)):
            pin(shape[dim], f"{place(node)} cuts it or pads it by its own units")
            shape[dim] = fresh(node.tensor)[dim]
            pin(shape[dim], f"{place(node)} cuts it or pads it by its own units")
            continue
        assert isinstance(before, int) and isinstance(after, int)
        sides = [atom(size) if size else Axis(0) for size in (before, after)]
        for side, place_index in zip(sides, (index, index + 1), strict=True):
            if side.size != 0:
                state.bind(node, ("args", 1, place_index), side)
        shape[dim] = total([sides[0], shape[dim], sides[1]])
    return tuple(shape)


@rule("flip", "roll")
def _reordered(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    for dim in state.dims(node, 1 if "flip" in node.op else 2, "dims"):
        order(shape[dim], f"{place(node)} moves its units")
        freeze(shape[dim], f"{place(node)} moves its units")
    return shape


@rule("slice_scatter")
def _slice_scatter(state: State, node: Node) -> Result:
    shape, source = state.shape(node.args[0]), state.shape(node.args[1])
    dim, start, end = node.args[2:5]
    assert isinstance(dim, int) and isinstance(start, int | Size) and isinstance(end, int | Size)
    if node.argument(5, "step", 1) != 1:
        raise Conflict("a scatter by steps")
    before, piece = _piece(state, node, shape[dim], start, end)
    for position, (axis, other) in enumerate(zip(shape, source, strict=True)):
        meet(node, piece if position == dim else axis, other)
    state.bind(node, ("args", 3), *before)
    state.bind(node, ("args", 4), *before, piece)
    return shape


@rule("select_scatter")
def _select_scatter(state: State, node: Node) -> Result:
    shape, source = state.shape(node.args[0]), state.shape(node.args[1])
    dim, index = node.args[2:4]
    assert isinstance(dim, int) and isinstance(index, int | Size)
    before, _ = _piece(state, node, shape[dim], index, sizes.add(index, 1))
    state.bind(node, ("args", 3), *before)
    for axis, other in zip((*shape[:dim], *shape[dim + 1 :]), source, strict=True):
        meet(node, axis, other)
    return shape


@rule("triangle")
def _triangle(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    for axis in shape[-2:]:
        order(axis, f"{place(node)} compares positions")
    return shape


@rule("diagonal")
def _diagonal(state: State, node: Node) -> Result:
    raise Conflict("a diagonal")


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(state: State, node: Node) -> Result:
    shape, factor = state.shape(node.args[0]), node.args[1]
    assert isinstance(factor, int)
    *lead, channels, height, width = shape
    if "unshuffle" in node.op:
        rows, r1 = split(height, node.shape[-2], factor)
        columns, r2 = split(width, node.shape[-1], factor)
        for axis in (r1, r2):
            freeze(axis, f"{place(node)} has a fixed factor")
        return (*lead, product([channels, r1, r2]), rows, columns)
    kept, inner = split(channels, node.shape[-3], factor * factor)
    r1, r2 = split(inner, factor, factor)
    for axis in (r1, r2):
        freeze(axis, f"{place(node)} has a fixed factor")
    return (*lead, kept, product([height, r1]), product([width, r2]))


@rule("view_as_complex", "view_as_real")
def _complex(state: State, node: Node) -> Result:
    """The last dimension of the real tensor is real and imaginary part."""
    shape = state.shape(node.args[0])
    whole, pair = (shape[:-1], shape[-1]) if "as_complex" in node.op else (shape, Axis(2))
    freeze(pair, f"{place(node)}: real and imaginary part")
    order(pair, f"{place(node)}: real and imaginary part")
    return whole if "as_complex" in node.op else (*whole, pair)

"""The axes of sums of products: linear, matmul, einsum, attention, convolution; and of windows over space."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphgrow import ops, sizes
from graphgrow.axes.rules import Result, rule
from graphgrow.axes.state import Contraction, Shape, State, meet, place, unified
from graphgrow.axes.terms import UNIT, Axis, Conflict, freeze, lead, order, product, split
from graphgrow.graph import Argument, Node, Ref, TensorType


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
        output = "..." * ("..." in inputs) + "".join(
            sorted(c for c in set(inputs) - set(".,") if letters.count(c) == 1)
        )
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
    letters: dict[str, Axis] = {}
    if any(len(text) != len(shape) for text, shape in zip(inputs, shapes, strict=True)):
        raise Conflict("operands of a rank that its signature does not have")
    for text, shape in zip(inputs, shapes, strict=True):
        for letter, axis in zip(text, shape, strict=True):
            batch = letter in output and "matmul" in node.op
            met = letters.get(letter, axis)
            one, other = sorted((met, axis), key=lambda a: a.size != 1)
            if batch and one is not UNIT and one.size == 1 and isinstance(other.size, int) and other.size > 1:
                meet(node, lead(other)[0], one)  # one head for all
                letters[letter] = other
            else:
                letters[letter] = unified(node, [met, axis], spread=batch)
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
    state.contractions.append(
        Contraction(node, tuple(names), shared, pick([c for c in letters if c not in output]), free)
    )


@rule("attention")
def _attention(state: State, node: Node) -> Result:
    query, key, value = (state.shape(argument) for argument in node.args[:3])
    mask = state.shape(node.args[3])
    meet(node, query[-1], key[-1])
    meet(node, key[-2], value[-2])
    if node.argument(5, "is_causal", False):
        for axis in (query[-2], key[-2]):
            order(axis, f"{place(node)} looks at what came before")
    batch = list(query[:-2])
    gqa = bool(dict(node.kwargs).get("enable_gqa"))
    for index in range(1, min(len(query), len(key)) - 1):
        q, k, v = query[-2 - index], key[-2 - index], value[-2 - index]
        unified(node, [k, v], spread=False)
        one = k.size == 1 and k is not UNIT
        if index == 1 and q.size != k.size and (gqa or one):
            repeats = sizes.exact_div(q.size, k.size)
            if repeats is None:
                raise Conflict(f"{q.size} query heads over {k.size} key heads")
            outer, _ = lead(q) if one else split(q, k.size, repeats)
            meet(node, outer, k)
        else:
            batch[-index] = unified(node, [q, k])
    result = (*batch, query[-2], value[-1])
    for axis, other in zip(reversed((*batch, query[-2], key[-2])), reversed(mask), strict=False):
        unified(node, [axis, other])
    names = [argument.name for argument in node.args[:3] if isinstance(argument, Ref)]
    shared = tuple(axis for axis in batch if axis is not UNIT)
    state.contractions.append(Contraction(node, tuple(names[:2]), shared, (query[-1],), ((query[-2],), (key[-2],))))
    state.contractions.append(
        Contraction(node, (node.name, names[2]), shared, (key[-2],), ((query[-2],), (value[-1],)))
    )
    return result


@rule("convolution")
def _convolution(state: State, node: Node) -> Result:
    image, weight = state.shape(node.args[0]), state.shape(node.args[1])
    bias = state.shape(node.argument(2, "bias"))
    transposed = "transpose" in node.op
    groups = node.argument(6, "groups", 1)
    spatial = len(weight) - 2
    channels = image[-spatial - 1]
    out, into = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    assert isinstance(groups, int)
    group = UNIT
    if groups > 1:
        share = sizes.exact_div(channels.size, groups)
        if share is None:
            raise Conflict(f"{channels.size} channels in {groups} groups")
        group, inner = split(channels, groups, share)
        if transposed:
            meet(node, channels, into)
            out = product([group, out])
        else:
            meet(node, inner, into)
            each = sizes.exact_div(out.size, groups)
            if each is None:
                raise Conflict(f"{out.size} channels in {groups} groups")
            meet(node, split(out, groups, each)[0], group)
        place_ = ("args", 6) if len(node.args) > 6 else ("groups",)
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


def _slid(node: Node, image: Shape, window: Shape) -> Shape:
    """The space a window leaves as it slides: the same where it is a point that meets each position once."""
    result: list[Axis] = []
    strides, paddings = (each(node.argument(*where), len(window)) for where in ((3, "stride", 1), (4, "padding", 0)))
    steps = zip(strides, paddings, strict=True)
    for axis, kernel, size, step in zip(image, window, node.shape[-len(window) :], steps, strict=True):
        freeze(kernel, f"{place(node)}: a window over space")
        same = kernel.size == 1 and axis.size == size and step in ((1, 0), (1, "same"), (1, "valid"))
        result.append(axis if same else (Axis(size) if size != 1 else UNIT))
        if not same:
            freeze(axis, f"{place(node)} slides a window along it")
            freeze(result[-1], f"{place(node)} slides a window along it")
    return tuple(result)


def each(value: Argument, count: int) -> tuple[Argument, ...]:
    """A setting for each dimension of space: one number stands for all."""
    given = value if isinstance(value, tuple) else (value,)
    return given * count if len(given) == 1 else given


@rule("pool")
def _pool(state: State, node: Node) -> Result:
    shape = state.shape(node.args[0])
    target = node.type[0] if isinstance(node.type, tuple) else node.tensor
    assert isinstance(target, TensorType)
    space = re.search(r"([123])d", node.op)
    kept = len(shape) - (int(space[1]) if space else 2)
    for axis in state.shape(node.args[1]):
        freeze(axis, f"{place(node)} samples by it")
    result: list[Axis] = list(shape[:kept])
    for axis, size in zip(shape[kept:], target.shape[kept:], strict=True):
        freeze(axis, f"{place(node)} works on space")
        same = axis.size == size and "grid" not in node.op
        result.append(axis if same else (Axis(size) if size != 1 else UNIT))
        freeze(result[-1], f"{place(node)} works on space")
    if "grid" in node.op:
        for axis in state.shape(node.args[1])[1:]:
            freeze(axis, f"{place(node)} works on space")
    return (tuple(result), tuple(result)) if isinstance(node.type, tuple) else tuple(result)

"""One spelling for each operator: of ATen's many ways to say "reshape", the graph knows one.

A rule takes the draft and the node as it was captured and returns what stands for its value: a new node's Ref, the
operand itself when nothing is done, or a tuple. Rules also turn in-place operators into plain ones and make implicit
numbers (split sizes, attention scale) explicit, so that what a rewrite must change can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING

from graphgrow import sizes
from graphgrow.errors import TraceError
from graphgrow.graph import Argument, ByMode, Dtype, Node, Ref, TensorType

if TYPE_CHECKING:
    from graphgrow.tracing.convert import Draft

Rule = Callable[["Draft", Node], Argument]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((f"aten.{name}" for name in operators), function))
        return function

    return register


# Second names that ATen keeps for operators.
ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "absolute": "abs", "negative": "neg",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne", "clip": "clamp",
    "concat": "cat", "concatenate": "cat", "special_expit": "sigmoid", "special_erf": "erf", "fix": "trunc",
    "arctan": "atan", "arcsin": "asin", "arccos": "acos", "special_log1p": "log1p", "special_expm1": "expm1",
    "special_softmax": "softmax", "special_log_softmax": "log_softmax",
    "_conj": "conj",
}  # fmt: skip


def canonical(draft: Draft, node: Node) -> Argument:
    """Append `node` in its one spelling; returns what stands for its value."""
    base, _, overload = node.op.removeprefix("aten.").partition(".")
    mark = "_" if base.endswith("_") else ""
    if base.removesuffix("_") in ALIASES and node.op.startswith("aten."):
        node = replace(node, op=f"aten.{ALIASES[base.removesuffix('_')]}{mark}.{overload}")
    found = RULES.get(node.op)
    if found is not None:
        return found(draft, node)
    if _in_place(node.op):
        return _functional(draft, node)
    return _keep(draft, node)


def _keep(draft: Draft, node: Node) -> Ref:
    return draft.append(replace(node, name=draft.fresh(node.name)))


def _in_place(op: str) -> bool:
    base = op.split(".")[1] if op.startswith("aten.") else ""
    return base.endswith("_") and not base.endswith("__")


def _functional(draft: Draft, node: Node) -> Argument:
    """`x.add_(y)` as `add(x, y)`, in the type of `x`. A counter buffer stays in place."""
    target = node.args[0]
    if isinstance(target, Ref) and draft.by_name[target.name].op == "parameter":
        return _counter(draft, node)
    before = draft.tensor(target)
    base, _, overload = node.op.removeprefix("aten.").partition(".")
    result = canonical(draft, replace(node, op=f"aten.{base[:-1]}.{overload}"))
    if isinstance(result, Ref) and draft.tensor(result).dtype != before.dtype:
        result = draft.add("aten.to.dtype", (result, Dtype(before.dtype)), before, node)
    return result


def _counter(draft: Draft, node: Node) -> Argument:
    if node.op == "aten.add_.Tensor" and len(node.args) == 2 and isinstance(node.args[1], int):
        return _keep(draft, replace(node, args=(node.args[0], ByMode(node.args[1], 0))))
    raise TraceError(
        found=f"a parameter or buffer that is changed in place by {node.op}",
        where=node.source,
        fix="keep the state outside the model, or pass it in and return it",
    )


def _named(draft: Draft, node: Node, op: str, *args: Argument) -> Node:
    return replace(node, name=draft.fresh(node.name), op=f"aten.{op}", args=args, kwargs=())


def _dims(value: Argument, rank: int) -> tuple[int, ...]:
    """A dimension or a list of them, counted from the front."""
    items = value if isinstance(value, tuple) else (value,)
    return tuple(item % rank for item in items if isinstance(item, int))


@rule(
    "contiguous.default",
    "clone.default",
    "lift_fresh_copy.default",
    "alias.default",
    "lift.default",
    "resolve_conj.default",
    "resolve_neg.default",
)
def _identity(draft: Draft, node: Node) -> Argument:
    if node.op == "aten.clone.default" and isinstance(node.args[0], Ref):
        return draft.append(_named(draft, node, "clone.default", node.args[0]))
    return node.args[0]


@rule(
    "to.dtype",
    "to.dtype_layout",
    "to.device",
    "to.other",
    "_to_copy.default",
    "type_as.default",
    "to.prim_Device",
    "to.prim_dtype",
)
def _cast(draft: Draft, node: Node) -> Argument:
    dtype = node.tensor.dtype
    return draft.append(_named(draft, node, "to.dtype", node.args[0], Dtype(dtype)))


@rule(
    "view.default",
    "reshape.default",
    "_unsafe_view.default",
    "flatten.using_ints",
    "unflatten.int",
    "view_as.default",
    "reshape_as.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
    "_reshape_alias.default",
    "ravel.default",
)
def _reshape(draft: Draft, node: Node) -> Argument:
    if draft.tensor(node.args[0]).shape == node.shape:
        return node.args[0]
    return draft.append(_named(draft, node, "reshape.default", node.args[0], node.shape))


@rule("expand.default", "expand_as.default", "broadcast_to.default")
def _expand(draft: Draft, node: Node) -> Argument:
    if draft.tensor(node.args[0]).shape == node.shape:
        return node.args[0]
    return draft.append(_named(draft, node, "expand.default", node.args[0], node.shape))


@rule(
    "transpose.int",
    "transpose.default",
    "t.default",
    "permute.default",
    "mT.default",
    "numpy_T.default",
    "movedim.int",
    "swapaxes.default",
    "swapdims.default",
    "adjoint.default",
    "mH.default",
)
def _permute(draft: Draft, node: Node) -> Argument:
    rank = len(node.shape)
    order = list(range(rank))
    name = node.op.removeprefix("aten.").partition(".")[0]
    if name == "permute":
        order = list(_dims(node.args[1], rank))
    elif name == "movedim":
        source, target = _dims(node.args[1:3], rank)
        order.insert(target, order.pop(source))
    elif name == "numpy_T":
        order.reverse()
    elif rank > 1:
        pair = _dims(node.args[1:3], rank) or (rank - 2, rank - 1)
        first, second = pair[0], pair[-1]
        order[first], order[second] = order[second], order[first]
    if order == sorted(order):
        return node.args[0]
    return draft.append(_named(draft, node, "permute.default", node.args[0], tuple(order)))


@rule("slice.Tensor", "narrow.default")
def _slice(draft: Draft, node: Node) -> Argument:
    shape = draft.tensor(node.args[0]).shape
    (dim,) = _dims(node.argument(1, "dim", 0), len(shape))
    if shape == node.shape:
        return node.args[0]
    length = node.shape[dim]
    step = node.argument(4, "step", 1) if node.op == "aten.slice.Tensor" else 1
    start = node.argument(2, "start", 0) or 0
    if not isinstance(start, int | sizes.Size) or not isinstance(step, int):
        raise TraceError(found=f"a slice from {start} by {step}", where=node.source)
    if isinstance(start, int) and start < 0:
        start = sizes.add(shape[dim], start)
    end = sizes.add(start, sizes.mul(length, step))
    if step > 1:
        end = sizes.add(end, 1 - step)
    return draft.append(_named(draft, node, "slice.Tensor", node.args[0], dim, start, end, step))


@rule("select.int")
def _select(draft: Draft, node: Node) -> Argument:
    shape = draft.tensor(node.args[0]).shape
    (dim,) = _dims(node.argument(1, "dim", 0), len(shape))
    index = node.argument(2, "index", 0)
    if isinstance(index, int) and index < 0:
        index = sizes.add(shape[dim], index)
    return draft.append(_named(draft, node, "select.int", node.args[0], dim, index))


@rule("index.Tensor")
def _index(draft: Draft, node: Node) -> Argument:
    """A list of consecutive units written in the code (`x[..., [-1], :]`) is a slice."""
    given = node.args[1]
    indices: tuple[Argument, ...] = given if isinstance(given, tuple) else ()
    used = [dim for dim, index in enumerate(indices) if index is not None]
    index = indices[used[0]] if len(used) == 1 else None
    units = draft.constants.get(index.name) if isinstance(index, Ref) else None
    size = draft.tensor(node.args[0]).shape[used[0]] if units else None
    if not units or not isinstance(size, int):
        return _keep(draft, node)
    dim = used[0]
    start = units[0] % size
    if [unit % size for unit in units] != list(range(start, start + len(units))):
        return _keep(draft, node)
    return draft.append(_named(draft, node, "slice.Tensor", node.args[0], dim, start, start + len(units), 1))


@rule("unsqueeze.default")
def _unsqueeze(draft: Draft, node: Node) -> Argument:
    (dim,) = _dims(node.args[1], len(node.shape))
    return draft.append(_named(draft, node, "unsqueeze.default", node.args[0], dim))


@rule(
    "chunk.default",
    "split.Tensor",
    "split_with_sizes.default",
    "split.sizes",
    "unsafe_split.Tensor",
    "unsafe_chunk.default",
    "tensor_split.sections",
    "tensor_split.indices",
    "unsafe_split_with_sizes.default",
)
def _split(draft: Draft, node: Node) -> Argument:
    (dim,) = _dims(node.argument(2, "dim", 0), len(draft.tensor(node.args[0]).shape))
    parts = (
        tuple(part.shape[dim] for part in node.type if isinstance(part, TensorType))
        if isinstance(node.type, tuple)
        else ()
    )
    return draft.append(_named(draft, node, "split_with_sizes.default", node.args[0], parts, dim))


@rule("detach.default", "detach_.default")
def _detach(draft: Draft, node: Node) -> Argument:
    return draft.append(_named(draft, node, "detach.default", node.args[0]))


@rule("view_as_complex.default")
def _complex(draft: Draft, node: Node) -> Argument:
    """Of a copy: whether numbers in memory can be seen in pairs goes by their strides, which sizes elsewhere change."""
    copy = draft.add("aten.clone.default", (node.args[0],), draft.tensor(node.args[0]), node)
    return draft.append(_named(draft, node, "view_as_complex.default", copy))


@rule("scaled_dot_product_attention.default")
def _attention(draft: Draft, node: Node) -> Argument:
    query, key, value = node.args[:3]
    scale = node.argument(6, "scale")
    if scale is None:
        width = draft.tensor(query).shape[-1]
        if not isinstance(width, int):
            raise TraceError(found="attention over keys of a dynamic size", where=node.source)
        scale = 1 / sqrt(width)
    dropout = node.argument(4, "dropout_p", 0.0)
    args = (query, key, value, node.argument(3, "attn_mask"), dropout, node.argument(5, "is_causal", False))
    kwargs = (("scale", scale), ("enable_gqa", bool(node.argument(7, "enable_gqa", False))))
    return draft.append(replace(node, name=draft.fresh(node.name), args=args, kwargs=kwargs))


@rule("_weight_norm.default")
def _weight_norm(draft: Draft, node: Node) -> Argument:
    """direction * (gain / its norm over all dimensions but one, or over all where that is -1)."""
    direction, gain = node.args[:2]
    before, kept = draft.tensor(direction), node.argument(2, "dim", 0)
    over = tuple(dim for dim in range(len(before.shape)) if dim != kept)
    shape = tuple(1 if dim in over else size for dim, size in enumerate(before.shape)) if kept != -1 else ()
    one = TensorType(shape, before.dtype)
    norm = draft.add("aten.linalg_vector_norm.default", (direction, 2.0, over, kept != -1), one, node)
    factor = draft.add("aten.div.Tensor", (gain, norm), one, node)
    return draft.append(_named(draft, node, "mul.Tensor", direction, factor))


@rule("bernoulli.float", "normal.default")
def _drawn(draft: Draft, node: Node) -> Argument:
    """`x.bernoulli_(p)` and `x.normal_()`, whose plain forms have other names."""
    plain = {"aten.bernoulli.float": "bernoulli.p", "aten.normal.default": "normal_functional.default"}[node.op]
    return draft.append(_named(draft, node, plain, *node.args))


@rule("fill_.Scalar", "zero_.default", "fill_.Tensor", "copy_.default")
def _assign(draft: Draft, node: Node) -> Argument:
    """`x[...] = value`: the value spread over the target's shape takes its place."""
    target = node.args[0]
    value = node.args[1] if len(node.args) > 1 else 0
    before = draft.tensor(target)
    if not isinstance(value, Ref):
        return draft.append(_named(draft, node, "full_like.default", target, value))
    given = draft.tensor(value)
    if given.dtype != before.dtype:
        value = draft.add("aten.to.dtype", (value, Dtype(before.dtype)), replace(given, dtype=before.dtype), node)
    if given.shape != before.shape:
        value = draft.add("aten.expand.default", (value, before.shape), before, node)
    return value

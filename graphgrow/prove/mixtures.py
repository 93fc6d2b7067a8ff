"""Laws of mixtures for value numbering: what is the same for all experts.

A value is *alike* when it does not vary along its first dimension, the experts: a stack of equal weights, and what
operators that go along this dimension make of alike values and of others that do not have it. Such a value is what one
expert has, once for each. Added up with weights that sum to one it is what one expert has.

Weights sum to one along a dimension when they are a softmax along it, or when such a softmax is put among zeros, each
of its numbers at a place of its own: the places that a topk gives.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from graphgrow import ops
from graphgrow.graph import ByMode, Graph, Node, Ref, TensorType, Type

if TYPE_CHECKING:
    from graphgrow.prove.numbering import Made

_SUM, _MUL = "aten.sum.dim_IntList", "aten.mul.Tensor"


def without_first(kind: Type) -> Type:
    """The type of a value at one place of its first dimension."""
    if isinstance(kind, TensorType):
        return replace(kind, shape=kind.shape[1:])
    return tuple(map(without_first, kind)) if isinstance(kind, tuple) else kind


def of_one(graph: Graph, node: Node, alike: Mapping[str, int]) -> Node | None:
    """What a node computes for one expert, when the values in `alike` are those of one; None where it does not go along
    the experts."""
    kind, one = ops.kind(node.op), replace(node, type=without_first(node.type))
    if node.op == "aten.einsum.default":
        return _product(node, one, alike)
    if kind in ("pointwise", "power"):
        return one if _aligned(graph, node, alike) and not _draws(node) else None
    args = list(node.args)
    if not args or not isinstance(args[0], Ref) or args[0].name not in alike:
        return None
    if kind == "getitem":
        return one
    count = graph[args[0].name].shape[0]
    if not isinstance(node.type, tuple) and (not node.shape or node.shape[0] != count):
        return None
    if kind == "reshape":
        return one
    if kind == "permute" and isinstance(args[1], tuple) and args[1][0] == 0:
        dims = cast("tuple[int, ...]", args[1][1:])
        return replace(one, args=(args[0], tuple(dim - 1 for dim in dims))) if min(dims, default=1) > 0 else None
    if kind == "unsqueeze" and isinstance(args[1], int) and args[1] > 0:
        return replace(one, args=(args[0], args[1] - 1))
    place = ops.DIMENSION.get(kind)
    dim = args[place] if place is not None and place < len(args) else None
    rank = len(graph[args[0].name].shape)
    return one if isinstance(dim, int) and -rank < dim < 0 else None


def _aligned(graph: Graph, node: Node, alike: Mapping[str, int]) -> bool:
    """Whether all operands that reach the first dimension of the result are alike along it."""
    rank, count = len(node.shape), node.shape[0]
    for name in node.operands():
        shape = graph[name].shape
        if name in alike and (len(shape) != rank or shape[0] != count):
            return False
        if name not in alike and len(shape) >= rank:
            return False
    return True


def from_the_front(node: Node, rank: int) -> Node:
    """A node whose dimension counts from the front."""
    place = ops.DIMENSION.get(ops.kind(node.op), len(node.args))
    dim = node.args[place] if place < len(node.args) else None
    if not isinstance(dim, int) or dim >= 0:
        return node
    return replace(node, args=(*node.args[:place], dim % rank, *node.args[place + 1 :]))


def _draws(node: Node) -> bool:
    """Whether an operator is random in evaluation mode."""
    if not any(word in node.op for word in ("dropout", "rrelu", "bernoulli")):
        return False
    modes = [argument for argument in node.args if isinstance(argument, bool | ByMode)]
    return not modes or any(mode.eval if isinstance(mode, ByMode) else mode for mode in modes)


def _product(node: Node, one: Node, alike: Mapping[str, int]) -> Node | None:
    """An einsum whose result has a letter first that only alike values have, first too."""
    text, factors = node.args
    inputs, arrow, output = str(text).replace(" ", "").partition("->")
    if not arrow or not output or "." in inputs or not isinstance(factors, tuple):
        return None
    letter, parts = output[0], list[str]()
    for part, factor in zip(inputs.split(","), factors, strict=True):
        own = isinstance(factor, Ref) and factor.name in alike
        if own != part.startswith(letter) or part.count(letter) != own:
            return None
        parts.append(part[1:] if own else part)
    if output.count(letter) != 1:
        return None
    return replace(one, args=(f"{','.join(parts)}->{output[1:]}", factors))


def summed(node: Node) -> str | None:
    """What a node sums over its first dimension alone."""
    if node.op != _SUM or node.kwargs or node.args[1:] != ((0,),) or not isinstance(node.args[0], Ref):
        return None
    return node.args[0].name


def average(values: Sequence[Made], alike: Mapping[int, int], number: int) -> int | None:
    """What all experts have, of a product of that with weights that sum to one along the first dimension."""
    made = values[number]
    given = _given(made)
    if made.op != _MUL or len(given) != 1 or given[0][0] != "value":
        return None
    for value, weight in ((made.first, given[0][1]), (given[0][1], made.first)):
        whole, shares = values[value].type, values[weight].type
        if value not in alike or not isinstance(whole, TensorType) or not isinstance(shares, TensorType):
            continue
        fits = len(whole.shape) == len(shares.shape) and whole.shape[0] == shares.shape[0] and whole == made.type
        if fits and one_along(values, weight) == 0:
            return alike[value]
    return None


def _given(made: Made) -> Sequence[Any]:
    """The arguments of an operator after the first: ("value", its number), or a type and a number of that."""
    rest = cast("Sequence[Any]", made.rest if type(made.rest) is tuple else ())
    return rest[0] if len(rest) == 1 else ()


def one_along(values: Sequence[Made], number: int) -> int | None:
    """The dimension along which a value sums to one, if that is known."""
    made = values[number]
    given = _given(made)
    if not isinstance(made.type, TensorType) or not given:
        return None
    rank = len(made.type.shape)
    if made.op == "aten.softmax.int":
        return given[0][1] % rank
    if made.op == "aten.scatter.src":
        return _put(values, made, given)
    inner = one_along(values, made.first) if made.op in ("aten.permute.default", "aten.unsqueeze.default") else None
    if inner is None:
        return None
    if made.op == "aten.permute.default":
        return [dim % rank for _, dim in given[0]].index(inner)
    return inner + (given[0][1] % rank <= inner)


def _put(values: Sequence[Made], made: Made, given: Sequence[Any]) -> int | None:
    """The dimension of a softmax whose numbers are put among zeros, each at a place of its own."""
    if [kind for kind, _ in given[1:]] != ["value", "value"]:
        return None
    dim, places, source = (int(number) for _, number in given)
    zeros, chosen, shares = values[made.first], values[places], values[source]
    if zeros.op not in ("zero", "aten.zeros_like.default") or chosen.op != "getitem" or _given(chosen) != ((int, 1),):
        return None
    picked = values[chosen.first]
    whole, index, put = (kind.shape if isinstance(kind, TensorType) else () for kind in _types(zeros, chosen, shares))
    if picked.op != "aten.topk.default" or index != put or len(index) != len(whole) or not whole:
        return None
    dim %= len(whole)
    along = next((int(number) for _, number in _given(picked)[1:2]), -1) % len(whole)
    rest = [size for d, size in enumerate(whole) if d != dim] == [size for d, size in enumerate(index) if d != dim]
    return dim if rest and along == dim and one_along(values, source) == dim else None


def _types(*values: Made) -> list[Hashable]:
    return [value.type for value in values]

"""Which parameters of a residual layer must hold what so that it adds nothing: x + f(x) = x.

From the end of a layer back to its start every join must keep its stream, so all its other summands must be zero, and
gains of the stream one. What makes a value zero is looked for from there backwards, nearest first: the gain and bias of
a norm (never the weights before it: a norm of zero has gradients of 1/sqrt(eps)), a scale of the layer's own, the
weights and bias of a linear map or convolution, and through everything that keeps zero.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from graphgrow import ops
from graphgrow.axes.contractions import operands
from graphgrow.errors import Refusal
from graphgrow.graph import WEIGHTS, Argument, Graph, Node, Ref, refs
from graphgrow.layers import Layer, gains, stream_of, summands

_MOVES = {
    "reshape", "permute", "unsqueeze", "expand", "repeat", "repeat_interleave", "split", "slice", "select", "unbind",
    "flip", "roll", "triangle", "diagonal", "pixel_shuffle", "pixel_unshuffle", "getitem", "view_as_real",
    "view_as_complex", "pool", "index", "gather", "index_select", "sum", "mean", "glu", "diff",
}  # fmt: skip
_GATHERS = {"cat", "stack", "scatter", "index_add", "index_put", "slice_scatter", "select_scatter", "by_mode"}
_FLAT = {"aten.relu.default", "aten.relu6.default", "aten.abs.default", "aten.square.default"}  # at zero: no gradient
_CASTS = {"aten.to.dtype", "aten.clone.default", "aten.detach.default"}


class _Stuck(Exception):
    """There is no way to give a value to a node."""


def silenced(graph: Graph, layer: Layer, learned: Set[str]) -> dict[str, float]:
    """The value that each parameter takes, for the fewest that make the layer add nothing. `learned` are the names of
    parameters that can take other values. Raises Refusal where there are none."""
    search = _Search(graph, frozenset(learned) & frozenset(layer.tensors), frozenset(layer.nodes))
    try:
        return search.same(layer.end, layer.start)
    except _Stuck as stuck:
        raise Refusal(
            found=f"a layer that can't be made to add nothing: {stuck}",
            where=f"between {layer.start} and {layer.end}",
            fix="choose other layers: depth can grow where each layer adds to the stream and nothing follows the sum",
        ) from None


class _Search:
    def __init__(self, graph: Graph, learned: frozenset[str], inside: frozenset[str]) -> None:
        self.graph, self.learned, self.inside = graph, learned, inside
        self.known: dict[tuple[str, float], dict[str, float] | str] = {}

    def same(self, name: str, start: str) -> dict[str, float]:
        """What makes a node the stream's value at the start."""
        found: dict[str, float] = {}
        while name != start:
            node = self.graph[name]
            if node.op == "aten.add.Tensor":
                branches, name = [*summands(self.graph, name)], self._stream(node, start)
                branches.remove(name)
                for branch in branches:
                    found |= self.be(branch, 0.0)
                continue
            if held := gains(self.graph, node):
                found |= self.be(held[0], 1.0)
                name = next(operand for operand in node.operands() if operand not in held)
                continue
            moving = [operand for operand in node.operands() if operand in self.inside or operand == start]
            if len(moving) != 1 or ops.kind(node.op) not in ("pointwise", "reshape"):
                raise _Stuck(f"{_place(node)} stands on the residual stream, after the addition")
            name = moving[0]
        return found

    def _stream(self, join: Node, start: str) -> str:
        """The summand that is the stream: the first that does not come from before the layer."""
        order = self.graph.order
        since = {name: order[stream_of(self.graph, name).name] for name in summands(self.graph, join.name)}
        inside = [name for name in since if since[name] >= order[start]]
        if not inside:
            raise _Stuck(f"{_place(join)} adds up nothing of the layer")
        return min(inside, key=since.__getitem__)

    def be(self, name: str, value: float) -> dict[str, float]:
        """What makes a node hold one value everywhere."""
        key = (name, value)
        if key not in self.known:
            self.known[key] = "it reads itself"
            try:
                self.known[key] = self._be(self.graph[name], value)
            except _Stuck as stuck:
                self.known[key] = str(stuck)
        found = self.known[key]
        if isinstance(found, str):
            raise _Stuck(found)
        return found

    def _be(self, node: Node, value: float) -> dict[str, float]:
        if node.op == "parameter" and str(node.args[0]) in self.learned:
            return {str(node.args[0]): value}
        if node.name not in self.inside or node.op in ("parameter", "input"):
            raise _Stuck(f"{node.name} is read by other layers, or does not learn")
        kind = ops.kind(node.op)
        if kind in _MOVES or node.op in _CASTS:
            return self._all(list(node.operands())[:1], value)
        if kind in _GATHERS:
            return self._all(_floating(self.graph, node), value)
        if kind == "pointwise":
            return self._pointwise(node, value)
        if value != 0:
            raise _Stuck(f"{_place(node)} can't be made {value:g}")
        match kind:
            case "contraction":
                factors, bias = operands(node)
                return self._product(node, factors, bias)
            case "convolution":
                return self._product(node, node.args[:2], node.argument(2, "bias"))
            case "layer_norm" | "group_norm" | "batch_norm":
                gain, shift = _affine(node)
                if gain is None and self._of_weights(next(node.operands())):
                    raise _Stuck(f"{_place(node)} makes weights of full size of whatever is not zero")
                return self._product(node, [node.args[0] if gain is None else gain], shift)
            case "attention":
                return self._all([str(name) for name in refs(node.args[2])], 0.0)
            case "like" | "factory" if "zeros" in node.op:
                return {}
            case _:
                raise _Stuck(f"{_place(node)} is not zero where what it reads is")

    def _all(self, names: Sequence[str], value: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in names:
            found |= self.be(name, value)
        return found

    def _any(self, node: Node, names: Sequence[str]) -> dict[str, float]:
        """One of the operands zero: one that comes from weights alone before others, then what takes the fewest."""
        ways: list[tuple[bool, int, dict[str, float]]] = []
        for name in names:
            try:
                way = self.be(name, 0.0)
                ways.append((not self._of_weights(name), len(way), way))
            except _Stuck:
                continue
        if not ways:
            raise _Stuck(f"no parameter of the layer alone makes {_place(node)} zero")
        return min(ways, key=lambda way: way[:2])[2]

    def _of_weights(self, name: str) -> bool:
        node = self.graph[name]
        return node.op == "parameter" or (node.op != "input" and all(map(self._of_weights, node.operands())))

    def _product(self, node: Node, factors: Sequence[Argument], bias: Argument) -> dict[str, float]:
        found = self._any(node, [name for factor in factors for name in refs(factor)])
        return found | self._all(list(refs(bias)), 0.0)

    def _pointwise(self, node: Node, value: float) -> dict[str, float]:
        rule = ops.TABLE[node.op].zero
        names = _floating(self.graph, node)
        numbers = [a for a in node.args[:2] if isinstance(a, int | float) and not isinstance(a, bool)]
        name = node.op.removeprefix("aten.").partition(".")[0]
        if name in ("add", "sub", "mul", "div") and len(numbers) == len(names) == 1 and node.args[0] == Ref(names[0]):
            number = numbers[0]
            undone = {"add": value - number, "sub": value + number, "mul": value / (number or 1), "div": value * number}
            return self.be(names[0], undone[name])
        if value == 0 and node.op in _FLAT:
            raise _Stuck(f"{_place(node)} gives zeros no gradient")
        if value == 0 and rule in ("all", "first"):
            return self._all(names if rule == "all" else names[:1], 0.0)
        if value == 0 and rule == "any":
            return self._any(node, names)
        if name in ("where", "masked_fill") and all(a == value for a in node.args[1:] if isinstance(a, int | float)):
            return self._all(names, value)
        raise _Stuck(f"{_place(node)} can't be made {value:g}")


def is_bias(graph: Graph, parameter: str) -> bool:
    """Whether a parameter is only added."""
    return all(_adds(user, graph.parameters[parameter].name) for user in graph.users[graph.parameters[parameter].name])


def _adds(node: Node, name: str) -> bool:
    match ops.kind(node.op):
        case "contraction":
            return operands(node)[1] == Ref(name)
        case "convolution":
            return node.argument(2, "bias") == Ref(name)
        case "layer_norm" | "group_norm" | "batch_norm":
            return _affine(node)[1] == Ref(name)
        case _:
            return node.op in ("aten.add.Tensor", "aten.sub.Tensor")


def _floating(graph: Graph, node: Node) -> list[str]:
    """What a node reads that is no index and no mask."""
    return [n for n in dict.fromkeys(node.operands()) if graph[n].tensor.dtype.startswith(("float", "bfloat", WEIGHTS))]


def _affine(node: Node) -> tuple[Argument, Argument]:
    """Gain and bias of a norm."""
    places = {"aten.layer_norm": (2, 3), "aten.rms_norm": (2, 9), "aten.group_norm": (2, 3)}
    gain, bias = places.get(node.op.removesuffix(".default"), (1, 2))
    return node.argument(gain, "weight"), node.argument(bias, "bias")


def _place(node: Node) -> str:
    return f"{node.op} ({node.source or node.name})"

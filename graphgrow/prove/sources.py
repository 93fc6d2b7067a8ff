"""The weights that a value comes from: multiplied together, they multiply it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphgrow import ops
from graphgrow.axes.contractions import operands
from graphgrow.graph import Argument, Graph, Node, Ref
from graphgrow.prove.rows.pointwise import CHOICES, HOMOGENEOUS, LINEAR, PRODUCTS, QUOTIENTS, SUMS, short

CASTS = {"aten.to.dtype", "aten.clone.default", "aten.detach.default"}
NEAR = 100  # nodes between a value and the weights it comes from
_MOVES = {"reshape", "permute", "unsqueeze", "expand", "slice", "select", "split", "getitem", "cat", "stack", "unbind",
          "repeat", "repeat_interleave", "sum", "mean", "flip", "roll"}  # fmt: skip


class Sources:
    """Finds them in one graph; `avoided` names the nodes of parameters that are not to be taken."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.avoided = graph, set[str]()

    def parameters(self, name: str) -> list[str]:
        """The parameters that a value is made of, if it is made of parameters alone."""
        found, waiting = dict[str, None](), [name]
        while waiting and len(found) < NEAR:
            node = self.graph[waiting.pop()]
            if node.op == "input":
                return []
            found[node.name] = None
            waiting += [operand for operand in node.operands() if operand not in found]
        return [str(self.graph[name].args[0]) for name in found if self.graph[name].op == "parameter"]

    def weights(self, name: str, seen: set[str]) -> list[str] | None:
        """The parameters that multiply a value when they are multiplied together (but those of nodes in `seen`, which
        are taken care of); None where there are none."""
        if name in seen:
            return []
        if len(seen) > NEAR:
            return None
        seen.add(name)
        node = self.graph[name]
        if node.op == "parameter":
            return None if name in self.avoided else [str(node.args[0])]
        op, short_ = ops.kind(node.op), short(node)
        if op == "contraction":
            factors, bias = operands(node)
            return self._one_of(factors, bias, seen)
        if op == "embedding":
            return self._one_of(node.args[:1], None, seen)
        if op == "convolution":
            return self._one_of(node.args[1:2], node.argument(2, "bias"), seen)
        if op == "layer_norm":
            return self._one_of([node.argument(2, "weight")], node.argument(3, "bias"), seen)
        if short_ in PRODUCTS or short_ in QUOTIENTS:
            return self._one_of(node.args[:1] if short_ in QUOTIENTS else node.args[:2], None, seen)
        if short_ in CHOICES:
            picked = node.args[1:3] if short_.startswith("where") else node.args[:1]
            return self._all_of([argument.name for argument in picked if isinstance(argument, Ref)], seen)
        if self._shifted(node):
            return self.weights(next(iter(node.operands())), seen) if self._is_parameter(node.name) else None
        tensors = [argument for argument in node.args if isinstance(argument, Ref)]
        linear = op in _MOVES or short_ in LINEAR or short_ in HOMOGENEOUS or (short_ in SUMS and len(tensors) > 1)
        return self._all_of(node.operands(), seen) if linear else None

    def _all_of(self, names: Iterable[str], seen: set[str]) -> list[str] | None:
        """Weights of all operands."""
        found: list[str] = []
        for name in dict.fromkeys(names):
            weights = self.weights(name, seen)
            if weights is None:
                return None
            found += weights
        return list(dict.fromkeys(found))

    def _one_of(self, factors: Sequence[Argument], bias: Argument, seen: set[str]) -> list[str] | None:
        """Weights of one of the factors, a parameter if there is one, and of what is added."""
        refs = [factor for factor in factors if isinstance(factor, Ref)]
        refs.sort(key=lambda ref: not self._is_parameter(ref.name))
        for ref in refs:
            found = self.weights(ref.name, seen)
            if found is not None:
                more = self.weights(bias.name, seen) if isinstance(bias, Ref) else []
                return None if more is None else [*found, *more]
        return None

    def _is_parameter(self, name: str) -> bool:
        node = self.graph[name]
        while node.op in CASTS or ops.kind(node.op) == "permute" or self._masked(node) or self._shifted(node):
            node = self.graph[next(iter(node.operands()))]
        return node.op == "parameter"

    def _masked(self, node: Node) -> bool:
        """Whether a node is the product of a parameter and its mask."""
        kinds = [self.graph[name] for name in node.operands()]
        return (
            short(node) in PRODUCTS and [k.op for k in kinds] == ["parameter"] * 2 and kinds[1].tensor.dtype == "bool"
        )

    def _shifted(self, node: Node) -> bool:
        """Whether a node adds a number."""
        return node.op == "aten.add.Tensor" and isinstance(node.args[1], int | float)

    def added(self, parameter: Node) -> float:
        """The number that is added to a parameter before it is used (the 1 of 1 + gain); 0 where there is none, or
        where uses differ."""
        found = set[float]()
        for user in self.graph.users[parameter.name]:
            if self._shifted(user):
                found.add(float(str(user.args[1])) + self.added(user))
            else:
                found.add(self.added(user) if user.op in CASTS else 0.0)
        return found.pop() if len(found) == 1 else 0.0

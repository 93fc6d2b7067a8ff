"""From nodes to a function: operators, sizes and arguments as `torch.fx` writes them into Python source."""

# torch.fx builds code from arguments of any type, and torch.ops finds operators by name.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from graphgrow.graph import (
    Argument,
    ByMode,
    Dtype,
    Lowest,
    Node,
    Record,
    Ref,
    Structure,
    TensorType,
)  # fmt: skip
from graphgrow.module.lowering import COUNTER, Lowering, factory, overload
from graphgrow.module.outputs import by_mode, count, record
from graphgrow.sizes import Dim, Function, Monomial, Size, Symbol

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "//": operator.floordiv,
    "%": operator.mod,
    "max": torch.sym_max,
    "min": torch.sym_min,
}


class Code:
    """One function under construction. `owned` gives the name a tensor has in the module whose method it will be."""

    def __init__(self, lowering: Lowering, owned: Callable[[str], str | None]) -> None:
        self.lowering, self.owned = lowering, owned
        self.fx = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self._sizes: dict[object, fx.Node | int] = {}
        self._made: dict[str, fx.Node] = {}

    def placeholder(self, name: str) -> None:
        """A parameter of the function, for the node called `name`."""
        self.values[name] = self.fx.placeholder(name)

    def value(self, name: str) -> fx.Node:
        """The value of a node; a parameter is read where it is first needed."""
        if name not in self.values:
            node = self.lowering.graph[name]
            target = self.owned(str(node.args[0]))
            assert node.op == "parameter" and target is not None, name
            self.values[name] = self.fx.get_attr(target)
        return self.values[name]

    def call(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.fx.create_node("call_function", function, args, kwargs, name)

    def emit(self, node: Node) -> None:
        """The code of one node."""
        self.values[node.name] = self._special(node) or self._operator(node)

    def _special(self, node: Node) -> fx.Node | None:
        args = node.args
        if node.op == "getitem":
            return self.call(node.name, operator.getitem, *self.arguments(args))
        if node.op == "by_mode":
            return self.call(node.name, by_mode, self.training, *self.arguments(args))
        if node.op == "aten.to.dtype" and self._idle(node):
            return self.argument(args[0])
        if node.op == COUNTER:
            step = args[1] if isinstance(args[1], ByMode) else ByMode(cast(int, args[1]), cast(int, args[1]))
            return self.call(node.name, count, self.argument(args[0]), self.training, step.train, step.eval)
        return None

    def _idle(self, node: Node) -> bool:
        """Whether a cast of integers or booleans does nothing. (Floating ones do something under autocast.)"""
        source = next(node.operands())
        dtype = self.lowering.graph[source].tensor.dtype
        return dtype == node.tensor.dtype and dtype.startswith(("bool", "int", "uint"))

    def _operator(self, node: Node) -> fx.Node:
        target, new = overload(node.op), factory(node.op)
        args = self.arguments(node.args)
        kwargs = {name: self.argument(value) for name, value in node.kwargs}
        if new.device and self.lowering.place is not None:
            kwargs["device"] = self.device
        if new.dtype and isinstance(node.type, TensorType):
            kwargs["dtype"] = self.lowering.dtype(node.type.dtype)
        if self._rounds(node):
            return self._widened(node, target, args, kwargs)
        return self.call(node.name, target, *args, **kwargs)

    def _rounds(self, node: Node) -> bool:
        """Whether a floating result comes from operands that are none: it would have torch's default type."""
        if self.lowering.precision is None or not isinstance(node.type, TensorType):
            return False
        operands = [self.lowering.graph[name].type for name in node.operands()]
        given = any(isinstance(value, Dtype) for value in (*node.args, *dict(node.kwargs).values()))
        types = [self.lowering.dtype(kind.dtype) for kind in operands if isinstance(kind, TensorType)]
        floating = [dtype.is_floating_point or dtype.is_complex for dtype in types]
        result = self.lowering.dtype(node.type.dtype).is_floating_point
        return result and bool(types) and not any(floating) and not given

    def _widened(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """The operator computed in the precision asked for: on converted operands, or else converted after."""
        cast_to, precision = torch.ops.aten.to.dtype, self.lowering.precision
        if node.op.startswith("aten.where."):
            result = self.call(node.name, target, *args, **kwargs)
            return self.call(node.name, cast_to, result, precision)
        wide = tuple(
            self.call(node.name, cast_to, value, precision)
            if isinstance(value, fx.Node) and isinstance(given, Ref)
            else value
            for value, given in zip(args, node.args, strict=True)
        )
        return self.call(node.name, target, *wide, **kwargs)

    def arguments(self, arguments: Sequence[Argument]) -> tuple[Any, ...]:
        return tuple(self.argument(argument) for argument in arguments)

    def argument(self, argument: Argument) -> Any:
        """An argument as the code has it."""
        match argument:
            case Ref(name):
                return self.value(name)
            case tuple():
                return [self.argument(item) for item in argument]
            case Dtype(name):
                return self.lowering.dtype(name)
            case Lowest():
                return torch.finfo(self.lowering.precision or self.lowering.weights).min
            case ByMode(True, False):
                return self.training
            case ByMode(train, evaluation):
                return self.call("by_mode", by_mode, self.training, train, evaluation)
            case Size():
                return self.size(argument)
            case _:
                return argument

    @property
    def training(self) -> fx.Node:
        return self._once("training", lambda: self.fx.get_attr("training"))

    @property
    def device(self) -> fx.Node:
        """The device that new tensors belong on."""
        place = self.lowering.place
        assert place is not None
        return self._once("device", lambda: self.call("device", getattr, self.value(place), "device"))

    def _once(self, key: str, make: Callable[[], fx.Node]) -> fx.Node:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def size(self, size: Dim) -> fx.Node | int:
        """A size, computed once in the function."""
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            products = [self._product(factors, coefficient) for factors, coefficient in size.terms]
            self._sizes[size] = self._folded(operator.add, products)
        return self._sizes[size]

    def _product(self, factors: Monomial, coefficient: int) -> fx.Node | int:
        parts = [self._factor(factor) for factor in factors]
        return self._folded(operator.mul, parts if coefficient == 1 and parts else [*parts, coefficient])

    def _folded(self, function: Callable[..., Any], parts: Sequence[fx.Node | int]) -> fx.Node | int:
        result = parts[0]
        for part in parts[1:]:
            result = self.call("size", function, result, part)
        return result

    def _factor(self, factor: Symbol | Function) -> fx.Node | int:
        if factor not in self._sizes:
            if isinstance(factor, Symbol):
                origin = self.lowering.graph.symbols[factor.name]
                arguments = (self.value(origin.node), origin.dim)
                self._sizes[factor] = self.call(factor.name, torch.ops.aten.sym_size.int, *arguments)
            else:
                left, right = self.size(factor.left), self.size(factor.right)
                self._sizes[factor] = self.call("size", _FUNCTIONS[factor.name], left, right)
        return self._sizes[factor]

    def structure(self, structure: Structure) -> Any:
        """The outputs, packed as the model packed them."""
        match structure:
            case Ref(name):
                return self.value(name)
            case Record(items):
                return self.call(
                    "outputs", record, [key for key, _ in items], [self.structure(item) for _, item in items]
                )
            case tuple():
                return tuple(self.structure(item) for item in structure)
            case None:
                return None

    def function(self, module: nn.Module, result: Any) -> Callable[..., Any]:
        """The finished function, a method of `module`, which has the attributes that it reads."""
        self.fx.output(result)
        return type(fx.GraphModule(module, self.fx)).forward

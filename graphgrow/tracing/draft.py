"""A graph under construction: names, types, and what in-place operators leave behind."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import sympy  # pyright: ignore[reportMissingTypeStubs]

from graphgrow.errors import TraceError
from graphgrow.graph import Argument, Node, Origin, Ref, TensorType, Type

_RESERVED = {
    "self", "training", "torch", "device", "inf", "nan", "math", "fx_pytree", "pytree", "getattr", "slice", "operator",
}  # fmt: skip


def clean(wanted: str) -> str:
    """An identifier like `wanted`, in lower case."""
    name = re.sub(r"[^a-z0-9_]", "_", wanted.lower()).lstrip("_0123456789")[:100] or "value"
    return f"{name}_value" if keyword.iskeyword(name) or name in _RESERVED else name


def clean_input(name: str) -> str:
    """The name of an input: the one it was called by, wherever that does no harm in generated code."""
    harmless = name.isascii() and name.isidentifier() and len(name) <= 100 and not name.startswith("__")
    return name if harmless and not keyword.iskeyword(name) and name not in _RESERVED else clean(name)


@dataclass
class Draft:
    """Nodes by name in order, and for in-place operators: `current` (what a changed tensor's name now stands for),
    `views` (which nodes look into another's memory) and `stale` (views of a tensor that has changed since)."""

    symbols: dict[sympy.Symbol, str] = field(default_factory=dict[sympy.Symbol, str])
    origins: dict[str, Origin] = field(default_factory=dict[str, Origin])
    by_name: dict[str, Node] = field(default_factory=dict[str, Node])
    current: dict[str, Ref] = field(default_factory=dict[str, Ref])
    views: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    stale: set[str] = field(default_factory=set[str])
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])  # short lists of indices

    def fresh(self, wanted: str) -> str:
        """A free identifier like `wanted`."""
        return self.free(clean(wanted))

    def free(self, base: str) -> str:
        """`base`, or with a number behind it where it is taken."""
        name, count = base, 1
        while name in self.by_name:
            name, count = f"{base}_{count}", count + 1
        return name

    def append(self, node: Node) -> Ref:
        self.by_name[node.name] = node
        return Ref(node.name)

    def view(self, node: Node) -> Ref:
        """Append a node that looks into the memory of its first operand."""
        parent = node.args[0]
        if isinstance(parent, Ref):
            self.views.setdefault(parent.name, []).append(node.name)
        return self.append(node)

    def add(self, op: str, args: Sequence[Argument], type: Type, like: Node) -> Ref:
        """A further node, named, scoped and sourced like `like`."""
        return self.append(Node(self.fresh(like.name), op, tuple(args), (), type, like.scope, like.source))

    def tensor(self, argument: Argument) -> TensorType:
        """The type of a tensor operand."""
        found = self.by_name[argument.name].type if isinstance(argument, Ref) else None
        if not isinstance(found, TensorType):
            raise TraceError(found=f"{argument}, where a tensor is needed")
        return found

    def latest(self, argument: Argument) -> Argument:
        """What `argument` stands for now, after the in-place operators so far."""
        if not isinstance(argument, Ref):
            return argument
        while argument.name in self.current:
            argument = self.current[argument.name]
        if argument.name in self.stale:
            node = self.by_name[argument.name]
            self.stale.discard(node.name)
            again = replace(node, name=self.fresh(node.name), args=(self.latest(node.args[0]), *node.args[1:]))
            self.current[node.name] = self.view(again)
            return self.current[node.name]
        return argument

    def overwrite(self, target: Ref, result: Ref, source: str) -> None:
        """From now on `target` is `result`; so are, accordingly, the tensors it is a view of and its other views."""
        if result == target:
            return
        self._spoil_views(target)
        self.current[target.name] = result
        node = self.by_name[target.name]
        parent = node.args[0] if node.args else None
        if not isinstance(parent, Ref) or node.name not in self.views.get(parent.name, ()):
            return
        parent = self.latest(parent)
        assert isinstance(parent, Ref)
        args: tuple[Argument, ...]
        match node.op:
            case "aten.slice.Tensor" | "aten.select.int":
                op = node.op.replace("slice.Tensor", "slice_scatter.default").replace(
                    "select.int", "select_scatter.default"
                )
                args = (parent, result, *node.args[1:])
            case "aten.reshape.default" | "aten.unsqueeze.default" | "aten.squeeze.dims":
                op, args = "aten.reshape.default", (result, self.tensor(parent).shape)
            case "aten.detach.default":
                op, args = "aten.detach.default", (result,)
            case "aten.permute.default":
                order = [int(str(item)) for item in node.args[1]] if isinstance(node.args[1], tuple) else []
                op, args = "aten.permute.default", (result, tuple(order.index(i) for i in range(len(order))))
            case _:
                raise TraceError(
                    found=f"an in-place change of a view made by {node.op}", where=source, fix="copy before changing"
                )
        changed = self.append(Node(self.fresh(node.name), op, args, (), self.tensor(parent), node.scope, source))
        self.overwrite(parent, changed, source)

    def _spoil_views(self, target: Ref) -> None:
        """Views of what has changed must be taken anew before they are read again."""
        for name in self.views.pop(target.name, ()):
            if name not in self.current:
                self.stale.add(name)
            self._spoil_views(Ref(name))

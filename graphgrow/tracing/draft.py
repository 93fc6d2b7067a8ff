"""A graph under construction: names and types."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """Nodes by name in order, the dynamic sizes, and short lists of indices that the code holds."""

    symbols: dict[sympy.Symbol, str] = field(default_factory=dict[sympy.Symbol, str])
    origins: dict[str, Origin] = field(default_factory=dict[str, Origin])
    by_name: dict[str, Node] = field(default_factory=dict[str, Node])
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

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

    def add(self, op: str, args: Sequence[Argument], type: Type, like: Node) -> Ref:
        """A further node, named, scoped and sourced like `like`."""
        return self.append(Node(self.fresh(like.name), op, tuple(args), (), type, like.scope, like.source))

    def tensor(self, argument: Argument) -> TensorType:
        """The type of a tensor operand."""
        found = self.by_name[argument.name].type if isinstance(argument, Ref) else None
        if not isinstance(found, TensorType):
            raise TraceError(found=f"{argument}, where a tensor is needed")
        return found

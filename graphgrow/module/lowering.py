"""What lowering a graph needs to know: data types, what each node's code reads, and torch's operators."""

# torch.ops finds operators by name, and has no types for them.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch

from graphgrow.errors import TraceError
from graphgrow.graph import WEIGHTS, Argument, Graph, Node
from graphgrow.sizes import Size, symbols


@dataclass(frozen=True)
class Lowering:
    """A graph and the floating types its code computes in."""

    graph: Graph
    weights: torch.dtype
    precision: torch.dtype | None = None

    def dtype(self, name: str) -> torch.dtype:
        """A data type by name, or the one it is lowered to."""
        found = self.weights if name == WEIGHTS else cast(torch.dtype, getattr(torch, name))
        if self.precision is None:
            return found
        if found.is_complex:
            return self.precision.to_complex()
        return self.precision if found.is_floating_point else found

    @cached_property
    def place(self) -> str | None:
        """The node whose device new tensors are made on."""
        tensors = (*self.graph.inputs, *self.graph.parameters.values())
        return tensors[0].name if tensors else None

    @cached_property
    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """For each node, all nodes its code reads: operands, tensors whose sizes it uses, the one for the device."""
        return {node.name: tuple(dict.fromkeys(self._reads(node))) for node in self.graph.nodes}

    @cached_property
    def live(self) -> Sequence[Node]:
        """The nodes that compute what the outputs, or the module's state, need."""
        needed = set(self.graph.output_names)
        for node in reversed(self.graph.nodes):
            if node.name in needed or node.op == COUNTER:
                needed.update((node.name, *self.reads[node.name]))
        return [node for node in self.graph.nodes if node.name in needed and node.op not in ("input", "parameter")]

    def _reads(self, node: Node) -> Iterator[str]:
        yield from node.operands()
        for name in _symbols((*node.args, *(value for _, value in node.kwargs))):
            yield self.graph.symbols[name].node
        if node.op not in _OWN and factory(node.op).device and self.place is not None:
            yield self.place


def _symbols(argument: Argument) -> Iterator[str]:
    if isinstance(argument, Size):
        yield from sorted(symbols(argument))
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _symbols(item)


COUNTER = "aten.add_.Tensor"  # the one operator left in place: on a buffer that counts
_OWN = ("input", "parameter", "getitem", "by_mode")


@lru_cache(maxsize=1024)
def overload(op: str) -> Any:
    """torch's operator for a name such as `aten.linear.default`. Raises TraceError where there is none."""
    parts = op.split(".")
    found: Any = torch.ops
    try:
        if len(parts) != 3:
            raise AttributeError(op)
        for part in parts:
            found = getattr(found, part)
    except AttributeError:
        fix = "use a model of ATen operators, or install what registers it"
        raise TraceError(found=f"{op}, which is no operator of torch", fix=fix) from None
    return found


@dataclass(frozen=True, slots=True)
class _Factory:
    device: bool  # makes a tensor from none, on a device
    dtype: bool


@lru_cache(maxsize=1024)
def factory(op: str) -> _Factory:
    """Whether an operator makes a tensor from nothing, and takes the device and the data type to make it with."""
    arguments = overload(op)._schema.arguments
    names = {argument.name for argument in arguments}
    new = not any("Tensor" in str(argument.type) for argument in arguments)
    return _Factory(new and "device" in names, new and "dtype" in names)

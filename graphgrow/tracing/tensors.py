"""The tensors of a model by name: which are tied, what each is to the module, and copies of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from graphgrow.errors import TraceError
from graphgrow.graph import Argument, Graph, Kind, Node, Ref


@dataclass(frozen=True)
class Named:
    """Tensors under the first of their names, in the order of the state dict; `aliases` leads from the others."""

    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, Kind]
    aliases: Mapping[str, str]


def named(model: nn.Module) -> Named:
    """The parameters and buffers of a model. Raises TraceError for parameters that overlap in memory."""
    state = model.state_dict(keep_vars=True)
    found = dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
    order = [name for name in state if name in found] + [name for name in found if name not in state]
    first: dict[Hashable, str] = {}
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, Kind] = {}
    aliases: dict[str, str] = {}
    for name in order:
        tensor = found[name]
        known = first.setdefault(_memory(tensor), name)
        if known != name:
            aliases[name] = known
            continue
        tensors[name] = tensor
        role = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        kinds[name] = Kind(role, role == "parameter" or name in state, tensor.requires_grad)
    _refuse_overlaps(tensors, kinds)
    return Named(tensors, kinds, aliases)


def _memory(tensor: Tensor) -> Hashable:
    """What two names have in common that mean one tensor."""
    if tensor.numel() == 0:
        return id(tensor)
    place = (_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    return (isinstance(tensor, nn.Parameter), *place)


def _storage(tensor: Tensor) -> int:
    reference: Any = StorageWeakRef(tensor.untyped_storage())
    return int(reference.cdata)


def _refuse_overlaps(tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> None:
    """Two different parameters on the same memory would come apart in a copy."""
    spans: list[tuple[int, int, int, str]] = []
    for name, tensor in tensors.items():
        if tensor.numel():
            length = sum((size - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = int(tensor.storage_offset()) * tensor.element_size()
            spans.append((_storage(tensor), start, start + length * tensor.element_size(), name))
    for (storage, _, end, name), (other_storage, start, _, other) in pairwise(sorted(spans)):
        if storage == other_storage and start < end and "parameter" in (kinds[name].role, kinds[other].role):
            raise TraceError(
                found=f"{name!r} and {other!r}, which share memory without being one tensor",
                fix=f"make them one parameter, and compute {other!r} from it in forward()",
            )


def snapshot(tensor: Tensor, copy: bool) -> Tensor:
    """The tensor as a program holds it: plain, contiguous, and with no storage where the model has none."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    plain = tensor.detach()
    return plain.clone(memory_format=torch.contiguous_format) if copy else plain.contiguous()


def renamed(graph: Graph, aliases: Mapping[str, str]) -> Graph:
    """The graph with every tied tensor read once, under the first of its names."""
    owner: dict[str, str] = {}  # the node that reads a tensor
    same: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "parameter":
            name = str(node.args[0])
            name = aliases.get(name, name)
            if name in owner:
                same[node.name] = owner[name]
                continue
            owner[name] = node.name
            scope = name.rpartition(".")[0] if node.scope else ""
            node = replace(node, args=(name,), scope=scope)
        nodes.append(node.map(lambda argument: _instead(argument, same)) if same else node)
    return replace(graph, nodes=tuple(nodes))


def _instead(argument: Argument, same: Mapping[str, str]) -> Argument:
    return Ref(same.get(argument.name, argument.name)) if isinstance(argument, Ref) else argument

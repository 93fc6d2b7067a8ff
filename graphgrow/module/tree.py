"""Named tensors as a tree of modules: `h.0.attn.weight` is a parameter of the module `attn` of `0` of `h`."""

# nn.Module has no public way to order its children.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphgrow.graph import Kind


class Scope(nn.Module):
    """A module of the tree; those that compute something get a `forward` written for them."""


class Blocks(Scope):
    """A module whose children are numbered: indexed and iterated like an `nn.ModuleList`."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.children())

    def __getitem__(self, index: int) -> nn.Module:
        name = str(index) if index >= 0 else list(self._modules)[index]
        if name not in self._modules:
            raise IndexError(f"no block {index}: there are {', '.join(self._modules)}")
        return self.get_submodule(name)


def plant(
    root: nn.Module, tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind], aliases: Mapping[str, str]
) -> None:
    """Register every tensor under its name, and tied ones under their further names: one object for all of them."""
    for name, tensor in tensors.items():
        _register(root, name, _held(tensor, kinds[name]), kinds[name])
    for alias, name in aliases.items():
        _register(root, alias, find(root, name), kinds[name])


def _held(tensor: Tensor, kind: Kind) -> Tensor:
    """The tensor as the module holds it: a parameter, or a plain one."""
    if kind.role == "parameter":
        return nn.Parameter(tensor.detach(), requires_grad=kind.trainable)
    return tensor.detach()


def _register(root: nn.Module, name: str, tensor: Tensor, kind: Kind) -> None:
    path, _, last = name.rpartition(".")
    owner = reach(root, path)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor, persistent=kind.persistent and kind.role == "buffer")


def reach(root: nn.Module, path: str) -> nn.Module:
    """The module at `path`, made where there is none."""
    for part in path.split(".") if path else ():
        child = root._modules.get(part)
        if child is None:
            child = Scope()
            root.add_module(part, child)
        root = child
    return root


def find(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer called `name`."""
    path, _, last = name.rpartition(".")
    found: Any = getattr(reach(root, path), last)
    assert isinstance(found, torch.Tensor)
    return found


def number_blocks(root: nn.Module) -> None:
    """Modules whose children are all numbered can be indexed."""
    for module in list(root.modules()):
        if type(module) is Scope and module._modules and all(name.isdigit() for name in module._modules):
            module.__class__ = Blocks
            module._modules = dict(sorted(module._modules.items(), key=lambda item: int(item[0])))

"""A graph and its tensors as an `nn.Module` that trains, compiles and saves as the traced model did."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from graphgrow.certificate import Certificate
from graphgrow.graph import Graph, Kind
from graphgrow.module.lowering import Lowering
from graphgrow.module.outputs import Outputs
from graphgrow.module.scopes import Scopes
from graphgrow.module.tree import Scope, plant

__all__ = ["Kind", "Outputs", "ProgramModule", "lower"]


@dataclass(frozen=True)
class _Recipe:
    """What a module was made from, beside its tensors."""

    graph: Graph
    kinds: Mapping[str, Kind]
    aliases: Mapping[str, str]
    dtype: str
    precision: torch.dtype | None
    hierarchical: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class ProgramModule(Scope):
    """The module of a program. Its `state_dict()` has the names of the traced model's; `journal` has the certificates
    of the passes that made the program."""

    recipe: _Recipe
    journal: tuple[Certificate, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Generated code does not travel to other processes: it is written again there."""
        tensors = {name: _at(self, name) for name in self.recipe.kinds}
        modes = {name: module.training for name, module in _parts(self)}
        return _rebuilt, (self.recipe, tensors, modes, self.journal)


def lower(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, Kind],
    aliases: Mapping[str, str],
    dtype: str,
    *,
    precision: torch.dtype | None = None,
    hierarchical: bool = False,
) -> ProgramModule:
    """The module that computes `graph` on the tensors given, which it holds (it copies none).

    With `precision`, all floating operators compute in that type; the tensors are in it already. `hierarchical`
    gives the traced model's module tree: each submodule is called, with its own parameters and its own mode.
    """
    recipe = _Recipe(graph, kinds, aliases, dtype, precision, hierarchical)
    return _made(recipe, tensors)


def _made(recipe: _Recipe, tensors: Mapping[str, Tensor]) -> ProgramModule:
    root = ProgramModule()
    root.recipe = recipe
    plant(root, tensors, recipe.kinds, recipe.aliases)
    names = {name: [name] for name in tensors}
    for alias, name in recipe.aliases.items():
        names[name].append(alias)
    lowering = Lowering(recipe.graph, getattr(torch, recipe.dtype), recipe.precision)
    Scopes(lowering, root, {name: tuple(known) for name, known in names.items()}, recipe.hierarchical).write()
    return root


def _rebuilt(
    recipe: _Recipe, tensors: Mapping[str, Tensor], modes: Mapping[str, bool], journal: tuple[Certificate, ...]
) -> ProgramModule:
    module = _made(recipe, tensors)
    module.journal = journal
    for name, part in _parts(module):
        part.training = modes.get(name, module.training)
    return module


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from module.named_modules()  # pyright: ignore[reportUnknownMemberType]


def _at(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    return getattr(module.get_submodule(path), last)

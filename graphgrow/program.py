"""Program: a graph, its tensors and its history, as one immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from graphgrow import files
from graphgrow.certificate import Certificate
from graphgrow.digest import digest
from graphgrow.errors import OptionError, Refusal
from graphgrow.example import example
from graphgrow.graph import WEIGHTS, Graph, Kind, TensorType, Type
from graphgrow.module import lower

if TYPE_CHECKING:
    from graphgrow.axes import Axes

_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Program:
    """A model as a value: passes make new programs and share the tensors they leave alone.

    `tensors` holds every parameter, buffer and constant under its original name, once; `aliases` gives the further
    names of tied tensors. `dtype` is the data type of the weights. Two programs are the same when their digests are.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, Kind]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    dtype: str = "float32"
    journal: tuple[Certificate, ...] = ()

    @cached_property
    def axes(self) -> Axes:
        """What every dimension of every tensor means."""
        from graphgrow.axes import infer

        return infer(self.graph)

    @cached_property
    def unit_axes(self) -> Axes:
        """The same with axes of size 1, too: a single head of keys and values has one."""
        from graphgrow.axes import infer

        return infer(self.graph, units=True)

    @property
    def certificate(self) -> Certificate | None:
        """The certificate of the last pass."""
        return self.journal[-1] if self.journal else None

    @cached_property
    def digest(self) -> str:
        """A fingerprint of graph and tensors (not of the journal): sha256 in hexadecimal."""
        return digest(self.graph, self.tensors, self.kinds, self.aliases, self.dtype)

    @property
    def inputs(self) -> Mapping[str, TensorType]:
        """What the program takes, by name and in order."""
        return {node.name: node.tensor for node in self.graph.inputs}

    @property
    def size(self) -> int:
        """The number of parameters; tied ones count once."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if self.kinds[name].role == "parameter")

    @cached_property
    def fixed(self) -> frozenset[str]:
        """The tensors that do not learn: buffers and constants."""
        return frozenset(name for name, kind in self.kinds.items() if kind.role != "parameter")

    @property
    def has_weights(self) -> bool:
        """False for a program of shapes only: traced from a model without storage."""
        return not any(tensor.is_meta for tensor in self.tensors.values())

    def example(self, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs, by name. `sizes` gives dynamic sizes (`{"batch": 1}`); others are small."""
        return example(self.graph, sizes or {}, seed, _FLOATS[self.dtype])

    def module(self, hierarchical: bool = False, share: bool = False) -> nn.Module:
        """An `nn.Module` that computes the program and has the original names in its `state_dict()`.

        It trains on copies of the tensors; with `share` on the program's own, which must not be changed then.
        `hierarchical` keeps the module tree of the traced model: for FSDP2, activation checkpointing, hooks.
        """
        tensors = self.tensors if share else {name: tensor.clone() for name, tensor in self.tensors.items()}
        module = lower(self.graph, tensors, self.kinds, self.aliases, self.dtype, hierarchical=hierarchical)
        module.journal = self.journal
        return module

    def trained(self, module: nn.Module) -> Self:
        """The program with the values that a module of it has by now: `program.trained(module)` after training.
        Raises Refusal for a module whose tensors have other names or shapes."""
        state = module.state_dict()
        kept = [name for name, kind in self.kinds.items() if kind.role != "constant" and kind.persistent]
        odd = [name for name in kept if name not in state or state[name].shape != self.tensors[name].shape]
        if odd:
            raise Refusal(
                found=f"a module without {odd[0]} of shape {tuple(self.tensors[odd[0]].shape)}",
                where="Program.trained",
                fix="give a module that program.module() made",
            )
        values = {name: state[name].detach().clone().requires_grad_(self.tensors[name].requires_grad) for name in kept}
        return self.replace(tensors={**self.tensors, **values})

    def replace(self, **changes: Any) -> Self:
        """A program with some of its parts exchanged."""
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype | str) -> Self:
        """The program with its weights in another floating type, as `nn.Module.to` would cast them.

        Raises Refusal where the graph mixes types, so that it would not run in another one.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in _FLOATS:
            raise OptionError.unknown("data type of weights", name, _FLOATS)
        if name == self.dtype:
            return self
        if not any(_of_weights(node.type) for node in self.graph.nodes):
            raise Refusal(
                found=f"a program that runs in {self.dtype} only: no other type of weights was traced for it",
                where="Program.to",
                fix=f"convert the model and trace it again: gg.trace(model.to(torch.{name}), example_inputs)",
            )
        target = _FLOATS[name]
        tensors = {key: tensor.to(target) if self._casts(key) else tensor for key, tensor in self.tensors.items()}
        return self.replace(tensors=tensors, dtype=name)

    def _casts(self, name: str) -> bool:
        """Whether a tensor has the data type of the weights."""
        node = self.graph.parameters.get(name)
        if node is not None:
            return node.tensor.dtype == WEIGHTS
        return self.kinds[name].role != "constant" and self.tensors[name].dtype == _FLOATS[self.dtype]

    def save(self, path: str | Path) -> None:
        """Write the program as a `.pt` file; it appears complete or not at all. Raises FileError."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        files.save(path, files.Contents(**fields))

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a program file. No code is run from it, and tensors are mapped, not copied. Raises FileError."""
        contents = files.load(path)
        return Program(**{item.name: getattr(contents, item.name) for item in dataclasses.fields(contents)})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.replace(tensors={name: tensor.clone() for name, tensor in self.tensors.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, item.name) for item in dataclasses.fields(self))

    def __str__(self) -> str:
        takes = ", ".join(f"{name}: {self._shown(kind)}" for name, kind in self.inputs.items())
        lines = [
            f"program of {self.size:,} parameters ({self.dtype}), {len(self.graph.nodes):,} nodes",
            f"  inputs: {takes or 'none'}",
            *(f"  {certificate.spec}: {certificate.evidence}" for certificate in self.journal),
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _shown(self, kind: TensorType) -> str:
        return str(dataclasses.replace(kind, dtype=self.dtype) if kind.dtype == WEIGHTS else kind)


def _of_weights(kind: Type) -> bool:
    if isinstance(kind, tuple):
        return any(_of_weights(item) for item in kind)
    return isinstance(kind, TensorType) and kind.dtype == WEIGHTS

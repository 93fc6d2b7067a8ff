"""What differs between two programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from graphgrow.program import Program
from graphgrow.report.cost import Cost, cost
from graphgrow.report.weights import WeightCost, weight_costs
from graphgrow.rewrite.reading import same

T = TypeVar("T")


@dataclass(frozen=True)
class Change(Generic[T]):
    """Something with a name that is not what it was: None where it is not there at all."""

    name: str
    old: T | None
    new: T | None


@dataclass(frozen=True)
class Difference:
    """Two programs side by side. `values` names the tensors that kept their shape and not their values."""

    old: Program
    new: Program
    axes: tuple[Change[int], ...]
    shapes: tuple[Change[tuple[int, ...]], ...]
    values: tuple[str, ...]
    costs: tuple[Cost, Cost]
    weights: tuple[WeightCost, ...]  # of the new program, that the old one does not have so

    @property
    def empty(self) -> bool:
        """Whether axes and tensors are the same in both."""
        return not (self.axes or self.shapes or self.values)


def difference(old: Program, new: Program, sizes: Mapping[str, int] | None = None) -> Difference:
    """Compare two programs: axes and tensors by name, and costs at the dynamic sizes given."""
    shapes = _changes({name: tuple(tensor.shape) for name, tensor in old.tensors.items()},
                      {name: tuple(tensor.shape) for name, tensor in new.tensors.items()})  # fmt: skip
    known = set(weight_costs(old, sizes))
    return Difference(
        old,
        new,
        _changes(_sizes(old), _sizes(new)),
        shapes,
        _other_values(old, new),
        (cost(old, sizes), cost(new, sizes)),
        tuple(one for one in weight_costs(new, sizes) if one not in known),
    )


def _sizes(program: Program) -> dict[str, int]:
    return {axis.name: int(str(axis.size)) for axis in program.axes.named}


def _changes(old: Mapping[str, T], new: Mapping[str, T]) -> tuple[Change[T], ...]:
    names = dict.fromkeys([*old, *new])
    return tuple(Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))


def _other_values(old: Program, new: Program) -> tuple[str, ...]:
    return tuple(
        name
        for name, before in old.tensors.items()
        if (after := new.tensors.get(name)) is not None
        and after is not before
        and after.shape == before.shape
        and not (after.is_meta or before.is_meta or same(before, after))
    )

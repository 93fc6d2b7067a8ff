"""Axis terms as values: what a dimension means, after inference.

`Atom` moves as one; `Product` is row-major (`heads*key`), outermost first; `Sum` is a concatenation (`q + k + v`).
A dimension of size 1 is the empty product, `UNIT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from graphgrow import sizes
from graphgrow.sizes import Dim


@dataclass(frozen=True, slots=True)
class Atom:
    """A dimension that moves as one. `number` tells atoms of one graph apart."""

    number: int
    size: Dim

    @property
    def atoms(self) -> tuple[Atom, ...]:
        return (self,)

    def resized(self, new: Mapping[Atom, Dim]) -> Dim:
        """The size when atoms have the sizes in `new`."""
        return new.get(self, self.size)

    def __str__(self) -> str:
        return f"a{self.number}[{self.size}]"


@dataclass(frozen=True)
class Product:
    """Row-major product of terms, outermost first."""

    parts: tuple[Term, ...]

    @staticmethod
    def of(parts: Sequence[Term]) -> Term:
        """The flattened product; one part is itself."""
        flat = [f for part in parts for f in (part.parts if isinstance(part, Product) else (part,))]
        return flat[0] if len(flat) == 1 else Product(tuple(flat))

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        return tuple(dict.fromkeys(atom for part in self.parts for atom in part.atoms))

    @property
    def size(self) -> Dim:
        return sizes.total(part.size for part in self.parts)

    def resized(self, new: Mapping[Atom, Dim]) -> Dim:
        return sizes.total(part.resized(new) for part in self.parts)

    def __str__(self) -> str:
        return "*".join(str(part) for part in self.parts) if self.parts else "1"


@dataclass(frozen=True)
class Sum:
    """Concatenation of terms."""

    parts: tuple[Term, ...]

    @staticmethod
    def of(parts: Sequence[Term]) -> Term:
        """The flattened sum; one part is itself."""
        flat = [p for part in parts for p in (part.parts if isinstance(part, Sum) else (part,))]
        return flat[0] if len(flat) == 1 else Sum(tuple(flat))

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        return tuple(dict.fromkeys(atom for part in self.parts for atom in part.atoms))

    @property
    def size(self) -> Dim:
        return sizes.add(*(part.size for part in self.parts))

    def resized(self, new: Mapping[Atom, Dim]) -> Dim:
        return sizes.add(*(part.resized(new) for part in self.parts))

    def __str__(self) -> str:
        return f"({' + '.join(str(part) for part in self.parts)})"


Term: TypeAlias = Atom | Product | Sum
UNIT = Product(())

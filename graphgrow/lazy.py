"""Tensors that are made when they are asked for: what a program holds whose weights stay on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from graphgrow.errors import Refusal
from graphgrow.program import Program

Load = Callable[[str], Tensor]


class Make(Protocol):
    """Makes a tensor from those that `load` gives by name: always the same one, whatever else was made before."""

    def __call__(self, name: str, load: Load) -> Tensor: ...


class Lazy(Mapping[str, Tensor]):
    """Tensors on the meta device by name, and `load`, which gives each with its values. `origin` identifies what all
    of them are made from, `before` is the program that a pass has made them from."""

    def __init__(self, shapes: Mapping[str, Tensor], load: Load, origin: str, before: Program | None = None) -> None:
        self._shapes, self._load, self.origin, self.before = shapes, load, origin, before
        self._last: tuple[str, Tensor] | None = None

    def load(self, name: str) -> Tensor:
        """A tensor with its values. Only the last one is kept: whoever asks for many holds what they need."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one is made
            self._last = name, self._load(name)
        return self._last[1]

    def __getitem__(self, name: str) -> Tensor:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def made(old: Mapping[str, Tensor], names: Iterable[str], make: Make) -> Mapping[str, Tensor]:
    """New tensors made from old ones: now, or, where the old ones are lazy, when they are asked for."""
    tensors = {name: make(name, load=old.__getitem__) for name in names}
    return Lazy(tensors, partial(make, load=old.load), old.origin) if isinstance(old, Lazy) else tensors


def after(old: Program, new: Program) -> Program:
    """The program that a pass has made of another one; lazy tensors remember that. Raises Refusal for a pass that does
    not make tensors one by one."""
    if isinstance(old.tensors, Lazy) and not isinstance(new.tensors, Lazy):
        raise Refusal(
            found="a pass that needs all weights at once",
            where="weights that stay on the disk",
            fix="apply it without --stream, on a machine that holds the weights",
        )
    if not isinstance(new.tensors, Lazy):
        return new
    return new.replace(tensors=Lazy(new.tensors, new.tensors.load, new.tensors.origin, old))


def history(program: Program) -> list[Program]:
    """The programs that passes have made one from the other, up to this one of lazy tensors."""
    found = [program]
    while isinstance(found[-1].tensors, Lazy) and found[-1].tensors.before is not None:
        found.append(found[-1].tensors.before)
    return found[::-1]

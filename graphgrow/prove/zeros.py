"""Which values of one program are zero, or one, because some of its parameters hold one number everywhere.

The rows of `Prover` tell how a value follows from an original's. Here the original is the program itself: every value
is the same, and what the rows say to be zero is zero too.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from graphgrow.axes import Axes
from graphgrow.graph import Node
from graphgrow.prove.engine import Assignment, Block, Prover, parts
from graphgrow.prove.facts import SAME, UNDEFINED, ZERO, Cells, each, fact, multiple
from graphgrow.prove.rows import Value

_ONE = fact("affine", 0.0, 1.0)


class Zeros(Prover):
    """The zeros and ones of a program, and which of its constant parameters each needs."""

    def __init__(self, axes: Axes, constants: Mapping[str, float], fixed: Set[str] = frozenset()) -> None:
        """`constants` gives the number that parameters hold everywhere, by name."""
        super().__init__(axes, {}, fixed)
        self.begin(Assignment({self._all(name): fact("affine", 0.0, value) for name, value in constants.items()}))
        for node in self.graph.nodes:
            self.step(node)

    def _all(self, name: str) -> Block:
        return Block(name, (0,) * len(self.axes.parameters[name]), ())

    def evaluate(self, node: Node) -> Value:
        """What is not known to be one number is the same as ever, unless it is not even defined."""
        value = super().evaluate(node)
        return tuple(map(_settled, value)) if isinstance(value, tuple) else _settled(value)

    def number(self, name: str) -> float | None:
        """The number that a node is everywhere, if that is zero or one."""
        for number, known in ((0.0, ZERO), (1.0, _ONE)):
            if all(bool((part == known).all()) for part in parts(self.values[name])):
                return number
        return None

    def found(self) -> dict[str, float]:
        """All nodes that are zero or one."""
        return {name: number for name in self.values if (number := self.number(name)) is not None}

    def release(self, parameter: str, needed: Mapping[str, str]) -> str:
        """Let a parameter hold anything. Where a value in `needed` is no longer zero or one, undo it and return what
        `needed` says of it; else return ''."""
        node = self.graph.parameters[parameter]
        if node.name in needed:
            return needed[node.name]
        undo = {node.name: self.values[node.name]}
        self.values[node.name] = np.full_like(parts(undo[node.name])[0], SAME)
        for name in self.carry([node.name], undo):
            if name in needed and self.number(name) is None:
                self.values.update(undo)
                return needed[name]
        return ""


def _settled(cells: Cells) -> Cells:
    return each(lambda f: f if f in (ZERO, UNDEFINED) or (f >= SAME and multiple(f).scale == 0) else SAME, cells)

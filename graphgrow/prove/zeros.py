"""Which values of one program are zero because some of its parameters hold one number everywhere.

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


class Zeros(Prover):
    """The zeros of a program, and which of its constant parameters each needs."""

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

    def zero(self, name: str) -> bool:
        """Whether a node is zero everywhere."""
        return all(bool((part == ZERO).all()) for part in parts(self.values[name]))

    def found(self) -> set[str]:
        """All nodes that are zero."""
        return {name for name in self.values if self.zero(name)}

    def release(self, parameter: str, needed: Mapping[str, str]) -> str:
        """Let a parameter hold anything. Where a value in `needed` is no longer zero, undo it and return what
        `needed` says of it; else return ''."""
        node = self.graph.parameters[parameter]
        undo = {node.name: self.values[node.name]}
        self.values[node.name] = np.full_like(parts(undo[node.name])[0], SAME)
        for name in self.carry([node.name], undo):
            if name in needed and not self.zero(name):
                self.values.update(undo)
                return needed[name]
        return ""


def _settled(cells: Cells) -> Cells:
    return each(lambda f: f if f in (ZERO, UNDEFINED) or (f >= SAME and multiple(f).scale == 0) else SAME, cells)

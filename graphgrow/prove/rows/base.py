"""What rows are made of: the registry, what a row may read, and helpers shared by kinds of operators.

A row gets the facts of the operands and returns those of the result. A cell is *old* when the original has it, *new*
otherwise; in a new cell only ZERO and ANY mean something. Everything is said of evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphgrow.axes import Axes, Term
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.cells import ANY, SAME, ZERO, Cells, Layout

Value = Cells | tuple[Cells, ...]


Row = Callable[["Context", Node], Value]


ROWS: dict[str, Row] = {}


def row(*kinds: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        ROWS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Context:
    """What a row may read: facts of operands (`values`), terms, and how terms fall into cells."""

    def __init__(self, axes: Axes, layout: Layout, values: dict[str, Value]) -> None:
        self.axes, self.layout, self.values = axes, layout, values
        self._starts = {literal.node: terms for literal, terms in axes.literals if literal.path == ("args", 2)}

    def before(self, node: Node) -> tuple[Term, ...] | None:
        """The terms that lie before a slice."""
        return self._starts.get(node.name)

    def facts(self, argument: Argument) -> Cells:
        """The facts of a tensor operand; a number is the same everywhere."""
        if isinstance(argument, Ref):
            value = self.values[argument.name]
            assert isinstance(value, np.ndarray)
            return value
        return np.array(SAME, dtype=np.int16)

    def terms(self, argument: Argument) -> tuple[Term, ...]:
        return self.axes.terms.get(argument.name, ()) if isinstance(argument, Ref) else ()

    def filled(self, node: Node, old: int, new: int) -> Cells:
        """One fact in all old cells of the result, one in all new ones."""
        flags = self.layout.is_old(self.axes.terms[node.name])
        return np.where(flags, old, new).astype(np.int16)

    def spread(self, facts: Cells, shape: tuple[int, ...], old: np.ndarray) -> Cells:
        """Facts broadcast to a shape of cells; what is spread into new cells is zero or anything."""
        wide = np.broadcast_to(facts, shape)
        return np.where(old | (wide == ZERO), wide, ANY).astype(np.int16)

    def grown(self, terms: Sequence[Term]) -> bool:
        return any(self.layout.touches(term) for term in terms)

    def dims(self, node: Node, index: int, name: str = "dim") -> tuple[int, ...]:
        """A dimension argument or a list of them, all when there is none."""
        value = node.argument(index, name)
        rank = len(self.terms(node.args[0]))
        items = value if isinstance(value, tuple) else (value,)
        return tuple(item % rank for item in items if isinstance(item, int)) or tuple(range(rank))


def flat(arguments: Sequence[Argument]) -> list[Argument]:
    return [item for argument in arguments for item in (flat(argument) if isinstance(argument, tuple) else [argument])]


def added(left: Cells, right: Cells, old: np.ndarray) -> Cells:
    """Facts of a sum."""
    zero = (left == ZERO) & (right == ZERO)
    kept = np.where((left == right) & (left != ZERO), left, ANY)
    return np.where(zero, ZERO, np.where(old, kept, ANY)).astype(np.int16)


def all_same(facts: Sequence[Cells], context: Context, old: np.ndarray) -> Cells:
    wide = [context.spread(f, old.shape, old) for f in facts]
    return np.where(old & np.logical_and.reduce([f == SAME for f in wide]), SAME, ANY).astype(np.int16)


def cut(context: Context, facts: Cells, dim: int, whole: Term, parts: Sequence[Term]) -> list[Cells] | None:
    """The facts of the parts of a dimension."""
    pairs = context.layout.pieces(whole, parts)
    if pairs is None:
        return None
    along = np.moveaxis(facts, dim, 0)
    found: list[Cells] = []
    for part, chosen in zip(parts, pairs, strict=True):
        made = np.full((len(context.layout.old(part)), *along.shape[1:]), SAME, dtype=np.int16)
        for cell in range(made.shape[0]):
            sources = [along[b] for a, b in chosen if a == cell]
            if sources:
                made[cell] = np.where(np.logical_and.reduce([s == sources[0] for s in sources]), sources[0], ANY)
        found.append(np.moveaxis(made, 0, dim))
    return found


def unknown(context: Context, node: Node) -> Value:
    if isinstance(node.type, tuple):
        return tuple(np.full(context.layout.shape(terms), ANY, np.int16) for terms in context.axes.several[node.name])
    return np.full(context.layout.shape(context.axes.terms[node.name]), ANY, dtype=np.int16)

"""What rows are made of: the registry, what a row may read, and helpers shared by kinds of operators.

A row gets the facts of the operands and returns those of the result. A cell is *old* when the original has it, *new*
otherwise. Everything is said of evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphgrow import ops
from graphgrow.axes import Atom, Axes, Term
from graphgrow.graph import Argument, Node, Ref, TensorType
from graphgrow.prove.cells import Layout
from graphgrow.prove.facts import (
    ANY,
    CONSTANT,
    SAME,
    UNDEFINED,
    ZERO,
    Cells,
    each,
    every,
    fact,
    join,
    kind,
    scale,
    unshared,
)  # fmt: skip

Value = Cells | tuple[Cells, ...]
Flags = NDArray[np.bool_]
Number = tuple[str, tuple[int | str, ...]]  # one in the graph: its node, and where it stands in the arguments
Row = Callable[["Context", Node], Value]


ROWS: dict[str, Row] = {}


def row(*kinds: str) -> Callable[[Row], Row]:
    """Register the row of these kinds. Where a number is multiplied that the row does not look at, nothing is known."""

    def register(function: Row) -> Row:
        def careful(context: Context, node: Node) -> Value:
            context.read.clear()
            result = function(context, node)
            if context.overlooked(node):
                return unknown(context, node, UNDEFINED)
            return _unsigned(result) if _is_complex(node) else result

        ROWS.update(dict.fromkeys(kinds, careful))
        return careful

    return register


class Context:
    """What a row may read: facts of operands (`values`), terms, how terms fall into cells, and by how much numbers in
    the graph are multiplied (`numbers`). While a proposal is made (`proposing`) a number takes the factor that a row
    needs; otherwise the row learns whether it has it."""

    def __init__(self, axes: Axes, layout: Layout, values: dict[str, Value]) -> None:
        self.axes, self.layout, self.values = axes, layout, values
        self.numbers: dict[Number, float] = {}
        self.scaled: set[str] = set()  # their nodes
        self.read: set[Number] = set()  # what the row at work has looked at
        self.proposing = False
        self.ranked, self.own = _ranked(axes, layout), {lookup.node.name for lookup, _ in axes.lookups if lookup.own}
        self._starts = {(literal.node, literal.path): terms for literal, terms in axes.literals}

    def multiply(self, numbers: Mapping[Number, float]) -> None:
        """Take factors for numbers in the graph."""
        self.numbers.update(numbers)
        self.scaled.update(name for name, _ in numbers)

    def before(self, node: Node, position: int) -> tuple[Term, ...] | None:
        """The terms that lie before a slice whose start is this argument."""
        return self._starts.get((node.name, ("args", position)))

    def facts(self, argument: Argument) -> Cells:
        """The facts of a tensor operand, each of its cell alone: a share is anything."""
        return unshared(self.shared(argument))

    def shared(self, argument: Argument) -> Cells:
        """The facts of a tensor operand, shares too; a number is the same everywhere."""
        if isinstance(argument, Ref):
            value = self.values[argument.name]
            assert isinstance(value, np.ndarray)
            return value
        return np.array(SAME, dtype=np.int32)

    def factor(self, node: Node, *path: int | str) -> float:
        """By how much a number in the arguments is multiplied."""
        self.read.add((node.name, path))
        return self.numbers.get((node.name, path), 1.0)

    def needs(self, node: Node, factor: float, *path: int | str) -> bool:
        """Whether a number in the arguments is multiplied by `factor`; a proposal makes it so."""
        place = (node.name, path)
        if self.proposing and abs(factor - 1) > 1e-12:
            self.multiply({place: self.numbers.get(place, factor)})
        return abs(self.factor(node, *path) - factor) <= 1e-12 * factor

    def overlooked(self, node: Node) -> bool:
        """Whether a number in the arguments is multiplied that no row has looked at."""
        return node.name in self.scaled and not {n for n in self.numbers if n[0] == node.name} <= self.read

    def terms(self, argument: Argument) -> tuple[Term, ...]:
        return self.axes.terms.get(argument.name, ()) if isinstance(argument, Ref) else ()

    def result(self, node: Node) -> tuple[Term, ...]:
        """The terms of what a node computes."""
        return self.axes.terms[node.name]

    def old(self, node: Node) -> Flags:
        """For every cell of what a node computes, whether it is old."""
        return self.layout.is_old(self.axes.terms[node.name])

    def filled(self, node: Node, old: int, new: int) -> Cells:
        """One fact in all old cells of the result, one in all new ones."""
        return np.where(self.old(node), old, new).astype(np.int32)

    def spread(self, argument: Argument, target: Flags) -> Cells:
        """The facts of an operand, broadcast to cells of which `target` are old."""
        return spread(self.facts(argument), self.layout.is_old(self.terms(argument)), target)

    def grown(self, terms: Sequence[Term]) -> bool:
        return any(self.layout.touches(term) for term in terms)

    def by_rank(self, terms: Sequence[Term]) -> bool:
        """Whether a dimension is of what a topk keeps, and more of it: copies stand next to each other there, and what
        picks by position or counts finds others than before."""
        return bool(self.ranked) and any(atom in self.ranked for term in terms for atom in term.atoms)

    def dims(self, node: Node, index: int, name: str = "dim") -> tuple[int, ...]:
        """A dimension argument or a list of them, all when there is none."""
        value = node.argument(index, name)
        rank = len(self.terms(node.args[0]))
        items = value if isinstance(value, tuple) else (value,)
        return tuple(item % rank for item in items if isinstance(item, int)) or tuple(range(rank))


def _ranked(axes: Axes, layout: Layout) -> frozenset[Atom]:
    """The grown axes of what topk operators keep, those that no parameter or input has."""
    nodes = [node for node in axes.graph.nodes if ops.kind(node.op) == "topk"] if layout.grown else []
    kept = {atom for node in nodes for atom in axes.several[node.name][0][along(node)].atoms} & layout.grown.keys()
    held = [axes.terms[node.name] for node in axes.graph.nodes if kept and node.op in ("parameter", "input")]
    return frozenset(kept.difference(atom for terms in held for term in terms for atom in term.atoms))


def along(node: Node) -> int:
    """The dimension along which a topk looks."""
    dim = node.argument(2, "dim", -1)
    return dim if isinstance(dim, int) else -1


def spread(facts: Cells, source: Flags, target: Flags) -> Cells:
    """Facts broadcast: what does not vary along dimensions is constant in their new cells."""
    if facts.shape == target.shape:
        return facts
    wide = np.broadcast_to(facts, target.shape)
    varied = np.broadcast_to(source, target.shape) & ~target
    if not varied.any():
        return wide.astype(np.int32)
    return np.where(varied, each(constant, wide), wide).astype(np.int32)


def constant(number: int) -> int:
    return fact("constant", scale(number)) if kind(number) == "same" else number


def flat(arguments: Sequence[Argument]) -> list[Argument]:
    return [item for argument in arguments for item in (flat(argument) if isinstance(argument, tuple) else [argument])]


def settled(facts: Cells, old: Flags) -> Cells:
    """Facts with those of old cells as such: what is constant there is simply the same."""
    return np.where(old & (facts == CONSTANT), SAME, facts).astype(np.int32)


def cut(context: Context, facts: Cells, dim: int, whole: Term, parts: Sequence[Term]) -> list[Cells] | None:
    """The facts of the parts of a dimension."""
    pairs = context.layout.pieces(whole, parts)
    if pairs is None:
        return None
    along = np.moveaxis(facts, dim, 0)
    old = context.layout.old(whole)
    found: list[Cells] = []
    for part, chosen in zip(parts, pairs, strict=True):
        flags = context.layout.old(part)
        sources: list[list[Cells]] = [[] for _ in flags]
        for a, b in chosen:
            sources[a].append(each(_unmoved, along[b]) if flags[a] != old[b] else along[b])
        made = [joined(cells) if cells else np.full(along.shape[1:], SAME, dtype=np.int32) for cells in sources]
        found.append(np.moveaxis(np.stack(made), 0, dim))
    return found


def _unmoved(number: int) -> int:
    """What new units say of a part that does not tell them from old ones."""
    return fact("same", scale(number)) if kind(number) == "constant" else number if number <= ZERO else ANY


def joined(parts: Sequence[Cells]) -> Cells:
    """Cell by cell what holds for all parts."""
    return parts[0] if len(parts) == 1 else every(join, *parts)


def _is_complex(node: Node) -> bool:
    return isinstance(node.type, TensorType) and node.type.dtype.startswith("complex")


def _unsigned(value: Value) -> Value:
    """Facts of complex numbers, which have no sign."""
    assert isinstance(value, np.ndarray)
    return np.where((value > ANY) & (value < ZERO), ANY, value).astype(np.int32)


def _parts(value: Value) -> tuple[Cells, ...]:
    return value if isinstance(value, tuple) else (value,)


def unknown(context: Context, node: Node, fact: int = ANY) -> Value:
    """Nothing but that values are finite, where those of the operands are."""
    if any((part == UNDEFINED).any() for name in node.operands() for part in _parts(context.values[name])):
        fact = UNDEFINED
    if isinstance(node.type, tuple):
        return tuple(np.full(context.layout.shape(terms), fact, np.int32) for terms in context.axes.several[node.name])
    return np.full(context.layout.shape(context.axes.terms[node.name]), fact, dtype=np.int32)

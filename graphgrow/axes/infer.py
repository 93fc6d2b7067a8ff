"""Axis inference: one walk through the graph, an operator's rule at a time, and the terms that come out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from graphgrow import ops
from graphgrow.axes import contractions, layout, lookups
from graphgrow.axes.names import Named, name_atoms
from graphgrow.axes.rules import RULES, Result, opaque, tensors
from graphgrow.axes.state import Contraction, Literal, Lookup, State, freeze_all, fresh, place
from graphgrow.axes.term import UNIT, Atom, Product, Sum, Term
from graphgrow.axes.terms import UNIT as UNIT_AXIS
from graphgrow.axes.terms import Axis, Conflict, freeze, order
from graphgrow.axes.text import table
from graphgrow.graph import Graph, Node, TensorType

__all__ = ["Axes", "infer"]
RULED = (contractions, layout, lookups)  # importing these rooms registers their rules
# Kinds that leave the values of an index tensor what they are.
INDEX_KEEPING = {"reshape", "permute", "unsqueeze", "expand", "slice", "select", "getitem"}
LOOKUPS = {"embedding", "index", "index_select", "gather", "scatter", "index_add", "index_put", "one_hot"}
INDEX_COPYING = {"aten.to.dtype", "aten.clone.default", "aten.detach.default"}


def infer(graph: Graph, units: bool = False) -> Axes:
    """What every dimension of every tensor of the graph means. With `units`, dimensions of size 1 that layouts and cuts
    make have axes, too: a single head is an outer factor of its keys."""
    state = State(graph, units)
    for node in graph.nodes:
        if isinstance(node.type, TensorType | tuple):
            _apply(state, node)
    for name in graph.output_names:
        if name in state.ranges:
            order(state.ranges[name], f"the output {name} holds numbers of its units")
    return _Reader(state).axes()


def _apply(state: State, node: Node) -> None:
    try:
        result = RULES.get(ops.kind(node.op), opaque)(state, node)
    except Conflict as conflict:
        result = _frozen(state, node, f"{place(node)}: {conflict}")
    first = next(iter(node.operands()), None)
    if first in state.ranges and (ops.kind(node.op) in INDEX_KEEPING or node.op in INDEX_COPYING):
        state.ranges[node.name] = state.ranges[first]
    if ops.kind(node.op) not in LOOKUPS and node.name not in state.ranges:
        for name in node.operands():
            if name in state.ranges:
                order(state.ranges[name], f"{place(node)} computes with the numbers of its units")
    if isinstance(node.type, tuple):
        state.several[node.name] = result  # type: ignore[assignment]
        return
    shape: Sequence[Axis] = result  # type: ignore[assignment]
    if tuple(axis.size for axis in shape) != node.shape:
        if len(shape) != len(node.shape):
            shape = _frozen(state, node, f"{place(node)}: its rule gives another number of dimensions")  # type: ignore[assignment]
        else:
            shape = _frozen_sizes(state, node, shape)
    state.shapes[node.name] = tuple(shape)


def _frozen(state: State, node: Node, reason: str) -> Result:
    for shape in tensors(state, node):
        freeze_all(shape, reason)
    types = node.type if isinstance(node.type, tuple) else (node.type,)
    made = tuple(fresh(type_) if isinstance(type_, TensorType) else () for type_ in types)
    for shape in made:
        freeze_all(shape, reason)
    return made if isinstance(node.type, tuple) else made[0]


def _frozen_sizes(state: State, node: Node, shape: Sequence[Axis]) -> tuple[Axis, ...]:
    """Sizes that the exporter knows to be equal but writes differently: fixed, with the reason."""
    new = list(fresh(node.tensor))
    for index, (old, size) in enumerate(zip(shape, node.shape, strict=True)):
        if old.size == size:
            new[index] = old
        else:
            freeze_all((old, new[index]), f"{place(node)} gives {size} where {old.size} was expected")
    return tuple(new)


@dataclass(frozen=True)
class Axes:
    """The axes of a graph. `terms` gives every node's dimensions (several outputs: through their getitem nodes)."""

    graph: Graph
    terms: Mapping[str, tuple[Term, ...]]
    several: Mapping[str, tuple[tuple[Term, ...], ...]]
    literals: tuple[tuple[Literal, tuple[Term, ...]], ...]
    contractions: tuple[tuple[Contraction, tuple[Term, ...], tuple[Term, ...], tuple[tuple[Term, ...], ...]], ...]
    lookups: tuple[tuple[Lookup, Term], ...]
    frozen: Mapping[Atom, tuple[str, ...]]
    ordered: Mapping[Atom, tuple[str, ...]]

    @cached_property
    def parameters(self) -> Mapping[str, tuple[Term, ...]]:
        """The terms of every parameter and buffer that the graph reads."""
        return {name: self.terms[node.name] for name, node in self.graph.parameters.items()}

    @cached_property
    def holders(self) -> Mapping[Atom, Sequence[str]]:
        """For every axis the parameters and buffers that have it."""
        found: dict[Atom, dict[str, None]] = {}
        for name, terms in self.parameters.items():
            for atom in (atom for term in terms for atom in term.atoms):
                found.setdefault(atom, {}).setdefault(name)
        return {atom: tuple(names) for atom, names in found.items()}

    @cached_property
    def positional(self) -> Mapping[Atom, str]:
        """The axes whose units are told apart by their position, each with a reason: ordered ones, and those that an
        index from elsewhere picks from."""
        found = {
            atom: f"{place(lookup.node)} picks from it by number"
            for lookup, term in self.lookups
            if not lookup.own
            for atom in term.atoms
        }
        return found | {atom: reasons[0] for atom, reasons in self.ordered.items()}

    @cached_property
    def named(self) -> tuple[Named, ...]:
        """The axes that live in parameters, with their names for people."""
        return name_atoms(self)

    def __str__(self) -> str:
        return table(self.named)


class _Reader:
    """Reads the union-find into immutable terms, once per root."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.terms: dict[int, Term] = {}
        self.frozen: dict[Atom, dict[str, None]] = {}
        self.ordered: dict[Atom, dict[str, None]] = {}
        self.marks: list[tuple[Term, Axis]] = []
        self.count = 0

    def axes(self) -> Axes:
        state = self.state
        terms = {name: self.shape(shape) for name, shape in state.shapes.items()}
        several = {name: tuple(self.shape(shape) for shape in shapes) for name, shapes in state.several.items()}
        literals = tuple((literal, self.shape(literal.axes)) for literal in state.literals)
        contractions = tuple(
            (c, self.shape(c.shared), self.shape(c.summed), tuple(self.shape(f) for f in c.free))
            for c in state.contractions
        )
        lookups = tuple((lookup, self.term(lookup.axis)) for lookup in state.lookups)
        for lookup, term in lookups:
            if not (
                lookup.own or isinstance(term, Atom)
            ):  # an index tells the parts' units by their place in the whole
                self.marks.append((term, lookup.axis.root()))
                freeze(lookup.axis, f"{place(lookup.node)} picks by number from a dimension of several parts")
        self._spread()
        frozen = {atom: tuple(reasons) for atom, reasons in self.frozen.items()}
        ordered = {atom: tuple(reasons) for atom, reasons in self.ordered.items()}
        return Axes(state.graph, terms, several, literals, contractions, lookups, frozen, ordered)

    def shape(self, shape: Sequence[Axis]) -> tuple[Term, ...]:
        return tuple(self.term(axis) for axis in shape)

    def term(self, axis: Axis) -> Term:
        root = axis.root()
        if root is UNIT_AXIS:
            return UNIT
        found = self.terms.get(root.number)
        if found is None:
            found = self.terms[root.number] = self._read(root)
            if root.frozen or root.ordered:
                self.marks.append((found, root))
        return found

    def _read(self, root: Axis) -> Term:
        if root.form == "atom":
            self.count += 1
            return Atom(self.count, root.size)
        parts = [self.term(part) for part in root.parts]
        return Product.of(parts) if root.form == "*" else Sum.of(parts)

    def _spread(self) -> None:
        """Reasons go down to the atoms."""
        for term, root in self.marks:
            for atom in term.atoms:
                if root.frozen:
                    self.frozen.setdefault(atom, {}).update(root.frozen)
                if root.ordered:
                    self.ordered.setdefault(atom, {}).update(root.ordered)

"""The prover: facts flow forward through the graph, and constraints are dropped while every output stays the same.

`Prover(axes, grown)` asks: if these atoms take these sizes, and blocks of parameters and numbers in the graph hold what
an `Assignment` says of them, are all outputs the same? If so, the run is a proof for every value of the free blocks.
Every step costs time linear in the graph: setting one block free is undone at the first old value that is lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom, Axes, Term
from graphgrow.graph import Node, Ref, TensorType
from graphgrow.prove.cells import Layout
from graphgrow.prove.facts import ANY, POSITIVE, SAME, UNDEFINED, ZERO, Cells, kind, text
from graphgrow.prove.rows import ROWS, Context, Number, Value, plain
from graphgrow.sizes import Dim

Place = tuple[int, ...]
Strategy = Literal["zeros", "means", "copies", "shares"]


@dataclass(frozen=True)
class Block:
    """One block of a parameter: its cell, and the dimensions that make it new (none: an old one)."""

    parameter: str
    cell: Place
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """What blocks hold: new ones (free when not listed) and old ones (the same when not listed); and by how much
    numbers in the graph are multiplied."""

    blocks: Mapping[Block, int] = field(default_factory=dict[Block, int])
    numbers: Mapping[Number, float] = field(default_factory=dict[Number, float])


@dataclass(frozen=True)
class Derivation:
    """The outcome: whether every output is the same, and for which assignment.

    `needed` gives, for every new block that can't be free, the operator that needs it. `steps` counts the nodes that
    hold new units."""

    holds: bool
    why: str
    assignment: Assignment
    needed: Mapping[Block, str] = field(default_factory=dict[Block, str])
    steps: int = 0


class Prover:
    """Facts about one graph under one growth: create it once, then `derive`."""

    def __init__(
        self, axes: Axes, grown: Mapping[Atom, Dim], fixed: Set[str] = frozenset(), extend_outputs: bool = False
    ) -> None:
        """`fixed` names tensors that do not learn: they are set free before others. `extend_outputs` lets outputs have
        new units beside the old ones, which must be the same."""
        self.axes, self.graph, self.fixed, self.extend_outputs = axes, axes.graph, fixed, extend_outputs
        self.layout = Layout(grown)
        self.values: dict[str, Value] = {}
        self.context = Context(axes, self.layout, self.values)
        self.order = self.graph.order
        self.touched = {node.name for node in self.graph.nodes if self._touches(node)}
        self.outputs = frozenset(self.graph.output_names)

    def shapes(self, name: str) -> Sequence[Sequence[Term]]:
        """The terms of a node's tensors, one or several."""
        return self.axes.several.get(name) or (self.axes.terms.get(name, ()),)

    def _touches(self, node: Node) -> bool:
        return any(self.layout.touches(term) for shape in self.shapes(node.name) for term in shape)

    @cached_property
    def live(self) -> frozenset[str]:
        """The nodes that outputs depend on in evaluation mode."""
        found = set(self.outputs)
        for node in reversed(self.graph.nodes):
            if node.name in found:
                operands = [node.args[1]] if node.op == "by_mode" else [Ref(name) for name in node.operands()]
                found.update(operand.name for operand in operands if isinstance(operand, Ref))
        return frozenset(found)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The new blocks of all parameters in the order in which they are set free: what does not learn (a table of
        positions), what norms over the stream have last, else by first use. Of a reader of the stream and the bias of
        the norm before it only one can be free: the reader."""
        found: list[tuple[bool, bool, int, Block]] = []
        for name, node in self.graph.parameters.items():
            if node.name not in self.touched:
                continue
            users = self.graph.users[node.name]
            first = min((self.order[user.name] for user in users), default=0)
            late = (name not in self.fixed, any(ops.kind(user.op) == "layer_norm" for user in users), first)
            found += [(*late, block) for block in self.blocks_of(name) if block.dims]
        return tuple(block for *_, block in sorted(found, key=lambda item: item[:3]))

    def blocks_of(self, parameter: str) -> Iterator[Block]:
        """All blocks of a parameter, old ones too."""
        terms = self.axes.parameters[parameter]
        for cell in np.ndindex(self.layout.shape(terms)):
            dims = tuple(d for d, term in enumerate(terms) if not self.layout.old(term)[cell[d]])
            yield Block(parameter, cell, dims)

    # One assignment

    def forward(self, assignment: Assignment) -> str:
        """Facts of every node. Returns the first node that loses an old value which outputs depend on, or ''."""
        self.begin(assignment)
        for node in self.graph.nodes:
            self.step(node)
            if self.lost(node.name):
                return node.name
        return ""

    def begin(self, assignment: Assignment) -> None:
        """Forget all facts and take those of the parameters from an assignment."""
        self.values.clear()
        self.context.numbers.clear()
        self.context.scaled.clear()
        self.context.multiply(assignment.numbers)
        self.given: dict[str, list[tuple[Place, int]]] = {}
        for block, fact in assignment.blocks.items():
            self.given.setdefault(block.parameter, []).append((block.cell, fact))

    def step(self, node: Node) -> None:
        """The facts of one node from those of its operands."""
        self.values[node.name] = self._parameter(node) if node.op == "parameter" else self.evaluate(node)

    def _parameter(self, node: Node) -> Value:
        given = self.given.get(str(node.args[0]))
        if given is None and node.name not in self.touched:
            return _same(len(node.shape))
        cells = np.where(self.layout.is_old(self.axes.terms[node.name]), SAME, ANY).astype(np.int32)
        for cell, fact in given or ():
            cells[cell] = fact
        return cells

    def evaluate(self, node: Node) -> Value:
        """The facts of a node that is no parameter."""
        if node.op == "input":
            if node.name in self.touched:
                return np.where(self.layout.is_old(self.axes.terms[node.name]), SAME, ANY).astype(np.int32)
            return _same(len(node.shape))
        if not isinstance(node.type, TensorType | tuple):
            return _same(0)
        operands = list(node.operands())
        quiet = node.name not in self.touched and not any(name in self.touched for name in operands)
        if quiet and node.name not in self.context.scaled and all(_is_same(self.values[name]) for name in operands):
            if isinstance(node.type, tuple):
                return tuple(_same(len(shape)) for shape in self.axes.several[node.name])
            return _same(len(node.shape))
        return ROWS.get(ops.kind(node.op), plain)(self.context, node)

    def old_facts(self, name: str) -> set[int]:
        """What the old cells of a node hold."""
        value = self.values[name]
        if _is_same(value):
            return {SAME}
        pairs = zip(parts(value), self.shapes(name), strict=True)
        return {int(fact) for part, terms in pairs for fact in part[self.layout.is_old(terms)]}

    def lost(self, name: str) -> bool:
        """Whether an output depends on a node one of whose old cells no longer follows from the original."""
        return name in self.live and any(fact < SAME or kind(fact) == "mean" for fact in self.old_facts(name))

    def failure(self) -> str:
        """Why outputs are not the same once all facts are known. Empty when they are."""
        for node in self.graph.inputs:
            if node.name in self.touched:
                return f"the axis is seen in the input {node.name}"
        for name in self.graph.output_names:
            if name in self.touched and not (self.extend_outputs and self._fixed_size(name)):
                return f"the axis is seen in the output {name}"
            if self.old_facts(name) != {SAME}:
                return f"the output {name} is {_text(self.values[name])}"
        return ""

    def _fixed_size(self, name: str) -> bool:
        """Whether the grown dimensions of a node have no part whose size depends on the input."""
        terms = self.axes.terms[name]
        return all(isinstance(term.size, int) for term in terms if self.layout.touches(term))

    def explain(self, name: str) -> str:
        """What happens at the node that loses old values."""
        node = self.graph[name]
        where = f" ({node.source})" if node.source else f" ({node.name})"
        over = [str(operand) for operand in node.operands() if not _is_same(self.values[operand])]
        facts = ", ".join(f"{operand}: {_text(self.values[operand])}" for operand in over[:3])
        return f"{node.op}{where} mixes new units into old values; it reads {facts or 'what changed before'}"

    # The least assignment

    def derive(
        self,
        start: Assignment | None = None,
        numbers: Mapping[Number, float] | None = None,
        strategies: Sequence[Strategy] | None = None,
    ) -> Derivation:
        """A minimal assignment: from `start`, or else one that is proposed (in one of `strategies`, with `numbers`
        multiplied so), new blocks are set free while the proof survives."""
        for atom in self.layout.grown:
            if atom in self.axes.frozen:
                return Derivation(False, f"a frozen axis: {self.axes.frozen[atom][0]}", start or Assignment())
        if start is None:
            from graphgrow.prove.propose import proposals

            start, why = proposals(self, numbers or {}, strategies)
        else:
            place = self.forward(start)
            why = self.explain(place) if place else self.failure()
        if why:
            return Derivation(False, why, start, steps=len(self.touched))
        blocks, needed = dict(start.blocks), dict[Block, str]()
        for block in self.blocks:
            if blocks.get(block, ANY) == ANY:
                continue
            reason, undefined = self.relax(block, ANY)
            if not reason:
                blocks[block] = ANY
                continue
            needed[block] = reason
            if undefined and not self.relax(block, POSITIVE)[0]:
                blocks[block] = POSITIVE
        why = f"every output is the same; {len(self.touched)} of {len(self.graph.nodes)} nodes hold new units"
        return Derivation(True, why, Assignment(blocks, start.numbers), needed, len(self.touched))

    def relax(self, block: Block, fact: int) -> tuple[str, bool]:
        """Set one block free and carry the change on. If an old value is lost, undo it and name the operator that loses
        it, and tell whether it is because what it read is not defined."""
        node = self.graph.parameters[block.parameter]
        cells = np.array(self.values[node.name])
        cells[block.cell] = fact
        undo = {node.name: self.values[node.name]}
        self.values[node.name] = cells
        for user in self.carry([node.name], undo):
            if self.lost(user) or (user in self.outputs and self.old_facts(user) != {SAME}):
                undefined = UNDEFINED in self.old_facts(user)
                self.values.update(undo)
                found = self.graph[user]
                return f"{found.op} ({found.source or found.name})", undefined
        return "", False

    def carry(self, changed: Sequence[str], undo: dict[str, Value], until: int | None = None) -> Iterator[str]:
        """Evaluate again what follows from changed nodes (up to the node numbered `until`); yields each node whose
        facts change, and keeps the facts from before in `undo`."""
        waiting = sorted({self.order[user.name] for name in changed for user in self.graph.users[name]})
        last = -1
        while waiting:
            index = heapq.heappop(waiting)
            if index == last or (until is not None and index > until):
                continue
            last = index
            user = self.graph.nodes[index]
            if user.name not in self.values:
                continue
            now, before = self.evaluate(user), self.values[user.name]
            if all(np.array_equal(a, b) for a, b in zip(parts(now), parts(before), strict=True)):
                continue
            undo.setdefault(user.name, before)
            self.values[user.name] = now
            yield user.name
            for following in self.graph.users[user.name]:
                heapq.heappush(waiting, self.order[following.name])

    # All axes at once

    def obstacles(self) -> dict[Atom, str]:
        """The grown axes that keep the proof from going through even with all new blocks zero, each with the place.

        One walk: where old values are lost first, the axes that the operator reads are noted, and the walk goes on as
        if they had not been."""
        found: dict[Atom, str] = {}
        scaled_by: dict[str, set[Atom]] = {}
        self.begin(Assignment(dict.fromkeys(self.blocks, ZERO)))
        for node in self.graph.nodes:
            self.step(node)
            if node.op != "parameter":
                self._heal(node, found, scaled_by)
        for name in () if self.extend_outputs else self.graph.output_names:
            for atom in self._grown_in(name):
                found.setdefault(atom, f"it is seen in the output {name}")
        for node in self.graph.inputs:
            for atom in self._grown_in(node.name):
                found.setdefault(atom, f"it is seen in the input {node.name}")
        return found

    def _grown_in(self, *names: str) -> list[Atom]:
        shapes = [shape for name in names for shape in self.shapes(name)]
        return [atom for shape in shapes for term in shape for atom in term.atoms if atom in self.layout.grown]

    def _heal(self, node: Node, found: dict[Atom, str], scaled_by: dict[str, set[Atom]]) -> None:
        """Note which axes made `node` lose old values, and give them back. `scaled_by` remembers, for values that are
        a multiple of the old ones, which axes made them so."""
        if self.old_facts(node.name) == {SAME}:
            return
        blamed = set(self._grown_in(*node.operands())).union(*(scaled_by.get(name, ()) for name in node.operands()))
        scaled_by[node.name] = blamed
        if not self.lost(node.name):
            return
        where = f"{node.op} ({node.source or node.name}) mixes its units into old values"
        for atom in scaled_by.get(node.name, ()):
            found.setdefault(atom, where)
        value = self.values[node.name]
        healed = tuple(
            np.where(self.layout.is_old(terms), SAME, part).astype(np.int32)
            for part, terms in zip(parts(value), self.shapes(node.name), strict=True)
        )
        self.values[node.name] = healed if isinstance(value, tuple) else healed[0]


def parts(value: Value) -> tuple[Cells, ...]:
    """The facts of a node's tensors, one or several."""
    return value if isinstance(value, tuple) else (value,)


_SAMES = [np.full((1,) * rank, SAME, dtype=np.int32) for rank in range(12)]


def _same(rank: int) -> Cells:
    return _SAMES[rank]


def _is_same(value: Value) -> bool:
    return all(part.size == 1 and part.flat[0] == SAME for part in parts(value)) or all(
        bool((part == SAME).all()) for part in parts(value)
    )


def _text(value: Value) -> str:
    found = dict.fromkeys(int(f) for part in parts(value) for f in part.reshape(-1))
    return " and ".join(text(fact) for fact in found)

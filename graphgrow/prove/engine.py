"""The prover: facts flow forward through the graph, demands backward, and constraints are dropped while it still holds.

`Prover(axes, grown)` asks: if these atoms take these sizes, the old blocks of every parameter stay, and the new blocks
hold what is assigned to them, are all outputs the same? If so, the run is a proof for every value of the ANY blocks.
Every step costs time linear in the graph: relaxing one block stops at the first cell whose loss would reach an output.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom, Axes
from graphgrow.graph import Node, Ref, TensorType
from graphgrow.prove.cells import ANY, SAME, ZERO, Cells, Layout, text
from graphgrow.prove.rows import ROWS, Context, Value, plain
from graphgrow.sizes import Dim

Place = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """One new block of a parameter: its cell, and the dimensions that make it new."""

    parameter: str
    cell: Place
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Derivation:
    """The outcome: whether every output is the same, and for which assignment of the new blocks.

    `needed` gives, for every block that must be zero, the operator that needs it. `steps` counts the nodes that hold
    new units."""

    holds: bool
    why: str
    assignment: Mapping[Block, int]
    needed: Mapping[Block, str]
    steps: int


class Prover:
    """Facts about one graph under one growth: create it once, then `derive`."""

    def __init__(self, axes: Axes, grown: Mapping[Atom, Dim]) -> None:
        self.axes, self.graph = axes, axes.graph
        self.layout = Layout(grown)
        self.values: dict[str, Value] = {}
        self.context = Context(axes, self.layout, self.values)
        self.order = {node.name: index for index, node in enumerate(self.graph.nodes)}
        self.touched = {node.name for node in self.graph.nodes if self._touches(node)}
        self.outputs = frozenset(self.graph.output_names)

    def _touches(self, node: Node) -> bool:
        shapes = self.axes.several.get(node.name, (self.axes.terms.get(node.name, ()),))
        return any(self.layout.touches(term) for shape in shapes for term in shape)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The new blocks of all parameters, in the order in which the graph first uses the parameters."""
        found: list[tuple[int, Block]] = []
        for name, node in self.graph.parameters.items():
            if node.name not in self.touched:
                continue
            terms = self.axes.terms[node.name]
            first = min((self.order[user.name] for user in self.graph.users[node.name]), default=0)
            for cell in np.ndindex(self.layout.shape(terms)):
                dims = tuple(d for d, term in enumerate(terms) if not self.layout.old(term)[cell[d]])
                if dims:
                    found.append((first, Block(name, cell, dims)))
        return tuple(block for _, block in sorted(found, key=lambda item: item[0]))

    @cached_property
    def positive(self) -> frozenset[str]:
        """Buffers that must be positive for the operator that reads them to be defined: variances."""
        nodes = {
            str(node.args[4].name)
            for node in self.graph.nodes
            if ops.kind(node.op) == "batch_norm" and isinstance(node.args[4], Ref)
        }
        return frozenset(name for name, node in self.graph.parameters.items() if node.name in nodes)

    def derive(self, start: Mapping[Block, int] | None = None) -> Derivation:
        """A minimal set of blocks that must be zero: those of `start` (default: all) are, then each is set free if the
        proof survives."""
        if start is None:
            start = {block: ANY if block.parameter in self.positive else ZERO for block in self.blocks}
        for atom in self.layout.grown:
            if atom in self.axes.frozen:
                return Derivation(False, f"a frozen axis: {self.axes.frozen[atom][0]}", start, {}, len(self.touched))
        self.forward(start)
        failure = self.failure()
        if failure:
            return Derivation(False, failure, start, {}, len(self.touched))
        fatal = self._fatal()
        assignment, needed = dict(start), dict[Block, str]()
        for block in self.blocks:
            if assignment.get(block) == ZERO:
                reason = self._relax(block, fatal)
                if reason is None:
                    assignment[block] = ANY
                else:
                    needed[block] = reason
        return Derivation(True, self._summary(), assignment, needed, len(self.touched))

    def obstacles(self) -> dict[Atom, str]:
        """The grown axes that keep the proof from going through even with all new blocks zero, each with the place.

        One walk: where old values are lost first, the axes that the operator reads are noted, and the walk goes on as
        if they had not been."""
        found: dict[Atom, str] = {}
        self.forward({block: ANY if block.parameter in self.positive else ZERO for block in self.blocks}, found)
        for name in self.outputs & self.touched:
            for atom in self._grown_in(name):
                found.setdefault(atom, f"it is seen in the output {name}")
        for name in self._grown_inputs():
            for atom in self._grown_in(name):
                found.setdefault(atom, f"it is seen in the input {name}")
        return found

    def _grown_inputs(self) -> list[str]:
        return [node.name for node in self.graph.inputs if node.name in self.touched]

    def _grown_in(self, *names: str) -> list[Atom]:
        shapes = [shape for name in names for shape in self.axes.several.get(name, (self.axes.terms.get(name, ()),))]
        return [atom for shape in shapes for term in shape for atom in term.atoms if atom in self.layout.grown]

    def _heal(self, node: Node, found: dict[Atom, str], scaled_by: dict[str, set[Atom]]) -> None:
        """Note which axes made `node` lose old values, and give them back. `scaled_by` remembers, for values that are
        a multiple of the old ones, which axes made them so."""
        if self._old_facts(node.name) == {SAME}:
            return
        blamed = set(self._grown_in(*node.operands())).union(*(scaled_by.get(name, ()) for name in node.operands()))
        scaled_by[node.name] = blamed
        if not self._lost(node.name):
            return
        where = f"{node.op} ({node.source or node.name}) mixes its units into old values"
        for atom in scaled_by.get(node.name, ()):
            found.setdefault(atom, where)
        shapes = self.axes.several.get(node.name, (self.axes.terms.get(node.name, ()),))
        value = self.values[node.name]
        healed = tuple(
            np.where(self.layout.is_old(terms), SAME, part).astype(np.int16)
            for part, terms in zip(_parts(value), shapes, strict=True)
        )
        self.values[node.name] = healed if isinstance(value, tuple) else healed[0]

    def _summary(self) -> str:
        return f"every output is the same; {len(self.touched)} of {len(self.graph.nodes)} nodes hold new units"

    def forward(self, assignment: Mapping[Block, int], obstacles: dict[Atom, str] | None = None) -> None:
        """Facts of every node for the facts of the new blocks. With `obstacles`, losses are noted there and healed."""
        self.values.clear()
        scaled_by: dict[str, set[Atom]] = {}
        given: dict[str, list[tuple[Place, int]]] = {}
        for block, fact in assignment.items():
            given.setdefault(block.parameter, []).append((block.cell, fact))
        for node in self.graph.nodes:
            if node.op == "parameter" and node.name in self.touched:
                cells = np.full(self.layout.shape(self.axes.terms[node.name]), SAME, dtype=np.int16)
                cells[~self.layout.is_old(self.axes.terms[node.name])] = ANY
                for cell, fact in given.get(str(node.args[0]), []):
                    cells[cell] = fact
                self.values[node.name] = cells
            else:
                self.values[node.name] = self.evaluate(node)
                if obstacles is not None:
                    self._heal(node, obstacles, scaled_by)

    def evaluate(self, node: Node) -> Value:
        """The facts of one node from those of its operands."""
        if node.op in ("input", "parameter"):
            if node.name in self.touched:
                flags = self.layout.is_old(self.axes.terms[node.name])
                return np.where(flags, SAME, ANY).astype(np.int16)
            return _same(len(node.shape))
        if not isinstance(node.type, TensorType | tuple):
            return _same(0)
        names = {node.name, *node.operands()}
        if not names & self.touched and all(_is_same(self.values[name]) for name in node.operands()):
            if isinstance(node.type, tuple):
                return tuple(_same(len(shape)) for shape in self.axes.several[node.name])
            return _same(len(node.shape))
        return ROWS.get(ops.kind(node.op), plain)(self.context, node)

    def failure(self) -> str:
        """Why the proof does not go through: the first place where an old value is lost. Empty when it does."""
        for name in self._grown_inputs():
            return f"the axis is seen in the input {name}"
        for name in self.graph.output_names:
            value = self.values[name]
            if not _is_same(value):
                return self._explain(name)
        return ""

    def _explain(self, output: str) -> str:
        if output in self.touched:
            return f"the axis is seen in the output {output}"
        place = output
        while True:
            node = self.graph[place]
            lost = [n for n in node.operands() if self._lost(n)]
            if not lost:
                break
            place = min(lost, key=lambda n: self.order[n])
        where = f" ({node.source})" if node.source else f" ({node.name})"
        over = [str(name) for name in node.operands() if name in self.touched]
        facts = ", ".join(f"{name}: {_text(self.values[name])}" for name in over[:3])
        return f"{node.op}{where} mixes new units into old values; it reads {facts or 'what changed before'}"

    def _old_facts(self, name: str) -> set[int]:
        """What the old cells of a node hold."""
        value = self.values[name]
        if _is_same(value):
            return {SAME}
        shapes = self.axes.several.get(name, (self.axes.terms.get(name, ()),))
        pairs = zip(_parts(value), shapes, strict=True)
        return {int(fact) for part, terms in pairs for fact in part[self.layout.is_old(terms)]}

    def _lost(self, name: str) -> bool:
        """Whether an old cell of a node is neither the same nor a multiple."""
        return any(fact < SAME for fact in self._old_facts(name))

    def _fatal(self) -> dict[str, list[np.ndarray]]:
        """For every node the cells whose loss alone would reach an output. Walks the graph once, backward."""
        fatal: dict[str, list[np.ndarray]] = {}
        for node in reversed(self.graph.nodes):
            value = self.values[node.name]
            parts = value if isinstance(value, tuple) else (value,)
            marks = [np.full(part.shape, node.name in self.outputs) for part in parts]
            fatal[node.name] = marks
            if node.name in self.outputs:
                continue
            users = self.graph.users[node.name]
            for part, (facts, mark) in enumerate(zip(parts, marks, strict=True)):
                for cell in np.ndindex(facts.shape):
                    if facts[cell] != ANY:
                        mark[cell] = self._reaches(node.name, part, cell, users, fatal)
        return fatal

    def _reaches(
        self, name: str, part: int, cell: Place, users: Sequence[Node], fatal: Mapping[str, list[np.ndarray]]
    ) -> bool:
        before = self.values[name]
        changed = [np.array(p) for p in (before if isinstance(before, tuple) else (before,))]
        changed[part][cell] = ANY
        self.values[name] = tuple(changed) if isinstance(before, tuple) else changed[0]
        try:
            return any(self._spoils(user, fatal) for user in users)
        finally:
            self.values[name] = before

    def _spoils(self, user: Node, fatal: Mapping[str, list[np.ndarray]]) -> bool:
        """Whether evaluating `user` again loses a cell whose loss is fatal."""
        now, before = self.evaluate(user), self.values[user.name]
        pairs = zip(_parts(now), _parts(before), fatal[user.name], strict=True)
        return any(bool(((a != b) & mark).any()) for a, b, mark in pairs)

    def _relax(self, block: Block, fatal: Mapping[str, list[np.ndarray]]) -> str | None:
        """Set one block free and carry the change on. If something fatal is lost, undo it and name the operator that
        first loses an old value."""
        node = self.graph.parameters[block.parameter]
        undo: dict[str, Value] = {node.name: self.values[node.name]}
        cells = np.array(self.values[node.name])
        cells[block.cell] = ANY
        self.values[node.name] = cells
        doomed = False
        waiting = [self.order[user.name] for user in self.graph.users[node.name]]
        heapq.heapify(waiting)
        while waiting:
            index = heapq.heappop(waiting)
            if waiting and waiting[0] == index:
                continue
            user = self.graph.nodes[index]
            now, before = self.evaluate(user), self.values[user.name]
            if all(np.array_equal(a, b) for a, b in zip(_parts(now), _parts(before), strict=True)):
                continue
            undo.setdefault(user.name, before)
            self.values[user.name] = now
            pairs = zip(_parts(now), _parts(before), fatal[user.name], strict=True)
            doomed = doomed or any(bool(((a != b) & mark).any()) for a, b, mark in pairs)
            if user.name in self.outputs or (doomed and self._lost(user.name)):
                self.values.update(undo)
                return f"{user.op} ({user.source or user.name})"
            for following in self.graph.users[user.name]:
                heapq.heappush(waiting, self.order[following.name])
        return None


def _parts(value: Value) -> tuple[Cells, ...]:
    return value if isinstance(value, tuple) else (value,)


_SAMES = [np.full((1,) * rank, SAME, dtype=np.int16) for rank in range(12)]


def _same(rank: int) -> Cells:
    return _SAMES[rank]


def _is_same(value: Value) -> bool:
    return all(part.size == 1 and part.flat[0] == SAME for part in _parts(value)) or all(
        bool((part == SAME).all()) for part in _parts(value)
    )


def _text(value: Value) -> str:
    found = dict.fromkeys(int(f) for part in _parts(value) for f in part.reshape(-1))
    return " and ".join(text(fact) for fact in found)

"""Which part each parameter has when axes that are widths scale, read from the graph: no base model, no names.

A weight of a contraction is an *input* weight when it sums over no width, an *output* weight when it sums over widths
and what it makes is seen in an output of the program and has none, else a *hidden* one. A table that is looked up is an
input weight, everything else a *vector*. A table that is a contraction's weight too (tied) is an output weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from graphgrow import ops, sizes
from graphgrow.axes import Atom, Term
from graphgrow.axes.contractions import operands
from graphgrow.axes.names import from_parameters
from graphgrow.errors import Refusal
from graphgrow.graph import Graph, Node, Ref
from graphgrow.program import Program
from graphgrow.rewrite.masks import densities, masks
from graphgrow.sizes import number

Part = Literal["input", "hidden", "output", "vector"]


@dataclass(frozen=True)
class Weight:
    """A parameter: its part, by how much its fan-in and the width it writes to exceed the base model's, its density
    over that of the base model. `looked_up`: it is a table that an index picks from. `uses`: the operators that sum
    over a width with it."""

    part: Part
    fan_in: int = 1
    base_fan_in: int = 1
    width: float = 1.0
    density: float = 1.0
    looked_up: bool = False
    uses: tuple[str, ...] = ()

    @property
    def multiplier(self) -> float:
        """Its width multiplier m."""
        return self.fan_in / self.base_fan_in

    @property
    def per_neuron(self) -> float:
        """By how much more weights a unit sums over than in the base model: width times density multiplier."""
        return self.multiplier * self.density


@dataclass(frozen=True)
class Attention:
    """One place where queries meet keys: the operator, the axes of the keys, their size now and at the base."""

    node: str
    keys: tuple[Atom, ...]
    size: int
    base: int


@dataclass(frozen=True, eq=False)
class Widths:
    """The reading of one program, for the base sizes of the axes that are widths and the base density of weights."""

    program: Program
    base: Mapping[Atom, int]
    base_density: float = 1.0

    @cached_property
    def masks(self) -> Mapping[str, str]:
        """For every masked parameter its mask."""
        return masks(self.program)

    def density(self, name: str) -> float:
        """The part of a parameter that its mask lets through, over the base density; 1 without a mask."""
        if name not in self.masks:
            return 1.0
        kept = self._densities.get(name)
        if kept is None:
            raise Refusal(found="a mask without values", where=name, fix="trace the model with its weights")
        if not kept:
            raise Refusal(found="a mask that lets nothing through", where=name, fix="use a larger density")
        return kept / self.base_density

    @cached_property
    def _densities(self) -> Mapping[str, float]:
        return densities(self.program)

    def grown(self, terms: Sequence[Term]) -> tuple[int, int]:
        """The size of dimensions now and at the base sizes."""
        now, base = sizes.total(term.size for term in terms), sizes.total(term.resized(self.base) for term in terms)
        return number(now), number(base)

    def wide(self, terms: Sequence[Term]) -> bool:
        """Whether a width is among these dimensions."""
        return any(atom in self.base for term in terms for atom in term.atoms)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every parameter that learns. Raises Refusal where a base size is missing, or one weight has two parts."""
        found = {name: self._vector(name) for name in self._learned()}
        for name, table in self._tables():
            found[name] = table
        for name, weight in self._contracted():
            found[name] = _joined(name, found[name], weight)
        return found

    def _learned(self) -> Iterator[str]:
        for name, kind in self.program.kinds.items():
            if kind.role == "parameter" and self.program.tensors[name].is_floating_point():
                yield name

    def _vector(self, name: str) -> Weight:
        return Weight("vector", width=self._ratio(self.program.axes.parameters.get(name, ())))

    def _ratio(self, terms: Sequence[Term]) -> float:
        """By how much the widths among these dimensions exceed the base model's."""
        now, base = self.grown([term for term in terms if self.wide([term])])
        return now / base

    def _tables(self) -> Iterator[tuple[str, Weight]]:
        axes = self.program.axes
        for lookup, _ in axes.lookups:
            for name in self._of(next(lookup.node.operands())):
                if (
                    ops.kind(lookup.node.op) in ("embedding", "index", "index_select")
                    and len(axes.parameters[name]) == 2
                ):
                    yield name, Weight("input", width=self._ratio(axes.parameters[name][1:]), looked_up=True)

    def _of(self, node: str) -> list[str]:
        """The learned parameters that a node's value is made of, if it is made of nothing else."""
        return [name for name in self.made.get(node, ()) if name in self._names]

    @cached_property
    def made(self) -> Mapping[str, tuple[str, ...]]:
        """The nodes that are computed from parameters alone."""
        return from_parameters(self.program.graph)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._learned())

    def _contracted(self) -> Iterator[tuple[str, Weight]]:
        axes = self.program.axes
        shown = {atom for name in axes.graph.output_names for term in axes.terms.get(name, ()) for atom in term.atoms}
        for contraction, shared, summed, free in axes.contractions:
            for index, operand in enumerate(contraction.operands):
                made = [*shared, *(free[index] if index < len(free) else ())]
                for name in self._of(operand):
                    own = {atom for term in axes.parameters[name] for atom in term.atoms}
                    kernel = ops.kind(contraction.node.op) == "convolution"
                    if not (kernel or own & {atom for term in summed for atom in term.atoms}):
                        continue  # a gain on the way to a weight
                    atoms = [atom for term in made for atom in term.atoms]
                    seen = not atoms or any(atom in shown for atom in atoms)
                    yield name, self._weight(name, contraction.node, summed, made, seen)

    def _weight(self, name: str, node: Node, summed: Sequence[Term], made: Sequence[Term], seen: bool) -> Weight:
        fan_in, base = self.grown(summed)
        part: Part = "hidden"
        if not self.wide(summed):
            self._refuse_unnamed(summed, made)
            part = "input"
        elif seen and not self.wide(made):
            part = "output"
        return Weight(part, fan_in, base, self._ratio(made), self.density(name), uses=(node.name,))

    def _refuse_unnamed(self, summed: Sequence[Term], made: Sequence[Term]) -> None:
        """An inner axis without a base size between weights of widths: nobody knows whether it scales."""
        inner = {named.atom: named.name for named in self.program.axes.named if named.inner and not named.frozen}
        unnamed = [inner[atom] for term in summed for atom in term.atoms if atom in inner]
        if unnamed and self.wide(made):
            size = next(str(atom.size) for term in summed for atom in term.atoms if atom in inner)
            role = unnamed[0].partition("@")[0]
            raise Refusal(
                found=f"no base size for {unnamed[0]}, which weights that write to a width sum over",
                where=unnamed[0],
                fix=f"name it in `base` too: {role}=SIZE in the base model, {role}={size} if it does not scale",
            )

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Where two activations are multiplied and summed over axes that have base sizes, before a softmax."""
        axes, graph, found = self.program.axes, self.program.graph, list[Attention]()
        for contraction, _, summed, _ in axes.contractions:
            keys = tuple(atom for term in summed for atom in term.atoms)
            both = len(contraction.operands) == 2 and not any(name in self.made for name in contraction.operands)
            scores = ops.kind(contraction.node.op) == "attention" or _before_softmax(self.program, contraction.node)
            if both and scores and self.wide(summed) and contraction.node.name not in contraction.operands:
                now, base = self.grown(summed)
                found.append(Attention(graph[contraction.node.name].name, keys, now, base))
        return tuple(found)

    @cached_property
    def outputs(self) -> Mapping[str, float]:
        """The operators that make outputs of widths, each with what it is to be divided by."""
        return {use: w.per_neuron for w in self.weights.values() if w.part == "output" for use in w.uses}

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """Where what input weights write is complete, before the first operator that is not a sum with more of it or
        moves it: after the sum of embeddings."""
        graph, axes = self.program.graph, self.program.axes
        read = {term for _, _, summed, _ in axes.contractions for term in summed if self.wide([term])}
        inputs = {name for name, weight in self.weights.items() if weight.part == "input" or weight.looked_up}
        begun = {
            node.name
            for node in graph.nodes
            if (ops.kind(node.op) == "embedding" or node.name in {c.node.name for c, *_ in axes.contractions})
            and any(name in inputs for operand in node.operands() for name in self._of(operand))
            and not (ops.kind(node.op) != "embedding" and self.outputs.get(node.name))
            and any(term in read for term in axes.terms[node.name])
        }
        constant = _constant(graph)
        for node in graph.nodes:
            if ops.kind(node.op) in _MOVES or node.op in _SUMS:
                mine = [name for name in node.operands() if name in begun]
                whole = all(name in begun or name in constant for name in node.operands())
                if mine and whole and all(len(graph.users[name]) == 1 for name in mine):
                    begun.add(node.name)
        last = (node.name for node in graph.nodes if node.name in begun)
        return tuple(name for name in last if not any(user.name in begun for user in graph.users[name]))


def _constant(graph: Graph) -> set[str]:
    """The nodes that depend on no input."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "input" and all(name in found for name in node.operands()):
            found.add(node.name)
    return found


_MOVES = {"reshape", "permute", "unsqueeze", "expand", "cat"}
_SUMS = {"aten.add.Tensor", "aten.to.dtype", "aten.dropout.default", "aten.clone.default"}


def _joined(name: str, known: Weight, more: Weight) -> Weight:
    """What a parameter is that has several uses."""
    if known.part == "vector" or (known.looked_up and not known.uses):
        return Weight(more.part, more.fan_in, more.base_fan_in, more.width, more.density, known.looked_up, more.uses)
    if (known.part, known.per_neuron) != (more.part, more.per_neuron):
        raise Refusal(
            found=f"a weight of two parts, {known.part} over {known.fan_in} and {more.part} over {more.fan_in} units",
            where=name,
            fix="give base sizes by which it is one of them, or untie it",
        )
    return Weight(
        known.part, known.fan_in, known.base_fan_in, known.width, known.density, known.looked_up,
        (*known.uses, *more.uses),
    )  # fmt: skip


def _before_softmax(program: Program, node: Node) -> bool:
    """Whether what a node makes goes into a softmax, with only pointwise operators and moves on the way."""
    graph, waiting, seen = program.graph, [node.name], set[str]()
    while waiting:
        for user in graph.users[waiting.pop()]:
            if ops.kind(user.op) == "along":
                return True
            if ops.kind(user.op) in ("pointwise", "reshape", "expand", "unsqueeze") and user.name not in seen:
                seen.add(user.name)
                waiting.append(user.name)
    return False


def data_operand(node: Node, made: Mapping[str, tuple[str, ...]]) -> str:
    """What a contraction with a weight reads beside it."""
    factors = node.args[:1] if ops.kind(node.op) == "convolution" else operands(node)[0]
    return next(factor.name for factor in factors if isinstance(factor, Ref) and factor.name not in made)

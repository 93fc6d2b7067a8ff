"""resize: change the number of units of axes everywhere they occur, in parameters, buffers, literals and types."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.axes import Atom, Axes, Term
from graphgrow.errors import Refusal
from graphgrow.graph import Argument, Graph, Node, TensorType
from graphgrow.lazy import Load, made
from graphgrow.program import Program
from graphgrow.prove import ANY, POSITIVE, SAME, Block, Number, free, kind, multiple, scaled
from graphgrow.rewrite.blocks import Fill, Place, derived, fill_normal, grown, view_cells
from graphgrow.rewrite.masks import refilled
from graphgrow.rewrite.units import Positions, Resizing
from graphgrow.sizes import Dim, add

Init = Literal["scaled", "copy", "zero", "mup"]
APART = 0.1


@dataclass(frozen=True)
class Fills:
    """What blocks hold (facts, see `prove`; free where not listed), and how free blocks start: `scaled` like the old
    weights, `copy` of old units with noise, `zero`, or `mup`: scaled, times what muP makes of larger fan-ins
    (`factors`, by parameter). `numbers` are new values of numbers in the graph."""

    blocks: Mapping[Block, int] = field(default_factory=dict[Block, int])
    init: Init = "scaled"
    seed: int = 0
    noise: float = 0.01  # of `copy`, relative to the standard deviation of the old weights
    apart: float = APART  # noise that cancels, relative to the standard deviation of even shares
    numbers: Mapping[Number, float] = field(default_factory=dict[Number, float])
    factors: Mapping[str, float] = field(default_factory=dict[str, float])


def resize_graph(axes: Axes, sizes: Mapping[Atom, int], numbers: Mapping[Number, float] | None = None) -> Graph:
    """The graph with every literal and type that holds a resized axis rewritten, and other numbers as given."""
    graph = axes.graph
    changes: dict[str, list[tuple[tuple[int | str, ...], Dim | float]]] = {}
    for (name, path), value in (numbers or {}).items():
        changes.setdefault(name, []).append((path, value))
    for literal, terms in axes.literals:
        if any(atom in sizes for term in terms for atom in term.atoms):
            total = _total(terms, sizes, literal.offset)
            changes.setdefault(literal.node, []).append((literal.path, total))
    nodes: list[Node] = []
    for node in graph.nodes:
        changed = _retyped(axes, node, sizes)
        for path, size in changes.get(node.name, ()):
            changed = _with(changed, path, size)
        nodes.append(changed)
    return Graph(tuple(nodes), graph.outputs, graph.symbols)


def literal(program: Program, place: Number) -> float:
    """A number in the arguments of a node."""
    name, (first, *rest) = place
    node = program.graph[name]
    value: Argument = node.args[int(rest[0])] if first == "args" else dict(node.kwargs).get(str(first))
    if value is None and ops.kind(node.op) == "layer_norm":
        return torch.finfo(getattr(torch, program.dtype)).eps  # what rms_norm takes then
    assert isinstance(value, int | float)
    return float(value)


def _total(terms: Sequence[Term], sizes: Mapping[Atom, int], offset: int) -> Dim:
    return add(offset, *(term.resized(sizes) for term in terms))


def _retyped(axes: Axes, node: Node, sizes: Mapping[Atom, int]) -> Node:
    several = axes.several.get(node.name)
    if several is not None and isinstance(node.type, tuple):
        types = [_type(kind, terms, sizes) for kind, terms in zip(node.type, several, strict=True)]
        return replace(node, type=tuple(types)) if tuple(types) != node.type else node
    terms = axes.terms.get(node.name, ())
    changed = _type(node.type, terms, sizes)
    return replace(node, type=changed) if changed is not node.type else node


def _type(kind: object, terms: Sequence[Term], sizes: Mapping[Atom, int]) -> TensorType:
    assert isinstance(kind, TensorType) or kind is None
    if not isinstance(kind, TensorType) or not any(atom in sizes for term in terms for atom in term.atoms):
        return kind  # type: ignore[return-value]
    return replace(kind, shape=tuple(term.resized(sizes) for term in terms))


def _with(node: Node, path: Sequence[int | str], size: Dim | float) -> Node:
    """The node with the argument at `path` exchanged."""
    if path[0] == "args":
        return replace(node, args=_put(node.args, path[1:], size))
    given = dict(node.kwargs)
    name = str(path[0])
    given[name] = _put_one(given.get(name), path[1:], size)
    return replace(node, kwargs=tuple(given.items()))


def _put(items: tuple[Argument, ...], path: Sequence[int | str], size: Dim | float) -> tuple[Argument, ...]:
    return tuple(_put_one(item, path[1:], size) if index == path[0] else item for index, item in enumerate(items))


def _put_one(item: Argument, path: Sequence[int | str], size: Dim | float) -> Argument:
    if path:
        assert isinstance(item, tuple)
        return _put(item, path, size)
    return size


def resize(program: Program, resizing: Resizing, fills: Fills) -> Program:
    """The program with axes resized. Old units keep their values; tensors without a resized axis are shared.

    Raises Refusal for an axis that is frozen, with the reason.
    """
    axes = program.axes
    for atom in resizing.sizes:
        refuse_frozen(axes, atom)
    graph = resize_graph(axes, resizing.sizes, fills.numbers)
    patterns = {name: kind.pattern for name, kind in program.kinds.items() if kind.pattern}
    change = Resize(axes, resizing, fills, patterns)
    return program.replace(graph=graph, tensors=made(program.tensors, program.tensors, change))


@dataclass(frozen=True)
class Resize:
    """What a change of sizes does to each tensor, by its name; `patterns` are what masks keep to."""

    axes: Axes
    resizing: Resizing
    fills: Fills
    patterns: Mapping[str, str] = field(default_factory=dict[str, str])

    def __call__(self, name: str, load: Load) -> Tensor:
        terms, known = self.axes.parameters.get(name, ()), self._facts.get(name, {})
        old = load(name)
        if not (self.resizing.touches(terms) or any(fact != SAME for fact in known.values())):
            return old
        new = _resized(old, terms, self.resizing, known, _Maker(name, old, terms, self._copies, self.fills, known))
        return self._chosen(name, new, old, known) if name in self.patterns and not new.is_meta else new

    def _chosen(self, name: str, new: Tensor, old: Tensor, known: Mapping[Place, int]) -> Tensor:
        """A mask with its free blocks filled."""
        undecided = torch.zeros_like(new)
        for cell, dims, views in view_cells(undecided, self.axes.parameters[name], self.resizing, self.resizing.layout):
            for view, _ in views if dims and free(known.get(cell, ANY)) else ():
                view.fill_(True)
        return refilled(name, new, old, self.patterns[name], undecided, self.fills.seed)

    @cached_property
    def _facts(self) -> Mapping[str, Mapping[Place, int]]:
        found: dict[str, dict[Place, int]] = {}
        for block, fact in self.fills.blocks.items():
            found.setdefault(block.parameter, {})[block.cell] = fact
        return found

    @cached_property
    def _copies(self) -> Resizing:
        """With the units that `copy` copies."""
        copies = self.fills.init == "copy"
        return replace(self.resizing, picked=_picks(self.resizing, self.fills.seed)) if copies else self.resizing


def refuse_frozen(axes: Axes, atom: Atom) -> None:
    """Raise Refusal for an axis that can't change its size."""
    if atom in axes.frozen:
        name = next((named.name for named in axes.named if named.atom == atom), str(atom))
        raise Refusal(
            found=f"axis {name!r} is frozen: {axes.frozen[atom][0]}",
            where="resize",
            fix="see `graphgrow axes` for others",
        )


def _picks(resizing: Resizing, seed: int) -> Mapping[Atom, Positions]:
    """For `copy`: the old unit that each new unit of an atom copies, the same at all its sites."""
    found: dict[Atom, Positions] = {}
    for atom, size in resizing.sizes.items():
        old = int(str(atom.size))
        if size > old:
            generator = np.random.default_rng((seed, atom.number))
            found[atom] = np.concatenate([np.arange(old), generator.integers(0, old, size - old)])
    return found


def _resized(old: Tensor, terms: Sequence[Term], resizing: Resizing, facts: Mapping[Place, int], fill: Fill) -> Tensor:
    shape = [resizing.number(term) for term in terms]
    if old.is_meta:
        return torch.empty(shape, dtype=old.dtype, device="meta", requires_grad=old.requires_grad)
    with torch.no_grad():
        new = grown(old, torch.empty(shape, dtype=old.dtype), terms, resizing, facts, fill)
    return new.requires_grad_(old.requires_grad)


class _Maker:
    """Fills free blocks of one parameter."""

    def __init__(
        self,
        name: str,
        old: Tensor,
        terms: Sequence[Term],
        resizing: Resizing,
        fills: Fills,
        facts: Mapping[Place, int],
    ) -> None:
        self.old, self.terms, self.resizing, self.fills = old, terms, resizing, fills
        self.generator = torch.Generator().manual_seed(zlib.crc32(f"{fills.seed}:{name}".encode()))
        first = facts.get((0,) * len(terms), SAME)
        self.now = multiple(first if kind(first) != "share" else SAME)  # what old units are multiplied by
        self.factor = fills.factors.get(name, 1.0)

    @cached_property
    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of what the old units hold now, of an evenly spread sample."""
        old = _real(self.old.detach())
        flat = old.reshape(-1) if old.is_contiguous() else old.flatten()
        sample = flat[:: max(1, flat.numel() // 1_000_000)].double() * self.now.scale + self.now.shift
        return float(sample.mean()), float(sample.std(unbiased=False))

    def __call__(self, view: Tensor, at: Sequence[slice], fact: int) -> None:
        if kind(fact) == "share":
            mean, deviation = self.statistics
            view.normal_(0.0, self.fills.apart * (deviation or abs(mean)), generator=self.generator)
            return
        view = _real(view) if self.fills.init != "copy" else view
        if not view.is_floating_point() or (fact == ANY and self.fills.init == "zero"):
            view.zero_()
            return
        mean, deviation = self.statistics
        if fact == POSITIVE and mean > deviation:
            view.fill_(mean)
        elif fact == POSITIVE:
            fill_normal(view, 0.0, deviation or 1.0, self.generator)
            view.abs_().add_(deviation or 1.0)
        elif self.fills.init == "copy":
            view.copy_(derived(self.old, self.terms, self.resizing, scaled(self.now.scale), at, ()))
            noise = torch.randn(view.shape, generator=self.generator, dtype=view.dtype)
            view.add_(noise, alpha=self.fills.noise * deviation)
        else:
            fill_normal(view, mean * self.factor, deviation * self.factor, self.generator)


def _real(values: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones."""
    return torch.view_as_real(values) if values.is_complex() else values

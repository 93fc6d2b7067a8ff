"""More groups of attention heads: each head of keys and values is repeated for a part of the query heads that use it.

A head of keys and values (an axis of n units) is used by r query heads. With c times as many, unit i becomes the units
i*c ... i*c + c - 1, all alike, and each is used by r/c query heads. Where n and r stand side by side (n*r heads)
nothing moves at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.axes import Atom, Axes, Product, Sum, Term
from graphgrow.axes.term import UNIT
from graphgrow.errors import Refusal
from graphgrow.graph import Graph, Node, Ref
from graphgrow.lazy import Load, made
from graphgrow.program import Program
from graphgrow.rewrite.resize import refuse_frozen, resize_graph
from graphgrow.rewrite.units import Positions, number

Groups = Mapping[Atom, tuple[Atom, int]]  # heads of keys -> query heads of each, how many heads are made of one


def groups(axes: Axes) -> dict[Atom, Atom]:
    """The axes of heads of keys and values that several query heads share, each with that of these query heads: what is
    repeated along it, or meets it in attention."""
    found: dict[Atom, Atom] = {}
    for node in axes.graph.nodes:
        for keys, queries in _shared(axes, node):
            if isinstance(keys.size, int) and isinstance(queries.size, int):
                found.setdefault(keys, queries)
    return found


def _shared(axes: Axes, node: Node) -> Iterator[tuple[Atom, Atom]]:
    kind, first = ops.kind(node.op), next(iter(node.operands()), "")
    if kind == "expand" and axes.terms.get(first):
        before, after = axes.terms[first], axes.terms[node.name]
        for left, old, new in zip(after[-len(before) :], before[1:], after[-len(before) + 1 :], strict=False):
            if isinstance(left, Atom) and isinstance(new, Atom) and old.size == 1:
                yield left, new
    elif kind == "repeat_interleave" and axes.terms.get(first):
        for old, new in zip(axes.terms[first], axes.terms[node.name], strict=True):
            if isinstance(old, Atom) and isinstance(new, Product) and new.parts[:1] == (old,):
                yield from ((old, part) for part in new.parts[1:2] if isinstance(part, Atom))
    elif kind == "attention":
        query, key = (axes.terms[arg.name] for arg in node.args[:2] if isinstance(arg, Ref))
        yield from (found for pair in zip(query[-3:-2], key[-3:-2], strict=True) for found in _used(*pair))
    elif node.op == "aten.matmul.default":
        left, right = (axes.terms[name][:-2] for name in node.operands())
        for one, two in zip(reversed(left), reversed(right), strict=False):
            yield from (*_used(one, two), *_used(two, one))


def _used(heads: Term, shared: Term) -> Iterator[tuple[Atom, Atom]]:
    """Heads of keys, and the query heads of each, where these meet."""
    parts = heads.parts if isinstance(heads, Product) else ()
    if isinstance(shared, Atom) and parts[:1] == (shared,) and len(parts) == 2 and isinstance(parts[1], Atom):
        yield shared, parts[1]


def regrouped(program: Program, chosen: Groups) -> Program:
    """The program with more heads of keys and values. Raises Refusal where heads stand in another order, or where they
    have to stay as many as they are."""
    axes = program.unit_axes
    for keys, (queries, _) in chosen.items():
        refuse_frozen(axes, keys)
        refuse_frozen(axes, queries)
    graph = regroup_graph(axes, chosen)
    if odd := misfit(graph):
        raise Refusal(
            found=f"{odd.op} ({odd.source or odd.name}) spreads a single head over all query heads",
            where="the attention of the program",
            fix="give every query head keys and values of its own",
        )
    return program.replace(graph=graph, tensors=made(program.tensors, program.tensors, _Regroup(axes, chosen)))


def new_sizes(chosen: Groups) -> dict[Atom, int]:
    """The heads of keys, and the query heads of each, that there are then."""
    found: dict[Atom, int] = {}
    for keys, (queries, copies) in chosen.items():
        found |= {keys: number(keys) * copies, queries: number(queries) // copies}
    return found


def regroup_graph(axes: Axes, chosen: Groups) -> Graph:
    """The graph with more heads of keys. Attention spreads a single head by itself, several only when told to."""
    graph = resize_graph(axes, new_sizes(chosen))
    return Graph(tuple(_grouped(axes.graph, graph, node) for node in graph.nodes), graph.outputs, graph.symbols)


def misfit(graph: Graph) -> Node | None:
    """The first product of matrices whose batches do not go with each other."""
    for node in graph.nodes:
        if node.op == "aten.matmul.default":
            left, right = (graph[name].shape[:-2] for name in node.operands())
            if any(a != b and 1 not in (a, b) for a, b in zip(reversed(left), reversed(right), strict=False)):
                return node
    return None


def _grouped(old: Graph, new: Graph, node: Node) -> Node:
    if ops.kind(node.op) != "attention":
        return node
    key = next(islice(node.operands(), 1, None))
    if old[key].shape[-3:-2] != (1,) or new[key].shape[-3:-2] == (1,):
        return node
    return replace(node, kwargs=tuple({**dict(node.kwargs), "enable_gqa": True}.items()))


@dataclass(frozen=True)
class _Regroup:
    """What repeated heads do to each tensor, by its name."""

    axes: Axes
    chosen: Groups

    def __call__(self, name: str, load: Load) -> Tensor:
        old, terms = load(name), self.axes.parameters.get(name, ())
        if not moved(terms, self.chosen):
            return old
        new = old.detach()
        for dim, term in enumerate(terms):
            places = positions(term, self.chosen)
            if not np.array_equal(places, np.arange(new.shape[dim])):
                new = new.index_select(dim, torch.as_tensor(places).to(new.device))
        return new.requires_grad_(old.requires_grad)


def positions(term: Term, chosen: Groups, part: Mapping[Atom, int] | None = None) -> Positions:
    """For every position of a dimension after regrouping the one that it had before. `part` says which of the heads
    made of one the dimension belongs to, as far as outer dimensions tell.

    Raises Refusal where query heads stand without, or before, the heads of keys that they use."""
    part = part or {}
    queries = dict(chosen.values())
    if not any(atom in chosen or atom in queries for atom in term.atoms):
        return np.arange(number(term))
    if isinstance(term, Atom):
        if term in chosen:
            return np.repeat(np.arange(number(term)), chosen[term][1])
        if term not in part:
            raise Refusal(
                found=f"query heads in another order than their groups: {term}",
                where="the layout of heads",
                fix="this model's groups can't be split",
            )
        size = number(term) // queries[term]
        return part[term] * size + np.arange(size)
    if isinstance(term, Sum):
        starts = np.cumsum([0, *(number(inner) for inner in term.parts)])
        parts = [positions(inner, chosen, part) for inner in term.parts]
        return np.concatenate([places + start for places, start in zip(parts, starts[:-1], strict=True)])
    first, rest = term.parts[0], Product.of(term.parts[1:]) if len(term.parts) > 1 else UNIT
    if isinstance(first, Atom) and first in chosen:
        query, copies = chosen[first]
        inner = [positions(rest, chosen, {**part, query: copy}) for copy in range(copies)]
        blocks = [head * number(rest) + places for head in range(number(first)) for places in inner]
        return np.concatenate(blocks)
    outer, inner_places = positions(first, chosen, part), positions(rest, chosen, part)
    return (outer[:, None] * number(rest) + inner_places[None, :]).reshape(-1)


def moved(terms: tuple[Term, ...], chosen: Groups) -> bool:
    """Whether a tensor with these dimensions changes at all: not where heads of keys stand right before the query heads
    that use them."""
    return any(not _whole(term, chosen) for term in terms)


def _whole(term: Term, chosen: Groups) -> bool:
    queries = {query for query, _ in chosen.values()}
    if isinstance(term, Atom):
        return term not in chosen and term not in queries
    if isinstance(term, Sum):
        return all(_whole(part, chosen) for part in term.parts)
    parts = list(term.parts)
    while parts:
        first = parts.pop(0)
        if isinstance(first, Atom) and first in chosen and parts[:1] == [chosen[first][0]]:
            parts.pop(0)
        elif not _whole(first, chosen):
            return False
    return True

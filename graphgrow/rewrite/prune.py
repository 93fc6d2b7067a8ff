"""Fewer units of axes: those that are kept in their order, all others gone from every tensor and number.

Taking dead units away is a growth read backwards: `scaled_back` finds what that growth had multiplied (gains of norms,
eps, keys) and divides by it, if the units that went hold what the growth needs them to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isclose

import torch
from torch import Tensor

from graphgrow.axes import Atom, Term
from graphgrow.program import Program
from graphgrow.prove import SAME, Assignment, Number, Prover, kind, multiple
from graphgrow.prove.facts import ROUNDING
from graphgrow.prove.propose import STRATEGIES, propose
from graphgrow.rewrite.blocks import view_cells
from graphgrow.rewrite.reading import Reader
from graphgrow.rewrite.resize import Fills, literal, resize, resize_graph
from graphgrow.rewrite.shares import groups
from graphgrow.rewrite.units import Resizing, number

Kept = Mapping[Atom, Sequence[int]]


def reordered(program: Program, kept: Kept) -> Program:
    """The program with the units of axes in another order: those that are kept first. It computes the same, as no
    operator tells the units of an axis apart that is neither frozen nor ordered."""
    order: dict[Atom, Sequence[int]] = {}
    for atom, units in kept.items():
        gone = set(range(number(atom))).difference(units)
        order[atom] = [*units, *sorted(gone)]
    if all(list(units) == list(range(len(units))) for units in order.values()):
        return program
    return resize(program, Resizing({atom: number(atom) for atom in order}, order), Fills())


def pruned(program: Program, kept: Kept) -> Program:
    """The program with the kept units only, all values as they are."""
    return resize(program, Resizing({atom: len(units) for atom, units in kept.items()}, kept), Fills())


def scaled_back(
    small: Program,
    large: Program,
    sizes: Mapping[Atom, int],
    numbers: Mapping[Number, float],
    before: Mapping[str, float],
) -> Program:
    """`small`, which has the first units of `large`, such that `large` is a growth of it that keeps the function: what
    that growth multiplies is divided. `small` itself where there is no such growth.

    `sizes` are those of `large`, `numbers` the factors of numbers that the growth was free to change, `before` numbers
    of nodes as they were, where known: dividing would round them."""
    prover = Prover(small.axes, sizes, small.fixed, extend_outputs=True)
    for strategy in STRATEGIES:
        proposal, why = propose(prover, strategy, numbers)
        if why:
            continue
        found = _divided(small, large, sizes, proposal, before)
        facts = Reader(small.axes, found.tensors, large.tensors, sizes).facts(proposal)
        if isinstance(facts, dict) and prover.derive(Assignment(facts, proposal.numbers)).holds:
            return found
    return small


def _divided(
    small: Program, large: Program, sizes: Mapping[Atom, int], proposal: Assignment, before: Mapping[str, float]
) -> Program:
    facts: dict[str, dict[tuple[int, ...], int]] = {}
    divided = {block.parameter for block, fact in proposal.blocks.items() if not block.dims and fact != SAME}
    for block, fact in proposal.blocks.items():
        if block.parameter in divided:
            facts.setdefault(block.parameter, {})[block.cell] = fact
    tensors, resizing = dict(small.tensors), Resizing(sizes)
    for name, known in facts.items():
        terms = small.axes.parameters[name]
        whole = large.tensors[name].detach().to(torch.float64, copy=True)
        for cell, dims, views in view_cells(whole, terms, resizing, resizing.layout):
            for view, _ in views if not dims and kind(known.get(cell, SAME)) != "share" else ():
                found = multiple(known.get(cell, SAME))
                view.sub_(found.shift).div_(found.scale)
        first = _first(whole, terms, resizing)
        for group in groups(terms, resizing, known):
            if all(resizing.layout.old(term)[place] for term, place in zip(terms, group.head, strict=True)):
                group.total(whole, first)
        tensors[name] = first.to(tensors[name]).requires_grad_(tensors[name].requires_grad)
    values = {place: literal(large, place) / factor for place, factor in proposal.numbers.items()}
    for place, value in values.items():
        known = before.get(place[0], value)
        values[place] = known if isclose(known, value, rel_tol=ROUNDING) else value
    return small.replace(graph=resize_graph(small.axes, {}, values), tensors=tensors)


def _first(large: Tensor, terms: Sequence[Term], resizing: Resizing) -> Tensor:
    """Of a grown tensor the units that it had before."""
    for dim, term in enumerate(terms):
        if resizing.touches([term]):
            large = large.index_select(dim, torch.as_tensor((resizing.source(term) >= 0).nonzero()[0]))
    return large


def seen(program: Program, atom: Atom) -> Iterator[str]:
    """The inputs and outputs that show an axis."""
    names = {**dict.fromkeys(node.name for node in program.graph.inputs), **dict.fromkeys(program.graph.output_names)}
    for name in names:
        if any(atom in term.atoms for term in program.axes.terms.get(name, ())):
            yield name

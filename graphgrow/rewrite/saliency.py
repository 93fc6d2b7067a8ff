"""Saliency: how much the units of an axis matter, one number for each.

By magnitude: the norm of the weights that make a unit times the norm of those that read it, so that a unit with nothing
on one side counts nothing. By activation: the root mean square of what the readers see of it, times the norm of their
weights (the score of Wanda, arXiv 2306.11695, for whole units). By gradient: how much the loss would change, to first
order, without the weights that read it (Molchanov et al., arXiv 1906.10771).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphgrow import ops
from graphgrow.axes import Atom, Term
from graphgrow.axes.contractions import operands
from graphgrow.axes.names import Named
from graphgrow.errors import Refusal
from graphgrow.graph import Ref
from graphgrow.layers import Stack
from graphgrow.program import Program
from graphgrow.rewrite.scores import gradients
from graphgrow.rewrite.units import number, units_of


def magnitude(program: Program, axis: Named) -> Tensor:
    """(units,) in float64. Every parameter counts as much as any other, whatever its scale."""
    sides = [_norms(program, axis, part) for part in ("emits", "contracts")]
    found = [side for side in sides if side is not None] or [_norms(program, axis, "aligns")]
    score = torch.ones(number(axis.atom), dtype=torch.float64)
    for side in found:
        score = score * side if side is not None else score
    return score


def activation(program: Program, axes: Sequence[Named], data: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """(units,) in float64 for each axis, over all batches; the program runs once on each. Raises Refusal for an axis
    that no operator sums over."""
    reads = _summed(program, {axis.atom for axis in axes})
    weights = [_norms(program, axis, "contracts") for axis in axes]
    for axis, norms in zip(axes, weights, strict=True):
        if norms is None or not any(axis.atom in atoms for atoms in reads.values()):
            found = f"no activations that are summed over {axis.name}"
            raise Refusal(found=found, where=axis.name, fix="choose score=magnitude")
    watched = program.replace(graph=replace(program.graph, outputs=tuple(Ref(name) for name in reads)), journal=())
    module = watched.module(share=True).eval()
    squares = {axis.atom: torch.zeros(number(axis.atom), dtype=torch.float64) for axis in axes}
    with torch.no_grad():
        for inputs in data:
            for (name, atoms), value in zip(reads.items(), pytree.tree_leaves(module(**inputs)), strict=True):
                for atom in atoms:
                    squares[atom] += _by_unit(value, program.axes.terms[name], atom)
    return [squares[axis.atom].sqrt() * norms for axis, norms in zip(axes, weights, strict=True) if norms is not None]


def taylor(program: Program, axes: Sequence[Named], data: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """(units,) in float64 for each axis: the size of the sum of gradient times weight over what reads a unit, or, where
    nothing sums over it, over what is made for it. Raises Refusal where the program gives no loss."""
    sites = {axis.atom: _read(axis) for axis in axes}
    names = list(dict.fromkeys(name for found in sites.values() for name in found))
    products = {
        name: gradient * program.tensors[name].detach().double()
        for name, gradient in gradients(program, names, data).items()
    }
    scores: list[Tensor] = []
    for axis in axes:
        total = torch.zeros(number(axis.atom), dtype=torch.float64)
        for name in sites[axis.atom]:
            total += _along(products[name], program.axes.parameters[name], axis.atom)
        scores.append(total.abs())
    return scores


def _read(axis: Named) -> list[str]:
    """The parameters that are summed over an axis, or else all of its own."""
    summed = [site.parameter for site in axis.sites if "contracts" in site.part]
    return list(dict.fromkeys(summed or [site.parameter for site in axis.sites]))


def influence(program: Program, stack: Stack, data: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """By how much each layer turns its stream: the mean of 1 - cos over all positions of all batches."""
    streams = [name for layer in stack.layers for name in (layer.start, layer.end)]
    watched = program.replace(graph=replace(program.graph, outputs=tuple(map(Ref, streams))), journal=())
    module, hidden = watched.module(share=True).eval(), _hidden(program, streams[0])
    total = [0.0] * len(stack.layers)
    with torch.no_grad():
        for inputs in data:
            values = [value.double() for value in pytree.tree_leaves(module(**inputs))]
            for layer, (before, after) in enumerate(zip(values[::2], values[1::2], strict=True)):
                total[layer] += float(1 - torch.cosine_similarity(before, after, dim=hidden).mean())
    return total


def _hidden(program: Program, stream: str) -> int:
    """The last dimension of a stream that is an axis of weights."""
    axes = {axis.atom for axis in program.axes.named}
    terms = program.axes.terms[stream]
    return max((dim for dim, term in enumerate(terms) if axes.intersection(term.atoms)), default=len(terms) - 1)


def _norms(program: Program, axis: Named, part: str) -> Tensor | None:
    """The norms of what parameters hold for each unit, those that emit it, contract or align."""
    total: Tensor | None = None
    for site in axis.sites:
        tensor = program.tensors[site.parameter].detach()
        if part in site.part.split(" and ") and tensor.is_floating_point():
            squares = _by_unit(tensor, program.axes.parameters[site.parameter], axis.atom)
            squares = squares / (squares.mean() or 1.0)
            total = squares if total is None else total + squares
    return None if total is None else total.sqrt()


def _by_unit(value: Tensor, terms: Sequence[Term], atom: Atom) -> Tensor:
    """The sum of squares for each unit, over all else."""
    return _along(value.float().square(), terms, atom)


def _along(value: Tensor, terms: Sequence[Term], atom: Atom) -> Tensor:
    """The sum for each unit, over all else."""
    total = torch.zeros(number(atom), dtype=torch.float64)
    for dim, term in enumerate(terms):
        if atom in term.atoms:
            others = [other for other in range(value.dim()) if other != dim]
            along = (value.sum(others) if others else value).double()
            units = torch.as_tensor(units_of(term, atom))
            total.index_add_(0, units[units >= 0], along[units >= 0])
    return total


def _summed(program: Program, wanted: Set[Atom]) -> dict[str, list[Atom]]:
    """The activations that are summed over axes, each with these axes."""
    terms, found = program.axes.terms, dict[str, list[Atom]]()
    for node in program.graph.nodes:
        kind = ops.kind(node.op)
        if kind not in ("contraction", "convolution"):
            continue
        kept = {atom for term in terms[node.name] for atom in term.atoms}
        for operand in node.args[:1] if kind == "convolution" else operands(node)[0]:
            if isinstance(operand, Ref) and program.graph[operand.name].op != "parameter":
                own = [term for term in terms[operand.name] if isinstance(term.size, int)]
                atoms = [atom for term in own for atom in term.atoms if atom in wanted and atom not in kept]
                if atoms:
                    found[operand.name] = list(dict.fromkeys((*found.get(operand.name, ()), *atoms)))
    return found

"""Resized tensors: what stays of the old one, and each new block by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from graphgrow.axes import Atom, Sum, Term
from graphgrow.errors import Refusal
from graphgrow.prove import ANY, SAME, ZERO, Layout, free, kind, multiple
from graphgrow.rewrite.shares import groups
from graphgrow.rewrite.units import Positions, Resizing, runs, spans

View = tuple[Tensor, list[slice]]
Place = tuple[int, ...]
Fill = Callable[[Tensor, Sequence[slice], int], None]  # values for a free block (its view, where it is, its fact)
_BUFFER = 2**18  # values made at a time: what a core's cache holds


def kept_views(old: Tensor, new: Tensor, resizing: Resizing, terms: Sequence[Term]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of slices (of the old tensor, of the new one) that hold the units that stay, as long as they come."""
    for chosen in product(*(runs(resizing.source(term)) for term in terms)):
        target, origin = new, old
        for dim, (to, start, length) in enumerate(chosen):
            target, origin = target.narrow(dim, to, length), origin.narrow(dim, start, length)
        yield origin, target


def view_cells(
    new: Tensor, terms: Sequence[Term], resizing: Resizing, layout: Layout
) -> Iterator[tuple[Place, tuple[int, ...], list[View]]]:
    """Every cell of a resized tensor: its place, the dimensions in which it is new, its slices."""
    cells = [resizing.cells(layout, term) for term in terms]
    for cell in product(*(range(size) for size in layout.shape(terms))):
        dims = tuple(dim for dim, term in enumerate(terms) if not layout.old(term)[cell[dim]])
        views: list[View] = []
        for chosen in product(*(spans(positions == wanted) for positions, wanted in zip(cells, cell, strict=True))):
            view = new
            for dim, (start, length) in enumerate(chosen):
                view = view.narrow(dim, start, length)
            views.append((view, [slice(start, start + length) for start, length in chosen]))
        yield cell, dims, views


def grown(
    old: Tensor, new: Tensor, terms: Sequence[Term], resizing: Resizing, facts: Mapping[Place, int], fill: Fill
) -> Tensor:
    """`new` with the values that facts give it: the old units that stay, times what their block says, and new blocks;
    `fill` makes those of free ones, and the noise of shares. Differentiable by `old`."""
    for origin, target in kept_views(old, new, resizing, terms):
        target.copy_(origin)
    layout = resizing.layout
    for cell, dims, views in view_cells(new, terms, resizing, layout):
        number = facts.get(cell, ANY if dims else SAME)
        if not dims and number == SAME:
            continue
        if kind(number) == "share":
            continue
        for view, at in views:
            if free(number):
                fill(view, at, number)
            elif number == ZERO:
                view.zero_()
            elif dims:
                view.copy_(_taken(old, terms, resizing, number, at, dims))
            if not free(number) and number != ZERO:
                _rescale(view, number)
    for group in groups(terms, resizing, facts):
        group.fill(old, new, lambda drawn, fact=group.fact: fill(drawn, (), fact))
    return new


def _rescale(view: Tensor, number: int) -> None:
    """Multiply a block as its fact says, in place: beside it, memory as large would be touched again."""
    found = multiple(number)
    if found.scale != 1:
        view.mul_(found.scale)
    if found.shift != 0:
        view.add_(found.shift)


def derived(
    old: Tensor, terms: Sequence[Term], resizing: Resizing, number: int, at: Sequence[slice], dims: Sequence[int]
) -> Tensor:
    """What a fact says a new block holds at some place: copies of old units, or their mean."""
    values, found = _taken(old, terms, resizing, number, at, dims), multiple(number)
    return values if (found.scale, found.shift) == (1, 0) else values * found.scale + found.shift


def _taken(
    old: Tensor, terms: Sequence[Term], resizing: Resizing, number: int, at: Sequence[slice], dims: Sequence[int]
) -> Tensor:
    """What `derived` gives, before it is multiplied."""
    origins = [resizing.copied(term)[part] for term, part in zip(terms, at, strict=True)]
    if kind(number) == "mean":
        for dim in dims:
            origins[dim] = _averaged(terms[dim], int(origins[dim][0]))
    values = old
    for dim, positions in enumerate(origins):
        values = _picked(values, dim, positions)
    if kind(number) == "mean":
        values = _mean(values, dims)
    return values


def _mean(values: Tensor, dims: Sequence[int]) -> Tensor:
    """Means over dimensions, taken in float64 of some slices at a time."""
    kept = [dim for dim in range(values.dim()) if dim not in dims]
    if not kept:
        return values.double().mean(tuple(dims), keepdim=True).to(values.dtype)
    count, parts = values.shape[kept[0]], list[Tensor]()
    size = max(1, _BUFFER * count // max(1, values.numel()))
    for start in range(0, count, size):
        part = values.narrow(kept[0], start, min(size, count - start))
        parts.append(part.double().mean(tuple(dims), keepdim=True).to(values.dtype))
    return torch.cat(parts, kept[0])


def _picked(values: Tensor, dim: int, positions: Positions) -> Tensor:
    start, length = int(positions[0]), len(positions)
    if int(positions[-1]) - start == length - 1 and (np.diff(positions) == 1).all():
        return values.narrow(dim, start, length)
    return values.index_select(dim, torch.as_tensor(positions))


def _averaged(term: Term, position: int) -> Positions:
    """The old positions of the axis, or of the part of a concatenation, that a position lies in."""
    start = 0
    for part in term.parts if isinstance(term, Sum) else (term,):
        size = int(str(part.size))
        if position < start + size:
            if isinstance(part, Atom):
                return np.arange(start, start + size)
            break
        start += size
    raise Refusal(found=f"a mean over {term}, which is a product of axes", where="resize", fix="grow another axis")


def fill_normal(view: Tensor, mean: float, deviation: float, generator: torch.Generator) -> None:
    """Normal values into a view. In one with gaps torch makes them one by one, nine times slower: they are made beside
    it instead, some rows at a time."""
    if view.is_contiguous():
        view.normal_(mean, deviation, generator=generator)
        return
    rows = max(1, _BUFFER // max(1, view[0].numel()))
    for start in range(0, view.shape[0], rows):
        part = view[start : start + rows]
        part.copy_(torch.empty(part.shape, dtype=view.dtype).normal_(mean, deviation, generator=generator))

"""Views of a resized tensor: what stayed from the old one, and each block by its cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from graphgrow.axes import Term
from graphgrow.prove import Layout
from graphgrow.rewrite.units import Resizing, runs, spans

View = tuple[Tensor, list[slice]]
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
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], list[View]]]:
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

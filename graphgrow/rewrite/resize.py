"""resize: change the number of units of axes everywhere they occur, in parameters, buffers, literals and types."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphgrow.axes import Atom, Axes, Sum, Term
from graphgrow.errors import Refusal
from graphgrow.graph import Argument, Graph, Node, TensorType
from graphgrow.program import Program
from graphgrow.prove import Block, Layout
from graphgrow.rewrite.blocks import fill_normal, kept_views, view_cells
from graphgrow.rewrite.units import Positions, Resizing
from graphgrow.sizes import Dim, add

Init = Literal["scaled", "copy", "zero"]
Fill = Literal["free", "zero", "one"]


@dataclass(frozen=True)
class Fills:
    """What new blocks hold: `zero` where a proof needs it, `one` (positive, like the old values) for variances, and
    otherwise values made by `init`: `scaled` like the old weights, `copy` of old units with noise, or `zero`."""

    blocks: Mapping[Block, Fill]
    init: Init = "scaled"
    seed: int = 0
    noise: float = 0.01  # of `copy`, relative to the standard deviation of the old weights


def resize_graph(axes: Axes, sizes: Mapping[Atom, int]) -> Graph:
    """The graph with every literal and type that holds a resized axis rewritten."""
    graph = axes.graph
    changes: dict[str, list[tuple[tuple[int | str, ...], Dim]]] = {}
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


def _with(node: Node, path: Sequence[int | str], size: Dim) -> Node:
    """The node with the argument at `path` exchanged."""
    if path[0] == "args":
        return replace(node, args=_put(node.args, path[1:], size))
    kwargs = tuple((name, _put_one(value, path[1:], size) if name == path[0] else value) for name, value in node.kwargs)
    return replace(node, kwargs=kwargs)


def _put(items: tuple[Argument, ...], path: Sequence[int | str], size: Dim) -> tuple[Argument, ...]:
    return tuple(_put_one(item, path[1:], size) if index == path[0] else item for index, item in enumerate(items))


def _put_one(item: Argument, path: Sequence[int | str], size: Dim) -> Argument:
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
    layout = Layout({atom: size for atom, size in resizing.sizes.items() if size > int(str(atom.size))})
    picks: Mapping[Atom, Positions] = _picks(resizing, fills.seed) if fills.init == "copy" else {}
    tensors = dict(program.tensors)
    for name, terms in axes.parameters.items():
        if resizing.touches(terms):
            tensors[name] = _resized(name, tensors[name], terms, (resizing, layout, fills, picks))
    return program.replace(graph=resize_graph(axes, resizing.sizes), tensors=tensors)


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


def _resized(
    name: str,
    old: Tensor,
    terms: Sequence[Term],
    how: tuple[Resizing, Layout, Fills, Mapping[Atom, Positions]],
) -> Tensor:
    resizing, layout, fills, picks = how
    shape = [resizing.number(term) for term in terms]
    if old.is_meta:
        return torch.empty(shape, dtype=old.dtype, device="meta", requires_grad=old.requires_grad)
    new = torch.empty(shape, dtype=old.dtype)
    with torch.no_grad():
        for origin, target in kept_views(old, new, resizing, terms):
            target.copy_(origin)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{fills.seed}:{name}".encode()))
        for cell, dims, views in view_cells(new, terms, resizing, layout):
            if dims:
                maker = _Maker(old, fills.blocks.get(Block(name, cell, dims), "free"), fills, generator)
                for view, at in views:
                    maker(
                        view,
                        [_copied(picks, term)[part] for term, part in zip(terms, at, strict=True)] if picks else None,
                    )
    return new.requires_grad_(old.requires_grad)


def _copied(picks: Mapping[Atom, Positions], term: Term) -> Positions:
    """For every new position of a term the old position that `copy` takes its values from."""
    if not any(atom in picks for atom in term.atoms):
        return np.arange(int(str(term.size)))
    if isinstance(term, Atom):
        return picks[term]
    parts = [_copied(picks, part) for part in term.parts]
    if isinstance(term, Sum):
        starts = np.cumsum([0, *(int(str(part.size)) for part in term.parts)])
        return np.concatenate([part + start for part, start in zip(parts, starts[:-1], strict=True)])
    result = np.zeros(1, dtype=np.int64)
    for part, inner in zip(term.parts, parts, strict=True):
        result = (result[:, None] * int(str(part.size)) + inner[None, :]).reshape(-1)
    return result


class _Maker:
    """Fills blocks of one parameter."""

    def __init__(self, old: Tensor, fill: Fill, fills: Fills, generator: torch.Generator) -> None:
        self.old, self.fill, self.fills, self.generator = old, fill, fills, generator

    def __call__(self, view: Tensor, origins: Sequence[Positions] | None) -> None:
        plain = not view.is_floating_point() or (self.fill == "free" and self.fills.init == "zero")
        if self.fill == "zero" or plain:
            view.zero_()
            return
        mean, deviation = _statistics(self.old)
        if self.fill == "one":
            view.fill_(mean)
        elif origins is not None:
            view.copy_(self.old[np.ix_(*origins)])
            view.add_(
                torch.randn(view.shape, generator=self.generator, dtype=view.dtype), alpha=self.fills.noise * deviation
            )
        else:
            fill_normal(view, mean, deviation, self.generator)


def _statistics(tensor: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, of an evenly spread sample where there is much."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    sample = flat[:: max(1, flat.numel() // 1_000_000)].double()
    return float(sample.mean()), float(sample.std(unbiased=False))

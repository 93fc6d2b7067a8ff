"""Dead growth: new units whose parameters can never get a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphgrow.program import Program
from graphgrow.prove import Layout
from graphgrow.rewrite.blocks import view_cells
from graphgrow.verify.equivalence import Pair, combined, drawn_values, lowered, used

DRAWS = 4


def dead_axes(pair: Pair, seed: int) -> list[str]:
    """The names of grown axes none of whose new parameters can get a gradient.

    Blocks that are zero stay zero and all others are drawn anew several times, so that a unit which happens to be off
    (a ReLU below zero on these inputs) is not taken for a dead one."""
    names = {named.atom: named.name for named in pair.old.axes.named}
    gradients: dict[str, Tensor] = {}
    module = lowered(pair.new, pair.new.tensors, torch.float64)
    touched = [name for name, terms in pair.old.axes.parameters.items() if pair.resizing.touches(terms)]
    for draw in range(DRAWS):
        _set(module, drawn_values(pair, seed + draw), touched)
        found = _gradients(module, pair.new, touched, seed + draw)
        if found is None:
            return []
        for name, gradient in found.items():
            gradients[name] = gradients.get(name, torch.zeros(())) + gradient.abs()
    dead: list[str] = []
    held = {atom for name in touched for term in pair.old.axes.parameters[name] for atom in term.atoms}
    for atom, size in ((atom, size) for atom, size in pair.alignment.changed.items() if atom in held):
        layout = Layout({atom: size})
        alive = False
        for name, gradient in gradients.items():
            terms = pair.old.axes.parameters[name]
            if any(atom in term.atoms for term in terms):
                cells = view_cells(gradient, terms, pair.resizing, layout)
                alive = alive or any(bool(v.count_nonzero()) for _, dims, views in cells if dims for v, _ in views)
        if not alive:
            dead.append(names.get(atom, str(atom)))
    return dead


def gradients_of(
    program: Program, tensors: Mapping[str, Tensor], names: Set[str], seed: int
) -> dict[str, Tensor] | None:
    """Gradients of the parameters in `names`, at the values in `tensors`, on one random input; None where outputs have
    none at all."""
    return _gradients(lowered(program, tensors, torch.float64), program, names, seed)


def _gradients(module: nn.Module, program: Program, names: Iterable[str], seed: int) -> dict[str, Tensor] | None:
    """None where outputs have no gradient at all (an argmax)."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in program.example({}, seed).items()
    }
    watched = {name: parameters[name].requires_grad_() for name in names if name in parameters}
    outputs = [leaf for leaf in pytree.tree_leaves(module(**inputs)) if isinstance(leaf, Tensor)]
    total = combined(outputs)
    if not total.requires_grad:
        return None
    grads = torch.autograd.grad(total, list(watched.values()), allow_unused=True)
    return dict(used(zip(watched, grads, strict=True)))


def _set(module: nn.Module, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Give a module other values."""
    values = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name in names:
            values[name].copy_(tensors[name])

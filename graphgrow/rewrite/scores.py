"""Scores of single weights: what a mask keeps.

By data: the size of a weight times the norm of the inputs that it meets (Wanda, arXiv 2306.11695), or times the
gradient of the loss by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphgrow.errors import Refusal
from graphgrow.graph import Ref, TensorType
from graphgrow.program import Program
from graphgrow.rewrite.masks import Use, Weight

Data = Sequence[Mapping[str, Tensor]]
_OTHER = "choose score=magnitude"


def input_norms(program: Program, weights: Sequence[Weight], data: Data) -> dict[str, Tensor]:
    """For every weight the norms of the inputs that it is multiplied with, in a shape that goes along it; all batches
    together, the program runs once on each. Raises Refusal where a weight meets no single activation."""
    for weight in weights:
        for use in weight.uses:
            if use.picked or len(use.reads) != 1:
                what = "of which tokens choose their matrices" if use.picked else "multiplied with several activations"
                raise Refusal(found=f"{weight.name}, {what}", where=use.node, fix=_OTHER)
    reads = list(dict.fromkeys(name for weight in weights for use in weight.uses for name in use.reads))
    watched = program.replace(graph=replace(program.graph, outputs=tuple(map(Ref, reads))), journal=())
    module = watched.module(share=True).eval()
    squares: dict[str, Tensor] = {}
    with torch.no_grad():
        for inputs in data:
            values = dict(zip(reads, pytree.tree_leaves(module(**inputs)), strict=True))
            for weight in weights:
                for use in weight.uses:
                    found = _squares(values, use, program.tensors[weight.name].shape)
                    squares[weight.name] = squares[weight.name] + found if weight.name in squares else found
    return {name: found.sqrt() for name, found in squares.items()}


def _squares(values: Mapping[str, Tensor], use: Use, shape: Sequence[int]) -> Tensor:
    """Sums of squares of what a weight reads, for every one of its inputs."""
    ((name, dims),) = use.reads.items()
    value = values[name]
    summed = [dim for dim in range(value.dim()) if dim not in dims]
    found = value.float().square().sum(summed).double() if summed else value.double().square()
    order = sorted(range(len(dims)), key=lambda index: list(dims.values())[index])
    found = found.permute(order)
    if use.groups > 1 and found.numel() != shape[use.inputs[0]]:  # the channels of all groups, one after the other
        found = found.view(use.groups, -1).repeat_interleave(shape[use.outputs[0]] // use.groups, 0)
        return found.view(*found.shape, *[1] * (len(shape) - 2))
    kept = set(dims.values())
    return found.reshape([size if dim in kept else 1 for dim, size in enumerate(shape)])


def gradients(program: Program, weights: Sequence[str], data: Data) -> dict[str, Tensor]:
    """The gradients of the loss by weights, added up over all batches. Raises Refusal where no output is a loss."""
    module = program.module().eval()
    owned = dict(module.named_parameters(remove_duplicate=False))
    chosen = [owned[name].requires_grad_(True) for name in weights]
    total = [torch.zeros_like(one, dtype=torch.float64) for one in chosen]
    loss = _loss(program)
    for inputs in data:
        leaves = [leaf for leaf in pytree.tree_leaves(module(**inputs)) if isinstance(leaf, Tensor)]
        found = torch.autograd.grad(leaves[loss], chosen, allow_unused=True, materialize_grads=True)
        for sums, gradient in zip(total, found, strict=True):
            sums += gradient.double()
    return dict(zip(weights, total, strict=True))


def _loss(program: Program) -> int:
    """Which output is the loss: the one that is a single floating number."""
    graph = program.graph
    types = [graph[name].type for name in graph.output_names]
    found = [i for i, kind in enumerate(types) if isinstance(kind, TensorType) and not kind.shape
             and kind.dtype.startswith(("weights", "float", "bfloat"))]  # fmt: skip
    if len(found) != 1:
        raise Refusal(
            found=f"{len(found)} outputs that are one number, of which one must be the loss",
            where="the outputs of the program",
            fix=f"trace the model with its labels, so that it gives its loss, or {_OTHER}",
        )
    return found[0]

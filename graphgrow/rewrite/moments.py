"""What weights are applied to on given data: the sum of the outer products of what meets each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import unfold
from torch.utils import _pytree as pytree

from graphgrow.axes.contractions import each
from graphgrow.graph import Ref
from graphgrow.program import Program
from graphgrow.rewrite.factors import Weighting
from graphgrow.rewrite.products import Use, Weight, convolved


def moments(
    program: Program, chosen: Sequence[Weight], data: Sequence[Mapping[str, Tensor]]
) -> dict[str, Weighting | str]:
    """For each weight the second moment of what meets it, in float64; or, as text, why there is none. The program runs
    once on each batch."""
    reasons = {weight.name: _obstacle(weight) for weight in chosen}
    good = [weight for weight in chosen if not reasons[weight.name]]
    read = list(dict.fromkeys(use.x.name for weight in good for use in weight.uses))
    watched = program.replace(graph=replace(program.graph, outputs=tuple(map(Ref, read))), journal=())
    module = watched.module(share=True).eval()
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for inputs in data:
            seen = dict(zip(read, pytree.tree_leaves(module(**inputs)), strict=True))
            for weight in good:
                for use in weight.uses:
                    met = _moment(weight, use, seen[use.x.name])
                    sums[weight.name] = sums[weight.name] + met if weight.name in sums else met
    found = {weight.name: Weighting(weight.uses[0].meets, sums[weight.name]) for weight in good}
    return {weight.name: reasons[weight.name] or found[weight.name] for weight in chosen}


def _obstacle(weight: Weight) -> str:
    if len({use.meets for use in weight.uses}) > 1:
        return "data meets its rows and its columns: no one weighting is right for both"
    if weight.outer and max(weight.shape[2:]) > 1:
        return "k x 1 after 1 x k is not chosen by data: give conv=pointwise"
    for use in weight.uses:
        if use.form == "convolution" and (len(weight.shape) > 4 or convolved(use.node)[2] == "same"):
            return "windows over space of three dimensions, or padded by name, are not read as data"
    return ""


def _moment(weight: Weight, use: Use, x: Tensor) -> Tensor:
    """(units, units): the outer products of all vectors that the weight is applied to, added up."""
    if use.form == "lookup":
        return torch.bincount(x.flatten(), minlength=weight.rows).double().diag()
    windows = use.form == "convolution"
    vectors = _patches(weight, use, x) if windows else x.movedim(use.dim, -1).reshape(-1, x.shape[use.dim])
    vectors = vectors.double()
    return vectors.T @ vectors


def _patches(weight: Weight, use: Use, x: Tensor) -> Tensor:
    """(positions, channels * window): what a convolution multiplies by its weight."""
    spatial = len(weight.shape) - 2
    _, *given, _ = convolved(use.node)
    settings = ([int(str(item)) for item in each(0 if value == "valid" else value, spatial)] for value in given)
    images, window, stride, padding, dilation = x, list(weight.shape[2:]), *settings
    if use.dim == 0:
        images = images.unsqueeze(0)
    if spatial == 1:
        images = images.unsqueeze(-1)
        window, stride, padding, dilation = [*window, 1], [*stride, 1], [*padding, 0], [*dilation, 1]
    found = unfold(images, tuple(window), tuple(dilation), tuple(padding), tuple(stride))
    return found.movedim(1, -1).reshape(-1, found.shape[1])

"""The program's module against the eager model it was traced from: forward and backward in training mode, dropout on,
in turns. The same weights, inputs and loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import models
from benchmarks.measure import Row, Work, in_turns, ratio_row
from graphgrow.tracing import trace


def step(model: nn.Module, inputs: models.Inputs) -> Work:
    """One forward and backward pass; gradients are dropped, as an optimizer's zero_grad does."""

    def run() -> None:
        outputs = [leaf for leaf in pytree.tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]
        outputs[0].square().mean().backward()
        model.zero_grad(set_to_none=True)

    return run


def against_eager(name: str, model: nn.Module, inputs: models.Inputs, turns: int) -> Row:
    traced = trace(model, inputs, check=False).module().train()
    model.train()
    found = in_turns({"module": step(traced, inputs), "eager": step(model, inputs)}, turns)
    return ratio_row(name, (found["module"], found["eager"]), "eager", target=1.02)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield against_eager("GPT-2 small, batch 4 x 128", models.gpt2(), models.tokens(4, 128), turns=9)
    yield against_eager("ViT base, batch 4", models.vit(), models.images(4), turns=9)
    yield against_eager("ResNet-50, batch 4", models.resnet(), models.images(4), turns=9)
    small: dict[str, Any] = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256}
    yield against_eager("GPT-2 of 0.8M, batch 1 x 16", models.gpt2(**small), models.tokens(1, 16), turns=41)

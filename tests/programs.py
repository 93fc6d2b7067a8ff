"""Traced programs of the zoo, each traced once per session."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphgrow.program import Program
from graphgrow.tracing import trace
from tests.zoo import ZOO

torch.set_num_threads(1)


@cache
def traced(name: str) -> Program:
    """The program of a model in the zoo."""
    model, inputs = ZOO[name].build()
    return trace(model, inputs)


def outputs(module: nn.Module, inputs: dict[str, Tensor], seed: int = 0) -> list[Tensor]:
    """The output tensors, with dropout from the seed."""
    torch.manual_seed(seed)
    return [leaf for leaf in pytree.tree_leaves(module(**inputs)) if isinstance(leaf, Tensor)]


def resized(name: str, batch: int, length: int | None) -> dict[str, Tensor]:
    """Inputs of another batch size, and length where it is dynamic."""
    program = traced(name)
    sizes = {symbol: batch if symbol == "batch" else length for symbol in program.graph.symbols}
    return program.example({symbol: size for symbol, size in sizes.items() if size is not None}, seed=batch)

"""Inputs for a coordinate check: by seed and step, the same at every size of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from graphgrow import ops, sizes
from graphgrow.program import Program
from graphgrow.runtime.coordinates.slopes import Settings

Data = Callable[[Program, int, int], Mapping[str, Tensor]]  # inputs of a program for a seed and a step


def random_inputs(settings: Settings) -> Data:
    """Random inputs: the same at every step, so that there is something to learn, and at every size."""

    def inputs(program: Program, seed: int, step: int) -> Mapping[str, Tensor]:
        return program.example(dynamic(program, settings), seed=seed)

    return inputs


def text_inputs(settings: Settings, text: Tensor) -> Data:
    """Windows of a text, in place of every input of tokens; others are as in the examples."""

    def inputs(program: Program, seed: int, step: int) -> Mapping[str, Tensor]:
        found = program.example(dynamic(program, settings), seed=seed)
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for name, size in vocabularies(program).items():
            batch, length = found[name].shape
            starts = torch.randint(len(text) - length, (batch, 1), generator=generator)
            found[name] = text[starts + torch.arange(length)] % size
        return found

    return inputs


def vocabularies(program: Program) -> dict[str, int]:
    """The inputs of tokens, (batch, length), each with the number of rows of the table that it picks from."""
    found: dict[str, int] = {}
    for lookup, term in program.axes.lookups:
        node = program.graph[lookup.index]
        if node.op == "input" and len(node.shape) == 2 and ops.kind(lookup.node.op) == "embedding":
            found[node.name] = min(found.get(node.name, sizes.number(term.size)), sizes.number(term.size))
    return found


def dynamic(program: Program, settings: Settings) -> dict[str, int]:
    """The dynamic sizes: the batch and the length of the settings, within the bounds of the trace."""
    found: dict[str, int] = {}
    for name, origin in program.graph.symbols.items():
        wanted = max(settings.batch if name.startswith("batch") else settings.length, origin.low)
        found[name] = wanted if origin.high is None else min(wanted, origin.high)
    return found

"""Axis inference and the proof of `widen` over all inner axes at once, against one `torch.export.export` of the same
model (training mode, dynamic batch and length); and how their time per layer grows with the number of layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.export import Dim, export

from benchmarks import models
from benchmarks.measure import Row, in_turns, ratio_row
from graphgrow.graph import Graph
from graphgrow.program import Program
from graphgrow.prove import Prover
from graphgrow.tracing import trace
from passes import Widen

LAYERS = (6, 12, 24, 48, 96)
TINY = {"vocab_size": 101}
SMALL: dict[
    str, dict[str, Any]
] = {  # a head size, a width and a length of nothing: export and analysis cost what the number of operators costs
    "gpt2": TINY | {"n_embd": 64, "n_head": 4, "n_positions": 64},
    "llama": TINY | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2},
}


def forgotten(program: Program) -> Program:
    """The program with everything to be inferred again."""
    return program.replace(graph=Graph(program.graph.nodes, program.graph.outputs, program.graph.symbols))


def analyse(program: Program) -> None:
    """Axes, their names, and the proof, with nothing taken from an earlier run."""
    program = forgotten(program)
    chosen = Widen().chosen(program)
    proof = Prover(program.axes, {axis.atom: 2 * int(str(axis.size)) for axis in chosen}).derive()
    if not proof.holds:
        raise RuntimeError(f"no proof: {proof.why}")


def exported(model: nn.Module, inputs: models.Inputs) -> None:
    logging.getLogger("torch").setLevel(logging.ERROR)
    batch = Dim("batch")
    shapes = {name: {0: batch} | ({1: Dim.AUTO} if value.ndim == 2 else {}) for name, value in inputs.items()}
    export(model, (), kwargs=dict(inputs), dynamic_shapes=shapes, strict=False)


def against_export(name: str, model: nn.Module, inputs: models.Inputs) -> Iterator[Row]:
    program = trace(model, inputs, check=False)
    works = {
        "analysis": lambda: analyse(program),
        "trace": lambda: trace(model, inputs, check=False),
        "export": lambda: exported(model, inputs),
    }
    found = in_turns(works, turns=3)
    what = f"{name}, {len(program.graph.nodes)} nodes"
    yield ratio_row(f"{what}: axes and proof", (found["analysis"], found["export"]), "torch.export", target=0.5)
    yield ratio_row(f"{what}: trace (two captures)", (found["trace"], found["export"]), "torch.export")


def growth(name: str) -> Iterator[Row]:
    """Time per layer at each depth over that at half of it: 1 is linear."""
    programs: dict[int, Program] = {}
    for layers in LAYERS:
        depth: dict[str, Any] = {"n_layer" if name == "gpt2" else "num_hidden_layers": layers}
        model = getattr(models, name)("meta", **SMALL[name], **depth)
        programs[layers] = trace(model, models.tokens(device="meta"))
    found = in_turns({str(n): lambda p=p: analyse(p) for n, p in programs.items()}, turns=7)
    for layers in LAYERS[1:]:
        what = f"{name}: time per layer, {layers} layers over {layers // 2}"
        yield ratio_row(what, (found[str(layers)], found[str(layers // 2)]), "half", scale=2, target=1.25)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    yield from against_export("GPT-2, 12 layers", models.gpt2(**SMALL["gpt2"]), models.tokens())
    yield from against_export("Llama, 32 layers", models.llama(**SMALL["llama"]), models.tokens())
    yield from against_export("ViT, 12 layers", models.vit(hidden_size=48, num_attention_heads=4), models.images())
    yield from against_export("ResNet-50", models.resnet(), models.images(size=64))
    for name in SMALL:
        yield from growth(name)

"""How the time of every pass, with its proof and its test, grows with the number of layers: tiny models of 12 and of
48 layers, nothing known of them from an earlier run. Four times the layers may take four times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import transformers as hf

from benchmarks import models
from benchmarks.analysis import SMALL, forgotten
from benchmarks.measure import Row, in_turns, ratio_row
from graphgrow.pipeline import parse_pass
from graphgrow.program import Program
from graphgrow.tracing import trace
from passes import TABLE

LAYERS = (12, 48)
EXPERTS: dict[str, Any] = SMALL["llama"] | {
    "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
# What passes are given, where defaults will not do; before the space: a pass that is run first.
SPECS = {
    "deepen": "deepen:factor=1.25", "drop-blocks": "drop-blocks:layers=3+7", "factorize": "factorize:fraction=0.5",
    "merge-factors": "factorize:fraction=0.5 merge-factors", "prune-axis": "prune-axis:axis=mlp,factor=0.5",
    "supar": "supar:base=hidden=32+heads=4+kv_heads=2+mlp=48", "undo": "widen undo",
}  # fmt: skip


def program(layers: int, experts: bool) -> Program:
    if experts:
        model: Any = models.build(hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, num_hidden_layers=layers, **EXPERTS)
        model.set_experts_implementation("batched_mm")
    else:
        model = models.llama(num_hidden_layers=layers, **SMALL["llama"])
    return trace(model, models.tokens(), check=False, outputs="logits")


def applied(spec: str, program: Program) -> Program:
    return parse_pass(spec)(forgotten(program))


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    few, many = LAYERS
    traced = {experts: {n: program(n, experts) for n in LAYERS} for experts in (False, True)}
    for name in TABLE:
        before, _, spec = SPECS.get(name, name).rpartition(" ")
        given = traced["experts" in name]
        if before:
            given = {layers: parse_pass(before)(one) for layers, one in given.items()}
        works = {str(layers): partial(applied, spec, one) for layers, one in given.items()}
        times = in_turns(works, turns=3, warm=0)
        what, pair = f"{spec}: time per layer, {many} layers over {few}", (times[str(many)], times[str(few)])
        yield ratio_row(what, pair, f"{few} layers", scale=many / few, target=1.25)

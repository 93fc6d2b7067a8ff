"""A Llama of 70 billion parameters without weights (80 layers, hidden 8192, MLP 28672, 64 heads in 8 groups, vocabulary
128256), in a fresh process: trace, axes, proof of `widen`, and the whole pass. The trace exports the model twice
(training in float32, evaluation in bfloat16); the parts are given over the time of its first export. Memory is the peak
of the whole process, torch and transformers included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Row, Time, fresh, memory

LIMIT = 1.5  # GB
CONFIG = {
    "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
STEPS = ("imports", "first export", "second export", "rest of trace", "axes", "proof", "pass")


def measured() -> dict[str, tuple[float, float, float]]:
    """Wall-clock and processor seconds of each step, and the peak memory in GB after it."""
    found: dict[str, tuple[float, float, float]] = {}
    clock = [time.perf_counter(), time.process_time()]

    def done(step: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        found[step] = (now[0] - clock[0], now[1] - clock[1], memory("VmHWM"))
        clock[:] = now

    from benchmarks import models
    from graphgrow.prove import Prover
    from graphgrow.tracing import trace
    from passes import Widen

    done("imports")
    model = models.llama("meta", **CONFIG)
    inputs = models.tokens(device="meta")
    module: Any = sys.modules["graphgrow.tracing.capture"]
    export = module.export

    def watched(*arguments: Any, **options: Any) -> Any:
        done("rest of trace")
        result = export(*arguments, **options)
        done("second export" if "first export" in found else "first export")
        return result

    module.export = watched
    program = trace(model, inputs)
    done("rest of trace")
    chosen = Widen().chosen(program)
    done("axes")
    if not Prover(program.axes, {axis.atom: 2 * int(str(axis.size)) for axis in chosen}).derive().holds:
        raise RuntimeError("no proof")
    done("proof")
    Widen()(program)
    done("pass")
    return found


def rows() -> Iterator[Row]:
    found = fresh("benchmarks.huge:measured")
    wall, cpu, _ = found["first export"]
    for step in STEPS:
        peer = f"first export: {Time(wall, cpu)}"
        yield Row(step, str(Time(*found[step][:2])), peer, found[step][0] / wall, found[step][1] / cpu)
    for step in ("imports", "rest of trace", "pass"):
        name = {"imports": "torch and transformers", "rest of trace": "trace"}.get(step, "all")
        peak = found[step][2]
        yield Row(f"peak memory: {name}", f"{peak:.2f} GB", f"limit: {LIMIT} GB", peak / LIMIT, target=1.0)

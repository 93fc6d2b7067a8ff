"""`widen` (all inner axes times 2) on 1.56 billion random float32 weights: the GPT-2 XL shape, in a fresh process.

Throughput is the time of a copy over that of the rewrite, in turns. The copy is `Tensor.clone` of (a) tensors like all
that the rewrite makes: the same bytes written; and (b) those of the whole new program, with those it shares with the
old one, which the rewrite leaves alone. Memory of the rewrite: its peak beyond what the process had before the weights,
over all tensors of both programs (shared ones once) plus two of the largest. Then what follows a rewrite in the whole
pass, over copy (b); and the load of the saved old program against `torch.load(mmap=True)`, as in `load`.
"""

from __future__ import annotations

import gc
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.load import compare
from benchmarks.measure import (
    Row,
    Skipped,
    Time,
    available_memory,
    forget_peak,
    fresh,
    memory,
    middle,
    ratio_row,
    timed,
)
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.verify import certify
from passes import Widen

LAYERS, HIDDEN, HEADS = 48, 1600, 25
NEEDED = 16.0  # GB
TURNS = 3


def copied(tensors: Iterable[Tensor]) -> Time:
    """Time to clone as many tensors of these shapes. One source serves all of a shape (it fits no cache), so that a
    copy starts from just the memory that a rewrite starts from: the old program's."""
    shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
    sources = {key: torch.zeros(key[0], dtype=key[1]) for key in dict.fromkeys(shapes)}
    return timed(lambda: [sources[key].clone() for key in shapes])


def distinct(tensors: Iterable[Tensor]) -> float:
    """GB of tensors, each once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values()) / 1e9


def certified(program: Program, new: Program) -> dict[str, list[float]]:
    """What follows a rewrite in a pass."""
    steps = {
        "digest of the new program": lambda: new.digest,
        "digest of the old program": lambda: program.digest,
        "proof and test": lambda: certify(program, new, spec="widen", claim="Exact"),
    }
    times = {name: timed(work) for name, work in steps.items()}
    return {name: [once.wall, once.cpu] for name, once in times.items()}


def measured(folder: str) -> dict[str, Any]:
    """All figures, as lists of (wall, cpu) by name, and GB."""
    models.gpt2_program(1, 32, 1)  # what any first trace loads
    before = memory()
    program = models.gpt2_program(LAYERS, HIDDEN, HEADS)
    program.axes.named  # noqa: B018
    torch.ones(int(NEEDED / 2 * 1e9 / 4)).sum()  # the machine behind this one gives memory at its first use
    made: list[Any] = []

    def rewrite() -> None:
        rewriter = Rewriter(program)
        Widen().rewrite(rewriter)
        made.append(rewriter.program)

    found: dict[str, Any] = {"rewrite": [], "changed": [], "all": []}
    for turn in range(TURNS + 1):
        made.clear()
        gc.collect()
        forget_peak()
        once = timed(rewrite)
        peak = memory("VmHWM") - before
        both = [*program.tensors.values(), *made[0].tensors.values()]
        found["memory"] = [peak, distinct(both) + 2 * max(tensor.nbytes for tensor in both) / 1e9]
        old = {id(tensor) for tensor in program.tensors.values()}
        changed = [tensor for tensor in made[0].tensors.values() if id(tensor) not in old]
        shared = [tensor for tensor in made[0].tensors.values() if id(tensor) in old]
        found["bytes"] = [distinct(changed), distinct([*changed, *shared])]
        changed = [tensor.detach().to("meta") for tensor in changed]
        del both
        made.clear()
        first, second = copied(changed), copied(shared)
        if turn:
            found["rewrite"].append([once.wall, once.cpu])
            found["changed"].append([first.wall, first.cpu])
            found["all"].append([first.wall + second.wall, first.cpu + second.cpu])
    rewrite()
    found["steps"] = certified(program, made.pop())
    program.save(pathlib.Path(folder) / "xl.pt")
    return found


def rows() -> Iterator[Row]:
    if available_memory() < NEEDED:
        raise Skipped(f"it needs {NEEDED} GB of memory, {available_memory():.1f} GB are free")
    with tempfile.TemporaryDirectory() as folder:
        found = fresh("benchmarks.widen_xl:measured", folder)
        load = compare("load of the 6.2 GB program", pathlib.Path(folder) / "xl.pt")
    rewrites = [Time(*pair) for pair in found["rewrite"]]
    copies = {name: [Time(*pair) for pair in found[name]] for name in ("changed", "all")}
    for (name, times), size in zip(copies.items(), found["bytes"], strict=True):
        row = ratio_row(f"rewrite: throughput against a copy of {name} tensors ({size:.1f} GB)", (times, rewrites), "")
        yield Row(row.what, str(middle(rewrites)), f"clone: {row.ours}", row.ratio, row.cpu, target=0.5, least=True)
    peak, allowed = found["memory"]
    yield Row(
        "rewrite: peak memory over what is allowed", f"{peak:.2f} GB", f"{allowed:.2f} GB", peak / allowed, target=1.0
    )
    base = middle(copies["all"])
    for name, pair in found["steps"].items():
        yield Row(f"pass: {name}", str(Time(*pair)), f"clone: {base}", pair[0] / base.wall, pair[1] / base.cpu)
    pair = [
        sum(pairs)
        for pairs in zip(*found["steps"].values(), [middle(rewrites).wall, middle(rewrites).cpu], strict=True)
    ]
    yield Row("pass: everything", str(Time(*pair)), f"clone: {base}", pair[0] / base.wall, pair[1] / base.cpu)
    yield load

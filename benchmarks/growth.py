"""Growth of the GPT-2 XL shape (hidden size 1600, 25 heads, 48 layers, float32, random weights), in fresh processes.

Throughput is the bytes that a growth puts out over its time: of the resize alone, with the proof that it derives, and
of the whole pass, with digests, proof and test. The copy is `Tensor.clone` of as many bytes in the same shapes, in
turns. Peers are published rules, written down here from their descriptions for weights named as GPT-2 names them, in
turns on the same tensors: LEMON's average padding (arXiv 2310.07999) and HyperCloning's tiling (arXiv 2409.12903, of
the hidden size only). Depth goes from file to file: LLaMA-Pro's block expansion (arXiv 2401.02415: copies whose last
projections are zero) and mergekit's passthrough (plain copies, which are another function) as safetensors, `deepen` as
a program file, which has checksums. Peak memory is what the process took beyond torch, with old weights in memory.
"""

from __future__ import annotations

import gc
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import models
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
from benchmarks.widen_xl import HEADS, HIDDEN, LAYERS, TURNS, copied
from graphgrow.pipeline import Pass, parse_pass
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter

NEEDED = 17.0  # GB
# Function and arguments of each comparison: layers, our pass, the peer's rule, the new size.
RUNS: tuple[tuple[str, int, str, str, int], ...] = (
    ("widths", LAYERS, "widen-hidden:to=2400", "LEMON's average padding", 2400),
    ("widths", LAYERS // 2, "widen-hidden:to=3200", "HyperCloning's tiling", 3200),
    ("depths", LAYERS // 4, "deepen:to=16", "LLaMA-Pro's block expansion", 16),
    ("depths", LAYERS // 4, "deepen:to=16", "mergekit's passthrough", 16),
)
Tensors = dict[str, Tensor]
Rule = Callable[[Mapping[str, Tensor], int], Tensors]


def averaged(tensors: Mapping[str, Tensor], size: int) -> Tensors:
    """LEMON's average padding: what is written into the stream is, in new units, the mean of the old ones."""
    new, extra, eta = dict(tensors), size - HIDDEN, (HIDDEN / size) ** 0.5
    for name, old in tensors.items():
        if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
            mean = old.mean(-1, keepdim=True)
            new[name] = torch.cat([old, mean.expand(*old.shape[:-1], extra)], -1)
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            new[name] = torch.cat([old, old[:extra]])
        elif ".ln_" in name and name.endswith("weight"):
            new[name] = torch.cat([old, old[:extra]]) * eta
        elif ".ln_" in name:
            new[name] = torch.cat([old, old.new_zeros(extra)])
    return new


def tiled(tensors: Mapping[str, Tensor], size: int) -> Tensors:
    """HyperCloning's tiling: complete copies; what sums over the stream is divided by their number."""
    new, times = dict(tensors), size // HIDDEN
    for name, old in tensors.items():
        if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight")):
            new[name] = old.repeat(1, times)
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            new[name] = old.repeat(times, 1) / times
        elif ".ln_" in name or name.endswith("c_proj.bias"):
            new[name] = old.repeat(times)
    return new


RULES: dict[str, Rule] = {"LEMON's average padding": averaged, "HyperCloning's tiling": tiled}


def blocks(tensors: Mapping[str, Tensor], layers: int) -> Tensors:
    """LLaMA-Pro's block expansion: at even distances a copy of the layer before, its last projections zero."""
    return _deeper(tensors, layers, lambda name, old: old.zero_() if ".c_proj." in name else old)


def passthrough(tensors: Mapping[str, Tensor], layers: int) -> Tensors:
    """mergekit's passthrough: the same layers, copied as they are."""
    return _deeper(tensors, layers, lambda _, old: old)


def _deeper(tensors: Mapping[str, Tensor], layers: int, change: Callable[[str, Tensor], Tensor]) -> Tensors:
    new, old = Tensors(), 1 + max(int(name.split(".")[2]) for name in tensors if ".h." in name)
    added = [(i + 1) * (layers - old) // old - i * (layers - old) // old for i in range(old)]
    for name, tensor in tensors.items():
        if ".h." not in name:
            new[name] = tensor
            continue
        first, _, rest = name.partition(".h.")
        layer, _, rest = rest.partition(".")
        at = int(layer) + sum(added[: int(layer)])
        new[f"{first}.h.{at}.{rest}"] = tensor
        for copy in range(added[int(layer)]):
            new[f"{first}.h.{at + 1 + copy}.{rest}"] = change(name, tensor.clone())
    return new


WIDTH: dict[str, Rule] = {"LEMON's average padding": averaged, "HyperCloning's tiling": tiled}
DEPTH: dict[str, Rule] = {"LLaMA-Pro's block expansion": blocks, "mergekit's passthrough": passthrough}


def rewritten(program: Program, grow: Pass) -> Program:
    rewriter = Rewriter(program)
    grow.rewrite(rewriter)
    return rewriter.program


class Watch:
    """Seconds (wall, cpu) of each run and the peak memory of the last in GB, by name; plain data for JSON."""

    def __init__(self, before: float) -> None:
        self.before, self.times, self.peaks = before, dict[str, list[list[float]]](), dict[str, float]()

    def run(self, name: str, work: Callable[[], object], keep: bool = True) -> None:
        gc.collect()
        forget_peak()
        once = timed(work)
        self.peaks[name] = memory("VmHWM") - self.before
        self.note(name, once, keep)

    def note(self, name: str, once: Time, keep: bool = True) -> None:
        self.times.setdefault(name, []).extend([[once.wall, once.cpu]] if keep else [])


def widths(layers: int, spec: str, rule: str, size: int) -> dict[str, Any]:
    """Growth of the hidden size to `size` in memory: resize, copy and the rule in turns, then the whole pass. `bytes`
    are GB put out."""
    models.gpt2_program(1, 32, 1)  # what any first trace loads
    watch = Watch(memory())
    program, grow = models.gpt2_program(layers, HIDDEN, HEADS), parse_pass(spec)
    program.axes.named  # noqa: B018
    plain = {name: tensor.detach() for name, tensor in program.tensors.items()}
    torch.ones(int(NEEDED / 2 * 1e9 / 4)).sum()  # the machine behind this one gives memory at its first use
    made: list[Program] = []
    for turn in range(TURNS + 1):
        watch.run("resize", lambda: made.append(rewritten(program, grow)), turn > 0)
        old = {id(tensor) for tensor in program.tensors.values()}
        changed = [tensor.detach().to("meta") for tensor in made.pop().tensors.values() if id(tensor) not in old]
        watch.note("copy", copied(changed), turn > 0)
        watch.run("rule", lambda: WIDTH[rule](plain, size), turn > 0)
    watch.run("pass", lambda: grow(program))
    return {"times": watch.times, "peaks": watch.peaks, "bytes": sum(tensor.nbytes for tensor in changed) / 1e9}


def depths(layers: int, spec: str, rule: str, size: int, folder: str) -> dict[str, Any]:
    """More layers from file to file: the rewrite alone, the rule, and the whole pass, in turns."""
    models.gpt2_program(1, 32, 1)
    program, grow = models.gpt2_program(layers, HIDDEN, HEADS), parse_pass(spec)
    ours, theirs, out = (pathlib.Path(folder) / name for name in ("old.pt", "old.safetensors", "new"))
    program.save(ours)
    save_file({name: tensor.detach() for name, tensor in program.tensors.items()}, theirs)
    del program
    gc.collect()
    watch = Watch(memory())

    def peer() -> None:
        with safe_open(theirs, "pt") as source:
            save_file(DEPTH[rule]({name: source.get_tensor(name) for name in source.keys()}, size), out)  # noqa: SIM118

    for turn in range(TURNS + 1):
        watch.run("resize", lambda: rewritten(Program.load(ours), grow).save(out), turn > 0)
        watch.run("rule", peer, turn > 0)
        watch.run("pass", lambda: grow(Program.load(ours)).save(out), turn > 0)
    return {"times": watch.times, "peaks": watch.peaks, "bytes": out.stat().st_size / 1e9}


def rows() -> Iterator[Row]:
    if available_memory() < NEEDED:
        raise Skipped(f"it needs {NEEDED} GB of memory, {available_memory():.1f} GB are free")
    for function, layers, spec, rule, size in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            rest = [folder] if function == "depths" else []
            found = fresh(f"benchmarks.growth:{function}", layers, spec, rule, size, *rest)
        yield from _compared(f"{spec}, {layers} layers", rule, found)


def _compared(what: str, rule: str, found: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of one run: throughput against a copy where there is one, time and peak memory against the rule."""
    times = {name: [Time(*pair) for pair in pairs] for name, pairs in found["times"].items()}
    size, peaks = found["bytes"], found["peaks"]
    if "copy" in times:
        for name, runs, target in (("resize", times["resize"], 0.4), ("whole pass", times["pass"] * TURNS, None)):
            row = ratio_row("", (times["copy"], runs), "")
            ours, peer = _speed(size, runs), f"clone: {_speed(size, times['copy'])}"
            title = f"{what}: throughput of the {name} against a copy of {size:.1f} GB"
            yield Row(title, ours, peer, row.ratio, row.cpu, target=target, least=True)
    for name, runs in (("resize", times["resize"]), ("whole pass", times["pass"])):
        yield ratio_row(f"{what}: time of the {name}", (runs, times["rule"][: len(runs)]), rule)
        ours, theirs = peaks["resize" if name == "resize" else "pass"], peaks["rule"]
        title = f"{what}: peak memory of the {name}"
        yield Row(title, f"{ours:.2f} GB", f"{rule}: {theirs:.2f} GB", ours / theirs)


def _speed(size: float, runs: Sequence[Time]) -> str:
    return f"{size / middle(runs).wall:.2f} GB/s"

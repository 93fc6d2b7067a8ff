"""A Llama of 7 billion parameters in bfloat16 (32 layers, hidden 4096, MLP 11008, 32 heads, vocabulary 32000; random
weights in shards of 2 GB) grows from folder to folder on the command line, tensor by tensor, each run in a fresh
process: hidden 4096 to 5120, and the same with 32 to 40 layers. Memory is the peak of the whole process (VmHWM), torch
and transformers included. The plain copy reads and writes as many bytes as the output has, flushed to the disk like it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, Skipped, Time, fresh, memory

LIMIT = 4.0  # GB
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
SHARD = 2_000_000_000  # bytes
BLOCK = 2**24
RUNS = {
    "hidden x1.25": ["widen-hidden:to=5120"],
    "hidden x1.25, 40 layers": ["widen-hidden:to=5120", "deepen:to=40"],
}
NEEDED = 45e9  # bytes on the disk: the input, the larger output, and room


def make(folder: str) -> float:
    """Write the model into a folder; its size in GB."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from graphgrow.export import weights

    config = LlamaConfig(**CONFIG, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).bfloat16().state_dict()
    weights._SHARD = SHARD  # pyright: ignore[reportPrivateUsage]
    shards = weights.named("model", weights.split(dict(shapes)))
    for file, tensors in shards.items():
        made = {name: (torch.randn(tensor.shape) * 0.02).bfloat16() for name, tensor in tensors.items()}
        save_file(made, Path(folder) / file, metadata={"format": "pt"})
    (Path(folder) / "model.safetensors.index.json").write_text(weights.index(shards, {}))
    return sum(tensor.nbytes for tensor in shapes.values()) / 1e9


def grown(folder: str, out: str, specs: list[str]) -> tuple[float, float, float]:
    """Wall-clock and processor seconds of the command, and its peak memory in GB."""
    from graphgrow.cli import app

    wall, cpu = time.perf_counter(), time.process_time()
    passes = [word for spec in specs for word in ("--pass", spec)]
    try:
        app(["apply", folder, *passes, "-o", out, "--stream", "--quiet"])
    except SystemExit as done:
        if done.code:
            raise RuntimeError(f"exit code {done.code}") from done
    return time.perf_counter() - wall, time.process_time() - cpu, memory("VmHWM")


def copied(folder: str, target: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of a copy of all weights, file after file, one place on the disk for all."""
    wall, cpu = time.perf_counter(), time.process_time()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as source, Path(target).open("wb") as to:
            while block := source.read(BLOCK):
                to.write(block)
            to.flush()
            os.fsync(to.fileno())
        Path(target).unlink()
    return time.perf_counter() - wall, time.process_time() - cpu


def size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        if shutil.disk_usage(place).free < NEEDED:
            raise Skipped(f"{NEEDED / 1e9:.0f} GB on the disk of {place} are needed")
        old = Path(place) / "old"
        fresh("benchmarks.stream:make", str(old))
        for name, specs in RUNS.items():
            new = Path(place) / "new"
            wall, cpu, peak = fresh("benchmarks.stream:grown", str(old), str(new), specs)
            peer = Time(*fresh("benchmarks.stream:copied", str(new), str(Path(place) / "copy")))
            config = json.loads((new / "config.json").read_text())
            if config["hidden_size"] != 5120:
                raise RuntimeError(f"hidden {config['hidden_size']}")
            what = f"{name}: {size(old):.1f} to {size(new):.1f} GB"
            yield Row(what, str(Time(wall, cpu)), f"plain copy: {peer}", wall / peer.wall, cpu / peer.cpu)
            yield Row(f"peak memory: {name}", f"{peak:.2f} GB", f"limit: {LIMIT} GB", peak / LIMIT, target=1.0)
            shutil.rmtree(new)

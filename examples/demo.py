"""The main job, end to end, on a real model: train a small GPT-2 for a minute, widen it, check it, export it, train on.

Every step below is the command a user would type. What it writes goes to a temporary folder (or `--keep FOLDER`).
"""

from __future__ import annotations

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

LENGTH, BATCH = 96, 16


def text() -> Tensor:
    """The standard library's own source as bytes."""
    folder = pathlib.Path(pathlib.__file__).parent
    folder = folder if folder.is_dir() and folder.name != "pathlib" else folder.parent
    source = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:80])
    return torch.frombuffer(bytearray(source), dtype=torch.uint8).long()


def batches(data: Tensor, seed: int) -> Iterator[Tensor]:
    """Random windows of the text."""
    chooser = random.Random(seed)
    while True:
        starts = [chooser.randrange(len(data) - LENGTH) for _ in range(BATCH)]
        yield torch.stack([data[start : start + LENGTH] for start in starts])


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Next-byte loss, for the Hugging Face class and for a graphgrow module alike."""
    logits: Tensor = model(input_ids=tokens)["logits"]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def held_out(model: nn.Module, data: Tensor) -> float:
    """Mean loss in evaluation mode on ten fixed batches."""
    model.eval()
    source = batches(data, 1)
    with torch.no_grad():
        return sum(float(loss_of(model, next(source))) for _ in range(10)) / 10


def train(model: nn.Module, data: Tensor, seconds: float, seed: int) -> int:
    """AdamW for some seconds; returns the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    source, end, steps = batches(data, seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for group in optimizer.param_groups:  # a short warm-up: new parameters have no moments yet
            group["lr"] = 1e-3 * min(1.0, (steps + 1) / 20)
        optimizer.zero_grad()
        loss_of(model, next(source)).backward()
        optimizer.step()
        steps += 1
    return steps


def run(*command: str) -> None:
    """Show a command, run it, stop when it fails."""
    print(f"\n$ {' '.join(command)}", flush=True)
    subprocess.run(command, check=True)


def demo(folder: pathlib.Path, seconds: float) -> None:
    """The whole story, in `folder`."""
    torch.manual_seed(0)
    logging.disable_progress_bar()
    data = text()
    config = GPT2Config(
        vocab_size=256, n_positions=128, n_embd=128, n_layer=4, n_head=4, use_cache=False,
        bos_token_id=0, eos_token_id=0,  # there are no special bytes
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    steps = train(model, data, seconds, 0)
    print(
        f"A GPT-2 of {sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps on Python's own source."
    )
    before = held_out(model, data)
    model.save_pretrained(folder / "gpt2")

    source, traced, wide, onnx = (str(folder / name) for name in ("gpt2", "model.pt", "model.widen.pt", "model.onnx"))
    run("graphgrow", "trace", source, "-o", traced)
    run("graphgrow", "axes", traced)
    run("graphgrow", "apply", "--pass", "widen", traced)
    run("graphgrow", "check", traced, wide)
    run("graphgrow", "export", wide, "-o", onnx)

    from graphgrow import load

    program = load(wide)
    grown = program.module()
    after = held_out(grown, data)
    tokens = next(batches(data, 2))[:1, :40]
    deviation = in_onnx_runtime(onnx, tokens, model.eval())
    steps = train(grown, data, seconds / 2, 3)
    print(f"\nloss on held-out text: {before:.6f} as trained, {after:.6f} widened ({after - before:+.1e}),")
    print(f"  {held_out(grown, data):.6f} after {steps} more steps of training the widened model")
    print(f"ONNX Runtime on the widened model against the original: logits differ by at most {deviation:.1e}")
    if abs(after - before) > 1e-5 or deviation > 1e-3:
        sys.exit("the widened model is not the original")


def in_onnx_runtime(path: str, tokens: Tensor, model: nn.Module) -> float:
    """The largest difference between the exported file's logits and the original Hugging Face model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits, *_) = session.run(None, {"input_ids": tokens.numpy()})
    with torch.no_grad():
        return float((torch.from_numpy(logits) - model(input_ids=tokens)["logits"]).abs().max())


def main() -> None:
    """Parse the two options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--keep", type=pathlib.Path, help="write to this folder and keep it")
    parser.add_argument("--seconds", type=float, default=40, help="of training before the growth (half of it after)")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        demo(options.keep, options.seconds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            demo(pathlib.Path(folder), options.seconds)


if __name__ == "__main__":
    main()

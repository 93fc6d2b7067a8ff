"""Choosing masks: 2:4 and unstructured, of a whole model's weights, against one pass of torch.topk over the same
numbers (groups of four for 2:4; the larger half of all for unstructured). Peak memory is what is resident beyond the
weights and the masks themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure import Row, Skipped, available_memory, forget_peak, fresh, in_turns, memory, ratio_row
from graphgrow.patterns import Pattern, select

SIZES = (1_500_000_000, 500_000_000, 150_000_000)  # parameters: the largest that there is memory for
NEEDED = 24  # bytes for each: the weights, and what torch.topk makes beside them (values, indices)


def weights(count: int) -> Tensor:
    return torch.randn(count // 4096, 4096, generator=torch.Generator().manual_seed(0))


def peak(text: str, count: int) -> float:
    """GB that choosing a mask takes beyond the weights and the mask."""
    values = weights(count)
    before = memory()
    forget_peak()
    mask = select(values, Pattern.parse(text))
    return memory("VmHWM") - before - mask.numel() / 1e9


def rows() -> Iterator[Row]:
    free = available_memory()
    fitting = [size for size in SIZES if size * NEEDED / 1e9 < 0.5 * free]
    if not fitting:
        raise Skipped(f"{free:.1f} GB of memory are too few")
    count = fitting[0]
    values = weights(count)
    shown = f"{count / 1e9:.2g} billion weights"
    for text, works in {
        "2:4": {
            "ours": lambda: select(values, Pattern.parse("2:4@1")),
            "topk": lambda: values.view(-1, 4).abs().topk(2, 1),
        },
        "unstructured": {
            "ours": lambda: select(values, Pattern()),
            "topk": lambda: values.view(-1).abs().topk(values.numel() // 2, sorted=False),
        },
    }.items():
        found = in_turns(works, 3 if count < 1e9 else 1, warm=count < 1e9)
        yield ratio_row(f"{text}, {shown}", (found["ours"], found["topk"]), "torch.topk", target=1.5)
    for text in ("2:4@1", "unstructured"):
        most, whole = fresh("benchmarks.sparsify:peak", text, count), count * 4 / 1e9
        what = f"{text}: peak memory beyond weights and mask"
        yield Row(what, f"{most:.2f} GB", f"weights: {whole:.1f} GB", most / whole, target=0.1)

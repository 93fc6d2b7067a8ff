"""Choosing masks: 2:4 and unstructured, of a whole model's weights, against one pass of torch.topk over the same
numbers (groups of four, 2^28 numbers at a time, for 2:4; the larger half of all for unstructured, for which topk takes
more memory: there are fewer of them where it is short). Peak memory is what is resident beyond the weights and the
masks themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.measure import Row, Skipped, Work, available_memory, forget_peak, fresh, in_turns, memory, ratio_row
from graphgrow.patterns import Pattern, select

SIZES = (1_500_000_000, 500_000_000, 150_000_000)  # parameters: the largest that there is memory for
NEEDED = {"2:4": 9, "unstructured": 32}  # bytes for each: the weights, masks, and what torch.topk makes beside them
CHUNK = 2**28 // 4096  # rows


def weights(count: int) -> Tensor:
    return torch.randn(count // 4096, 4096, generator=torch.Generator().manual_seed(0))


def peak(text: str, count: int) -> float:
    """GB that choosing a mask takes beyond the weights and the mask."""
    values = weights(count)
    before = memory()
    forget_peak()
    mask = select(values, Pattern.parse(text))
    return memory("VmHWM") - before - mask.numel() / 1e9


def halves(values: Tensor) -> None:
    """The two largest of every four, a chunk at a time."""
    for rows_ in values.split(CHUNK):
        rows_.reshape(-1, 4).abs().topk(2, 1)


def rows() -> Iterator[Row]:
    works: dict[str, Callable[[Tensor], Mapping[str, Work]]] = {
        "2:4": lambda values: {
            "ours": lambda: select(values, Pattern.parse("2:4@1")),
            "topk": lambda: halves(values),
        },
        "unstructured": lambda values: {
            "ours": lambda: select(values, Pattern()),
            "topk": lambda: values.view(-1).abs().topk(values.numel() // 2, sorted=False),
        },
    }
    for text, work in works.items():
        free = available_memory()
        count = next((size for size in SIZES if size * NEEDED[text] / 1e9 < 0.75 * free), 0)
        if not count:
            raise Skipped(f"{free:.1f} GB of memory are too few")
        values = weights(count)
        found = in_turns(work(values), 3 if count < 1e9 else 1, warm=count < 1e9)
        what = f"{text}, {count / 1e9:.2g} billion weights"
        yield ratio_row(what, (found["ours"], found["topk"]), "torch.topk", target=1.5)
        del values
        most, whole = fresh("benchmarks.sparsify:peak", text.replace("2:4", "2:4@1"), count), count * 4 / 1e9
        what = f"{text}: peak memory beyond weights and mask"
        yield Row(what, f"{most:.2f} GB", f"weights: {whole:.1f} GB", most / whole, target=0.1)

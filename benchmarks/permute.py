"""Orders of input channels for 2:4: the part of the magnitude that is kept without one, by our search, and by the
greedy channel swaps that NVIDIA published (Pool and Yu, NeurIPS 2021), written anew as its CPU path does it: every swap
of two columns of different groups is tried by sorting both groups, the best that have no group in common are made,
only changed groups are tried again. Times are for one search. Where NVIDIA's own code is importable
(`permutation_search_kernels` of apex), it runs, too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Row
from graphgrow.patterns import Pattern
from graphgrow.rewrite.permute import kept, search

HALF = Pattern.parse("2:4")
ROUNDS = 5
SLOW = {"published swaps": 64, "apex": 32}  # columns up to which they are waited for


def matrices() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    yield "normal, 32 x 32", normal(32, 32)
    yield "normal, 64 x 64", normal(64, 64)
    yield "columns and rows of other scales, 64 x 64", normal(64, 64) * normal(64).exp() * normal(64, 1).exp()
    yield "normal, 256 x 256", normal(256, 256)
    yield "heavy tails, 256 x 1024", normal(256, 1024) * normal(256, 1024).exp()


def published(values: Tensor) -> NDArray[np.int64]:
    """Greedy channel swaps, one try at a time."""
    matrix, order = values.abs().numpy().copy(), np.arange(values.shape[1])
    groups = len(order) // 4

    def held(columns: NDArray[np.float32]) -> float:
        return float(np.sort(columns, axis=1)[:, 2:].sum())

    gains, changed = dict[tuple[int, int], float](), set(range(groups))
    while changed:
        for first in range(len(order)):
            for second in range(first + 1, len(order)):
                a, b = first // 4, second // 4
                if a != b and (a in changed or b in changed):
                    left, right = matrix[:, a * 4 : a * 4 + 4], matrix[:, b * 4 : b * 4 + 4]
                    before = held(left) + held(right)
                    left, right = left.copy(), right.copy()
                    left[:, first % 4], right[:, second % 4] = matrix[:, second], matrix[:, first]
                    gains[first, second] = held(left) + held(right) - before
        changed = set[int]()
        for (first, second), gain in sorted(gains.items(), key=lambda item: -item[1]):
            if gain < 1e-4 or {first // 4, second // 4} & changed:
                if gain < 1e-4:
                    break
                continue
            changed |= {first // 4, second // 4}
            for array in (matrix.T, order):
                array[[first, second]] = array[[second, first]]
    return order


def apex(values: Tensor) -> NDArray[np.int64]:
    """NVIDIA's own code: groups of eight columns exhaustively, 20 escapes."""
    module = import_module("permutation_search_kernels.exhaustive_search")
    np.random.seed(0)
    return np.asarray(module.Exhaustive_Search(values.numpy().copy(), stripe_group_size=8, escape_attempts=20)[2])


def timed(values: Tensor, order: NDArray[np.int64], start: float) -> tuple[float, float]:
    seconds = time.perf_counter() - start
    return kept(values[:, torch.as_tensor(order)], HALF) / float(values.abs().double().sum()), seconds


def rows() -> Iterator[Row]:
    for name, values in matrices():
        none = kept(values, HALF) / float(values.abs().double().sum())
        start = time.perf_counter()
        ours, seconds = timed(values, search(values, HALF, ROUNDS), start)
        shown = f"{ours:.2%} in {seconds:.1f} s"
        yield Row(f"{name}: no order", shown, f"none: {none:.2%}", ours / none)
        for peer, work in (("published swaps", published), ("apex", apex)):
            if values.shape[1] > SLOW[peer] or (peer == "apex" and not find_spec("permutation_search_kernels")):
                continue
            start = time.perf_counter()
            theirs, their = timed(values, work(values), start)
            yield Row(f"{name}: {peer}", shown, f"{peer}: {theirs:.2%} in {their:.1f} s", ours / theirs, target=1.0,
                      least=True)  # fmt: skip

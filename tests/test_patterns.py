"""Patterns of sparse weights: their text, exact counts, the most magnitude there is."""

from __future__ import annotations

from itertools import combinations, product
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphgrow.errors import OptionError
from graphgrow.patterns import Pattern, density, erdos_renyi, largest, select, select_together, valid

torch.set_num_threads(1)
FEW = settings(max_examples=60, deadline=None, derandomize=True)
TEXTS = ["unstructured", "2:4", "1:4", "4:8", "1:1", "7:16", "2:4@1", "2:4x4@0x1", "3:5x2@2x0", "block4x4",
         "block1x8@0x1", "block4x1@1x2"]  # fmt: skip
WRONG = ["", "2:4 ", "4:2", "0:4", "2:4@", "2:4x4@1", "2:4@0x1", "2:4x1", "2:4x4@1x1", "block4", "block4x4@1",
         "block0x4", "02:4", "2:40000", "4x4", "Unstructured", "unstructured@1", "2:4\n", "2:4@10"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize("text", WRONG)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="no pattern"):
        Pattern.parse(text)


def values(shape: tuple[int, ...], seed: int, few: bool = False) -> Tensor:
    """Random values of both signs; `few` different ones, so that there are ties, and zeros."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator)
    return found.mul(2).round().div(2) if few else found


@FEW
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2), st.booleans(), st.integers(0, 99), st.data())
def test_n_of_m_is_what_a_sort_of_each_group_keeps(
    groups: int, size: int, dim: int, few: bool, seed: int, data: Any
) -> None:
    kept = data.draw(st.integers(1, size))
    shape = [3, 2, 4]
    shape[dim] = groups * size
    scores = values(tuple(shape), seed, few)
    pattern = Pattern("n:m", kept, size, inputs=dim)
    mask = select(scores, pattern)
    order = scores.abs().movedim(dim, -1).reshape(-1, size).sort(dim=1, descending=True, stable=True).indices
    wanted = torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order[:, :kept], True)
    there = mask.movedim(dim, -1).reshape(-1, size)
    assert torch.equal(there, wanted), "the largest of each group, of equal ones the first"
    assert valid(mask, pattern) and mask.shape == scores.shape and density(mask) == kept / size


@FEW
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4)]), st.sampled_from([1, 2, 3]), st.booleans(), st.integers(0, 99))
def test_no_valid_mask_keeps_more(nm: tuple[int, int], tile: int, few: bool, seed: int) -> None:
    """Against every mask there is of one tile."""
    kept, size = nm
    scores = values((tile, size), seed, few)
    pattern = Pattern("n:m", kept, size, tile, 0 if tile > 1 else None, 1)
    mask = select(scores, pattern)
    best = max(float(scores[:, list(chosen)].abs().sum()) for chosen in combinations(range(size), kept))
    if tile == 1:
        everything = [torch.tensor(flags) for flags in product([False, True], repeat=size)]
        all_valid = [m for m in everything if valid(m[None], pattern)]
        assert len(all_valid) == sum(len(list(combinations(range(size), n))) for n in range(kept + 1))
        best = max(float(scores[0, m].abs().sum()) for m in all_valid)
    assert float(scores[mask].abs().sum()) == pytest.approx(best, rel=1e-6)
    assert valid(mask, pattern) and int(mask.sum()) == kept * tile


@FEW
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=3), st.floats(0, 1), st.booleans(), st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_the_largest_of_all_are_counted_exactly(
    sizes: list[int], part: float, few: bool, seed: int, dtype: torch.dtype
) -> None:
    tensors = [values((size,), seed + index, few).to(dtype) for index, size in enumerate(sizes)]
    together = torch.cat(tensors)
    keep = round(part * len(together))
    masks = largest(tensors, keep)
    order = together.abs().sort(descending=True, stable=True).indices
    wanted = torch.zeros(len(together), dtype=torch.bool)
    wanted[order[:keep]] = True
    assert torch.equal(torch.cat(masks), wanted)
    assert all(mask.shape == tensor.shape for mask, tensor in zip(masks, tensors, strict=True))


def test_numbers_that_differ_in_their_last_bit_are_told_apart() -> None:
    one = torch.tensor(1.0)
    next_one = torch.nextafter(one, torch.tensor(2.0))
    scores = torch.stack([one, -next_one, one, next_one])
    assert select(scores, Pattern(), 0.5).tolist() == [False, True, False, True]
    double = torch.tensor([1.0, 1.0 + 2**-52, 1.0, 0.5], dtype=torch.float64)
    assert select(double, Pattern(), 0.25).tolist() == [False, True, False, False]
    assert select(torch.tensor([0.0, 1e-45, 0.0, -0.0]), Pattern(), 0.25).tolist() == [False, True, False, False]


@FEW
@given(st.sampled_from([(2, 3), (1, 4), (4, 1), (2, 2)]), st.booleans(), st.floats(0.05, 1), st.integers(0, 99))
def test_blocks_are_whole_and_counted(block: tuple[int, int], swapped: bool, part: float, seed: int) -> None:
    rows, columns = block
    outputs, inputs = (1, 0) if swapped else (0, 1)
    scores = values((12, 12), seed)
    pattern = Pattern("block", columns, columns, rows, outputs, inputs)
    mask = select(scores, pattern, part)
    count = 144 // (rows * columns)
    assert int(mask.sum()) == round(part * count) * rows * columns and valid(mask, pattern)
    sums = (scores.t() if swapped else scores).abs().reshape(12 // rows, rows, 12 // columns, columns).sum((1, 3))
    there = (mask.t() if swapped else mask).reshape(12 // rows, rows, 12 // columns, columns)[:, 0, :, 0]
    if 0 < int(there.sum()) < count:
        assert float(sums[there].min()) >= float(sums[~there].max())
    broken = mask.clone()
    broken[0, 0] = ~broken[0, 0]
    assert valid(broken, pattern) == (rows * columns == 1)


def test_what_does_not_fit_is_filled_up_with_zeros() -> None:
    scores = values((3, 10), 0)
    pattern = Pattern.parse("2:4@1")
    mask = select(scores, pattern)
    assert mask.shape == scores.shape and valid(mask, pattern)
    assert mask[:, :8].reshape(3, 2, 4).sum(2).eq(2).all() and mask[:, 8:].all()
    assert not valid(torch.ones(3, 10, dtype=torch.bool), pattern)
    block = select(values((5, 5), 1), Pattern.parse("block2x2@0x1"), 0.5)
    assert valid(block, Pattern.parse("block2x2@0x1")) and not block.all()


def test_more_or_moved_is_not_valid() -> None:
    pattern = Pattern.parse("2:4@0")
    mask = select(values((8, 3), 0), pattern)
    more = mask.clone()
    more[:4, 1] = True
    assert valid(mask, pattern) and not valid(more, pattern)
    assert valid(mask & (torch.arange(8) != 2)[:, None], pattern), "fewer are as good"
    tiles = select(values((4, 32), 0), Pattern.parse("2:4x2@0x1"))
    assert torch.equal(tiles[0], tiles[1]) and not torch.equal(tiles[1], tiles[2])
    moved = tiles.clone()
    moved[0] = tiles[2]
    assert not valid(moved, Pattern.parse("2:4x2@0x1"))


def test_together_the_larger_tensor_keeps_more() -> None:
    small, large = values((10, 10), 0), values((10, 10), 1) * 100
    first, second = select_together([small, large], [Pattern(), Pattern()], 0.5)
    assert int(first.sum()) + int(second.sum()) == 100 and density(second) > 0.95


SHAPES = [(64, 3, 7, 7), (64, 64, 3, 3), (128, 64, 3, 3), (10, 512), (512, 512, 3, 3), (512, 256, 1, 1)]


@pytest.mark.parametrize("part", [0.05, 0.1, 0.2, 0.5, 0.9])
def test_densities_by_shape_are_those_of_itop(part: float) -> None:
    """Computed anew as ITOP's `core.py` has it: raw scores, epsilon, layers that are full set aside one
    after the other."""
    names = [str(index) for index in range(len(SHAPES))]
    sizes, dense = {n: prod(s) for n, s in zip(names, SHAPES, strict=True)}, set[str]()
    while True:
        divisor, rhs, raw = 0.0, 0.0, dict[str, float]()
        for name, shape in zip(names, SHAPES, strict=True):
            if name in dense:
                rhs -= sizes[name] * (1 - part)
            else:
                rhs += sizes[name] * part
                raw[name] = (sum(shape) / prod(shape)) ** 1
                divisor += raw[name] * sizes[name]
        epsilon = rhs / divisor
        top = max(raw.values())
        if top * epsilon <= 1:
            break
        dense |= {name for name, value in raw.items() if value == top}
    wanted = [1.0 if name in dense else epsilon * raw[name] for name in names]
    found = erdos_renyi(SHAPES, part)
    assert found == pytest.approx(wanted, rel=1e-12)
    whole = sum(d * prod(s) for d, s in zip(found, SHAPES, strict=True)) / sum(sizes.values())
    assert whole == pytest.approx(part, rel=1e-9) and max(found) <= 1
    assert 1.0 in found or part < 0.2
    assert erdos_renyi([(4, 4), (8, 8)], 1.0) == [1.0, 1.0]

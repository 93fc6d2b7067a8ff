"""Orders of units under which N:M keeps more: how good they are, and that nothing else changes."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from graphgrow.errors import Refusal
from graphgrow.patterns import Pattern, select
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.masks import masks
from graphgrow.rewrite.permute import kept, search
from graphgrow.rewrite.prune import reordered
from graphgrow.runtime import grow_optimizer
from graphgrow.verify import check
from passes import PermuteForNm, Sparsify
from tests.programs import outputs, traced

torch.set_num_threads(1)
HALF = Pattern.parse("2:4")


def columns(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(seed))


def test_kept_is_what_a_mask_keeps() -> None:
    values = columns(7, 24)
    mask = select(values, Pattern.parse("2:4@1"))
    assert kept(values, HALF) == pytest.approx(float(values[mask].abs().double().sum()), rel=1e-6)


@pytest.mark.parametrize(("pattern", "seed"), [("2:4", 0), ("1:4", 1), ("3:4", 2), ("1:2", 3)])
def test_as_good_as_all_orders_there_are(pattern: str, seed: int) -> None:
    """Eight columns: the best of all groupings is found."""
    asked, values = Pattern.parse(pattern), columns(6, 8 if pattern != "1:2" else 6, seed)
    size = asked.group
    orders = permutations(range(values.shape[1]))
    canonical = (
        o for o in orders if all(list(o[i : i + size]) == sorted(o[i : i + size]) for i in range(0, len(o), size))
    )
    best = max(kept(values[:, list(order)], asked) for order in canonical)
    found = search(values, asked, 40)
    assert sorted(found) == list(range(values.shape[1]))
    assert kept(values[:, found], asked) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_no_swap_of_two_columns_gains_any_more(pattern: str) -> None:
    """Against every swap, tried one by one."""
    asked, values = Pattern.parse(pattern), columns(16, 32)
    order = search(values, asked, 0)
    now = kept(values[:, order], asked)
    assert now > 1.02 * kept(values, asked)
    for first in range(32):
        for second in range(first):
            swapped = order.copy()
            swapped[[first, second]] = swapped[[second, first]]
            assert kept(values[:, swapped], asked) <= now * (1 + 1e-5)


def test_more_rounds_keep_no_less() -> None:
    values = columns(24, 64)
    found = [kept(values[:, search(values, HALF, rounds)], HALF) for rounds in (0, 10, 30)]
    assert found == sorted(found) and found[0] < found[2]
    assert search(values, HALF, 5).tolist() == search(values, HALF, 5).tolist()


def test_large_columns_that_share_a_group_are_parted() -> None:
    values = columns(40, 16).abs() * 0.01
    values[:, :8] += 1
    order = search(values, HALF, 0)
    assert kept(values, HALF) < 0.6 * float(values.sum()) < 0.9 * float(values.sum()) < kept(values[:, order], HALF)


@pytest.mark.parametrize("model", ["gpt2", "mixtral", "resnet", "t5", "grouped_conv", "deepseek_v3"])
def test_the_function_stays_and_masks_keep_more(model: str) -> None:
    old = traced(model)
    new = PermuteForNm(rounds=1)(old)
    found = new.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested" and found.notes
    assert check(old, new).holds and check(new, old).holds
    assert str(new.graph) == str(old.graph) and new.digest != old.digest
    share = [cut_share(program) for program in (old, new)]
    assert share[1] > share[0]


def cut_share(program: Program) -> float:
    """The part of the magnitude that 2:4 keeps."""
    rewriter = Rewriter(program)
    Sparsify().rewrite(rewriter)
    pairs = [
        (program.tensors[n].detach().abs(), rewriter.program.tensors[m]) for n, m in masks(rewriter.program).items()
    ]
    return sum(float(w[m].sum()) for w, m in pairs) / sum(float(w.sum()) for w, _ in pairs)


def test_lies_about_orders() -> None:
    """A tensor that is left behind, two units exchanged in one place, a value that is off: nothing is proved."""
    old = traced("nanogpt")
    new = PermuteForNm(rounds=0, axis="mlp@blocks.0")(old)
    assert check(old, new).holds
    name, other = "blocks.0.down.weight", "blocks.0.up.bias"
    exchanged = new.tensors[name].detach().clone()
    exchanged[:, [3, 4]] = exchanged[:, [4, 3]]
    off = new.tensors[name].detach().clone()
    off[2, 5] += 1e-6
    for lie in ({name: old.tensors[name]}, {other: old.tensors[other]}, {name: exchanged}, {name: off}):
        assert not check(old, new.replace(tensors={**new.tensors, **lie})).holds


def test_axes_with_places_stay() -> None:
    old = traced("nanogpt")
    vocab = next(axis for axis in old.axes.named if axis.role == "vocab")
    rewriter = Rewriter(old)
    with pytest.raises(Refusal, match="places"):
        rewriter.reorder({vocab.atom: list(range(101))[::-1]})
    classes = next(axis for axis in traced("skip_mlp").axes.named if axis.role == "classes")
    size = int(str(classes.size))
    with pytest.raises(Refusal, match="shows it"):
        Rewriter(traced("skip_mlp")).reorder({classes.atom: list(range(size))[::-1]})
    turned = reordered(traced("skip_mlp"), {classes.atom: list(range(size))[::-1]})
    assert not check(traced("skip_mlp"), turned).holds, "outputs in another order are other outputs"


def test_state_goes_with_the_units() -> None:
    """Momentum of an optimizer, through the new order: a step before it is a step after it."""
    old = traced("nanogpt").to(torch.float64)
    new = PermuteForNm(rounds=0)(old)
    before, after = old.module().eval(), new.module().eval()
    optimizer = SGD(before.parameters(), lr=0.1, momentum=0.9)
    step(before, optimizer, old)
    carried = grow_optimizer(optimizer, before, after)
    for name, parameter in after.named_parameters():
        first = carried.state[parameter]["momentum_buffer"]
        assert float(first.abs().sum()) == pytest.approx(
            float(optimizer.state[before.get_parameter(name)]["momentum_buffer"].abs().sum()), rel=1e-12
        )
    exchanged = after.get_parameter("blocks.0.up.weight")
    rows = carried.state[exchanged]["momentum_buffer"]
    places = [int((old.tensors["blocks.0.up.bias"] == value).nonzero()) for value in new.tensors["blocks.0.up.bias"]]
    theirs = optimizer.state[before.get_parameter("blocks.0.up.weight")]["momentum_buffer"][places]
    assert torch.equal(rows.sort(1).values, theirs.sort(1).values)


def step(module: Any, optimizer: SGD, program: Program) -> None:
    sum(out.square().mean() for out in outputs(module, program.example(seed=1))).backward()  # pyright: ignore
    optimizer.step()

"""Single operators in small models: the axes that come out, and the permutation oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphgrow import ops
from graphgrow.module.lowering import overload
from graphgrow.program import Program
from graphgrow.tracing import trace
from tests.permutation import permutes

torch.set_num_threads(1)
CLASSES, HIDDEN, FEATURES = 5, 7, 3
ATEN: Any = torch.ops.aten


class Model(nn.Module):
    """A linear layer on (batch, 3) -> (batch, 7), then what the case makes of it with its own parameters."""

    def __init__(self, function: Callable[..., object], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem = nn.Linear(FEATURES, HIDDEN)
        self.weights = nn.ParameterList(nn.Parameter(torch.rand(shape) + 0.5, False) for shape in shapes)
        self.register_buffer("fixed", torch.tensor([-1, 0]))


class OnFeatures(Model):
    def forward(self, x: Tensor) -> object:
        return self.function(self.stem(x), *self.weights)


class WithTarget(Model):
    def forward(self, x: Tensor, target: Tensor) -> object:
        return self.function(self.stem(x), target, *self.weights)


class WithFixed(Model):
    def forward(self, x: Tensor) -> object:
        return self.function(self.stem(x), self.get_buffer("fixed"), *self.weights)


@dataclass(frozen=True)
class Case:
    """What a model does, the shapes of its parameters, and for each of these the terms: letters for free axes, `!` for
    frozen ones."""

    function: Callable[..., object]
    shapes: tuple[tuple[int, ...], ...]
    terms: tuple[str, ...]
    target: Tensor | None = None
    fixed: bool = False

    def program(self) -> Program:
        x = torch.randn(4, FEATURES)
        if self.target is not None:
            return trace(WithTarget(self.function, *self.shapes), (x, self.target))
        return trace((WithFixed if self.fixed else OnFeatures)(self.function, *self.shapes), (x,))


def shown(program: Program) -> list[str]:
    """The terms of the stem's output and of the case's own parameters: equal letters for equal axes."""
    letters: dict[object, str] = {}
    found: list[str] = []
    for name, terms in program.axes.parameters.items():
        if name == "stem.bias" or name.startswith("weights"):
            atoms = [(atom, atom in program.axes.frozen) for term in terms for atom in term.atoms]
            found.append(" ".join(letters.setdefault(a, "abcdef"[len(letters)]) + "!" * frozen for a, frozen in atoms))
    return found


def _assigned(x: Tensor, index: object, value: object) -> Tensor:
    x = x.clone()
    x[index] = value  # type: ignore[index]
    return x


LABELS, ODDS = torch.tensor([0, 6, 2, 1]), torch.rand(4, HIDDEN).softmax(-1)
CASES: dict[str, Case] = {
    # losses: the weight goes along the classes, and so do probabilities
    "cross_entropy": Case(
        lambda x, y, w: F.cross_entropy(x, y, weight=w, label_smoothing=0.1), ((HIDDEN,),), ("a", "a"), LABELS
    ),
    "cross_entropy of odds": Case(
        lambda x, y, w: F.cross_entropy(x, y, weight=w, reduction="none"), ((HIDDEN,),), ("a", "a"), ODDS
    ),
    "cross_entropy, none": Case(
        lambda x, y, w: F.cross_entropy(x, y, weight=w, reduction="none"), ((HIDDEN,),), ("a", "a"), LABELS
    ),
    "nll_loss": Case(lambda x, y, w: F.nll_loss(x.log_softmax(-1), y, weight=w), ((HIDDEN,),), ("a", "a"), LABELS),
    "pos_weight": Case(
        lambda x, y, w, p: F.binary_cross_entropy_with_logits(x, y, weight=w, pos_weight=p, reduction="none"),
        ((HIDDEN,), (HIDDEN,)), ("a", "a", "a"), ODDS,
    ),
    "binary_cross_entropy": Case(
        lambda x, y, w: F.binary_cross_entropy(x.sigmoid(), y, weight=w), ((HIDDEN,),), ("a", "a"), ODDS
    ),
    # in-place assignment by index: values along what the indices pick
    "index_put": Case(lambda x, i, v: _assigned(x, (slice(None), i), v), ((2,),), ("a!", "b"), fixed=True),
    "index_put of rows": Case(_assigned, ((2, HIDDEN),), ("a", "b a"), fixed=True),
    "index_put by a mask": Case(lambda x: _assigned(x, x > 0, 3.0), (), ("a",)),
    "index": Case(lambda x, i, w: x[:, i] * w, ((2,),), ("a!", "b"), fixed=True),
    # reductions: where the dimensions stand among the arguments
    "norm": Case(lambda x, w: x * ATEN.norm.ScalarOpt_dim(w, 2, [1]), ((HIDDEN, HIDDEN),), ("a", "a b")),
    "norm of all": Case(lambda x, w: x * ATEN.norm.Scalar(w, 1), ((HIDDEN, 5),), ("a", "b c")),
    "norm in one type": Case(lambda x, w: x * w.norm(2, 1, dtype=torch.float64), ((HIDDEN, 5),), ("a", "a b")),
    "var": Case(lambda x, w: x * ATEN.var.default(w) * ATEN.std.default(w, True), ((HIDDEN, 5),), ("a", "b c")),
    "var of rows": Case(lambda x, w: x * w.var(1) * w.std(-1, False), ((HIDDEN, 5),), ("a", "a b")),
    "weight norm": Case(
        lambda x, v, g: F.linear(x, ATEN._weight_norm(v, g, 0)), ((5, HIDDEN), (5, 1)), ("a", "b a", "b")
    ),
    "weight norm of all": Case(
        lambda x, v, g: F.linear(x, ATEN._weight_norm(v, g, -1)), ((5, HIDDEN), ()), ("a", "b a", "")
    ),
    # what can't be cut or picked from part by part keeps its size; other dimensions are left alone
    "gather from parts": Case(
        lambda x, y, w: torch.cat([x, x * w], 1).gather(1, y[:, None]), ((HIDDEN,),), ("a!", "a!"), LABELS
    ),
    "reshape across parts": Case(
        lambda x, v, w: torch.cat([x[:, :, None] * v, (w * v).expand(len(x), 5, 5)], 1).reshape(-1, 3, 4, 5),
        ((5,), (5, 1)), ("a!", "b", "c!"),
    ),
    # windows of one point: they keep space where they meet each position once
    "point": Case(lambda x, w: F.conv1d(x[:, None], w)[:, 0], ((1, 1, 1),), ("a", "")),
    "point, same": Case(lambda x, w: F.conv1d(x[:, None], w, padding="same")[:, 0], ((1, 1, 1),), ("a", "")),
    "stride": Case(lambda x, w: F.conv1d(x[:, None], w, stride=2, padding=3)[:, 0], ((1, 1, 1),), ("a!", "")),
    "transposed": Case(
        lambda x, w: F.conv_transpose1d(x[:, None], w, padding=1, stride=2, output_padding=1)[:, 0, :HIDDEN],
        ((1, 1, 1),), ("a!", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_terms(case: str) -> None:
    assert shown(CASES[case].program()) == list(CASES[case].terms)


@pytest.mark.parametrize("case", CASES)
def test_permutation(case: str) -> None:
    permutes(CASES[case].program())


def test_every_row_is_of_an_operator_that_there_is() -> None:
    for name in ops.TABLE:
        if name.startswith("aten."):
            overload(name)


class Labelled(nn.Module):
    """Labels that are padded, shifted and flattened before they are compared; some are to be ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(3, 4), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        logits = self.head(self.embedding(tokens) + self.embedding.weight[rows])
        shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        shifted = torch.where(shifted == 1, -100, shifted)
        return F.cross_entropy(logits.view(-1, CLASSES), shifted.view(-1))


def test_examples_lie_in_the_ranges_of_tables_and_classes() -> None:
    inputs = {name: torch.randint(3, (2, 6)) for name in ("tokens", "labels", "rows")}
    example = trace(Labelled(), inputs).example({"batch": 40})
    assert set(example["tokens"].unique().tolist()) == {0, 1, 2}
    assert set(example["labels"].unique().tolist()) == set(range(CLASSES))
    assert set(example["rows"].unique().tolist()) == set(range(-3, 3)), "an index may count from the end"

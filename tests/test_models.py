"""Every model of the zoo: traced, its axes inferred, its widths grown with a proof and a test; the support table."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from graphgrow.axes.names import Named
from graphgrow.sizes import number
from graphgrow.tracing import trace
from passes import Widen
from tests import growth
from tests.programs import traced
from tests.support import NOTHING_INNER, TABLE, support, table, wide_axes
from tests.zoo import ZOO

# Wide axes that must be refused, by model, with the operator that mixes units. A norm over the axis needs the rules of
# growing a residual stream; the table is checked both ways, so an axis that starts to work must leave it.
REFUSED = {
    "convnext": {"aten.layer_norm.default"},
    "convnextv2": {"aten.layer_norm.default"},
    "group_norm": {"aten.group_norm.default"},
}


@pytest.mark.parametrize("model", ZOO)
def test_widen(model: str) -> None:
    """All inner widths at once: proved, and tested at batch 1, other lengths, with random free blocks."""
    found = support(model)
    if model in NOTHING_INNER:
        assert found.certificate is None and "no inner axis" in found.why
        return
    assert found.certificate is not None, found.why
    assert found.certificate.evidence == "proved and tested"
    assert found.certificate.proof is not None and found.certificate.proof.constraints
    inner = {axis.name for axis in wide_axes(traced(model)) if axis.inner and not axis.frozen}
    grown = {growth.axis for growth in found.certificate.growth}
    assert grown == {name for name in inner if not found.others.get(name)}


@pytest.mark.parametrize("model", ZOO)
def test_other_widths(model: str) -> None:
    """Widths on residual streams and the like: proved to grow, or refused for a reason that is known and true."""
    reasons = {why.partition(" (")[0] for why in support(model).others.values() if why}
    assert reasons <= REFUSED.get(model, set())
    assert bool(reasons) == (model in REFUSED)


LISTED = [name for name, case in ZOO.items() if case.listed]


def each(model: str) -> list[Named]:
    """The wide axes of a model that can grow, each alone; in deep models one of each kind of size is enough."""
    refused = {name for name, why in support(model).others.items() if why}
    found = [axis for axis in wide_axes(traced(model)) if axis.name not in refused and not axis.frozen]
    return list({(axis.role, str(axis.size), len(axis.sites)): axis for axis in found}.values())


@pytest.mark.parametrize("model", LISTED)
def test_each_width_alone(model: str) -> None:
    """Every kind of MLP and channel axis, residual streams of convolutional nets included, grown by itself."""
    for axis in each(model):
        certificate = Widen(axis=axis.name, to=number(axis.size) + 3)(traced(model)).certificate
        assert certificate is not None and certificate.evidence == "proved and tested", axis.name
        assert [growth.axis for growth in certificate.growth] == [axis.name]


@pytest.mark.parametrize("model", ZOO)
def test_growth_table(model: str) -> None:
    """Each growth pass on each model, as docs/growth.md has it."""
    assert growth.row(model) in growth.TABLE.read_text().splitlines(), "run `python -m tests.growth`"


class SlicedPositions(nn.Module):
    """Learned positions, as many as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.positions = nn.Parameter(torch.randn(9, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(x + torch.relu(self.up(x)))


@pytest.mark.parametrize("init", ["scaled", "copy"])
def test_a_table_cut_at_a_dynamic_size(init: Literal["scaled", "copy"]) -> None:
    """Its rows are known by number only; its other dimension grows all the same."""
    program = trace(SlicedPositions(), (torch.randint(11, (2, 5)),))
    wide = Widen(axis="hidden", to=8, init=init)(program)
    assert wide.certificate is not None and wide.certificate.evidence == "proved and tested"
    assert wide.tensors["positions"].shape == (9, 8)


def test_table() -> None:
    """The published table is what the tests find."""
    assert TABLE.read_text() == table(), "docs/models.md is out of date: run `python -m tests.support`"

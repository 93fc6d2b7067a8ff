"""Streams that need different ways to keep the function grow in one pass: means in one, copies in the other."""

from __future__ import annotations

import pytest

from graphgrow.errors import Refusal
from graphgrow.program import Program
from graphgrow.prove.propose import STRATEGIES
from graphgrow.rewrite import Rewriter
from graphgrow.verify import check
from passes import WidenHidden
from tests.programs import traced


def lied(new: Program, name: str) -> Program:
    tensor = new.tensors[name].detach().clone()
    tensor[-1] += 1e-3
    return new.replace(tensors={**new.tensors, name: tensor})


@pytest.mark.parametrize("full", [True, False])
def test_an_encoder_by_copies_and_a_decoder_by_means(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not full:  # as large programs are tested
        for room in ("equivalence", "judges", "prune"):
            monkeypatch.setattr(f"graphgrow.verify.{room}.FULL_SIZE", 0)
    old = traced("whisper")
    factors = {"hidden@model": 2.0, "hidden@model.decoder": 1.5}  # copies: multiples only
    sizes = {
        axis.atom: int(factors[axis.name] * int(str(axis.size))) for axis in old.axes.named if axis.name in factors
    }
    assert len(sizes) == 2
    for strategy in STRATEGIES:
        assert Rewriter(old).why_not(sizes, (strategy,), extend_outputs=True), "no single one will do"
    rewriter = Rewriter(old)
    rewriter.grow(sizes, extend_outputs=True)
    new = rewriter.program
    certificate = check(old, new)
    assert certificate and certificate.proof and certificate.test and certificate.test.reduced != full
    fills = {
        row.axis: {r.fill for r in certificate.proof.constraints if r.axis == row.axis} for row in certificate.growth
    }
    assert "copy" in fills["hidden@model"] and "mean" not in fills["hidden@model"]
    assert "mean" in fills["hidden@model.decoder"]
    for name in ("model.encoder.layers.0.fc2.weight", "model.decoder.layers.1.fc2.weight"):
        assert not check(old, lied(new, name)).holds, name


def test_what_one_stream_cannot_is_refused() -> None:
    with pytest.raises(Refusal, match="can't grow"):
        WidenHidden(axis="hidden", to=60, outputs="extend")(traced("whisper"))  # the encoder's copies: multiples only

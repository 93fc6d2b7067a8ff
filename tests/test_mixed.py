"""Programs of which some axes are larger and others smaller: proved from outside, and lies about them are not."""

from __future__ import annotations

from functools import cache

import pytest

from graphgrow.pipeline import Pipeline
from graphgrow.program import Program
from graphgrow.verify import check
from tests.programs import traced


@cache
def pair(model: str, grow: str) -> tuple[Program, Program]:
    """A model with dead units in its MLPs; and without them, with another axis larger."""
    old = Pipeline.parse(["widen:axis=mlp,to=100"])(traced(model))
    return old, Pipeline.parse(["prune-axis:axis=mlp,to=80", grow])(old)


@pytest.mark.parametrize(
    ("model", "grow"),
    [("gpt2", "add-heads:to=6"), ("gpt2", "widen-keys:to=16,scale=weights"), ("llama", "widen-hidden:to=60")],
)
def test_larger_and_smaller_at_once(model: str, grow: str) -> None:
    old, new = pair(model, grow)
    found = check(old, new)
    assert found.holds and found.proof and found.proof.holds and found.test and found.test.holds, str(found)
    changes = [row.new > row.old for row in found.growth]
    assert any(changes) and not all(changes)
    assert any(row.removed for row in found.proof.constraints) and not all(r.removed for r in found.proof.constraints)


@pytest.mark.parametrize("which", ["kept", "new", "gone"])
def test_lies(which: str) -> None:
    old, new = pair("gpt2", "add-heads:to=6")
    if which == "gone":  # what was removed did something
        name = "transformer.h.1.mlp.c_proj.weight"
        tensor = old.tensors[name].detach().clone()
        tensor[90, 3] = 1e-3
        old = old.replace(tensors={**old.tensors, name: tensor})
    else:
        name = "transformer.h.0.attn.c_proj.weight"
        tensor = new.tensors[name].detach().clone()
        tensor[-1 if which == "new" else 0, 5] += 1e-3
        new = new.replace(tensors={**new.tensors, name: tensor})
    found = check(old, new)
    assert not found.holds and found.proof and not found.proof.holds
    assert check(*pair("gpt2", "add-heads:to=6")).holds

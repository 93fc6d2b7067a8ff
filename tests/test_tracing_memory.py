"""In-place operators: what a change of one tensor does to those that share its memory, and to those that don't."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphgrow.errors import TraceError
from graphgrow.tracing import trace
from tests.programs import outputs

X = torch.arange(24.0).reshape(2, 3, 4)


class Model(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x: Tensor) -> object:
        return self.function(x * 1)


def agrees(function: Callable[..., object]) -> None:
    """The program gives what eager execution gives, in both modes."""
    model = Model(function)
    module = trace(model, (X,), check=False).module()
    for training in (True, False):
        expected = outputs(model.train(training), {"x": X})
        found = outputs(module.train(training), {"x": X})
        assert len(expected) == len(found)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), function


def changed(x: Tensor, *views: Tensor) -> tuple[Tensor, ...]:
    """The last view changed in place; all of them seen."""
    views[-1].mul_(3).add_(1)
    return (x, *views)


CASES: dict[str, Callable[[Tensor], object]] = {
    # what looks into memory
    "transpose": lambda x: changed(x, x.transpose(1, 2)),
    "reshape": lambda x: changed(x, x.reshape(-1)),
    "flatten": lambda x: changed(x, x.flatten(1)),
    "slices": lambda x: changed(x, x[:, 1:], x[:, 1:, 2:], x[..., ::2]),
    "select": lambda x: changed(x, x[:, 1], x[:, 1, 2:]),
    "contiguous": lambda x: changed(x, x.contiguous()),
    "chunk": lambda x: changed(x, *x.chunk(2, -1)),
    "split": lambda x: changed(x, *x.split([1, 2], 1)),
    "unbind": lambda x: changed(x, *x.unbind(1)),
    "view of a view": lambda x: changed(x, x.transpose(1, 2), x.transpose(1, 2)[:, 1:], x.permute(2, 0, 1)[0]),
    "unsqueezed in place": lambda x: changed(x.clone().unsqueeze_(0), x.clone().transpose_(1, 2)),
    "complex": lambda x: changed(x, torch.view_as_complex(x.reshape(2, 3, 2, 2))),
    "real": lambda x: changed(x, torch.view_as_real(torch.view_as_complex(x.reshape(2, 3, 2, 2)))),
    # what is a copy, as strides have it
    "contiguous copy": lambda x: changed(x, x.transpose(1, 2).contiguous()),
    "reshape copy": lambda x: changed(x, x.transpose(1, 2).reshape(-1)),
    "flatten copy": lambda x: changed(x, x.transpose(1, 2).flatten(1)),
    "slice of a copy": lambda x: changed(x, x.transpose(1, 2).contiguous()[:, 1:]),
    "cast": lambda x: changed(x, x.double()),
    "clone": lambda x: changed(x, x.clone()),
    # one after the other
    "view, then parent": lambda x: (v := x[0], v.add_(1), x.mul_(2), v),
    "copied in": lambda x: (y := x + 1, x.copy_(y), x.add_(1), y),
    "filled": lambda x: (y := x[:, 0], x.zero_(), y.fill_(2), x),
    "drawn": lambda x: torch.empty_like(x).bernoulli_(1.0) * x,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_as_in_eager(case: str) -> None:
    agrees(CASES[case])


def _without_gradient(x: Tensor) -> Tensor:
    """Eager execution computes no gradient of this change, but one of `x` before it."""
    with torch.no_grad():
        x[1:].mul_(2)
    return x


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    # the memory is shared in one mode, or one data type
    "dropout": (lambda x: (F.dropout(x, 0.0).add_(1), x), "clone()"),
    "diagonal": (lambda x: (torch.diagonal(x, 0, 1, 2).add_(1), x), "clone()"),
    "no gradient": (_without_gradient, "clone()"),
    "out": (lambda x: torch.add(x, 1, out=torch.empty_like(x)), "out="),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(case: str) -> None:
    function, fix = REFUSED[case]
    with pytest.raises(TraceError) as caught:
        trace(Model(function), (X,), check=False)
    assert fix in caught.value.fix


def test_state_that_changes_is_refused() -> None:
    class Stateful(Model):
        state: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.state[:2].add_(1)
            return x + self.state

    with pytest.raises(TraceError, match="buffer that is changed in place"):
        trace(Stateful(changed), (X,), check=False)


def test_exported_programs_from_files(tmp_path: Path) -> None:
    """The file does not tell what shares memory: whether a reshape is a view can't be known."""
    for function, known in ((CASES["slices"], True), (CASES["reshape copy"], False)):
        exported = torch.export.export(Model(function), (X,))
        torch.export.save(exported, tmp_path / "model.pt2")
        found = [trace(exported)]
        if known:
            found.append(trace(tmp_path / "model.pt2", trust_pickle=True))
        else:
            with pytest.raises(TraceError, match="changed in place"):
                trace(tmp_path / "model.pt2", trust_pickle=True)
        for program in found:
            pairs = zip(Model(function)(X), program.module()(X), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_functional_exported_programs_are_refused() -> None:
    """They return the buffers that they change, beside the outputs."""
    exported = torch.export.export(nn.BatchNorm1d(3), (torch.randn(4, 3),)).run_decompositions()
    with pytest.raises(TraceError, match="run_decompositions"):
        trace(exported)


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.transpose(0, -1), lambda x: x.reshape(-1), lambda x: x.contiguous(), lambda x: x.flatten(-2),
    lambda x: x.unsqueeze(1), lambda x: x.split(x.shape[-1] - 1 or 1, -1)[0], lambda x: x[..., 1:],
    lambda x: x.clone(), lambda x: x.squeeze(), lambda x: x.unbind(0)[-1], lambda x: x[0], lambda x: x.detach(),
]  # fmt: skip
CHANGES: list[Callable[[Tensor], object]] = [
    lambda x: x.add_(1), lambda x: x.mul_(2), lambda x: x[..., 0].neg_(), lambda x: x.copy_(x * 3), F.relu_,
]  # fmt: skip


def _program(seed: int) -> Callable[[Tensor], object]:
    """Ten steps at random: a view (or a copy) of some tensor there is, or a change of one."""

    def run(x: Tensor) -> object:
        draw = random.Random(seed)
        tensors = [x]
        for _ in range(10):
            tensor = draw.choice(tensors)
            if draw.random() < 0.6 and tensor.ndim > 1:
                tensors.append(draw.choice(VIEWS)(tensor))
            else:
                draw.choice(CHANGES)(tensor)
        return tuple(tensors)

    return run


def test_random_programs() -> None:
    """Traced, they agree with eager execution; few are refused."""
    refused = 0
    for seed in range(40):
        try:
            agrees(_program(seed))
        except TraceError as error:
            assert "changed in place" in error.found
            refused += 1
    assert refused < 10

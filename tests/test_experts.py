"""Mixtures of experts: what is proved of routers, and what is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphgrow.errors import Refusal
from graphgrow.program import Program
from graphgrow.rewrite import Fills, Resizing, resize
from graphgrow.tracing import trace
from graphgrow.verify import check
from passes import DuplicateExperts, WidenExperts, WidenHidden
from tests.programs import outputs, traced

torch.set_num_threads(1)


class Router(nn.Module):
    """Experts whose weights are looked up by their numbers; `weigh` makes weights and numbers of scores."""

    def __init__(self, weigh: Callable[[Tensor], tuple[Tensor, Tensor]], experts: int = 4) -> None:
        super().__init__()
        self.weigh, self.gate = weigh, nn.Linear(6, experts)
        self.up, self.down = (nn.Parameter(torch.randn(experts, *size)) for size in ((6, 5), (5, 6)))
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        weights, chosen = self.weigh(self.gate(x))
        inner = torch.relu(torch.einsum("nh,nkhf->nkf", x, self.up[chosen]))
        return self.head(x + torch.einsum("nk,nkf,nkfh->nh", weights, inner, self.down[chosen]))


def choice_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.topk(2, dim=-1)
    return best.softmax(-1), chosen


def softmax_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1)
    return best, chosen


def renormalised(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1, sorted=False)
    return best / best.sum(-1, keepdim=True), chosen


def gathered(scores: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.sigmoid()
    chosen = (scores + 0.3).topk(2, dim=-1)[1]
    best = scores.gather(-1, chosen)
    return 2.5 * best / (best.sum(-1, keepdim=True) + 1e-3), chosen


# Where what is computed depends on how many are chosen, or on their order.


def unscaled(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.topk(2, dim=-1)
    return best.sigmoid(), chosen


def by_rank(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1)
    return best * torch.arange(1, 3), chosen


def summed_up(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1)
    return best.cumsum(-1), chosen


def by_number(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1)
    return best * chosen, chosen


def second_only(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(2, dim=-1)
    return best * best[:, 1:2], chosen


def one_only(scores: Tensor) -> tuple[Tensor, Tensor]:
    best, chosen = scores.softmax(-1).topk(1, dim=-1)
    return best, chosen


def routed(weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Program:
    torch.manual_seed(0)
    return trace(Router(weigh), (torch.randn(7, 3),))


@pytest.mark.parametrize("weigh", [choice_first, softmax_first, renormalised, gathered])
def test_copies_of_experts(weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    old = routed(weigh)
    new = DuplicateExperts(factor=3)(old)
    assert new.certificate and new.certificate.evidence == "proved and tested"
    inputs = old.example({}, seed=3)
    (left,), (right,) = (outputs(program.to(torch.float64).module().eval(), {"x": inputs["x"].double()})
                         for program in (old, new))  # fmt: skip
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weigh", [unscaled, by_rank, summed_up, by_number, second_only, one_only])
def test_routers_that_copies_would_change(weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(Refusal) as caught:
        DuplicateExperts()(routed(weigh))
    assert all((caught.value.found, caught.value.where, caught.value.fix))


def test_copies_in_groups() -> None:
    """DeepSeek's experts are in groups: each gets copies of its own, and the groups that are chosen stay as many."""
    new = DuplicateExperts()(traced("deepseek_v3"))
    assert new.certificate and new.certificate.evidence == "proved and tested"
    assert [(row.old, row.new) for row in new.certificate.growth] == [(2, 4)] * 3
    assert new.tensors["model.layers.1.mlp.gate.weight"].shape[0] == 12


def planted(change: Callable[[Program, dict[str, Tensor]], None]) -> bool:
    """Whether a change of a duplicated program is let through."""
    old = routed(softmax_first).to(torch.float64)
    new = DuplicateExperts()(old)
    tensors = {name: tensor.detach().clone() for name, tensor in new.tensors.items()}
    change(new, tensors)
    return check(old, new.replace(tensors=tensors)).holds


def _off(name: str, unit: int) -> Callable[[Program, dict[str, Tensor]], None]:
    def change(program: Program, tensors: dict[str, Tensor]) -> None:
        tensors[name].view(8, -1)[unit, 0] += 1e-7

    return change


def _reordered(program: Program, tensors: dict[str, Tensor]) -> None:
    tensors["down"] = tensors["down"][[0, 1, 2, 3, 5, 4, 6, 7]]


@pytest.mark.parametrize(
    "change", [_off("up", 6), _off("down", 1), _off("gate.weight", 7), _off("gate.bias", 4), _reordered]
)
def test_copies_that_are_none(change: Callable[[Program, dict[str, Tensor]], None]) -> None:
    assert planted(lambda program, tensors: None)
    assert not planted(change)


def test_as_many_chosen_as_before() -> None:
    """All experts twice, but the two best of them: of one expert both copies."""
    old = routed(softmax_first)
    atom = next(axis.atom for axis in old.axes.named if axis.role == "experts")
    copied = DuplicateExperts()(old)
    new = resize(old, Resizing({atom: 8}), Fills()).replace(tensors=copied.tensors)
    found = check(old, new)
    assert not found.holds and found.proof and not found.proof.holds and found.test and not found.test.holds


def test_copies_learn_alike_until_they_get_units_of_their_own() -> None:
    once = DuplicateExperts()(routed(softmax_first))
    assert torch.equal(*_gradients(once, "down"))
    assert not torch.allclose(*_gradients(WidenExperts()(once), "down"))


def _gradients(program: Program, name: str) -> tuple[Tensor, Tensor]:
    """The gradients of the first copies and of the second ones."""
    module = program.to(torch.float64).module()
    outputs(module, {"x": program.example({}, seed=1)["x"].double()})[0].square().sum().backward()
    gradient = dict(module.named_parameters())[name].grad
    assert gradient is not None and bool(gradient.count_nonzero())
    return gradient[:4], gradient[4:]


def test_other_growth_afterwards() -> None:
    program = routed(renormalised)
    for grow in (DuplicateExperts(), WidenExperts(factor=1.5), WidenHidden(), DuplicateExperts()):
        program = grow(program)
        assert program.certificate and program.certificate.evidence == "proved and tested"
    assert check(routed(renormalised), program).holds

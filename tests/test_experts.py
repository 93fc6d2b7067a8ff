"""Mixtures of experts: what is proved of routers, and what is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graphgrow.errors import Refusal
from graphgrow.export import export_onnx
from graphgrow.graph import Node
from graphgrow.pipeline import parse_pass
from graphgrow.program import Program
from graphgrow.rewrite import Fills, Resizing, resize
from graphgrow.runtime import grow_optimizer
from graphgrow.tracing import trace
from graphgrow.verify import certify, check
from passes import DuplicateExperts, Upcycle, WidenExperts, WidenHidden
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


# Mixtures made of dense MLPs


def upcycled() -> tuple[Program, Program]:
    old = traced("skip_mlp").to(torch.float64)
    return old, Upcycle(experts=3)(old)


def test_what_is_constant_and_not_new_stays() -> None:
    """A number by which logits are multiplied is one value everywhere, and no part of a mixture."""
    new = Upcycle(experts=3)(traced("clip"))
    assert new.certificate and new.certificate.evidence == "proved and tested"


@pytest.mark.parametrize("model", ["gpt2", "llama", "vit", "phi3"])
def test_every_form_of_a_dense_mlp(model: str) -> None:
    """Weights of both layouts, gates, a fused gate, patches for tokens: all experts and all weights of routers."""
    old, new = traced(model), Upcycle(experts=4)(traced(model))
    assert new.certificate and new.certificate.evidence == "proved and tested"
    assert [(row.old, row.new) for row in new.certificate.growth] == [(1, 4)] * 2
    routers = [name for name in new.tensors if name.endswith("router.weight")]
    assert len(routers) == 2 and new.certificate.proof
    assert not {row.parameter for row in new.certificate.proof.constraints} & {*routers}
    assert {row.parameter for row in new.certificate.proof.constraints} == set(new.tensors) - set(old.tensors) - {
        *routers
    }


def with_tensors(program: Program, change: Callable[[dict[str, Tensor]], None]) -> Program:
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    change(tensors)
    return program.replace(tensors=tensors)


def with_nodes(program: Program, change: Callable[[Node], Node]) -> Program:
    return program.replace(graph=replace(program.graph, nodes=tuple(map(change, program.graph.nodes))))


def test_experts_that_are_no_copies() -> None:
    old, new = upcycled()

    def off(tensors: dict[str, Tensor]) -> None:
        tensors["experts.downs.1.weight"][2, 0, 0] += 1e-7

    def shifted(tensors: dict[str, Tensor]) -> None:
        tensors["experts.ups.0.bias"] += 1e-7  # all experts alike, but not what the MLP was

    def exchanged(tensors: dict[str, Tensor]) -> None:
        tensors["experts.ups.0.weight"], tensors["experts.ups.1.weight"] = (
            tensors["experts.ups.1.weight"], tensors["experts.ups.0.weight"])  # fmt: skip

    for change in (off, shifted, exchanged):
        assert not check(old, with_tensors(new, change)).holds


def test_routers_may_hold_anything() -> None:
    old, new = upcycled()

    def anything(tensors: dict[str, Tensor]) -> None:
        tensors["router.weight"] *= 1000

    assert check(old, with_tensors(new, anything)).evidence == "proved and tested"


def _exchange(old: str, new: str) -> Callable[[Node], Node]:
    return lambda node: replace(node, op=new, args=node.args[:1] if "sigmoid" in new else node.args) if (
        node.op == old) else node  # fmt: skip


def _along(op: str, dim: int) -> Callable[[Node], Node]:
    return lambda node: replace(node, args=(*node.args[: 1 + ("topk" in op)], dim)) if node.op == op else node


LIES: dict[str, Callable[[Node], Node]] = {
    "weights of any sum": _exchange("aten.softmax.int", "aten.sigmoid.default"),
    "weights that sum to one over tokens": _along("aten.softmax.int", 0),
    "a mean for a sum": _exchange("aten.sum.dim_IntList", "aten.mean.dim"),
    "ones for zeros": _exchange("aten.zeros_like.default", "aten.ones_like.default"),
    "the best of all tokens": _along("aten.topk.default", 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_do_not_sum_to_one(lie: str) -> None:
    old, new = upcycled()
    false = with_nodes(new, LIES[lie])
    assert str(false.graph) != str(new.graph)
    found = check(old, false)
    assert not found.holds and found.proof and not found.proof.holds


def test_a_router_that_never_learns() -> None:
    """Of one chosen expert the weight is one, whatever the score: true, but dead."""
    old, new = upcycled()
    sizes = {"topk": 1, "best": 1, "chosen": 1, "shares": 1}

    def one(node: Node) -> Node:
        what = node.name.rpartition("_")[2]
        if what not in sizes or node.op == "parameter" or not node.name.startswith("linear_"):
            return node
        kinds = node.type if isinstance(node.type, tuple) else (node.type,)
        small = tuple(replace(kind, shape=(*kind.shape[:-1], 1)) for kind in kinds)  # type: ignore[union-attr]
        args = (node.args[0], 1) if what == "topk" else node.args
        return replace(node, args=args, type=small if isinstance(node.type, tuple) else small[0])

    single = with_nodes(new, one)
    assert check(old, single).evidence == "proved and tested"
    with pytest.raises(Refusal, match="dead growth: no new parameter on router"):
        certify(old, single, spec="upcycle", claim="Exact")


def test_routers_learn_from_the_second_step_on() -> None:
    _, new = upcycled()
    module = new.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs, parameters = new.example({"batch": 16}, seed=2), dict(module.named_parameters())
    sizes: list[float] = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs(module, inputs)[0].square().sum().backward()
        sizes.append(
            max(float(p.grad.abs().max()) for n, p in parameters.items() if "router" in n and p.grad is not None)
        )
        optimizer.step()
    assert sizes[0] < 1e-12 < 1e-6 < sizes[1]


@pytest.mark.parametrize("spec", ["widen", "widen-experts", "widen-hidden", "add-heads", "deepen", "duplicate-experts"])
def test_growth_of_mixtures(spec: str) -> None:
    once = Upcycle(experts=3)(traced("nanogpt"))
    new = parse_pass(spec)(once)
    assert new.certificate and new.certificate.evidence == "proved and tested"
    if spec == "duplicate-experts":
        assert check(traced("nanogpt"), new).evidence == "proved and tested"


def test_state_goes_to_all_experts() -> None:
    """The gradients of all experts together are that of the MLP; each starts with its share on average."""
    old, new = upcycled()
    before, after = old.module().eval(), new.module().eval()
    for module in (before, after):
        outputs(module, old.example(seed=4))[0].square().sum().backward()
    optimizer = torch.optim.SGD(before.parameters(), lr=0.0, momentum=0.9)
    optimizer.step()
    carried = grow_optimizer(optimizer, before, after)
    grads = {name: parameter.grad for name, parameter in before.named_parameters()}
    for name, parameter in after.named_parameters():
        state = carried.state.get(parameter, {})
        if not name.startswith("experts."):
            assert "router" not in name or not state
            continue
        whole = grads[name.removeprefix("experts.")]
        assert whole is not None and parameter.grad is not None
        torch.testing.assert_close(parameter.grad.sum(0), whole)
        torch.testing.assert_close(state["momentum_buffer"], (whole / 3).expand(parameter.shape))
    assert len([p for group in carried.param_groups for p in group["params"]]) == len(list(after.parameters()))


def test_mixtures_in_onnx(tmp_path: Path) -> None:
    new = Upcycle(experts=3)(traced("nanogpt"))
    export_onnx(new, tmp_path / "mixture.onnx")  # checked, and run in ONNX Runtime with the same outputs
    assert (tmp_path / "mixture.onnx").exists()


class Shared(nn.Module):
    """Two MLPs of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.other = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.relu(self.up(x)))
        return x + self.other(torch.tanh(self.up(x)))


class AcrossTokens(nn.Module):
    """An MLP between whose halves tokens see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).softmax(1))


@pytest.mark.parametrize("model", [Shared, AcrossTokens])
def test_what_is_no_mlp_of_its_own(model: type[nn.Module]) -> None:
    with pytest.raises(Refusal) as caught:
        Upcycle()(trace(model(), {"x": torch.randn(2, 4, 6)}))
    assert all((caught.value.found, caught.value.where, caught.value.fix))


class Deep(nn.Module):
    """An MLP of three layers: the operator that ends the first inner axis begins the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_inner_axes_that_share_an_operator_are_not_both_upcycled() -> None:
    torch.manual_seed(0)
    new = Upcycle(experts=3)(trace(nn.Sequential(Deep(), Deep()), {"input": torch.randn(3, 6)}))
    assert new.certificate and new.certificate.evidence == "proved and tested"
    assert {name for name in new.tensors if "experts.b.weight" in name} == {"0.experts.b.weight", "1.experts.b.weight"}
    assert sum("b left as it is" in note for note in new.certificate.notes) == 2

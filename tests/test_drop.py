"""Fewer layers: those that add nothing go exactly, others by their influence; gradients tell units apart, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import graphgrow as gg
from graphgrow.errors import OptionError, Refusal
from graphgrow.layers import stacks
from graphgrow.program import Program
from graphgrow.rewrite.saliency import influence, magnitude, taylor
from graphgrow.tracing import trace
from passes import Deepen, DropBlocks, Factorize, PruneAxis
from tests.programs import traced

torch.set_num_threads(1)


def batches(program: Program) -> list[dict[str, torch.Tensor]]:
    return [program.example(seed=seed) for seed in range(2)]


@pytest.mark.parametrize("model", ["gpt2", "llama", "vit", "resnet"])
def test_new_layers_go_exactly(model: str) -> None:
    old = traced(model)
    deep = Deepen(factor=2)(old)
    (stack, *_) = [one for one in stacks(deep.graph) if len(one.layers) > 1]
    still = [at for at, moved in enumerate(influence(deep, stack, batches(deep))) if moved < 1e-12]
    assert len(still) == len(stack.layers) // 2
    back = DropBlocks(stack=stack.name, layers=tuple(still))(deep)
    assert back.certificate and back.certificate.claim == "Exact" and back.certificate.proof
    assert back.certificate.proof.holds


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5"])
def test_the_layer_with_the_least_influence_goes(model: str) -> None:
    old = traced(model)
    data = batches(old)
    stack = next(one for one in stacks(old.graph) if len(one.layers) > 1)
    weak = stack.layers[0]  # all that it holds is made small
    small = {name: old.tensors[name].detach() * 1e-2 for name in weak.tensors if old.kinds[name].role == "parameter"}
    faint = old.replace(tensors={**old.tensors, **small})
    moved = influence(faint, stack, data)
    assert moved[0] < 0.1 * min(moved[1:])
    new = DropBlocks(stack=stack.name, to=len(stack.layers) - 1)(faint, data)
    named = DropBlocks(stack=stack.name, layers=(0,))(faint)
    assert new.digest == named.digest
    assert new.certificate and new.certificate.claim == "Changes" and new.certificate.measured
    strong = DropBlocks(stack=stack.name, layers=(len(stack.layers) - 1,))(faint, data).certificate
    assert strong and strong.measured and new.certificate.measured.norm < strong.measured.norm
    assert new.size < old.size


def test_what_can_not_go() -> None:
    with pytest.raises(Refusal, match="several layers"):
        DropBlocks(layers=(0,))(trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(1, 4),)))
    with pytest.raises(OptionError, match="--data"):
        DropBlocks()(traced("gpt2"))


class Scored(nn.Module):
    """An MLP that gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.down(nn.functional.gelu(self.up(x))), labels)


def test_gradients_tell_which_units_the_loss_needs() -> None:
    """The score is the change of the loss without a unit, to first order: the derivative of the loss by a gate."""
    model = Scored()
    inputs = {"x": torch.randn(16, 6), "labels": torch.randint(3, (16,))}
    program = trace(model, inputs)
    (axis,) = [one for one in program.axes.named if one.role == "mlp"]
    (score,) = taylor(program, [axis], [inputs])
    gate = torch.ones(8, requires_grad=True)
    hidden = nn.functional.gelu(model.up(inputs["x"])) * gate
    nn.functional.cross_entropy(model.down(hidden), inputs["labels"]).backward()
    assert gate.grad is not None
    torch.testing.assert_close(score, gate.grad.abs().double(), rtol=1e-4, atol=1e-6)
    new = PruneAxis(axis="mlp", to=4, score="taylor")(program, [inputs])
    kept = sorted(int(unit) for unit in score.argsort(descending=True)[:4])
    assert torch.equal(new.tensors["up.weight"], program.tensors["up.weight"][kept])
    with pytest.raises(Refusal, match="loss"):
        PruneAxis(score="taylor")(traced("nanogpt"), batches(traced("nanogpt")))


def test_units_of_all_axes_together() -> None:
    """One layer's units count for nothing beside the other's: nearly all of the cut is there."""
    old = traced("nanogpt")
    axes = [one for one in old.axes.named if one.role == "mlp"]
    sites = [site.parameter for site in axes[0].sites if site.part == "emits"]
    uneven = {name: tensor.clone() for name, tensor in old.tensors.items()}
    for name in sites:
        uneven[name][: len(uneven[name]) // 4] *= 100  # a quarter of the units are all that counts
    program = old.replace(tensors={name: nn.Parameter(t) if t.requires_grad else t for name, t in uneven.items()})
    new = PruneAxis(allocation="global", factor=0.5)(program)
    sizes = [int(str(one.size)) for one in new.axes.named if one.role == "mlp"]
    totals = [int(str(one.size)) for one in axes]
    assert abs(sum(sizes) - sum(totals) / 2) <= len(axes) and sizes[0] < sizes[1]
    assert magnitude(old, axes[0]).shape == (totals[0],)
    assert gg.check(program, program).holds


def stepped(program: Program) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module after one step, with an optimizer of matrices and of all else."""
    module = program.module().eval()
    named = list(module.parameters())
    parts = [[one for one in named if one.dim() > 1], [one for one in named if one.dim() <= 1]]
    optimizer = torch.optim.AdamW([{"params": part, "weight_decay": 0.1 * at} for at, part in enumerate(parts)])
    out = module(**program.example(seed=1))
    sum(one.square().mean() for one in tree_leaves(out) if one.is_floating_point()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return module, optimizer


def test_optimizers_know_what_is_gone() -> None:
    """The second layer has the name of the first one now, and its own moments."""
    module, optimizer = stepped(traced("nanogpt"))
    old = traced("nanogpt").trained(module)
    new = DropBlocks(layers=(0,))(old)
    smaller = new.module()
    grown = gg.grow_optimizer(optimizer, module, smaller)
    names = {id(parameter): name for name, parameter in smaller.named_parameters()}
    assert sorted(names[id(one)] for group in grown.param_groups for one in group["params"]) == sorted(names.values())
    before = dict(module.named_parameters())
    for name, parameter in smaller.named_parameters():
        origin = name.replace("blocks.0.", "blocks.1.")
        assert torch.equal(grown.state[parameter]["exp_avg"], optimizer.state[before[origin]]["exp_avg"]), name


def test_factors_join_the_group_of_their_weight() -> None:
    module, optimizer = stepped(traced("nanogpt"))
    new = Factorize(fraction=0.5)(traced("nanogpt").trained(module))
    cut = new.module()
    grown = gg.grow_optimizer(optimizer, module, cut)
    names = {id(parameter): name for name, parameter in cut.named_parameters()}
    matrices, rest = ([names[id(one)] for one in group["params"]] for group in grown.param_groups)
    assert len(matrices) + len(rest) == len(names) and any(name.endswith("_left") for name in matrices)
    assert not any(name.endswith(("_left", "_right")) for name in rest)
    for parameter, name in ((one, names[id(one)]) for group in grown.param_groups for one in group["params"]):
        assert bool(grown.state.get(parameter)) == (not name.endswith(("_left", "_right"))), name

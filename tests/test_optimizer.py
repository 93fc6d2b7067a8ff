"""State of optimizers through growth: it goes where the weights go, scaled as their gradients are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Optimizer, RMSprop

from graphgrow.errors import GraphgrowError
from graphgrow.pipeline import Pipeline
from graphgrow.program import Program
from graphgrow.runtime import grow_optimizer
from tests.programs import outputs, traced

torch.set_num_threads(1)


def grown(model: str, *specs: str) -> tuple[Program, Program]:
    """A program and what passes made of it, in float64: factors are rounded no further than that."""
    old = traced(model).to(torch.float64)
    return old, Pipeline.parse(specs)(old)


def loss(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([out.double().square().mean() for out in outputs(module, inputs)]).sum()


def gradients(module: nn.Module, program: Program, seed: int = 0) -> dict[str, Tensor]:
    module.zero_grad()
    loss(module, program.example(seed=seed)).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


EXACT = [
    ("skip_mlp", "widen:factor=1.5"), ("small_cnn", "widen:factor=1.5"), ("llama", "widen-hidden:factor=1.5"),
    ("llama", "widen-keys:factor=1.5,scale=weights"), ("gpt2", "widen-keys:factor=1.5,scale=weights"),
    ("gpt2", "add-heads:factor=1.5"), ("llama", "add-kv-heads"), ("gpt2", "widen-values:factor=1.5"),
    ("bert", "widen-hidden:factor=3,by=copies"), ("gpt2", "deepen:at=1,to=4"), ("llama", "deepen:order=stack"),
    ("tied_autoencoder", "widen:factor=2"), ("routed", "duplicate-experts:factor=3"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "spec"), EXACT)
def test_gradients_go_the_way_that_state_goes(model: str, spec: str) -> None:
    """SGD's momentum after one step is the gradient: carried, it is the gradient of the grown module."""
    old, new = grown(model, spec)
    before, after = old.module().eval(), new.module().eval()
    optimizer = SGD(before.parameters(), lr=0.0, momentum=0.9)
    gradients(before, old)
    optimizer.step()
    carried = grow_optimizer(optimizer, before, after)
    found = gradients(after, old)
    assert [id(p) for group in carried.param_groups for p in group["params"]] == [
        id(p) for p in _ordered(carried, after)
    ]
    moved = {move.new: move for certificate in new.journal for move in certificate.moves}
    checked = 0
    scale = max(float(gradient.abs().max()) for gradient in found.values())
    inside = 1e-5 if model == "llama" else 1e-10  # its norms compute in float32 whatever it is in
    for name, parameter in after.named_parameters():
        state = carried.state.get(parameter, {})
        if "momentum_buffer" not in state or name not in found:
            continue
        buffer, mine = state["momentum_buffer"], found[name]
        old_entries = buffer != 0
        assert buffer.shape == parameter.shape
        torch.testing.assert_close(buffer[old_entries], mine[old_entries], rtol=1e-7, atol=inside * scale)
        checked += name in moved
    assert checked or "deepen" in spec


def _ordered(optimizer: Optimizer, module: nn.Module) -> list[Tensor]:
    known = {id(p) for p in module.parameters()}
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(known) and {id(p) for p in found} == known, "every parameter once"
    return found


MAKE: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=1e-3, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=1e-3),
    "amsgrad": lambda p: AdamW(p, lr=1e-3, amsgrad=True),
    "rmsprop": lambda p: RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adafactor": lambda p: Adafactor(p, lr=1e-2),
}
PIPELINE = ["widen:factor=1.5", "add-heads:factor=1.5", "widen-keys:factor=1.5", "widen-hidden:to=66", "deepen:to=3"]


def trained(module: nn.Module, optimizer: Optimizer, program: Program, steps: int, seed: int = 0) -> list[float]:
    found: list[float] = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(module.train(), program.example(seed=seed + step))
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    return found


@pytest.mark.parametrize("name", MAKE)
def test_every_optimizer_trains_on(name: str) -> None:
    """Through five passes: shapes fit, groups and settings stay, and training goes on from where it was."""
    old = traced("nanogpt")
    before = old.module()
    optimizer = MAKE[name](before.parameters())
    trained(before, optimizer, old, 4)
    new = Pipeline.parse(PIPELINE)(old.trained(before))
    after = new.module()
    carried = grow_optimizer(optimizer, before, after)
    assert type(carried) is type(optimizer) and len(carried.param_groups) == 1
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    assert {key: value for key, value in carried.param_groups[0].items() if key != "params"} == settings
    assert len(_ordered(carried, after)) == len(list(after.parameters()))
    start = [float(loss(module.eval(), old.example(seed=4)).detach()) for module in (before, after)]
    assert start[1] == pytest.approx(start[0], rel=10 * torch.finfo(torch.float32).eps), (
        "the same function to begin with"
    )
    values = trained(after, carried, old, 4, seed=4)
    assert all(torch.isfinite(torch.tensor(values)))
    saved = copy.deepcopy(carried.state_dict())
    fresh = MAKE[name](after.parameters())
    fresh.load_state_dict(saved)


def test_groups_stay_and_new_layers_join_theirs() -> None:
    old = traced("nanogpt")
    before = old.module()
    matrices = [p for p in before.parameters() if p.dim() > 1]
    vectors = [p for p in before.parameters() if p.dim() < 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "lr": 1e-4}]
    optimizer = AdamW(groups, lr=1e-3, weight_decay=0.1)
    trained(before, optimizer, old, 2)
    after = Pipeline.parse(["deepen:to=4", "widen:factor=2"])(old).module()
    carried = grow_optimizer(optimizer, before, after)
    _ordered(carried, after)
    assert [(group["lr"], group["weight_decay"]) for group in carried.param_groups] == [(1e-3, 0.0), (1e-4, 0.1)]
    assert all(p.dim() < 2 for p in carried.param_groups[0]["params"])
    assert all(p.dim() > 1 for p in carried.param_groups[1]["params"])


@pytest.mark.parametrize("named", [False, True])
def test_a_saved_state_dict(named: bool) -> None:
    """As the optimizer itself would be carried."""
    old = traced("nanogpt")
    before = old.module()
    optimizer = AdamW(before.named_parameters() if named else before.parameters(), lr=1e-3)
    trained(before, optimizer, old, 3)
    new = Pipeline.parse(["widen:factor=1.5", "deepen:to=3"])(old.trained(before))
    after = new.module()
    saved = grow_optimizer(optimizer.state_dict(), before, after)
    loaded = AdamW(after.named_parameters() if named else after.parameters(), lr=1e-3)
    loaded.load_state_dict(saved)
    carried = grow_optimizer(optimizer, before, after)
    for parameter in after.parameters():
        left, right = loaded.state.get(parameter, {}), carried.state.get(parameter, {})
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_new_entries_have_an_age_of_their_own() -> None:
    """Each entry of the grown weights moves as Adam, started with it at its first gradient, would move it."""
    torch.manual_seed(0)
    old = traced("skip_mlp").to(torch.float64)
    before = old.module()
    optimizer = Adam(before.parameters(), lr=1e-3, betas=(0.9, 0.99))
    trained(before, optimizer, old, 7)
    new = Pipeline.parse(["widen:factor=1.5"])(old.trained(before))
    after = new.module()
    carried = grow_optimizer(optimizer, before, after)
    name = "ups.0.weight"
    weight, size = dict(after.named_parameters())[name], old.tensors[name].shape[0]
    first, second, expected = 0.0, 0.0, weight.detach().clone()[size:]
    for step in range(1, 30):
        carried.zero_grad()
        loss(after, old.example(seed=step)).backward()
        assert weight.grad is not None
        gradient = weight.grad[size:].clone()
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        expected -= 1e-3 * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        carried.step()
        torch.testing.assert_close(weight.detach()[size:], expected, rtol=1e-9, atol=1e-12)


def test_what_does_not_belong_together_is_refused() -> None:
    old = traced("skip_mlp")
    before, other = old.module(), traced("nanogpt").module()
    new = Pipeline.parse(["widen"])(old)
    optimizer = SGD(before.parameters(), lr=0.1, momentum=0.9)
    trained(before, optimizer, old, 1)
    for a, b, word in ((other, new.module(), "does not have"), (new.module(), before, "does not come from")):
        with pytest.raises(GraphgrowError, match=word):
            grow_optimizer(optimizer, a, b)
    with pytest.raises(GraphgrowError, match="does not know"):
        grow_optimizer(optimizer, nn.Linear(2, 2), before)
    two = SGD([{"params": list(before.parameters())[:2]}, {"params": list(before.parameters())[2:]}], lr=0.1)
    with pytest.raises(GraphgrowError, match="without names"):
        grow_optimizer(two.state_dict(), before, new.module())

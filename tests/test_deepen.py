"""deepen: layers found in the graph, made to add nothing, proved by numbering values; and lies about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from graphgrow.certificate import WHOLE, Certificate
from graphgrow.errors import CheckFailed, Refusal
from graphgrow.layers import stacks
from graphgrow.program import Program
from graphgrow.rewrite import Place
from graphgrow.tracing import trace
from graphgrow.verify import certify, check
from passes import Deepen, Undo
from tests.programs import outputs, traced
from tests.zoo import ZOO

torch.set_num_threads(1)

# Models without a layer x + f(x), and those whose layers put something after the sum.
NO_LAYERS = {
    "albert", "densenet", "small_cnn", "tied_autoencoder", "efficientnet", "unet", "squeeze_excite",
    "group_norm", "multihead_attention", "einsum_attention", "latent_queries", "two_tower", "wide_value",
    "routed",
}  # fmt: skip
AFTER_THE_SUM = {"bart", "bert", "distilbert", "encoder_post_norm"}


def certified(program: Program) -> Certificate:
    assert program.certificate and program.certificate.evidence == "proved and tested"
    return program.certificate


def zeroed(found: Certificate) -> set[tuple[str, str]]:
    """What new layers need: parameter, value."""
    assert found.proof and all(row.dim == WHOLE for row in found.proof.constraints)
    return {(row.parameter, row.text) for row in found.proof.constraints}


# Layers


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("gpt2", {"layers@transformer.h": 2}),
        ("t5", {"layers@encoder.block": 2, "layers@decoder.block": 2}),
        ("gpt_neox", {"layers@gpt_neox.layers": 2}),
        ("gemma2", {"layers@model.layers": 2}),
        ("skip_mlp", {"layers@ups": 3}),
        ("resnet", {"layers@resnet.encoder.stages.0.layers": 1, "layers@resnet.encoder.stages.1.layers": 1}),
        (
            "mobilenet_v2",
            {
                "layers@mobilenet_v2.layer.1": 1,
                "layers@mobilenet_v2.layer.3": 2,
                "layers@mobilenet_v2.layer.6": 3,
                "layers@mobilenet_v2.layer.10": 2,
                "layers@mobilenet_v2.layer.13": 2,
            },
        ),
        ("bert", {"layers@bert.encoder.layer": 2}),
        ("densenet", {}),
    ],
)
def test_layers_are_found(model: str, found: dict[str, int]) -> None:
    graph = traced(model).graph
    assert {stack.name: len(stack.layers) for stack in stacks(graph)} == found
    for stack in stacks(graph):
        own = [set(layer.nodes) for layer in stack.layers]
        assert sum(map(len, own)) == len(set[str]().union(*own)), "no node is in two layers"


class Rows(nn.Module):
    """Layers whose names say nothing, of two kinds in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.ccc = nn.Linear(6, 6), nn.Linear(6, 6)
        self.bb, self.dddd = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.a(x))
        x = x + self.bb(F.relu(x))
        x = x + torch.tanh(self.ccc(x))
        return x + self.dddd(F.relu(x))


def test_layers_need_no_names_and_may_have_periods() -> None:
    program = trace(Rows(), {"x": torch.randn(3, 6)})
    (stack,) = stacks(program.graph)
    assert [layer.tensors for layer in stack.layers] == [("a.weight", "a.bias", "bb.weight"),
                                                         ("ccc.weight", "ccc.bias", "dddd.weight")]  # fmt: skip
    new = Deepen(to=3)(program)
    assert zeroed(certified(new)) == {(f"copy2.{name}", "zero") for name in ("ccc.weight", "ccc.bias", "dddd.weight")}


class Rolls(nn.Module):
    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.steps, self.blocks = steps, nn.ModuleList([nn.Linear(6, 6) for _ in steps])

    def forward(self, x: Tensor) -> Tensor:
        for step, block in zip(self.steps, self.blocks, strict=True):
            x = x + torch.roll(block(x), step, 1)
        return x


@pytest.mark.parametrize(("steps", "found"), [((-2, -2), [2]), ((-1, -2), [1, 1])])
def test_layers_with_other_whole_numbers_are_others(steps: tuple[int, ...], found: list[int]) -> None:
    """Also -1 and -2, whose hashes are one in Python."""
    graph = trace(Rolls(*steps), {"x": torch.randn(2, 5, 6)}).graph
    assert [len(stack.layers) for stack in stacks(graph)] == found


# The pass


@pytest.mark.parametrize("model", ZOO)
def test_every_model(model: str) -> None:
    """Twice the layers: proved and tested, or refused for a reason that is known."""
    try:
        new = Deepen(init="scaled")(traced(model))
    except Refusal as refusal:
        if "no layers" in refusal.found:
            assert model in NO_LAYERS
        else:
            assert model in AFTER_THE_SUM and "stands on the residual stream" in refusal.found
        return
    assert model not in NO_LAYERS | AFTER_THE_SUM
    found = certified(new)
    assert all(row.new == 2 * row.old for row in found.growth) and len(found.growth) == len(stacks(traced(model).graph))
    assert found.test and found.test.worst and found.test.worst.output64 == 0


def test_sandwich_norms_take_the_gain() -> None:
    """Gemma multiplies by 1 + gain: the gain is -1, and the weights before the norm stay free."""
    needed = zeroed(certified(Deepen(to=3)(traced("gemma2"))))
    assert needed == {
        ("model.layers.2.post_attention_layernorm.weight", "-1"),
        ("model.layers.2.post_feedforward_layernorm.weight", "-1"),
    }


def test_a_layer_scale_is_enough() -> None:
    needed = zeroed(certified(Deepen(to=3, stack="*stages.1*")(traced("convnext"))))
    assert needed == {("convnext.encoder.stages.1.layers.2.layer_scale_parameter", "zero")}


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({"to": 5}, "0 1 1+ 2 2+"),
        ({}, "0 0+ 1 1+ 2 2+"),
        ({"to": 7}, "0 0+ 1 1+ 2 2+ 2+"),
        ({"to": 5, "order": "stack"}, "0 1 2 0+ 1+"),
        ({"to": 5, "at": 1}, "0 0+ 0+ 1 2"),
        ({"to": 5, "at": 0}, "0+ 0+ 0 1 2"),
        ({"to": 4, "at": 3}, "0 1 2 2+"),
    ],
)
def test_plans(options: dict[str, Any], plan: str) -> None:
    found = list(Deepen(**options).plan(3))
    assert " ".join(f"{place.source}{'+' if place.new else ''}" for place in found) == plan
    assert found[0].__class__ is Place


@pytest.mark.parametrize("options", [{}, {"at": 0}, {"at": 1}, {"order": "stack"}, {"init": "scaled", "at": 2}])
@pytest.mark.parametrize("model", ["gpt2", "t5", "resnet", "mixtral"])
def test_any_position(model: str, options: dict[str, Any]) -> None:
    old = traced(model)
    if options.get("at") == 2 and model == "resnet":
        options = {**options, "at": 1}
    new = Deepen(factor=2 if "order" in options else 3, **options)(old)
    certified(new)
    inputs = old.example(seed=3)
    with torch.no_grad():
        left, right = (outputs(program.module().eval(), inputs) for program in (old, new))
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True)), "x + 0 is x to the last bit"


# Names: what the class with more layers has


def gpt2(layers: int) -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.GPT2Config(n_layer=layers, n_embd=32, n_head=4, vocab_size=50, n_positions=16, use_cache=False)
    return hf.GPT2LMHeadModel(config), {"input_ids": torch.randint(50, (2, 7))}


def t5(layers: int) -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.T5Config(num_layers=layers, d_model=32, d_kv=8, num_heads=4, d_ff=40, vocab_size=50, use_cache=False)
    return hf.T5Model(config), {"input_ids": torch.randint(50, (2, 7)), "decoder_input_ids": torch.randint(50, (2, 5))}


def resnet(layers: int) -> tuple[nn.Module, dict[str, Tensor]]:
    config = hf.ResNetConfig(
        embedding_size=6, hidden_sizes=[8, 12], depths=[layers + 1, layers + 1], layer_type="basic"
    )
    return hf.ResNetForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


@pytest.mark.parametrize("options", [{}, {"at": 0}, {"order": "stack"}])
@pytest.mark.parametrize("build", [gpt2, t5, resnet])
def test_the_class_with_more_layers_loads_it(build: Callable[..., Any], options: dict[str, Any]) -> None:
    """Strictly, and computes the same: names, buffers and the order of layers are the module list's."""
    torch.manual_seed(0)
    model, inputs = build(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    new = Deepen(**options)(trace(model, inputs))
    larger, _ = build(4)
    larger.load_state_dict(new.module().state_dict(), strict=True)
    left, right = outputs(model.eval(), inputs), outputs(larger.eval(), inputs)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    order = [name for name in larger.state_dict() if name not in new.aliases]
    assert [name for name in new.module().state_dict() if name not in new.aliases] == order


def test_training_moves_every_new_parameter_that_matters() -> None:
    """After one step the constrained weights have moved, after two all of the new layer has."""
    module = Deepen(to=3)(traced("gpt2")).module().train()
    new = {name: value for name, value in module.named_parameters() if ".h.2." in name}
    before = {name: value.detach().clone() for name, value in new.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([out.square().mean() for out in outputs(module, traced("gpt2").example())]).sum().backward()
        optimizer.step()
    still = [name for name, value in new.items() if torch.equal(before[name], value)]
    assert not still


# Lies


def edited(program: Program, name: str, change: Callable[[Tensor], Any]) -> Program:
    tensor = program.tensors[name].detach().clone()
    change(tensor)
    return program.replace(tensors={**program.tensors, name: tensor})


@pytest.mark.parametrize("model", ["gpt2", "gemma2", "resnet", "convnext", "mixtral"])
def test_no_constraint_can_go(model: str) -> None:
    old, new = traced(model), Deepen(to=3 if model != "resnet" else 2)(traced(model))
    assert check(old, new).evidence == "proved and tested"
    for name, _ in zeroed(certified(new)):
        wrong = check(old, edited(new, name, lambda tensor: tensor.normal_(0, 1)))
        assert wrong.proof and not wrong.holds and not wrong.proof.holds, name
        off = edited(new, name, lambda tensor: tensor.view(-1)[:1].add_(1e-7))
        assert not check(old, off).holds, name


@pytest.mark.parametrize("model", ["gpt2", "mobilenet_v2"])
def test_an_old_value_that_changed(model: str) -> None:
    old, new = traced(model), Deepen()(traced(model))
    names = [n for n in old.tensors if n in old.graph.parameters and old.tensors[n].is_floating_point()]
    kept = {id(tensor): name for name, tensor in new.tensors.items()}
    for name in names[:: max(1, len(names) // 12)]:
        renamed = kept[id(old.tensors[name])]
        assert not check(old, edited(new, renamed, lambda tensor: tensor.view(-1)[-1:].add_(1e-6))).holds, renamed


def test_shapes_alone() -> None:
    """A program without weights: what new layers would have to hold is derived, and proved."""
    old = traced("gemma2")
    bare = old.replace(tensors={name: tensor.to("meta") for name, tensor in old.tensors.items()})
    found = Deepen(to=3)(bare).certificate
    assert found and found.evidence == "proved" and zeroed(found) == zeroed(certified(Deepen(to=3)(old)))


def test_layers_that_changed_places() -> None:
    old, new = traced("gpt2"), Deepen(to=3, at=2)(traced("gpt2"))
    a, b = "transformer.h.0.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.weight"
    swapped = new.replace(tensors={**new.tensors, a: new.tensors[b], b: new.tensors[a]})
    assert not check(old, swapped).holds


def test_a_stream_that_can_be_negative() -> None:
    """relu(x + 0) is x only where x came out of a relu."""

    class Blocks(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.stem, self.first = nn.Conv2d(3, 4, 1), first
            self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.stem(x)), 2) if self.first else self.stem(x)
            for block in self.blocks:
                x = F.relu(x + block(x))
            return x.mean((2, 3))

    torch.manual_seed(0)
    for first in (True, False):
        program = trace(Blocks(first), {"x": torch.randn(2, 3, 8, 8)})
        certified(Deepen(at=2)(program))
        if first:
            certified(Deepen(at=0)(program))
        else:
            with pytest.raises(CheckFailed, match="relu"):
                Deepen(at=0)(program)


class GainedBlock(nn.Module):
    """w * x + f(x), as in Doge: the stream has gains of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.norm = nn.Parameter(torch.rand(6) + 0.5), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x + self.down(F.gelu(self.up(self.norm(x))))


def test_gains_of_the_stream_are_one_in_new_layers() -> None:
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(5, 6), GainedBlock(), GainedBlock()), {"input": torch.randn(3, 5)})
    deeper = certified(Deepen(to=4)(program))
    needs = {(parameter.rpartition(".")[2], text) for parameter, text in zeroed(deeper)}
    assert needs == {("gain", "1"), ("weight", "zero"), ("bias", "zero")}
    assert deeper.proof and [step.gives for step in deeper.proof.steps].count("the stream: x * 1 = x") == 1
    assert Undo()(Deepen(to=4)(program)).digest == program.digest


def test_a_gain_of_the_stream_that_is_not_one_is_found() -> None:
    torch.manual_seed(0)
    program = trace(nn.Sequential(nn.Linear(5, 6), GainedBlock(), GainedBlock()), {"input": torch.randn(3, 5)})
    deeper = Deepen(to=3)(program)
    (gain,) = (parameter for parameter, text in zeroed(certified(deeper)) if text == "1")
    assert not check(program, edited(deeper, gain, lambda tensor: tensor[0].mul_(1.001))).holds


def test_a_norm_after_the_sum_is_refused_with_its_place() -> None:
    with pytest.raises(Refusal, match=r"layer_norm.default \(modeling_bert.* stands on the residual stream"):
        Deepen()(traced("bert"))


def test_a_layer_that_could_only_be_silenced_where_nothing_learns_is_refused() -> None:
    """Standardised weights (BiT) are of full size as soon as they are not zero; relu gives zeros no gradient."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = nn.GroupNorm(2, 4), nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            flat = F.batch_norm(self.weight.reshape(1, 4, -1), None, None, training=True)
            return x + F.conv2d(F.relu(self.norm(x)), flat.reshape(4, 4, 3, 3), padding=1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block())
    with pytest.raises(Refusal, match=r"no parameter of the layer alone makes aten.conv2d.default .* zero"):
        Deepen()(trace(model, {"input": torch.randn(2, 3, 8, 8)}))


def test_layers_that_share_their_weights_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + torch.tanh(self.layer(x))
            return x

    with pytest.raises(Refusal, match="no layers"):
        Deepen()(trace(Shared(), {"x": torch.randn(2, 5)}))


def test_a_dead_layer_is_refused() -> None:
    """Both ends of each branch zero: nothing changes, and nothing ever learns."""
    old, new = traced("nanogpt"), Deepen(to=3)(traced("nanogpt"))
    assert certify(old, new, spec="alive", claim="Exact").holds
    dead = {name for name in new.tensors if name.startswith("blocks.2.") and name not in new.fixed}
    dead -= {"blocks.2.norm_1.weight", "blocks.2.norm_2.weight"}
    for name in dead:
        new = edited(new, name, lambda tensor: tensor.zero_())
    with pytest.raises(Refusal, match="dead growth"):
        certify(old, new, spec="dead", claim="Exact")


def test_programs_that_take_or_give_other_things() -> None:
    with pytest.raises(CheckFailed, match="different inputs"):
        check(traced("gpt2"), traced("resnet"))
    assert not check(traced("nanogpt"), traced("wide_value")).holds

"""Masks on real models: on which weights, along which dimension, how dense; and what becomes of them afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphgrow.errors import OptionError, Refusal
from graphgrow.graph import Kind, Ref, TensorType
from graphgrow.patterns import Pattern, density, erdos_renyi, valid
from graphgrow.pipeline import Pipeline, parse_pass
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.masks import Weight, masks, weights
from graphgrow.tracing import trace
from graphgrow.verify import check
from passes import PruneAxis, Sparsify, Undo, Widen
from tests.programs import outputs, traced

torch.set_num_threads(1)


def cut(program: Program, data: Any = (), **options: Any) -> Program:
    """What sparsify asks for."""
    rewriter = Rewriter(program, options.get("seed", 0), data)
    Sparsify(**options).rewrite(rewriter)
    return rewriter.program


def patterns(program: Program) -> dict[str, str]:
    """The patterns of masks, by the weights' names; all masks keep to them."""
    found = {name: program.kinds[mask].pattern for name, mask in masks(program).items()}
    for name, mask in masks(program).items():
        assert valid(program.tensors[mask], Pattern.parse(found[name])), mask
    return found


def folded(program: Program, dense: Program) -> Program:
    """The dense program with what masks cut away set to zero."""
    cut_away = {n: dense.tensors[n].detach() * program.tensors[mask] for n, mask in masks(program).items()}
    return dense.replace(tensors={**dense.tensors, **cut_away})


def same_outputs(first: Program, second: Program) -> None:
    inputs = first.example(seed=3)
    pairs = zip(*(outputs(one.module().eval(), inputs) for one in (first, second)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# Along which dimension, by hand: (pattern, and what stays dense)
WHERE = {
    "llama": ({"q_proj": "2:4@1", "o_proj": "2:4@1", "down_proj": "2:4@1"}, {"embed_tokens", "lm_head"}),
    "gpt2": ({"c_attn": "2:4@0", "c_proj": "2:4@0", "c_fc": "2:4@0"}, {"wte", "wpe"}),  # addmm: (in, out)
    "phi3": ({"qkv_proj": "2:4@1", "gate_up_proj": "2:4@1"}, {"embed_tokens", "lm_head"}),  # fused
    "mixtral": ({"experts.gate_up_proj": "2:4@2", "experts.down_proj": "2:4@2"}, {"embed_tokens", "lm_head"}),
    "small_cnn": ({"4.": "2:4@1", "9.": "2:4@1"}, {"0.", "12."}),  # three channels, classes
    "resnet": ({"convolution": "2:4@1"}, {"classifier"}),
    "bloom": ({"query_key_value": "2:4@1", "dense": "2:4@1"}, {"word_embeddings"}),  # fused by heads; tied head
    "unet": ({"ups": "2:4@0"}, {"head"}),
}


@pytest.mark.parametrize("model", [name for name in WHERE if name != "unet"])
def test_which_weights_and_which_dimension(model: str) -> None:
    wanted, dense = WHERE[model]
    old = traced(model)
    new = cut(old)
    found = patterns(new)
    for part, pattern in wanted.items():
        assert {p for name, p in found.items() if part in name} == {pattern}, part
    assert not any(name.startswith(part) or f".{part}" in name for name in found for part in dense)
    assert all(density(new.tensors[f"{name}_mask"]) == 0.5 for name in found)
    assert {name: tensor for name, tensor in new.tensors.items() if name not in old.tensors}.keys() == {
        f"{name}_mask" for name in found
    }
    assert all(tensor is old.tensors[name] for name, tensor in new.tensors.items() if name in old.tensors)
    same_outputs(new, folded(new, old))


@pytest.mark.parametrize("model", ["t5", "albert", "mobilenet_v2", "einsum_attention", "deepseek_v3", "clip", "mamba"])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_every_reader_of_a_weight_reads_the_product(model: str, hierarchical: bool) -> None:
    """In modules that are called several times (ALBERT), of several trees, experts one by one."""
    old = traced(model)
    new = cut(old, pattern="unstructured", density=0.3, at="*")
    for name, mask in masks(new).items():
        readers = {user.op for user in new.graph.users[new.graph.parameters[name].name]}
        assert readers == {"aten.mul.Tensor"} and new.kinds[mask].role == "buffer"
    inputs = old.example(seed=3)
    found = outputs(new.module(hierarchical=hierarchical).eval(), inputs)
    wanted = outputs(folded(new, old).module().eval(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("model", ["llama", "gpt2", "small_cnn", "einsum_attention", "mixtral", "grouped_conv", "t5"])
def test_inputs_are_what_is_summed_over(model: str) -> None:
    """By the function alone: what a weight gives is a sum of what each of its inputs gives, so with all others set to
    zero a result is the same as with their activations set to zero; and no result depends on other outputs."""
    program = traced(model)
    inputs = program.example(seed=1)
    for name, found in weights(program).items():
        if not isinstance(found, Weight) or found.uses[0].picked or len(found.uses[0].reads) > 1:
            continue
        use = found.uses[0]
        (reader,) = use.reads
        values = _values(program, [reader, use.node], inputs)
        weight = program.tensors[name].detach()
        dim = found.inputs
        assert dim is not None
        keep = torch.zeros(weight.shape[dim], dtype=torch.bool)
        keep[::2] = True
        cut_weight = weight * keep.reshape([-1 if d == dim else 1 for d in range(weight.dim())])
        cut_input = _cut_along(values[reader], use.reads[reader], dim, keep, use.groups)
        left = _node(program, use.node, {name: cut_weight}, {reader: values[reader]}, inputs)
        right = _node(program, use.node, {name: weight}, {reader: cut_input}, inputs)
        assert float((left - right).abs().max()) <= 1e-4 * float(values[use.node].abs().max()), name
        assert float((left - values[use.node]).abs().max()) > 0, name


def _cut_along(value: Tensor, dims: Any, dim: int, keep: Tensor, groups: int) -> Tensor:
    at = next(mine for mine, its in dims.items() if its == dim)
    size = value.shape[at]
    return value * keep.repeat(size // len(keep)).reshape([-1 if d == at else 1 for d in range(value.dim())])


def _values(program: Program, names: list[str], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    watched = program.replace(graph=replace(program.graph, outputs=tuple(map(Ref, names))))
    return {n: v.detach() for n, v in zip(names, outputs(watched.module().eval(), inputs), strict=True)}


def _node(program: Program, name: str, tensors: Any, given: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    """The value of one node with other tensors, and an activation that is given."""
    ((reader, value),) = given.items()
    nodes = [
        replace(node, op="parameter", args=("given",), kwargs=(), type=TensorType(tuple(value.shape), "weights"))
        if node.name == reader
        else node
        for node in program.graph.nodes
    ]
    changed = program.replace(
        graph=replace(program.graph, nodes=tuple(nodes), outputs=(Ref(name),)),
        tensors={**program.tensors, **tensors, "given": value},
        kinds={**program.kinds, "given": Kind("buffer")},
    )
    taken = {key: value for key, value in inputs.items() if key in changed.inputs}
    return outputs(changed.module().eval(), taken)[0].detach()


# Density


def test_densities_by_allocation() -> None:
    old = traced("small_cnn")
    uniform = cut(old, pattern="unstructured", density=0.25)
    erk = cut(old, pattern="unstructured", density=0.25, allocation="erk")
    everywhere = cut(old, pattern="unstructured", density=0.25, allocation="global")
    names = list(masks(uniform))
    sizes = {name: old.tensors[name].numel() for name in names}
    found = {
        kind: {name: int(program.tensors[f"{name}_mask"].sum()) for name in names}
        for kind, program in (("uniform", uniform), ("erk", erk), ("global", everywhere))
    }
    assert found["uniform"] == {name: round(0.25 * size) for name, size in sizes.items()}
    wanted = erdos_renyi([old.tensors[name].shape for name in names], 0.25)
    assert found["erk"] == {n: round(d * sizes[n]) for n, d in zip(names, wanted, strict=True)}
    assert sum(found["global"].values()) == round(0.25 * sum(sizes.values()))
    together = torch.cat([old.tensors[name].detach().abs().flatten() for name in names])
    bound = together.sort(descending=True).values[round(0.25 * len(together)) - 1]
    assert all(torch.equal(everywhere.tensors[f"{n}_mask"], old.tensors[n].abs() >= bound) for n in names)
    assert len({str(row) for row in found.values()}) == 3


def test_tiles_and_blocks_run_along_outputs_too() -> None:
    for model, text in (("llama", "@0x1"), ("gpt2", "@1x0"), ("mixtral", "@1x2")):
        for asked in ("2:4x4", "block2x4"):
            found = patterns(cut(traced(model), pattern=asked, keep="*gate.weight" * (model == "mixtral")))
            assert {p for n, p in found.items() if "down" in n or "c_fc" in n} == {f"{asked}{text}"}


def test_what_does_not_divide_is_left_dense_or_padded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    program = trace(model, (torch.randn(2, 8),))
    rewriter = Rewriter(program)
    Sparsify().rewrite(rewriter)
    assert set(masks(rewriter.program)) == {"0.weight"}
    assert rewriter.notes == [
        "4.weight left as it is: what it gives is an output",
        "2.weight left as it is: 10 inputs are no multiple of 4",
    ]
    padded = cut(program, pad=True)
    assert set(patterns(padded)) == {"0.weight", "2.weight"}
    mask = padded.tensors["2.weight_mask"]
    assert mask[:, :8].reshape(8, 2, 4).sum(2).eq(2).all() and mask[:, 8:].all()


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def test_a_tied_weight_is_masked_once() -> None:
    torch.manual_seed(0)
    program = trace(_Tied(), (torch.randn(2, 8),))
    assert program.aliases
    new = cut(program)
    assert list(masks(new)) == ["first.weight"] and new.aliases == program.aliases
    module = new.module()
    assert module.get_parameter("second.weight") is module.get_parameter("first.weight")
    same_outputs(new, folded(new, program))


# Scores


def test_random_scores_depend_on_the_seed_only() -> None:
    first, again, other = (cut(traced("nanogpt"), score="random", seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    assert patterns(first) == patterns(other)


def test_activation_norms_are_wandas() -> None:
    """Against hooks on the model itself: |W| times the norm of each input over all batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 4, 12), nn.ReLU(), nn.Linear(12, 2))  # fmt: skip
    data = [{"input": torch.randn(3, 4, 6, 6) * torch.tensor([1.0, 5, 0.1, 2])[:, None, None]} for _ in range(2)]
    squares: dict[int, Tensor] = {}

    def watch(index: int) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().double().transpose(0, 1).reshape(given[0].shape[1], -1)
            squares[index] = squares.get(index, torch.zeros(len(rows), dtype=torch.float64)) + rows.square().sum(1)

        return hook

    program = trace(model, data[0])
    for index in (0, 2, 5):
        model[index].register_forward_pre_hook(watch(index))
    for inputs in data:
        model(**inputs)
    for index in (0, 2, 5):
        weight = model[index].get_parameter("weight").detach()
        norms = squares[index].sqrt()
        if index == 2:  # outputs of the first group read the first four channels
            scores = weight.double() * torch.stack([norms[:4]] * 4 + [norms[4:]] * 4)[:, :, None, None]
        else:
            scores = weight.double() * norms.reshape(1, -1, *[1] * (weight.dim() - 2))
        new = cut(program, data, score="wanda", at=f"{index}.weight", pattern="1:2")
        pairs = scores.abs().movedim(1, -1).unflatten(-1, (-1, 2))
        wanted = torch.stack([pairs[..., 0] >= pairs[..., 1], pairs[..., 0] < pairs[..., 1]], -1)
        assert torch.equal(new.tensors[f"{index}.weight_mask"].movedim(1, -1).unflatten(-1, (-1, 2)), wanted)
        assert not torch.equal(new.tensors[f"{index}.weight_mask"], cut(program, pattern="1:2", at=f"{index}.weight")
                               .tensors[f"{index}.weight_mask"])  # fmt: skip


class _Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.down(self.up(x).relu())
        return nn.functional.cross_entropy(logits, labels), logits


def test_gradients_need_a_loss() -> None:
    torch.manual_seed(0)
    model = _Loss()
    data = [{"x": torch.randn(20, 6), "labels": torch.randint(0, 3, (20,))} for _ in range(2)]
    program = trace(model, data[0])
    new = cut(program, data, score="gradient", pattern="unstructured", density=0.25)
    assert list(masks(new)) == ["up.weight"], "what the head gives is an output"
    (gradient,) = torch.autograd.grad(model(**data[0])[0] + model(**data[1])[0], [model.up.weight])
    scores = (gradient * model.up.weight).detach().abs().flatten()
    assert int(new.tensors["up.weight_mask"].flatten()[scores.topk(12).indices].sum()) == 12
    with pytest.raises(Refusal, match="labels"):
        cut(traced("nanogpt"), [traced("nanogpt").example()], score="gradient")
    for score in ("gradient", "wanda"):
        with pytest.raises(OptionError, match="--data"):
            cut(program, score=score)
    with pytest.raises(Refusal, match="tokens choose"):
        cut(traced("mixtral"), [traced("mixtral").example()], score="wanda")


# Afterwards


def test_saved_loaded_trained(tmp_path: Path) -> None:
    new = cut(traced("nanogpt"))
    new.save(tmp_path / "new.pt")
    loaded = Program.load(tmp_path / "new.pt")
    assert loaded.digest == new.digest and patterns(loaded) == patterns(new)
    module = loaded.module(hierarchical=True)
    state = module.state_dict()
    assert all(state[mask].dtype == torch.bool for mask in masks(new).values())
    before = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for seed in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in outputs(module, new.example(seed=seed))).backward()  # pyright: ignore
        optimizer.step()
    for name, mask in masks(new).items():
        parameter, keeps = module.get_parameter(name), state[mask]
        assert parameter.grad is not None and not parameter.grad[~keeps].any() and parameter.grad[keeps].any()
        assert torch.equal(parameter[~keeps], before[name][~keeps])
        assert not torch.equal(parameter[keeps], before[name][keeps])
    trained = new.trained(module)
    assert patterns(trained) == patterns(new)
    other = traced("nanogpt").module()
    assert set(other.load_state_dict(state, strict=False).unexpected_keys) == set(masks(new).values())


def test_masks_are_refined_or_replaced() -> None:
    old = traced("nanogpt")
    half = cut(old, pattern="unstructured", density=0.5)
    refined, replaced = (cut(half, pattern="2:4", score="random", masked=m) for m in ("refine", "replace"))
    assert len(half.graph.nodes) == len(refined.graph.nodes) == len(replaced.graph.nodes)
    for name in patterns(refined):
        first, second, third = (one.tensors[f"{name}_mask"] for one in (half, refined, replaced))
        assert not (second & ~first).any() and (third & ~first).any()
        assert density(second) < 0.5 == density(third)
    with pytest.raises(Refusal, match="would become"):
        cut(half, pattern="unstructured", density=0.5)
    with pytest.raises(Refusal, match="would become"):
        cut(half, pattern="unstructured", density=1.0)


GROWTHS = [
    ("nanogpt", "widen:factor=1.05", "2:4"), ("nanogpt", "add-heads", "2:4"), ("nanogpt", "deepen", "block4x4"),
    ("nanogpt", "widen:factor=2,by=copies", "2:4x2"), ("nanogpt", "widen:init=copy", "unstructured"),
    ("llama", "widen-hidden:factor=1.5", "2:4"), ("llama", "add-kv-heads", "block4x4"),
    ("llama", "widen-keys:scale=weights", "2:4"), ("llama", "split-kv-heads", "2:4"), ("resnet", "widen", "2:4"),
    ("resnet", "deepen", "4:8"), ("gpt2", "widen", "1:4"), ("mixtral", "duplicate-experts", "2:4"),
    ("mixtral", "widen-experts", "2:4x2"), ("gpt2", "grow-vocab:to=107", "2:4"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "spec", "pattern"), GROWTHS)
def test_growth_keeps_masks_valid(model: str, spec: str, pattern: str) -> None:
    old = cut(traced(model), pattern=pattern, keep="*gate.weight" if model == "mixtral" else "")
    new = parse_pass(spec)(old)
    found = new.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested"
    before, after = patterns(old), patterns(new)
    assert set(before.values()) == set(after.values()) and len(after) >= len(before)
    for name, text in after.items():
        mask = new.tensors[f"{name}_mask"]
        if Pattern.parse(text).kind == "n:m":
            part = Pattern.parse(text)
            assert density(mask) == part.kept / part.group, f"{name}: as dense in new blocks"
        else:
            assert abs(density(mask) - 0.5) < 0.02, name
    # what was there is there still (at the same places, as none of these shifts units of what it does not grow)
    if spec.startswith(("widen:", "grow-vocab")) and model != "resnet":
        for name in before:
            first, second = (one.tensors[f"{name}_mask"] for one in (old, new))
            assert torch.equal(second[tuple(slice(n) for n in first.shape)], first)


def test_copies_copy_their_masks() -> None:
    old = cut(traced("nanogpt"))
    new = parse_pass("widen:factor=2,by=copies")(old)
    mask, down = (new.tensors[f"blocks.0.{name}.weight_mask"] for name in ("up", "down"))
    assert torch.equal(mask[:80], mask[80:]) and torch.equal(down[:, :80], down[:, 80:])


def test_new_blocks_can_learn() -> None:
    """Masks of new blocks are not zero everywhere, nor is the gradient behind them."""
    new = Widen(factor=1.5)(cut(traced("nanogpt")))
    assert density(new.tensors["blocks.0.up.weight_mask"][80:]) == 0.5
    module = new.module()
    sum(out.square().mean() for out in outputs(module, new.example(seed=0))).backward()  # pyright: ignore
    gradient = module.get_parameter("blocks.0.down.weight").grad
    assert gradient is not None and density(gradient[:, 80:] != 0) > 0.4


@pytest.mark.parametrize(("pattern", "spec", "word"), [
    ("2:4", "widen:to=81", "multiple_of=4"), ("block4x4", "widen-keys:to=13", "multiple_of=4"),
    ("2:4", "prune-axis:axis=mlp,units=5", "before sparsify"), ("2:4", "permute-for-nm", "before sparsify"),
    ("2:4", "upcycle", "does not learn"),
])  # fmt: skip
def test_groups_are_never_shifted(pattern: str, spec: str, word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        parse_pass(spec)(cut(traced("nanogpt"), pattern=pattern))
    assert caught.value.found and caught.value.where and caught.value.fix


def test_whole_groups_can_go() -> None:
    old = cut(traced("nanogpt"))
    small = PruneAxis(axis="mlp@blocks.0", units=(8, 9, 10, 11))(old)
    kept = [unit for unit in range(80) if unit not in (8, 9, 10, 11)]
    assert patterns(small) == patterns(old)
    assert torch.equal(small.tensors["blocks.0.down.weight_mask"], old.tensors["blocks.0.down.weight_mask"][:, kept])


def test_pruned_then_cut_grown_then_cut_undone() -> None:
    small = cut(PruneAxis(factor=0.5)(traced("nanogpt")))
    assert len(patterns(small)) == 8
    grown = Widen(factor=1.5)(cut(traced("nanogpt")))
    refined = cut(grown, pattern="1:4")
    assert set(patterns(refined).values()) == {"1:4@1"}
    back = Undo()(grown)
    assert back.digest == cut(traced("nanogpt")).digest


# The pass as a whole


def test_the_change_is_measured() -> None:
    new = Sparsify()(traced("nanogpt"))
    found = new.certificate
    assert found and found.claim == "Changes" and found.measured and 0.01 < found.measured.norm < 1.5
    assert found.notes[0].startswith("positions.weight") and "embedding" in found.notes[0]
    with pytest.raises(Refusal, match="did more"):
        Undo()(new)


@pytest.mark.parametrize("model", ["nanogpt", "small_cnn", "gpt2", "t5"])
def test_only_zeros_cut_away_is_exact(model: str) -> None:
    old = traced(model)
    zeroed = folded(cut(old), old)
    new = Sparsify()(zeroed)
    found = new.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested"
    assert check(zeroed, new).holds and not check(old, new).holds
    name, mask = next(iter(masks(new).items()))
    less = new.tensors[mask].clone()
    less.view(-1)[zeroed.tensors[name].detach().reshape(-1).nonzero()[0]] = False  # one weight that is not zero
    assert not check(zeroed, new.replace(tensors={**new.tensors, mask: less})).holds
    same_outputs(zeroed, new)


def test_several_passes_cut_several_parts() -> None:
    specs = [
        "sparsify:at=*.up.weight",
        "sparsify:at=re:down,pattern=1:4",
        "sparsify:at=*qkv*,pattern=block2x4,density=0.25",
    ]
    new = Pipeline.parse(specs)(traced("nanogpt"))
    assert set(patterns(new).values()) == {"2:4@1", "1:4@1", "block2x4@0x1"}
    assert [certificate.spec for certificate in new.journal] == specs
    head = cut(traced("llama"), at="lm_head.weight")
    assert list(masks(head)) == ["lm_head.weight"], "heads are cut where they are named"


NONSENSE = [
    ({"pattern": "2:1"}, "no pattern"), ({"pattern": "2:4@1"}, "without dimensions"), ({"density": 0.5}, "says both"),
    ({"allocation": "erk"}, "says both"), ({"pattern": "unstructured", "density": 0.0}, "above 0"),
    ({"at": "*.nothing"}, "valid"), ({"keep": "nothing"}, "valid"), ({"at": "positions.weight"}, "embedding"),
    ({"pattern": "2:1000"}, "pad=true"), ({"at": "*up*", "keep": "*"}, "kept"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "word"), NONSENSE)
def test_nonsense_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises((OptionError, Refusal), match=word):
        cut(traced("nanogpt"), **options)

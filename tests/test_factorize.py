"""Weights as two factors, and factors as one weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphgrow.errors import OptionError, Refusal
from graphgrow.export import export_onnx
from graphgrow.graph import Kind
from graphgrow.pipeline import Pipeline, parse_pass
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.factors import Spectrum, Weighting, allocate, decompose, drawn, sketch
from graphgrow.rewrite.moments import moments
from graphgrow.tracing import trace
from graphgrow.verify import check
from passes import Factorize, MergeFactors, PruneAxis, Widen
from tests.programs import outputs, traced

torch.set_num_threads(1)

MODELS = ["gpt2", "llama", "vit", "bert", "resnet", "convnext", "t5", "tied_autoencoder", "einsum_attention"]


def ranks(program: Program) -> dict[str, int]:
    """The axes between factors."""
    return {axis.name: int(str(axis.size)) for axis in program.axes.named if axis.role == "rank"}


def product(program: Program, name: str) -> Tensor:
    """What two factors of a matrix stand for, in float64."""
    left, right = (program.tensors[f"{name}_{side}"].detach().double() for side in ("left", "right"))
    return left @ right


@pytest.mark.parametrize("conv", ["pointwise", "separable"])
@pytest.mark.parametrize("model", MODELS)
def test_full_rank_is_exact_and_merges_back(model: str, conv: str) -> None:
    """Every weight that can come apart, embeddings, heads and tied ones too."""
    old = traced(model).to("float64")
    new = Factorize(at="*", rank=10_000, larger=True, conv=conv)(old)  # pyright: ignore[reportArgumentType]
    found = new.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested"
    factors = [name for name in new.tensors if name.endswith("_left")]
    assert len(factors) == len(old.tensors.keys() - new.tensors.keys()) == len(ranks(new)) > 0
    inputs = old.example(seed=1)
    for one, other in zip(outputs(old.module().eval(), inputs), outputs(new.module().eval(), inputs), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
    back = MergeFactors()(new)
    assert back.certificate and back.certificate.claim == "Exact" and back.certificate.holds
    assert back.graph == old.graph and back.kinds == old.kinds and back.aliases == old.aliases
    for name, tensor in old.tensors.items():
        torch.testing.assert_close(back.tensors[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["gpt2", "llama", "resnet"])
def test_the_error_at_a_site_is_the_next_singular_value(model: str) -> None:
    old = traced(model)
    new = Factorize(rank=3)(old)
    found = new.certificate
    assert found and found.claim == "Within" and found.holds and found.measured
    known = Rewriter(old).weights("pointwise")
    assert found.bounds
    for bound in found.bounds:
        weight = known[bound.at]
        assert not isinstance(weight, str)
        values = torch.linalg.svdvals(weight.matrix(old.tensors[bound.at]).double())
        assert float(values[3]) * (1 - 1e-5) <= bound.value <= 1.05 * float(values[3])


def test_embeddings_and_heads_have_to_be_named() -> None:
    """By what they do: rows that are looked up, an axis that only outputs show."""
    old = traced("llama")
    new = Factorize(rank=3)(old)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= new.tensors.keys()
    notes = new.certificate.notes if new.certificate else ()
    assert any("embed_tokens" in note and "embedding" in note for note in notes)
    assert any("lm_head" in note and "outputs show" in note for note in notes)
    named = Factorize(at="re:embed_tokens|lm_head", rank=3)(old)
    assert {"model.embed_tokens.weight_left", "lm_head.weight_right"} <= named.tensors.keys()


def test_a_tied_weight_comes_apart_once() -> None:
    old = traced("gpt2")
    new = Factorize(at="transformer.wte.weight", rank=5)(old)
    assert new.aliases == {f"lm_head.weight_{side}": f"transformer.wte.weight_{side}" for side in ("left", "right")}
    assert new.size == old.size - 101 * 48 + 5 * (101 + 48)
    state = new.module().state_dict()
    assert state["lm_head.weight_left"].data_ptr() == state["transformer.wte.weight_left"].data_ptr()


def test_what_would_not_pay_is_left_and_said() -> None:
    """A square matrix at half of its rank is no smaller than before; just below, it is."""
    old = traced("gpt2")
    new = Factorize(fraction=0.5)(old)
    squares = [name for name in old.tensors if name.endswith("attn.c_proj.weight")]
    assert all(name in new.tensors for name in squares)
    assert new.certificate and any("48 x 48 at rank 24" in note for note in new.certificate.notes)
    assert all(name not in Factorize(rank=23)(old).tensors for name in squares)
    with pytest.raises(Refusal, match="rank 24"):
        Factorize(at="*attn.c_proj.weight", fraction=0.5)(old)
    assert Factorize(at="*attn.c_proj.weight", fraction=0.5, larger=True)(old).size > old.size - 1


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("model", ["gpt2", "resnet", "llama"])
def test_a_budget_is_spent(model: str, budget: float) -> None:
    old = traced(model)
    new = Factorize(budget=budget)(old)
    known = Rewriter(old).weights("pointwise")
    weights = [w for w in known.values() if not isinstance(w, str) and not w.outside and w.most]
    whole = sum(weight.rows * weight.columns for weight in weights)
    kept = sum(old.tensors[w.name].numel() if w.name in new.tensors else
               sum(new.tensors[f"{w.name}_{side}"].numel() for side in ("left", "right")) for w in weights)  # fmt: skip
    assert budget * whole - max(w.rows + w.columns for w in weights) <= kept <= budget * whole


def test_a_budget_goes_where_energy_is() -> None:
    """As much is kept as by the best of all ways to spend it, but for the last step."""
    torch.manual_seed(0)
    shapes, powers = [(40, 60), (64, 64), (30, 90)], [0.2, 1.0, 3.0]
    spectra: dict[str, Spectrum] = {}
    for index, (shape, power) in enumerate(zip(shapes, powers, strict=True)):
        found = decompose(torch.randn(*shape, dtype=torch.float64))
        values = torch.arange(1, len(found.values) + 1, dtype=torch.float64) ** -power
        most = (shape[0] * shape[1] - 1) // sum(shape)
        spectra[str(index)] = Spectrum(found.left, values[:most], found.right, float(values.square().sum()))
    budget = int(0.4 * sum(m * n for m, n in shapes))
    chosen = allocate(spectra, budget)
    assert isinstance(chosen, dict)

    def kept(name: str, rank: int | None) -> float:
        found = spectra[name]
        return 1.0 if rank is None else float(found.values[:rank].square().sum()) / found.energy

    def cost(name: str, rank: int | None) -> int:
        rows, columns = shapes[int(name)]
        return rows * columns if rank is None else rank * (rows + columns)

    best = 0.0
    options = [[*range(1, len(found.values) + 1), None] for found in spectra.values()]
    for a in options[0]:
        for b in options[1]:
            for c in options[2]:
                if cost("0", a) + cost("1", b) + cost("2", c) <= budget:
                    best = max(best, kept("0", a) + kept("1", b) + kept("2", c))
    ours = sum(kept(name, rank) for name, rank in chosen.items())
    assert sum(cost(name, rank) for name, rank in chosen.items()) <= budget
    assert ours >= best - 0.02
    assert allocate(spectra, 10) == sum(m + n for m, n in shapes)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_is_kept_and_with_no_more_rank(energy: float) -> None:
    old = traced("gpt2")
    new = Factorize(energy=energy, larger=True)(old)
    found = [name.removesuffix("_left") for name in new.tensors if name.endswith("_left")]
    assert found
    for name in found:
        squares = torch.linalg.svdvals(old.tensors[name].double()).square()
        shares = squares.cumsum(0) / squares.sum()
        rank = new.tensors[f"{name}_left"].shape[1]
        assert shares[rank - 1] >= energy - 1e-6
        assert rank == 1 or shares[rank - 2] < energy + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_a_matrix_of_low_rank_is_found_and_exact(seed: int) -> None:
    """All energy of what has rank 5 but for rounding is rank 5: smaller, and the same function."""
    old = traced("gpt2").to("float64")
    name = "transformer.h.0.mlp.c_fc.weight"
    torch.manual_seed(seed)
    low = torch.randn(48, 5, dtype=torch.float64) @ torch.randn(5, 80, dtype=torch.float64) / 10
    old = old.replace(tensors={**old.tensors, name: low})
    new = Factorize(at=name, energy=1.0)(old)
    assert new.tensors[f"{name}_left"].shape == (48, 5) and new.size < old.size
    assert new.certificate and new.certificate.claim == "Exact" and new.certificate.holds


def test_starts() -> None:
    """Spectral splits the values between both; ones keeps directions and scale; random keeps the scale."""
    torch.manual_seed(0)
    matrix = torch.randn(40, 30, dtype=torch.float64)
    spectrum, values = decompose(matrix), torch.linalg.svdvals(matrix)
    left, right = spectrum.factors(7, "spectral")
    torch.testing.assert_close(left.T @ left, values[:7].diag())
    torch.testing.assert_close(right @ right.T, values[:7].diag())
    ones = torch.linalg.svdvals(torch.mm(*spectrum.factors(7, "ones")))
    torch.testing.assert_close(ones[:7], values[:7].square().mean().sqrt().expand(7))
    norms = [float(torch.mm(*drawn(matrix, 200, seed, "w")).std()) for seed in range(20)]
    assert sum(norms) / 20 == pytest.approx(float(matrix.std()), rel=0.05)


@pytest.mark.parametrize("init", ["ones", "random"])
def test_other_starts_are_judged(init: Any) -> None:
    new = Factorize(rank=5, init=init)(traced("llama"))
    assert new.certificate and new.certificate.claim == "Within" and new.certificate.holds


def test_random_projections_are_nearly_as_near() -> None:
    """And say by how much they are off."""
    torch.manual_seed(0)
    for shape in ((90, 200), (200, 90)):
        found = decompose(torch.randn(*shape, dtype=torch.float64))
        matrix = found.left * torch.arange(1, 91, dtype=torch.float64) ** -0.5 @ found.right
        best, near = decompose(matrix), sketch(matrix, 20, 0, "w")
        off = {name: float((matrix - torch.mm(*pair)).norm() / matrix.norm()) for name, pair in (
            ("best", best.factors(20, "spectral")), ("near", near.factors(20, "spectral")),
            ("drawn", drawn(matrix, 20, 0, "w")),
        )}  # fmt: skip
        assert off["best"] == pytest.approx(best.lost(20), rel=1e-9)
        assert off["near"] == pytest.approx(near.lost(20), rel=1e-9)
        assert off["best"] <= off["near"] <= 1.1 * off["best"]
        assert off["drawn"] > 1.5 * off["best"]
    new = Factorize(rank=5, method="randomised")(traced("gpt2"))
    assert new.certificate and any("random projections" in note for note in new.certificate.notes)


def batches(program: Program, count: int) -> list[dict[str, Tensor]]:
    return [program.example(seed=seed) for seed in range(count)]


@pytest.mark.parametrize("model", ["gpt2", "llama", "resnet", "vit"])
def test_data_tell_what_is_near(model: str) -> None:
    """On the data that it was chosen by, what a weight makes is nearer than with the nearest weight."""
    old = traced(model).to("float64")
    data = batches(old, 4)
    plain, ours = Factorize(rank=4)(old), Factorize(rank=4, by="activations")(old, data)
    known = Rewriter(old).weights("pointwise")
    chosen = [w for w in known.values() if not isinstance(w, str) and f"{w.name}_left" in ours.tensors]
    assert chosen
    better = 0
    for name, found in moments(old, chosen, data).items():
        assert isinstance(found, Weighting)
        weight = next(w for w in chosen if w.name == name)
        matrix = weight.matrix(old.tensors[name])
        errors = []
        for program in (ours, plain):
            left, right = (program.tensors[f"{name}_{side}"].detach() for side in ("left", "right"))
            off = matrix - left.flatten(1) @ right.flatten(1)
            off = off.T if found.side == 0 else off
            errors.append(float((off @ found.moment * off).sum()))
        assert errors[0] <= errors[1] * (1 + 1e-9)
        better += errors[0] < 0.99 * errors[1]
    assert better > len(chosen) / 2


def test_moments_are_of_what_a_convolution_multiplies() -> None:
    """W times the patches is what the convolution gives."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1), nn.Conv2d(8, 8, (3, 1), dilation=2))
    old = trace(layers, {"input": torch.randn(2, 3, 16, 16)}).to("float64")
    data = batches(old, 2)
    chosen = [w for w in Rewriter(old).weights("pointwise").values() if not isinstance(w, str)]
    seen = torch.cat([layers[0].double()(batch["input"]) for batch in data]).detach()
    bias = old.tensors["0.bias"].detach()
    energy = float((seen - bias[:, None, None]).square().sum())
    found = moments(old, chosen, data)["0.weight"]
    assert isinstance(found, Weighting)
    matrix = chosen[0].matrix(old.tensors["0.weight"])
    assert float((matrix @ found.moment * matrix).sum()) == pytest.approx(energy, rel=1e-9)


def test_rank_grows_exactly_and_shrinks_to_the_largest_values() -> None:
    old = traced("gpt2")
    new = Factorize(rank=6)(old)
    grown = Widen(axis="rank", to=9)(new)
    assert grown.certificate and grown.certificate.claim == "Exact" and grown.certificate.holds
    assert set(ranks(grown).values()) == {9}
    cut = PruneAxis(axis="rank", to=4)(new)
    assert set(ranks(cut).values()) == {4}
    less = Factorize(rank=4)(old)
    name = "transformer.h.1.mlp.c_fc.weight"
    torch.testing.assert_close(product(cut, name), product(less, name), rtol=1e-4, atol=1e-5)
    assert Widen(factor=1.5)(new).certificate  # by itself it grows MLPs, not ranks
    assert set(ranks(Widen(factor=1.5)(new)).values()) == {6}


def test_no_rank_where_something_stands_between() -> None:
    """A bias, a norm or a function between two linears: the axis between is none of rank."""

    class Chain(nn.Module):
        def __init__(self, bias: bool, between: nn.Module) -> None:
            super().__init__()
            self.down, self.between, self.up = nn.Linear(12, 5, bias=bias), between, nn.Linear(5, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.between(self.down(x)))

    cases = [(False, nn.Identity(), 1), (True, nn.Identity(), 0), (False, nn.ReLU(), 0), (False, nn.LayerNorm(5), 0)]
    for bias, between, expected in cases:
        program = trace(Chain(bias, between), {"x": torch.randn(3, 12)})
        assert len(ranks(program)) == expected
        if expected:
            one = MergeFactors()(program)
            assert one.tensors["up.weight"].shape == (16, 12) and "down.weight" not in one.tensors
        else:
            with pytest.raises(Refusal, match="no factors to merge"):
                MergeFactors()(program)


def test_factors_learn() -> None:
    old = traced("llama")
    module = Factorize(rank=5)(old).module().train()
    loss = module(**old.example(seed=0)).logits.square().mean()
    loss.backward()
    found = [p.grad for name, p in module.named_parameters() if name.endswith(("_left", "_right"))]
    assert found and all(grad is not None and bool(grad.abs().max() > 0) for grad in found)


def test_factors_have_the_type_and_the_training_of_the_weight() -> None:
    old = traced("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    kind = replace(old.kinds[name], trainable=False)
    frozen = old.replace(
        kinds={**old.kinds, name: kind},
        tensors={**old.tensors, name: old.tensors[name].detach().requires_grad_(False)},
    ).to("bfloat16")
    new = Factorize(at=name, rank=5)(frozen)
    for side in ("left", "right"):
        factor = new.tensors[f"{name}_{side}"]
        assert factor.dtype == torch.bfloat16 and not factor.requires_grad
        assert new.kinds[f"{name}_{side}"] == kind


@pytest.mark.parametrize("model", ["gpt2", "resnet"])
def test_onnx(model: str, tmp_path: Path) -> None:
    """The exporter runs what it wrote and compares."""
    new = Factorize(rank=4, conv="separable")(traced(model))
    export_onnx(new, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 0


def test_saved_and_read(tmp_path: Path) -> None:
    new = Factorize(rank=4)(traced("gpt2"))
    new.save(tmp_path / "new.pt")
    assert Program.load(tmp_path / "new.pt").digest == new.digest


def test_pipelines() -> None:
    """Factors of factors, growth of what was factorised, and all of it back."""
    old = traced("nanogpt")
    new = Pipeline.parse(["factorize:rank=8", "widen:factor=1.5", "factorize:at=*_left,rank=3"])(old)
    assert all(found.holds for found in new.journal)
    assert check(new, new).holds


def test_a_masked_weight_is_refused() -> None:
    old = traced("skip_mlp")
    masked = parse_pass_or_mask(old, "ups.0.weight")
    with pytest.raises(Refusal, match="mask the factors instead"):
        Factorize(at="ups.0.weight", rank=2)(masked)


def parse_pass_or_mask(program: Program, name: str) -> Program:
    """A weight times a mask of ones, all of whose uses read the product."""
    from tests.test_likeness import masked

    made = masked(program, name, torch.ones(program.tensors[name].shape, dtype=torch.bool))
    return made.replace(kinds={**made.kinds, f"{name}_mask": Kind("buffer", trainable=False, pattern="2:4@1")})


def test_refusals() -> None:
    old = traced("skip_mlp")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"budget": 0.01}, "rank 1 everywhere"),
        ({"rank": 500}, "no weight that two factors"),
    ]
    for options, text in cases:
        with pytest.raises(Refusal, match=text):
            Factorize(**options)(old)
    with pytest.raises(OptionError, match="without data"):
        Factorize(by="activations")(old)
    with pytest.raises(Refusal, match="no factors to merge"):
        MergeFactors()(old)
    shapes = old.replace(tensors={name: tensor.to("meta") for name, tensor in old.tensors.items()})
    for spec in ("factorize", "merge-factors"):
        with pytest.raises(Refusal, match="takes weights apart"):
            parse_pass(spec)(shapes)
    name = "ups.0.weight"
    broken = old.replace(tensors={**old.tensors, name: old.tensors[name].detach() * float("nan")})
    with pytest.raises(Refusal, match="not finite"):
        Factorize(at=name, rank=2)(broken)
    taken = old.replace(
        tensors={**old.tensors, f"{name}_left": torch.zeros(1)},
        kinds={**old.kinds, f"{name}_left": Kind("parameter")},
    )
    weight = Rewriter(old).weights("pointwise")[name]
    assert not isinstance(weight, str)
    with pytest.raises(Refusal, match="already"):
        Rewriter(taken).factorize({name: (weight, (torch.ones(weight.rows, 2), torch.ones(2, weight.columns)))})

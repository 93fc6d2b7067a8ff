"""supar: what is read from graphs, the multipliers and recipes that follow, and both forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphgrow as gg
from graphgrow.axes import Atom
from graphgrow.errors import Refusal
from graphgrow.graph import Tuning
from graphgrow.pipeline import parse_pass
from graphgrow.program import Program
from graphgrow.recipe import Recipe
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.parameterize import MARK
from graphgrow.rewrite.widths import Widths
from graphgrow.runtime.coordinates import with_masks
from graphgrow.verify.equivalence import lowered
from passes import Supar, Widen
from tests.programs import traced

BASE = {
    "gpt2": ("hidden=16", "mlp=20", "heads=2", "key=6"), "llama": ("hidden=16", "mlp=20", "kv_heads=1", "key=3"),
    "vit": ("hidden=16", "mlp=20", "heads=2"), "t5": ("hidden=16", "mlp=20", "heads=2", "key=5"),
    "bert": ("hidden=16", "mlp=20", "heads=2"), "skip_mlp": ("hidden=8", "mlp=10"),
    "nanogpt": ("hidden=16", "mlp=20", "heads=2", "key=6"),
}  # fmt: skip


def base(name: str, program: Program | None = None) -> dict[Atom, int]:
    return dict(Supar(base=BASE[name]).sizes((program or traced(name)).axes))


def changed(program: Program, **options: object) -> Program:
    """What the pass proposes."""
    rewriter = Rewriter(program)
    Supar(**options).rewrite(rewriter)  # pyright: ignore[reportArgumentType]
    return rewriter.program


def masked(name: str, density: float) -> Program:
    program = traced(name)
    return with_masks(program, Widths(program, base(name)), density, 0)


def values(program: Program, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = lowered(program, program.tensors, torch.float64).eval()(**inputs)
    return [one for one in pytree.tree_leaves(found) if isinstance(one, Tensor)]


# part, fan-in and its multiplier of one weight of every kind, from the shapes in the zoo
PARTS = {
    "gpt2": {"transformer.wte.weight": ("output", 48, 3), "transformer.wpe.weight": ("input", 1, 1),
             "transformer.h.1.attn.c_attn.weight": ("hidden", 48, 3),
             "transformer.h.1.attn.c_proj.weight": ("hidden", 48, 2),
             "transformer.h.0.mlp.c_fc.weight": ("hidden", 48, 3),
             "transformer.h.0.mlp.c_proj.weight": ("hidden", 80, 4), "transformer.ln_f.weight": ("vector", 1, 1)},
    "llama": {"model.embed_tokens.weight": ("input", 1, 1), "model.layers.0.self_attn.k_proj.weight": ("hidden", 48, 3),
              "model.layers.0.self_attn.o_proj.weight": ("hidden", 60, 3),
              "model.layers.1.mlp.down_proj.weight": ("hidden", 80, 4), "lm_head.weight": ("output", 48, 3)},
    "vit": {"vit.embeddings.patch_embeddings.projection.weight": ("input", 3 * 64, 1),
            "vit.embeddings.position_embeddings": ("vector", 1, 1), "classifier.weight": ("output", 48, 3),
            "vit.layers.0.attention.o_proj.weight": ("hidden", 48, 2)},
    "t5": {"shared.weight": ("output", 48, 3), "decoder.block.1.layer.1.EncDecAttention.o.weight": ("hidden", 40, 2)},
    "bert": {"bert.embeddings.word_embeddings.weight": ("output", 48, 3),
             "cls.predictions.transform.dense.weight": ("hidden", 48, 3)},
    "skip_mlp": {"stem.weight": ("input", 13, 1), "ups.0.weight": ("hidden", 24, 3),
                 "downs.2.weight": ("hidden", 40, 4), "head.weight": ("output", 24, 3), "stem.bias": ("vector", 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_fan_ins_are_read_from_the_graph(name: str) -> None:
    found = Widths(traced(name), base(name)).weights
    told = {key: (found[key].part, found[key].fan_in, found[key].multiplier) for key in PARTS[name]}
    assert told == PARTS[name]


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "t5", "bert", "skip_mlp", "nanogpt"])
def test_the_reparameterisation_keeps_the_function(name: str) -> None:
    old = traced(name).to("float64") if name != "t5" else traced(name)
    new = changed(old, base=BASE[name], alpha_in=3.0, alpha_out=2.0)
    inputs = old.example(seed=3)
    # T5 stays in float32 (norms are cast to it): its weights are rounded when they are multiplied.
    allowed = 1e-12 if name != "t5" else 1e-4
    for before, after in zip(values(old, inputs), values(new, inputs), strict=True):
        assert float((before - after).abs().max()) <= allowed * float(before.abs().max())
    assert [node for node in new.graph.nodes if node.source == MARK]
    assert any(not torch.equal(new.tensors[key], tensor) for key, tensor in old.tensors.items())
    assert changed(new, base=BASE[name], alpha_in=3.0, alpha_out=2.0).digest == new.digest, "again nothing changes"


def test_a_fused_reparameterisation_is_proved() -> None:
    certificate = Supar(base=BASE["gpt2"])(traced("gpt2")).certificate
    assert certificate is not None
    assert (certificate.claim, certificate.evidence) == ("Exact", "proved and tested")


def test_multipliers_are_those_of_the_reference() -> None:
    """nanoGPT-mup, branch supar, model.py: a width multiplier m and a density d give std / sqrt(m d), lr_scale 1/(m d),
    x * input_alpha after the embeddings, x * output_alpha / m before the head, and scores divided by the head's size.
    Here with everything that scales by m = 4: hidden 48 (base 12), mlp 80 (base 20), 4 heads (base 1) of 12."""
    m, density, std, alpha_in, alpha_out = 4.0, 0.5, 0.02, 9.1705, 1.0951835
    program = traced("gpt2")
    sizes = ("hidden=12", "mlp=20", "heads=1", "key=12")
    own = Supar(base=sizes).sizes(program.axes)
    program = with_masks(program, Widths(program, own), density, 0)
    new = changed(program, base=sizes, form="fresh", sigma=std, alpha_in=alpha_in, alpha_out=alpha_out)
    marked = [node.args[1] for node in new.graph.nodes if node.source == MARK]
    assert marked == [alpha_in, pytest.approx(alpha_out / m)]
    fc = "transformer.h.0.mlp.c_fc.weight"
    live = new.tensors[fc].detach()[new.tensors[f"{fc}_mask"]]
    assert float(live.std()) == pytest.approx(std / (m * density) ** 0.5, rel=0.1)  # 1.6 % is one sigma of 1920 draws
    assert not new.tensors[fc].detach()[~new.tensors[f"{fc}_mask"]].count_nonzero()
    scales = [1 / (m * density), m * density, 1 / m]
    assert new.kinds[fc].tuning == Tuning(*scales)
    assert new.kinds["transformer.wte.weight"].tuning == new.kinds["transformer.wpe.weight"].tuning == Tuning()
    assert float(new.tensors["transformer.wte.weight"].detach().std()) == pytest.approx(std, rel=0.05)
    groups = gg.parameter_groups(new.module(), lr=0.01, weight_decay=0.1, eps=1e-8)
    hidden = next(group for group in groups if group["lr_scale"] == scales[0])
    assert (hidden["lr"], hidden["weight_decay"]) == (0.01 * scales[0], 0.1 * scales[1])
    assert len(hidden["params"]) == 8, "c_attn, c_proj, c_fc and c_proj of two layers"
    assert sum(len(group["params"]) for group in groups) == len(list(new.module().parameters()))


def test_a_head_right_after_the_embedding_has_a_multiplier_of_its_own() -> None:
    bigrams = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
    program = gg.trace(bigrams, {"input": torch.randint(11, (2, 5))})
    new = changed(program, base=("rank=4",), alpha_in=3.0, alpha_out=5.0)
    assert [node.args[1] for node in new.graph.nodes if node.source == MARK] == [3.0, 5.0 / 2]
    assert changed(new, base=("rank=4",), alpha_in=3.0, alpha_out=5.0).digest == new.digest, "again nothing changes"


def test_scores_are_divided_by_the_size_of_keys() -> None:
    """sqrt(base) / size: 1/sqrt(6) at the base size of 6."""
    new = changed(traced("gpt2"), base=BASE["gpt2"])
    scales = [dict(node.kwargs)["scale"] for node in new.graph.nodes if "attention" in node.op]
    assert scales == [pytest.approx(6**0.5 / 12)] * 2
    plain = changed(traced("gpt2"), base=BASE["gpt2"], attention=False)
    assert [dict(node.kwargs)["scale"] for node in plain.graph.nodes if "attention" in node.op] == [12**-0.5] * 2


@pytest.mark.parametrize(
    ("optimizer", "hidden", "embedding", "head", "gain"),
    [("adamw", 1 / 3, 1.0, 1.0, 1.0), ("adam", 1 / 3, 1.0, 1.0, 1.0), ("sgd", 1.0, 3.0, 3.0, 3.0)],
)
def test_rates_by_optimizer(optimizer: str, hidden: float, embedding: float, head: float, gain: float) -> None:
    """Tensor Programs V, table 8: Adam 1/fan-in for hidden weights, SGD fan-out and fan-in for the others."""
    kinds = changed(traced("llama"), base=BASE["llama"], optimizer=optimizer).kinds
    found = ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
    assert [kinds[name].tuning.rate for name in found] == pytest.approx([hidden, embedding, head, gain])
    decay = kinds[found[0]].tuning.decay
    assert decay == pytest.approx({"adamw": 3.0, "adam": 1.0, "sgd": 1.0}[optimizer])


def test_after_growth_multipliers_follow() -> None:
    """Widened, the inner weights have twice the fan-in; nothing is put in twice."""
    once = changed(traced("skip_mlp"), base=BASE["skip_mlp"])
    grown = Widen(factor=2)(once)
    again = changed(grown, base=BASE["skip_mlp"])
    marks = [[node.args[1] for node in p.graph.nodes if node.source == MARK] for p in (once, again)]
    assert marks[0] == marks[1] == [pytest.approx(1 / 3)]
    assert [p.kinds["downs.0.weight"].tuning.rate for p in (once, again)] == pytest.approx([1 / 4, 1 / 8])


def test_density_is_read_from_masks() -> None:
    program = masked("skip_mlp", 0.25)
    new = changed(program, base=BASE["skip_mlp"])
    assert new.kinds["ups.0.weight"].tuning.rate == pytest.approx(1 / (3 * 0.25))
    assert new.kinds["ups.0.weight"].tuning.eps == pytest.approx(1 / 3), "gradients do not shrink with density"
    half = changed(program, base=BASE["skip_mlp"], density=0.5)
    assert half.kinds["ups.0.weight"].tuning.rate == pytest.approx(1 / (3 * 0.5))
    rewriter = Rewriter(program)
    Supar(base=BASE["skip_mlp"]).rewrite(rewriter)
    assert any("dynamic" in note for note in rewriter.notes)


def test_a_foreign_multiplier_is_used() -> None:
    """One that somebody else put before the head is exchanged, not multiplied."""
    once = changed(traced("skip_mlp"), base=BASE["skip_mlp"], form="fresh")
    nodes = tuple(replace(node, source="mine.py:3") if node.source == MARK else node for node in once.graph.nodes)
    foreign = once.replace(graph=replace(once.graph, nodes=nodes))
    new = changed(foreign, base=("hidden=6", "mlp=10"), form="fresh")
    assert len(new.graph.nodes) == len(once.graph.nodes)
    assert [node.args[1] for node in new.graph.nodes if node.source == "mine.py:3"] == [pytest.approx(1 / 4)]


def test_a_missing_base_size_is_refused() -> None:
    with pytest.raises(Refusal, match="no base size for mlp"):
        Supar(base=("hidden=8",))(traced("skip_mlp"))


def test_specs_and_recipes(tmp_path: object) -> None:
    spec = "supar:base=hidden=8+mlp=10,alpha_out=2"
    made = parse_pass(spec)
    assert made == Supar(base=("hidden=8", "mlp=10"), alpha_out=2.0)
    assert made.spec == spec
    recipe = Recipe.model_validate({"passes": [{"supar": {"base": ["hidden=8", "mlp=10"], "alpha_out": 2}}]})
    assert recipe.checked() == [spec]

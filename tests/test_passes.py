"""Growth passes: what they need is what the theory says, on real models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphgrow.certificate import Certificate
from graphgrow.errors import DeadGrowth, Refusal
from graphgrow.pipeline import Pass, Pipeline, parse_pass
from graphgrow.program import Program
from graphgrow.tracing import trace
from graphgrow.verify import check
from graphgrow.verify.equivalence import measure
from passes import AddHeads, Deepen, GrowVocab, Widen, WidenHidden, WidenKeys
from tests.programs import traced

torch.set_num_threads(1)


def certified(grown: Program) -> Certificate:
    assert grown.certificate and grown.certificate.evidence == "proved and tested"
    return grown.certificate


def fills(found: Certificate) -> set[tuple[str, str, int]]:
    """What the proof needs: parameter, fact, dimension."""
    assert found.proof
    return {(row.parameter.rpartition("layers.0.")[2], row.text, row.dim) for row in found.proof.constraints}


def test_hidden_under_rms_norm() -> None:
    """Theorem 3.5: zero columns in the table, zero rows in what writes the stream, gains by sqrt(n/m), eps by n/m;
    nothing else, and new gains are free."""
    found = certified(WidenHidden(factor=1.5)(traced("llama")))
    needed = {row for row in fills(found) if not row[0].startswith("model.layers.1")}
    root = f"{(2 / 3) ** 0.5:.6g} times the same"
    assert needed == {
        ("model.embed_tokens.weight", "zero", 1),
        ("self_attn.o_proj.weight", "zero", 0),
        ("mlp.down_proj.weight", "zero", 0),
        ("input_layernorm.weight", root, -1),
        ("post_attention_layernorm.weight", root, -1),
        ("model.norm.weight", root, -1),
    }
    assert found.proof and {round(row.new / row.old, 9) for row in found.proof.numbers} == {round(2 / 3, 9)}
    assert len(found.proof.numbers) == 5  # two norms in each of two layers, and the last


def test_hidden_under_layer_norm() -> None:
    """The mean rule, at a size that is no multiple: means in what is written, zero in new biases of norms."""
    found = certified(WidenHidden(to=55)(traced("gpt2")))
    by_text = {text: {name.rpartition("h.0.")[2] for name, t, _ in fills(found) if t == text and "h.1." not in name}
               for text in ("the mean", "zero")}  # fmt: skip
    assert by_text["the mean"] == {
        "transformer.wte.weight", "transformer.wpe.weight", "attn.c_proj.weight", "attn.c_proj.bias",
        "mlp.c_proj.weight", "mlp.c_proj.bias",
    }  # fmt: skip
    assert by_text["zero"] == {"ln_1.bias", "ln_2.bias", "transformer.ln_f.bias"}


def test_hidden_under_norms_after_the_addition() -> None:
    """BERT: only complete copies; half as much again is refused with the norm's place."""
    found = certified(WidenHidden()(traced("bert")))
    assert {text for _, text, _ in fills(found)} >= {"the same", "0.5 times the same"}
    with pytest.raises(Refusal, match=r"layer_norm.default \(modeling_bert"):
        WidenHidden(factor=1.5)(traced("bert"))


def test_keys_under_rotary_positions() -> None:
    """Old pairs keep their frequencies, new ones are free; new keys are zero, queries free."""
    old = traced("llama")
    new = WidenKeys(factor=2)(old)
    certified(new)
    name = next(name for name, terms in old.axes.parameters.items() if "inv_freq" in name and len(terms) == 1)
    assert torch.equal(new.tensors[name][: old.tensors[name].numel()], old.tensors[name])
    assert {name.rpartition(".")[0] for name, _, _ in fills(new.certificate or certified(new))} <= {
        "self_attn.k_proj", "model.layers.1.self_attn.k_proj"
    }  # fmt: skip


def test_the_scale_of_attention_follows_where_asked() -> None:
    """GPT-2's fused weight: only the keys' part is multiplied."""
    old = traced("gpt2")
    new = WidenKeys(axis="key@transformer.h.0.attn.c_attn", factor=2, scale="weights")(old)
    found = certified(new)
    assert found.proof and [round(row.new / row.old, 9) for row in found.proof.numbers] == [round(2**-0.5, 9)]
    before, after = (program.tensors["transformer.h.0.attn.c_attn.weight"] for program in (old, new))
    torch.testing.assert_close(after[:, 96 + 0 : 96 + 12], before[:, 48 : 48 + 12] * 2**0.5)  # keys of head 0
    assert torch.equal(after[:, :12], before[:, :12]) and torch.equal(after[:, 192:240], before[:, 96:144])


def test_query_and_key_norms_need_copies() -> None:
    """New zeros in both would never get a gradient; copies at a multiple do, and are taken."""
    for one in (WidenKeys(by="zeros"), WidenKeys(factor=1.4)):
        with pytest.raises(DeadGrowth, match="with by=copies"):
            one(traced("qwen3"))
    assert certified(WidenKeys()(traced("qwen3"))).spec == "widen-keys:by=copies"


@pytest.mark.parametrize("model", ["gpt2", "llama", "gpt_neox", "gemma2", "vit", "opt"])
def test_all_axes_one_after_the_other(model: str) -> None:
    """A pipeline of all of them, in two orders: each step proved and tested, and the last program still the first."""
    old = traced(model)
    specs = [
        "widen:factor=1.5",
        "widen-hidden:factor=1.5",
        "add-heads",
        "widen-values:factor=1.5",
        "widen-keys:factor=2",
    ]
    for order in (specs, specs[::-1]):
        new = Pipeline.parse(order)(old)
        assert [one.evidence for one in new.journal] == ["proved and tested"] * len(specs)
        inputs = old.example(seed=3)
        with torch.no_grad():
            expected, found = (program.module().eval()(**inputs) for program in (old, new))
        for key in expected:
            if isinstance(expected[key], torch.Tensor):
                torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["add-heads:to=5", "add-heads:factor=1.5", "widen-hidden:to=49"])
def test_odd_sizes(spec: str) -> None:
    one: Pass = parse_pass(spec)
    certified(one(traced("nanogpt")))


def test_more_tokens_stand_beside_the_old_ones() -> None:
    """New rows of the table and of the head are free; what the program takes and gives for old tokens stays; and new
    tokens are tokens."""
    old = traced("llama")
    new = GrowVocab(to=110)(old)
    found = certified(new)
    assert found.proof and not found.proof.constraints and found.extended == tuple(old.graph.output_names)
    assert found.scope.startswith("exact on the old units of linear")
    mask = torch.ones(2, 6, dtype=torch.long)
    inputs = {"input_ids": torch.randint(0, 101, (2, 6)), "attention_mask": mask}
    before, after = (program.module().eval()(**inputs).logits for program in (old, new))
    assert before.shape[-1] == 101 and after.shape[-1] == 110
    torch.testing.assert_close(after[..., :101], before)
    assert new.module().eval()(torch.full((2, 6), 109), mask).logits.isfinite().all()


def test_an_old_row_that_changes_with_the_vocabulary_is_found() -> None:
    old = traced("llama")
    new = GrowVocab(to=110)(old)
    lie = new.tensors["lm_head.weight"].detach().clone()
    lie[100] += 1e-6
    found = check(old, new.replace(tensors={**new.tensors, "lm_head.weight": lie}))
    assert not found.holds and found.proof and "lm_head.weight" in found.proof.why


class _Normalised(nn.Module):
    """Probabilities inside the program: new classes would take from the old ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens)).softmax(-1)


def test_a_normalised_output_does_not_grow() -> None:
    program = trace(_Normalised(), {"tokens": torch.randint(0, 20, (2, 5))})
    found = certified(GrowVocab(to=24)(program))
    assert [row.axis for row in found.growth] == ["vocab@table"] and not found.extended
    assert len(found.notes) == 1 and "softmax" in found.notes[0]
    with pytest.raises(Refusal, match="softmax"):
        GrowVocab(axis="vocab@head", to=24)(program)


def test_what_an_output_shows_grows_where_asked() -> None:
    """T5 gives the encoder's states: its hidden size grows beside them, or not at all."""
    program = traced("t5")
    with pytest.raises(Refusal, match="seen in the output"):
        WidenHidden(factor=1.5)(program)
    found = certified(WidenHidden(factor=1.5, outputs="extend")(program))
    assert len(found.extended) == 1 and found.growth[0].new == 72


def test_new_weights_scaled_as_mup_has_it() -> None:
    """Four times the stream: what reads it starts at half the deviation in new columns, the head at a quarter; what
    looks up, or sums over something else, as before."""
    old = traced("llama")
    grown = {init: WidenHidden(factor=4, init=init)(old) for init in ("scaled", "mup")}
    assert all(
        program.certificate and program.certificate.evidence == "proved and tested" for program in grown.values()
    )

    def ratio(name: str, dim: int) -> float:
        new = [program.tensors[name].detach().narrow(dim, 48, 144) for program in (grown["mup"], grown["scaled"])]
        return float(new[0].std() / new[1].std())

    assert ratio("model.layers.0.mlp.up_proj.weight", 1) == pytest.approx(0.5, rel=1e-5)
    assert ratio("model.layers.1.self_attn.k_proj.weight", 1) == pytest.approx(0.5, rel=1e-5)
    assert ratio("lm_head.weight", 1) == pytest.approx(0.25, rel=1e-5)
    assert ratio("model.norm.weight", 0) == pytest.approx(1, rel=1e-5)


def test_there_are_no_groups() -> None:
    with pytest.raises(Refusal, match="no axis of the role kv_heads"):
        parse_pass("add-kv-heads")(traced("gpt2"))


def test_heads_stay_what_they_were() -> None:
    """New heads with values of any size change nothing: the head's rows of the output projection are zero."""
    old = traced("gpt2")
    found = certified(AddHeads(factor=1.5, init="copy")(old))
    assert {text for _, text, _ in fills(found)} == {"zero"}


# The derivation, as people read it


def test_a_proof_reads_like_the_paper() -> None:
    """Theorem 3.5 on LLaMA, each step once for all layers: the mean square falls, eps follows, gains make up for it,
    readers meet zeros."""
    found = certified(WidenHidden(factor=1.5)(traced("llama")))
    assert found.proof
    told = [str(step) for step in found.proof.steps]
    lines = [line.partition(" (")[0] + line.partition(")")[2] for line in told]
    assert "mean (x5): pow the same, in new units zero => 0.666667 times the same" in lines
    assert "rsqrt (x5): add 0.666667 times the same => 1.22474 times the same" in lines
    reader = "model.layers.*.self_attn.q_proj.weight the same, in new units anything"
    assert f"linear (x2): mul the same, in new units zero; {reader} => the same" in lines
    assert sum(step.times for step in found.proof.steps) > len(told), "layers are told once"


def test_the_derivation_of_depth() -> None:
    found = certified(Deepen(to=4)(traced("gpt2")))
    assert found.proof
    assert [step.gives for step in found.proof.steps if step.place.startswith("add ")] == ["the stream: x + 0 = x"] * 2
    assert any("mlp.c_proj.weight is zero" in read for step in found.proof.steps for read in step.reads)


class Noisy(nn.Module):
    """Noise on its input, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x + torch.rand_like(x)).relu())


def test_random_numbers_are_the_same_in_both_programs() -> None:
    program = trace(Noisy(), torch.randn(3, 6))
    assert certified(Widen()(program)).growth
    assert measure(program, program, (), seed=0).largest == 0

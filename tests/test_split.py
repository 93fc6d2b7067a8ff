"""Heads of keys and values repeated: grouped attention with more groups."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from graphgrow.errors import CheckFailed, Refusal
from graphgrow.export import export_huggingface
from graphgrow.pipeline import Pipeline
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.rewrite.regroup import groups
from graphgrow.tracing import trace
from graphgrow.verify import check
from passes import AddHeads, SplitKvHeads
from tests.programs import traced
from tests.zoo import shake

torch.set_num_threads(1)

CONFIG: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, "use_cache": False,
}  # fmt: skip


def grouped() -> tuple[nn.Module, Program]:
    """A Llama in which six query heads share each head of keys and values."""
    torch.manual_seed(0)
    model = shake(hf.LlamaForCausalLM(hf.LlamaConfig(**CONFIG)).eval())
    return model, trace(model, {"input_ids": torch.randint(0, 61, (2, 7))})


@pytest.mark.parametrize("copies", [2, 3, 6])
def test_every_divisor(copies: int) -> None:
    """Copies stand beside each other; queries and what reads them do not move."""
    model, old = grouped()
    new = SplitKvHeads(factor=copies)(old)
    found = new.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested"
    assert {(row.old, row.new) for row in found.growth} == {(2, 2 * copies), (6, 6 // copies)}
    name = "model.layers.1.self_attn.{}.weight"
    keys, wide = (program.tensors[name.format("k_proj")] for program in (old, new))
    assert torch.equal(wide, keys.view(2, 8, 48).repeat_interleave(copies, 0).reshape(-1, 48))
    assert all(new.tensors[name.format(one)] is old.tensors[name.format(one)] for one in ("q_proj", "o_proj"))
    tokens = torch.randint(0, 61, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(new.module().eval()(tokens).logits, model(input_ids=tokens).logits)


ONE: dict[str, Any] = CONFIG | {"num_attention_heads": 6, "num_key_value_heads": 1, "pad_token_id": 0}
OWN: dict[str, Any] = {name: value for name, value in ONE.items() if name != "head_dim"}  # 48 / 6 = 8
PLAIN: dict[str, Any] = {"vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
SINGLE: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**ONE)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**ONE)),
    "norms of queries and keys": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**ONE)),
    "soft caps": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**ONE, sliding_window=5)),
    "fused": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**OWN, original_max_position_embeddings=32)),
    "fused, spread by attention": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**PLAIN, multi_query=True, ffn_hidden_size=80, use_cache=False)
    ),
    "fused in groups": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(**PLAIN, new_decoder_architecture=True, num_kv_heads=1, ffn_hidden_size=80, use_cache=False)
    ),
    "fused, without an axis": lambda: hf.GPTBigCodeForCausalLM(
        hf.GPTBigCodeConfig(**PLAIN, n_positions=32, n_inner=80, multi_query=True, use_cache=False)
    ),
}  # fmt: skip


@cache
def single(name: str) -> tuple[nn.Module, Program]:
    """A model in which six query heads share one head of keys and values."""
    torch.manual_seed(0)
    model = shake(SINGLE[name]().eval())
    return model, trace(model, {"input_ids": torch.randint(3, 61, (2, 7))})


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_head(name: str) -> None:
    """Multi-query attention becomes grouped-query attention, and that attention with keys for every query head."""
    model, old = single(name)
    new = SplitKvHeads(to=3)(old)
    tokens = torch.randint(3, 61, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    for program in (new, SplitKvHeads(to=6)(old)):
        found = program.certificate
        assert found and found.claim == "Exact" and found.evidence == "proved and tested"
        with torch.no_grad():
            torch.testing.assert_close(program.module().eval()(tokens).logits, expected)
    sizes = {axis.size for axis in new.axes.named if axis.role in ("kv_heads", "heads")}
    assert sizes == {3, 2}  # heads of keys, and the query heads of each
    further = SplitKvHeads(factor=2)(new)
    assert further.digest == SplitKvHeads(to=6)(old).digest and check(old, further).holds


def test_a_single_head_in_place() -> None:
    """Rows of keys and values repeated; in a fused matrix queries stay where they are."""
    _, old = single("llama")
    new = SplitKvHeads(to=2)(old)
    name = "model.layers.0.self_attn.{}.weight"
    for one in ("k_proj", "v_proj"):
        assert torch.equal(new.tensors[name.format(one)], old.tensors[name.format(one)].repeat(2, 1))
    assert all(new.tensors[name.format(one)] is old.tensors[name.format(one)] for one in ("q_proj", "o_proj"))
    for case, name in (
        ("fused, spread by attention", "transformer.h.1.self_attention.query_key_value.weight"),
        ("fused, without an axis", "transformer.h.1.attn.c_attn.weight"),
    ):
        _, old = single(case)
        queries, keys, values = old.tensors[name].split([48, 8, 8])
        assert torch.equal(SplitKvHeads(to=2)(old).tensors[name], torch.cat([queries, keys, keys, values, values]))


@pytest.mark.parametrize("name", ["llama", "fused, spread by attention", "fused, without an axis"])
def test_lies_about_copies_of_a_single_head(name: str) -> None:
    _, old = single(name)
    new = SplitKvHeads(to=3)(old)
    grown = next(key for key, tensor in new.tensors.items() if tensor.shape != old.tensors[key].shape)
    value = new.tensors[grown].detach().clone()
    value[-20, 3] += 1e-6
    found = check(old, new.replace(tensors={**new.tensors, grown: value}))
    assert not found.holds and found.proof and "something else" in found.proof.why


def test_a_single_head_without_an_axis_is_stored(tmp_path: Path) -> None:
    """The operators that make room for heads are stored as others are."""
    new = SplitKvHeads(to=2)(single("fused, without an axis")[1])
    new.save(tmp_path / "new.gg")
    assert Program.load(tmp_path / "new.gg").digest == new.digest


class _Shared(nn.Module):
    """One head of keys, put to six query heads in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.query, self.key, self.value, self.way = nn.Linear(16, 24), nn.Linear(16, 4), nn.Linear(16, 4), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x).view(x.shape[0], -1, 6, 4).transpose(1, 2)
        key, value = (one(x).view(x.shape[0], -1, 1, 4).transpose(1, 2) for one in (self.key, self.value))
        if self.way == "expand":
            key, value = key.expand(-1, 6, -1, -1), value.expand(-1, 6, -1, -1)
        scores = (query @ key.transpose(-1, -2)).softmax(-1)
        mixed = (scores @ value).transpose(1, 2).reshape(x.shape[0], -1, 24)
        return mixed + (key * key).sum((1, 2, 3))[:, None, None] if self.way == "sum" else mixed


def shared(way: str) -> Program:
    torch.manual_seed(0)
    return trace(_Shared(way), {"x": torch.randn(2, 5, 16)})


def test_what_matrix_products_spread() -> None:
    """Products of matrices take one head for all, or one for each."""
    old = shared("matmul")
    new = SplitKvHeads(to=6)(old)
    assert new.certificate and new.certificate.evidence == "proved and tested"
    with pytest.raises(Refusal, match="of its own") as refused:
        SplitKvHeads(to=3)(old)
    assert "matmul" in refused.value.found


def test_what_sums_over_a_single_head_or_copies_it() -> None:
    """Two heads alike are not one to a sum; a size in an expand has no axis."""
    with pytest.raises(CheckFailed, match=r"sum.*over heads"):
        SplitKvHeads(to=6)(shared("sum"))
    with pytest.raises(Refusal, match="share"):
        SplitKvHeads(to=6)(shared("expand"))


def test_by_way_of_fewer() -> None:
    """Two heads into four into twelve are two into twelve."""
    _, old = grouped()
    by_steps = Pipeline.parse(["split-kv-heads:to=4", "split-kv-heads:to=12"])(old)
    assert by_steps.digest == SplitKvHeads(to=12)(old).digest
    assert check(old, by_steps).holds


@pytest.mark.parametrize("model", ["phi3", "falcon_grouped", "cohere", "qwen3", "gemma2", "mixtral", "olmo2"])
def test_fused_normalised_and_soft_capped(model: str) -> None:
    old = traced(model)
    new = SplitKvHeads()(old)
    assert new.certificate and new.certificate.evidence == "proved and tested"
    grown = AddHeads()(new)
    assert grown.certificate and grown.certificate.holds


def test_lies_about_repeated_heads() -> None:
    _, old = grouped()
    new = SplitKvHeads(factor=2)(old)
    name = "model.layers.0.self_attn.v_proj.weight"
    value = new.tensors[name].detach()
    off = value.clone()
    off[9, 3] += 1e-7
    swapped = value.view(2, 2, 8, 48).transpose(0, 1).reshape(-1, 48)  # heads 0 1 0 1 instead of 0 0 1 1
    for lie in (off, swapped):
        found = check(old, new.replace(tensors={**new.tensors, name: lie}))
        assert not found.holds and found.proof and "something else" in found.proof.why


@pytest.mark.parametrize("heads", [1, 2])
def test_the_class_of_the_model_takes_it(tmp_path: Path, heads: int) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = CONFIG | {"num_key_value_heads": heads}
    model = shake(hf.LlamaForCausalLM(hf.LlamaConfig(**config)).eval())
    model.save_pretrained(tmp_path / "old")  # pyright: ignore[reportCallIssue]
    new = SplitKvHeads(to=4)(trace(str(tmp_path / "old")))
    export_huggingface(new, tmp_path / "new", like=tmp_path / "old")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert loaded.config.num_key_value_heads == 4
    tokens = torch.randint(0, 61, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)


def test_what_can_not_be_split() -> None:
    _, old = grouped()
    with pytest.raises(Refusal, match="4, 6, 12"):
        SplitKvHeads(to=8)(old)
    with pytest.raises(Refusal, match="2, 3, 6") as refused:
        SplitKvHeads(to=4)(single("llama")[1])
    assert "1 heads, each used by 6" in refused.value.found and "kv_heads" in refused.value.where
    with pytest.raises(Refusal, match="share"):
        SplitKvHeads()(traced("gpt2"))


class _Averaged(nn.Module):
    """Groups of queries, and a mean over the heads of keys themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 24), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = self.key(x).view(x.shape[0], -1, 2, 4)
        wide = keys.unsqueeze(3).expand(-1, -1, 2, 3, 4)
        return (self.query(x).view(x.shape[0], -1, 2, 3, 4) * wide).sum((2, 3)) * keys.prod(2)


def test_what_mixes_heads_of_keys_is_named() -> None:
    program = trace(_Averaged(), {"x": torch.randn(2, 5, 16)})
    ((keys, queries),) = groups(program.unit_axes).items()
    rewriter = Rewriter(program)
    rewriter.regroup({keys: (queries, 3)})
    found = check(program, rewriter.program)
    assert not found.holds and found.proof and "prod" in found.proof.why

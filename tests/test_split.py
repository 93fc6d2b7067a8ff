"""Heads of keys and values repeated: grouped attention with more groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from graphgrow.errors import Refusal
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


def test_the_class_of_the_model_takes_it(tmp_path: Path) -> None:
    model, _ = grouped()
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
    ((keys, queries),) = groups(program.axes).items()
    rewriter = Rewriter(program)
    rewriter.regroup({keys: (queries, 3)})
    found = check(program, rewriter.program)
    assert not found.holds and found.proof and "prod" in found.proof.why

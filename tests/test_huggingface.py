"""Folders in, grown folders out: the same class loads them strictly and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from typer.testing import CliRunner

from graphgrow.cli import app
from graphgrow.errors import ExportError
from graphgrow.export import export_huggingface
from graphgrow.pipeline import Pipeline
from graphgrow.plan import Sizes, measured, plan
from graphgrow.tracing import trace
from tests.programs import outputs, traced

torch.set_num_threads(1)

LLAMA: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 112, "vocab_size": 97, "max_position_embeddings": 64,
}  # fmt: skip
BERT: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 112, "vocab_size": 97,
    "max_position_embeddings": 64,
}  # fmt: skip


def gpt2() -> Any:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=97, n_positions=32))


def vit() -> Any:
    options = {key: BERT[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")}
    return hf.ViTForImageClassification(hf.ViTConfig(**options, intermediate_size=112, image_size=32, patch_size=8))


def resnet() -> Any:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 2])
    return hf.ResNetForImageClassification(config)


# A class, the passes, and the fields of its configuration that must have changed.
GROWN: dict[str, tuple[Callable[[], Any], list[str], dict[str, Any]]] = {
    "gpt2": (
        gpt2,
        ["widen:to=300", "add-heads:to=5", "widen-keys:to=24,scale=weights", "widen-values:to=24",
         "widen-hidden:to=120", "deepen:to=3"],
        {"n_embd": 120, "n_head": 5, "n_inner": 300, "n_layer": 3, "layer_norm_epsilon": 1e-5 * 64 / 120},
    ),
    "llama": (  # rotary positions: twice the pairs keep their frequencies at the square of the base
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
        ["widen:to=144", "add-kv-heads:to=3", "widen-keys:factor=2,scale=weights", "widen-values:factor=2",
         "widen-hidden:to=96", "deepen:to=3"],
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "num_hidden_layers": 3,
         "intermediate_size": 144, "rms_norm_eps": 1e-6 * 64 / 96,
         "rope_parameters": {"rope_theta": 1e8, "rope_type": "default"}},
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), ["widen:to=144", "add-heads:to=8", "widen-hidden:factor=2"],
        {"hidden_size": 128, "intermediate_size": 144, "num_attention_heads": 8},
    ),
    "vit": (
        vit, ["widen:to=144", "add-heads:to=6", "widen-hidden:to=96", "deepen:to=5"],
        {"hidden_size": 96, "intermediate_size": 144, "num_attention_heads": 6, "num_hidden_layers": 5,
         "layer_norm_eps": 1e-12 * 64 / 96},
    ),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**{**LLAMA, "head_dim": None}, num_local_experts=4)),
        ["widen:to=144", "widen-hidden:to=96", "deepen:to=3"],
        {"hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 3, "head_dim": 16,
         "rms_norm_eps": 1e-5 * 64 / 96},
    ),
    "resnet": (resnet, ["deepen:to=3"], {"depths": [4, 4]}),
}  # fmt: skip


def saved(make: Callable[[], Any], folder: Path) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model.eval()


def given(model: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    return {"input_ids": torch.randint(97, (2, 9))}


@pytest.mark.parametrize("name", GROWN)
def test_the_class_loads_the_grown_folder(name: str, tmp_path: Path) -> None:
    make, specs, fields = GROWN[name]
    old = saved(make, tmp_path / "old")
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    new = Pipeline.parse(specs)(trace(tmp_path / "old"))
    changed = export_huggingface(new, tmp_path / "new", tmp_path / "old")
    model, info = type(old).from_pretrained(tmp_path / "new", output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(info.values()), "strictly"
    inputs = given(old)
    with torch.no_grad():
        pairs = zip(outputs(old, inputs), outputs(model.eval(), inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    old_config = json.loads((tmp_path / "old" / "config.json").read_text())
    for field, value in fields.items():
        assert config[field] == (pytest.approx(value) if isinstance(value, float) else value), field
    free = {"layer_types"}
    assert {field for field in old_config if config[field] != old_config[field]} <= fields.keys() | free
    assert {place.split(".")[0] for place in changed} >= fields.keys() - {"rope_parameters"}
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}


@pytest.mark.parametrize(
    ("make", "specs", "word"),
    [
        (gpt2, ["add-heads:to=5"], "n_embd|hidden|shapes"),  # five heads of 16 in 64
        (gpt2, ["widen-keys:to=24", "widen-values:to=24", "widen-hidden:to=96"], "computes something else"),  # scale
        (gpt2, ["widen:axis=mlp@transformer.h.0.mlp,to=300"], "shapes"),
        (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), ["widen-values:factor=2"], "shapes"),
    ],
)  # fmt: skip
def test_what_no_configuration_expresses_is_refused(
    make: Callable[[], Any], specs: list[str], word: str, tmp_path: Path
) -> None:
    saved(make, tmp_path / "old")
    new = Pipeline.parse(specs)(trace(tmp_path / "old"))
    with pytest.raises(ExportError, match=word):
        export_huggingface(new, tmp_path / "new", tmp_path / "old")
    assert [file.name for file in tmp_path.iterdir()] == ["old"], "nothing is left"


# Plans


@pytest.mark.parametrize(
    ("model", "sizes", "specs"),
    [
        (
            "gpt2", {"hidden": 96, "heads": 4},
            ("widen-keys:to=24,scale=weights", "widen-values:to=24", "widen-hidden:to=96"),
        ),
        ("gpt2", {"mlp": 100, "layers": 4}, ("widen:axis=mlp,to=100", "deepen:to=4")),
        (
            "llama", {"heads": 12, "head_size": 20},
            ("add-heads:to=4", "widen-keys:to=10,scale=weights", "widen-values:to=20"),
        ),
        ("llama", {"heads": 8}, ("add-kv-heads:to=4",)),
        ("qwen3", {"kv_heads": 6}, ("add-kv-heads:to=6",)),
        ("bloom", {"head_size": 20, "layers": 3}, ("widen-keys:to=20,scale=weights", "deepen:to=3")),
    ],
)  # fmt: skip
def test_plans(model: str, sizes: dict[str, int], specs: tuple[str, ...]) -> None:
    assert plan(traced(model), Sizes(**sizes)) == specs


def test_a_plan_leads_there() -> None:
    target = Sizes(hidden=96, layers=3, heads=8, kv_heads=4, head_size=20, mlp=100)
    assert measured(Pipeline.parse(plan(traced("llama"), target))(traced("llama"))) == target


RUN = CliRunner()


def test_a_plan_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = saved(gpt2, tmp_path / "old")
    sizes = ["--hidden", "120", "--layers", "3", "--heads", "5", "--mlp", "300"]
    shown = RUN.invoke(app, ["plan", "old", *sizes])
    assert shown.exit_code == 0 and "hidden 64, layers 2, heads 4, head size 16, mlp 256" in shown.stdout
    assert "--pass deepen:to=3" in shown.stdout and not (tmp_path / "grown").exists()
    done = RUN.invoke(app, ["plan", "old", *sizes, "-o", "grown", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["config"]["n_embd"] == [64, 120]
    model = hf.GPT2LMHeadModel.from_pretrained("grown").eval()
    inputs = given(old)
    torch.testing.assert_close(model(**inputs).logits, old(**inputs).logits, rtol=1e-4, atol=1e-5)
    for arguments, code, word in (
        (["plan", "old", "--hidden", "32"], 2, "larger"),
        (["plan", "old"], 2, "nothing to grow"),
        (["plan", "old", "--kv-heads", "8"], 1, "no single kv heads"),
        (["plan", "old", *sizes, "-o", "grown"], 1, "exists already"),
        (["plan", "old", *sizes, "-o", "old"], 1, "exists already"),
        (["apply", "old", "--pass", "widen", "-o", "old", "--force"], 1, "the input as output"),
        (["export", "grown", "-o", "g.onnx", "--like", "old"], 2, "--like with the file"),
    ):
        refused = RUN.invoke(app, arguments)
        assert refused.exit_code == code and word in refused.stderr, (arguments, refused.stderr)
    applied = RUN.invoke(app, ["apply", "old", "--pass", "widen", "-o", "wide.pt"])
    assert applied.exit_code == 0
    exported = RUN.invoke(app, ["export", "wide.pt", "-o", "wide", "--like", "old"])
    assert exported.exit_code == 0 and "n_inner: None -> 512" in exported.stdout, exported.stderr
    assert RUN.invoke(app, ["export", "wide.pt", "-o", "other"]).exit_code == 2

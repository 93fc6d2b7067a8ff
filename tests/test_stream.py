"""Larger than memory: what is written tensor by tensor is what is written at once, and a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from graphgrow.atomic import UNFINISHED
from graphgrow.cli import app
from graphgrow.errors import CheckFailed, ExportError, FileError, GraphgrowError, TraceError
from graphgrow.export import export_huggingface, stream_huggingface, weights
from graphgrow.lazy import Lazy
from graphgrow.pipeline import Pipeline
from graphgrow.program import Program
from graphgrow.tracing import trace
from tests.test_huggingface import BERT, GROWN, LLAMA, given, gpt2, saved

torch.set_num_threads(1)

RUN = CliRunner()
TIED = {**LLAMA, "tie_word_embeddings": True}
SPECS = ["widen-hidden:to=96", "deepen:to=3,init=scaled"]


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))


def loaded(program: Program, name: str) -> torch.Tensor:
    assert isinstance(program.tensors, Lazy)
    return program.tensors.load(name)


# Passes of which each draws, copies, multiplies or counts names on in its own way.
MODELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "llama": (llama, [
        "widen:to=144,init=copy", "add-kv-heads:to=3", "widen-keys:factor=2,scale=weights", "deepen:to=3",
        "widen-values:factor=2", "widen-hidden:to=96", "deepen:to=5,init=scaled,order=stack",
    ]),
    "llama, tied, bfloat16": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TIED)).bfloat16(),
        ["widen-hidden:to=96,init=copy", "deepen:at=0,to=3,init=scaled"],
    ),
    "gpt2, tied": (gpt2, [
        "widen:to=300,init=copy,seed=7", "add-heads:to=5", "widen-keys:to=24,scale=weights",
        "widen-values:to=24", "widen-hidden:to=120",
        "deepen:to=3,init=scaled",
    ]),
    "mixtral": (GROWN["mixtral"][0], ["widen:to=144,init=copy", "deepen:to=3,init=scaled", "widen-hidden:to=96"]),
    "bert, copies": (lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), ["widen-hidden:factor=2", "add-heads:to=8"]),
    "resnet": (GROWN["resnet"][0], ["deepen:to=3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_lazy_tensors_are_those_made_at_once(name: str, tmp_path: Path) -> None:
    make, specs = MODELS[name]
    saved(make, tmp_path / "old")
    whole = trace(tmp_path / "old")
    lazy = trace(tmp_path / "old", lazy=True)
    assert not lazy.has_weights and lazy.graph == whole.graph
    for at_once, one_by_one in zip(
        (whole, *Pipeline.parse(specs).steps(whole)), (lazy, *Pipeline.parse(specs).steps(lazy)), strict=True
    ):
        assert at_once.graph == one_by_one.graph and at_once.aliases == one_by_one.aliases
        assert list(at_once.tensors) == list(one_by_one.tensors)
        for tensor in list(at_once.tensors)[::-1]:  # in another order than they were made at once
            found, expected = loaded(one_by_one, tensor), at_once.tensors[tensor].detach()
            assert found.dtype == expected.dtype and found.shape == expected.shape, tensor
            assert found.view(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8)), tensor


def test_experts_lie_apart_in_the_folder(tmp_path: Path) -> None:
    saved(GROWN["mixtral"][0], tmp_path / "old")
    with safe_open(tmp_path / "old" / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    names = set(trace(tmp_path / "old", lazy=True).tensors)
    assert any("experts.3." in name for name in stored) and not any("experts.3." in name for name in names)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert"])
def test_a_folder_is_the_one_written_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, specs, _ = GROWN[name]
    old = saved(make, tmp_path / "old")
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    (tmp_path / "old" / "SHA256SUMS").write_text("of the old files")
    done = {}
    for lazy in (False, True):
        new = Pipeline.parse(specs)(trace(tmp_path / "old", lazy=lazy))
        monkeypatch.setattr(weights, "_SHARD", 100_000 if lazy else 10**9)
        done[lazy] = export_huggingface(new, tmp_path / f"new-{lazy}", tmp_path / "old")
    assert done[True] == done[False]
    folder = tmp_path / "new-True"
    assert (folder / "config.json").read_text() == (tmp_path / "new-False" / "config.json").read_text()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    expected = load_file(tmp_path / "new-False" / "model.safetensors")
    assert index["weight_map"].keys() == expected.keys()
    for tensor, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened:
            assert opened.get_tensor(tensor).equal(expected[tensor]), tensor
    model, info = type(old).from_pretrained(folder, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(info.values()), "strictly"
    with torch.no_grad():
        a, b = old(**given(old))[0], model.eval()(**given(old))[0]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
    names = {file.name for file in folder.iterdir()}
    assert names >= {"tokenizer.json", "SHA256SUMS"} and UNFINISHED not in names
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names - {"SHA256SUMS"}}


# Certificates


@pytest.mark.parametrize("name", ["llama", "llama, tied, bfloat16", "bert, copies"])
def test_certificates_are_those_of_programs_in_memory(name: str, tmp_path: Path) -> None:
    """`llama` doubles its keys, so that the class computes other rotary frequencies: the old ones, and free ones."""
    make, specs = MODELS[name]
    saved(make, tmp_path / "old")
    whole = Pipeline.parse(specs)(trace(tmp_path / "old"))
    lazy = Pipeline.parse(specs)(trace(tmp_path / "old", lazy=True))
    assert {certificate.evidence for certificate in lazy.journal} == {"proved"}
    new, _ = stream_huggingface(lazy, tmp_path / "new", tmp_path / "old")
    for mine, expected in zip(new.journal, whole.journal, strict=True):
        assert mine.evidence == expected.evidence == "proved and tested"
        assert (mine.proof, mine.moves, mine.growth) == (expected.proof, expected.moves, expected.growth), mine.spec


def spoiled(program: Program, name: str, change: Callable[[torch.Tensor], None]) -> Program:
    """The program with something done to one of its tensors when it is made."""
    tensors = program.tensors
    assert isinstance(tensors, Lazy)

    def load(wanted: str) -> torch.Tensor:
        value = tensors.load(wanted)
        if wanted == name:
            value = value.clone()
            change(value)
        return value

    return program.replace(tensors=Lazy(tensors, load, tensors.origin, tensors.before))


LAYER = "model.layers.1.mlp"


@pytest.mark.parametrize(
    ("spec", "name", "change", "word"),
    [
        ("widen-hidden:to=96", f"{LAYER}.down_proj.weight", lambda value: value[95, 3].fill_(1e-7), "mixes new units"),
        ("widen-hidden:to=96", f"{LAYER}.down_proj.weight", lambda value: value[5, 3].add_(1e-3), "other values"),
        ("widen-hidden:to=96", "model.norm.weight", lambda value: value[5].mul_(1.001), "other values"),
        ("widen-hidden:to=96", f"{LAYER}.up_proj.weight", lambda value: value[3, 95].fill_(torch.nan), "finite"),
        ("deepen:to=3", "model.layers.2.mlp.down_proj.weight", lambda value: value[0, 0].fill_(1e-7), "everywhere"),
        ("deepen:to=3", "model.layers.0.mlp.down_proj.weight", lambda value: value[0, 0].add_(1.0), "before"),
        ("deepen:to=3", "model.layers.2.mlp.up_proj.weight", lambda value: value[0, 0].fill_(torch.inf), "finite"),
    ],
)  # fmt: skip
def test_the_weights_must_be_what_the_proof_needs(
    spec: str, name: str, change: Callable[[torch.Tensor], None], word: str, tmp_path: Path
) -> None:
    saved(llama, tmp_path / "old")
    program = spoiled(Pipeline.parse([spec])(trace(tmp_path / "old", lazy=True)), name, change)
    with pytest.raises(CheckFailed, match=word):
        stream_huggingface(program, tmp_path / "new", tmp_path / "old")
    assert not (tmp_path / "new" / "config.json").exists(), "nobody loads it"


# Interrupted runs

KILLED = """
import os, signal, sys, torch
from graphgrow.export import stream_huggingface, weights
from graphgrow.pipeline import Pipeline
from graphgrow.tracing import trace
weights._SHARD = 50_000
left = int(sys.argv[3])
def seen(count):
    global left
    left -= count
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
program = Pipeline.parse(sys.argv[4:])(trace(sys.argv[1], lazy=True))
stream_huggingface(program, sys.argv[2], sys.argv[1], seen=seen)
"""


def run(old: Path, new: Path, after: int, specs: list[str] = SPECS) -> subprocess.CompletedProcess[str]:
    """Grow a folder in a process that kills itself after so many bytes."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(old), str(new), str(after), *specs]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(llama, tmp_path / "old")
    assert run(tmp_path / "old", tmp_path / "new", 300_000).returncode == -signal.SIGKILL
    assert (tmp_path / "new" / UNFINISHED).is_file() and not (tmp_path / "new" / "config.json").exists()
    whole = {file.name: file.stat() for file in (tmp_path / "new").glob("model-*.safetensors")}
    hidden = [file.name for file in (tmp_path / "new").glob(".model*")]
    assert len(whole) > 2 and len(hidden) == 1, "whole shards, and one that was being written"
    broken = sorted(whole)[1]
    (tmp_path / "new" / broken).write_bytes(b"x" * whole[broken].st_size)

    monkeypatch.setattr(weights, "_SHARD", 50_000)
    program = Pipeline.parse(SPECS)(trace(tmp_path / "old", lazy=True))
    other = Pipeline.parse(["widen-hidden:to=96", "deepen:to=3"])(trace(tmp_path / "old", lazy=True))
    with pytest.raises(FileError, match=r"an unfinished run with other passes.*init=scaled"):
        export_huggingface(other, tmp_path / "new", tmp_path / "old")
    export_huggingface(program, tmp_path / "new", tmp_path / "old")
    export_huggingface(program, tmp_path / "again", tmp_path / "old")
    for name, before in whole.items():
        after = (tmp_path / "new" / name).stat()
        assert (after.st_ino == before.st_ino) == (name != broken), "whole files stay, others are made again"
    for file in (tmp_path / "again").iterdir():
        assert (tmp_path / "new" / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list((tmp_path / "new").iterdir())) == len(list((tmp_path / "again").iterdir()))
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "new", capture_output=True, check=False)
    assert done.returncode == 0


def test_weights_that_have_changed_are_another_plan(tmp_path: Path) -> None:
    saved(llama, tmp_path / "old")
    assert run(tmp_path / "old", tmp_path / "new", 300_000).returncode == -signal.SIGKILL
    file = tmp_path / "old" / "model.safetensors"
    state = load_file(file)
    save_file({**state, "model.norm.weight": state["model.norm.weight"] * 2}, file, metadata={"format": "pt"})
    refused = run(tmp_path / "old", tmp_path / "new", 10**9)
    assert refused.returncode == 1 and "an unfinished run with other weights" in refused.stderr


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(llama, tmp_path / "old")
    program = Pipeline.parse(SPECS)(trace(tmp_path / "old", lazy=True))
    found: list[str] = []

    def again(count: int) -> None:
        if not found:
            with pytest.raises(FileError) as caught:
                export_huggingface(program, tmp_path / "new", tmp_path / "old")
            found.append(caught.value.found)

    stream_huggingface(program, tmp_path / "new", tmp_path / "old", seen=again)
    assert found == ["a folder that another process is writing"]


# The command line


def test_stream_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = saved(llama, tmp_path / "old")
    done = RUN.invoke(app, ["plan", "old", "--mlp", "160", "--layers", "3", "-o", "new", "--stream", "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["config"] == {"intermediate_size": [112, 160], "num_hidden_layers": [2, 3]}
    model = hf.LlamaForCausalLM.from_pretrained("new").eval()
    torch.testing.assert_close(model(**given(old)).logits, old(**given(old)).logits, rtol=1e-4, atol=1e-5)
    for arguments, code, word in (
        (["apply", "old", "--pass", "widen", "-o", "new", "--stream"], 1, "exists already"),
        (["apply", "old", "--pass", "widen", "-o", "new.pt", "--stream"], 2, "--stream from old to new.pt"),
        (["apply", "old", "--pass", "widen-values:factor=2", "-o", "other", "--stream"], 1, "shapes"),
    ):
        refused = RUN.invoke(app, arguments)
        assert refused.exit_code == code and word in refused.stderr, (arguments, refused.stderr)
    assert not (tmp_path / "other").exists()


# What is refused


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        (["widen-keys:to=24", "widen-values:to=24", "widen-hidden:to=96"], "it computes"),  # attention's scale
        (["add-heads:to=5"], "shapes"),
    ],
)
def test_what_no_configuration_expresses_is_refused(specs: list[str], word: str, tmp_path: Path) -> None:
    saved(gpt2, tmp_path / "old")
    new = Pipeline.parse(specs)(trace(tmp_path / "old", lazy=True))
    with pytest.raises(ExportError, match=word):
        export_huggingface(new, tmp_path / "new", tmp_path / "old")
    assert [file.name for file in tmp_path.iterdir()] == ["old"], "nothing was begun"


def without_a_tensor(file: Path) -> None:
    state = load_file(file)
    del state["model.norm.weight"]
    save_file(state, file, metadata={"format": "pt"})


def of_another_shape(file: Path) -> None:
    state = load_file(file)
    save_file({**state, "model.norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "error", "word"),
    [
        (without_a_tensor, TraceError, "weights without 'model.norm.weight'"),
        (of_another_shape, FileError, r"shape \(7,\), where the class has \(64,\)"),
        (lambda file: file.write_bytes(b"\0" * 100), FileError, "no safetensors header"),
        (lambda file: file.write_bytes(file.read_bytes()[:500]), FileError, "no safetensors header"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b"F32", b"F99")), FileError, "can't be read"),
    ],
)
def test_spoiled_folders(spoil: Callable[[Path], None], error: type[GraphgrowError], word: str, tmp_path: Path) -> None:
    saved(llama, tmp_path / "old")
    spoil(tmp_path / "old" / "model.safetensors")
    with pytest.raises(error, match=word):
        trace(tmp_path / "old", lazy=True)


def test_a_file_that_ends_too_soon(tmp_path: Path) -> None:
    saved(llama, tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    program = trace(tmp_path / "old", lazy=True)
    with pytest.raises(FileError, match="bytes of a tensor"):
        [loaded(program, name) for name in program.tensors]

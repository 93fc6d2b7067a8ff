"""Exported files compute what the program does, hold its names and dynamic sizes, and appear whole or not at all."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils._pytree import tree_leaves

from graphgrow.errors import CheckFailed, ExportError, FileError, OptionError
from graphgrow.export import agreement, capture, export_onnx, export_pt2, export_safetensors, weights
from graphgrow.export import onnx as room
from graphgrow.export.interface import Interface
from graphgrow.program import Program
from graphgrow.rewrite.fold import folded
from graphgrow.tracing import trace
from tests import test_likeness as likeness
from tests.programs import traced
from tests.zoo import ZOO

# What torch.onnx can't convert, and why (text of the refusal). A model that starts to work must leave the table.
CANNOT: dict[str, str] = {"deepseek_v2": "aten.unsqueeze.default, which torch.onnx can't convert"}  # complex numbers
# Bytes of what constants alone make, stored computed: inside the network for Swin's biases by position, (3, 49, 512).
COMPUTED = {"swinv2": 3 * 49 * 512 * 4}

ALL_SIZES = {"batch": 5, "sequence": 11, "sequence2": 4}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def other_inputs(program):
    """Inputs of sizes that the export did not see."""
    return program.example({name: ALL_SIZES[name] for name in program.graph.symbols}, seed=99)


def flat(outputs) -> list[torch.Tensor]:
    return [value.detach() for value in tree_leaves(outputs) if value is not None]


def module_outputs(program, inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        return flat(program.module().eval()(**inputs))


def require_near(found, expected) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert float((left - right).abs().max()) <= 1e-5 * max(float(right.abs().max()), 0.1)


class Affine(nn.Module):
    def __init__(self, last=lambda x: x) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x))


def affine(last=lambda x: x):
    torch.manual_seed(0)
    return trace(Affine(last), torch.randn(2, 6))


# ONNX


@pytest.mark.parametrize("name", ZOO)
def test_onnx(name, tmp_path, capfd):
    program = traced(name)
    capfd.readouterr()
    if name in CANNOT:
        with pytest.raises(ExportError, match=CANNOT[name]):
            export_onnx(program, tmp_path / "model.onnx")
        assert names(tmp_path) == []
        return

    report = export_onnx(program, tmp_path / "model.onnx")

    assert capfd.readouterr() == ("", "")
    assert names(tmp_path) == ["model.onnx"]
    weights_size = sum(tensor.nbytes for tensor in program.tensors.values()) + COMPUTED.get(name, 0)
    assert report.bytes == report.path.stat().st_size < 1.2 * weights_size + 100_000
    assert report.deviation is not None and report.tolerance is not None
    assert report.deviation <= report.tolerance <= 2e-5
    assert {sizes["batch"] for sizes in report.sizes} >= {1, 2, 3}
    loaded = session(report.path)
    assert [value.name for value in loaded.get_outputs()] == list(report.outputs)
    for value, (known, kind) in zip(loaded.get_inputs(), program.inputs.items(), strict=True):
        assert value.name == known
        assert value.shape == [size if isinstance(size, int) else str(size) for size in kind.shape]
    inputs = other_inputs(program)
    found = loaded.run(None, {key: value.numpy() for key, value in inputs.items()})
    require_near([torch.from_numpy(value) for value in found], module_outputs(program, inputs))


def test_onnx_gives_what_the_traced_model_gives(tmp_path):
    model, inputs = ZOO["llama"].build()
    export_onnx(traced("llama"), tmp_path / "llama.onnx")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits

    (found,) = session(tmp_path / "llama.onnx").run(["logits"], {name: value.numpy() for name, value in inputs.items()})

    assert bool((inputs["attention_mask"] == 0).any())
    require_near([torch.from_numpy(found)], [expected])


def test_onnx_inputs_and_outputs_have_the_names_and_sizes_of_the_program(tmp_path):
    report = export_onnx(traced("t5"), tmp_path / "t5.onnx", check=False)
    graph = onnx.load(report.path).graph

    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in (*graph.input, *graph.output)} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "decoder_input_ids": ["batch", "sequence2"],
        "logits": ["batch", "sequence2", 101],
        "encoder_last_hidden_state": ["batch", "sequence", 48],
    }
    assert report.inputs["decoder_input_ids"] == "int64[batch, sequence2]"
    assert report.outputs["logits"] == "float32[batch, sequence2, 101]"
    assert (report.deviation, report.tolerance, report.sizes) == (None, None, ())


def test_onnx_holds_the_weights_by_name_and_nothing_of_this_machine(tmp_path):
    program = traced("gpt2")
    export_onnx(program, tmp_path / "model.onnx", check=False)
    model = onnx.load(tmp_path / "model.onnx")

    held = {tensor.name for tensor in model.graph.initializer}
    known = {*program.tensors, *program.aliases}
    assert len([name for name in held if name in known]) >= len(program.graph.parameters) - 1
    assert {entry.key: entry.value for entry in model.metadata_props} == {"graphgrow.digest": program.digest}
    text = (tmp_path / "model.onnx").read_bytes()
    assert not any(
        word in text for word in (b"eval_with_key", b"site-packages", b"pkg.torch", bytes(Path(__file__).parent))
    )


class Tangled(nn.Module):
    """Outputs of all kinds: an input, a parameter, one value twice, None, nested ones; and an unused input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, unused, y):
        h = self.layer(x) + y
        return {
            "x": h, "again": h, "given": y, "weight": self.layer.weight, "none": None, "pair": (h * 2, [h * 3]),
        }  # fmt: skip


def test_outputs_of_all_kinds_have_names_and_their_values(tmp_path):
    program = trace(Tangled(), (torch.randn(2, 4), torch.randn(2, 3), torch.randn(2, 4)), check=False)
    report = export_onnx(program, tmp_path / "model.onnx")
    inputs = program.example({"batch": 4}, seed=3)

    assert list(report.inputs) == ["x", "unused", "y"]
    assert list(report.outputs) == ["x_output", "again", "given", "weight", "pair_0", "pair_1_0"]
    found = session(report.path).run(None, {name: value.numpy() for name, value in inputs.items()})
    require_near([torch.from_numpy(value) for value in found], module_outputs(program, inputs))


def test_one_output_is_called_output(tmp_path):
    assert Interface.of(affine().graph).outputs == ("output",)
    assert Interface.of(affine(lambda x: (x,)).graph).outputs == ("output",)
    assert Interface.of(affine(lambda x: (x, x + 1)).graph).outputs == ("output_0", "output_1")


@pytest.mark.parametrize(("name", "opset"), [("wide_value", 18), ("llama", 24)])
def test_onnx_has_the_opset_asked_for(name, opset, tmp_path):
    report = export_onnx(traced(name), tmp_path / "model.onnx", opset=opset)

    (used,) = [entry.version for entry in onnx.load(report.path).opset_import if not entry.domain]
    assert used == report.opset == opset


@pytest.mark.parametrize("opset", [7, 99])
def test_unknown_opset_is_refused(opset, tmp_path):
    with pytest.raises(OptionError, match="use 18 to 25; 20 is a safe choice"):
        export_onnx(affine(), tmp_path / "model.onnx", opset=opset)
    assert names(tmp_path) == []


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_INSIDE", 1000)
    program = traced("gpt2")
    (tmp_path / "out").mkdir()
    report = export_onnx(program, tmp_path / "out" / "gpt2.onnx")

    assert names(tmp_path / "out") == ["gpt2.onnx", "gpt2.onnx.data"]
    assert report.data is not None
    weights_size = sum(tensor.nbytes for tensor in program.tensors.values())
    assert report.path.stat().st_size < 100_000 < weights_size < report.bytes
    assert report.bytes == sum(file.stat().st_size for file in (report.path, report.data))
    (tmp_path / "out").rename(tmp_path / "moved")
    inputs = other_inputs(program)
    found = session(tmp_path / "moved" / "gpt2.onnx").run(None, {key: value.numpy() for key, value in inputs.items()})
    require_near([torch.from_numpy(value) for value in found], module_outputs(program, inputs))


def test_external_weights_of_a_failed_export_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_INSIDE", 10)
    lie(monkeypatch, lambda found: [value + 1e-3 for value in found])
    with pytest.raises(CheckFailed):
        export_onnx(affine(), tmp_path / "model.onnx")
    assert names(tmp_path) == []


def test_complex_outputs_are_pairs(tmp_path):
    program = affine(torch.fft.rfft)
    report = export_onnx(program, tmp_path / "model.onnx")
    assert report.outputs == {"output": "float32[batch, 4, 2]"}
    inputs = other_inputs(program)
    (found,) = session(report.path).run(None, {"x": inputs["x"].numpy()})

    require_near([torch.view_as_complex(torch.from_numpy(found))], module_outputs(program, inputs))


# What the comparison must see


def lie(monkeypatch, change) -> None:
    """Let ONNX Runtime's outputs be changed before they are compared."""
    true = room._runtime

    def runtime(*arguments):
        run = true(*arguments)
        return lambda inputs: change(run(inputs))

    monkeypatch.setattr(room, "_runtime", runtime)


LIES = {
    "a little off": lambda found: [value * (1 + 1e-4) for value in found],
    "only in batch 1": lambda found: [value + 0.1 if len(value) == 1 else value for value in found],
    "one not-a-number": lambda found: [value.index_fill(1, torch.tensor([2]), torch.nan) for value in found],
    "one infinity": lambda found: [value.index_fill(1, torch.tensor([2]), torch.inf) for value in found],
    "another shape": lambda found: [value[..., None] for value in found],
    "another type": lambda found: [value.double() for value in found],
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_a_file_that_computes_something_else_gets_no_name(change, tmp_path, monkeypatch):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    lie(monkeypatch, change)
    with pytest.raises(CheckFailed, match="output 'output' deviates"):
        export_onnx(affine(), target)

    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["model.onnx"]


def test_wrong_integers_are_seen(tmp_path, monkeypatch):
    program = affine(lambda x: x.argmax(-1))
    assert export_onnx(program, tmp_path / "model.onnx").deviation == 0
    lie(monkeypatch, lambda found: [value + (torch.arange(len(value)) == 0) for value in found])
    with pytest.raises(CheckFailed):
        export_onnx(program, tmp_path / "other.onnx")


def test_a_deviation_beside_the_lowest_number_is_seen(tmp_path, monkeypatch):
    program = affine(lambda x: torch.where(torch.arange(6) == 3, torch.finfo(torch.float32).min, x))
    assert export_onnx(program, tmp_path / "model.onnx").deviation is not None
    lie(monkeypatch, lambda found: [value + 1e-3 for value in found])
    with pytest.raises(CheckFailed):
        export_onnx(program, tmp_path / "other.onnx")


def test_padded_masks_are_tried():
    trials = agreement.Agreement(traced("llama"), ["logits"], None).trials

    assert [bool(trial.inputs["attention_mask"].all()) for trial in trials[:3]] == [True, False, False]
    assert all(int(trial.inputs["attention_mask"].sum(-1).min()) > 0 for trial in trials)


def test_tolerance_is_the_measured_rounding():
    program = traced("gpt2")
    found = agreement.Agreement(program, ["logits"], None)
    wrong = program.to("bfloat16").to("float32")
    off = agreement.Agreement(wrong, ["logits"], None)

    gaps = [float((trial.outputs[0] - trial.exact[0]).abs().max()) for trial in found.trials]
    assert found.tolerances[0] == pytest.approx(agreement._TIMES * max(gaps) / found.scale(0))
    assert 1e-6 < found.tolerances[0] < 1e-5
    with pytest.raises(CheckFailed):  # weights rounded to bfloat16 are not the program's
        found.require(lambda inputs: module_outputs(wrong, inputs), "a module")
    off.require(lambda inputs: module_outputs(wrong, inputs), "a module")


def test_sizes_can_be_chosen(tmp_path):
    report = export_onnx(traced("gpt2"), tmp_path / "a.onnx", sizes=[{"batch": 4, "sequence": 37}])
    assert report.sizes == ({"batch": 4, "sequence": 37},)

    with pytest.raises(ExportError, match=r"does not run itself(.|\n)*at batch 2, sequence 38"):
        export_onnx(traced("gpt2"), tmp_path / "b.onnx", sizes=[{"sequence": 38}])
    with pytest.raises(OptionError, match="'sequence'"):
        export_onnx(traced("gpt2"), tmp_path / "b.onnx", sizes=[{"sequenz": 3}])
    assert names(tmp_path) == ["a.onnx"]


def test_a_program_of_nans_can_not_be_compared(tmp_path):
    program = affine()
    nans = {name: torch.full_like(tensor, torch.nan) for name, tensor in program.tensors.items()}
    with pytest.raises(ExportError, match="not a number anywhere"):
        export_onnx(program.replace(tensors=nans), tmp_path / "model.onnx")
    assert names(tmp_path) == []


# Refusals


@pytest.mark.parametrize(
    ("last", "operator"),
    [
        (lambda x: torch.histc(x, bins=5), "aten.histc.default"),
        (lambda x: x.median(-1).values, "aten.median.dim"),
        (lambda x: torch.cdist(x, x), "aten.cdist.default"),
        (lambda x: torch.erfinv(x.tanh()), "aten.erfinv.default"),
    ],
    ids=["histc", "median", "cdist", "erfinv"],
)
def test_what_torch_onnx_can_not_convert_is_named_with_its_line(last, operator, tmp_path):
    program = affine(last)
    with pytest.raises(ExportError) as caught:
        export_onnx(program, tmp_path / "model.onnx")

    line = Affine.forward.__code__.co_firstlineno + 1
    assert caught.value.found.startswith(f"{operator}, which torch.onnx can't convert (")
    assert f"test_export.py:{line} in forward" in caught.value.where
    assert "export_pt2" in caught.value.fix
    assert names(tmp_path) == []
    assert export_pt2(program, tmp_path / "model.pt2").exists()


def test_bfloat16_is_refused_where_onnx_runtime_does_not_run_it(tmp_path):
    program = affine().to("bfloat16")
    with pytest.raises(ExportError, match=r"does not run(.|\n)*float32"):
        export_onnx(program, tmp_path / "model.onnx")
    assert names(tmp_path) == []

    export_onnx(program, tmp_path / "model.onnx", check=False)
    assert session_type(tmp_path / "model.onnx") == onnx.TensorProto.BFLOAT16
    assert export_onnx(program.to("float32"), tmp_path / "model.onnx").deviation is not None


def session_type(path: Path) -> int:
    return onnx.load(path).graph.input[0].type.tensor_type.elem_type


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_of_weights(dtype, tmp_path):
    report = export_onnx(affine().to(dtype), tmp_path / "model.onnx")

    assert report.inputs == {"x": f"{dtype}[batch, 6]"}
    assert report.tolerance == pytest.approx(16 * torch.finfo(getattr(torch, dtype)).eps, rel=4)


@pytest.mark.parametrize("export", [export_onnx, export_pt2, export_safetensors])
def test_a_program_without_weights_is_refused(export, tmp_path):
    with torch.device("meta"):
        program = trace(Affine(), torch.randn(2, 6))
    with pytest.raises(ExportError, match="without weights"):
        export(program, tmp_path / "model.safetensors")
    assert names(tmp_path) == []


@pytest.mark.parametrize("export", [export_onnx, export_pt2, export_safetensors])
def test_a_missing_folder_and_a_full_disk_are_told(export, tmp_path, monkeypatch):
    with pytest.raises(FileError, match="no folder"):
        export(affine(), tmp_path / "none" / "model.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(FileError, match="no space left"):
        export(affine(), tmp_path / "model.safetensors")
    assert names(tmp_path) == []


def test_a_size_that_became_fixed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "_dynamic", lambda graph: None)
    with pytest.raises(ExportError, match=r"size 'batch' of input 'x', which became fixed at 3"):
        export_onnx(affine(), tmp_path / "model.onnx")
    assert names(tmp_path) == []


def test_the_program_is_left_as_it_was(tmp_path):
    program = traced("small_cnn")
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in program.tensors.items()}
    state = torch.get_rng_state()
    export_onnx(program, tmp_path / "model.onnx")
    export_pt2(program, tmp_path / "model.pt2")
    export_safetensors(program, tmp_path / "model.safetensors")

    assert torch.equal(torch.get_rng_state(), state)
    for name, (tensor, trained) in before.items():
        assert torch.equal(program.tensors[name], tensor)
        assert program.tensors[name].requires_grad == trained


# .pt2


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "mixtral", "nanogpt", "small_cnn", "multihead_attention"])
def test_pt2(name, tmp_path, capfd):
    program = traced(name)
    capfd.readouterr()
    export_pt2(program, tmp_path / "model.pt2")

    assert capfd.readouterr() == ("", "")
    assert names(tmp_path) == ["model.pt2"]
    loaded = torch.export.load(tmp_path / "model.pt2")
    inputs = other_inputs(program)
    require_near(flat(loaded.module()(**inputs)), module_outputs(program, inputs))
    known = {*program.tensors, *program.aliases}
    assert {*loaded.state_dict, *loaded.constants} <= known


def test_pt2_needs_torch_only(tmp_path):
    program = traced("t5")
    export_pt2(program, tmp_path / "model.pt2")
    inputs = other_inputs(program)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import sys, torch; sys.modules['graphgrow'] = None\n"
        "outputs = torch.export.load('model.pt2').module()(**torch.load('inputs.pt'))\n"
        "torch.save(dict(outputs), 'outputs.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)

    found = torch.load(tmp_path / "outputs.pt")
    assert list(found) == ["logits", "encoder_last_hidden_state"]
    require_near(flat(found), module_outputs(program, inputs))


def test_a_pt2_that_computes_something_else_gets_no_name(tmp_path, monkeypatch):
    exported = capture.captured
    wrong = affine()
    wrong = wrong.replace(tensors={name: tensor * 1.001 for name, tensor in wrong.tensors.items()})
    monkeypatch.setattr(
        "graphgrow.export.torch_export.captured", lambda program, _, what: exported(wrong, wrong.module(), what)
    )
    with pytest.raises(CheckFailed, match=r"a \.pt2 file that computes something else"):
        export_pt2(affine(), tmp_path / "model.pt2")
    assert names(tmp_path) == []


# safetensors


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize("name", ["gpt2", "t5", "mobilenet_v2", "nanogpt"])
def test_safetensors_hold_the_state_dict_once(name, tmp_path):
    program = traced(name)
    (path,) = export_safetensors(program, tmp_path / "model.safetensors")
    tensors, metadata = read(path)

    aliases = json.loads(metadata["aliases"])
    assert metadata["graphgrow.digest"] == program.digest
    assert metadata["format"] == "pt"
    assert aliases == dict(program.aliases)
    state = program.module().state_dict()
    assert {*tensors, *aliases} == set(state)
    for name, tensor in state.items():
        assert torch.equal(tensors[aliases.get(name, name)], tensor)


def test_safetensors_load_into_the_traced_model(tmp_path):
    program = traced("gpt2")
    (path,) = export_safetensors(program, tmp_path / "model.safetensors")
    model, inputs = ZOO["gpt2"].build()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)

    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    model.get_submodule("lm_head").weight = model.get_submodule("transformer.wte").weight

    assert (set(missing), unexpected) == (set(program.aliases), [])
    with torch.no_grad():
        require_near([model.eval()(**inputs).logits], module_outputs(program, inputs))


def test_a_folder_gets_the_usual_name(tmp_path):
    assert export_safetensors(affine(), tmp_path / "new") == (tmp_path / "new" / "model.safetensors",)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert export_safetensors(affine(), tmp_path / "old") == (tmp_path / "old" / "model.safetensors",)
    assert names(tmp_path / "new") == ["model.safetensors"]
    assert names(tmp_path / "old") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("target", ["model.safetensors", "folder"])
def test_large_weights_come_in_shards(target, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_SHARD", 30_000)
    program = traced("gpt2")
    made = export_safetensors(program, tmp_path / target)

    index = json.loads(made[0].read_text())
    assert made[0].name == "model.safetensors.index.json"
    assert sorted(file.name for file in made) == names(made[0].parent)
    assert {file.name for file in made[1:]} == set(index["weight_map"].values())
    assert made[1].name == f"model-00001-of-{len(made) - 1:05}.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in program.tensors.values())
    found = {name: tensor for file in made[1:] for name, tensor in load_file(file).items()}
    assert set(found) == set(program.tensors) == set(index["weight_map"])
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(made[0].with_name(file))[name], program.tensors[name])


@pytest.mark.parametrize("target", ["model.safetensors", "folder"])
def test_a_failure_in_a_later_shard_leaves_nothing(target, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_SHARD", 30_000)
    true, written = weights.save_file, []

    def save_file(*arguments, **keywords):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(true(*arguments, **keywords))

    monkeypatch.setattr(weights, "save_file", save_file)
    with pytest.raises(KeyboardInterrupt):
        export_safetensors(traced("gpt2"), tmp_path / target)
    assert names(tmp_path) == []


def half_masked(name: str, density: float) -> Program:
    """A model with random masks on three of its weights."""
    program, generator = traced(name), torch.Generator().manual_seed(0)
    for weight in list(dict.fromkeys(weight for _, weight in likeness.weights(program)))[1:4]:
        mask = torch.rand(program.tensors[weight].shape, generator=generator) < density
        program = likeness.masked(program, weight, mask)
    masks = {name: replace(program.kinds[name], pattern="unstructured") for name in program.kinds if "_mask" in name}
    kinds = {**program.kinds, **masks}
    return program.replace(kinds=kinds)


@pytest.mark.parametrize("name", ["gpt2", "small_cnn"])
def test_masks_are_multiplied_into_weights(name, tmp_path):
    program = half_masked(name, 0.5)
    report = export_onnx(program, tmp_path / "model.onnx")
    model = onnx.load(report.path)
    assert not any("mask" in held.name and "weight" in held.name for held in model.graph.initializer)
    assert folded(program).size == program.size
    for tensor, mask in ((n, f"{n}_mask") for n in program.tensors if f"{n}_mask" in program.tensors):
        kept = folded(program).tensors[tensor]
        assert torch.equal(kept, program.tensors[tensor] * program.tensors[mask])
    assert folded(traced(name)).digest == traced(name).digest


def test_sparse_initializers_make_a_smaller_file_that_loads(tmp_path):
    program = half_masked("gpt2", 0.05)
    dense = export_onnx(program, tmp_path / "dense.onnx")
    sparse = export_onnx(program, tmp_path / "sparse.onnx", sparse_initializers=True)
    assert sparse.sparse == 3 and sparse.deviation is not None
    masks = [name for name in program.tensors if name.endswith("_mask")]
    saved = sum(program.tensors[name.removesuffix("_mask")].nbytes * (1 - 3 * 0.06) for name in masks)
    assert sparse.bytes < dense.bytes - saved
    assert export_onnx(half_masked("gpt2", 0.5), tmp_path / "half.onnx", sparse_initializers=True).sparse == 0

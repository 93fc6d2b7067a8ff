"""What can be traced, from where, and what a careless user is told."""

import json
import logging
import random
import shutil
import subprocess
import sys

import pytest
import torch
import transformers as hf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphgrow.errors import FileError, GraphgrowError, OptionError, Refusal, TraceError
from graphgrow.program import Program
from graphgrow.tracing import trace
from passes import Deepen, WidenHidden
from tests.programs import outputs, traced
from tests.zoo import GROUPED, ZOO


def refused(kind, source, *args, **options):
    """The error that a source is refused with: what was found, and what to do, in short lines."""
    with pytest.raises(kind) as caught:
        trace(source, *args, **options)
    error = caught.value
    assert isinstance(error, GraphgrowError)
    assert error.found
    assert error.fix
    return error


class Lazy(nn.Module):
    """Takes two inputs under names of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, X, input, scale=None):
        return self.layer(X) + self.layer(input)


X = torch.randn(4, 3)


# --- modules


def test_inputs_keep_their_names():
    model = Lazy()
    program = trace(model, {"input": X, "X": X})
    assert list(program.inputs) == ["X", "input"]
    assert torch.equal(program.module()(input=X, X=2 * X), model(2 * X, X))
    assert list(trace(model, (X, X)).inputs) == ["X", "input"]


def test_inputs_given_twice_are_two_inputs():
    module = trace(Lazy(), (X, X)).module()
    assert not torch.equal(module(X, 0 * X), module(X, X))


def test_a_batch_of_one_is_an_example():
    program = trace(nn.Linear(3, 2), X[:1])
    assert str(next(iter(program.inputs.values())).shape[0]) == "batch"
    assert program.module()(X).shape == (4, 2)


def test_the_model_is_left_alone():
    model, inputs = ZOO["small_cnn"].build()
    model.eval()
    model.get_submodule("0").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    program = trace(model, inputs)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not places & {tensor.data_ptr() for tensor in program.tensors.values()}
    assert all(parameter.grad is None for parameter in model.parameters())


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare, self.same = nn.Linear(3, 2), nn.Linear(5, 5), nn.Linear(5, 5)
        self.same.weight = self.spare.weight
        self.used.weight.requires_grad_(False)

    def forward(self, x):
        return self.used(x)


def test_frozen_and_unused_parameters_are_kept():
    model = Spare()
    module = trace(model, X).module()
    assert module.state_dict().keys() == model.state_dict().keys()
    assert [(name, p.requires_grad) for name, p in module.named_parameters()] == [
        (name, p.requires_grad) for name, p in model.named_parameters()
    ]
    assert module.get_parameter("same.weight") is module.get_parameter("spare.weight")


def test_evaluation_only():
    model, inputs = ZOO["gpt2"].build()
    program = trace(model, inputs, mode="eval")
    assert "in training" not in str(program.graph)
    module = program.module()
    assert torch.equal(outputs(module, inputs, 1)[0], outputs(module, inputs, 2)[0])
    assert program.to("bfloat16").dtype == "bfloat16"


class Mixed(nn.Module):
    """Weights of two types: it has modes, and runs in no other type."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2).double()

    def forward(self, x):
        return self.second(self.drop(self.first(x)).double())


def test_models_of_mixed_types_have_modes_but_cannot_be_moved():
    module = (program := trace(Mixed(), X)).module()
    assert not torch.equal(outputs(module, {"x": X}, 1)[0], outputs(module, {"x": X}, 2)[0])
    module.eval()
    assert torch.equal(outputs(module, {"x": X}, 1)[0], outputs(module, {"x": X}, 2)[0])
    with pytest.raises(GraphgrowError, match="convert the model"):
        program.to("bfloat16")


@pytest.mark.parametrize("how", ["fake", "meta"])
def test_models_without_storage(how):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "head_dim": 64}
    config = hf.LlamaConfig(
        **{**GROUPED, **sizes, "num_attention_heads": 8, "num_key_value_heads": 4, "use_cache": False}
    )
    ids = torch.randint(101, (2, 7))
    with torch.device("meta") if how == "meta" else FakeTensorMode() as mode:
        model = hf.LlamaForCausalLM(config)
        if isinstance(mode, FakeTensorMode):
            ids = torch.zeros(2, 7, dtype=torch.int64)
    program = trace(model, {"input_ids": ids})
    assert not program.has_weights
    assert all(tensor.is_meta for tensor in program.tensors.values())
    assert program.digest != traced("llama").digest
    assert [node.op for node in program.graph.nodes[:8]] == ["input", *["parameter"] * 7]
    assert program.size == sum(parameter.numel() for parameter in model.parameters())
    assert program.to("bfloat16").module().state_dict().keys() == model.state_dict().keys()


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        both = torch.randn(4, 3)
        self.first, self.second = nn.Parameter(both[:3]), nn.Parameter(both[1:])

    def forward(self, x):
        return x @ self.first.T + x @ self.second.T


class Wandering(nn.Module):
    """Computes something else at each call."""

    def forward(self, x):
        return x * random.random()


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Keeping(nn.Module):
    """Keeps what it computed for the next call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.kept = (torch.zeros(2), None)

    def forward(self, x):
        self.kept = (self.layer(x), x.shape)
        return self.kept[0]


def test_what_a_model_keeps_is_its_own():
    model = Keeping()
    before = model.kept
    torch.testing.assert_close(trace(model, X, check=False).module()(X), model.layer(X))
    assert model.kept is before


def test_failed_captures_are_told_once(capfd):
    refused(TraceError, Branching(), X)
    assert capfd.readouterr() == ("", "")


class Branch(nn.Module):
    """Goes by a size: by `goes` it runs another way."""

    def __init__(self, goes):
        super().__init__()
        self.goes = goes

    def forward(self, x):
        return x.cumsum(1) if self.goes(*x.shape) else x * 2


LONG, SHORT, FEW = (lambda _, length: length > 5), (lambda _, length: length < 9), (lambda batch, _: batch < 4)
PARTS = [("long", LONG, (2, 7), (2, 5)), ("short", SHORT, (2, 7), (2, 9)), ("few", FEW, (2, 7), (4, 7))]


@pytest.mark.parametrize(("goes", "traced", "beyond"), [case[1:] for case in PARTS], ids=[case[0] for case in PARTS])
def test_sizes_beyond_a_branch_are_refused(goes, traced, beyond):
    """The other branch was not traced."""
    model, module = Branch(goes), trace(Branch(goes), torch.randint(9, traced)).module()
    for size in (6, 7, 8):
        x = torch.randint(9, (2, size))
        assert torch.equal(module(x), model(x))
    with pytest.raises(OptionError, match="was not traced"):
        module(torch.randint(9, beyond))


def test_a_size_that_decides_otherwise_is_fixed():
    """Odd lengths go one way, even ones another: there is no range for that."""
    model = Branch(lambda _, length: length % 2)
    program = trace(model, torch.randint(9, (2, 7)))
    assert list(program.graph.symbols) == ["batch"]
    exported = torch.export.export(model, (torch.randint(9, (2, 7)),), dynamic_shapes=({1: torch.export.Dim.AUTO},))
    assert "some sizes only" in refused(TraceError, exported).found


@pytest.mark.parametrize("how", ["hook", "parametrization"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm(how):
    norm = nn.utils.weight_norm if how == "hook" else nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(3, 5)), nn.ReLU(), norm(nn.Linear(5, 2), dim=1))
    program = trace(model, X)
    assert not any(axis.frozen for axis in program.axes.named)
    torch.testing.assert_close(program.module()(X), model(X))
    assert program.to("bfloat16").module().state_dict().keys() == model.state_dict().keys()


def test_spectral_norm_changes_state_in_training():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 5)), nn.Linear(5, 2))
    assert "mode='eval'" in refused(TraceError, model, X).fix
    program = trace(model, X, mode="eval")
    assert not any(axis.frozen for axis in program.axes.named)
    torch.testing.assert_close(program.module()(X), model.eval()(X))


def test_experts_in_groups():
    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "use_cache": False}
    config = hf.OlmoeConfig(num_attention_heads=2, num_experts=3, num_experts_per_tok=2, **sizes)
    model, tokens = hf.OlmoeForCausalLM(config), {"input_ids": torch.randint(30, (2, 5))}
    fix = refused(TraceError, model, tokens).fix
    assert 'model.set_experts_implementation("batched_mm")' in fix
    model.set_experts_implementation("batched_mm")
    assert any(axis.role == "experts" for axis in trace(model, tokens).axes.named)


MISTAKES = [
    (TraceError, Lazy, (X, X), "the class Lazy", "Lazy(...)"),
    (TraceError, 3, None, "a int, which is no model", "Hugging Face folder"),
    (TraceError, Lazy(), None, "no example inputs for Lazy", "trace(model"),
    (TraceError, Lazy(), {"Y": X}, "'Y', which forward() of Lazy does not take", "X, input"),
    (TraceError, Lazy(), {"X": X, "input": 3}, "'input' of type int", "tensors"),
    (TraceError, Lazy(), 3, "example inputs of type int", "a dict of tensors"),
    (TraceError, Lazy(), (X, X, X, X), "4 example inputs for 3 parameters", "X, input"),
    (TraceError, Lazy(), (X,), "input", "forward()"),
    (TraceError, Lazy(), (X[:, :2], X), "Lazy can't be captured", ""),
    (TraceError, Overlapping(), X, "'first' and 'second', which share memory", "one parameter"),
    (TraceError, Wandering(), X, "computes something else than the model", "Python state"),
    (TraceError, Branching(), X, "Branching can't be captured", "torch.where"),
    (OptionError, "tests.factories:plane", None, "'plane'", "plain"),
    (TraceError, "tests.no_such_file:make", None, "can't be imported", "pkg.module:factory"),
    (TraceError, "tests.factories:NUMBER", None, "a int", "function"),
    (TraceError, "tests.factories:number", None, "gave a int", "return a module"),
    (TraceError, "tests.factories:failing", None, "no data here", "without arguments"),
    (TraceError, "tests.factories:needs", None, "missing 1 required", "without arguments"),
    (TraceError, "tests.factories:plain", None, "no example inputs for Linear", "(model, example_inputs)"),
    (FileError, "no/such/folder", None, "no file of this name", "nothing is downloaded"),
    (FileError, "no_such_file.pt", None, "no file of this name", ""),
    (FileError, "tests", None, "a folder without config.json", "save_pretrained"),
    (FileError, "pyproject.toml", None, "nothing graphgrow can read", ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source", "example", "found", "fix"), MISTAKES)
def test_mistakes_are_told(kind, source, example, found, fix):
    error = refused(kind, source, example)
    assert found in error.found
    assert fix in error.fix


def test_unknown_modes_are_told():
    assert "'both'" in refused(OptionError, Lazy(), (X, X), mode="bth").fix


# --- outputs


class Streams(nn.Module):
    """Residual layers that give their stream, too; of each, something is computed that nobody reads."""

    def __init__(self):
        super().__init__()
        self.into, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        stream = self.into(x)
        for layer in self.layers:
            first, _ = torch.split(stream, [2, 4], dim=-1)
            stream = stream + layer(stream).tanh() * first[..., :1]
        return {"logits": self.head(stream), "streams": (stream, stream.sum(-1))}


def test_outputs_are_chosen():
    """What is seen in an output can't grow; where that output is left out, it can."""
    model = Streams()
    whole, one = trace(model, X), trace(model, X, outputs="logits")
    with pytest.raises(Refusal, match="seen in the output"):
        WidenHidden()(whole)
    WidenHidden()(one)
    found = one.module()(X)
    assert list(found) == ["logits"] and torch.equal(found["logits"], model(X)["logits"])
    both = trace(model, X, outputs=["streams", "logits"])
    assert both.digest == whole.digest


def test_outputs_of_a_tuple_are_chosen_by_position():
    class Pair(nn.Module):
        def forward(self, x):
            return x.sin(), x.cos(), x.tan()

    (found,) = trace(Pair(), X, outputs="1").module()(X)
    assert torch.equal(found, X.cos())
    assert "0, 1, 2" in refused(OptionError, Pair(), X, outputs=("0", "3")).fix
    assert "one output" in refused(OptionError, nn.Linear(3, 2), X, outputs="logits").fix


def test_outputs_of_a_program_are_chosen():
    """What its journal says is said of another one."""
    deep = Deepen(to=3)(trace(Streams(), X))
    assert deep.journal and trace(deep) is deep
    assert trace(deep, outputs="logits").journal == ()


def test_what_no_output_needs_is_left_out():
    """A piece of the stream that nobody reads does not keep layers from being found."""
    program = trace(Streams(), X)
    read = {name for node in program.graph.nodes for name in node.operands()} | {*program.graph.output_names}
    assert read >= {node.name for node in program.graph.nodes}
    assert Deepen(to=3)(program).certificate


# --- factories, programs, pickles


def test_factories():
    assert trace("tests.factories:with_example").size == 8
    assert trace("tests.factories:plain", X).size == 8
    program = trace("tests.factories:MODEL", X)
    from tests.factories import MODEL

    assert torch.equal(program.module()(X), MODEL(X))
    assert program.tensors["weight"].data_ptr() != MODEL.weight.data_ptr()


def test_programs_are_taken_as_they_are(tmp_path):
    program = traced("skip_mlp")
    assert trace(program) is program
    program.save(tmp_path / "model.pt")
    assert trace(tmp_path / "model.pt").digest == program.digest


def test_a_programs_module_can_be_traced():
    program = traced("gpt2")
    for hierarchical in (False, True):
        again = trace(program.module(hierarchical), program.example())
        assert again.aliases == program.aliases
        inputs = program.example({"batch": 3}, seed=2)
        assert torch.equal(outputs(again.module(), inputs)[0], outputs(program.module(), inputs)[0])


def test_pickles_need_trust(tmp_path):
    torch.manual_seed(0)
    model = Lazy()
    torch.save(model, tmp_path / "model.pt")
    error = refused(FileError, tmp_path / "model.pt", (X, X))
    assert "--trust-pickle" in error.fix
    program = trace(tmp_path / "model.pt", (X, X), trust_pickle=True)
    assert torch.equal(program.module()(X, X), model(X, X))
    torch.save([model], tmp_path / "list.pt")
    assert "a pickled list" in refused(FileError, tmp_path / "list.pt", (X, X), trust_pickle=True).found
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert "state dict" in refused(FileError, tmp_path / "weights.pt", trust_pickle=True).found


def test_exported_programs_need_trust(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(exported, tmp_path / "model.pt2")
    assert "--trust-pickle" in refused(FileError, tmp_path / "model.pt2").fix
    program = trace(tmp_path / "model.pt2", trust_pickle=True)
    assert program.module().state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(program.module()(X[:3]), model(X[:3]))
    assert trace(exported).digest == program.digest


# --- Hugging Face folders


@pytest.fixture
def folder(tmp_path, request):
    """A folder as `save_pretrained` writes it."""
    model, _ = ZOO[request.param].build()
    model.save_pretrained(tmp_path / "folder")  # pyright: ignore[reportCallIssue]
    return tmp_path / "folder", model.eval()


FOLDERS = ["gpt2", "llama", "mixtral", "t5", "vit", "clip", "whisper"]


@pytest.mark.parametrize("folder", FOLDERS, indirect=True)
def test_folders(folder, capfd):
    path, model = folder
    capfd.readouterr()
    program = trace(str(path))
    assert capfd.readouterr() == ("", "")
    inputs = program.example({"batch": 3})
    assert program.module().state_dict().keys() == model.state_dict().keys()
    for left, right in zip(outputs(program.module().eval(), inputs), outputs(model, inputs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folder", ["distilbert"], indirect=True)
def test_folders_in_another_type(folder):
    path, model = folder
    model.to(torch.bfloat16).save_pretrained(path)
    program = trace(path)
    assert program.dtype == "bfloat16"
    assert {tensor.dtype for tensor in program.module().parameters()} == {torch.bfloat16}


def rewrite(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_type_of_the_weights_is_not_seen_in_the_graph(kind: str) -> None:
    """A cast to float32 does nothing in one of the two captures: which one must not matter."""
    model, inputs = ZOO[kind].build()
    plain = trace(model, inputs, check=False).graph
    assert trace(model.bfloat16(), inputs, check=False).graph == plain


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_broken_folders_are_told(folder, tmp_path):
    path, _ = folder
    logging.disable(logging.WARNING)
    rewrite(path, architectures=["GPT2LMHeadMdl"])
    assert "GPT2LMHeadModel" in refused(OptionError, path).fix
    rewrite(path, architectures=None)
    assert "names no architecture" in refused(TraceError, path).found
    rewrite(path, architectures=["GPT2LMHeadModel"], n_layer=3)
    assert "weights without 'transformer.h.2." in refused(TraceError, path).found
    rewrite(path, n_layer=2, n_inner=84)
    assert "can't be loaded" in refused(FileError, path).found
    rewrite(path, n_inner=80, model_type="gpt22")
    assert "refuses" in refused(TraceError, path).found
    (path / "config.json").write_text("{")
    assert "no JSON" in refused(FileError, path).found
    rewritten = tmp_path / "other"
    shutil.copytree(path, rewritten)
    (rewritten / "config.json").write_text("{}")
    (rewritten / "model.safetensors").rename(rewritten / "pytorch_model.bin")
    assert "pytorch_model.bin but no safetensors" in refused(FileError, rewritten).found
    logging.disable(logging.NOTSET)


def test_transformers_is_imported_for_folders_only():
    code = (
        "import sys, torch; from graphgrow.tracing import trace; trace(torch.nn.Linear(3, 2), torch.ones(2, 3));"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_loaded_programs_need_no_transformers(tmp_path):
    traced("gpt2").save(tmp_path / "model.pt")
    assert Program.load(tmp_path / "model.pt").digest == traced("gpt2").digest

"""Programs as values: copies, files, data types, fingerprints, example inputs."""

import copy
import pickle

import pytest
import torch

from graphgrow.certificate import Certificate
from graphgrow.errors import OptionError, Refusal
from graphgrow.program import Program
from tests.programs import outputs, traced
from tests.zoo import ZOO

TIED = ["gpt2", "opt", "gemma2", "bert", "t5", "nanogpt", "whisper"]
CERTIFICATE = Certificate(spec="widen:axis=mlp", old="a", new="b", claim="Exact")


def same(left: Program, right: Program) -> bool:
    return left.digest == right.digest and left.journal == right.journal


@pytest.mark.parametrize("name", list(ZOO))
def test_a_file_gives_the_same_program(name, tmp_path):
    program = traced(name).replace(journal=(CERTIFICATE,))
    program.save(tmp_path / "model.pt")
    loaded = Program.load(tmp_path / "model.pt")
    assert same(loaded, program)
    assert list(loaded.tensors) == list(program.tensors)
    inputs = program.example(seed=1)
    left, right = (outputs(item.module().eval(), inputs) for item in (program, loaded))
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", TIED)
def test_ties_are_kept(name, tmp_path):
    program = traced(name)
    assert program.aliases
    program.save(tmp_path / "model.pt")
    copies = [copy.deepcopy(program), pickle.loads(pickle.dumps(program)), Program.load(tmp_path / "model.pt"),
              program.to("bfloat16").to("float32"), program.replace(journal=(CERTIFICATE,))]  # fmt: skip
    count = len(list(ZOO[name].build()[0].parameters()))
    for other in copies:
        module = other.module()
        assert len(list(module.parameters())) == count
        for alias, owner in program.aliases.items():
            assert module.get_parameter(alias) is module.get_parameter(owner)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "t5", "swin", "resnet"])
def test_other_types_are_what_the_model_would_have(name, dtype):
    model, inputs = ZOO[name].build()
    model = model.to(dtype).eval()
    program = traced(name).to(dtype)
    assert program.dtype == str(dtype).removeprefix("torch.")
    module = program.module().eval()
    assert {key: value.dtype for key, value in module.state_dict().items()} == {
        key: value.dtype for key, value in model.state_dict().items()
    }
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    for left, right in zip(outputs(module, inputs), outputs(model, inputs), strict=True):
        assert left.dtype == right.dtype == dtype
        assert torch.equal(left, right)


def test_programs_do_not_change():
    program = traced("skip_mlp")
    before, kept = program.digest, {name: tensor.clone() for name, tensor in program.tensors.items()}
    module = program.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    program.to("float64")
    assert all(torch.equal(program.tensors[name], kept[name]) for name in kept)
    assert program.digest == before
    with pytest.raises(AttributeError):
        program.dtype = "float64"  # pyright: ignore[reportAttributeAccessIssue]


def test_shared_tensors_are_not_copied():
    program = traced("skip_mlp")
    places = {tensor.data_ptr() for tensor in program.tensors.values()}
    assert {parameter.data_ptr() for parameter in program.module(share=True).parameters()} == places
    assert not {parameter.data_ptr() for parameter in program.module().parameters()} & places
    assert not {tensor.data_ptr() for tensor in copy.deepcopy(program).tensors.values()} & places


def test_fingerprints_tell_programs_apart():
    program = traced("nanogpt")
    name = next(iter(program.tensors))
    changed = program.tensors[name].clone()
    changed.view(-1)[3] += 1e-6
    others = [
        program,
        program.replace(tensors={**program.tensors, name: changed}),
        program.replace(aliases={}),
        program.to("float64"),
        program.to("bfloat16"),
        traced("skip_mlp"),
    ]
    assert len({other.digest for other in others}) == len(others)
    again = program.replace(
        tensors=dict(reversed({key: value.clone() for key, value in program.tensors.items()}.items()))
    )
    assert again.digest == program.digest
    assert program.replace(journal=(CERTIFICATE,)).digest == program.digest


def test_moving_back_and_forth_keeps_what_fits():
    program = traced("llama")
    assert program.to("float64").to(torch.float32).digest == program.digest
    assert program.to("float32") is program


def test_unknown_types_and_mixed_programs_are_refused():
    program = traced("skip_mlp")
    with pytest.raises(OptionError, match="bfloat16"):
        program.to("bloat16")
    with pytest.raises(OptionError):
        program.to(torch.int64)
    fixed = program.replace(graph=type(program.graph)((), None, {}))
    with pytest.raises(Refusal, match="float32 only"):
        fixed.to("bfloat16")


@pytest.mark.parametrize("name", list(ZOO))
def test_example_inputs_fit(name):
    program = traced(name)
    inputs = program.example(seed=5)
    assert list(inputs) == list(program.inputs)
    assert all(torch.equal(value, program.example(seed=5)[key]) for key, value in inputs.items())
    model, given = ZOO[name].build()
    for key, value in inputs.items():
        assert value.dtype == given[key].dtype
        assert value.dim() == given[key].dim()
        if key.endswith("mask"):
            assert torch.equal(value, torch.ones_like(value))
        elif not value.is_floating_point():
            assert 0 <= value.min() <= value.max() < 101
            assert value.unique().numel() > 1
    outputs(model.eval(), inputs)


def test_example_inputs_have_the_sizes_asked_for():
    program = traced("t5")
    inputs = program.example({"batch": 1, "sequence": 4})
    assert inputs["input_ids"].shape == (1, 4)
    assert inputs["decoder_input_ids"].shape == (1, 7)
    with pytest.raises(OptionError, match="'sequence'"):
        program.example({"sequense": 4})


def test_text_for_people():
    program = traced("gpt2").replace(journal=(CERTIFICATE,))
    assert "41,536 parameters (float32)" in str(program)
    assert "input_ids: int64[batch, sequence]" in str(program)
    assert program.size == sum(parameter.numel() for parameter in ZOO["gpt2"].build()[0].parameters())
    assert program.certificate == CERTIFICATE
    assert traced("gpt2").certificate is None
    assert program.has_weights

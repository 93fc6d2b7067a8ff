"""Units and layers taken away: exactly where they are dead, measured where they are not, and growth undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.optim import SGD
from typer.testing import CliRunner

from graphgrow.axes.names import Named
from graphgrow.cli import app
from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pipeline, parse_pass
from graphgrow.program import Program
from graphgrow.rewrite.prune import reordered
from graphgrow.runtime import grow_optimizer
from graphgrow.tracing import trace
from graphgrow.verify import certify, check
from passes import PruneAxis, Undo, Widen, WidenHidden
from tests.programs import outputs, traced

torch.set_num_threads(1)


def axis_of(program: Program, role: str) -> Named:
    return next(axis for axis in program.axes.named if axis.role == role and not axis.frozen)


def shuffled(program: Program, role: str, seed: int = 0) -> tuple[Program, list[int]]:
    """The program with the units of one axis in a random order, and the places where the first ones were."""
    axis = axis_of(program, role)
    order = torch.randperm(int(str(axis.size)), generator=torch.Generator().manual_seed(seed)).tolist()
    return reordered(program, {axis.atom: order}), order


BIT_FOR_BIT = [
    ("llama", "widen:factor=1.5"), ("gpt2", "add-heads"), ("llama", "add-kv-heads"), ("llama", "widen-keys:factor=1.5"),
    ("t5", "widen-values:factor=1.5"), ("gpt2", "grow-vocab:to=107"), ("mobilenet_v2", "widen:factor=1.5,init=copy"),
    ("bert", "widen-hidden:factor=4,by=copies"), ("gpt2", "widen-keys:factor=4,scale=weights"),
    ("llama", "deepen:at=1"),    ("gpt2", "deepen:to=5"), ("t5", "deepen:order=stack"), ("resnet", "deepen"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "spec"), BIT_FOR_BIT)
def test_an_undone_growth_is_the_old_program(model: str, spec: str) -> None:
    old = traced(model)
    back = Undo()(parse_pass(spec)(old))
    assert back.digest == old.digest and str(back.graph) == str(old.graph)
    assert all(torch.equal(tensor, old.tensors[name]) for name, tensor in back.tensors.items())
    assert back.certificate and back.certificate.evidence == "proved and tested"
    assert back.certificate.notes == (f"bit for bit the program before {spec}",)


@pytest.mark.parametrize(
    ("model", "spec"),
    [("llama", "widen-hidden:factor=1.5"), ("gpt2", "widen-hidden:to=55"), ("llama", "widen-keys:scale=weights"),
     ("gpt2", "widen-keys:scale=weights,factor=1.5")],
)  # fmt: skip
def test_what_was_multiplied_comes_back_to_one_unit_in_the_last_place(model: str, spec: str) -> None:
    old = traced(model)
    back = Undo()(parse_pass(spec)(old))
    assert str(back.graph) == str(old.graph)
    for name, tensor in back.tensors.items():
        ulp = torch.nextafter(old.tensors[name].abs(), torch.tensor(torch.inf)) - old.tensors[name].abs()
        assert ((tensor - old.tensors[name]).abs() <= ulp).all(), name
    assert back.certificate and "to rounding" in back.certificate.notes[0]


def test_growths_are_undone_one_after_the_other() -> None:
    old = traced("nanogpt")
    steps = list(Pipeline.parse(["widen", "deepen", "add-heads"]).steps(old))
    back = list(Pipeline.parse(["undo", "undo", "undo"]).steps(steps[-1]))
    assert [program.digest for program in back] == [steps[1].digest, steps[0].digest, old.digest]
    with pytest.raises(Refusal, match="no growth in the journal"):
        Undo()(back[-1])


def test_only_growths_as_they_were_are_undone() -> None:
    grown = Widen()(traced("nanogpt"))
    tensors = dict(grown.tensors)
    tensors["blocks.0.norm_1.weight"] = tensors["blocks.0.norm_1.weight"] * 2
    with pytest.raises(Refusal, match="changed since widen"):
        Undo()(grown.replace(tensors=tensors))
    for spec in ("prune-axis", "upcycle"):
        with pytest.raises(Refusal, match=f"{spec}, which did more"):
            Undo()(parse_pass(spec)(grown))


@pytest.mark.parametrize(("model", "role", "spec"), [
    ("nanogpt", "mlp", "widen:axis=mlp@blocks.0,factor=1.5"), ("llama", "hidden", "widen-hidden:factor=1.5"),
    ("gpt2", "hidden", "widen-hidden:factor=1.25"), ("llama", "value", "widen-values:factor=1.5"),
    ("small_cnn", "channels", "widen:axis=channels@0,factor=1.5"),
])  # fmt: skip
def test_dead_units_go_wherever_they_are(model: str, role: str, spec: str) -> None:
    """Grown, then with its units in another order: prune finds the new ones by their saliency, and is exact."""
    old = traced(model)
    grown = parse_pass(spec)(old)
    mixed, _ = shuffled(grown, role)
    axis = axis_of(mixed, role)
    small = PruneAxis(axis=axis.name, to=int(str(axis_of(old, role).size)))(mixed)
    found = small.certificate
    assert found and found.claim == "Exact" and found.evidence == "proved and tested", found
    assert check(mixed, small).holds
    inputs = old.example(seed=3)
    with torch.no_grad():
        pairs = zip(outputs(old.module().eval(), inputs), outputs(small.module().eval(), inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))


def test_a_live_unit_is_no_dead_one() -> None:
    """Without one unit that does something nothing is equivalent, and the change is measured."""
    old = traced("nanogpt")
    small = PruneAxis(axis="mlp@blocks.0", units=(7,))(old)
    found = small.certificate
    assert found and found.claim == "Changes" and found.evidence == "measured" and found.holds
    assert found.proof is None and found.test is None and found.measured
    assert [(row.axis, row.old, row.new) for row in found.growth] == [("mlp@blocks.0", 80, 79)]
    kept = [unit for unit in range(80) if unit != 7]
    assert torch.equal(small.tensors["blocks.0.up.weight"], old.tensors["blocks.0.up.weight"][kept])
    assert not check(old, small).holds
    total = difference = 0.0
    for seed, (batch, length) in enumerate([(1, 6), (2, 9), (3, 4)]):
        inputs = old.example({"batch": batch, "sequence": length}, seed)
        with torch.no_grad():
            a, b = (outputs(program.module().eval(), inputs)[0].double() for program in (old, small))
        total, difference = total + float(a.square().sum()), difference + float((a - b).square().sum())
    assert found.measured.norm == pytest.approx((difference / total) ** 0.5, rel=1e-6)
    again = certify(old, small, spec="x", claim="Changes", data=[old.example({"batch": 4}, 5)])
    assert again.measured and again.measured.inputs == "data (batches: 1)"


def test_lies_about_fewer_units() -> None:
    """A kept value off by 1e-6, or a unit in the place of another: no claim holds."""
    grown = Widen(axis="mlp@blocks.0", factor=1.5)(traced("nanogpt"))
    mixed, _ = shuffled(grown, "mlp")
    small = PruneAxis(axis="mlp@blocks.0", to=80)(mixed)
    assert check(mixed, small).holds
    weight = small.tensors["blocks.0.down.weight"].detach().clone()
    weight[3, 5] += 1e-6
    assert not check(mixed, small.replace(tensors={**small.tensors, "blocks.0.down.weight": weight})).holds
    swapped = small.tensors["blocks.0.down.weight"].detach()[:, [1, 0, *range(2, 80)]]
    assert not check(mixed, small.replace(tensors={**small.tensors, "blocks.0.down.weight": swapped})).holds


class _Silent(nn.Module):
    """Large weights behind a bias that keeps their unit off, small ones that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.up.weight[2] *= 10
            self.down.weight[:, 2] *= 10
            self.up.bias[2] = -1e4

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def test_activations_tell_what_weights_do_not() -> None:
    torch.manual_seed(0)
    program = trace(_Silent(), {"x": torch.randn(4, 6)})
    data = [{"x": torch.randn(50, 6)}]
    by_weight = PruneAxis(to=7)(program)
    by_data = PruneAxis(to=7, score="activation")(program, data)
    assert by_weight.certificate and by_weight.certificate.measured and by_weight.certificate.measured.norm > 0.01
    assert by_data.certificate and by_data.certificate.measured
    assert by_data.certificate.measured.norm < 1e-6 and "data (batches: 1)" in by_data.certificate.measured.inputs
    with pytest.raises(OptionError, match="--data"):
        PruneAxis(to=7, score="activation")(program)


MANY = [("opt", "heads"), ("gpt2", "hidden"), ("resnet", "auto"), ("mixtral", "auto"), ("phi3", "auto")]


@pytest.mark.parametrize("score", ["magnitude", "activation"])
@pytest.mark.parametrize(("model", "axis"), MANY)
def test_half_of_what_there_is(model: str, axis: str, score: Any) -> None:
    old = traced(model)
    small = PruneAxis(axis=axis, score=score, factor=0.67)(old, [old.example(seed=1)])
    assert small.certificate and small.certificate.claim == "Changes" and small.certificate.measured
    assert 0 < small.certificate.measured.norm < 2 and small.size < old.size
    assert all(row.new < row.old for row in small.certificate.growth)
    assert check(old, small).holds is False
    with torch.no_grad():
        found = outputs(small.module().eval(), old.example(seed=2))
    assert all(bool(out.isfinite().all()) for out in found if out.is_floating_point())


def test_state_goes_with_what_is_left() -> None:
    """SGD's momentum through growth and back, and through the loss of dead units: the gradients there."""
    old = traced("llama").to(torch.float64)
    grown = WidenHidden(factor=1.5)(old)
    mixed, _ = shuffled(grown, "hidden")
    small = PruneAxis(axis="hidden", to=48)(mixed)
    assert small.certificate and small.certificate.claim == "Exact"
    before, after = mixed.module().eval(), small.module().eval()
    optimizer = SGD(before.parameters(), lr=0.0, momentum=0.9)
    _backward(before, old)
    optimizer.step()
    carried = grow_optimizer(optimizer, before, after)
    _backward(after, old)
    for name, parameter in after.named_parameters():
        buffer = carried.state[parameter]["momentum_buffer"]
        gradient = parameter.grad
        assert gradient is not None
        torch.testing.assert_close(buffer, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def _backward(module: nn.Module, program: Program) -> None:
    module.zero_grad()
    torch.stack([out.square().mean() for out in outputs(module, program.example(seed=0))]).sum().backward()


def test_what_is_seen_outside_or_ordered_stays() -> None:
    program = traced("gpt2")
    with pytest.raises(Refusal, match="shows"):
        PruneAxis(axis="vocab")(program)
    with pytest.raises(Refusal, match="by number"):
        PruneAxis(axis="positions", units=(0,))(program)
    with pytest.raises(Refusal, match="not all"):
        PruneAxis(axis="mlp", units=tuple(range(80)))(program)


RUN = CliRunner()


def test_on_the_command_line(tmp_path: Path) -> None:
    program = traced("nanogpt")
    program.save(tmp_path / "model.pt")
    inputs = program.example({"batch": 3}, 1)
    save_file(inputs, tmp_path / "data.safetensors")
    common = ["apply", str(tmp_path / "model.pt"), "--pass", "prune-axis:score=activation,to=60", "-o"]
    done = RUN.invoke(app, [*common, str(tmp_path / "small.pt"), "--data", str(tmp_path / "data.safetensors")])
    assert done.exit_code == 0, done.output
    assert "measured" in done.output and "data (batches: 1)" in " ".join(done.output.split())
    small = Program.load(tmp_path / "small.pt")
    assert small.certificate and small.certificate.measured and axis_of(small, "mlp").size == 60
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, word in (("other.safetensors", "give the inputs"), ("model.pt", "by name"), ("none", "by name")):
        failed = RUN.invoke(app, [*common, str(tmp_path / "x.pt"), "--data", str(tmp_path / name)])
        assert failed.exit_code != 0 and word in " ".join(failed.output.split()), failed.output
    assert not (tmp_path / "x.pt").exists()
    back = RUN.invoke(app, ["apply", str(tmp_path / "small.pt"), "--pass", "undo", "-o", str(tmp_path / "y.pt")])
    assert back.exit_code != 0 and "did more" in back.output

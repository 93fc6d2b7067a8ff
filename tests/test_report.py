"""Costs against formulas and against torch's own counter, differences, and the tables."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from graphgrow.axes.text import fold, grouped
from graphgrow.errors import OptionError
from graphgrow.program import Program
from graphgrow.report import cost, difference
from graphgrow.report.cost import operations
from graphgrow.report.passes import described
from graphgrow.report.tables import (
    amount,
    axes_table,
    certificate_table,
    cost_table,
    difference_table,
    notes_of,
    weights_table,
)
from graphgrow.report.values import axes_value, certificate_value, difference_value, weights_value
from graphgrow.report.weights import weight_costs
from graphgrow.tracing import trace
from passes import Factorize, Sparsify, Widen
from tests.programs import traced

COUNTED = [
    "gpt2", "llama", "mixtral", "t5", "swin", "convnext", "mobilenet_v2", "grouped_conv", "unet", "einsum_attention",
    "multihead_attention", "tied_autoencoder", "latent_queries",
]  # fmt: skip


def drawn(renderable) -> str:
    console = Console(file=StringIO(), width=1000, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def traced_alone(module: nn.Module, *shape: int) -> Program:
    return trace(module, (torch.randn(*shape),))


def test_an_mlp_costs_what_its_formula_says():
    program = traced_alone(nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4)), 3, 10)
    found = cost(program, {"batch": 7})

    assert found.parameters == 10 * 30 + 30 + 30 * 4 + 4
    assert found.memory == 4 * found.parameters
    assert found.flops == 2 * 7 * (10 * 30 + 30 * 4)
    assert str(operations(program)[0].flops) == "600*batch"


def test_gpt2_costs_what_its_formula_says():
    layers, hidden, mlp, vocab, positions, batch, length = 2, 48, 80, 101, 37, 3, 20
    found = cost(traced("gpt2"), {"batch": batch, "sequence": length})

    weights = layers * (4 * hidden * hidden + 2 * hidden * mlp) + hidden * vocab
    attention = layers * 2 * length * length * hidden
    assert found.flops == 2 * batch * (length * weights + attention)
    biases = layers * (3 * hidden + hidden + mlp + hidden)
    norms = (2 * layers + 1) * 2 * hidden
    assert found.parameters == weights + positions * hidden + biases + norms  # the tied embedding counts once


def test_convolutions_count_their_groups():
    program = traced_alone(nn.Conv2d(8, 12, 3, groups=4, padding=1), 2, 8, 10, 10)
    assert cost(program).flops == 2 * (12 * 100) * (8 // 4 * 9)

    program = traced_alone(nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), 2, 6, 5, 5)
    assert cost(program).flops == 2 * (6 * 25) * (4 // 2 * 4)


@pytest.mark.parametrize("name", COUNTED)
def test_operations_are_those_that_torch_counts(name):
    program = traced(name)
    sizes = {symbol: 2 if symbol.startswith("batch") else 5 for symbol in program.graph.symbols}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        program.module().eval()(**program.example(sizes))

    assert cost(program, sizes).flops == counter.get_total_flops()


def test_dynamic_sizes_have_defaults_within_bounds():
    program = traced("gpt2")
    assert dict(cost(program).sizes) == {"batch": 1, "sequence": 128}

    with pytest.raises(OptionError, match="dynamic size") as caught:
        cost(program, {"bach": 3})
    assert "'batch'" in caught.value.fix
    with pytest.raises(OptionError, match="not traced for"):
        cost(program, {"batch": 0})


def test_difference_lists_axes_shapes_and_costs():
    old = traced("gpt2")
    new = Widen(factor=1.5)(old)
    found = difference(old, new)

    assert {(change.old, change.new) for change in found.axes} == {(80, 120)}
    assert len(found.shapes) == 6
    assert found.values == ()
    assert not found.empty
    text = drawn(difference_table(found))
    assert "mlp@transformer.h.*.mlp  x2" in text
    assert "80 x 48" in text and "120 x 48" in text
    assert json.loads(json.dumps(difference_value(found)))["costs"]["new"]["parameters"] == new.size


def test_difference_sees_values():
    old = traced("skip_mlp")
    name = next(iter(old.tensors))
    new = old.replace(tensors={**old.tensors, name: old.tensors[name] + 1})

    assert difference(old, new).values == (name,)
    assert "old values" in drawn(difference_table(difference(old, new)))
    assert difference(old, old).empty


def test_printing_axes_folds_layers_and_kernels():
    text = str(traced("gpt2").axes)
    rows = {line.split()[0]: line for line in text.splitlines()}

    assert "x2  mlp" in rows["mlp@transformer.h.*.mlp"]
    assert rows["hidden"].split()[1:] == ["hidden", "48", "24", "sites", "in", "transformer"]
    assert "kernel@" not in str(traced("convnext").axes)
    assert "12 kernel axes (size 2, 4, 7)" in str(traced("convnext").axes)


def test_every_axis_is_listed_on_request():
    axes = traced("convnext").axes
    text = drawn(axes_table(axes, every=True))
    listed = [line for line in text.splitlines()[1:] if not line.startswith("frozen: ")]

    assert len(axes_value(axes)) == len(axes.named) == len(listed)
    assert "  frozen" in listed[2]
    assert "frozen: aten.conv2d" in text


def test_folding_keeps_numbers_that_are_shared():
    names = ["a@b.0.layer.2.wi", "a@b.1.layer.2.wi", "a@c", "a@b.0.layer.1.wi"]
    patterns = [(folded.pattern, folded.members) for folded in fold(names, [1, 1, 1, 2])]

    assert patterns == [("a@b.*.layer.2.wi", (0, 1)), ("a@c", (2,)), ("a@b.0.layer.1.wi", (3,))]


def test_groups_hold_every_axis_once():
    named = traced("mobilenet_v2").axes.named
    members = [axis.name for group in grouped(named) for axis in group.axes]

    assert sorted(members) == sorted(axis.name for axis in named)


def test_certificates_say_claim_evidence_and_needs():
    certificate = Widen(seed=5)(traced("gpt2")).certificate
    assert certificate is not None
    text = drawn(certificate_table(certificate))

    assert "exact, proved and tested" in text
    assert "zero in the new units of dimension 0 of" in text
    assert "transformer.h.*.mlp.c_proj.weight  x2" in text
    assert f"seed 5, {certificate.old[:12]} -> {certificate.new[:12]}" in text
    assert certificate_value(certificate)["evidence"] == "proved and tested"


def test_infinite_deviations_are_text_in_json():
    certificate = Widen()(traced("skip_mlp")).certificate
    assert certificate is not None and certificate.test is not None
    trial = certificate.test.trials[0].model_copy(update={"output64": float("inf")})
    test = certificate.test.model_copy(update={"trials": (trial,)})
    value = certificate_value(certificate.model_copy(update={"test": test}))

    assert json.loads(json.dumps(value, allow_nan=False))["test"]["trials"][0]["output64"] == "inf"


def test_a_pass_is_described_by_its_fields_and_its_file():
    found = described(Widen)
    options = {option.name: option for option in found.options}

    assert found.theorem.startswith("widen:") and "Proof." in found.theorem
    assert (options["init"].type, options["init"].default) == ("scaled | copy | zero | mup", "scaled")
    assert options["to"].type == "int"
    assert all(option.doc for option in found.options)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_999, "1 MB"), (6_240_000_000, "6.24 GB")]
)
def test_amounts_are_short(number, text):
    assert amount(number, "B") == text


def test_weights_cost_what_their_masks_leave():
    """An MLP of 16 x 32 and 32 x 8: 2:4 along what is summed over, then a tenth of all entries."""
    program = traced_alone(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 8)), 1, 16)
    cut = Sparsify(pattern="2:4")(program)
    first, second, head = weight_costs(cut)
    assert (first.pattern, first.density, first.keeps) == ("2:4@1", 0.5, True)
    assert (first.flops, first.effective) == (2 * 16 * 32, 16 * 32)
    assert (first.bytes, first.packed) == (4 * 512, 4 * 256 + 256 * 2 // 8)  # two bits for each place in a group
    assert (head.pattern, head.density, head.packed) == ("", 1.0, head.bytes)  # the last layer is left dense
    free = weight_costs(Sparsify(pattern="unstructured", density=0.125)(program))[0]
    assert free.packed == 4 * 64 + 64 + 512 // 256
    assert sum(one.flops for one in (first, second, head)) == cost(program).flops


def test_a_broken_pattern_is_told():
    program = Sparsify(pattern="2:4")(traced_alone(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), 1, 8))
    ones = torch.ones_like(program.tensors["0.weight_mask"])
    broken = program.replace(tensors={**program.tensors, "0.weight_mask": ones})
    (first, *_) = weight_costs(broken)
    assert not first.keeps and first.density == 1.0
    assert "(broken)" in drawn(weights_table([first])) and "does not keep to 2:4@1" in notes_of([first])[0]


def test_factors_have_their_rank_and_layers_are_folded():
    old = traced("gpt2")
    program = Factorize(fraction=0.5)(old)
    found = [one for one in weight_costs(program) if one.rank is not None]
    assert {one.rank for one in found} == {24} and len(found) == 12
    text = drawn(weights_table(weight_costs(program)))
    assert "transformer.h.*.mlp.c_fc.weight_left" in text and "x2" in text and "Masks alone" not in text
    listed = drawn(weights_table(weight_costs(program), every=True))
    assert "transformer.h.0.mlp.c_fc.weight_left" in listed and "transformer.h.1.mlp.c_fc.weight_left" in listed
    shown = drawn(difference_table(difference(old, program)))
    assert "spectral norm" in shown and "weight_right" in shown
    assert len(json.dumps(weights_value(weight_costs(program)))) > 1000
    assert not [one for one in weight_costs(old) if not one.plain]


def test_masks_alone_are_said_to_make_nothing_faster():
    cut = Sparsify()(traced("llama"))
    assert any("Masks alone make nothing faster" in note for note in notes_of(weight_costs(cut)))
    assert sum(one.effective for one in weight_costs(cut)) < sum(one.flops for one in weight_costs(cut))


def test_what_masks_cut_away_is_told_beside_all_operations() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    old = traced_alone(model, 2, 8)
    new = Sparsify(pattern="2:4")(old)
    dense, masked = cost(old), cost(new)
    assert (dense.flops, dense.effective) == (288, 288), "2 * (8 * 12 + 12 * 4)"
    assert (masked.flops, masked.effective) == (288, 192), "half of the first; the second makes outputs"
    shown = drawn(cost_table(dense, masked))
    assert "effective FLOPs" in shown and "x0.67" in shown
    assert "effective" not in drawn(cost_table(dense, dense))

"""Axis inference: the terms that must come out, names by what axes do; and that units can change places."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphgrow.axes import Atom, Product, Sum, Term
from graphgrow.program import Program
from tests.permutation import deviation, permutable
from tests.programs import traced
from tests.zoo import ZOO


def shown(program: Program, parameter: str) -> str:
    """A parameter's terms with letters for atoms in the order in which they come."""
    letters: dict[Atom, str] = {}

    def text(term: Term) -> str:
        if isinstance(term, Atom):
            return letters.setdefault(term, chr(ord("a") + len(letters)))
        if isinstance(term, Product):
            return "*".join(text(part) for part in term.parts) or "1"
        return "(" + " + ".join(text(part) for part in term.parts) + ")"

    return ", ".join(text(term) for term in program.axes.parameters[parameter])


# The table of design section 2: structure found with nothing told about the models.
ORACLES = {
    "gpt2": {
        "transformer.h.0.attn.c_attn.weight": "a, (b*c + b*c + b*d)",
        "transformer.h.0.attn.c_proj.weight": "a*b, c",
    },
    "llama": {
        "model.layers.0.self_attn.q_proj.weight": "a*b*(c + c), d",
        "model.layers.0.self_attn.k_proj.weight": "a*(b + b), c",
        "model.layers.0.self_attn.v_proj.weight": "a*b, c",
        "model.layers.0.self_attn.o_proj.weight": "a, b*c*d",
    },
    "gpt_neox": {"gpt_neox.layers.0.attention.query_key_value.weight": "a*(b + b + c + b + b + c + d), e"},
    "vit": {"vit.embeddings.position_embeddings": "1, (1 + a*b), c"},
    "qwen3": {"model.layers.0.self_attn.q_norm.weight": "(a + a)"},
    "phi3": {"model.layers.0.mlp.gate_up_proj.weight": "(a + a), b"},
    "mixtral": {"model.layers.0.mlp.experts.gate_up_proj": "a, (b + b), c"},
    "densenet": {"convs.2.weight": "a, (b + c + d), e, f"},
}


@pytest.mark.parametrize(("model", "parameter"), [(m, p) for m, terms in ORACLES.items() for p in terms])
def test_terms(model: str, parameter: str) -> None:
    assert shown(traced(model), parameter) == ORACLES[model][parameter]


def test_one_atom_in_all_layers() -> None:
    """Qwen3's rotary pairs are the same axis in every layer and in the frequencies; keys of GPT-2 are not."""
    qwen = traced("qwen3").axes.parameters
    assert qwen["model.layers.0.self_attn.q_norm.weight"] == qwen["model.layers.1.self_attn.q_norm.weight"]
    assert qwen["model.rotary_emb.inv_freq"][0].atoms == qwen["model.layers.0.self_attn.q_norm.weight"][0].atoms
    gpt2 = traced("gpt2").axes.parameters
    first, second = (gpt2[f"transformer.h.{i}.attn.c_attn.bias"][0].atoms for i in (0, 1))
    assert not set(first) & set(second)


NAMES = {
    "gpt2": {
        "hidden",
        "vocab",
        "positions",
        "mlp@transformer.h.0.mlp",
        "heads@transformer.h.1.attn",
        "value@transformer.h.0.attn",
    },
    "llama": {
        "hidden",
        "key",
        "mlp@model.layers.0.mlp",
        "kv_heads@model.layers.0.self_attn",
        "heads@model.layers.0.self_attn",
    },
    "vit": {"hidden", "classes", "features", "mlp@vit.layers.0.mlp"},
    "small_cnn": {"channels@0", "channels@4", "mlp", "classes", "features"},
    "mixtral": {"experts@model.layers.0.mlp", "mlp@model.layers.0.mlp.experts"},
    "t5": {"vocab", "mlp@encoder.block.0.layer.1.DenseReluDense"},
    "group_norm": {"groups@conv_1", "channels@conv_1"},
}


@pytest.mark.parametrize("model", NAMES)
def test_names(model: str) -> None:
    found = {axis.name for axis in traced(model).axes.named}
    assert NAMES[model] <= found, found


@pytest.mark.parametrize("model", ZOO)
def test_names_tell_axes_apart(model: str) -> None:
    names = [axis.name for axis in traced(model).axes.named]
    assert len(names) == len(set(names))


# Width axes that are frozen, each with the reason that must be given. None of the models has one.
FROZEN_WIDTHS = {"mixer": "slides a window along it"}


@pytest.mark.parametrize("model", ZOO)
def test_no_width_is_frozen_without_a_true_reason(model: str) -> None:
    widths = {"hidden", "mlp", "heads", "kv_heads", "key", "value", "channels"}
    frozen = [axis for axis in traced(model).axes.named if axis.role in widths and axis.frozen]
    reason = FROZEN_WIDTHS.get(model)
    assert all(reason is not None and reason in axis.frozen[0] for axis in frozen), [(a.name, a.frozen) for a in frozen]


@pytest.mark.parametrize("model", ZOO)
def test_permutation(model: str) -> None:
    program = traced(model)
    assert permutable(program)
    for axis in permutable(program):
        # float64 sums in another order: some ulps of the largest value
        assert deviation(program, axis) < 1e-11, axis.name


def test_permutation_notices_a_site_left_out() -> None:
    """The oracle itself can fail: with one site not permuted the outputs differ."""
    program = traced("gpt2")
    axis = next(axis for axis in program.axes.named if axis.role == "mlp")
    assert deviation(program, axis, leave=axis.sites[0].parameter) > 1e-3


def test_unknown_operator_freezes() -> None:
    """No rule: the axes keep their sizes, and the operator and source line are the reason."""
    program = traced("skip_mlp")
    node = next(node for node in program.graph.nodes if node.op == "aten.relu.default")
    strange = replace(node, op="aten.strange.default", source="model.py:7 in forward")
    nodes = tuple(strange if n is node else n for n in program.graph.nodes)
    axes = program.replace(graph=replace(program.graph, nodes=nodes)).axes
    reasons = {reason for atom in axes.terms[node.name][-1].atoms for reason in axes.frozen[atom]}
    assert any("aten.strange.default (model.py:7 in forward)" in reason for reason in reasons)


def test_sizes_of_a_sum_add_up() -> None:
    assert Sum.of([Atom(1, 3), Atom(2, 4)]).size == Product.of([Atom(1, 7)]).size

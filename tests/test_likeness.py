"""Programs that write one function in other operators: masks, factors of weights, multipliers, each put in by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from graphgrow.errors import CheckFailed
from graphgrow.graph import WEIGHTS, Argument, Graph, Kind, Node, Ref, TensorType
from graphgrow.program import Program
from graphgrow.prove.forms import stored
from graphgrow.prove.products import linear_map
from graphgrow.verify import certify, check
from graphgrow.verify.likeness import spectral_norm
from tests.programs import traced

torch.set_num_threads(1)

MODELS = ["gpt2", "llama", "t5", "mixtral", "resnet", "vit", "tied_autoencoder"]


def inserted(program: Program, at: str, *new: Node, read: str, tensors: dict[str, Tensor], buffers: bool) -> Program:
    """The program with nodes after the one called `at`; all other nodes read the last one in its place."""
    nodes: list[Node] = []
    ours = {node.name for node in new}
    for node in program.graph.nodes:
        nodes.append(
            node if node.name in ours else node.map(lambda a: Ref(read) if isinstance(a, Ref) and a.name == at else a)
        )
        if node.name == at:
            nodes += new
    nodes.sort(key=lambda node: node.op not in ("input", "parameter"))
    kinds = {**program.kinds, **{name: Kind("buffer" if buffers else "parameter") for name in tensors}}
    return program.replace(
        graph=replace(program.graph, nodes=tuple(nodes)),
        tensors={**program.tensors, **tensors},
        kinds=kinds,
        journal=(),
    )


def weights(program: Program) -> list[tuple[Node, str]]:
    """Linear maps by a parameter, and its name."""
    fixed = stored(program.graph)
    found = [linear_map(program.graph, node, fixed) for node in program.graph.nodes]
    named = [(one.node, program.graph[one.weight]) for one in found if one and one.node.op != "aten.embedding.default"]
    return [(node, str(weight.args[0])) for node, weight in named if weight.op == "parameter"]


def masked(program: Program, name: str, mask: Tensor) -> Program:
    weight = program.graph.parameters[name]
    held = TensorType(weight.shape, "bool")
    new = Node(f"{weight.name}_mask", "parameter", (f"{name}_mask",), (), held)
    product = Node(f"{weight.name}_masked", "aten.mul.Tensor", (Ref(weight.name), Ref(new.name)), (), weight.type)
    return inserted(program, weight.name, new, product, read=product.name, tensors={f"{name}_mask": mask}, buffers=True)


def factored(program: Program, node: Node, name: str, rank: int) -> Program:
    """A linear map by the factors of its weight."""
    old = program.tensors[name].detach().double()
    transposed = node.op == "aten.addmm.default"
    u, s, v = torch.linalg.svd(old.mT if transposed else old, full_matrices=False)
    outer, inner = (u * s.sqrt())[:, :rank], (s.sqrt()[:, None] * v)[:rank]
    factors = [(w.mT.contiguous() if transposed else w).float() for w in (outer, inner)]
    names = [f"{name}_{side}" for side in ("left", "right")]
    made = [
        Node(f"{node.name}_{side}", "parameter", (n,), (), TensorType(tuple(w.shape), WEIGHTS))
        for side, n, w in zip(("left", "right"), names, factors, strict=True)
    ]
    at = 1 if transposed else 0
    data = node.args[at]
    kind = replace(node.tensor, shape=(*node.shape[:-1], rank))
    op = "aten.mm.default" if transposed else node.op
    middle = Node(f"{node.name}_in", op, (data, Ref(made[1].name)), (), kind)
    args: list[Argument] = list(node.args)
    args[at], args[at + 1] = Ref(middle.name), Ref(made[0].name)
    nodes: list[Node] = [*made]
    for one in program.graph.nodes:
        nodes += [middle, replace(node, args=tuple(args))] if one.name == node.name else [one]
    nodes.sort(key=lambda one: one.op not in ("input", "parameter"))
    nodes = [one for one in nodes if one.op != "parameter" or str(one.args[0]) != name]
    tensors = {n: t for n, t in program.tensors.items() if n != name} | dict(zip(names, factors, strict=True))
    kinds = {n: program.kinds.get(n, Kind("parameter")) for n in tensors}
    return program.replace(graph=replace(program.graph, nodes=tuple(nodes)), tensors=tensors, kinds=kinds, journal=())


def linears(program: Program) -> list[tuple[Node, str]]:
    found = [
        (node, name) for node, name in weights(program) if node.op in ("aten.linear.default", "aten.addmm.default")
    ]
    return [(n, w) for n, w in found if len(program.graph.users[program.graph.parameters[w].name]) == 1]


@pytest.mark.parametrize("model", MODELS)
def test_a_mask_of_ones_is_proved_to_change_nothing(model):
    old = traced(model)
    new = old
    for name in list(dict.fromkeys(name for _, name in weights(old)))[::3]:
        new = masked(new, name, torch.ones(old.tensors[name].shape, dtype=torch.bool))
    for pair in ((old, new), (new, old)):
        found = check(*pair)
        assert found.proof and found.proof.holds and found.holds, str(found)
        assert found.test and found.test.holds


@pytest.mark.parametrize("model", MODELS)
def test_a_mask_that_hides_one_weight_is_no_proof_and_no_test(model):
    old = traced(model)
    _, name = weights(old)[0]
    mask = torch.ones(old.tensors[name].shape, dtype=torch.bool)
    mask.view(-1)[3] = False
    new = masked(old, name, mask)
    found = check(old, new)
    assert not found.holds and found.proof and not found.proof.holds
    assert name in found.proof.why
    with pytest.raises(CheckFailed):
        certify(old, new, spec="mask", claim="Exact")
    changed = certify(old, new, spec="mask", claim="Changes")
    assert changed.holds and changed.claim == "Changes" and changed.measured
    within = certify(old, new, spec="mask", claim="Within")
    value = abs(float(old.tensors[name].detach().reshape(-1)[3]))
    assert [bound.at for bound in within.bounds] == [name]
    assert value <= within.bounds[0].value <= 1.01 * value


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "vit"])
def test_factors_of_full_rank_are_proved_but_for_their_rounding(model):
    old = traced(model)
    node, name = linears(old)[0]
    new = factored(old, node, name, min(old.tensors[name].shape))
    for pair in ((old, new), (new, old)):
        found = check(*pair)
        assert found.proof and found.proof.holds and found.holds, str(found)
        assert "rounding of their factors" in found.proof.why
    lying = new.tensors[f"{name}_left"].clone()
    lying[1, 2] += 100 * torch.finfo(lying.dtype).eps * lying.norm(dim=0).max()
    found = check(old, new.replace(tensors={**new.tensors, f"{name}_left": lying}))
    assert not found.holds, "a single entry, off by more than rounding"


@pytest.mark.parametrize("model", ["gpt2", "llama", "t5", "vit"])
def test_factors_of_less_rank_are_within_the_first_singular_value_left_out(model):
    old = traced(model)
    node, name = linears(old)[-1]
    values = torch.linalg.svdvals(old.tensors[name].detach().double())
    rank = len(values) // 2
    new = factored(old, node, name, rank)
    assert not check(old, new).holds
    found = certify(old, new, spec="factors", claim="Within")
    assert found.claim == "Within" and found.holds and found.measured and found.measured.norm > 0
    (bound,) = found.bounds
    assert bound.at == name
    assert float(values[rank]) <= bound.value <= 1.05 * float(values[rank])
    share = float(values[rank:].square().sum().sqrt() / values.square().sum().sqrt())
    assert bound.share == pytest.approx(share, rel=1e-4)


def test_a_factored_program_with_another_change_is_not_within():
    """The bias lies: it is a weight too, and its difference is a bound of its own."""
    old = traced("gpt2")
    node, name = linears(old)[0]
    new = factored(old, node, name, 4)
    bias = str(old.graph[node.args[0].name].args[0])  # type: ignore[union-attr]
    lying = new.replace(tensors={**new.tensors, bias: new.tensors[bias].detach() + 1e-3})
    found = certify(old, lying, spec="factors", claim="Within")
    assert {bound.at for bound in found.bounds} == {name, bias}


def wrong(change: Callable[[Node], Node], at: str) -> Callable[[Program], Program]:
    def lie(program: Program) -> Program:
        nodes = tuple(change(node) if node.name == at else node for node in program.graph.nodes)
        return program.replace(graph=replace(program.graph, nodes=nodes))

    return lie


def test_something_between_two_factors_is_no_product():
    old = traced("llama")
    node, name = linears(old)[0]
    new = factored(old, node, name, min(old.tensors[name].shape))
    middle = new.graph[f"{node.name}_in"]
    for op in ("aten.relu.default", "aten.gelu.default"):
        between = Node("between", op, (Ref(middle.name),), (), middle.type)
        lying = inserted(new, middle.name, between, read="between", tensors={}, buffers=False)
        found = check(old, lying)
        assert not found.holds and not (found.proof and found.proof.holds)


def multiplied(program: Program, at: str, number: float, factor: str) -> Program:
    """A value times a number, and the weight that makes it over that number."""
    node = program.graph[at]
    new = Node(f"{at}_times", "aten.mul.Tensor", (Ref(at), number), (), node.type)
    made = inserted(program, at, new, read=new.name, tensors={}, buffers=False)
    outputs = replace_output(program.graph, at, new.name)
    made = made.replace(graph=replace(made.graph, outputs=outputs))
    return made.replace(tensors={**made.tensors, factor: made.tensors[factor].detach() / number})


def replace_output(graph: Graph, old: str, new: str):
    from graphgrow.prove.forms import _renamed  # pyright: ignore[reportPrivateUsage]

    return _renamed(graph.outputs, {name: new if name == old else name for name in graph.output_names})


@pytest.mark.parametrize("model", ["llama", "t5", "mixtral"])
@pytest.mark.parametrize("number", [0.5, 3.0])
def test_a_multiplier_and_a_weight_over_it_are_proved(model, number):
    old = traced(model)
    node, name = next((n, w) for n, w in reversed(linears(old)) if not takes_bias(n))
    new = multiplied(old, node.name, number, name)
    found = check(old, new)
    assert found.proof and found.proof.holds and found.holds, str(found)
    lying = new.replace(tensors={**new.tensors, name: new.tensors[name] * (1 + 1e-5)})
    assert not check(old, lying).holds


def takes_bias(node: Node) -> bool:
    return node.op != "aten.linear.default" or isinstance(node.argument(2, "bias"), Ref)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (64, 64), (1, 7)])
def test_the_bound_of_a_spectral_norm(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    largest = float(torch.linalg.svdvals(matrix)[0])
    assert largest <= spectral_norm(matrix) <= 1.04 * largest
    assert spectral_norm(torch.zeros(3, 3)) == 0.0

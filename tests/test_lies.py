"""Planted errors: programs that say they are the old one, grown, and are not. `verify` must find every one.

Each lie is told beside the honest program it was made from, which passes; and each test names the evidence that finds
the lie: the alignment of the graphs (CheckFailed), the proof, the numeric test, or both of the last two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphgrow import ops
from graphgrow.certificate import Certificate, Constraint, Proof
from graphgrow.errors import CheckFailed, Refusal
from graphgrow.graph import Argument, Node, Ref
from graphgrow.program import Program
from graphgrow.prove import ANY, SAME, ZERO, Assignment, Block, Derivation, Prover
from graphgrow.prove.rows import ROWS, Context, Value
from graphgrow.rewrite import Fills, Resizing, Rewriter, resize
from graphgrow.rewrite.blocks import view_cells
from graphgrow.tracing import trace
from graphgrow.verify import certify, check, equivalence
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.proof import Proved, prove
from passes import Widen
from tests import permutation
from tests.programs import traced

torch.set_num_threads(1)

MODELS = ["gpt2", "llama", "small_cnn", "densenet", "mixtral", "tied_autoencoder", "mobilenet_v2"]
TINY = 1e-7  # the smallest error there is to find; see the numbers in `equivalence`
UNPROVED = Proved(Proof(holds=False, why=""))


@dataclass(frozen=True)
class Honest:
    """A program, the same grown, and the certificate that is true of them."""

    old: Program
    new: Program
    certificate: Certificate

    @property
    def constraints(self) -> list[Constraint]:
        assert self.certificate.proof
        return [row for row in self.certificate.proof.constraints if row.fill == "zero"]


@cache
def honest(model: str) -> Honest:
    """One axis widened by three units, or all where that is the model's point (ties, concatenations)."""
    old = traced(model)
    names = [axis.name for axis in Widen().chosen(old)]
    pattern = "auto" if model in ("tied_autoencoder", "densenet", "small_cnn") else names[0]
    new = Widen(axis=pattern, factor=1.3)(old)
    return Honest(old, new, passes(old, new))


def passes(old: Program, new: Program) -> Certificate:
    found = check(old, new)
    assert found.proof and found.test
    assert found.proof.holds and found.test.holds and found.holds, str(found)
    return found


def rejected(old: Program, new: Program, *, proof: bool = False, test: bool = False) -> Certificate:
    """The certificate does not hold, `certify` refuses, and exactly the evidence said to be fooled is."""
    found = check(old, new)
    assert found.proof and found.test
    assert (found.proof.holds, found.test.holds) == (proof, test), str(found)
    assert not found.holds and found.evidence == ("proved" if proof else "nothing")
    if len(old.graph.nodes) < 100:  # that it asks `check` is seen on small programs
        with pytest.raises(CheckFailed, match="does not keep the function"):
            certify(old, new, spec="a lie", claim="Exact")
    return found


def unlike(old: Program, new: Program) -> None:
    """Other graphs, in which some output is another value: no proof, and without one no test speaks for them."""
    found = check(old, new)
    assert found.proof and not found.proof.holds and found.test is None and not found.holds
    with pytest.raises(CheckFailed, match="what the old program does not"):
        certify(old, new, spec="a lie", claim="Exact")


def unaligned(old: Program, new: Program, match: str) -> None:
    """Not even comparable: the graphs differ in more than the sizes of axes."""
    for judge in (lambda: check(old, new), lambda: certify(old, new, spec="a lie", claim="Exact")):
        with pytest.raises(CheckFailed, match=match) as caught:
            judge()
        assert caught.value.found


def edited(program: Program, name: str, change: Callable[[Tensor], object]) -> Program:
    """The program with one tensor changed in place on a copy."""
    tensor = program.tensors[name].detach().clone()
    change(tensor)
    assert not torch.equal(tensor.nan_to_num(0.5), program.tensors[name].nan_to_num(0.5)) or tensor.isnan().any()
    return program.replace(tensors={**program.tensors, name: tensor})


def rebuilt(program: Program, name: str, change: Callable[[Node], Node]) -> Program:
    """The program with one node exchanged."""
    nodes = tuple(change(node) if node.name == name else node for node in program.graph.nodes)
    assert nodes != program.graph.nodes
    return program.replace(graph=replace(program.graph, nodes=nodes))


def new_entries(case: Honest, row: Constraint) -> list[tuple[int, ...]]:
    """Places in a parameter that must be zero: new along the constraint's dimension and zero now, old elsewhere."""
    terms = case.old.axes.parameters[row.parameter]
    resizing = Resizing(align(case.old, case.new).sizes, {})
    mask = torch.ones(case.new.tensors[row.parameter].shape, dtype=torch.bool)
    for dim, term in enumerate(terms):
        new = torch.from_numpy(resizing.source(term) < 0)
        shape = [1] * len(terms)
        shape[dim] = -1
        mask &= (new if dim == row.dim else ~new).reshape(shape)
    mask &= case.new.tensors[row.parameter] == 0
    return [tuple(place) for place in mask.nonzero().tolist()]


def put(place: tuple[int, ...], value: float) -> Callable[[Tensor], object]:
    return lambda tensor: tensor.__setitem__(place, value)


def nudge(place: tuple[int, ...]) -> Callable[[Tensor], object]:
    """Off by 1e-7, or by one unit in the last place where that is more."""

    def change(tensor: Tensor) -> None:
        value = tensor[place]
        moved = value + TINY
        tensor[place] = moved if moved != value else torch.nextafter(value, torch.tensor(torch.inf))

    return change


# In the new blocks


@pytest.mark.parametrize("model", MODELS)
def test_a_forgotten_zero_block(model: str) -> None:
    """The block that must be zero holds values like its neighbours. Every constraint in turn, on large models a few."""
    case = honest(model)
    assert case.constraints
    for row in case.constraints[: 1 if model == "mobilenet_v2" else 3]:
        places = new_entries(case, row)
        assert places
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(len(places), generator=generator) * 0.2

        def fill(tensor: Tensor, places: list[tuple[int, ...]] = places, values: Tensor = values) -> None:
            for place, value in zip(places, values, strict=True):
                tensor[place] = value

        found = rejected(case.old, edited(case.new, row.parameter, fill))
        assert found.proof and "mixes new units" in found.proof.why
        assert found.test and found.test.worst
        # values of 0.2 move outputs or gradients visibly: five orders above what rounding allows
        assert max(found.test.worst.output64, found.test.worst.gradient64) > 1e-8


@pytest.mark.parametrize("model", MODELS)
def test_one_zero_entry_off(model: str) -> None:
    case = honest(model)
    for row in case.constraints[: 1 if model == "mobilenet_v2" else 2]:
        rejected(case.old, edited(case.new, row.parameter, put(new_entries(case, row)[0], TINY)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_free_blocks_hold_numbers(value: float) -> None:
    """0 * NaN is NaN: what is free may hold any number, and these are none."""
    case = honest("small_cnn")
    found = rejected(case.old, edited(case.new, "0.bias", lambda tensor: tensor[-1].fill_(value)))
    assert found.proof and "0.bias" in found.proof.why and "finite" in found.proof.why


def test_free_values_that_overflow() -> None:
    """Finite in float64 and in real arithmetic, so the proof holds; infinite in the program's own float32, so the test
    of the program as it is fails."""
    case = honest("small_cnn")
    steep = edited(case.new, "1.weight", lambda tensor: tensor[12:].fill_(1e3))
    rejected(case.old, edited(steep, "0.bias", lambda tensor: tensor[12:].fill_(3e38)), proof=True)
    passes(case.old, edited(steep, "0.bias", lambda tensor: tensor[12:].fill_(3e4)))


@pytest.mark.parametrize("value", [-1.0, 0.0, -1e-30])
def test_a_variance_is_positive(value: float) -> None:
    case = honest("small_cnn")
    found = rejected(case.old, edited(case.new, "1.running_var", lambda tensor: tensor[-1].fill_(value)))
    assert found.proof and "even undefined" in found.proof.why
    passes(case.old, edited(case.new, "1.running_var", lambda tensor: tensor[-1].fill_(0.3)))


def test_division_of_zero_by_zero() -> None:
    """x / gain with new gains of zero: 0 / 0 in the units that must not matter."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.gain = nn.Linear(3, 6), nn.Linear(6, 4), nn.Parameter(torch.rand(6) + 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(x)) / self.gain)

    torch.manual_seed(0)
    old = trace(Scaled(), {"x": torch.randn(2, 3)})
    new = Widen(factor=1.5)(old)
    passes(old, new)
    zeroed = edited(edited(new, "gain", lambda t: t[6:].zero_()), "up.weight", lambda t: t[6:].zero_())
    rejected(old, edited(zeroed, "up.bias", lambda t: t[6:].zero_()))


# In the old blocks


@pytest.mark.parametrize("model", MODELS)
def test_an_old_entry_off(model: str) -> None:
    """One entry of a bias (of a norm's gain where there is none) by 1e-7: at places that are not new."""
    case = honest(model)
    vectors = [
        n
        for n, t in case.new.tensors.items()
        if t.dim() == 1 and t.is_floating_point() and n in case.old.graph.parameters
    ]
    biases = [name for name in vectors if "bias" in name and "running" not in name] or [
        n for n in vectors if "norm" in n
    ]
    assert biases
    for name in {biases[0], biases[-1] if model != "mobilenet_v2" else biases[0]}:
        found = rejected(case.old, edited(case.new, name, nudge((0,))))
        assert found.proof and name in found.proof.why


@pytest.mark.parametrize("model", MODELS)
def test_the_old_block_of_a_resized_weight(model: str) -> None:
    case = honest(model)
    name = case.constraints[0].parameter
    place = (0,) * case.new.tensors[name].dim()
    found = rejected(case.old, edited(case.new, name, nudge(place)))
    assert found.proof and found.proof.why == f"the old block of {name} has other values than before"


def test_values_that_random_inputs_do_not_read() -> None:
    """A position beyond the lengths tried and a counter: the outputs agree, and the certificate still does not hold."""
    case = honest_opt()
    table = "model.decoder.embed_positions.weight"
    lie = edited(case.new, table, lambda tensor: tensor[30].add_(1.0))
    found = rejected(case.old, lie)
    assert found.test and found.test.worst and table in found.test.why
    assert found.test.worst.output64 <= found.test.worst.tolerance64, "numbers alone would have been fooled"
    cnn = honest("small_cnn")
    found = rejected(cnn.old, edited(cnn.new, "1.num_batches_tracked", lambda tensor: tensor.add_(1)))
    assert found.proof and "num_batches_tracked" in found.proof.why


@cache
def honest_opt() -> Honest:
    old = traced("opt")
    new = Widen(factor=1.3)(old)
    return Honest(old, new, passes(old, new))


def test_a_buffer_changed() -> None:
    case = honest("small_cnn")
    for buffer in ("1.running_mean", "5.running_var"):
        found = rejected(case.old, edited(case.new, buffer, nudge((0,))))
        assert found.proof and buffer in found.proof.why


def test_a_rotary_frequency_changed() -> None:
    case = honest("llama")
    name = next(name for name in case.new.tensors if name.endswith("inv_freq") and name in case.new.graph.parameters)
    rejected(case.old, edited(case.new, name, nudge((1,))))


def test_units_permuted_in_one_site_only() -> None:
    """Swapped in the up projection but not in the down projection. Swapped in all sites it is the same function, which
    the numbers say; but nothing is proved of programs whose old values moved, so neither holds."""
    case = honest("tied_autoencoder")

    def swap(tensor: Tensor) -> None:
        tensor[[0, 1]] = tensor[[1, 0]]

    once = edited(case.new, "inner_bias", swap)
    found = rejected(case.old, once)
    assert found.test and found.test.worst and found.test.worst.output64 > 1e-3
    axis = next(axis for axis in case.new.axes.named if axis.name == "mlp@inner")
    order = [1, 0, *range(2, int(str(axis.size)))]
    everywhere = resize(case.new, Resizing({axis.atom: len(order)}, {axis.atom: order}), Fills({}))
    assert everywhere.digest != case.new.digest
    found = rejected(case.old, everywhere)
    assert found.test and found.test.worst and found.test.worst.output64 <= found.test.worst.tolerance64


# Ties, types, names of tensors


def test_a_tied_weight_missed() -> None:
    """The tie is gone, or the weight under both names is another one, or the second use reads a copy of its own."""
    case = honest("gpt2")
    assert case.new.aliases
    unaligned(case.old, case.new.replace(aliases={}), "ties")
    owner = next(iter(case.new.aliases.values()))
    found = rejected(case.old, edited(case.new, owner, nudge((0, 0))))
    assert found.proof and owner in found.proof.why


def test_the_second_use_of_a_weight_reads_a_copy() -> None:
    """The tied autoencoder with the decoder's weight untied, first equal, then off."""
    case = honest("tied_autoencoder")
    graph = case.new.graph
    first = graph.parameters["outer.weight"]
    assert len(graph.users[first.name]) > 1
    last = graph.users[first.name][-1]
    copy = replace(first, name="copied", args=("copied",))
    swap = last.map(lambda item: Ref("copied") if item == Ref(first.name) else item)
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(swap if node is last else node)
        if node is first:
            nodes.append(copy)
    tensors = {**case.new.tensors, "copied": case.new.tensors["outer.weight"] + TINY}
    kinds = {**case.new.kinds, "copied": case.new.kinds["outer.weight"]}
    unlike(case.old, case.new.replace(graph=replace(graph, nodes=tuple(nodes)), tensors=tensors, kinds=kinds))


def test_tensors_of_another_type_or_name() -> None:
    case = honest("small_cnn")
    tensors = case.new.tensors
    for name in ("0.weight", "12.bias"):  # resized, and left alone
        unaligned(case.old, case.new.replace(tensors={**tensors, name: tensors[name].double()}), "torch.float64")
    unaligned(case.old, case.new.replace(tensors={**tensors, "stray": torch.zeros(3)}), "stray")
    unaligned(case.old, case.new.replace(tensors={n: t for n, t in tensors.items() if n != "0.weight"}), "0.weight")
    unaligned(case.old, case.new.replace(tensors={**tensors, "0.weight": tensors["0.weight"][1:]}), "of shape")
    unaligned(case.old, case.new.to("float64"), "float64")
    role = replace(case.new.kinds["12.bias"], trainable=False)
    unaligned(case.old, case.new.replace(kinds={**case.new.kinds, "12.bias": role}), "kinds")


# In the graph. Alignment finds these; that the numbers would find them too is shown below.


def nodes_of(program: Program, op: str) -> list[Node]:
    found = [node for node in program.graph.nodes if node.op == op]
    assert found, op
    return found


def with_argument(position: int, value: Argument) -> Callable[[Node], Node]:
    def change(node: Node) -> Node:
        return replace(node, args=(*node.args[:position], value, *node.args[position + 1 :]))

    return change


def add_to(value: Argument, place: int, amount: int) -> Argument:
    assert isinstance(value, tuple) and isinstance(value[place], int)
    return (*value[:place], value[place] + amount, *value[place + 1 :])  # type: ignore[operator]


def _static(argument: Argument) -> int | None:
    """The first place in a list of sizes that holds a plain number."""
    if not isinstance(argument, tuple):
        return None
    return next((i for i, item in enumerate(argument) if isinstance(item, int) and item > 0), None)


LITERALS = {
    "view size": ("gpt2", "aten.reshape.default", 1, None),
    "split size": ("gpt2", "aten.split_with_sizes.default", 1, None),
    "normalized_shape": ("gpt2", "aten.layer_norm.default", 1, None),
    "slice end": ("llama", "aten.slice.Tensor", 3, 1),
    "slice start": ("llama", "aten.slice.Tensor", 2, 1),
    "conv groups": ("mobilenet_v2", "aten.conv2d.default", 6, 1),
    "padding": ("small_cnn", "aten.conv2d.default", 4, None),
    "gathered experts": ("mixtral", "aten.topk.default", 1, 1),
}


@pytest.mark.parametrize("lie", LITERALS)
def test_a_wrong_number_in_the_graph(lie: str) -> None:
    model, op, position, amount = LITERALS[lie]
    case = honest(model)
    for node in nodes_of(case.new, op):
        value = node.argument(position, "")
        if amount is None and (place := _static(value)) is not None:
            wrong = rebuilt(case.new, node.name, with_argument(position, add_to(value, place, 1)))
        elif amount is not None and isinstance(value, int):
            wrong = rebuilt(case.new, node.name, with_argument(position, value + amount))
        else:
            continue
        unaligned(
            case.old, wrong, "does not follow from its axes|where the old program has|mean different things|contradict"
        )
        return
    pytest.fail(f"no {op} with a number to change")


def test_the_literal_that_was_not_grown() -> None:
    """A depthwise convolution's groups as they were, where the channels have grown."""
    case = honest("mobilenet_v2")
    grown = [
        n
        for n in nodes_of(case.new, "aten.conv2d.default")
        if n != case.old.graph[n.name] and n.argument(6, "groups", 1) != 1
    ]
    assert grown
    wrong = rebuilt(case.new, grown[0].name, lambda node: replace(node, args=case.old.graph[node.name].args))
    unaligned(case.old, wrong, "does not follow from its axes|contradict")


def test_a_literal_where_the_batch_belongs() -> None:
    """Right at batch 2 only."""
    case = honest("gpt2")
    node = next(n for n in nodes_of(case.new, "aten.reshape.default") if any(str(s) == "batch" for s in n.shape))
    sizes = node.args[1]
    assert isinstance(sizes, tuple)
    wrong = rebuilt(case.new, node.name, with_argument(1, tuple(2 if str(size) == "batch" else size for size in sizes)))
    unaligned(case.old, wrong, "does not follow from its axes|where the old program has")


@pytest.mark.parametrize(
    ("model", "op"),
    [("gpt2", "aten.layer_norm.default"), ("small_cnn", "aten.batch_norm.default"), ("llama", "aten.add.Tensor")],
)
def test_another_epsilon(model: str, op: str) -> None:
    case = honest(model)
    small = {1e-5, 1e-6}
    node = next(n for n in nodes_of(case.new, op) if any(a in small for a in n.args if isinstance(a, float)))
    change = lambda item: {1e-5: 1e-6, 1e-6: 1e-5}.get(item, item) if isinstance(item, float) else item  # noqa: E731
    wrong = rebuilt(case.new, node.name, lambda n: n.map(change))
    found = rejected(case.old, wrong)
    assert found.proof and "mixes new units" in found.proof.why
    assert numbers(case, wrong) > 1e-9, "the numeric test alone finds it"


def test_another_attention_scale() -> None:
    case = honest("gpt2")
    node = nodes_of(case.new, "aten.scaled_dot_product_attention.default")[0]
    scale = dict(node.kwargs)["scale"]
    assert isinstance(scale, float)
    wrong = rebuilt(case.new, node.name, lambda n: n.map(lambda item: scale * 1.001 if item == scale else item))
    rejected(case.old, wrong)
    assert numbers(case, wrong) > 1e-7


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "slope": lambda x: F.leaky_relu(x, 0.1),
    "exponent": lambda x: x.abs() ** 1.5,
    "upper limit": lambda x: x.clamp(-0.5, 0.7),
    "constant": lambda x: x * torch.full_like(x, 0.3),
    "shape of a function": lambda x: F.elu(x, 0.7),
    "epsilon of a group norm": lambda x: F.group_norm(x, 2, eps=0.1),
    "choice": lambda x: torch.where(x > 0.0, x, 0.5),
    "filling": lambda x: x.masked_fill(x > 0.0, 0.3),
    "threshold": lambda x: (x > 0.1) * x,
    "weight of an interpolation": lambda x: torch.lerp(x, x * x, 0.3),
    "factor of a summand": lambda x: torch.add(x, x.relu(), alpha=0.5),
    "minuend": lambda x: 0.5 - x,
    "dividend": lambda x: 1.7 / (x * x + 1),
}


@pytest.mark.parametrize("number", NUMBERS)
def test_another_number(number: str) -> None:
    """Numbers may be multiplied where something takes the factor back. Nothing does, here."""

    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(NUMBERS[number](self.up(x)))

    torch.manual_seed(0)
    old = trace(Numbers(), {"x": torch.randn(2, 5)})
    new = Widen()(old)
    scalable = [
        (n, a) for n in new.graph.nodes for a in (*n.args, *dict(n.kwargs).values()) if isinstance(a, float) and a
    ]
    assert scalable
    for node, value in scalable:
        change = lambda item, value=value: 1.5 * value if item == value else item  # noqa: E731
        rejected(old, rebuilt(new, node.name, lambda n, change=change: n.map(change)))


# Growth of the residual stream and of keys: old weights and numbers are multiplied


@cache
def hidden(model: str, factor: float = 1.5) -> Honest:
    """Zeros in llama, means in gpt2, copies in bert."""
    return by_role(model, "hidden", factor)


@cache
def by_role(model: str, role: str, factor: float) -> Honest:
    old = traced(model)
    axis = next(axis for axis in old.axes.named if axis.role == role)
    rewriter = Rewriter(old)
    rewriter.grow({axis.atom: int(int(str(axis.size)) * factor)}, rescale=True)
    return Honest(old, rewriter.program, passes(old, rewriter.program))


def rows(case: Honest, *fills: str) -> list[Constraint]:
    assert case.certificate.proof
    found = [row for row in case.certificate.proof.constraints if row.fill in fills]
    assert found
    return found


@pytest.mark.parametrize("change", [1 / 0.8164965809, 1 + 1e-6, -1.0])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_gain_that_does_not_make_up_for_the_new_units(model: str, change: float) -> None:
    """Gains as they were, off by 1e-6, of the other sign."""
    case = hidden(model)
    for row in rows(case, "scaled")[::4]:
        gain = case.new.tensors[row.parameter]
        size = case.old.tensors[row.parameter].shape[0]
        assert torch.allclose(gain[:size], case.old.tensors[row.parameter] * (2 / 3) ** 0.5)
        found = rejected(
            case.old, edited(case.new, row.parameter, lambda tensor, size=size: tensor[:size].mul_(change))
        )
        assert found.proof and "old block" in found.proof.why


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_an_epsilon_that_was_not_rescaled(model: str) -> None:
    """The first norm's, the last one's, and one that is off by a millionth."""
    case = hidden(model)
    changed = [node.name for node in case.new.graph.nodes if other_number(case, node)]
    assert len(changed) == 5
    for name in (changed[0], changed[-1]):
        before, after = other_number(case, case.new.graph[name])
        for wrong in (before, after * (1 + 1e-6)):
            swap = lambda item, after=after, wrong=wrong: wrong if item == after else item  # noqa: E731
            found = rejected(case.old, rebuilt(case.new, name, lambda node, swap=swap: node.map(swap)))
            assert found.test and found.test.worst and found.test.worst.output64 > 1e-11


def other_number(case: Honest, node: Node) -> tuple[float, ...]:
    """A number in a node's arguments, as it was and as it is now; empty when none has changed."""
    old = case.old.graph[node.name]
    pairs = zip((*old.args, *dict(old.kwargs).values()), (*node.args, *dict(node.kwargs).values()), strict=True)
    return next(((a, b) for a, b in pairs if a != b and isinstance(a, float) and isinstance(b, float)), ())


@pytest.mark.parametrize("off", [1e-4, 1e-6])
def test_one_unit_off_the_mean(off: float) -> None:
    """In a table, a matrix and a bias that write the stream."""
    case = hidden("gpt2")
    written = rows(case, "mean")
    for row in (written[0], written[2], written[3]):
        place = [0] * case.new.tensors[row.parameter].dim()
        place[row.dim] = -1
        found = check(case.old, edited(case.new, row.parameter, lambda t, place=place: t[tuple(place)].add_(off)))
        assert found.proof and not found.proof.holds and not found.holds


def test_a_mean_of_other_units() -> None:
    """The mean of all but one; the mean in the first new unit, the second copied from it and scaled."""
    case = hidden("gpt2")
    row = rows(case, "mean")[0]
    size = case.old.tensors[row.parameter].shape[1]
    rejected(case.old, edited(case.new, row.parameter, lambda t: t[:, -1].copy_(t[:, 1:size].mean(1))))
    rejected(case.old, edited(case.new, row.parameter, lambda t: t[:, -1].mul_(1.001)))


def test_a_bias_of_a_norm_that_is_not_zero() -> None:
    case = hidden("gpt2")
    for row in [row for row in rows(case, "zero") if row.parameter.endswith("bias")][::2]:
        rejected(case.old, edited(case.new, row.parameter, lambda t: t[-1].fill_(TINY)))


def test_copies_permuted() -> None:
    """New units in another order than everywhere else, in a writer, a reader, a gain; two swapped only."""
    case = hidden("bert", 2)
    copies = [row for row in rows(case, "copy") if row.dim >= 0]
    writer = next(row for row in copies if row.dim == 0 and row.parameter.endswith("output.dense.weight"))
    reader = next(row for row in copies if row.dim == 1 and row.parameter.endswith("query.weight"))
    gain = next(row for row in copies if row.parameter.endswith("output.LayerNorm.weight"))
    for row in (writer, reader, gain):
        size = case.old.tensors[row.parameter].shape[row.dim]

        def swap(tensor: Tensor, dim: int = row.dim, size: int = size) -> None:
            moved = tensor.transpose(0, dim)
            moved[[size, size + 1]] = moved[[size + 1, size]]

        def turn(tensor: Tensor, dim: int = row.dim, size: int = size) -> None:
            new = tensor.narrow(dim, size, size)
            new.copy_(new.roll(1, dim))

        for change in (swap, turn):
            rejected(case.old, edited(case.new, row.parameter, change))


def test_copies_that_are_not_halved() -> None:
    """A reader of the doubled stream whose new columns are the old ones; and one whose halves are 0.4 and 0.6, which
    add up: that one is the same function."""
    case = hidden("bert", 2)
    row = next(row for row in rows(case, "copy") if row.parameter.endswith("query.weight"))
    size = case.old.tensors[row.parameter].shape[1]
    rejected(case.old, edited(case.new, row.parameter, lambda t: t[:, size:].mul_(2)))

    def uneven(tensor: Tensor) -> None:
        tensor[:, :size].mul_(0.8)
        tensor[:, size:].mul_(1.2)

    passes(case.old, edited(case.new, row.parameter, uneven))


def test_an_attention_scale_changed_without_the_keys() -> None:
    """The scale follows the new size, keys make up for it: one without the other, or keys of one layer only."""
    case = by_role("llama", "key", 1.5)
    node = next(n for n in nodes_of(case.new, "aten.scaled_dot_product_attention.default") if other_number(case, n))
    before, after = other_number(case, node)
    rejected(case.old, rebuilt(case.new, node.name, lambda n: n.map(lambda item: before if item == after else item)))
    row = rows(case, "scaled")[0]
    rejected(case.old, edited(case.new, row.parameter, lambda tensor: tensor.mul_(after / before)))


# What naive growth gets wrong: each error is there (it is not rounding) and is rejected


VISIBLE = 1e-5  # of outputs in float64; what holds deviates by 1e-14


def in_float64(old: Program, role: str, size: int) -> Honest:
    """Grown and stored in float64: factors are rounded by nothing that is seen."""
    old = old.to("float64")
    (axis,) = (axis for axis in old.axes.named if axis.role == role)
    rewriter = Rewriter(old)
    rewriter.grow({axis.atom: size})
    return Honest(old, rewriter.program, passes(old, rewriter.program))


def visibly_wrong(case: Honest, wrong: Program) -> None:
    """The lie is rejected by proof and test, and outputs are off by more than rounding in float32; the honest program's
    are not off."""
    inputs = case.old.example()
    outputs = [permutation.run(program, inputs) for program in (case.old, case.new, wrong)]
    honest_off, off = (max(float((a - b).abs().max()) for a, b in zip(outputs[0], o, strict=True)) for o in outputs[1:])
    assert honest_off < 1e-10 and off > VISIBLE
    rejected(case.old, wrong)


def test_naive_hidden_growth_without_the_rule_for_epsilon() -> None:
    """All norms keep their eps; small activations (deviation 0.01) let it show."""
    quiet = edited(traced("llama"), "model.embed_tokens.weight", lambda t: t.mul_(0.01 / t.std()))
    case = in_float64(quiet, "hidden", 72)
    nodes = tuple(case.old.graph[n.name] if other_number(case, n) else n for n in case.new.graph.nodes)
    kept = [replace(old, type=new.type) for old, new in zip(nodes, case.new.graph.nodes, strict=True)]
    visibly_wrong(case, case.new.replace(graph=replace(case.new.graph, nodes=tuple(kept))))


def test_naive_hidden_growth_under_layer_norms() -> None:
    """Zeros in the new units, where layer norms need the mean."""
    case = in_float64(traced("gpt2"), "hidden", 72)
    tensors = dict(case.new.tensors)
    for row in rows(case, "mean"):
        tensors[row.parameter] = tensors[row.parameter].detach().clone()
        tensors[row.parameter].narrow(row.dim, 48, 24).zero_()
    visibly_wrong(case, case.new.replace(tensors=tensors))


def test_naive_key_growth_under_rotary_positions() -> None:
    """Frequencies computed anew for the new size; or new units after all old ones: pairs lie half a head apart."""
    case = in_float64(traced("llama"), "key", 7)  # pairs of units, from 5
    name = next(name for name in case.new.tensors if name.endswith("inv_freq") and name in case.new.graph.parameters)
    visibly_wrong(case, edited(case.new, name, lambda t: t.copy_(10000 ** (-torch.arange(7) / 7))))
    old_first = torch.tensor([*range(5), *range(7, 12), 5, 6, 12, 13])
    tensors = dict(case.new.tensors)
    for name in tensors:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = tensors[name].detach().unflatten(0, (-1, 14))[:, old_first].flatten(0, 1)
    visibly_wrong(case, case.new.replace(tensors=tensors))


def moved(program: Program, old: Program) -> dict[str, bool]:
    """Whether anything new in a parameter has changed after three steps of Adam."""
    torch.manual_seed(0)
    module = program.module().train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        logits = module(**program.example(seed=seed))["logits"]
        F.cross_entropy(logits.flatten(0, -2), torch.randint(logits.shape[-1], (logits[..., 0].numel(),))).backward()
        optimizer.step()
    resizing, trained = Resizing(align(old, program).sizes), program.trained(module).tensors
    found: dict[str, bool] = {}
    for name, terms in old.axes.parameters.items():
        if resizing.touches(terms):
            new = torch.ones(program.tensors[name].shape, dtype=torch.bool)
            new.numpy()[np.ix_(*(resizing.source(term) >= 0 for term in terms))] = False
            found[name] = bool((trained[name] != program.tensors[name])[new].any())
    return found


def test_new_gains_of_zero_never_learn() -> None:
    """The paper's table has the new gains zero: the function is kept, and nothing new on the stream ever learns. With
    gains that are not, every new block has moved after three steps."""
    case = hidden("llama")
    learned = moved(case.new, case.old)
    assert len(learned) > 15 and all(learned.values())
    gains = [row.parameter for row in rows(case, "scaled")]
    dead = case.new
    for name in gains:
        dead = edited(dead, name, lambda tensor: tensor[48:].zero_())
    passes(case.old, dead)
    assert not any(moved(dead, case.old).values())
    with pytest.raises(Refusal, match="dead growth"):
        certify(case.old, dead, spec="gains of zero", claim="Exact")


LEAST = [("gpt2", "hidden", 1.5), ("llama", "hidden", 1.5), ("bert", "hidden", 2.0), ("gpt2", "mlp", 1.5),
         ("gpt2", "key", 1.5), ("llama", "heads", 2.0), ("small_cnn", "channels", 1.5), ("mixtral", "mlp", 1.5),
         ("tied_autoencoder", "mlp", 1.5), ("densenet", "channels", 1.5)]  # fmt: skip


@pytest.mark.parametrize(("model", "role", "factor"), LEAST)
def test_no_constraint_can_go(model: str, role: str, factor: float) -> None:
    """Each new block that a certificate says must hold something, filled with random values: then there is no proof,
    and outputs differ. As many rows in the certificate as blocks, so none is there for nothing."""
    case = by_role(model, role, factor)
    alignment = align(case.old, case.new)
    layout, resizing = Prover(case.old.axes, dict(alignment.sizes)).layout, Resizing(alignment.sizes)
    blocks = prove(case.old, case.new, alignment).assignment.blocks
    needed = [block for block, fact in blocks.items() if block.dims and fact != ANY]
    assert case.certificate.proof and needed
    assert len(needed) == sum(row.dim >= 0 for row in case.certificate.proof.constraints)
    inputs = case.old.example()
    outputs = permutation.run(case.old, inputs)
    before = equivalence.deviation(outputs, permutation.run(case.new, inputs))
    for block in needed:
        tensor = case.new.tensors[block.parameter].detach().clone()
        terms = case.old.axes.parameters[block.parameter]
        for cell, _, views in view_cells(tensor, terms, resizing, layout):
            for view, _ in views if cell == block.cell else []:
                view.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(0))
        wrong = case.new.replace(tensors={**case.new.tensors, block.parameter: tensor})
        assert not prove(case.old, wrong, alignment).proof.holds, block
        off = equivalence.deviation(outputs, permutation.run(wrong, inputs))
        if role == "key" and block.parameter.endswith(".bias"):
            # One number for all keys of a query: softmax does not change by it, which no rule of the prover says.
            assert off <= 10 * before, block
        else:
            assert off > 1e-9 + 100 * before, block


def numbers(case: Honest, wrong: Program) -> float:
    """How far the numeric test alone, told that the graphs align, finds a lie off; asserts that it rejects it and that
    it accepts the honest program."""
    alignment = align(case.old, case.new)
    assert equivalence.test(case.old, case.new, alignment, UNPROVED, 0).holds
    found = equivalence.test(case.old, wrong, alignment, UNPROVED, 0)
    assert not found.holds and found.worst
    return max(found.worst.output64, found.worst.gradient64)


class Differences(nn.Module):
    """An operator that cares for the order of its operands, a kink at zero, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.side = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.up(x)) - torch.tanh(self.gate(x))
        out = self.down(hidden)
        return out, self.side(out)


@cache
def differences() -> Honest:
    torch.manual_seed(0)
    old = trace(Differences(), {"x": torch.randn(2, 5)})
    new = Widen(axis="mlp@up")(old)
    return Honest(old, new, passes(old, new))


def test_swapped_operands() -> None:
    case = differences()
    node = nodes_of(case.new, "aten.sub.Tensor")[0]
    wrong = rebuilt(case.new, node.name, lambda n: replace(n, args=(n.args[1], n.args[0])))
    unaligned(case.old, wrong, "where the old program has")
    assert numbers(case, wrong) > 1e-2


@pytest.mark.parametrize("op", ["aten.clone.default", "aten.leaky_relu.default", "aten.abs.default"])
def test_wrong_below_zero_only(op: str) -> None:
    case = differences()
    node = nodes_of(case.new, "aten.relu.default")[0]
    wrong = rebuilt(case.new, node.name, lambda n: replace(n, op=op))
    unaligned(case.old, wrong, op.replace(".", r"\."))
    assert numbers(case, wrong) > 1e-4


def test_a_node_dropped() -> None:
    case = differences()
    node = nodes_of(case.new, "aten.tanh.default")[0]
    kept = tuple(
        n.map(lambda item: node.args[0] if item == Ref(node.name) else item)
        for n in case.new.graph.nodes
        if n is not node
    )
    wrong = case.new.replace(graph=replace(case.new.graph, nodes=kept))
    unlike(case.old, wrong)
    assert numbers(case, wrong) > 1e-3


def test_outputs_reordered() -> None:
    case = differences()
    outputs = case.new.graph.outputs
    assert isinstance(outputs, tuple)
    wrong = case.new.replace(graph=replace(case.new.graph, outputs=outputs[::-1]))
    unaligned(case.old, wrong, "other outputs")
    assert numbers(case, wrong) > 1e-2


def test_an_output_left_out() -> None:
    case = differences()
    outputs = case.new.graph.outputs
    assert isinstance(outputs, tuple)
    wrong = case.new.replace(graph=replace(case.new.graph, outputs=outputs[:1]))
    unaligned(case.old, wrong, "other outputs")
    assert numbers(case, wrong) == float("inf")


def test_an_unrelated_program() -> None:
    unaligned(honest("gpt2").old, honest("small_cnn").new, "different inputs")
    unaligned(honest("small_cnn").old, honest("densenet").new, "inputs|outputs")
    unlike(traced("nanogpt"), traced("wide_value"))
    torch.manual_seed(1)
    other = trace(Differences(), {"x": torch.randn(2, 5)})  # the same structure, other weights
    rejected(differences().old, other)
    passes(differences().old, differences().old)


def test_a_smaller_program_is_proved_where_what_went_did_nothing() -> None:
    case = differences()
    passes(case.new, case.old)
    axis = next(axis for axis in case.old.axes.named if axis.role == "mlp")
    less = resize(case.old, Resizing({axis.atom: int(str(axis.size)) - 1}), Fills())
    found = check(case.old, less)
    assert found.proof and not found.proof.holds and "does something" in found.proof.why


def test_some_larger_and_some_smaller_is_not_proved() -> None:
    old = traced("skip_mlp")
    first, second = (axis for axis in old.axes.named if axis.name in ("mlp@ups.0", "mlp@ups.1"))
    sizes = {first.atom: int(str(first.size)) + 1, second.atom: int(str(second.size)) - 1}
    found = check(old, resize(old, Resizing(sizes), Fills({}, "zero")))
    assert found.proof and not found.proof.holds and "removed" in found.proof.why


# Axes that are seen from outside


def grown(program: Program, name: str, by: int = 2) -> Program:
    axis = next(axis for axis in program.axes.named if axis.name == name)
    return resize(program, Resizing({axis.atom: int(str(axis.size)) + by}, {}), Fills({}, "zero"))


def test_an_axis_that_outputs_show() -> None:
    old = traced("skip_mlp")
    beside = check(old, grown(old, "classes"))  # the old outputs are there: it says that it speaks of these
    assert beside.holds and beside.extended == old.graph.output_names and "old units" in beside.scope
    assert not check(old, grown(old, "mlp@ups.0")).extended
    with pytest.raises(Refusal, match="seen in the output"):
        Widen(axis="classes")(old)


def test_an_axis_that_inputs_show() -> None:
    old = traced("skip_mlp")
    unaligned(old, grown(old, "features"), "input")
    with pytest.raises(Refusal, match="seen in the input"):
        Widen(axis="features")(old)


# Growth that can never learn


def test_dead_growth_is_refused() -> None:
    """Zero on both sides of the new units: nothing changes, and no gradient ever comes."""
    old = traced("skip_mlp")
    with pytest.raises(Refusal, match="dead growth") as caught:
        Widen(axis="mlp", init="zero")(old)
    assert "mlp@ups.0" in caught.value.found and "init=scaled" in caught.value.fix
    for init in ("scaled", "copy"):
        assert Widen(axis="mlp", init=init)(old).certificate


def test_outputs_without_gradients() -> None:
    """A program that gives classes and no scores: compared by its outputs, and no growth of it is called dead."""

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(x))).argmax(-1)

    torch.manual_seed(0)
    old = trace(Classes(), {"x": torch.randn(3, 4)})
    new = Widen()(old)
    assert new.certificate and new.certificate.evidence == "proved and tested"
    assert not check(old, edited(new, "down.bias", lambda tensor: tensor[0].add_(10))).holds


@pytest.mark.parametrize("free", ["ups.0.weight", "ups.0.bias"])
def test_one_living_factor_is_enough_for_gradients(free: str) -> None:
    """With a new weight or bias before the ReLU the zero down projection learns. The other way round nothing does: the
    function is kept, as relu(0) is zero, but so is its derivative there."""
    old = traced("skip_mlp")
    dead = grown(old, "mlp@ups.0")
    with pytest.raises(Refusal, match="dead growth"):
        certify(old, dead, spec="both zero", claim="Exact")
    alive = edited(dead, free, lambda tensor: tensor[40:].fill_(0.3))
    assert certify(old, alive, spec="one alive", claim="Exact").holds
    other = edited(dead, "downs.0.weight", lambda tensor: tensor[:, 40:].fill_(0.3))
    passes(old, other)
    with pytest.raises(Refusal, match="dead growth"):
        certify(old, other, spec="the wrong one alive", claim="Exact")


# Lies in the prover and in the test: neither is trusted alone


class Sigmoids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.up(x)))


@cache
def sigmoids() -> tuple[Program, Program]:
    """New rows of the up projection zero, new columns of the down projection not: wrong, as sigmoid(0) is 1/2."""
    torch.manual_seed(0)
    old = trace(Sigmoids(), {"x": torch.randn(2, 5)})
    axis = next(axis for axis in old.axes.named if axis.role == "mlp")
    new = resize(old, Resizing({axis.atom: 11}, {}), Fills({}, "scaled"))
    new = edited(new, "up.weight", lambda tensor: tensor[8:].zero_())
    return old, edited(new, "up.bias", lambda tensor: tensor[8:].zero_())


def test_a_table_that_says_sigmoid_of_zero_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lying table proves it; the numbers do not."""
    old, new = sigmoids()
    rejected(old, new)
    monkeypatch.setitem(ops.TABLE, "aten.sigmoid.default", replace(ops.TABLE["aten.sigmoid.default"], zero="all"))
    found = rejected(old, new, proof=True)
    assert found.test and found.test.worst and found.test.worst.output64 > 1e-3


def test_a_lying_row_is_caught_where_a_pass_believes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contractions that look at old cells only: the rewriter leaves every new block free, and the pass is stopped."""

    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8, bias=False), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(x)).exp())

    torch.manual_seed(0)
    old = trace(Exponential(), {"x": torch.randn(2, 5)})
    passes(old, Widen()(old))
    honest_row = ROWS["contraction"]

    def ignores_new_cells(context: Context, node: Node) -> Value:
        """A contraction that looks at old cells only."""
        facts = honest_row(context, node)
        assert isinstance(facts, np.ndarray)
        return np.where(context.layout.is_old(context.axes.terms[node.name]), SAME, facts).astype(np.int32)

    monkeypatch.setitem(ROWS, "contraction", ignores_new_cells)
    derivation = Prover(old.axes, {next(a.atom for a in old.axes.named if a.role == "mlp"): 11}).derive()
    assert derivation.holds and not derivation.needed, "the lying prover asks for nothing"
    with pytest.raises(CheckFailed, match="outputs differ"):
        Widen()(old)


def test_random_free_blocks_find_a_constraint_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new program itself is right: its down projection is zero. But a prover that calls that block free claims too
    much; the test fills what is free at random, and finds the claim false."""
    case = differences()
    honest_derive = Prover.derive

    def careless(self: Prover, start: Assignment | None = None) -> Derivation:
        found = honest_derive(self, start)
        blocks = {block: ANY if block.dims else fact for block, fact in found.assignment.blocks.items()}
        return replace(found, assignment=replace(found.assignment, blocks=blocks), needed={})

    monkeypatch.setattr(Prover, "derive", careless)
    found = rejected(case.old, case.new, proof=True)
    assert found.test and found.test.worst and found.test.worst.output64 > 1e-3


@pytest.mark.parametrize("model", ["gpt2", "small_cnn", "densenet"])
def test_the_proof_alone_finds_what_a_disabled_test_lets_pass(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numeric test lies that all is well; values and blocks that are wrong are still found."""
    case = honest(model)
    truth = equivalence.test(case.old, case.new, align(case.old, case.new), UNPROVED, 0)
    assert truth.holds
    monkeypatch.setattr("graphgrow.verify.judges.test", lambda *args: truth)
    for row in case.constraints[:2]:
        forgotten = edited(case.new, row.parameter, put(new_entries(case, row)[0], TINY))
        found = rejected(case.old, forgotten)
        assert found.test and "not zero where this growth needs them" in found.test.why
        place = (0,) * case.new.tensors[row.parameter].dim()
        found = rejected(case.old, edited(case.new, row.parameter, nudge(place)))
        assert found.test and f"{row.parameter} has other values" in found.test.why


def test_a_test_on_shrunk_programs_does_not_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large programs are run with the first units of every axis only: a wrong entry beyond them is not seen, so without
    a proof nothing holds. With one, the shrunk test is what is asked for."""
    old = traced("gpt2")
    new = Widen(axis="mlp", factor=1.3)(old)
    monkeypatch.setattr(equivalence, "FULL_SIZE", 0)
    fine = passes(old, new)
    assert fine.test and fine.test.reduced
    case = Honest(old, new, fine)
    row = case.constraints[0]
    found = rejected(old, edited(new, row.parameter, put(new_entries(case, row)[-1], 1.0)))
    assert found.test and found.test.reduced and found.test.worst and "shrunk" in found.test.why
    assert found.test.worst.output64 <= found.test.worst.tolerance64, "numbers alone would have been fooled"


def test_a_program_that_overflows_in_float32_gives_no_licence() -> None:
    """exp overflows in float32 and not in float64: an infinite rounding error must not become an infinite tolerance."""

    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.down(F.relu(self.up(x))) + 100).exp()

    torch.manual_seed(0)
    old = trace(Exploding(), {"x": torch.randn(2, 5)})
    new = Widen()(old)
    found = passes(old, new)
    assert found.test and found.test.worst and found.test.worst.rounding32 == float("inf")
    case = Honest(old, new, found)
    row = case.constraints[0]
    rejected(old, edited(new, row.parameter, put(new_entries(case, row)[0], 0.1)))


# The prover's own rows, where an operator's settings decide


def facts_after(module: nn.Module, inputs: dict[str, Tensor], axis: str, zero: set[str]) -> bool:
    """Whether the proof goes through with the new blocks of the parameters in `zero` zero, and all others free."""
    torch.manual_seed(0)
    program = trace(module, inputs)
    atom = next(a for a in program.axes.named if a.name == axis)
    prover = Prover(program.axes, {atom.atom: int(str(atom.size)) + 3})
    start: dict[Block, int] = {block: ZERO if block.parameter in zero else ANY for block in prover.blocks}
    return prover.derive(Assignment(start)).holds


class Clamped(nn.Module):
    def __init__(self, low: float) -> None:
        super().__init__()
        self.up, self.down, self.low = nn.Linear(5, 8), nn.Linear(8, 4), low

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.hardtanh(self.up(x), self.low, 2.0))


@pytest.mark.parametrize(("low", "holds"), [(-1.0, True), (0.0, True), (0.5, False)])
def test_a_clamp_keeps_zero_only_within_its_range(low: float, holds: bool) -> None:
    assert facts_after(Clamped(low), {"x": torch.randn(2, 5)}, "mlp", {"up.weight", "up.bias"}) is holds


class Joined(nn.Module):
    """Group norm over a concatenation: groups of their own for each part, or one that mixes them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.head = nn.GroupNorm(groups, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3))


@pytest.mark.parametrize("axis", ["channels@a", "channels@b"])
def test_a_norm_over_a_concatenation_sees_what_grows(axis: str) -> None:
    torch.manual_seed(0)
    program = trace(Joined(1), {"x": torch.randn(2, 3, 4, 4)})
    with pytest.raises(Refusal, match="group_norm"):  # copies of one part only are no complete copies
        Widen(axis=axis)(program)


class Sampled(nn.Module):
    """The grid depends on a mean over an axis, the image does not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 6)
        self.register_buffer("grid", torch.rand(1, 4, 4, 2))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        shift = F.relu(self.up(x)).mean(-1)[:, None, None, None]
        return F.grid_sample(image, self.get_buffer("grid") * shift.tanh(), align_corners=False)


def test_where_to_sample_counts_too() -> None:
    inputs = {"x": torch.randn(2, 3), "image": torch.randn(2, 3, 5, 5)}
    torch.manual_seed(0)
    program = trace(Sampled(), inputs)
    name = next(axis.name for axis in program.axes.named if any(s.parameter == "up.bias" for s in axis.sites))
    assert facts_after(Sampled(), inputs, name, {"up.weight", "up.bias"}) is False


def test_an_alignment_is_not_taken_on_trust() -> None:
    """The numeric test told of the wrong axis: its free blocks would be elsewhere; shapes then tell."""
    case = differences()
    wrong = Alignment({axis.atom: 99 for axis in case.old.axes.named if axis.role == "mlp"})
    with pytest.raises((CheckFailed, RuntimeError, IndexError)):
        equivalence.test(case.old, case.new, wrong, Proved(Proof(holds=True, why="")), 0)

"""Random models: traced, widened at random, certified, and the numbers looked at without the library's own judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graphgrow.axes.names import Named
from graphgrow.errors import Refusal
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from graphgrow.tracing import trace
from graphgrow.verify import check, equivalence
from passes import Widen
from tests.programs import outputs

torch.set_num_threads(1)

FEATURES, LENGTH, SIDE = 5, 6, 6
# Fixed draws: a failure in CI is found again at home. The search is run with other draws by hand.
search = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

Layer = tuple[str, int, int]  # kind, a width, a small number (groups, heads, a choice)


class Vectors(nn.Module):
    """Linear layers with skips, gates, concatenations, splits, norms, ties; on (batch, length, features)."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = layers
        self.parts = nn.ModuleDict()
        width = FEATURES
        for index, (kind, size, count) in enumerate(layers):
            width = self._add(str(index), kind, size, count, width)
        self.head = nn.Linear(width, 3)

    def _add(self, at: str, kind: str, size: int, count: int, width: int) -> int:
        linear = lambda a, b: nn.Linear(a, b, bias=count % 2 == 0)  # noqa: E731
        add = self.parts.__setitem__
        if kind in ("skip", "plain", "gate", "tied"):
            add(f"{at}a", linear(width, size))
            if kind == "gate":
                add(f"{at}g", linear(width, size))
            if kind != "tied":
                add(f"{at}b", linear(size, width))
        elif kind == "cat":
            add(f"{at}a", linear(width, size))
            add(f"{at}b", linear(width, size + 1))
            return width + 2 * size + 1
        elif kind == "split":
            add(f"{at}a", linear(width, 2 * size))
            add(f"{at}b", linear(size, width))
        elif kind == "norm":
            add(f"{at}n", nn.LayerNorm(width))
        elif kind == "attention":
            add(f"{at}q", linear(width, count * 2 * size))
            add(f"{at}k", linear(width, count * size))
            add(f"{at}v", linear(width, count * size))
            add(f"{at}o", linear(count * 2 * size, width))
        return width

    def forward(self, x: Tensor) -> Tensor:
        for index, (kind, size, count) in enumerate(self.layers):
            x = self._apply(str(index), kind, size, count, x)
        return self.head(x)

    def _apply(self, at: str, kind: str, size: int, count: int, x: Tensor) -> Tensor:
        part = lambda name: self.parts[f"{at}{name}"]  # noqa: E731
        act: Callable[[Tensor], Tensor] = (F.relu, F.gelu, torch.tanh, torch.sigmoid)[count % 4]
        if kind == "plain":
            return part("b")(act(part("a")(x)))
        if kind == "skip":
            return x + part("b")(act(part("a")(x)))
        if kind == "gate":
            return x + part("b")(act(part("g")(x)) * part("a")(x))
        if kind == "tied":
            return x + F.linear(act(part("a")(x)), self.parts[f"{at}a"].get_parameter("weight").T)
        if kind == "cat":
            return torch.cat([act(part("a")(x)), x, part("b")(x)], -1)
        if kind == "split":
            first, second = part("a")(x).chunk(2, -1)
            return x - part("b")(act(first) * second)
        if kind == "norm":
            return part("n")(x)
        return x + self._attend(part, size, count, x)

    def _attend(self, part: Callable[[str], nn.Module], size: int, count: int, x: Tensor) -> Tensor:
        """Twice as many query heads as key heads."""
        batch, length, _ = x.shape
        q, k, v = (part(name)(x).view(batch, length, -1, size).transpose(1, 2) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return part("o")(mixed.transpose(1, 2).reshape(batch, length, count * 2 * size))


class Images(nn.Module):
    """Convolutions with batch norm: plain, residual, depthwise, grouped, dense; as drawn."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = layers
        self.parts = nn.ModuleDict()
        width = 4
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for index, (kind, size, count) in enumerate(layers):
            width = self._add(str(index), kind, size, count, width)
        self.head = nn.Linear(width, 3)

    def _add(self, at: str, kind: str, size: int, count: int, width: int) -> int:
        add = self.parts.__setitem__
        inner = size * count if kind == "grouped" else size
        add(f"{at}a", nn.Conv2d(width, inner, 1, bias=count % 2 == 0))
        add(f"{at}n", nn.BatchNorm2d(inner))
        if kind in ("depthwise", "grouped"):
            add(f"{at}d", nn.Conv2d(inner, inner, 3, padding=1, groups=inner if kind == "depthwise" else count))
        if kind == "dense":
            return width + inner
        if kind == "plain":
            return inner
        add(f"{at}b", nn.Conv2d(inner, width, 3, padding=1))
        add(f"{at}m", nn.BatchNorm2d(width))
        return width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, (kind, _, count) in enumerate(self.layers):
            x = self._apply(str(index), kind, count, x)
        return self.head(x.mean((2, 3)))

    def _apply(self, at: str, kind: str, count: int, x: Tensor) -> Tensor:
        act = (F.relu, F.relu6, F.silu, F.hardswish)[count % 4]
        hidden = act(self.parts[f"{at}n"](self.parts[f"{at}a"](x)))
        if f"{at}d" in self.parts:
            hidden = act(self.parts[f"{at}d"](hidden))
        if kind == "dense":
            return torch.cat([x, hidden], 1)
        if kind == "plain":
            return hidden
        return x + self.parts[f"{at}m"](self.parts[f"{at}b"](hidden))


def layers(*kinds: str) -> st.SearchStrategy[list[Layer]]:
    # widths from 2: a dimension of one unit is no axis
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(2, 6), st.integers(2, 5)), min_size=1, max_size=3)


VECTORS = layers("plain", "skip", "gate", "tied", "cat", "split", "norm", "attention")
IMAGES = layers("plain", "residual", "depthwise", "grouped", "dense")


@dataclass(frozen=True)
class Growth:
    """How to widen: which of the axes, and the options of the pass."""

    which: int
    together: bool
    options: dict[str, Any]


GROWTHS = st.builds(
    Growth,
    st.integers(0, 20),
    st.booleans(),
    st.fixed_dictionaries(
        {
            "init": st.sampled_from(["scaled", "copy"]),
            "multiple_of": st.sampled_from([1, 3, 8]),
            "seed": st.integers(0, 9),
        },
        optional={"factor": st.sampled_from([1.2, 1.5, 2.0, 3.0])},
    ),
)


def build(model: type[Vectors | Images], drawn: list[Layer]) -> Program:
    """The program of a drawn model, with weights and statistics that are not their fresh zeros and ones."""
    torch.manual_seed(len(drawn))
    module = model(drawn)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    shape = (2, LENGTH, FEATURES) if model is Vectors else (2, 3, SIDE, SIDE)
    return trace(module, {"x": torch.randn(shape)})


def widened(program: Program, growth: Growth) -> Program | None:
    """None where the drawn axis can't grow: then the refusal must say why."""
    inner = [axis for axis in program.axes.named if axis.inner and not axis.frozen]
    assume(inner)
    axis = "auto" if growth.together else inner[growth.which % len(inner)].name
    try:
        return Widen(axis=axis, **growth.options)(program)
    except Refusal as refusal:
        assert refusal.found and refusal.fix
        return None


def run(program: Program, inputs: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    module = equivalence.lowered(program, program.tensors, dtype)
    with torch.no_grad():
        return [leaf.double() for leaf in outputs(module, {name: value.to(dtype) for name, value in inputs.items()})]


def error(old: list[Tensor], new: list[Tensor]) -> float:
    """The largest difference relative to the largest value."""
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(old, new, strict=True))


def agrees(old: Program, new: Program) -> None:
    """The function is the same: in float64 to rounding, and the difference is rounding, as it shrinks with the type.

    eps64 is 2.2e-16; sums of at most some hundred products through at most four layers lose three digits: 1e-12 leaves
    a tenfold margin. eps64 / eps32 is 1.9e-9; 1e-4 allows for a float32 difference that is small by luck."""
    for batch in (1, 3):
        inputs = old.example({"batch": batch}, seed=batch)
        err64 = error(run(old, inputs, torch.float64), run(new, inputs, torch.float64))
        err32 = error(run(old, inputs, torch.float32), run(new, inputs, torch.float32))
        assert err64 < 1e-12
        if err32 > 0:
            assert err64 < 1e-4 * err32


SEEN = {"grown": 0, "refused": 0}


def holds(program: Program, growth: Growth) -> None:
    new = widened(program, growth)
    SEEN["refused" if new is None else "grown"] += 1
    if new is None:
        return
    certificate = new.certificate
    assert certificate and certificate.holds and certificate.evidence == "proved and tested"
    assert certificate.growth and all(row.new > row.old for row in certificate.growth)
    assert new.size > program.size
    agrees(program, new)
    assert check(new, new).holds


@search
@given(VECTORS, GROWTHS)
def test_widened_vectors(drawn: list[Layer], growth: Growth) -> None:
    holds(build(Vectors, drawn), growth)


@search
@given(IMAGES, GROWTHS)
def test_widened_images(drawn: list[Layer], growth: Growth) -> None:
    holds(build(Images, drawn), growth)


def test_most_draws_grow() -> None:
    """The search is about growth: refusals (an MLP of one layer, a norm over what grows) are the rarer case."""
    if SEEN["grown"] + SEEN["refused"] == 0:
        pytest.skip("runs after the searches above")
    assert SEEN["grown"] > SEEN["refused"], SEEN


def counterpart(new: Program, axis: Named) -> Named:
    return next(other for other in new.axes.named if other.atom.number == axis.atom.number)


@search
@given(st.one_of(st.tuples(st.just(Vectors), VECTORS), st.tuples(st.just(Images), IMAGES)), GROWTHS)
def test_up_and_back_again(model: tuple[type[Vectors | Images], list[Layer]], growth: Growth) -> None:
    """Growing keeps the old units first; keeping only these gives the old tensors bit for bit, and the old graph."""
    program = build(*model)
    new = widened(program, growth)
    assume(new is not None)
    assert new is not None and new.certificate and new.certificate.proof
    proof = new.certificate.proof
    assume(not proof.numbers and all(row.dim >= 0 for row in proof.constraints))  # multiplied ones are rounded
    grown = {row.axis: row for row in new.certificate.growth}
    kept: dict[Any, range] = {}
    for axis in program.axes.named:
        if axis.name in grown:
            other = counterpart(new, axis)
            assert other.size == grown[axis.name].new
            kept[other.atom] = range(grown[axis.name].old)
    assert len(kept) == len(grown)
    rewriter = Rewriter(new)
    rewriter.prune(kept)
    back = rewriter.program
    assert back.graph == program.graph
    assert back.tensors.keys() == program.tensors.keys()
    assert all(torch.equal(tensor, back.tensors[name]) for name, tensor in program.tensors.items())
    assert back.digest == program.digest
    assert len(rewriter.edits) == len(kept)


@search
@given(VECTORS, GROWTHS, st.integers(0, 1000))
def test_a_nudge_in_a_needed_block_is_found(drawn: list[Layer], growth: Growth, place: int) -> None:
    """The other side: on whatever was drawn, one needed zero that is not zero is rejected."""
    program = build(Vectors, drawn)
    new = widened(program, growth)
    assume(new is not None)
    assert new is not None and new.certificate and new.certificate.proof
    rows = [row for row in new.certificate.proof.constraints if row.fill == "zero"]
    assert rows
    row = rows[place % len(rows)]
    tensor = new.tensors[row.parameter].detach().clone()
    zeros = (tensor == 0).nonzero()
    spot = tuple(zeros[place % len(zeros)].tolist())
    tensor[spot] = 1e-3
    assert not check(program, new.replace(tensors={**new.tensors, row.parameter: tensor})).holds

"""Shares: copies whose readers hold parts that add up to the old weights. The function stays; copies learn apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD

from graphgrow.certificate import Certificate, Constraint
from graphgrow.errors import CheckFailed, OptionError, Refusal
from graphgrow.export import export_huggingface
from graphgrow.pipeline import Pipeline
from graphgrow.program import Program
from graphgrow.prove import SAME, ZERO, Prover, fact, kind, text
from graphgrow.rewrite.shares import Group
from graphgrow.runtime import grow_optimizer
from graphgrow.tracing import trace
from graphgrow.verify import certify, check
from graphgrow.verify.equivalence import FULL_SIZE
from passes import AddHeads, Undo, Widen, WidenHidden, WidenKeys
from tests.programs import outputs, traced
from tests.test_huggingface import LLAMA, saved

torch.set_num_threads(1)

# Sizes that are multiples and sizes that are not; fused and grouped heads, convolutions, a layer used twice, tied
# embeddings, concatenations, experts.
CASES = [
    ("gpt2", "widen:by=shares"), ("gpt2", "widen:by=shares,factor=2.3"), ("gpt2", "widen-hidden:by=shares"),
    ("gpt2", "add-heads:by=shares,factor=1.5"), ("gpt2", "widen-values:by=shares,factor=1.5"),
    ("llama", "widen:by=shares,factor=1.4,noise=1.0"), ("llama", "widen-hidden:by=shares,factor=3"),
    ("llama", "add-kv-heads:by=shares,factor=1.4"), ("vit", "widen-hidden:by=shares"),
    ("resnet", "widen:by=shares,factor=1.5"),
    ("albert", "widen:by=shares"), ("densenet", "widen:by=shares"), ("einsum_attention", "add-heads:by=shares"),
    ("routed", "widen-experts:by=shares,factor=1.5"),
]  # fmt: skip


@cache
def grown(model: str, *specs: str) -> Program:
    return Pipeline.parse(specs)(traced(model))


def rows(certificate: Certificate | None, fill: str) -> list[Constraint]:
    """What new blocks must hold."""
    assert certificate and certificate.proof
    return [row for row in certificate.proof.constraints if row.fill == fill and row.dim >= 0]


@pytest.mark.parametrize(("model", "spec"), CASES)
def test_the_function_stays(model: str, spec: str) -> None:
    new = grown(model, spec)
    found = check(traced(model), new)
    assert found.evidence == "proved and tested" and found.holds
    shares = rows(found, "share")
    assert shares and all("shares that add up to the same" in row.text for row in shares)
    assert found.proof == (new.certificate and new.certificate.proof), "the judge sees what the pass planned"


def step(program: Program) -> dict[str, Tensor]:
    """The parameters after one step of gradient descent."""
    module = program.module().eval()
    optimizer = SGD(module.parameters(), lr=0.1)
    loss(module, program).backward()
    optimizer.step()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def loss(module: nn.Module, program: Program) -> Tensor:
    return torch.stack([out.double().square().mean() for out in outputs(module, program.example(seed=1))]).sum()


def apart(old: Program, new: Program, values: Mapping[str, Tensor]) -> dict[str, float]:
    """How far new units that copy old ones are from them, by parameter, relative to its largest value."""
    found: dict[str, float] = {}
    for row in rows(new.certificate, "copy"):
        if not new.kinds[row.parameter].trainable:
            continue
        tensor, size = values[row.parameter].detach(), old.tensors[row.parameter].shape[row.dim]
        count = tensor.shape[row.dim] - size
        copied = tensor.index_select(row.dim, torch.arange(count) % size)
        far = float((tensor.narrow(row.dim, size, count) - copied).abs().max() / tensor.abs().max())
        found[row.parameter] = max(far, found.get(row.parameter, 0.0))
    return found


@pytest.mark.parametrize(
    ("model", "spec"), [("gpt2", "widen"), ("llama", "widen"), ("vit", "widen-hidden"), ("resnet", "widen")]
)
def test_copies_learn_apart(model: str, spec: str) -> None:
    """Before the first step emitters are equal; after it they differ where parts are shared out, and only there."""
    old = traced(model).to(torch.float64)
    for by, factor in (("copies", 2), ("shares", 2), ("shares", 3)):
        new = Pipeline.parse([f"{spec}:by={by},factor={factor}"])(old)
        before, after = apart(old, new, new.tensors), apart(old, new, step(new))
        assert before and all(far == 0 for far in before.values())
        assert all((far > 1e-9) == (by == "shares") for far in after.values()), (by, after)


def edited(program: Program, name: str, change: Callable[[Tensor], object]) -> Program:
    tensor = program.tensors[name].detach().clone()
    change(tensor)
    return program.replace(tensors={**program.tensors, name: tensor})


def refused(old: Program, new: Program) -> None:
    assert not (found := check(old, new)).holds and found.proof and not found.proof.holds
    with pytest.raises(CheckFailed):
        certify(old, new, spec="lie", claim="Exact")


READER = "transformer.h.1.mlp.c_proj.weight"  # sums over its first dimension, of 80 old units


def times(factor: float, *place: int) -> Callable[[Tensor], object]:
    return lambda tensor: tensor[place].mul_(factor)


@pytest.mark.parametrize("factor", [1 + 1e-6, 1 - 1e-6, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["one old", "one new", "all old", "all"])
def test_a_sum_that_is_off(where: str, factor: float) -> None:
    old, new = traced("gpt2"), grown("gpt2", "widen:by=shares")
    weight = new.tensors[READER].detach()
    unit = int((weight[:80] + weight[80:]).abs().max(1).values.argmax())
    column = int((weight[unit] + weight[unit + 80]).abs().argmax())

    def change(tensor: Tensor) -> None:
        if where.startswith("one"):
            tensor[unit + 80 * (where == "one new"), column] *= factor
        else:
            tensor[: 80 if where == "all old" else 160] *= factor

    refused(old, edited(new, READER, change))


def test_shares_of_other_units() -> None:
    """Each in its place: two new units swapped, or one share moved to another unit, add up to something else."""
    old, new = traced("gpt2"), grown("gpt2", "widen:by=shares")
    refused(old, edited(new, READER, lambda t: t[80:82].copy_(t[[81, 80]])))
    refused(old, edited(new, READER, lambda t: t[80].add_(t[3]) is t[3].zero_()))


def test_copies_that_are_none() -> None:
    """Shares need copies: what is summed must be equal."""
    old, new = traced("gpt2"), grown("gpt2", "widen:by=shares")
    for name in ("transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"):
        refused(old, edited(new, name, lambda t: t[..., 80].add_(1e-5)))


def test_any_shares_will_do() -> None:
    """LEMON's unequal parts, whatever made them; noise as large as weights; all of it in one copy."""
    old, new = traced("gpt2"), grown("gpt2", "widen:by=shares")
    whole = old.tensors[READER].detach()
    noise = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    for first in (whole * 0.3, whole * -2.0, whole * 0.5 + noise, torch.zeros_like(whole), whole):

        def change(tensor: Tensor, first: Tensor = first) -> None:
            tensor.copy_(torch.cat([first, whole - first]))

        found = check(old, edited(new, READER, change))
        assert found.holds and found.evidence == "proved and tested", str(found)


def test_a_tied_weight_takes_no_shares() -> None:
    """GPT-2's table is looked up, too: it keeps plain copies, and parts in it are found out."""
    old, new = traced("gpt2"), grown("gpt2", "widen-hidden:by=shares")
    table = "transformer.wte.weight"
    assert {row.fill for row in rows(new.certificate, "share")} == {"share"}
    assert table not in {row.parameter for row in rows(new.certificate, "share")}
    noise = 0.01 * torch.randn(old.tensors[table].shape, generator=torch.Generator().manual_seed(0))

    def parts(tensor: Tensor) -> None:
        tensor[:, :48] += noise
        tensor[:, 48:] -= noise

    refused(old, edited(new, table, parts))
    with pytest.raises(Refusal, match="without changing the function"):
        Widen(by="shares")(traced("tied_autoencoder"))  # emitted and summed over by one weight


class _Twice(nn.Module):
    """A weight that is read once as it is and once turned."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.inner, self.square, self.turned = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 6)), turned
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        x = torch.tanh(x @ self.square) + x
        return self.out(torch.tanh(x @ (self.square.T if self.turned else self.square)) + x)


@pytest.mark.parametrize("turned", [False, True])
def test_shares_lie_along_one_dimension(turned: bool) -> None:
    """Both dimensions of a square weight are one axis: it has shares along the one that all its uses sum over."""
    torch.manual_seed(0)
    old = trace(_Twice(turned), {"x": torch.randn(4, 5)})
    axis = next(axis.name for axis in old.axes.named if axis.size == 6)
    if turned:
        with pytest.raises(Refusal):
            Widen(axis=axis, by="shares", factor=1.5)(old)
        return
    new = Widen(axis=axis, by="shares", factor=1.5)(old)
    found = {(row.parameter, row.text[-1]) for row in rows(new.certificate, "share")}
    assert found == {("square", "0"), ("out.weight", "1")}
    refused(old, edited(new, "square", lambda t: t.copy_(t.T.clone())))


def test_facts_of_shares() -> None:
    share = fact("share", 0.5, along=(1,))
    assert kind(share) == "share" and text(share) == "shares that add up to 0.5 times the same along dimension 1"
    assert len({share, fact("share", 0.5, along=(0,)), fact("share", 1.0, along=(1,)), SAME}) == 4
    assert fact("share", 0.0, along=(1,)) != ZERO, "what adds up to nothing need not be nothing"


def test_the_proof_needs_each_share() -> None:
    """Without one of the blocks, or with copies of which some are zero, nothing is proved."""
    old = traced("skip_mlp")
    axis = next(axis for axis in old.axes.named if any(site.parameter == "downs.0.weight" for site in axis.sites)
                and any(site.parameter == "ups.0.weight" for site in axis.sites))  # fmt: skip
    prover = Prover(old.axes, {axis.atom: 55}, old.fixed)
    found = prover.derive(strategies=("shares",))
    assert found.holds
    for block, held in found.assignment.blocks.items():
        for other in (ZERO, SAME, fact("share", 0.9, along=(1,)), fact("share", 1.0, along=(0,))):
            if held != other and (kind(held) == "share" or other == ZERO):
                changed = type(found.assignment)({**found.assignment.blocks, block: other}, {})
                assert not prover.derive(changed).holds, (block, held, other)


@pytest.mark.parametrize(
    "spec", ["widen:by=shares,factor=2", "widen:by=shares,factor=1.5", "add-heads:by=shares,factor=1.5"]
)
def test_momentum_goes_along(spec: str) -> None:
    """Of shares it is the gradient. Emitters of copies have parts of theirs, which together are the old one: their
    momentum is dealt out evenly."""
    old = traced("gpt2").to(torch.float64)
    new = Pipeline.parse([spec])(old)
    before, after = old.module().eval(), new.module().eval()
    optimizer = SGD(before.parameters(), lr=0.0, momentum=0.9)
    loss(before, old).backward()
    optimizer.step()
    carried = grow_optimizer(optimizer, before, after)
    loss(after, old).backward()
    shares, copies = ({(r.parameter, r.dim) for r in rows(new.certificate, fill)} for fill in ("share", "copy"))
    assert shares and copies
    for name, parameter in after.named_parameters():
        gradient, momentum = parameter.grad, carried.state[parameter]["momentum_buffer"]
        assert gradient is not None
        size = float(gradient.abs().max())
        if name in {parameter for parameter, _ in shares}:
            torch.testing.assert_close(momentum, gradient, rtol=1e-7, atol=1e-10 * size)
            continue
        if name in {parameter for parameter, _ in copies}:
            assert (momentum - gradient).abs().max() > 1e-4 * size
            gradient, momentum = (_together(value, old, new, name) for value in (gradient, momentum))
        torch.testing.assert_close(momentum, gradient, rtol=1e-7, atol=1e-10 * size)


def _together(values: Tensor, old: Program, new: Program, name: str) -> Tensor:
    """Sums over all that came from one old place."""
    assert new.certificate
    found = torch.zeros(old.tensors[name].shape, dtype=values.dtype)
    for move in (move for move in new.certificate.moves if move.new == name):
        there, origins = (
            [torch.cat([torch.arange(r.length) + getattr(r, at) for r in runs]) for runs in move.runs]
            for at in ("to", "start")
        )
        found.index_put_(_grid(origins), values[_grid(there)], accumulate=True)
    return found


def _grid(positions: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.meshgrid(*positions, indexing="ij"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undone(dtype: torch.dtype) -> None:
    """Shares are added up again."""
    old = traced("gpt2").to(dtype)
    new = WidenHidden(by="shares")(old)
    back = Undo()(new)
    assert back.certificate and back.certificate.claim == "Exact" and back.certificate.holds
    for name, tensor in old.tensors.items():
        far = (back.tensors[name].double() - tensor.double()).abs().max() / tensor.double().abs().max()
        assert float(far) <= 2 * torch.finfo(dtype).eps, name


def test_shrunk_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large programs are tested with the first units only, of which shares are made anew."""
    monkeypatch.setattr("graphgrow.verify.equivalence.FULL_SIZE", 1000)
    assert FULL_SIZE > 1000
    for spec in ("widen:by=shares,factor=3", "widen:by=shares,factor=1.5"):
        found = check(traced("llama"), grown("llama", spec))
        assert found.holds and found.test and found.test.reduced
    name = "model.layers.0.mlp.down_proj.weight"
    refused(traced("llama"), edited(grown("llama", "widen:by=shares,factor=3"), name, times(1.001, 3)))


def test_what_is_refused() -> None:
    with pytest.raises(Refusal, match="no weights that only sum over key"):
        WidenKeys(by="shares")(traced("gpt2"))
    with pytest.raises(Refusal, match="without changing the function"):
        WidenHidden(by="shares", factor=1.5)(traced("gpt2"))  # a norm sees some units twice
    for options in ({"noise": 0.1}, {"by": "copies", "noise": 0.1}, {"by": "shares", "noise": 0.0},
                    {"by": "shares", "noise": float("nan")}):  # fmt: skip
        with pytest.raises(OptionError):
            AddHeads(**options)  # type: ignore[arg-type]


def test_streamed(tmp_path: Path) -> None:
    """Tensor by tensor they are the same, and so is what the judge says."""
    saved(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), tmp_path / "old")
    specs = ["widen:factor=1.5,by=shares", "widen-hidden:factor=2,by=shares"]
    done = {}
    for lazy in (False, True):
        new = Pipeline.parse(specs)(trace(tmp_path / "old", lazy=lazy))
        done[lazy] = export_huggingface(new, tmp_path / f"new-{lazy}", tmp_path / "old")
    assert done[True] == done[False]
    whole, streamed = (load_file(tmp_path / f"new-{lazy}" / "model.safetensors") for lazy in (False, True))
    assert whole.keys() == streamed.keys() and all(torch.equal(whole[name], streamed[name]) for name in whole)


def test_a_streamed_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness reads each weight: shares that don't add up are found out."""
    saved(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), tmp_path / "old")
    new = Pipeline.parse(["widen:factor=1.5,by=shares"])(trace(tmp_path / "old", lazy=True))
    fill = Group.fill

    def wrong(self: Group, old: Tensor, new: Tensor, noise: Callable[[Tensor], None]) -> None:
        fill(self, old, new, noise)
        if new.dtype == torch.float32:
            new[..., -1] *= 1 + 1e-5

    monkeypatch.setattr(Group, "fill", wrong)
    with pytest.raises(CheckFailed):
        export_huggingface(new, tmp_path / "new", tmp_path / "old")


def test_noise_is_as_large_as_asked() -> None:
    whole = traced("gpt2").tensors[READER].detach()
    for noise in (0.1, 0.5):
        new = Widen(by="shares", noise=noise)(traced("gpt2")).tensors[READER].detach()
        found = (new[80:] - whole / 2).std() / (whole / 2).std()
        assert float(found) == pytest.approx(noise * 0.5**0.5, rel=0.05), (
            "of two that cancel each has half the variance"
        )
        again = Widen(by="shares", noise=noise, seed=1)(traced("gpt2")).tensors[READER]
        assert not torch.equal(new, again)

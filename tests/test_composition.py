"""Passes in any order: what is exact alone is exact together, certificates chain, and a journal replays."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from graphgrow.errors import OptionError, Refusal
from graphgrow.patterns import Pattern, valid
from graphgrow.pipeline import Pipeline, parse_pass
from graphgrow.program import Program
from graphgrow.verify import check
from graphgrow.verify.equivalence import FLOOR, deviation
from tests.programs import outputs, traced

torch.set_num_threads(1)

ATTENTION = ("widen", "add-heads", "widen-keys", "widen-values", "widen-hidden", "deepen")
POOL: dict[str, tuple[str, ...]] = {
    "nanogpt": ATTENTION,
    "gpt2": ATTENTION,
    "vit": ATTENTION,
    "skip_mlp": ("widen", "widen-hidden", "deepen"),
    "mixer": ("widen", "widen-hidden", "deepen"),
    "resnet": ("widen", "deepen"),
    "gated_cnn": ("widen-hidden", "deepen"),
    "small_cnn": ("widen",),
}


@dataclass(frozen=True)
class Drawn:
    """A pipeline at random: a model and passes for it."""

    model: str
    specs: tuple[str, ...]


def drawn(seed: int) -> Drawn:
    chooser = random.Random(seed)
    model = chooser.choice(list(POOL))
    specs: list[str] = []
    for _ in range(chooser.randint(2, 4)):
        name = chooser.choice(POOL[model])
        options = {"factor": str(chooser.choice([1.25, 1.5, 2])), "seed": str(chooser.randrange(9))}
        if chooser.random() < 0.5:
            options["init"] = chooser.choice(["scaled", "copy"])
        if name == "deepen" and chooser.random() < 0.3:
            options["order"] = "stack"
        specs.append(f"{name}:{','.join(f'{key}={value}' for key, value in options.items())}")
    return Drawn(model, tuple(specs))


def run(pipeline: Drawn) -> tuple[Program, Program, int]:
    """The program in float64, what the passes made of it, and how many were refused."""
    old = new = traced(pipeline.model).to(torch.float64)
    refused = 0
    for spec in pipeline.specs:
        try:
            new = parse_pass(spec)(new)
        except Refusal:
            refused += 1
    return old, new, refused


def disagreement(old: Program, new: Program) -> float:
    """How far the outputs of two programs are apart in float64."""
    inputs = old.example({}, seed=7)
    with torch.no_grad():
        return deviation(outputs(old.module().eval(), inputs), outputs(new.module().eval(), inputs))


@pytest.mark.parametrize("seed", range(12))
def test_pipelines_at_random(seed: int) -> None:
    old, new, refused = run(drawn(seed))
    assert refused < len(drawn(seed).specs)
    assert disagreement(old, new) <= FLOOR
    links = [(certificate.old, certificate.new) for certificate in new.journal]
    assert [start for start, _ in links] == [old.digest, *(end for _, end in links[:-1])] and links[-1][1] == new.digest
    assert all(certificate.evidence == "proved and tested" for certificate in new.journal)


def test_a_journal_replays() -> None:
    """From the original checkpoint to the same digest, by the specs in the certificates."""
    old = traced("nanogpt")
    specs = ["widen:factor=1.5,seed=4", "deepen:to=3,init=scaled", "widen-hidden:to=66", "add-heads:to=6,init=copy"]
    new = Pipeline.parse(specs)(old)
    again = Pipeline.parse([certificate.spec for certificate in new.journal])(old)
    assert again.digest == new.digest and again.journal == new.journal


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("widen:factor=1.5", "add-heads:to=6"),
        ("widen-keys:to=16", "widen-values:to=16"),
        ("deepen:to=3", "widen-hidden:to=66"),
    ],
)
def test_passes_on_different_axes_commute(first: str, second: str) -> None:
    """Graph and shapes come out the same either way round, and so does the function."""
    old = traced("nanogpt").to(torch.float64)
    one, two = (Pipeline.parse(specs)(old) for specs in ([first, second], [second, first]))
    assert one.graph == two.graph
    assert {name: tensor.shape for name, tensor in one.tensors.items()} == {n: t.shape for n, t in two.tensors.items()}
    assert max(disagreement(old, one), disagreement(old, two)) <= FLOOR


@pytest.mark.parametrize("model", ["nanogpt", "gpt2", "resnet"])
def test_depth_and_width_are_checked_at_once(model: str) -> None:
    """From outside, by the two programs alone; and a lie in either half is found."""
    old = traced(model)
    specs = ["widen:factor=1.5", "deepen:factor=1.5", "widen-hidden:factor=1.25"]
    new = Pipeline.parse(specs if model != "resnet" else specs[:2])(old)
    found = check(old, new)
    assert found.evidence == "proved and tested", found
    grown = {row.axis for certificate in new.journal for row in certificate.growth}
    assert {row.axis for row in found.growth} >= {name for name in grown if name.startswith("layers")}
    assert found.proof and len(found.proof.constraints) > 2
    zero = [row for row in found.proof.constraints if row.fill == "zero"]
    for row in (zero[0], zero[-1]):
        tensor = new.tensors[row.parameter].detach().clone()
        tensor.view(-1)[-1] += 0.1
        wrong = new.replace(tensors={**new.tensors, row.parameter: tensor})
        assert not check(old, wrong).holds, row


# Passes of all kinds. Factors of two keep groups of four whole.
CUTS = ("sparsify:pattern=2:4", "sparsify:pattern=unstructured,density=0.6,allocation=erk", "factorize:fraction=0.5",
        "merge-factors", "permute-for-nm:rounds=0", "prune-axis:factor=0.75,multiple_of=4", "drop-blocks:layers=0",
        "widen:factor=1.5,multiple_of=4", "widen-hidden:factor=2", "deepen:factor=2", "factorize:budget=0.7",
        "supar:base=hidden=8+mlp=16", "supar:base=hidden=8+mlp=16,form=fresh,sigma=0.1")  # fmt: skip


@pytest.mark.parametrize("seed", range(16))
def test_pipelines_of_all_kinds_at_random(seed: int) -> None:
    """Each pass keeps what its own certificate says of the program before it; masks keep to their patterns; what comes
    out is a program like any other: it learns, it is saved and read."""
    chooser = random.Random(seed)
    new = traced(chooser.choice(["nanogpt", "gpt2", "skip_mlp", "vit"])).to(torch.float64)
    left = chooser.sample(CUTS, 4)
    done: list[str] = []
    for spec in left:
        old = new
        try:
            new = parse_pass(spec)(old)
        except (Refusal, OptionError):
            continue
        done.append(spec)
        certificate = new.certificate
        assert certificate and certificate.holds and (certificate.old, certificate.new) == (old.digest, new.digest)
        if certificate.claim == "Exact":
            inexact = bool(certificate.proof and "rounding" in certificate.proof.why)
            assert disagreement(old, new) <= (1e-9 if inexact else FLOOR), (done, spec)
        else:
            assert certificate.measured and (certificate.measured.norm > 0 or not certificate.bounds)
        for name, kind in new.kinds.items():
            if kind.pattern:
                assert valid(new.tensors[name], Pattern.parse(kind.pattern)), (done, name)
                assert not new.tensors[name].all(), (done, name)
    assert done
    module = new.module().train()
    found = [one for one in tree_leaves(module(**new.example({}, seed=3))) if one.is_floating_point()]
    torch.stack([one.square().mean() for one in found]).sum().backward()
    for name, parameter in module.named_parameters():
        mask = new.tensors.get(f"{name}_mask")
        if mask is not None and parameter.grad is not None:
            assert not parameter.grad[~mask].any(), (done, name)


def test_a_cut_program_is_saved_and_read(tmp_path: Path) -> None:
    specs = ["factorize:fraction=0.5", "sparsify:pattern=2:4", "widen:factor=1.5,multiple_of=4", "deepen:factor=2"]
    new = Pipeline.parse(specs)(traced("nanogpt"))
    new.save(tmp_path / "cut.pt")
    again = Program.load(tmp_path / "cut.pt")
    assert again.digest == new.digest and again.journal == new.journal and again.kinds == new.kinds
    replayed = Pipeline.parse([certificate.spec for certificate in new.journal])(traced("nanogpt"))
    assert replayed.digest == new.digest

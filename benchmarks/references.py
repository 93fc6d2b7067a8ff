"""Side by side with published code, run as it is from clones of it in the folder `REFERENCES` (an environment variable;
skipped without it): nanoGPT-mup (EleutherAI, branch supar, 56d4a3f), In-Time-Over-Parameterization (Liu et al.,
1b6a89e), and the mask code of apex ASP (NVIDIA, 6424da3). The same weights, masks and base sizes for both.

* nanoGPT-mup: a GPT of 4 layers, 512 wide with a base of 256, density 1/4. Its own network with its muP and SuPar
  switched off is traced, given its masks and rewritten by `supar`. Compared are logits (largest deviation over the
  largest logit), learning rate multipliers of all parameters (largest ratio: ours are by the density of the mask that
  was drawn, its by the density that was asked for), deviations of fresh weights where masks let them through (mean
  ratio), and the time of a step.
* ITOP: masks of matrices as large as GPT-2 small's by global magnitude, and densities of convolutions by ERK.
* apex ASP: 2:4 masks of the same matrices.

Of masks the part of equal entries is given, ties left out: of weights that are as large as the threshold ours keep as
many as were asked for, ITOP's all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

import graphgrow as gg
from benchmarks.measure import Row, Skipped, in_turns, ratio_row
from graphgrow.patterns import Pattern, erdos_renyi, select, select_together
from graphgrow.rewrite.masks import masked
from passes import Supar

WIDTH, BASE, DENSITY, LAYERS, LENGTH = 512, 256, 0.25, 4, 128
ALPHAS = {"in": 4.0, "out": 1.5}
TURNS = 5


def rows() -> Iterator[Row]:
    if "REFERENCES" not in os.environ:
        raise Skipped("REFERENCES names no folder with clones of the published code")
    folder = Path(os.environ["REFERENCES"])
    yield from supar(loaded(folder / "nanoGPT-mup" / "model.py"))
    yield from itop(loaded(folder / "In-Time-Over-Parameterization" / "sparselearning" / "core.py"))
    yield from asp(loaded(folder / "apex" / "apex" / "contrib" / "sparsity" / "sparse_masklib.py"))


def loaded(path: Path) -> ModuleType:
    """A module by its file, in silence."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise Skipped(f"there is no {path}")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {path.stem: module}), mock.patch.object(sys, "path", [str(path.parent.parent)]):
        spec.loader.exec_module(module)
    return module


# nanoGPT-mup


def network(reference: ModuleType, **switches: Any) -> nn.Module:
    torch.manual_seed(0)
    config = reference.GPTConfig(
        block_size=LENGTH, vocab_size=256, n_layer=LAYERS, n_head=WIDTH // 64, n_embd=WIDTH, **switches
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return reference.GPT(config)


def supar(reference: ModuleType) -> Iterator[Row]:
    theirs = network(
        reference, mup_enabled=True, supar_enabled=True, sparsity=1 - DENSITY, mup_width_multiplier=WIDTH / BASE,
        mup_input_alpha=ALPHAS["in"], mup_output_alpha=ALPHAS["out"],
    )  # fmt: skip
    tokens = torch.randint(256, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    given = {"idx": tokens, "targets": tokens.roll(-1, 1)}
    plain = gg.trace(network(reference), given)
    cut = {
        name.replace(".parametrizations.weight.original", ".weight"): module
        for name, module in ((name, _mask(theirs, name)) for name, _ in theirs.named_parameters())
        if module is not None
    }
    sparse = masked(plain, {name: (mask.bool(), "unstructured") for name, mask in cut.items()})
    base = (f"hidden={BASE}", f"mlp={4 * BASE}", f"heads={BASE // 64}", "key=1", "value=64")
    options = Supar(base=base, form="fresh", alpha_in=ALPHAS["in"], alpha_out=ALPHAS["out"], seed=1)
    ours = options(sparse)

    state = {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in theirs.named_parameters()}
    same = ours.replace(tensors={**ours.tensors, **{name: p.detach() for name, p in state.items()}})
    module = same.module()
    with torch.no_grad():
        expected, found = theirs(**given)[0], module(**given)[0]
    off = float((found - expected).abs().max() / expected.abs().max())
    yield Row("nanoGPT-mup: logits", f"off by {off:.1e}", "its network", off, target=1e-5)

    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = cast("Any", theirs).configure_optimizers(0.1, 1e-2, (0.9, 0.95), "cpu")
    rates = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scales = {id(p): group["lr_scale"] for group in gg.parameter_groups(module, 1e-2) for p in group["params"]}
    own = dict(module.named_parameters())
    off = max(max(one, 1 / one) for one in (scales[id(own[name])] / rates[id(p)] for name, p in state.items()))
    yield Row("nanoGPT-mup: learning rate multipliers", f"{len(own)} parameters", "its groups", off, target=1.01)
    spread = [_deviation(ours.tensors[name], mask) / _deviation(state[name], mask) for name, mask in cut.items()]
    yield Row("nanoGPT-mup: deviation of fresh weights", "supar", "its own", fmean(spread), target=1.01)

    def step(network: nn.Module) -> None:
        network.zero_grad()
        loss: Tensor = network(**given)[1]
        loss.backward()  # pyright: ignore[reportUnknownMemberType]

    times = in_turns({"ours": lambda: step(module), "theirs": lambda: step(theirs)}, TURNS)
    yield ratio_row("nanoGPT-mup: forward and backward", (times["ours"], times["theirs"]), "its network", target=1.1)


def _deviation(weight: Tensor, mask: Tensor) -> float:
    return float(weight.detach()[mask.bool()].std())


def _mask(network: nn.Module, name: str) -> Tensor | None:
    path, found, _ = name.partition(".parametrizations.weight.original")
    return cast("Tensor", network.get_submodule(f"{path}.parametrizations.weight.0").mask) if found else None


# Masks


def linears() -> list[Tensor]:
    """Matrices as large as those of GPT-2 small's blocks, outputs by inputs."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12
    return [torch.randn(shape, generator=generator) for shape in shapes]


def itop(reference: ModuleType) -> Iterator[Row]:
    weights = linears()

    def theirs(tensors: Sequence[Tensor], mode: str) -> tuple[list[Tensor], str]:
        holder = nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])
        masking = reference.Masking(None, growth_mode="random", redistribution_mode="none", args=Namespace(fix=True))
        masking.modules, masking.apply_mask = [holder], lambda: None
        masking.masks = {name: torch.zeros_like(p) for name, p in holder.named_parameters()}
        said = io.StringIO()
        with contextlib.redirect_stdout(said), mock.patch.object(Tensor, "cuda", lambda self: self):  # pyright: ignore[reportUnknownLambdaType]
            masking.init(mode=mode, density=DENSITY)
        return list(masking.masks.values()), said.getvalue()

    def ours() -> list[Tensor]:
        return select_together(weights, [Pattern()] * len(weights), DENSITY)

    masks = theirs(weights, "lottery_ticket")[0]
    least = min(float(weight.abs()[mask.bool()].min()) for weight, mask in zip(weights, masks, strict=True))
    ties = [weight.abs() == least for weight in weights]
    yield equal("ITOP: masks by global magnitude", ours(), masks, ties)
    times = in_turns({"ours": ours, "theirs": lambda: theirs(weights, "lottery_ticket")}, TURNS)
    yield ratio_row("ITOP: the time of that", (times["ours"], times["theirs"]), "its masks", target=1.0)
    kernels = [torch.zeros(shape) for shape in [(64, 3, 7, 7), (64, 64, 3, 3), (256, 64, 1, 1), (1000, 2048)]]
    told = [float(one) for one in re.findall(r"density: ([0-9.e-]+)", theirs(kernels, "ERK")[1])]
    found = erdos_renyi([kernel.shape for kernel in kernels], DENSITY)
    off = max(abs(a - b) for a, b in zip(found, told, strict=True))
    yield Row("ITOP: densities by ERK", f"off by {off:.1e}", "its densities", off, target=1e-12)


def asp(reference: ModuleType) -> Iterator[Row]:
    weights = linears()

    def theirs() -> list[Tensor]:
        with (
            mock.patch.object(Tensor, "cuda", lambda self: self),  # pyright: ignore[reportUnknownLambdaType]
            mock.patch.object(torch.cuda, "IntTensor", torch.IntTensor),
        ):
            return [reference.m4n2_1d(weight, 0.5) for weight in weights]

    def ours() -> list[Tensor]:
        return [select(weight, Pattern.parse("2:4").along(0, 1)) for weight in weights]

    sizes = [weight.abs().view(-1, 4).sort(1).values for weight in weights]
    near = [one[:, 1] + one[:, 3] == one[:, 2] + one[:, 3] for one in sizes]  # as rounded: sums are what it compares
    ties = [one.repeat_interleave(4).view_as(weight) for one, weight in zip(near, weights, strict=True)]
    yield equal("apex ASP: 2:4 masks", ours(), theirs(), ties)
    times = in_turns({"ours": ours, "theirs": theirs}, TURNS)
    yield ratio_row("apex ASP: the time of that", (times["ours"], times["theirs"]), "m4n2_1d", target=1.0)


def equal(what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], ties: Sequence[Tensor]) -> Row:
    """The part of the entries in which two lists of masks agree, of those that are no ties."""
    told = [~tie for tie in ties]
    count = sum(int(one.sum()) for one in told)
    same = sum(int(((a == b.bool()) & one).sum()) for a, b, one in zip(ours, theirs, told, strict=True))
    return Row(what, f"{count:,} entries", f"{same:,} equal", same / count, target=1.0, least=True)

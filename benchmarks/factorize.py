"""Two factors in place of all linears of GPT-2 small (48 weights, 85 million numbers of 124 million parameters; random
weights whose singular values fall as 1/sqrt(k)), at a quarter of the smaller dimension. The edit, `Factorize.rewrite`,
against `torch.linalg.svd` of the same matrices as they are stored, and by random projections against the exact edit;
by how much more of the weights' norms these are off. Then the whole pass, with its certificate. Measured once, while
other work ran on the machine (a load of 4 on its 2 cores): ratios by CPU time are the ones to read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.measure import Row, in_turns, middle, ratio_row
from graphgrow.program import Program
from graphgrow.rewrite import Rewriter
from passes import Factorize

TURNS = 1
LAYERS, HIDDEN, HEADS = 12, 768, 12


def decaying(program: Program) -> Program:
    """The program with singular values that fall as 1/sqrt(k) in every matrix of its blocks."""
    tensors, known = dict(program.tensors), Rewriter(program).weights("pointwise")
    generator = torch.Generator().manual_seed(0)
    for name, weight in known.items():
        if not isinstance(weight, str) and not weight.outside:
            rows, columns = weight.shape
            smaller = min(rows, columns)
            sides = [torch.linalg.qr(torch.randn(n, smaller, generator=generator)).Q for n in (rows, columns)]
            values = torch.arange(1, smaller + 1) ** -0.5
            tensors[name] = (sides[0] * values @ sides[1].T).contiguous()
    return program.replace(tensors=tensors)


def edited(program: Program, options: Factorize) -> Program:
    rewriter = Rewriter(program)
    options.rewrite(rewriter)
    return rewriter.program


def error(old: Program, new: Program) -> float:
    """The norm of all differences of weights over the norm of these weights."""
    off = whole = 0.0
    for name in old.tensors.keys() - new.tensors.keys():
        weight = old.tensors[name].detach()
        product = new.tensors[f"{name}_left"].detach() @ new.tensors[f"{name}_right"].detach()
        off += float((weight - product).square().sum())
        whole += float(weight.square().sum())
    return (off / whole) ** 0.5


def rows() -> Iterator[Row]:
    program = decaying(models.gpt2_program(LAYERS, HIDDEN, HEADS))
    exact, fast = Factorize(fraction=0.25), Factorize(fraction=0.25, method="randomised")
    program.axes.named  # noqa: B018
    found = {"exact": edited(program, exact), "fast": edited(program, fast)}
    gone = program.tensors.keys() - found["exact"].tensors.keys()
    matrices: list[Tensor] = [tensor.detach() for name, tensor in program.tensors.items() if name in gone]
    errors = {name: error(program, new) for name, new in found.items()}
    works = {
        "svd": lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices],
        "exact": lambda: edited(program, exact),
        "fast": lambda: edited(program, fast),
        "pass": lambda: exact(program),
    }
    times = in_turns(works, TURNS, warm=0)
    peer = f"torch.linalg.svd of the same {len(matrices)} matrices"
    yield ratio_row("edit, exact", (times["exact"], times["svd"]), peer, target=1.3)
    yield ratio_row("whole pass, exact, with its certificate", (times["pass"], times["svd"]), peer)
    row = ratio_row("how much faster random projections are", (times["exact"], times["fast"]), "")
    yield Row(
        row.what, f"random projections: {middle(times['fast'])}", f"exact: {middle(times['exact'])}",
        row.ratio, row.cpu, target=5.0, least=True,
    )  # fmt: skip
    yield ratio_row("edit, by random projections", (times["fast"], times["svd"]), peer)
    yield Row(
        "what factors are off by, of the weights' norm", f"{errors['fast']:.5f}", f"exact: {errors['exact']:.5f}",
        errors["fast"] / errors["exact"],
    )  # fmt: skip

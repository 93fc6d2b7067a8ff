"""Every row of the operator table: what its rules claim, held against numbers.

On the programs of `tests.operator_table`: units of an axis can change places; every growth that the prover says keeps
the function passes `verify`, with random values in all free blocks; and where the blocks that must be zero are not,
outputs differ, so that a proof that holds by mistake would be found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pytest
import torch

from graphgrow import ops
from graphgrow.axes import Atom
from graphgrow.axes.names import Named
from graphgrow.program import Program
from graphgrow.prove import Block, Prover
from graphgrow.rewrite import Resizing, Rewriter
from graphgrow.rewrite.blocks import view_cells
from graphgrow.verify import check, equivalence
from tests import operator_table  # noqa: F401  it fills CASES
from tests.operators import CASES, MODES, TURNS, programs
from tests.permutation import deviation, permutable, reference, run

torch.set_num_threads(1)

KINDS = sorted({row.kind for row in ops.TABLE.values()})
# Kinds of operators that no axis grows through in any program here: frozen, or the proof does not see through them.
REFUSED = {
    "counter", "diagonal", "index_add", "index_put", "input", "loss", "meshgrid", "opaque", "pixel_shuffle",
    "pixel_unshuffle", "scatter", "searchsorted",
}  # fmt: skip
BLIND = {"aten.all.default", "aten.all.dims", "aten.any.default"}  # one more number that is not zero changes nothing


RANDOM = {"aten.uniform.default", "aten.exponential.default", "aten.normal_functional.default"}


def test_every_row_has_a_program() -> None:
    """But what is random, and what freezes all it touches."""
    rows = {op for op, row in ops.TABLE.items() if row.kind != "opaque" and op not in RANDOM}
    assert rows <= {op for op, _ in CASES} | set(MODES)


@pytest.mark.parametrize("kind", KINDS)
def test_rules_hold_in_numbers(kind: str) -> None:
    torch.manual_seed(0)
    wrong: list[str] = []
    grown: set[str] = set()
    noticed: set[str] = set()
    for index, (op, program) in enumerate(programs(kind)):
        assert any(node.op == op for node in program.graph.nodes), f"{op} is not in its program"
        through = _through(program, op)
        try:
            found = [*_immovable(program, through)]
            for axes in _growths(program):
                grown.update(op for axis in axes if axis.atom in through)
                new = _grow(program, axes)
                found += _unequal(program, new, axes)
                if op not in noticed and _notices(program, new, axes):
                    noticed.add(op)
        except Exception as error:  # noqa: BLE001  the other programs are of interest, too
            found = [f"{type(error).__name__}: {error}"]
        wrong += [f"{op}, program {index}: {text}" for text in found]
    wrong += [f"{op}: no program notices that needed zeros are missing" for op in sorted(grown - noticed - BLIND)]
    assert not wrong, "\n" + "\n".join(wrong)
    assert bool(grown) == (kind not in REFUSED), kind


def _through(program: Program, op: str) -> set[Atom]:
    """The axes of all operands and outputs of an operator."""
    axes = program.axes
    names = {name for node in program.graph.nodes if node.op == op for name in (node.name, *node.operands())}
    shapes = [shape for name in names for shape in axes.several.get(name, (axes.terms.get(name, ()),))]
    return {atom for shape in shapes for term in shape for atom in term.atoms}


def _immovable(program: Program, atoms: Collection[Atom]) -> Iterator[str]:
    """Axes whose units can't change places, though they are neither frozen nor ordered."""
    for axis in permutable(program):
        if axis.atom in atoms and not (off := deviation(program, axis)) < 1e-11:  # float64 sums in another order
            yield f"units of {_text(axis)} change places, and outputs are off by {off:.1e}"


def _text(axis: Named) -> str:
    return f"{axis} ({axis.sites[0].parameter}, dim {axis.sites[0].dim})"


def _growths(program: Program) -> list[list[Named]]:
    """The axes that can grow, those at the same place of both turns together."""
    found: dict[tuple[str, int, int], list[Named]] = {}
    for axis in program.axes.named:
        if not axis.frozen and Prover(program.axes, _sizes([axis])).derive().holds:
            site = axis.sites[0]
            name = site.parameter.rpartition(".")[2]
            part = program.axes.parameters[site.parameter][site.dim].atoms.index(axis.atom)
            found.setdefault((name.partition("_")[2] if name.startswith(TURNS) else name, site.dim, part), []).append(
                axis
            )
    return list(found.values())


def _sizes(axes: Sequence[Named]) -> dict[Atom, int]:
    return {axis.atom: int(str(axis.size)) + 2 for axis in axes}


def _grow(program: Program, axes: Sequence[Named]) -> Program:
    rewriter = Rewriter(program)
    rewriter.grow(_sizes(axes))
    return rewriter.program


def _unequal(program: Program, new: Program, axes: Sequence[Named]) -> Iterator[str]:
    """A growth that is proved and yet changes the function."""
    found = check(program, new)
    assert found.proof is not None and found.test is not None
    if not (found.holds and found.proof.holds):
        yield f"{', '.join(map(_text, axes))} grown: {found.proof.why}; {found.test.why}"


def _notices(program: Program, new: Program, axes: Sequence[Named]) -> bool:
    """Whether outputs differ with numbers in the blocks that must be zero (true where none must)."""
    prover = Prover(program.axes, _sizes(axes))
    needed = prover.derive().needed
    tensors = {name: tensor.detach().clone() for name, tensor in new.tensors.items()}
    for name, terms in program.axes.parameters.items():
        for cell, dims, views in view_cells(tensors[name], terms, Resizing(_sizes(axes), {}), prover.layout):
            for view, _ in views if Block(name, cell, dims) in needed else []:
                view.normal_(0.0, 3.0)
    inputs, outputs = reference(program)
    return not needed or equivalence.deviation(outputs, run(new.replace(tensors=tensors), inputs)) > 1e-6

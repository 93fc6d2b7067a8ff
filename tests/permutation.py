"""The permutation oracle: it knows nothing of the rules. Permute the units of an axis at all its sites (and where it is
seen or picked from outside): the function must be the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from graphgrow.axes import Atom, Term
from graphgrow.axes.names import Named
from graphgrow.graph import Graph, Kind, Node, Ref, TensorType
from graphgrow.program import Program
from graphgrow.rewrite import Fills, Resizing, resize
from graphgrow.sizes import number
from graphgrow.verify.equivalence import lowered


def permuted(program: Program, axis: Named) -> tuple[Program, Resizing]:
    size = number(axis.size)
    order = torch.roll(torch.randperm(size, generator=torch.Generator().manual_seed(size)), 1).tolist()
    order = order if order != list(range(size)) else order[::-1]
    resizing = Resizing({axis.atom: size}, {axis.atom: order})
    changed = resize(program, resizing, Fills({}))
    return _remapped(program, changed, axis.atom, order), resizing


def _remapped(program: Program, changed: Program, atom: Atom, order: list[int]) -> Program:
    """Indices from outside the axis are sent to where the units have gone."""
    picks = {lookup.node.name: lookup.index for lookup, term in program.axes.lookups if term == atom and not lookup.own}
    if not picks:
        return changed
    inverse = torch.argsort(torch.tensor(order))
    nodes: list[Node] = [Node("remap", "parameter", ("remap",), (), TensorType((len(order),), "int64"))]
    for node in changed.graph.nodes:
        if node.name in picks:
            index = picks[node.name]
            sent = Node(
                f"{node.name}_sent", "aten.index.Tensor", (Ref("remap"), (Ref(index),)), (), changed.graph[index].type
            )
            nodes.append(sent)
            node = node.map(lambda item, i=index, s=sent: Ref(s.name) if item == Ref(i) else item)
        nodes.append(node)
    first = [node for node in nodes if node.op in ("input", "parameter")]
    graph = Graph(
        (*first, *(n for n in nodes if n.op not in ("input", "parameter"))),
        changed.graph.outputs,
        changed.graph.symbols,
    )
    return replace(
        changed,
        graph=graph,
        tensors={**changed.tensors, "remap": inverse},
        kinds={**changed.kinds, "remap": Kind("constant", False, False)},
    )


def _moved(tensor: Tensor, terms: tuple[Term, ...], resizing: Resizing) -> Tensor:
    for dim, term in enumerate(terms):
        if any(atom in resizing.sizes for atom in term.atoms):
            tensor = tensor.index_select(dim, torch.from_numpy(resizing.source(term)))
    return tensor


def run(program: Program, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        given = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        outputs = pytree.tree_leaves(lowered(program, program.tensors, torch.float64)(**given))
    return [output for output in outputs if isinstance(output, Tensor)]


def permutable(program: Program) -> list[Named]:
    return [axis for axis in program.axes.named if not axis.frozen and not axis.ordered]


def permutes(program: Program) -> list[str]:
    """Permute each axis in turn; the names of the axes. Fails where the function changes."""
    inputs = program.example()
    expected = run(program, inputs)
    axes = permutable(program)
    for axis in axes:
        changed, resizing = permuted(program, axis)
        moved = {name: _moved(value, program.axes.terms[name], resizing) for name, value in inputs.items()}
        found = run(changed, moved)
        for name, old, new in zip(program.graph.output_names, expected, found, strict=True):
            want = _moved(old, program.axes.terms[name], resizing)
            # float64 sums in another order: some ulps of the largest value
            torch.testing.assert_close(new, want, rtol=0, atol=1e-11 * float(want.abs().max()), msg=axis.name)
    return [axis.name for axis in axes]

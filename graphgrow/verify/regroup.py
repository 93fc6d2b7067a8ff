"""The judge of regrouped heads: more heads of keys and values, each used by fewer query heads.

What is to be shown: every tensor of the new program holds what the old one's does, unit u = i*c + j of the new heads of
keys what unit i did, query head r' of it what query head j*(r/c) + r' did. Tensors in which heads of keys stand right
before their query heads are then the same. It holds of the parameters, which are compared; and every operator hands it
on if it acts on each head alike: unit by unit, as layout, in batches, or by summing over all heads of both kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from graphgrow import ops
from graphgrow.axes import Atom, Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.certificate import Growth, Move, Proof, Test
from graphgrow.errors import Refusal
from graphgrow.graph import Node, Ref
from graphgrow.program import Program
from graphgrow.rewrite.reading import same
from graphgrow.rewrite.regroup import Groups, groups, misfit, moved, new_sizes, positions, regroup_graph
from graphgrow.rewrite.single import singled
from graphgrow.rewrite.units import number
from graphgrow.verify.align import Alignment
from graphgrow.verify.depth import prove_depth
from graphgrow.verify.equivalence import FULL_SIZE, Pair, runners, sizes_to_try, trial, verdict
from graphgrow.verify.moves import pieces

_UNIT_BY_UNIT = {"pointwise", "power", "like"}
_LAYOUT = {"reshape", "permute", "unsqueeze", "expand", "repeat_interleave", "cat", "stack", "split", "slice", "select",
           "unbind", "getitem"}  # fmt: skip


@dataclass(frozen=True)
class Regrouped:
    """Which heads became how many in the old program (single ones with axes of their own), and whether that is all."""

    old: Program
    chosen: Groups
    proof: Proof


def prove_regrouped(old: Program, new: Program) -> Regrouped | None:
    """None for programs that differ otherwise."""
    shapes = [{name: tensor.shape for name, tensor in program.tensors.items()} for program in (old, new)]
    if shapes[0] == shapes[1] or shapes[0].keys() != shapes[1].keys():
        return None
    if len(old.graph.nodes) != len(new.graph.nodes):  # a single head without an axis got one first
        apart = singled(old)
        alike = len(apart.graph.nodes) == len(new.graph.nodes) and prove_depth(old, apart).proof.holds
        return prove_regrouped(apart, new) if alike else None
    chosen = _chosen(old, new)
    if not chosen:
        return None
    if regroup_graph(old.unit_axes, chosen) != new.graph or (old.aliases, old.kinds) != (new.aliases, new.kinds):
        return None
    spoilt = (reason for node in old.graph.nodes for reason in _spoils(old, node, chosen))
    odd = misfit(new.graph)
    unfit = f"{odd.op} ({odd.source or odd.name}) has other heads on its sides" if odd else ""
    held = next((old.unit_axes.frozen[atom][0] for atom in new_sizes(chosen) if atom in old.unit_axes.frozen), "")
    if why := _tensors(old, new, chosen) or held or unfit or next(spoilt, ""):
        return Regrouped(old, chosen, Proof(holds=False, why=why))
    count = sum(moved(old.unit_axes.terms.get(node.name, ()), chosen) for node in old.graph.nodes)
    why = f"every output is the same; {count} of {len(old.graph.nodes)} nodes hold repeated heads, each treated alike"
    return Regrouped(old, chosen, Proof(holds=True, why=why))


def test_regrouped(old: Program, new: Program, seed: int) -> Test | None:
    """Both programs as they are, on several sizes; none for programs too large for that."""
    if old.size + new.size > FULL_SIZE:
        return None
    pair, before, after = Pair(old, new, Alignment()), runners(old, old.tensors), runners(new, new.tensors)
    trials = [trial(pair, before, after, sizes, seed + index) for index, sizes in enumerate(sizes_to_try(old))]
    return verdict(trials, False, seed)


def regrouped_growth(found: Regrouped) -> tuple[Growth, ...]:
    names = {named.atom: named.name for named in found.old.unit_axes.named}
    rows: list[Growth] = []
    for keys, (queries, copies) in found.chosen.items():
        rows.append(Growth(axis=names[keys], old=number(keys), new=number(keys) * copies))
        rows.append(Growth(axis=names[queries], old=number(queries), new=number(queries) // copies))
    return tuple(rows)


def regrouped_moves(new: Program, found: Regrouped) -> Iterator[Move]:
    """Where values went: as many copies of each head's as there are now."""
    old = found.old
    for name, terms in old.unit_axes.parameters.items():
        if moved(terms, found.chosen) and old.kinds[name].role == "parameter":
            places = [positions(term, found.chosen) for term in terms]
            copies = max(1, round(new.tensors[name].numel() / old.tensors[name].numel()))
            runs = tuple(tuple(pieces(np.arange(len(origin)), origin)) for origin in places)
            yield Move(old=name, new=name, shape=tuple(new.tensors[name].shape), copies=copies, runs=runs)


def _chosen(old: Program, new: Program) -> Groups:
    """Which heads of keys have become more, by the shapes of the parameters that have them."""
    found: dict[Atom, tuple[Atom, int]] = {}
    for keys, queries in groups(old.unit_axes).items():
        shapes = {name: old.unit_axes.parameters[name] for name in old.unit_axes.holders.get(keys, ())}
        for copies in (count for count in range(2, number(queries) + 1) if number(queries) % count == 0):
            sizes = new_sizes({keys: (queries, copies)})
            wanted = {name: tuple(term.resized(sizes) for term in terms) for name, terms in shapes.items()}
            fits = all(name in new.tensors and tuple(new.tensors[name].shape) == s for name, s in wanted.items())
            if fits and any(tuple(old.tensors[name].shape) != shape for name, shape in wanted.items()):
                found[keys] = (queries, copies)
    return found


def _tensors(old: Program, new: Program, chosen: Groups) -> str:
    """The first tensor that holds something else than repeated heads, as text."""
    for name, before in old.tensors.items():
        after, terms = new.tensors.get(name), old.unit_axes.parameters.get(name, ())
        if after is None:
            return f"no {name} in the new program"
        if before.is_meta or after.is_meta:
            continue
        expected = before.detach()
        for dim, term in enumerate(terms):
            try:
                places = positions(term, chosen)
            except Refusal as refusal:
                return refusal.found
            if not np.array_equal(places, np.arange(len(places))) or len(places) != expected.shape[dim]:
                expected = expected.index_select(dim, torch.as_tensor(places))
        if after is not before and not same(expected, after.detach()):
            return f"{name} holds something else than repeated heads"
    return ""


def _spoils(old: Program, node: Node, chosen: Groups) -> Iterator[str]:
    """Why an operator does not act on each head alike."""
    terms = old.unit_axes.terms
    read = [terms.get(name, ()) for name in node.operands()]
    several = old.unit_axes.several.get(node.name, ())
    if not any(moved(shape, chosen) for shape in (*read, *several, terms.get(node.name, ()))):
        return
    where = f"{node.op} ({node.source or node.name})"
    if node.op == "input" or node.name in old.graph.output_names:
        yield f"repeated heads are seen in {node.name}"
    kind = ops.kind(node.op)
    ours = {atom for keys, (queries, _) in chosen.items() for atom in (keys, queries)}
    if kind == "parameter" or kind in _UNIT_BY_UNIT or kind in _LAYOUT:
        return
    if kind == "contraction":
        if any(_parted(summed, chosen) for summed in _sums(old, node)):
            yield f"{where} sums over heads of keys without the query heads that use them"
    elif kind == "attention":
        inside = [term for arg in node.args[:3] if isinstance(arg, Ref) for term in terms[arg.name][-2:]]
        if _has(inside, ours):
            yield f"{where} attends over heads"
    elif kind in ("sum", "mean", "reduction"):
        had = {atom for shape in read for term in shape for atom in term.atoms}
        gone = had - {atom for term in terms[node.name] for atom in term.atoms}
        if any(_reduced(kind, keys, queries, had, gone) for keys, (queries, _) in chosen.items()):
            yield f"{where} reduces over heads"
    elif kind == "along":
        if _has([read[0][_dimension(node)]], ours):
            yield f"{where} goes along heads"
    elif kind == "layer_norm":
        shape, queries = node.args[1], {query for query, _ in chosen.values()}
        if _has(read[0][-len(shape) :] if isinstance(shape, tuple) else read[0], ours) and _has(read[0], queries):
            yield f"{where} normalises over heads"
    else:
        yield f"{where} is not known to treat heads alike"


def _reduced(kind: str, keys: Atom, queries: Atom, had: set[Atom], gone: set[Atom]) -> bool:
    """Whether a reduction tells repeated heads from single ones. A mean of equally many copies of each does not."""
    if keys not in gone and queries not in gone:
        return False
    return not (kind == "mean" and queries not in had) and (kind == "reduction" or (keys in gone) != (queries in gone))


def _dimension(node: Node) -> int:
    dim = node.args[1]
    assert isinstance(dim, int)
    return dim


def _has(terms: Sequence[Term], atoms: set[Atom]) -> bool:
    return any(atom in atoms for term in terms for atom in term.atoms)


def _sums(old: Program, node: Node) -> Iterator[list[Term]]:
    """For each factor of a contraction the dimensions that are summed over."""
    factors, _ = operands(node)
    shapes = [old.unit_axes.terms[factor.name] if isinstance(factor, Ref) else () for factor in factors]
    inputs, output = equation(node, [len(shape) for shape in shapes])
    for letters, shape in zip(inputs, shapes, strict=True):
        yield [term for letter, term in zip(letters, shape, strict=True) if letter not in output]


def _parted(summed: Sequence[Term], chosen: Groups) -> bool:
    """Whether a sum has heads of keys, or query heads, without the others."""
    atoms = {atom for term in summed for atom in term.atoms}
    return any((keys in atoms) != (queries in atoms) for keys, (queries, _) in chosen.items())

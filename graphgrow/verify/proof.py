"""The proof for two programs at hand: facts are read off the weights, then carried through the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphgrow.axes import Axes
from graphgrow.certificate import Constraint, Fill, Proof, Rescaled
from graphgrow.program import Program
from graphgrow.prove import ANY, SAME, Assignment, Block, Prover, kind, text
from graphgrow.prove.propose import STRATEGIES, Way, chosen, propose, ways
from graphgrow.rewrite import literal
from graphgrow.rewrite.reading import Reader
from graphgrow.verify.align import Alignment
from graphgrow.verify.explain import growth_steps


@dataclass(frozen=True)
class Proved:
    """A proof, and for which assignment of blocks and numbers it holds, made in the way of `strategy`; `read` is what
    the blocks of the new program do hold."""

    proof: Proof
    assignment: Assignment = field(default_factory=Assignment)
    strategy: Way = "zeros"
    read: Assignment = field(default_factory=Assignment)


def prove(old: Program, new: Program, alignment: Alignment) -> Proved:
    """Whether every output of `new` equals that of `old` whatever the free blocks hold."""
    if not alignment.grows:
        return Proved(Proof(holds=False, why="axes became smaller: nothing is promised"))
    prover = prover_of(old, alignment)
    reader = Reader(old.axes, old.tensors, new.tensors, alignment.sizes, alignment.factors.values())
    failures: list[str] = []
    for strategy in ways(prover, chosen(old.graph, alignment.factors), STRATEGIES):
        facts = reader.facts(proposed(old, prover, strategy, alignment))
        found = facts if isinstance(facts, str) else proved(old, prover, strategy, facts, alignment)
        if isinstance(found, Proved):
            return found
        failures.append(found)
    return Proved(Proof(holds=False, why=failures[0]))


def prover_of(old: Program, alignment: Alignment) -> Prover:
    """The prover of a growth. Outputs may have new units: the certificate says which."""
    return Prover(old.axes, dict(alignment.sizes), old.fixed, extend_outputs=True)


def proposed(old: Program, prover: Prover, strategy: Way, alignment: Alignment) -> Assignment:
    """What one way to keep the function wants of all blocks."""
    return propose(prover, strategy, chosen(old.graph, alignment.factors))[0]


def proved(
    old: Program, prover: Prover, strategy: Way, facts: Mapping[Block, int], alignment: Alignment
) -> Proved | str:
    """The proof from facts that were read, or as text why there is none."""
    read = Assignment(dict(facts), alignment.factors)
    found = prover.derive(read)
    if not found.holds:
        return found.why
    rows = constraints(old.axes, found.assignment, found.needed)
    numbers, steps = _rescaled(old, alignment), growth_steps(prover)
    proof = Proof(holds=True, why=found.why, constraints=rows, numbers=numbers, steps=steps)
    return Proved(proof, found.assignment, strategy, read)


def _rescaled(old: Program, alignment: Alignment) -> tuple[Rescaled, ...]:
    found: list[Rescaled] = []
    for place, value in alignment.numbers.items():
        node = old.graph[place[0]]
        where = f"{node.op} ({node.source or node.name})"
        found.append(Rescaled(node=node.name, place=where, old=literal(old, place), new=value))
    return tuple(found)


def constraints(axes: Axes, assignment: Assignment, needed: Mapping[Block, str]) -> tuple[Constraint, ...]:
    """What blocks must hold, for people: new ones that are not free, old ones that are multiplied."""
    names = {named.atom: named.name for named in axes.named}
    rows: list[Constraint] = []
    for block, fact in assignment.blocks.items():
        if fact == ANY or (not block.dims and fact == SAME):
            continue
        terms = axes.parameters[block.parameter]
        along = [names.get(atom, str(atom)) for dim in block.dims for atom in terms[dim].atoms]
        rows.append(
            Constraint(
                parameter=block.parameter, dim=block.dims[0] if block.dims else -1, axis=along[0] if along else "",
                fill=_fill(block, fact), text=text(fact), reason=needed.get(block, ""),
            )
        )  # fmt: skip
    return tuple(rows)


def _fill(block: Block, fact: int) -> Fill:
    if kind(fact) == "share":
        return "share"
    if not block.dims:
        return "scaled"
    fills: dict[str, Fill] = {"zero": "zero", "mean": "mean", "free": "positive"}
    return fills.get(kind(fact), "copy")


def changed(old: Program, new: Program, alignment: Alignment) -> str:
    """The first tensor of `new` that is no growth of the old one, as text; empty when all are."""
    facts = Reader(old.axes, old.tensors, new.tensors, alignment.sizes).facts(Assignment())
    return facts if isinstance(facts, str) else ""


def broken(old: Program, alignment: Alignment) -> str:
    """Whether other new values would have been a proof, as text: then a constraint is broken. Empty when none would."""
    provable = alignment.grows and prover_of(old, alignment).derive().holds
    return "new values are not zero where this growth needs them to be" if provable else ""

"""The judges: each looks at two programs and says what it finds, or that they are none of its own.

They are asked in turn, and the first that answers decides; the last answers always. No judge is told how a program was
made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

from graphgrow.certificate import Certificate, Growth, Move, Proof, Test
from graphgrow.program import Program
from graphgrow.rewrite import Resizing
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.depth import dead_layers, prove_depth, shallower, test_depth
from graphgrow.verify.equivalence import FULL_SIZE, Pair, shrunk, test
from graphgrow.verify.gradients import dead_axes
from graphgrow.verify.likeness import Likeness, likeness
from graphgrow.verify.mixed import between
from graphgrow.verify.mixtures import stacks
from graphgrow.verify.moves import kept_moves, moves, renamed
from graphgrow.verify.proof import Proved, broken, changed, prove
from graphgrow.verify.prune import prove_pruned, test_pruned
from graphgrow.verify.regroup import prove_regrouped, regrouped_growth, regrouped_moves, test_regrouped
from graphgrow.verify.reorder import prove_reordered


@dataclass(frozen=True, eq=False)
class Case:
    """Two programs to compare, and the seed of the numbers with which they are run."""

    old: Program
    new: Program
    seed: int = 0

    @property
    def weighed(self) -> bool:
        return self.old.has_weights and self.new.has_weights

    @property
    def longer(self) -> int:
        """How many operators the new graph has more."""
        return len(self.new.graph.nodes) - len(self.old.graph.nodes)

    @cached_property
    def alignment(self) -> Alignment:
        return align(self.old, self.new)

    @cached_property
    def proved(self) -> Proved:
        return prove(self.old, self.new, self.alignment)

    def certificate(
        self, proof: Proof, tested: Test | None, growth: tuple[Growth, ...] = (), gone: tuple[Move, ...] = ()
    ) -> Certificate:
        return Certificate(
            spec="check", old=self.old.digest, new=self.new.digest, claim="Exact", growth=growth,
            proof=proof, test=tested, moves=gone, version=version("graphgrow"),
        )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What was found of two programs, which new parameters can never learn, and the likeness of programs that differ
    in their operators."""

    certificate: Certificate
    dead: Callable[[], list[str]] = list
    likeness: Likeness | None = None


Judge = Callable[[Case], Finding | None]


def judged(case: Case) -> Finding:
    """What the first judge finds whose case it is. Raises CheckFailed for programs that can't be compared."""
    return next(found for judge in _JUDGES if (found := judge(case)) is not None)


def _likened(case: Case) -> Finding | None:
    """One function in other operators: of the form that both have, the weights and numbers are compared."""
    if [node.op for node in case.old.graph.nodes] == [node.op for node in case.new.graph.nodes]:
        return None
    found = likeness(case.old, case.new)
    if isinstance(found, str):
        return None
    alignment = align(found.old, found.new)
    proved = prove(found.old, found.new, alignment)
    proof = proved.proof.model_copy(update={"why": found.explain(proved.proof)})
    tested = found.test(case.seed, stored=True) if case.weighed and proof.holds else None
    gone = moves(found.old, found.new, alignment, proved.read) if proof.holds else ()
    certificate = case.certificate(proof, tested, gone=(*gone, *found.fresh()))
    return Finding(certificate.model_copy(update={"removed": found.removed}), likeness=found)


def _shallower(case: Case) -> Finding | None:
    """Fewer layers: those that went must have done nothing."""
    if case.longer >= 0:
        return None
    old, new = case.old, case.new
    found = prove_depth(new, old)
    tested = test_depth(new, old, found, case.seed) if case.weighed and found.proof.holds else None
    growth = tuple(Growth(axis=row.axis, old=row.new, new=row.old) for row in found.growth)
    rows = tuple(row.model_copy(update={"removed": True}) for row in found.proof.constraints)
    proof = found.proof.model_copy(update={"constraints": rows})
    certificate = case.certificate(proof, tested, growth, tuple(renamed(old, new, frozenset())))
    gone = [name for name, node in old.graph.parameters.items() if node.name not in new.graph.by_name]
    learned = tuple(name for name in gone if old.kinds[name].role == "parameter")
    return Finding(certificate.model_copy(update={"removed": learned}))


def _regrouped(case: Case) -> Finding | None:
    """Heads of keys and values repeated for parts of their query heads."""
    found = prove_regrouped(case.old, case.new)
    if found is None:
        return None
    tested = test_regrouped(case.old, case.new, case.seed) if case.weighed and found.proof.holds else None
    gone = tuple(regrouped_moves(case.new, found))
    return Finding(case.certificate(found.proof, tested, regrouped_growth(found), gone))


def _deepened(case: Case) -> Finding | None:
    """More layers. Without a proof numbers say nothing: layers may do little on random inputs."""
    if case.longer <= 0:
        return None
    old, new = case.old, case.new
    found = prove_depth(old, new)
    middle = None if found.proof.holds else shallower(old, new)
    if middle is not None:
        return _in_two_steps(case, middle)
    tested = test_depth(old, new, found, case.seed) if case.weighed and found.proof.holds else None
    mixed = tuple(move for one in found.mixtures for move in stacks(old, new, one))
    gone = mixed or tuple(renamed(old, new, found.new))
    certificate = case.certificate(found.proof, tested, found.growth, gone)
    return Finding(certificate, lambda: dead_layers(old, new, found, case.seed) if case.weighed else [])


def _pruned(case: Case) -> Finding | None:
    """Fewer units: without a proof numbers say nothing, as random inputs need not read what is gone."""
    if not case.alignment.shrinks:
        return None
    found = prove_pruned(case.old, case.new, case.alignment)
    tested = test_pruned(case.old, case.new, found, case.seed) if case.weighed and found.proof.holds else None
    gone = tuple(kept_moves(case.old, case.new, found.kept, found.growth, found.proved.read))
    return Finding(_extended(case, case.certificate(found.proof, tested, _growth(case), gone)))


def _mixed(case: Case) -> Finding | None:
    """Some axes larger, others smaller."""
    middle = between(case.old, case.new, case.alignment)
    return None if middle is None else _in_two_steps(case, middle)


def _reordered(case: Case) -> Finding | None:
    """The same units in another order."""
    if case.alignment.sizes or case.proved.proof.holds:
        return None
    found = prove_reordered(case.old, case.new)
    if found is None:
        return None
    tested = found.test(case.old, case.new, case.seed) if case.weighed else None
    return Finding(case.certificate(found.proof, tested, gone=tuple(found.moves(case.old, case.new))))


def _resized(case: Case) -> Finding:
    """The same operators: axes that have grown, or nothing but other values."""
    old, new, alignment, proved = case.old, case.new, case.alignment, case.proved
    found = test(old, new, alignment, proved, case.seed) if case.weighed else None
    if found and not proved.proof.holds:
        found = _alone(found, changed(old, new, alignment) or broken(old, alignment))
    gone = tuple(moves(old, new, alignment, proved.read))
    certificate = _extended(case, case.certificate(proved.proof, found, _growth(case), gone))
    return Finding(certificate, lambda: _dead(case) if case.weighed else [])


_JUDGES: tuple[Judge, ...] = (_likened, _shallower, _regrouped, _deepened, _pruned, _mixed, _reordered, _resized)


def _in_two_steps(case: Case, middle: Program) -> Finding:
    """Two steps in one, by way of a program between: axes and layers have grown, or some axes have shrunk."""
    first = judged(Case(case.old, middle, case.seed))
    second = judged(Case(middle, case.new, case.seed))
    parts = [one.certificate for one in (first, second)]
    proofs = [one.proof for one in parts if one.proof]
    tests = [one.test for one in parts if one.test]
    proof = Proof(
        holds=all(one.holds for one in proofs),
        why="; ".join(one.why for one in proofs if one.holds == all(other.holds for other in proofs)),
        constraints=tuple(row for one in proofs for row in one.constraints),
        numbers=tuple(row for one in proofs for row in one.numbers),
        steps=tuple(step for one in proofs for step in one.steps),
    )
    tested = None
    if len(tests) == len(parts):
        tested = Test(
            holds=all(one.holds for one in tests),
            trials=tuple(trial for one in tests for trial in one.trials),
            reduced=any(one.reduced for one in tests),
            why="; ".join(one.why for one in tests),
            seed=case.seed,
        )
    growth = tuple(row for one in parts for row in one.growth)
    certificate = case.certificate(proof, tested, growth)
    certificate = certificate.model_copy(update={"extended": tuple(name for one in parts for name in one.extended)})
    return Finding(certificate, lambda: [*first.dead(), *second.dead()])


def _alone(found: Test, changes: str) -> Test:
    """A test without a proof speaks for whole programs that keep their old values, of a graph on which no growth could
    be proved: random inputs need not read what is changed (a row of a table, a counter), need not switch on the unit
    whose zeros are missing (a ReLU), and shrunk programs need not hold it."""
    doubt = changes or ("only shrunk programs were run, and there is no proof" if found.reduced else "")
    return found.model_copy(update={"holds": False, "why": f"{doubt}; {found.why}"}) if doubt else found


def _growth(case: Case) -> tuple[Growth, ...]:
    names = {named.atom: named.name for named in case.old.axes.named}
    return tuple(
        Growth(axis=names.get(atom, str(atom)), old=int(str(atom.size)), new=size)
        for atom, size in case.alignment.changed.items()
    )


def _extended(case: Case, certificate: Certificate) -> Certificate:
    """The certificate with the outputs whose units are others than before."""
    terms = {name: case.old.axes.terms[name] for name in dict.fromkeys(case.old.graph.output_names)}
    resizing = Resizing(case.alignment.changed)
    extended = tuple(name for name, found in terms.items() if resizing.touches(found))
    return certificate.model_copy(update={"extended": extended})


def _dead(case: Case) -> list[str]:
    """The grown axes on which nothing new can learn: what is zero by choice is as dead as what must be."""
    pair = Pair(case.old, case.new, case.alignment, case.proved.read)
    if case.old.size + case.new.size > FULL_SIZE:
        pair = shrunk(pair, replace(case.proved, assignment=case.proved.read))
    return dead_axes(pair, case.seed)

"""Who judges: the only room that makes certificates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from torch import Tensor

from graphgrow.certificate import Certificate, Claim, Growth, Measured, Move, Proof, Test
from graphgrow.errors import CheckFailed, DeadGrowth, OptionError
from graphgrow.program import Program
from graphgrow.rewrite import Resizing
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.depth import dead_layers, prove_depth, shallower, test_depth
from graphgrow.verify.equivalence import FULL_SIZE, Pair, measure, shrunk, test
from graphgrow.verify.gradients import dead_axes
from graphgrow.verify.likeness import Likeness, likeness
from graphgrow.verify.mixed import between
from graphgrow.verify.mixtures import stacks
from graphgrow.verify.moves import kept_moves, moves, renamed
from graphgrow.verify.proof import Proved, broken, changed, prove
from graphgrow.verify.prune import prove_pruned, test_pruned
from graphgrow.verify.regroup import Regrouped, prove_regrouped, regrouped_growth, regrouped_moves, test_regrouped
from graphgrow.verify.reorder import prove_reordered

__all__ = ["certify", "check"]


@dataclass(frozen=True)
class _Finding:
    """What was found of two programs, and which new parameters can never learn."""

    certificate: Certificate
    dead: Callable[[], list[str]]
    likeness: Likeness | None = None


def check(old: Program, new: Program, *, seed: int = 0) -> Certificate:
    """Compare two programs from outside, whoever made them: proof and numeric test.

    The certificate says whether they are equivalent (`holds`); it is not refused if not. Raises CheckFailed where the
    programs can't be compared at all, OptionError for a seed that no generator takes.
    """
    if not 0 <= seed < 2**32:
        raise OptionError(found=f"seed={seed}", fix="give a seed from 0 to 2**32 - 1")
    return _compare(old, new, seed).certificate


def _compare(old: Program, new: Program, seed: int) -> _Finding:
    weighed = old.has_weights and new.has_weights
    if [node.op for node in old.graph.nodes] != [node.op for node in new.graph.nodes]:
        found = likeness(old, new)
        if not isinstance(found, str):
            return _likened(found, seed, weighed)
    if len(old.graph.nodes) > len(new.graph.nodes):
        return _shallower(old, new, seed, weighed)
    split = prove_regrouped(old, new)
    if split is not None:
        return _regrouped(old, new, split, seed, weighed)
    if len(old.graph.nodes) < len(new.graph.nodes):
        return _deepened(old, new, seed, weighed)
    alignment = align(old, new)
    if alignment.shrinks:
        return _pruned(old, new, alignment, seed, weighed)
    middle = between(old, new, alignment)
    if middle is not None:
        return _both(old, middle, new, seed)
    proved = prove(old, new, alignment)
    moved = None if proved.proof.holds or alignment.sizes else prove_reordered(old, new)
    if moved is not None:
        tested = moved.test(old, new, seed) if weighed else None
        return _Finding(_certificate(old, new, (), moved.proof, tested, tuple(moved.moves(old, new))), list)
    found = test(old, new, alignment, proved, seed) if weighed else None
    if found and not proved.proof.holds:
        found = _alone(found, changed(old, new, alignment) or broken(old, alignment))
    gone = moves(old, new, alignment, proved.read)
    certificate = _certificate(old, new, _growth(old, alignment), proved.proof, found, gone)
    certificate = certificate.model_copy(update={"extended": _extended(old, alignment)})
    return _Finding(certificate, lambda: _dead(old, new, alignment, proved, seed) if weighed else [])


def _likened(found: Likeness, seed: int, weighed: bool) -> _Finding:
    """One function in other operators: of the form that both have, the weights and numbers are compared."""
    alignment = align(found.old, found.new)
    proved = prove(found.old, found.new, alignment)
    proof = proved.proof.model_copy(update={"why": found.explain(proved.proof)})
    tested = found.test(seed, stored=True) if weighed and proof.holds else None
    gone = moves(found.old, found.new, alignment, proved.read) if proof.holds else ()
    certificate = _certificate(found.first, found.second, (), proof, tested, (*gone, *found.fresh()))
    return _Finding(certificate.model_copy(update={"removed": found.removed}), list, found)


def _regrouped(old: Program, new: Program, found: Regrouped, seed: int, weighed: bool) -> _Finding:
    """Heads of keys and values repeated for parts of their query heads."""
    tested = test_regrouped(old, new, seed) if weighed and found.proof.holds else None
    gone = tuple(regrouped_moves(new, found))
    growth = regrouped_growth(found)
    return _Finding(_certificate(old, new, growth, found.proof, tested, gone), list)


def _pruned(old: Program, new: Program, alignment: Alignment, seed: int, weighed: bool) -> _Finding:
    """Fewer units: without a proof numbers say nothing, as random inputs need not read what is gone."""
    found = prove_pruned(old, new, alignment)
    tested = test_pruned(old, new, found, seed) if weighed and found.proof.holds else None
    gone = tuple(kept_moves(old, new, found.kept, found.growth, found.proved.read))
    certificate = _certificate(old, new, _growth(old, alignment), found.proof, tested, gone)
    return _Finding(certificate.model_copy(update={"extended": _extended(old, alignment)}), list)


def _deepened(old: Program, new: Program, seed: int, weighed: bool) -> _Finding:
    """Programs of different depth. Without a proof numbers say nothing: layers may do little on random inputs."""
    found = prove_depth(old, new)
    middle = None if found.proof.holds else shallower(old, new)
    if middle is not None:
        return _both(old, middle, new, seed)
    tested = test_depth(old, new, found, seed) if weighed and found.proof.holds else None
    mixed = tuple(move for one in found.mixtures for move in stacks(old, new, one))
    certificate = _certificate(old, new, found.growth, found.proof, tested, mixed or renamed(old, new, found.new))
    return _Finding(certificate, lambda: dead_layers(old, new, found, seed) if weighed else [])


def _shallower(old: Program, new: Program, seed: int, weighed: bool) -> _Finding:
    """Fewer layers: those that went must have done nothing."""
    found = prove_depth(new, old)
    tested = test_depth(new, old, found, seed) if weighed and found.proof.holds else None
    growth = tuple(Growth(axis=row.axis, old=row.new, new=row.old) for row in found.growth)
    rows = tuple(row.model_copy(update={"removed": True}) for row in found.proof.constraints)
    proof = found.proof.model_copy(update={"constraints": rows})
    certificate = _certificate(old, new, growth, proof, tested, renamed(old, new, frozenset()))
    gone = [name for name, node in old.graph.parameters.items() if node.name not in new.graph.by_name]
    learned = tuple(name for name in gone if old.kinds[name].role == "parameter")
    return _Finding(certificate.model_copy(update={"removed": learned}), list)


def _both(old: Program, middle: Program, new: Program, seed: int) -> _Finding:
    """Two steps in one, by way of a program between: axes and layers have grown, or some axes have shrunk."""
    wide, deep = _compare(old, middle, seed), _compare(middle, new, seed)
    parts = [one.certificate for one in (wide, deep)]
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
            seed=seed,
        )
    growth = tuple(row for one in parts for row in one.growth)
    certificate = _certificate(old, new, growth, proof, tested, ())
    certificate = certificate.model_copy(update={"extended": tuple(name for one in parts for name in one.extended)})
    return _Finding(certificate, lambda: [*wide.dead(), *deep.dead()])


def _certificate(
    old: Program, new: Program, growth: tuple[Growth, ...], proof: Proof, tested: Test | None, gone: tuple[Move, ...]
) -> Certificate:
    return Certificate(
        spec="check", old=old.digest, new=new.digest, claim="Exact", growth=growth,
        proof=proof, test=tested, moves=gone, version=version("graphgrow"),
    )  # fmt: skip


def _alone(found: Test, changes: str) -> Test:
    """A test without a proof speaks for whole programs that keep their old values, of a graph on which no growth could
    be proved: random inputs need not read what is changed (a row of a table, a counter), need not switch on the unit
    whose zeros are missing (a ReLU), and shrunk programs need not hold it."""
    doubt = changes or ("only shrunk programs were run, and there is no proof" if found.reduced else "")
    return found.model_copy(update={"holds": False, "why": f"{doubt}; {found.why}"}) if doubt else found


def certify(
    old: Program, new: Program, *, spec: str, claim: Claim, seed: int = 0, data: Sequence[Mapping[str, Tensor]] = ()
) -> Certificate:
    """The certificate of a pass. What claims no more than `Changes` and turns out to be exact is called so; otherwise
    the change is measured, on `data` where there is some. Raises CheckFailed where the claim does not hold,
    DeadGrowth."""
    try:
        finding = _compare(old, new, seed)
    except CheckFailed:  # an axis of one unit is none any more: the graphs can't be laid over each other
        if claim != "Changes":
            raise
        finding = _Finding(_certificate(old, new, (), Proof(holds=False, why=""), None, ()), list)
    found = finding.certificate.model_copy(update={"spec": spec})
    weighed = old.has_weights and new.has_weights
    if claim == "Within" and not found.holds and finding.likeness and weighed:
        return _within(found, finding.likeness, measure(old, new, data, seed), seed)
    if claim == "Changes" and not found.holds:
        measured = measure(old, new, data, seed) if weighed else None
        return found.model_copy(update={"claim": claim, "measured": measured, "proof": None, "test": None})
    if not found.holds:
        reasons = [evidence.why for evidence in (found.proof, found.test) if evidence and not evidence.holds]
        raise CheckFailed(found=f"a rewrite that does not keep the function: {'; '.join(reasons)}", where=spec)
    if dead := finding.dead():
        raise DeadGrowth(
            found=f"a dead growth: no new parameter on {', '.join(dead[:3])} ever gets a gradient",
            where=spec,
            fix="start the free blocks with init=scaled or init=copy, or grow to a multiple of the size with by=copies",
        )
    return found


def _within(found: Certificate, alike: Likeness, measured: Measured, seed: int) -> Certificate:
    """The certificate of a program whose weights differ, and nothing else. Raises CheckFailed where more does."""
    tested = alike.test(seed, stored=False)
    if alike.numbered or not tested.holds:
        why = "numbers in the graph differ" if alike.numbered else tested.why
        raise CheckFailed(found=f"a rewrite that changes more than weights: {why}", where=found.spec)
    bounds = tuple(alike.bounds())
    proof = Proof(holds=True, why=f"the same function of its weights, of which {len(bounds)} differ")
    changes = {"claim": "Within", "proof": proof, "test": tested, "measured": measured, "bounds": bounds}
    return found.model_copy(update=changes)


def _growth(old: Program, alignment: Alignment) -> tuple[Growth, ...]:
    names = {named.atom: named.name for named in old.axes.named}
    return tuple(
        Growth(axis=names.get(atom, str(atom)), old=int(str(atom.size)), new=size)
        for atom, size in alignment.changed.items()
    )


def _extended(old: Program, alignment: Alignment) -> tuple[str, ...]:
    """The outputs whose units are others than before."""
    terms = {name: old.axes.terms[name] for name in dict.fromkeys(old.graph.output_names)}
    return tuple(name for name, found in terms.items() if Resizing(alignment.changed).touches(found))


def _dead(old: Program, new: Program, alignment: Alignment, proved: Proved, seed: int) -> list[str]:
    """The grown axes on which nothing new can learn: what is zero by choice is as dead as what must be."""
    pair = Pair(old, new, alignment, proved.read)
    if old.size + new.size > FULL_SIZE:
        pair = shrunk(pair, replace(proved, assignment=proved.read))
    return dead_axes(pair, seed)

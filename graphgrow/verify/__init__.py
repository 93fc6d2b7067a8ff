"""Who judges: the only room that makes certificates."""

from __future__ import annotations

from importlib.metadata import version

from graphgrow.certificate import Certificate, Claim, Growth, Test
from graphgrow.errors import CheckFailed, Refusal
from graphgrow.program import Program
from graphgrow.verify.align import Alignment, align
from graphgrow.verify.equivalence import FULL_SIZE, Pair, shrunk, test
from graphgrow.verify.gradients import dead_axes
from graphgrow.verify.proof import broken, changed, prove

__all__ = ["certify", "check"]


def check(old: Program, new: Program, *, seed: int = 0) -> Certificate:
    """Compare two programs from outside, whoever made them: proof and numeric test.

    The certificate says whether they are equivalent (`holds`); it is not refused if not. Raises CheckFailed where the
    programs can't be compared at all: their graphs differ in more than sizes.
    """
    alignment = align(old, new)
    proved = prove(old, new, alignment)
    proof = proved.proof
    found = test(old, new, alignment, proved, seed) if old.has_weights and new.has_weights else None
    if found and not proof.holds:
        found = _alone(found, changed(old, new, alignment) or broken(old, alignment))
    return Certificate(
        spec="check", old=old.digest, new=new.digest, claim="Exact", growth=_growth(old, alignment),
        proof=proof, test=found, version=version("graphgrow"),
    )  # fmt: skip


def _alone(found: Test, changes: str) -> Test:
    """A test without a proof speaks for whole programs that keep their old values, of a graph on which no growth could
    be proved: random inputs need not read what is changed (a row of a table, a counter), need not switch on the unit
    whose zeros are missing (a ReLU), and shrunk programs need not hold it."""
    doubt = changes or ("only shrunk programs were run, and there is no proof" if found.reduced else "")
    return found.model_copy(update={"holds": False, "why": f"{doubt}; {found.why}"}) if doubt else found


def certify(old: Program, new: Program, *, spec: str, claim: Claim, seed: int = 0) -> Certificate:
    """The certificate of a pass. Raises CheckFailed where the claim does not hold, Refusal for a dead growth."""
    found = check(old, new, seed=seed).model_copy(update={"spec": spec, "claim": claim})
    if claim != "Exact":
        return found
    if not found.holds:
        reasons = [evidence.why for evidence in (found.proof, found.test) if evidence and not evidence.holds]
        raise CheckFailed(found=f"a rewrite that does not keep the function: {'; '.join(reasons)}", where=spec)
    _refuse_dead(old, new, spec, seed)
    return found


def _growth(old: Program, alignment: Alignment) -> tuple[Growth, ...]:
    names = {named.atom: named.name for named in old.axes.named}
    return tuple(
        Growth(axis=names.get(atom, str(atom)), old=int(str(atom.size)), new=size)
        for atom, size in alignment.sizes.items()
    )


def _refuse_dead(old: Program, new: Program, spec: str, seed: int) -> None:
    if not (old.has_weights and new.has_weights):
        return
    alignment = align(old, new)
    proved = prove(old, new, alignment)
    pair = Pair(old, new, alignment, proved.assignment)
    if old.size + new.size > FULL_SIZE:
        pair = shrunk(pair, proved)
    dead = dead_axes(pair, seed)
    if dead:
        raise Refusal(
            found=f"a dead growth: no new parameter on {', '.join(dead[:3])} ever gets a gradient",
            where=spec,
            fix="start the free blocks with init=scaled or init=copy, or grow to a multiple of the size with by=copies",
        )

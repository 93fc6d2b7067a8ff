"""Who judges: the only room that makes certificates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from graphgrow.certificate import Certificate, Claim, Measured, Proof
from graphgrow.errors import CheckFailed, DeadGrowth, OptionError
from graphgrow.program import Program
from graphgrow.verify.equivalence import measure
from graphgrow.verify.judges import Case, Finding, judged
from graphgrow.verify.likeness import Likeness

__all__ = ["certify", "check"]


def check(old: Program, new: Program, *, seed: int = 0) -> Certificate:
    """Compare two programs from outside, whoever made them: proof and numeric test.

    The certificate says whether they are equivalent (`holds`); it is not refused if not. Raises CheckFailed where the
    programs can't be compared at all, OptionError for a seed that no generator takes.
    """
    if not 0 <= seed < 2**32:
        raise OptionError(found=f"seed={seed}", fix="give a seed from 0 to 2**32 - 1")
    return judged(Case(old, new, seed)).certificate


def certify(
    old: Program, new: Program, *, spec: str, claim: Claim, seed: int = 0, data: Sequence[Mapping[str, Tensor]] = ()
) -> Certificate:
    """The certificate of a pass. What claims no more than `Changes` and turns out to be exact is called so; otherwise
    the change is measured, on `data` where there is some. Raises CheckFailed where the claim does not hold,
    DeadGrowth."""
    case = Case(old, new, seed)
    try:
        finding = judged(case)
    except CheckFailed:  # an axis of one unit is none any more: the graphs can't be laid over each other
        if claim != "Changes":
            raise
        finding = Finding(case.certificate(Proof(holds=False, why=""), None))
    found = finding.certificate.model_copy(update={"spec": spec})
    if claim == "Within" and not found.holds and finding.likeness and case.weighed:
        return _within(found, finding.likeness, measure(old, new, data, seed), seed)
    if claim == "Changes" and not found.holds:
        measured = measure(old, new, data, seed) if case.weighed else None
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

"""Two hundred pipelines of two to four growth passes, drawn at random: model, passes, order, factors and fills.
Outputs of the first and the last program in float64, relative to the largest output. A pass may be refused; none may
disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.measure import Row, Skipped

COUNT, ALLOWED = 200, 1e-13  # `verify.equivalence.FLOOR`


def rows() -> Iterator[Row]:
    try:
        from tests.test_composition import disagreement, drawn, run
    except ImportError as error:
        raise Skipped(f"needs the tests beside it: {error}") from error
    found: list[float] = []
    refused = passes = 0
    for seed in range(COUNT):
        old, new, left = run(drawn(seed))
        found.append(disagreement(old, new))
        refused += left
        passes += len(new.journal)
    wrong = sum(deviation > ALLOWED for deviation in found)
    what = f"{COUNT} pipelines, {passes} passes run, {refused} refused: share that disagrees"
    yield Row(what, f"{wrong} disagree", f"{COUNT - wrong} agree", wrong / COUNT, target=0.0)
    what = "largest deviation of outputs in float64, over what is allowed"
    yield Row(
        what, f"{max(found):.1e} (median {median(found):.1e})", f"{ALLOWED:.0e}", max(found) / ALLOWED, target=1.0
    )

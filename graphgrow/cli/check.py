"""`check` and `diff`: two programs side by side."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from graphgrow.cli.models import load, sizes
from graphgrow.cli.options import AsJson, New, Old, Quiet, Sizes, Trust
from graphgrow.cli.screen import screen
from graphgrow.errors import CheckFailed, located


def check(
    old: Old,
    new: New,
    explain: Annotated[bool, typer.Option("--explain", help="Print the derivation, operator by operator.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0, max=2**32 - 1)] = 0,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check from outside that two programs compute the same, whoever made them."""
    advice = f"graphgrow diff {old} {new} lists what differs"
    with screen(as_json, quiet) as shown:
        before, after = load(old, trust_pickle, shown), load(new, trust_pickle, shown)
        with shown.working("proving and testing"):
            from graphgrow.report.tables import certificate_table, steps_table
            from graphgrow.report.values import certificate_value
            from graphgrow.verify import check

            with located(f"{old} and {new}"), _advised(advice):
                found = check(before, after, seed=seed)
        shown.emit({"old": old, "new": new, "holds": found.holds, "certificate": certificate_value(found)})
        shown.show(certificate_table(found))
        if explain and found.proof:
            shown.show("", steps_table(found.proof))
    if not found.holds:
        evidence = [part for part in (found.test, found.proof) if part is not None and not part.holds]
        raise CheckFailed(
            found=f"not equivalent: {evidence[0].why}" if evidence else "not equivalent",
            where=f"{old} and {new}",
            fix=advice,
        )


@contextmanager
def _advised(fix: str) -> Generator[None]:
    """Failures that say nothing about what to do get this advice."""
    try:
        yield
    except CheckFailed as error:
        error.fix = error.fix or fix
        raise


def diff(
    old: Old,
    new: New,
    at: Sizes = [],  # noqa: B006
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List what differs: axes, parameters, FLOPs, memory, certificates."""
    with screen(as_json, quiet) as shown:
        given = sizes(at)
        before, after = load(old, trust_pickle, shown), load(new, trust_pickle, shown)
        with shown.working("comparing"):
            from graphgrow.report.diff import difference
            from graphgrow.report.tables import difference_table
            from graphgrow.report.values import difference_value

            with located(f"--at {','.join(at)}"):
                found = difference(before, after, given)
        shown.emit({"old": old, "new": new, **difference_value(found)})
        shown.show(difference_table(found))

"""`apply`: run passes on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphgrow.cli.models import beside, load, output, sizes
from graphgrow.cli.options import AsJson, Force, Model, Output, Quiet, Sizes, Trust
from graphgrow.cli.screen import Screen, screen
from graphgrow.errors import OptionError, located

if TYPE_CHECKING:
    from graphgrow.certificate import Certificate
    from graphgrow.pipeline import Pipeline
    from graphgrow.program import Program
    from graphgrow.report import Cost

_SPEC = "A pass, as widen or widen:axis=mlp,factor=1.5; several run in order."


def apply(
    model: Model,
    passes: Annotated[list[str], typer.Option("--pass", "-p", metavar="SPEC", help=_SPEC)] = [],  # noqa: B006
    out: Output = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do and check everything, but write nothing.")] = False,
    force: Force = False,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random, for passes whose spec has none.", show_default=False)
    ] = None,
    at: Sizes = [],  # noqa: B006
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite a model with passes and write the result beside it, with a certificate.

    model.pt and --pass widen give model.widen.pt; the input stays what it is.
    """
    with screen(as_json, quiet) as shown:
        given = sizes(at)
        pipeline = _pipeline(passes, seed, shown)
        words = "-".join(one.name for one in pipeline.passes)
        target = out if out is not None else beside(model, words)
        if not dry_run or out is not None:
            output(target, [model], [".pt"], force or dry_run)
        old = load(model, trust_pickle, shown)
        from graphgrow.report import cost

        with located(f"--at {','.join(at)}"):
            before = cost(old, given)
        new = _run(pipeline, old, shown)
        costs = before, cost(new, given)
        if not dry_run:
            with shown.working(f"writing {target}"):
                new.save(target)
        files = {"input": model, "output": None if dry_run else str(target), "dry_run": dry_run}
        _tell(shown, files, costs, new.journal[len(old.journal) :])


def _pipeline(specs: Sequence[str], seed: int | None, shown: Screen) -> Pipeline:
    if not specs:
        raise OptionError(
            found="no pass to apply",
            where="graphgrow apply",
            fix="name one: --pass widen\n`graphgrow passes` lists them",
        )
    with shown.working("looking for passes"):
        from graphgrow.pipeline import Pipeline

        return Pipeline.parse(specs, seed)


def _run(pipeline: Pipeline, program: Program, shown: Screen) -> Program:
    """The program after all passes."""
    count = len(pipeline.passes)
    for index, one in enumerate(pipeline.passes):
        number = f" ({index + 1} of {count})" if count > 1 else ""
        with shown.working(f"{one.spec}{number}: rewriting, proving, testing"):
            program = one(program)
    return program


def _tell(shown: Screen, files: dict[str, Any], costs: tuple[Cost, Cost], made: Sequence[Certificate]) -> None:
    """Print what changed, the certificates and the file."""
    from graphgrow.report.values import certificate_value, cost_value

    shown.emit(
        {
            **files,
            "passes": [certificate.spec for certificate in made],
            "axes": [growth.model_dump() for certificate in made for growth in certificate.growth],
            "before": cost_value(costs[0]),
            "after": cost_value(costs[1]),
            "certificates": [certificate_value(certificate) for certificate in made],
        }
    )
    _show(shown, costs, made, files["output"])


def _show(shown: Screen, costs: tuple[Cost, Cost], made: Sequence[Certificate], written: str | None) -> None:
    from graphgrow.report.tables import certificate_table, cost_table, growth_table

    growths = [growth for certificate in made for growth in certificate.growth]
    shown.show(cost_table(*costs), "", growth_table(growths), "")
    shown.show(*(certificate_table(certificate, growth=len(made) > 1) for certificate in made), "")
    shown.show(f"wrote {written}" if written else "dry run: nothing was written")

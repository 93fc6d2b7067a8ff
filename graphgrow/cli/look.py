"""`axes`, `show` and `passes`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from graphgrow.cli.models import load, sizes
from graphgrow.cli.options import AsJson, Model, Quiet, Sizes, Trust
from graphgrow.cli.screen import Screen, screen
from graphgrow.errors import located


def axes(
    model: Model,
    every: Annotated[bool, typer.Option("--all", help="List the axes of every layer, and kernels.")] = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List what the dimensions of a model mean: names, sizes, places."""
    with screen(as_json, quiet) as shown:
        program = load(model, trust_pickle, shown)
        with shown.working("working out the axes"):
            from graphgrow.report.tables import axes_table
            from graphgrow.report.values import axes_value, program_value

            found = program.axes.named
        shown.emit({"model": model, "program": program_value(program), "axes": axes_value(program.axes)})
        shown.show(axes_table(program.axes, every) if found else "no axes: the outputs depend on no parameter")


def show(
    model: Model,
    at: Sizes = [],  # noqa: B006
    every: Annotated[bool, typer.Option("--all", help="List the weights of every layer.")] = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show a model: sizes, what each weight costs (density, pattern, rank, FLOPs, bytes), certificates."""
    with screen(as_json, quiet) as shown:
        given = sizes(at)
        program = load(model, trust_pickle, shown)
        with shown.working("counting"):
            from graphgrow.report.cost import cost
            from graphgrow.report.tables import certificate_table, notes_of, program_table, weights_table
            from graphgrow.report.values import cost_value, journal, program_value, weights_value
            from graphgrow.report.weights import weight_costs

            with located(f"--at {','.join(at)}"):
                total, weights = cost(program, given), weight_costs(program, given)
        shown.emit({
            "model": model, "program": program_value(program), "cost": cost_value(total), "notes": notes_of(weights),
            "weights": weights_value(weights), "journal": journal(program),
        })  # fmt: skip
        shown.show(program_table(program, total), "", weights_table(weights, every))
        for certificate in program.journal:
            shown.show("", certificate_table(certificate))


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="one pass: options, claim, theorem", show_default=False)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the passes that are installed, or describe one."""
    with screen(as_json, quiet) as shown:
        with shown.working("looking for passes"):
            from graphgrow.pipeline import available, find
        if name is None:
            _list(shown, list(available()))
            return
        from dataclasses import asdict

        from graphgrow.report.passes import described
        from graphgrow.report.tables import pass_table

        found = described(find(name))
        shown.emit(asdict(found))
        shown.show(pass_table(found))


def _list(shown: Screen, names: list[str]) -> None:
    from graphgrow.pipeline import find
    from graphgrow.report.passes import described
    from graphgrow.report.tables import passes_table

    found = [described(find(name)) for name in names]
    shown.emit({"passes": [{"name": one.name, "claim": one.claim, "summary": one.summary} for one in found]})
    shown.show(
        passes_table(found), "", "graphgrow passes NAME describes one; graphgrow apply --pass NAME MODEL applies it"
    )

"""The command line. Commands open the rooms they need themselves: asking for help imports no torch."""

from __future__ import annotations

import typer

from graphgrow.cli.check import check, diff
from graphgrow.cli.coordinates import coord_check
from graphgrow.cli.door import Door, prepare
from graphgrow.cli.files import export, trace
from graphgrow.cli.look import axes, passes
from graphgrow.cli.options import Version
from graphgrow.cli.rewrite import apply, plan

__all__ = ["app", "main"]

app = typer.Typer(
    name="graphgrow", cls=Door, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for command in (trace, axes, passes, plan, apply, check, diff, export, coord_check):
    app.command()(command)


@app.callback()
def graphgrow(version: Version = False) -> None:
    """Grow trained neural networks without changing what they compute.

    A first try: graphgrow trace FOLDER -o model.pt, then graphgrow apply --pass widen model.pt

    Exit codes: 0 all well, 1 refused or a failed check, 2 a wrong command, 130 interrupted.
    """


def main() -> None:
    """The `graphgrow` command."""
    prepare()
    app(prog_name="graphgrow")

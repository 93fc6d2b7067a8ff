"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "a program (.pt), a Hugging Face folder, or pkg.module:factory"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"graphgrow {version('graphgrow')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
Old = Annotated[str, typer.Argument(metavar="OLD", help=_MODEL, show_default=False)]
New = Annotated[str, typer.Argument(metavar="NEW", help="what it became", show_default=False)]
Trust = Annotated[
    bool, typer.Option("--trust-pickle", help="Load pickled modules and .pt2 too: runs code from the file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]
Sizes = Annotated[
    list[str],
    typer.Option("--at", metavar="NAME=N", help="Dynamic sizes to count FLOPs at, as batch=8. Can be repeated."),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="The file to write.", show_default=False)
]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like", metavar="FOLDER", help="Of an output folder: the Hugging Face folder whose class it has.",
        show_default=False,
    ),
]  # fmt: skip
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream", show_default=False,
        help="From folder to folder: one tensor in memory at a time. Default: when the weights fill a quarter of it.",
    ),
]  # fmt: skip

"""`coord-check`: whether activations keep their size as width and density change."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graphgrow.atomic import atomic_file
from graphgrow.cli.models import output
from graphgrow.cli.options import AsJson, Force, Quiet
from graphgrow.cli.screen import screen
from graphgrow.errors import CheckFailed, FileError, OptionError, located

if TYPE_CHECKING:
    from torch import Tensor

    from graphgrow.runtime.coordinates import Settings


def coord_check(
    factory: Annotated[
        str,
        typer.Argument(metavar="FACTORY", help="pkg.module:factory, called with a width", show_default=False),
    ],
    widths: Annotated[str, typer.Option(help="Of the models, as the factory takes them.")] = "64,128,256,512",
    densities: Annotated[str, typer.Option(help="Of the hidden weights, as 1,1/4,1/32.")] = "1",
    base: Annotated[
        int | None, typer.Option(help="The width of the base model (default: the smallest).", show_default=False)
    ] = None,
    parameterization: Annotated[
        str, typer.Option(help="sp (as the factory has it), mup or supar; several as sp,mup,supar.")
    ] = "supar",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False,
            help="A text, read as bytes, for models of tokens. Default: the source of Python's standard library.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of training.", min=1)] = 10,
    seeds: Annotated[int, typer.Option(help="Of weights, masks and data.", min=2)] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate in the base model.")] = 1e-3,
    optimizer: Annotated[Literal["adamw", "adam", "sgd"], typer.Option(help="Which one trains.")] = "adamw",
    batch: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 8,
    length: Annotated[int, typer.Option(help="Of a sequence.", min=2)] = 64,
    tolerance: Annotated[float, typer.Option(help="The largest slope that counts as none.")] = 0.2,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="NAME", help="Write NAME.csv and NAME.svg.", show_default=False),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Train models of several sizes for some steps, and tell whether activations are stable.

    Exit code 1 where one is not.
    """
    with screen(as_json, quiet) as shown:
        names = [out.with_name(f"{out.name}{suffix}") for suffix in (".csv", ".svg")] if out is not None else []
        targets = [output(name, [], [name.suffix], force) for name in names]
        chosen = _schemes(parameterization)
        with shown.working(f"importing {factory}"):
            from graphgrow.report.coordinates import (
                coordinates_csv,
                coordinates_plot,
                coordinates_table,
                coordinates_value,
            )
            from graphgrow.runtime.coordinates import Settings, coordinates, text_inputs
            from graphgrow.tracing.source import sized

            numbers = _numbers("--widths", widths)
            if any(number.denominator > 1 for number in numbers):
                raise OptionError(found=f"--widths {widths}", fix="give whole numbers")
            settings = Settings(
                widths=tuple(map(int, numbers)), densities=tuple(map(float, _numbers("--densities", densities))),
                schemes=chosen, base=base or int(min(numbers)), steps=steps, seeds=seeds, lr=lr, optimizer=optimizer,
                batch=batch, length=length, tolerance=tolerance,
            )  # fmt: skip
            make = sized(factory)

            source = text_inputs(settings, _text(data, settings))
        with shown.steps(f"training {settings.runs} models", settings.runs) as done, located(factory):
            found = coordinates(make, settings, source, done)
        for target, text in zip(targets, (coordinates_csv(found), coordinates_plot(found)), strict=False):
            with atomic_file(target) as temporary:
                temporary.write_text(text)
        shown.emit({"factory": factory, "files": [str(target) for target in targets], **coordinates_value(found)})
        shown.show(coordinates_table(found), *(f"wrote {target}" for target in targets))
    if not found.stable:
        worst = ", ".join(
            f"{scheme}: {found.verdict(scheme)}" for scheme in chosen if found.verdict(scheme) != "stable"
        )
        raise CheckFailed(
            found=f"activations that are not stable ({worst})", where=factory,
            fix="train with --parameterization supar; if it is unclear, give more --seeds or sizes",
        )  # fmt: skip


def _schemes(text: str) -> tuple[Literal["sp", "mup", "supar"], ...]:
    known: dict[str, Literal["sp", "mup", "supar"]] = {"sp": "sp", "mup": "mup", "supar": "supar"}
    for name in (names := [part.strip() for part in text.split(",")]):
        if name not in known:
            raise OptionError.unknown("parameterization", name, known)
    return tuple(known[name] for name in dict.fromkeys(names))


def _numbers(option: str, text: str) -> list[Fraction]:
    """`64,128` or `1,1/4`."""
    try:
        found = [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        found = []
    if not found or min(found) <= 0:
        raise OptionError(found=f"{option} {text}", fix=f"write positive numbers with commas: {option} 1,1/4")
    return list(dict.fromkeys(found))


def _text(data: Path | None, settings: Settings) -> Tensor:
    """A text as bytes; models without tokens make nothing of it."""
    import torch

    files = [data] if data is not None else sorted(Path(json.__file__).parent.parent.glob("*.py"))[:80]
    try:
        found = b"".join(path.read_bytes() for path in files)
    except OSError as error:
        raise FileError(found=f"a text that can't be read: {error}", where=f"--data {data}", fix="check it") from None
    if len(found) <= settings.length:
        raise OptionError(found=f"a text of {len(found)} bytes", where=f"--data {data}", fix="give a longer one")
    return torch.frombuffer(bytearray(found), dtype=torch.uint8).long()

"""`trace` and `export`: into graphgrow's files and out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graphgrow.cli.models import beside, load, output
from graphgrow.cli.options import AsJson, Force, Model, Output, Quiet, Trust
from graphgrow.cli.screen import screen
from graphgrow.errors import OptionError

KINDS = (".onnx", ".pt2", ".safetensors")
_MODES = "Capture training and evaluation, or evaluation alone."


def trace(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="a Hugging Face folder, pkg.module:factory, or a .pt", show_default=False)
    ],
    out: Output = None,
    mode: Annotated[Literal["both", "eval"], typer.Option(help=_MODES)] = "both",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the program's outputs with the model's.")] = True,
    force: Force = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a program of a model: its graph with its weights, in one .pt file."""
    with screen(as_json, quiet) as shown:
        target = output(_named(out, beside(source, ""), "trace", source), [source], [".pt"], force)
        with shown.working(f"tracing {source}"):
            from graphgrow.report import cost
            from graphgrow.report.tables import program_table
            from graphgrow.report.values import cost_value, program_value
            from graphgrow.trace import trace

            program = trace(source, trust_pickle=trust_pickle, mode=mode, check=check)
        with shown.working(f"writing {target}"):
            program.save(target)
        found = cost(program)
        shown.emit({"source": source, "output": str(target), "program": program_value(program), "cost": cost_value(found)})
        shown.show(program_table(program, found), "", f"wrote {target}")


def export(
    model: Model,
    out: Output = None,
    opset: Annotated[int | None, typer.Option(help="Of the ONNX file.", show_default=False)] = None,
    force: Force = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a model: -o model.onnx, model.pt2 or model.safetensors."""
    with screen(as_json, quiet) as shown:
        target = output(_named(out, beside(model, "", ".onnx"), "export", model), [model], KINDS, force)
        if opset is not None and target.suffix != ".onnx":
            raise OptionError(found=f"--opset {opset} for a {target.suffix} file", fix="leave it out: opsets are ONNX's")
        program = load(model, trust_pickle, shown)
        with shown.working(f"writing {target}"):
            _export(program, target, opset)
        size = sum(file.stat().st_size for file in (target, target.with_name(f"{target.name}.data")) if file.exists())
        shown.emit({"model": model, "output": str(target), "format": target.suffix[1:], "bytes": size})
        shown.show(f"wrote {target} ({size:,} bytes)")


def _export(program: object, target: Path, opset: int | None) -> None:
    from graphgrow import export
    from graphgrow.program import Program

    assert isinstance(program, Program)
    if target.suffix == ".onnx":
        options = {} if opset is None else {"opset": opset}
        export.export_onnx(program, target, **options)
    elif target.suffix == ".pt2":
        export.export_pt2(program, target)
    else:
        export.export_safetensors(program, target)


def _named(out: Path | None, proposed: Path, command: str, model: str) -> Path:
    """The output file. Raises OptionError, with one that would do, where none is given."""
    if out is None:
        raise OptionError(found="no output file", where=f"graphgrow {command}", fix=f"name one: graphgrow {command} {model} -o {proposed}")
    return out

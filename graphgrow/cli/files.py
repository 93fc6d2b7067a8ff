"""`trace` and `export`: into graphgrow's files and out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graphgrow.cli.models import beside, folder_output, load, origin, output
from graphgrow.cli.options import AsJson, Force, Like, Model, Output, Quiet, Trust
from graphgrow.cli.screen import Screen, screen
from graphgrow.errors import OptionError, located

if TYPE_CHECKING:
    from graphgrow.export import OnnxReport
    from graphgrow.program import Program

KINDS = (".onnx", ".pt2", ".safetensors")
_MODES = "Capture training and evaluation, or evaluation alone."


def trace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="a Hugging Face folder, pkg.module:factory, or a .pt", show_default=False
        ),
    ],
    out: Output = None,
    mode: Annotated[Literal["both", "eval"], typer.Option(help=_MODES)] = "both",
    outputs: Annotated[
        str, typer.Option(metavar="NAMES", help="Keep these outputs only, as logits.", show_default=False)
    ] = "",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare the program's outputs with the model's.")
    ] = True,
    force: Force = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a program of a model: its graph with its weights, in one .pt file."""
    with screen(as_json, quiet) as shown:
        target = output(
            _named(out, beside(source, "traced" if source.endswith(".pt") else ""), "trace", source),
            [source],
            [".pt"],
            force,
        )
        with shown.working(f"tracing {source}"), located(source):
            from graphgrow.report import cost
            from graphgrow.report.tables import program_table
            from graphgrow.report.values import cost_value, program_value
            from graphgrow.tracing import trace

            names = [name for name in outputs.split(",") if name]
            program = trace(source, trust_pickle=trust_pickle, mode=mode, outputs=names, check=check)
        with shown.working(f"writing {target}"):
            program.save(target)
        found = cost(program)
        shown.emit(
            {"source": source, "output": str(target), "program": program_value(program), "cost": cost_value(found)}
        )
        shown.show(program_table(program, found), "", f"wrote {target}")


def export(
    model: Model,
    out: Output = None,
    like: Like = None,
    opset: Annotated[int | None, typer.Option(help="Of the ONNX file.", show_default=False)] = None,
    sparse_initializers: Annotated[
        bool,
        typer.Option("--sparse-initializers", help="Store weights that are mostly zero as sparse tensors."),
    ] = False,
    force: Force = False,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a model: -o model.onnx, model.pt2, model.safetensors, or a folder for Hugging Face."""
    with screen(as_json, quiet) as shown:
        named = _named(out, beside(model, "", ".onnx"), "export", model)
        folder = origin(named, model, like) if like is not None or not named.suffix else None
        target = folder_output(named, [model], force) if folder else output(named, [model], KINDS, force)
        for option, given in ((f"--opset {opset}", opset is not None), ("--sparse-initializers", sparse_initializers)):
            if given and target.suffix != ".onnx":
                what = f"a {target.suffix} file" if target.suffix else "a folder"
                raise OptionError(found=f"{option} for {what}", fix="leave it out: it is for ONNX files")
        program = load(model, trust_pickle, shown)
        if folder:
            found = huggingface(program, target, folder, shown)[1]
        else:
            with shown.working(f"writing {target} and comparing it"):
                found = _export(program, target, opset, sparse_initializers)
        kind = "huggingface" if folder else target.suffix[1:]
        shown.emit({"model": model, "output": str(target), "format": kind, **found.value})
        shown.show(found.text)


@dataclass(frozen=True)
class Written:
    """What was exported, for people and for programs."""

    text: str
    value: dict[str, Any]


def _export(program: Program, target: Path, opset: int | None, sparse: bool) -> Written:
    from graphgrow import export

    if target.suffix == ".onnx":
        return _onnx(export.export_onnx(program, target, opset=opset or export.OPSET, sparse_initializers=sparse))
    if target.suffix == ".pt2":
        files: tuple[Path, ...] = (export.export_pt2(program, target),)
    else:
        files = export.export_safetensors(program, target)
    size = sum(file.stat().st_size for file in files)
    names = [str(file) for file in files]
    return Written(f"wrote {', '.join(names)} ({size:,} bytes)", {"files": names, "bytes": size})


def huggingface(program: Program, target: Path, like: Path, shown: Screen) -> tuple[Program, Written]:
    """Write a Hugging Face folder, and tell what of the configuration has changed. Gives the program with the
    certificates that it has then."""
    from graphgrow.export import export_huggingface, stream_huggingface

    with located(str(target)):
        if program.has_weights:
            with shown.working(f"writing {target} and comparing it"):
                changed = export_huggingface(program, target, like)
        else:
            total = sum(tensor.nbytes for tensor in program.tensors.values())
            with shown.counting(f"writing {target}", total) as seen:
                program, changed = stream_huggingface(program, target, like, seen=seen)
    lines = [f"{name}: {old} -> {new}" for name, (old, new) in changed.items()]
    text = "\n".join(["config.json", *(f"  {line}" for line in lines), "", f"wrote {target}"])
    return program, Written(
        text, {"files": [str(target)], "config": {name: list(pair) for name, pair in changed.items()}}
    )


def _onnx(found: OnnxReport) -> Written:
    """Names and types at the file's door, and how near to the module ONNX Runtime computes."""
    files = [str(file) for file in (found.path, found.data) if file is not None]
    lines = [f"input   {name}: {kind}" for name, kind in found.inputs.items()]
    lines += [f"output  {name}: {kind}" for name, kind in found.outputs.items()]
    if found.deviation is not None and found.tolerance is not None:
        near = f"{found.deviation:.1e} from the module, of {found.tolerance:.1e} allowed"
        lines.append(f"ran     in ONNX Runtime at {len(found.sizes)} sizes: at most {near}")
    if found.sparse:
        lines.append(f"stored  {found.sparse} weights as sparse tensors; ONNX Runtime makes them dense at load")
    text = "\n".join([*lines, "", f"wrote {' and '.join(files)} ({found.bytes:,} bytes, opset {found.opset})"])
    value = {
        "files": files, "bytes": found.bytes, "opset": found.opset, "inputs": dict(found.inputs),
        "outputs": dict(found.outputs), "deviation": found.deviation, "tolerance": found.tolerance,
        "sizes": [dict(sizes) for sizes in found.sizes], "sparse": found.sparse,
    }  # fmt: skip
    return Written(text, value)


def _named(out: Path | None, proposed: Path, command: str, model: str) -> Path:
    """The output file. Raises OptionError, with one that would do, where none is given."""
    if out is None:
        raise OptionError(
            found="no output file",
            where=f"graphgrow {command}",
            fix=f"name one: graphgrow {command} {model} -o {proposed}",
        )
    return out

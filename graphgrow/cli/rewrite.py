"""`apply`: run passes on a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from graphgrow.cli.files import huggingface
from graphgrow.cli.models import batches, beside, folder_output, load, origin, output, sizes, streams
from graphgrow.cli.options import AsJson, Force, Like, Model, Output, Quiet, Sizes, Stream, Trust
from graphgrow.cli.screen import Screen, screen
from graphgrow.errors import OptionError, located

if TYPE_CHECKING:
    from graphgrow.certificate import Certificate
    from graphgrow.pipeline import Pipeline
    from graphgrow.program import Program
    from graphgrow.recipe import Recipe
    from graphgrow.report import Cost
    from graphgrow.rewrite import Data
    from graphgrow.target import Planned

_SPEC = "A pass, as widen or widen:axis=mlp,factor=1.5; several run in order."


def apply(
    model: Model,
    passes: Annotated[list[str], typer.Option("--pass", "-p", metavar="SPEC", help=_SPEC)] = [],  # noqa: B006
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="A YAML file with passes, or a target.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME=N", help="What to grow to: params=2x, params=350M or sizes.", show_default=False),
    ] = None,
    out: Output = None,
    like: Like = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do and check everything, but write nothing.")] = False,
    force: Force = False,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random, for passes whose spec has none.", show_default=False)
    ] = None,
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="FILE", help="A .safetensors file with a batch of inputs by name; several."),
    ] = [],  # noqa: B006
    at: Sizes = [],  # noqa: B006
    stream: Stream = None,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite a model with passes and write the result beside it, with a certificate.

    model.pt and --pass widen give model.widen.pt; the input stays what it is. A Hugging Face folder and -o grown give
    a folder that the same class loads; one larger than memory goes there tensor by tensor, and when it is interrupted
    the same command goes on.
    """
    with screen(as_json, quiet) as shown:
        given = sizes(at)
        written = _recipe(recipe, target, passes)
        pipeline = _pipeline(passes, seed, shown) if written is None else None
        words = "-".join(one.name for one in pipeline.passes) if pipeline else Path(recipe or "").stem
        words = re.sub(r"[^A-Za-z0-9.]+", "-", target) if target is not None else words
        place = Target.of(model, out if out is not None else beside(model, words), like, force, dry_run)
        if written is not None and written.passes is not None:
            _pipeline(written.checked(), seed, shown)  # before the model is read
        old = load(model, trust_pickle, shown, lazy=streams(model, place.path, stream))
        found = None
        if written is not None:
            with located(str(recipe or f"--target {target}")):
                found = written.planned(old)
                pipeline = _pipeline(found.specs, written.seed if seed is None else seed, shown)
        assert pipeline is not None
        place.rewrite(old, pipeline, given, shown, batches(data, old), found)


@dataclass(frozen=True)
class Target:
    """Where a rewritten program goes: a `.pt` file, or a Hugging Face folder of the class of `like`."""

    model: str
    path: Path
    like: Path | None
    dry_run: bool

    @classmethod
    def of(cls, model: str, path: Path, like: Path | None, force: bool, dry_run: bool) -> Self:
        """Raises OptionError or FileError for a place that can't be written to."""
        folder = origin(path, model, like)
        if folder is not None:
            folder_output(path, [model], force or dry_run)
        else:
            output(path, [model], [".pt"], force or dry_run)
        return cls(model, path, folder, dry_run)

    def rewrite(
        self, old: Program, pipeline: Pipeline, given: Mapping[str, int], shown: Screen, data: Data = (),
        planned: Planned | None = None,
    ) -> None:  # fmt: skip
        """Run the passes, write what comes out, and tell."""
        from graphgrow.report import cost

        if planned is not None:
            shown.show(*filter(None, [str(planned)]), *(f"--pass {spec}" for spec in planned.specs), "")
        with located(f"--at {','.join(f'{name}={size}' for name, size in given.items())}"):
            before = cost(old, given)
        new = _run(pipeline, old, shown, data)
        costs = before, cost(new, given)
        config: dict[str, Any] = {}
        if not self.dry_run:
            if self.like is None:
                with shown.working(f"writing {self.path}"):
                    new.save(self.path)
            else:
                new, written = huggingface(new, self.path, self.like, shown)
                config = written.value["config"]
        files = {"input": self.model, "output": None if self.dry_run else str(self.path), "dry_run": self.dry_run}
        files |= {"config": config} if config else {}
        files |= planned.value if planned else {}
        _tell(shown, files, costs, new.journal[len(old.journal) :])


def plan(
    model: Model,
    hidden: Annotated[int | None, typer.Option(help="Size of the residual stream.", show_default=False)] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers.", show_default=False)] = None,
    heads: Annotated[int | None, typer.Option(help="Number of query heads, in all groups.", show_default=False)] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Number of key and value heads.", show_default=False)] = None,
    head_size: Annotated[int | None, typer.Option(help="Size of keys and values.", show_default=False)] = None,
    mlp: Annotated[int | None, typer.Option(help="Inner size of MLPs.", show_default=False)] = None,
    params: Annotated[
        str | None, typer.Option(help="Number of parameters, as 2x or 350M: finds the sizes.", show_default=False)
    ] = None,
    out: Output = None,
    like: Like = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do and check everything, but write nothing.")] = False,
    force: Force = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default=False)] = None,
    stream: Stream = None,
    trust_pickle: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the passes that lead to a size; with -o (or --dry-run), apply them.

    graphgrow plan FOLDER --hidden 1024 --layers 16 --heads 16 -o grown
    """
    with screen(as_json, quiet) as shown:
        target = Target.of(model, out, like, force, dry_run) if out is not None else None
        old = load(model, trust_pickle, shown, lazy=streams(model, out, stream))
        from graphgrow.plan import Sizes, measured
        from graphgrow.target import planned

        wanted = Sizes(hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_size=head_size, mlp=mlp)
        with located(model):
            found = planned(old, wanted, params)
        if target is None and dry_run:
            target = Target(model, Path(), None, dry_run)
        if target is not None:
            target.rewrite(old, _pipeline(found.specs, seed, shown), {}, shown, planned=found)
            return
        shown.emit({"model": model, "passes": list(found.specs), **found.value})
        line = " ".join(f"--pass {spec}" for spec in found.specs)
        shown.show(f"it has {measured(old)}", *filter(None, [str(found)]), "", f"graphgrow apply {model} {line}", "")
        shown.show("nothing was written: -o OUT applies them")


def _recipe(path: Path | None, target: str | None, passes: Sequence[str]) -> Recipe | None:
    """What is written down, in a file or as a target, unless passes are named."""
    from graphgrow.recipe import Recipe

    options = {"--recipe": path, "--target": target, "--pass": passes[0] if passes else None}
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise OptionError(found=" and ".join(given), fix="give one of both")
    if path is not None:
        return Recipe.read(path)
    return Recipe.toward(target) if target is not None else None


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


def _run(pipeline: Pipeline, program: Program, shown: Screen, data: Data) -> Program:
    """The program after all passes."""
    count = len(pipeline.passes)
    for index, one in enumerate(pipeline.passes):
        number = f" ({index + 1} of {count})" if count > 1 else ""
        with shown.working(f"{one.spec}{number}: rewriting, proving, testing"):
            program = one(program, data)
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
    _show(shown, costs, made, files["output"], files.get("config", {}))


def _show(
    shown: Screen, costs: tuple[Cost, Cost], made: Sequence[Certificate], written: str | None, config: dict[str, Any]
) -> None:
    from graphgrow.report.tables import certificate_table, cost_table, growth_table

    growths = [growth for certificate in made for growth in certificate.growth]
    shown.show(cost_table(*costs), "", *([growth_table(growths), ""] if growths else []))
    shown.show(*(certificate_table(certificate, growth=len(made) > 1) for certificate in made), "")
    shown.show(*(f"config.json: {name} {old} -> {new}" for name, (old, new) in config.items()))
    shown.show(f"wrote {written}" if written else "dry run: nothing was written")

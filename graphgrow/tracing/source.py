"""What a person gives to be traced: as a model and its example inputs, or as a program already."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from graphgrow import files
from graphgrow.errors import FileError, OptionError, TraceError
from graphgrow.program import Program
from graphgrow.tracing import huggingface

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SOURCES = "give a module, a 'pkg.module:factory', a Hugging Face folder or a .pt file"


@dataclass(frozen=True)
class Model:
    """How to get a model and its example inputs. `owned` models are nobody else's: their tensors need no copy."""

    build: Callable[[], nn.Module]
    example: Callable[[nn.Module], object]
    owned: bool = False
    instead: Model | None = None  # another way to build it, for when it can't be traced this way


def resolve(source: object, example: object, trust_pickle: bool) -> Model | ExportedProgram | Program:
    """What `source` is. Raises TraceError, FileError or OptionError where it can't be traced or read."""
    if isinstance(source, Program | ExportedProgram):
        return source
    if isinstance(source, nn.Module):
        return Model(lambda: source, _examples(example))
    if isinstance(source, str) and _FACTORY.fullmatch(source) and not Path(source).exists():
        return _factory(source, example)
    if isinstance(source, str | Path):
        return _path(Path(source), example, trust_pickle)
    if isinstance(source, type):
        name = cast(type[object], source).__name__
        raise TraceError(found=f"the class {name}", fix=f"make a model of it first: {name}(...)")
    raise TraceError(found=f"a {type(source).__name__}, which is no model", fix=_SOURCES)


def _examples(given: object) -> Callable[[nn.Module], object]:
    """The example inputs given, or else those that the model itself tells."""

    def example(model: nn.Module) -> object:
        if given is not None:
            return given
        if huggingface.is_pretrained(model):
            return huggingface.example_inputs(model)
        if (known := getattr(model, "dummy_inputs", None)) is not None:
            return cast(object, known)
        raise TraceError(
            found=f"no example inputs for {type(model).__name__}",
            fix="give some: trace(model, (tensor,)) or trace(model, {'x': tensor}), "
            "or let the factory return (model, example_inputs)",
        )

    return example


def _path(path: Path, example: object, trust_pickle: bool) -> Model | ExportedProgram | Program:
    what = files.identify(path)
    if what == "directory":
        return _folder(path, example)
    if what == "program":
        return Program.load(path)
    if trust_pickle and what == "pt2":
        return torch.export.load(path)
    if trust_pickle and what in ("pickle", "legacy-pickle"):
        return _pickled(path, example)
    error = files.refusal(path, what)
    if what == "missing" and not path.suffix:
        error.fix += "; it may be a folder, a .pt file or 'pkg.module:factory' (nothing is downloaded)"
    raise error


def _folder(folder: Path, example: object) -> Model:
    """A Hugging Face folder; with eager attention where the default one can't be traced."""
    network = huggingface.Folder.read(folder)
    eager = Model(lambda: network.build(eager=True), _examples(example), owned=True)
    return Model(network.build, _examples(example), owned=True, instead=eager)


def shapes(network: huggingface.Folder, settings: dict[str, Any] | None = None) -> Model:
    """A Hugging Face folder without its weights; with another configuration for `settings`."""

    def example(model: nn.Module) -> object:
        return {name: value.to("meta") for name, value in huggingface.example_inputs(model).items()}

    eager = Model(lambda: network.shapes(True, settings), example, owned=True)
    return Model(lambda: network.shapes(False, settings), example, owned=True, instead=eager)


def _pickled(path: Path, example: object) -> Model:
    """A module that was saved whole. Loading it runs code."""
    try:
        model: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may run anything, and fail in any way
        fix = "run where the code of the model can be imported, with the versions it was saved with"
        raise FileError(found=f"a pickle that can't be loaded: {_brief(error)}", where=str(path), fix=fix) from error
    if not isinstance(model, nn.Module):
        fix = "save the whole module (torch.save(model, path)), or better: gg.trace(model, example_inputs).save(path)"
        raise FileError(found=f"a pickled {type(model).__name__}, not a module", where=str(path), fix=fix)
    return Model(lambda: model, _examples(example), owned=True)


def _factory(name: str, example: object) -> Model:
    """What `pkg.module:factory` names: a function of nothing, or a model itself."""
    with _current_folder():
        found = _imported(name)
        model, own = _called(name, found)
    given = example if example is not None else own
    return Model(lambda: model, _examples(given), owned=not isinstance(found, nn.Module))


def sized(name: str) -> Callable[[int], object]:
    """A `pkg.module:factory` that is called with a width. Raises TraceError or OptionError."""
    if not _FACTORY.fullmatch(name):
        raise OptionError(found=f"{name!r}, which names no factory", fix="give 'pkg.module:factory'")
    with _current_folder():
        found = _imported(name)
    if not callable(found) or isinstance(found, nn.Module):
        raise OptionError(found=f"{name}, which can't be called with a width", fix="name a function of a width")

    def make(width: int) -> object:
        try:
            with _current_folder():
                return found(width)
        except Exception as error:  # the factory is the user's code
            fix = "let the factory take a width as its one argument"
            raise TraceError(found=f"{name}({width}) failed: {_brief(error)}", where=name, fix=fix) from error

    return make


def _imported(name: str) -> Any:
    """What `pkg.module:name` names."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # importing runs code, which fails in any way
        fix = "give 'pkg.module:factory' with a module that Python can import from here"
        raise TraceError(found=f"{module!r} can't be imported: {_brief(error)}", where=name, fix=fix) from error
    for part in path.split("."):
        if not hasattr(found, part):
            names = [known for known in cast(dict[str, object], vars(found)) if not known.startswith("_")]
            raise OptionError.unknown(f"name in {module}", part, names, where=name)
        found = getattr(found, part)
    return found


def _called(name: str, factory: Any) -> tuple[nn.Module, object]:
    """The model, and the example inputs where the factory gives some."""
    made: object = factory
    if not isinstance(made, nn.Module):
        if not callable(factory):
            raise TraceError(
                found=f"{name}, which is a {type(factory).__name__}", fix="name a function that makes a model"
            )
        try:
            made = factory()
        except Exception as error:  # the factory is the user's code
            fix = "the factory is called without arguments: give it defaults, or write one that needs none"
            raise TraceError(found=f"{name}() failed: {_brief(error)}", where=name, fix=fix) from error
    pair = cast(tuple[object, ...], made) if isinstance(made, tuple) else (made, None)
    model, example = pair if len(pair) == 2 else (None, None)
    if not isinstance(model, nn.Module):
        found = f"{name}() gave a {type(cast(object, made)).__name__}, not a model"
        raise TraceError(found=found, where=name, fix="return a module, or (module, example inputs)")
    return model, example


@contextmanager
def _current_folder() -> Generator[None]:
    """Modules of the current folder can be imported, as `python -m` has it."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

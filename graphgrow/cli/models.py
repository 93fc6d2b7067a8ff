"""What commands read and where they write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphgrow.atomic import UNFINISHED
from graphgrow.errors import FileError, OptionError, located

_LARGE = 0.25  # of the memory: old and new weights and what is computed on the way are several times that

if TYPE_CHECKING:
    from torch import Tensor

    from graphgrow.cli.screen import Screen
    from graphgrow.program import Program


def load(model: str, trust_pickle: bool, screen: Screen, *, lazy: bool = False) -> Program:
    """The program that a MODEL argument means: read from a file, or traced; with `lazy` the weights of a folder stay
    there. Raises GraphgrowError."""
    if not model:
        raise OptionError(found="an empty name of a model", fix="name a file, a folder or pkg.module:factory")
    with screen.working(f"reading {model}"), located(model):
        from graphgrow import files

        if Path(model).is_file() and files.identify(model) == "program":
            from graphgrow.program import Program

            return Program.load(model)
        from graphgrow.tracing import trace

        return trace(model, trust_pickle=trust_pickle, lazy=lazy)


def streams(model: str, target: Path | None, wanted: bool | None) -> bool:
    """Whether weights go from folder to folder tensor by tensor: as it is wanted, or, if nobody says, when they fill a
    good part of the memory. Raises OptionError where that can't be."""
    folders = (Path(model) / "config.json").is_file() and (target is None or not target.suffix)
    if wanted and not folders:
        fix = "give a Hugging Face folder, and name a folder with -o"
        raise OptionError(found=f"--stream from {model} to {target}", fix=fix)
    if wanted is not None or not folders:
        return bool(wanted)
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return weights > _LARGE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sizes(given: Sequence[str]) -> Mapping[str, int]:
    """`["batch=8"]` as numbers by name. Raises OptionError."""
    found: dict[str, int] = {}
    for part in (part for text in given for part in text.split(",")):
        name, _, number = part.partition("=")
        if not number.strip().isdecimal():
            raise OptionError(found=f"--at {part}", fix="write sizes as name=number: --at batch=8")
        found[name.strip()] = int(number)
    return found


def batches(files: Sequence[Path], program: Program) -> list[dict[str, Tensor]]:
    """Inputs of a program, one batch from each safetensors file. Raises OptionError or FileError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    wanted = {node.name: node.shape for node in program.graph.inputs}
    found: list[dict[str, Tensor]] = []
    for path in files:
        try:
            tensors: dict[str, Tensor] = load_file(path)  # pyright: ignore[reportUnknownVariableType]
        except (OSError, SafetensorError) as error:
            fix = "give a .safetensors file with the inputs by name"
            raise FileError(found=f"no data that can be read: {error}", where=f"--data {path}", fix=fix) from None
        fix = f"give the inputs {', '.join(wanted)}"
        if tensors.keys() != wanted.keys():
            raise OptionError(found=f"the tensors {', '.join(tensors) or 'none'}", where=f"--data {path}", fix=fix)
        for name, shape in wanted.items():
            given = tuple(tensors[name].shape)
            pairs = zip(given, shape, strict=False)
            if len(given) != len(shape) or any(isinstance(size, int) and size != n for n, size in pairs):
                text = ", ".join(str(size) for size in shape)
                raise OptionError(found=f"{name} of shape {given}", where=f"--data {path}", fix=f"give it as ({text})")
        found.append(tensors)
    return found


def output(path: Path, inputs: Sequence[str], suffixes: Sequence[str], force: bool) -> Path:
    """`path`, if it can be written to: of a known kind, in a folder there is, and nothing there already.

    Raises OptionError or FileError, before any work is done.
    """
    if path.is_dir():
        raise FileError(
            found="a folder where a file is to be written",
            where=str(path),
            fix=f"name a file: {path / ('model' + suffixes[0])}",
        )
    if path.suffix not in suffixes:
        kinds = " or ".join(suffixes)
        found = f"an output that ends in {path.suffix!r}" if path.suffix else "an output without an extension"
        near = path.with_suffix(suffixes[0]) if path.name else f"model{suffixes[0]}"
        raise OptionError(found=found, where=f"-o {path}", fix=f"end it in {kinds}: -o {near}")
    if path.parent.exists() and not path.parent.is_dir():
        raise FileError(found=f"{path.parent}, which is no folder", where=f"-o {path}", fix="name another place")
    if not path.parent.is_dir():
        raise FileError(
            found=f"no folder {path.parent}", where=f"-o {path}", fix=f"make it first: mkdir -p {path.parent}"
        )
    if any(Path(name).exists() and path.exists() and path.samefile(name) for name in inputs):
        raise FileError(found="the input as output: it would be replaced", where=f"-o {path}", fix="name another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        fix = "name another place, or change its permissions"
        raise FileError(found=f"no permission to write into {path.parent}", where=f"-o {path}", fix=fix)
    if path.exists() and not force:
        raise FileError(
            found="a file that exists already",
            where=str(path),
            fix="name another one with -o, or replace it with --force",
        )
    return path


def folder_output(path: Path, inputs: Sequence[str], force: bool) -> Path:
    """`path`, if a folder can be written there. Raises FileError, before any work is done."""
    started = (path / UNFINISHED).is_file()
    if path.exists() and not started and (not path.is_dir() or (any(path.iterdir()) and not force)):
        fix = "name another one with -o" + (", or replace it with --force" if path.is_dir() else "")
        raise FileError(
            found=f"a {'folder' if path.is_dir() else 'file'} that exists already", where=str(path), fix=fix
        )
    inside = path.absolute()
    for name in inputs:
        given = Path(name).absolute()
        if given.is_dir() and (inside == given or given.is_relative_to(inside)):
            found = "the input as output: it would be replaced"
            raise FileError(found=found, where=f"-o {path}", fix="name another folder")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        fix = f"make it first: mkdir -p {path.parent}" if not path.parent.exists() else "name another place"
        raise FileError(found=f"no folder to write into: {path.parent}", where=f"-o {path}", fix=fix)
    return path


def origin(path: Path, model: str, like: Path | None) -> Path | None:
    """The Hugging Face folder whose class and tokenizer an output folder takes: the input, or the one named. None for
    an output that is a file. Raises OptionError."""
    if path.suffix:
        if like is not None:
            raise OptionError(found=f"--like with the file {path}", fix="name a folder: -o grown")
        return None
    found = like or Path(model)
    if like is None and path.is_dir() and not (found / "config.json").is_file():
        return None  # a file was meant
    if not (found / "config.json").is_file():
        raise OptionError(
            found="an output without an extension, which means a Hugging Face folder, of an input that is none",
            where=f"-o {path}",
            fix=f"name the folder whose class it is: --like FOLDER; or a file: -o {path.name or 'model'}.pt",
        )
    return found


def beside(model: str, words: str, suffix: str = ".pt") -> Path:
    """Where the result goes that nobody named: `model.pt` and `widen` give `model.widen.pt` in the same folder."""
    path = Path(model)
    name = f".{words}{suffix}" if words else suffix
    if not path.exists() and ":" in model:
        return Path(model.rpartition(":")[2].rpartition(".")[2] + name)
    whole = path.resolve()
    stem = whole.name if whole.is_dir() else whole.stem
    return path.parent / f"{stem}{name}" if path.name and path.name != ".." else whole.parent / f"{stem}{name}"

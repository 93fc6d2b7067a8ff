"""A folder that is written tensor by tensor, and that an interrupted run goes on with.

While it is unfinished a manifest in it says what is being written, and the sha256 of every file that is whole. What
goes on must be the same plan, and whole files are read again first. The manifest goes when all is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from graphgrow.atomic import UNFINISHED, amount, atomic_file
from graphgrow.errors import FileError
from graphgrow.lazy import Load
from graphgrow.tracing.shards import DTYPES

SUMS = "SHA256SUMS"
_BLOCK = 2**24  # bytes of a file read at a time
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Seen = Callable[[int], object]  # is told how many bytes of tensors have been written


def unfinished(folder: Path) -> bool:
    """Whether a folder is one that an interrupted run has left."""
    return (folder / UNFINISHED).is_file()


@dataclass(frozen=True)
class Unfinished:
    """A folder that is being written: after which plan, and the sha256 of its whole files."""

    folder: Path
    plan: Mapping[str, Any]
    sums: dict[str, str]

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, plan: Mapping[str, Any]) -> Generator[Self]:
        """The folder for this process alone. Raises FileError for one with other things in it, one that is written
        after another plan, and one that another process writes."""
        if not unfinished(folder):
            if folder.is_dir() and any(folder.iterdir()):
                raise FileError(found="a folder that is not empty", where=str(folder), fix="name a new folder")
            folder.mkdir(exist_ok=True)
        with _alone(folder):
            found = cls(folder, plan, _whole(folder, plan) if unfinished(folder) else {})
            found.save()
            yield found

    def save(self) -> None:
        """Write down what is whole."""
        with atomic_file(self.folder / UNFINISHED) as file:
            file.write_text(json.dumps({"plan": self.plan, "sums": self.sums}, indent=2) + "\n")

    def shards(
        self, files: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], load: Load, seen: Seen
    ) -> None:
        """Write those safetensors files that are not whole yet; `files` gives the shapes of what is in each."""
        left = {name: sum(tensor.nbytes for tensor in shapes.values()) for name, shapes in files.items()}
        for name in self.sums.keys() & left.keys():
            seen(left.pop(name))
        self._require_room(sum(left.values()))
        for name in left:
            with atomic_file(self.folder / name) as file:
                found = _written(file, _safetensors(files[name], metadata, load, seen))
            self.sums[name] = found
            self.save()

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise FileError(
                found=f"no space left on the disk ({amount(needed)} needed, {amount(free)} free)",
                where=str(self.folder),
                fix="make room, and give the same command again: what is whole stays",
            )

    def finish(self, last: Mapping[str, str]) -> None:
        """Write the small files that make it a folder to load, in order, after sums of all files: then it is whole."""
        sums = {**{file.name: _sum(file) for file in self._others(last)}, **self.sums}
        sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in last.items()}
        lines = "".join(f"{found}  {name}\n" for name, found in sorted(sums.items()))
        for name, text in ({SUMS: lines} | dict(last)).items():
            with atomic_file(self.folder / name) as file:
                file.write_text(text)
        (self.folder / UNFINISHED).unlink()

    def _others(self, last: Mapping[str, str]) -> Iterable[Path]:
        """Files that were copied here."""
        known = {UNFINISHED, SUMS, *last, *self.sums}
        return (file for file in self.folder.iterdir() if file.is_file() and file.name not in known)


def _whole(folder: Path, plan: Mapping[str, Any]) -> dict[str, str]:
    """The whole files of an unfinished folder, read again. Raises FileError where its plan is another one."""
    try:
        told: dict[str, Any] = json.loads((folder / UNFINISHED).read_text())
        before: dict[str, Any] = told["plan"]
        sums: dict[str, str] = dict(told["sums"])
    except (ValueError, KeyError, TypeError) as error:
        found = f"an unfinished run whose {UNFINISHED} can't be read: {error}"
        raise FileError(found=found, where=str(folder), fix="remove the folder, and start anew") from error
    odd = next((key for key in {**before, **plan} if before.get(key) != plan.get(key)), None)
    if odd is not None:
        raise FileError(
            found=f"an unfinished run with other {odd}: {_short(before.get(odd))}, not {_short(plan.get(odd))}",
            where=str(folder),
            fix="give the command that it was started with, or remove the folder and start anew",
        )
    for file in folder.glob(".*.????????.*"):  # what a killed process was writing
        file.unlink()
    return {name: found for name, found in sums.items() if (folder / name).is_file() and _sum(folder / name) == found}


def _short(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return text if len(text) < 200 else text[:200] + "..."


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """No other process writes here."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        found = "a folder that another process is writing"
        raise FileError(found=found, where=str(folder), fix="wait for it, or name another folder") from error
    finally:
        os.close(handle)


def _safetensors(
    shapes: Mapping[str, Tensor], metadata: Mapping[str, str], load: Load, seen: Seen
) -> Iterator[bytes | memoryview]:
    """A safetensors file, part by part. Tensors of wide types come first: each is aligned then."""
    names = sorted(shapes, key=lambda name: -shapes[name].element_size())
    listed: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        tensor = shapes[name]
        end = start + tensor.nbytes
        listed[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(listed).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        value, expected = load(name).detach(), shapes[name]
        assert value.dtype == expected.dtype and value.shape == expected.shape, name
        data: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(data)
        seen(expected.nbytes)


def _written(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write a file; its sha256."""
    found = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            found.update(part)
            file.write(part)
    return found.hexdigest()


def _sum(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()

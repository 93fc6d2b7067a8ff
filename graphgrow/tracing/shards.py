"""Weights on the disk: one tensor at a time out of safetensors files, by reading its bytes and no others.

Files are read, not mapped: pages of a mapped file count as memory of the process for as long as nobody else needs them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from graphgrow.errors import FileError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_LARGEST = 100_000_000  # bytes of a header, as safetensors has it


@dataclass(frozen=True)
class Place:
    """Where a tensor is, and what it is."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def meta(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises FileError for a file that is shorter than it says."""
        data = bytearray(self.nbytes)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, found = memoryview(data), 0
            while found < len(data) and (count := file.readinto(view[found:])):  # a read gives 2 GB at most
                found += count
        if found < len(data):
            raise _broken(self.file, f"{found} of {len(data)} bytes of a tensor")
        return (
            torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)
            if data
            else torch.empty_like(self.meta, device="cpu")
        )


@dataclass(frozen=True)
class Shards:
    """The safetensors files of a folder, `model.safetensors` or those that its index names."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        """Raises FileError for an index that is none, or that names a file that is not there."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            whole = self.folder / "model.safetensors"
            return [whole] if whole.is_file() else sorted(self.folder.glob("*.safetensors"))
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            found = [self.folder / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(index, f"an index that is none: {error}") from error
        if gone := next((file for file in found if not file.is_file()), None):
            raise _broken(gone, "no file, where the index names one")
        return found

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Every tensor by the name it has there. Raises FileError for files that are no safetensors."""
        return {name: place for file in self.files for name, place in _places(file).items()}

    @property
    def digest(self) -> str:
        """A fingerprint of the files that reads none of the weights: names, sizes, times and headers."""
        found = hashlib.sha256()
        for file in self.files:
            told = file.stat()
            found.update(f"{file.name} {told.st_size} {told.st_mtime_ns} ".encode() + _header(file))
        return found.hexdigest()


def _header(file: Path) -> bytes:
    """The JSON text at the beginning of a safetensors file."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        text = opened.read(size) if size <= _LARGEST else b""
    if not size or len(text) < size:
        raise _broken(file, "no safetensors header")
    return text


def _places(file: Path) -> dict[str, Place]:
    text, found = _header(file), dict[str, Place]()
    try:
        listed: dict[str, Any] = json.loads(text)
        listed.pop("__metadata__", None)
        for name, told in listed.items():
            shape = tuple(int(size) for size in cast(list[Any], told["shape"]))
            start, end = (int(offset) for offset in told["data_offsets"])
            found[name] = place = Place(file, 8 + len(text) + start, DTYPES[told["dtype"]], shape)
            if end - start != place.nbytes or min(start, *shape, 0) < 0:
                raise ValueError(f"{name} does not fill its place")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(file, f"a safetensors header that can't be read: {error}") from error
    return found


def _broken(file: Path, found: str) -> FileError:
    return FileError(found=found, where=str(file), fix="download or save the folder again")

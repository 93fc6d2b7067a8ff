"""safetensors: the state dict, each tensor once, in one file or in shards with an index, as Hugging Face has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from graphgrow.atomic import atomic_file, atomic_folder
from graphgrow.errors import ExportError
from graphgrow.export.capture import brief, prepared
from graphgrow.program import Program

_SHARD = 5_000_000_000  # bytes in one file, as Hugging Face splits
_HEADER = 4096  # bytes of a file beside its tensors, at least

Shard = dict[str, Tensor]


def export_safetensors(program: Program, path: str | Path) -> tuple[Path, ...]:
    """Write the program's state dict; gives the files. They appear complete or not at all.

    `path` is a `.safetensors` file, or a folder for `model.safetensors`. Above 5 GB there are shards
    (`model-00001-of-00002.safetensors`) with `model.safetensors.index.json` instead. Tied tensors are written once,
    under their own names; `aliases` in the metadata has the further ones, as JSON. Raises ExportError, FileError.
    """
    tensors = _state(prepared(program, str(path)))
    target = Path(path)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if target.suffix == ".safetensors":
        return _into(target.parent, target.stem, tensors, program)
    if target.is_dir():
        return _into(target, "model", tensors, program)
    with atomic_folder(path, needed=needed) as folder:
        made = _into(folder, "model", tensors, program)
    return tuple(target / file.name for file in made)


def _state(program: Program) -> Shard:
    """Parameters and persistent buffers, each contiguous and on memory of its own: safetensors wants them so."""
    kinds = program.kinds
    kept = (name for name in program.tensors if kinds[name].role != "constant" and kinds[name].persistent)
    return {name: _own(program.tensors[name]) for name in kept}


def _own(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _into(folder: Path, stem: str, tensors: Shard, program: Program) -> tuple[Path, ...]:
    """Write the files into a folder; each gets its name when all are whole, the index last of all."""
    shards = named(stem, split(tensors))
    metadata = {"format": "pt", "graphgrow.digest": program.digest, "aliases": json.dumps(dict(program.aliases))}
    with ExitStack() as stack:
        made: list[Path] = []
        if len(shards) > 1:
            made.append(folder / f"{stem}.safetensors.index.json")
            stack.enter_context(atomic_file(made[0])).write_text(index(shards, metadata))
        for name, shard in shards.items():
            made.append(folder / name)
            place = stack.enter_context(atomic_file(made[-1], needed=_bytes(shard) + _HEADER))
            _write(shard, place, metadata, str(made[-1]))
    return tuple(made)


def _write(shard: Shard, place: Path, metadata: Mapping[str, str], path: str) -> None:
    try:
        save_file(shard, place, metadata=dict(metadata))
    except (KeyError, TypeError, ValueError) as error:  # a data type that the format has not
        fix = "save the program itself: program.save('model.pt')"
        raise ExportError(found=f"tensors that safetensors can't hold: {brief(error)}", where=path, fix=fix) from error


def split(tensors: Shard) -> list[Shard]:
    """The tensors in order, in parts of at most the size of a shard (a larger tensor is one of its own)."""
    shards: list[Shard] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and _bytes(shards[-1]) + tensor.nbytes > _SHARD:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def named(stem: str, shards: list[Shard]) -> dict[str, Shard]:
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {f"{stem}-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}


def index(shards: Mapping[str, Shard], metadata: Mapping[str, str]) -> str:
    """Which file has which tensor."""
    total = sum(_bytes(shard) for shard in shards.values())
    where = {name: file for file, shard in shards.items() for name in shard}
    return json.dumps({"metadata": {"total_size": total, **metadata}, "weight_map": where}, indent=2) + "\n"


def _bytes(shard: Shard) -> int:
    return sum(tensor.nbytes for tensor in shard.values())

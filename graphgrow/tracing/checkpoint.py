"""A Hugging Face folder as a program whose weights stay on the disk: shapes from the class on the meta device, values
read when they are asked for, converted as `from_pretrained` converts them (renamed keys, experts that are merged)."""

# transformers has types for few of its attributes, and is imported only where it is needed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from graphgrow.errors import FileError, TraceError
from graphgrow.lazy import Lazy
from graphgrow.program import Program
from graphgrow.tracing.huggingface import Folder
from graphgrow.tracing.shards import Place, Shards

Sources = tuple[tuple[str, str], ...]  # names in the files, each with the pattern of the converter that takes it


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder under the names that its class has for them. `model` is the class on the meta device."""

    folder: Folder
    model: Any

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.folder.path)

    @cached_property
    def shapes(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    @cached_property
    def _converters(self) -> dict[str, Any]:
        """By each pattern of names in the files, what makes the class's tensors of those."""
        from transformers.core_model_loading import WeightConverter

        found = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        return {pattern: converter for converter in found for pattern in converter.source_patterns}

    @cached_property
    def _mapping(self) -> list[Any]:
        from transformers.conversion_mapping import get_model_conversion_mapping

        return get_model_conversion_mapping(self.model)

    @cached_property
    def sources(self) -> Mapping[str, Sources]:
        """For each tensor of the class, or the first of several that one converter makes, what it is made of."""
        from transformers.core_model_loading import WeightRenaming, dot_natural_key, rename_source_key

        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters, prefix = list(dict.fromkeys(self._converters.values())), self.model.base_model_prefix
        found: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(self.shards.places, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, self.shapes)
            if name not in self.shapes and key in self.shapes:
                name, pattern = rename_source_key(key, [], [], prefix, self.shapes)
            if name in self.shapes:
                found.setdefault(name, []).append((key, pattern or ""))
        return {name: tuple(keys) for name, keys in found.items()}

    @cached_property
    def owners(self) -> Mapping[str, tuple[str, str]]:
        """For each tensor of the class the name in `sources` that it is found under, and which of the tensors made
        there it is (of tied ones another). Raises TraceError or FileError for weights that are missing or of other
        shapes."""
        found: dict[str, tuple[str, str]] = {}
        for first in self.sources:
            for name, tensor in self._converted(first, lambda place: place.meta).items():
                if name in self.shapes:
                    self._require(name, tensor)
                    found[name] = first, name
        tied: Mapping[str, str] = getattr(self.model, "all_tied_weights_keys", None) or {}
        for name, other in (*tied.items(), *((other, name) for name, other in tied.items())):
            if name not in found and other in found:
                found[name] = found[other]
        if missing := sorted(self.shapes.keys() - found.keys()):
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            fix = "save the whole model, or name the class that the weights are of in config.json"
            raise TraceError(found=f"weights without {missing[0]!r}{more}", where=str(self.folder.path), fix=fix)
        return found

    def _require(self, name: str, tensor: Tensor) -> None:
        if tensor.shape != self.shapes[name].shape:
            raise FileError(
                found=f"{name!r} of shape {tuple(tensor.shape)}, where the class has {tuple(self.shapes[name].shape)}",
                where=str(self.folder.path),
                fix="check that the folder holds the weights of this configuration",
            )

    def _converted(self, first: str, read: Callable[[Place], Tensor]) -> dict[str, Tensor]:
        """What the class has of one entry of `sources`."""
        (key, pattern), *_ = keys = self.sources[first]
        dtype = self.shapes[first].dtype
        if not pattern:
            return {first: read(self.shards.places[key]).to(dtype)}
        converter = deepcopy(self._converters[pattern])
        for key, pattern in keys:
            converter.add_tensor(first, key, pattern, read(self.shards.places[key]).to(dtype))
        made: dict[str, Any] = converter.convert(first, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def load(self, name: str) -> Tensor:
        """A tensor of the class with its values, in the type that the class has it in."""
        first, made = self.owners[name]
        return self._converted(first, Place.read)[made].to(self.shapes[name].dtype).contiguous()

    @cached_property
    def buffers(self) -> Mapping[str, Tensor]:
        """What the class computes when it is built and does not save: rotary frequencies, positions."""
        return self.folder.computed()

    def tensors(self, program: Program) -> Lazy:
        """The tensors of a program of the class. Raises TraceError or FileError for weights that do not fit it."""
        owned = self.owners  # before any is read: they are all there

        def load(name: str) -> Tensor:
            if name in owned:
                return self.load(name)
            return self.buffers[name] if name in self.buffers else program.tensors[name]

        shapes = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
        return Lazy(shapes, load, self.shards.digest)

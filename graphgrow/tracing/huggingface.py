"""Hugging Face models: from a folder, and example inputs made from a configuration."""

# transformers has types for few of its attributes, and is imported only where it is needed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from graphgrow.errors import FileError, OptionError, TraceError
from graphgrow.tracing.shards import Shards

_BATCH, _LENGTH, _TARGET = 2, 7, 5
_IMAGE = 224  # where neither configuration nor preprocessor tell: what ImageNet models are trained on


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is one of transformers'."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


@dataclass(frozen=True)
class Folder:
    """A folder with `config.json` and weights as safetensors, and the class that it is of."""

    path: Path
    config: Any
    network: Any

    @classmethod
    def read(cls, path: Path) -> Self:
        """Look into a folder. Raises FileError or TraceError for one that holds no model of transformers."""
        _require_files(path)
        transformers = _transformers(path)
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers checks configurations with errors of every kind
            fix = "use a config.json that this version of transformers knows"
            raise TraceError(
                found=f"a configuration transformers refuses: {error}", where=str(path), fix=fix
            ) from error
        return cls(path, config, _network(path, transformers, config))

    def build(self, eager: bool = False) -> nn.Module:
        """The model with its weights, without a cache, its experts in operators that can be traced."""
        _without_cache(self.config)
        options: dict[str, Any] = {"attn_implementation": "eager"} if eager else {}
        with quiet():
            try:
                model, info = self.network.from_pretrained(
                    self.path, config=self.config, local_files_only=True, use_safetensors=True, dtype="auto",
                    experts_implementation="batched_mm", output_loading_info=True, **options,
                )  # fmt: skip
            except Exception as error:  # transformers and safetensors raise errors of every kind
                fix = "check that the folder holds the weights of this configuration, as safetensors"
                raise FileError(
                    found=f"weights that can't be loaded: {error}", where=str(self.path), fix=fix
                ) from error
        if missing := sorted(info["missing_keys"]):
            found = f"weights without {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
            fix = f"save the whole {self.network.__name__}, or name the class that the weights are of in config.json"
            raise TraceError(found=found, where=str(self.path), fix=fix)
        return model

    def shapes(self, eager: bool = False, settings: dict[str, Any] | None = None) -> Any:
        """The class on the meta device, with all its shapes and no values; of another configuration with `settings`.
        Raises TraceError where it can't be built without its weights."""
        config = self.config if settings is None else type(self.config).from_dict(deepcopy(settings))
        _without_cache(config)
        if getattr(config, "quantization_config", None) is not None:
            raise self._not_lazy("quantized weights")
        options: dict[str, Any] = {"attn_implementation": "eager"} if eager else {}
        with quiet(), torch.device("meta"):
            model = self.network._from_config(
                config, dtype=self.dtype, experts_implementation="batched_mm", **options
            ).train(False)  # fmt: skip
        if model._get_dtype_plan(self.dtype):
            raise self._not_lazy(f"a class that keeps some of its weights in float32 when others are {self.dtype}")
        return model

    def _not_lazy(self, found: str) -> TraceError:
        fix = "load them all: --no-stream, or lazy=False"
        return TraceError(found=f"{found}: they are not read one by one", where=str(self.path), fix=fix)

    def computed(self, settings: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """The buffers of the class that it does not save, with the values that it gives them. (They are what is left to
        initialize when weights have been loaded; filling weights on the meta device costs nothing.)"""
        model = self.shapes(settings=settings)
        found = {name: torch.empty_like(buffer, device="cpu") for name, buffer in model.named_non_persistent_buffers()}
        for name, buffer in found.items():
            path, _, last = name.rpartition(".")
            model.get_submodule(path).register_buffer(last, buffer, persistent=False)
        for module in model.modules():
            module._is_hf_initialized = False
        model.initialize_weights()
        return {name: model.get_buffer(name).clone() for name in found}

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the weights: that of the configuration, or else of the first ones there are."""
        if self.config.dtype is not None:
            return self.config.dtype
        found = (place.dtype for place in Shards(self.path).places.values() if place.dtype.is_floating_point)
        return next(found, torch.float32)


def _require_files(path: Path) -> None:
    if not (path / "config.json").is_file():
        found = "a folder without config.json"
        raise FileError(found=found, where=str(path), fix="give the folder that save_pretrained() wrote, or a .pt file")
    try:
        json.loads((path / "config.json").read_text())
    except ValueError as error:
        fix = "save or download it again"
        raise FileError(found=f"a config.json that is no JSON: {error}", where=str(path), fix=fix) from error
    if not any(path.glob("*.safetensors")):
        other = next(path.glob("*.bin"), None)
        found = f"a folder with {other.name} but no safetensors" if other else "a folder without weights"
        fix = "save it with model.save_pretrained(folder), which writes safetensors"
        raise FileError(found=found, where=str(path), fix=fix)


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        fix = "install it: pip install 'graphgrow[hf]'"
        raise TraceError(
            found="a Hugging Face folder, but transformers is missing", where=str(path), fix=fix
        ) from error
    return transformers


def _network(path: Path, transformers: Any, config: Any) -> Any:
    """The class that the configuration names."""
    names: list[str] = config.architectures or []
    if not names:
        fix = 'add it: "architectures": ["LlamaForCausalLM"], for instance'
        raise TraceError(found="a config.json that names no architecture", where=str(path), fix=fix)
    network = getattr(transformers, names[0], None)
    if network is None:
        kind = type(config).__name__.removesuffix("Config")
        known = [name for name in dir(transformers) if name.startswith(kind) and not name.endswith("Config")]
        raise OptionError.unknown("class of transformers", names[0], known, where=str(path / "config.json"))
    return network


def _without_cache(config: Any) -> None:
    """A cache that grows has no place in a graph."""
    for part in (config, *(value for value in vars(config).values() if hasattr(value, "to_diff_dict"))):
        part.use_cache = False


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars: whoever traces shows their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def example_inputs(model: Any) -> dict[str, Tensor]:
    """Inputs of a small size made from the configuration. Raises TraceError where it does not tell enough."""
    _without_cache(model.config)
    takes = inspect.signature(model.forward).parameters
    main: str = model.main_input_name
    names = [main]
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        names.append("decoder_input_ids")
    if main == "input_ids" and hasattr(model.config, "vision_config") and "pixel_values" in takes:
        names.append("pixel_values")
    generator = torch.Generator().manual_seed(0)
    inputs = {name: _made(model, name, generator) for name in names}
    dtype = model.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _made(model: Any, name: str, generator: torch.Generator) -> Tensor:
    config = model.config
    if name in ("input_ids", "decoder_input_ids"):
        text = config.get_text_config()
        rows = int(text.vocab_size)
        longest = int(getattr(text, "max_position_embeddings", None) or _LENGTH)
        length = min(_LENGTH if name == "input_ids" else _TARGET, longest)
        return torch.randint(rows, (_BATCH, length), generator=generator)
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        height, width = _image_size(vision, Path(config.name_or_path))
        return torch.randn(_BATCH, getattr(vision, "num_channels", 3), height, width, generator=generator)
    if name == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        frames = 2 * int(config.max_source_positions)
        return torch.randn(_BATCH, int(config.num_mel_bins), frames, generator=generator)
    raise TraceError(
        found=f"no example inputs for {type(model).__name__}: nothing is known about its input {name!r}",
        fix=f"give some: trace(model, {{{name!r}: tensor}}), from Python or from a 'pkg.module:factory'",
    )


def _image_size(vision: Any, folder: Path) -> tuple[int, int]:
    """Height and width: from the configuration, or else from the preprocessor beside it."""
    size = getattr(vision, "image_size", None)
    preprocessor = folder / "preprocessor_config.json"
    if size is None and preprocessor.is_file():
        told = json.loads(preprocessor.read_text())
        size = told.get("crop_size") or told.get("size")
    if isinstance(size, dict):
        side = size.get("shortest_edge", _IMAGE)
        size = (size.get("height", side), size.get("width", side))
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    side = int(size or _IMAGE)
    return side, side

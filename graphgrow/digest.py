"""Fingerprints: the sha256 of a graph and of the bytes of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from graphgrow.files import graph_to_text
from graphgrow.graph import Graph, Kind

_THREADS = 2
# Programs share the tensors that passes leave alone: each is read once.
_known = WeakTensorKeyDictionary()


def digest(
    graph: Graph, tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind], aliases: Mapping[str, str], dtype: str
) -> str:
    """The fingerprint of a program; tensors without storage count by their shapes."""
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(fingerprint, tensors.values()))
    described = [
        [name, str(tensor.dtype), list(tensor.shape), found, *_kind(kinds[name])]
        for (name, tensor), found in zip(tensors.items(), hashes, strict=True)
    ]
    text = json.dumps([sorted(described), sorted(aliases.items()), dtype])
    return hashlib.sha256(f"{graph_to_text(graph)}\n{text}".encode()).hexdigest()


def _kind(kind: Kind) -> list[object]:
    """A kind as plain values; what says nothing is left out."""
    base = [kind.role, kind.persistent, kind.trainable]
    rest = [kind.pattern, list(astuple(kind.tuning))]
    return [base] if kind == Kind(kind.role, kind.persistent, kind.trainable) else [base, rest]


def fingerprint(tensor: Tensor) -> str:
    """The sha256 of a tensor's bytes."""
    if tensor.is_meta:
        return "no storage"
    known = cast(str | None, _known.get(tensor))  # pyright: ignore[reportUnknownMemberType]
    if known is None:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data: Any = flat.view(torch.uint8).numpy()
        known = hashlib.sha256(data).hexdigest()
        _known[tensor] = known
    return known

"""What a program file holds, and its header: everything but the tensors, as JSON text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from graphgrow.certificate import Certificate
from graphgrow.errors import OptionError
from graphgrow.files import check
from graphgrow.files.check import Json
from graphgrow.files.nodes import located
from graphgrow.files.text import graph_from_value, graph_to_text, parsed
from graphgrow.graph import WEIGHTS, Graph, Kind, Tuning
from graphgrow.patterns import Pattern

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in check.DTYPES}
_TRAINABLE = frozenset(dtype for dtype in DTYPES.values() if dtype.is_floating_point or dtype.is_complex)
_HEADER = frozenset({"graph", "kinds", "aliases", "dtype", "journal"})
_TAKEN = frozenset(dir(nn.Module()))  # a submodule or parameter of such a name would hide nn.Module's own


def _kind_text(kind: Kind) -> str:
    """`parameter persistent trainable rate=0.25 decay=4.0 eps=1.0` or `buffer persistent frozen mask=2:4@1`."""
    words = [kind.role, "persistent" if kind.persistent else "transient", "trainable" if kind.trainable else "frozen"]
    if kind.pattern:
        words.append(f"mask={kind.pattern}")
    if kind.tuning != Tuning():
        words += [f"{item.name}={getattr(kind.tuning, item.name)!r}" for item in fields(Tuning)]
    return " ".join(words)


_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-][0-9]{1,3})?"
_KIND = re.compile(
    r"(?P<role>parameter|buffer|constant) (?P<saved>persistent|transient) (?P<trained>trainable|frozen)"
    r"(?: mask=(?P<pattern>[a-z0-9:x@]{1,32}))?"
    rf"(?: rate=(?P<rate>{_NUMBER}) decay=(?P<decay>{_NUMBER}) eps=(?P<eps>{_NUMBER}))?"
)


@lru_cache(maxsize=4096)
def _kind(text: str) -> Kind | None:
    """The kind whose text this is."""
    found = _KIND.fullmatch(text)
    if (
        found is None
        or (found["pattern"] and found["role"] != "buffer")
        or (found["rate"] and found["role"] != "parameter")
    ):
        return None
    tuning = Tuning(*map(float, found.group("rate", "decay", "eps"))) if found["rate"] else Tuning()
    role = cast(Literal["parameter", "buffer", "constant"], found["role"])
    return Kind(role, found["saved"] == "persistent", found["trained"] == "trainable", found["pattern"] or "", tuning)


@dataclass(frozen=True)
class Contents:
    """A program, part by part: `tensors` by name, once each; `aliases` the further names of tied tensors."""

    graph: Graph
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, Kind]
    aliases: Mapping[str, str]
    dtype: str
    journal: tuple[Certificate, ...]


def header_text(contents: Contents) -> str:
    """The JSON text of everything but the tensors, deterministic."""
    rest = {
        "kinds": {name: _kind_text(kind) for name, kind in contents.kinds.items()},
        "aliases": dict(contents.aliases),
        "dtype": contents.dtype,
        "journal": [_spelled(certificate.model_dump(mode="json")) for certificate in contents.journal],
    }
    return f'{{"graph": {graph_to_text(contents.graph)},\n{json.dumps(rest, allow_nan=False)[1:]}'


def contents_from(header: str, tensors: Mapping[str, Tensor]) -> Contents:
    """The contents whose header and tensors these are. Raises FileError where anything is not as it must be."""
    found = check.fields(parsed(header), _HEADER)
    graph = graph_from_value(found["graph"])
    kinds, aliases = _kinds(found["kinds"], tensors), _aliases(found["aliases"], tensors)
    _check_names([*tensors, *aliases])
    dtype = check.dtype(found["dtype"], check.FLOATS)
    _check_parameters(graph, tensors, dtype)
    return Contents(graph, tensors, kinds, aliases, dtype, _journal(found["journal"]))


def _kinds(value: Json, tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """What each tensor is to the module: an entry for every tensor, and no other."""
    kinds: dict[str, Kind] = {}
    for name, text in check.fields(value, frozenset(tensors)).items():
        kind = _kind(text) if isinstance(text, str) else None
        if kind is None:
            raise check.bad(f"{check.shown(text)} as the kind of a tensor", where=f"tensor {name!r}")
        kinds[name] = kind
        if kind.pattern and not _fits(kind.pattern, tensors[name]):
            raise check.bad(f"the pattern {check.shown(kind.pattern)} of a mask", where=f"tensor {name!r}")
        if kind.role == "parameter" and kind.trainable and tensors[name].dtype not in _TRAINABLE:
            raise check.bad(f"a trainable parameter of {tensors[name].dtype}", where=f"tensor {name!r}")
    return kinds


def _fits(text: str, mask: Tensor) -> bool:
    """Whether a pattern is one, along dimensions that a mask of zeros and ones has."""
    try:
        found = Pattern.parse(text)
    except OptionError:
        return False
    along = found.inputs is not None or found.kind == "unstructured"
    return mask.dtype == torch.bool and along and all(dim < mask.dim() for dim, _ in found.steps)


def _aliases(value: Json, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Further names of tensors: each for a tensor there is, none a tensor's own name."""
    aliases: dict[str, str] = {}
    for alias, name in check.entries(value).items():
        if not isinstance(name, str) or name not in tensors or alias in tensors:
            found = f"the name {check.shown(alias)} for {check.shown(name)}, which does not lead to one tensor"
            raise check.bad(found, where="tied tensors")
        aliases[alias] = name
    return aliases


def _check_names(names: list[str]) -> None:
    """Tensor names that a module tree can hold: no module is a tensor, none hides what nn.Module is made of."""
    modules: set[str] = set()
    for name in names:
        module = check.path(name, "tensor").rpartition(".")[0]
        while module and module not in modules:
            modules.add(module)
            module = module.rpartition(".")[0]
    if taken := _TAKEN.intersection(".".join(names).split(".")):
        raise check.bad(f"{min(taken)!r} in a tensor's name: nn.Module has one of its own")
    if both := modules.intersection(names):
        raise check.bad(f"{min(both)!r}, which is a tensor and also a module with tensors")


def _check_parameters(graph: Graph, tensors: Mapping[str, Tensor], weights: str) -> None:
    """Every `parameter` node reads a tensor there is, of the shape and data type the node has."""
    for name, node in graph.parameters.items():
        tensor = tensors.get(name)
        kind = node.tensor
        dtype = weights if kind.dtype == WEIGHTS else kind.dtype
        if tensor is not None and kind.shape == tensor.shape and DTYPES[dtype] is tensor.dtype:
            continue
        there = "there is none" if tensor is None else f"it is {tensor.dtype}{list(tensor.shape)}"
        found = f"the tensor {name!r} as {dtype}[{', '.join(map(str, kind.shape))}], but {there}"
        raise check.bad(found, where=f"node {graph.nodes.index(node)} ({node.name})")


def _journal(value: Json) -> tuple[Certificate, ...]:
    """The certificates. Non-finite numbers in them are spelled as text, which pydantic reads back as numbers."""
    certificates: list[Certificate] = []
    for index, item in enumerate(check.items(value)):
        with located(f"certificate {index}"):
            _check_printable(item)
            certificates.append(_certificate(item))
    return tuple(certificates)


def _certificate(value: Json) -> Certificate:
    try:
        return Certificate.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise check.bad(f"{check.shown(place)}: {first['msg']}") from error


def _check_printable(value: Json, depth: int = 0) -> None:
    """Text for people holds no terminal's control characters."""
    if depth > 8 or (isinstance(value, str) and not value.replace("\n", "").isprintable()):
        raise check.bad(f"{check.shown(value)}, which can't be printed")
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _check_printable(item, depth + 1)


def _spelled(value: Json) -> Json:
    """`value` with infinities and not-a-number as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    return {key: _spelled(item) for key, item in value.items()} if isinstance(value, dict) else value

"""Passes described for people: claim, options, theorem."""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, dataclass, fields
from inspect import getdoc
from typing import Any, Literal, get_args, get_origin, get_type_hints

from graphgrow.pipeline import Pass


@dataclass(frozen=True)
class Option:
    """One option of a pass: its type and default as text."""

    name: str
    type: str
    default: str | None  # None: it must be given
    doc: str


@dataclass(frozen=True)
class Described:
    """A pass: what it does, what it claims, and why that is true."""

    name: str
    claim: str
    summary: str
    options: tuple[Option, ...]
    theorem: str


def described(found: type[Pass]) -> Described:
    """What a pass's class says about itself: the theorem is what its file opens with."""
    hints = get_type_hints(found)
    options = tuple(
        Option(item.name, kind(hints[item.name]), _default(item), item.metadata.get("doc", ""))
        for item in fields(found)
    )
    summary = (getdoc(found) or "").partition("\n")[0]
    return Described(found.name, found.claim, summary, options, (sys.modules[found.__module__].__doc__ or "").strip())


def _default(item: Field[Any]) -> str | None:
    if item.default_factory is not MISSING:
        return str(item.default_factory())
    if item.default is MISSING:
        return None
    return str(item.default).lower() if isinstance(item.default, bool | None) else str(item.default)


def kind(hint: Any) -> str:
    """The type of an option as one writes it: `int`, `scaled | copy`, `text + text`."""
    arguments = [choice for choice in get_args(hint) if choice is not type(None)]
    if get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if get_origin(hint) is tuple:
        return f"{kind(arguments[0])} + ..."
    if arguments:
        return " | ".join(kind(choice) for choice in arguments)
    name = str(hint.__name__)
    return {"str": "text", "bool": "true | false"}.get(name, name)

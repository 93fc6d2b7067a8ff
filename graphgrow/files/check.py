"""What may stand in a program file: names, sizes, numbers and data types, each against a strict pattern.

torch.fx writes Python source from a graph and runs it, so a name that is no plain identifier is code. Every
function here returns the value it was given, or raises FileError with what was found; the caller adds where.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence, Set, Sized
from functools import lru_cache
from typing import TypeAlias, cast

from graphgrow import sizes
from graphgrow.errors import FileError
from graphgrow.graph import WEIGHTS
from graphgrow.sizes import Dim, Size

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
DTYPES = FLOATS | {
    "bool", "uint8", "int8", "int16", "int32", "int64", "complex64", "complex128",
    "float8_e4m3fn", "float8_e5m2",
}  # fmt: skip
FIX = "write the file again from its model; if it came from elsewhere, don't trust it"

_LARGEST = 2**63
_MONOMIALS = 4096  # a size of a real model has fewer than ten
_RANK = 64  # dimensions, torch's own limit
# What the source that torch.fx writes takes for granted. (It renames what would hide another builtin.)
_RESERVED = frozenset(keyword.kwlist) | {
    "self", "training", "torch", "device", "inf", "nan", "math", "pytree", "fx_pytree", "getattr", "slice", "operator",
}  # fmt: skip

_IDENTIFIER = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,127}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OPERATOR = re.compile(r"[a-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z0-9_]{1,64}){0,3}")
_PATH = re.compile(r"(?=.{1,512}\Z)(?!__)[A-Za-z0-9_]{1,128}(\.(?!__)[A-Za-z0-9_]{1,128}){0,31}")
_SYMBOL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORD = re.compile(r"[a-z_]{0,32}|[A-Za-z.,> -]{1,64}")  # a mode ("tanh"), or an einsum equation
_MINUSES = re.compile(r"-\s*-")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TYPE = re.compile(r"([a-z0-9_]{1,16})\[(.{0,4000})\]")


def bad(found: str, where: str = "") -> FileError:
    """The error for something that no program graphgrow saved has in it."""
    return FileError(found=found, where=where, fix=FIX)


def shown(value: object) -> str:
    """A value as an error may print it: short, without control characters."""
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'dictionary'} of {len(cast(Sized, value))} values"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"


def identifier(name: Json) -> str:
    """The name of a node or an input."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise bad(f"{shown(name)}, which is not a name for a node")
    if name in _RESERVED:
        raise bad(f"{name!r} as the name of a node, a word Python needs itself")
    return name


def identifiers(values: Sequence[Json]) -> bool:
    """Whether all of `values` are names of nodes."""
    if {*map(type, values)} - {str}:
        return False
    names = cast(Sequence[str], values)
    return all(map(_IDENTIFIER.fullmatch, names)) and _RESERVED.isdisjoint(names)


def key(name: Json) -> str:
    """The name of a keyword argument or of an entry in a dictionary of outputs."""
    if not isinstance(name, str) or not _KEY.fullmatch(name) or "__" in name[:2] or keyword.iskeyword(name):
        raise bad(f"{shown(name)}, which is not a key")
    return name


def operator(name: Json) -> str:
    """The name of an operator, by its letters only: whether there is one, the operator table knows."""
    if not isinstance(name, str) or not _OPERATOR.fullmatch(name) or "__" in name[:2]:
        raise bad(f"{shown(name)}, which is not the name of an operator")
    return name


def path(name: Json, what: str) -> str:
    """A dotted name: of a tensor, or of a module (`what` says which)."""
    if not isinstance(name, str) or not _PATH.fullmatch(name):
        raise bad(f"{shown(name)}, which is not the name of a {what}")
    return name


def scope(name: Json) -> str:
    """The path of the module a node came from; the model itself is ''."""
    return "" if name == "" else path(name, "module")


def source(text: Json) -> str:
    """Where in the model's code a node came from: one short line for people."""
    if not isinstance(text, str) or len(text) > 1000 or not text.isprintable():
        raise bad(f"{shown(text)} as a source line")
    return text


def word(text: str) -> str:
    """A string argument of an operator."""
    if not _WORD.fullmatch(text):
        raise bad(f"{shown(text)} as the text argument of an operator")
    return text


def integer(value: Json, low: int = -_LARGEST) -> int:
    """A number of 64 bits, at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < _LARGEST:
        raise bad(f"{shown(value)} where an integer from {low} to 2**63 - 1 belongs")
    return value


def dtype(name: Json, known: Set[str] = DTYPES | {WEIGHTS}) -> str:
    """The name of a data type, in a graph also `weights`."""
    if not isinstance(name, str) or name not in known:
        fix = f"use one of {', '.join(sorted(known))}"
        raise FileError(found=f"{shown(name)}, which is not a data type", fix=fix)
    return name


def symbol(name: Json) -> str:
    """The name of a dynamic size."""
    if not isinstance(name, str) or not _SYMBOL.fullmatch(name) or name in ("max", "min"):
        raise bad(f"{shown(name)}, which is not a name for a dynamic size")
    return name


@lru_cache(maxsize=4096)
def size(text: str) -> Size:
    """A dynamic size from its text, which must be just as graphgrow writes it."""
    if len(text) > 2000 or _expanded(text) > _MONOMIALS or _MINUSES.search(text):
        raise bad(f"{shown(text)}, too long or too deep for a size")
    try:
        value = sizes.parse(text)
    except (ArithmeticError, RecursionError) as error:
        raise bad(f"{shown(text)}, which is not a size: {error}") from error
    if isinstance(value, int) or str(value) != text:
        raise bad(f"{shown(text)}, which is not how a dynamic size is written ({value!s:.80})")
    for _, coefficient in value.terms:
        integer(coefficient)
    return value


def _expanded(text: str) -> int:
    """An upper bound on the terms of the sum that `text` multiplies out to, without multiplying it out."""
    bound, counts = 1, [1]
    for letter in text:
        if letter == "(":
            counts.append(1)
        elif letter in "+-,":
            counts[-1] += 1
        elif letter == ")" and len(counts) > 1:
            bound *= counts.pop()
    for count in counts:
        bound *= count
    return bound


@lru_cache(maxsize=4096)
def tensor_type(text: str) -> tuple[tuple[Dim, ...], str]:
    """Shape and data type from a text such as `float32[batch, 12, 64]`."""
    match = _TYPE.fullmatch(text)
    if match is None:
        raise bad(f"{shown(text)}, which is not the type of a tensor")
    return dims(match[2], 0), dtype(match[1])


def dims(text: str, low: int = -_LARGEST) -> tuple[Dim, ...]:
    """The sizes in a text such as `batch, 12, 64`, numbers among them at least `low`."""
    found = parts(text)
    if len(found) > _RANK:
        raise bad(f"{len(found)} dimensions")
    return tuple(integer(int(part), low) if _INTEGER.fullmatch(part) else size(part) for part in found)


def parts(text: str) -> list[str]:
    """The sizes between commas; commas inside brackets (`max(a, b)`, `f[a, b]`) don't count."""
    if "(" not in text and "[" not in text:
        return text.split(", ") if text else []
    found, depth, start = list[str](), 0, 0
    for position, letter in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append(text[start:position])
            start = position + 2
    return [*found, text[start:]]


def fields(value: Json, required: frozenset[str], optional: frozenset[str] = frozenset()) -> Mapping[str, Json]:
    """A dictionary that has the `required` keys, and no key beyond them and the `optional` ones."""
    if not isinstance(value, dict):
        raise bad(f"{shown(value)} where a dictionary belongs")
    if missing := required - value.keys():
        raise bad(f"no {' and no '.join(map(repr, sorted(missing)))}")
    if unknown := value.keys() - required - optional:
        raise bad(f"the key {shown(min(unknown))}, which means nothing here")
    return value


def items(value: Json, most: int = 1_000_000) -> list[Json]:
    """A list of at most `most` values."""
    if not isinstance(value, list) or len(value) > most:
        raise bad(f"{shown(value)} where a list of at most {most} values belongs")
    return value


def entries(value: Json) -> dict[str, Json]:
    """A dictionary with any keys."""
    if not isinstance(value, dict):
        raise bad(f"{shown(value)} where a dictionary belongs")
    return value

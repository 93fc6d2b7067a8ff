"""One family of errors: what was found, where, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Self

_LISTED = 20  # names an error prints before it only counts the rest


class GraphgrowError(Exception):
    """Something graphgrow can't do, told to the person who asked for it.

    `found` is what is wrong, `where` the file, operator or source line, `fix` what to do instead. The fields
    can be set later: the caller that knows the file or the module adds it to an inner error.
    """

    def __init__(self, *, found: str, where: str = "", fix: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        rows = (("found", self.found), ("where", self.where), ("do", self.fix))
        return "\n".join(f"{label:5}  {_indented(text)}" for label, text in rows if text)

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Keyword-only fields need this to travel between processes."""
        return partial(type(self), found=self.found, where=self.where, fix=self.fix), ()


class Refusal(GraphgrowError):
    """A rewrite that can't be done on this program."""


class DeadGrowth(Refusal):
    """New units that could never learn."""


class TraceError(GraphgrowError):
    """A model that can't become a program."""


class FileError(GraphgrowError):
    """A file that can't be read, is not what it should be, or can't be written."""


class ExportError(GraphgrowError):
    """A program that another format or its runtime can't hold."""


class CheckFailed(GraphgrowError):
    """A program that does not do what its certificate or the user expects."""


class OptionError(GraphgrowError):
    """A name or an option value that doesn't exist."""

    @classmethod
    def unknown(cls, kind: str, name: str, known: Iterable[str], *, where: str = "") -> Self:
        """The error for an unknown `name` of a `kind` ("pass", "axis"): the nearest names, then all."""
        names = sorted(set(known))
        return cls(found=f"{name!r}, which is not a known {kind}", where=where, fix=_advice(name, names, kind))


@contextmanager
def located(place: str) -> Generator[None]:
    """Errors that name no place get this one."""
    try:
        yield
    except GraphgrowError as error:
        error.where = error.where or place
        raise


def _advice(name: str, names: list[str], kind: str) -> str:
    """`use 'widen'`, then the names there are; case is no obstacle to being near."""
    if not names:
        return f"leave it out: there is no {kind} to choose here"
    spelled: dict[str, list[str]] = {}
    for candidate in names:
        spelled.setdefault(candidate.lower(), []).append(candidate)
    near = get_close_matches(name.lower(), spelled, n=3)
    guesses = " or ".join(repr(candidate) for match in near for candidate in spelled[match])
    rest = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    valid = f"valid: {', '.join(names[:_LISTED])}{rest}"
    return f"use {guesses}\n{valid}" if guesses else f"use one of the names that exist\n{valid}"


def _indented(text: str) -> str:
    """Further lines start under the first one, right of the label."""
    return text.replace("\n", "\n" + " " * 7)

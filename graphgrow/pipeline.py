"""Passes and pipelines: a pass proposes, `verify` disposes.

A pass is a frozen dataclass; its fields are its options, in Python, in specs (`widen:axis=mlp,factor=2`) and on the
command line. Passes are found through the entry-point group `graphgrow.passes`, whose entries name tables from pass
names to `module:Class`.
"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, Self, cast, get_args, get_origin, get_type_hints

from graphgrow.axes import Axes
from graphgrow.axes.names import Named
from graphgrow.certificate import Claim
from graphgrow.errors import OptionError, located
from graphgrow.lazy import after
from graphgrow.program import Program
from graphgrow.prove import fresh
from graphgrow.rewrite import Data, Rewriter
from graphgrow.verify import certify

GROUP = "graphgrow.passes"


def option(doc: str, **kwargs: Any) -> Any:
    """A field of a pass, with the line that its help prints."""
    return field(metadata={"doc": doc}, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One rewrite. Subclasses are frozen dataclasses that say what they claim and implement `rewrite`."""

    name: ClassVar[str]
    claim: ClassVar[Claim]

    seed: int = option("of everything random: new values and the inputs of the test", default=0)

    def __post_init__(self) -> None:
        """Refuse options of the wrong kind, however the pass was made. Raises OptionError."""
        hints = get_type_hints(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if not _fits(value, hints[item.name]):
                raise OptionError(found=f"{self.name}:{item.name}={value!r}", fix=f"give {_kind(hints[item.name])}")
        if not 0 <= self.seed < 2**32:
            raise OptionError(found=f"{self.name}:seed={self.seed}", fix="give a seed from 0 to 2**32 - 1")

    @property
    def claims(self) -> Claim:
        """What this pass claims with its options."""
        return self.claim

    @abstractmethod
    def rewrite(self, rewriter: Rewriter) -> None:
        """Ask the rewriter for edits. Raises Refusal where the pass can't hold what it claims."""

    def __call__(self, program: Program, data: Data = ()) -> Program:
        """The rewritten program, with a certificate; `program` stays what it was. `data` are batches of inputs by name,
        for passes that look at activations and for what is measured. Raises Refusal or CheckFailed."""
        rewriter = Rewriter(program, self.seed, data)
        with fresh():
            with located(self.spec):
                self.rewrite(rewriter)
            new = after(program, rewriter.program)
            certificate = certify(program, new, spec=self.spec, claim=self.claims, seed=self.seed, data=data)
        certificate = certificate.model_copy(update={"notes": tuple(rewriter.notes)})
        return new.replace(journal=(*program.journal, certificate))

    @property
    def spec(self) -> str:
        """The pass as the command line takes it: its name, and the options that differ from their defaults."""
        given = [
            f"{item.name}={written(value)}"
            for item in fields(self)
            if (value := getattr(self, item.name)) != _default(item)
        ]
        return f"{self.name}:{','.join(given)}" if given else self.name

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """A pass from the text of its options. Raises OptionError for unknown or unreadable ones."""
        hints, known = get_type_hints(cls), {item.name for item in fields(cls)}
        for name in options:
            if name not in known:
                raise OptionError.unknown(f"option of {cls.name}", name, sorted(known))
        return cls(**{name: _read(f"{cls.name}:{name}", text, hints[name]) for name, text in options.items()})


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is what a field's type says."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return value in choices
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, choices[0]) for item in cast(tuple[object, ...], value))
    if choices:
        return any(_fits(value, choice) for choice in choices)
    if isinstance(value, bool):
        return kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) <= 2**53  # as far as floats hold all integers
    return isinstance(value, kind)


def _kind(kind: Any) -> str:
    """A field's type for people."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, choices))}"
    if get_origin(kind) is tuple:
        return f"a tuple, each item {_kind(choices[0])}"
    names = [choice.__name__ for choice in choices or (kind,) if choice is not type(None)]
    return f"a value of type {' or '.join(names)}"


def _default(item: Field[Any]) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING


def written(value: object) -> str:
    """A value in a spec: lists are joined by `+`; text that a spec would read as something else is in double quotes,
    with a quote in it doubled."""
    if isinstance(value, tuple):
        return "+".join(written(item) for item in cast(tuple[object, ...], value))
    if not isinstance(value, str):
        return str(value).lower().removesuffix(".0").replace("e+", "e")
    special = not value or value.lower() == "none" or value != value.strip() or any(mark in value for mark in ',+"')
    return '"{}"'.format(value.replace('"', '""')) if special else value


def _cut(text: str, mark: str) -> list[str]:
    """`text` at each `mark` outside of double quotes."""
    parts: list[str] = []
    for piece in text.split(mark):
        if parts and parts[-1].count('"') % 2:
            parts[-1] += mark + piece
        else:
            parts.append(piece)
    return parts


def _plain(owner: str, text: str) -> str:
    """Text without the quotes around it."""
    inside = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if '"' in (inside.replace('""', "") if inside is not text else text):
        raise OptionError(found=f"{owner}={text}", fix='put the whole value in double quotes, and write "" for a quote')
    return inside.replace('""', '"')


def _read(owner: str, text: str, kind: Any) -> Any:
    """One option's value. `owner` is the pass and the option, `widen:axis`."""
    choices = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(_read(owner, part.strip(), choices[0]) for part in _cut(text, "+")) if text else ()
    if type(None) in choices:
        rest = next(choice for choice in choices if choice is not type(None))
        return None if text.lower() == "none" else _read(owner, text, rest)
    plain = _plain(owner, text)
    if get_origin(kind) is Literal:
        spelled = {_plain(owner, written(choice)): choice for choice in choices}
        if plain not in spelled:
            raise OptionError.unknown(f"value of {owner}", plain, spelled)
        return spelled[plain]
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[plain.lower()]
        return kind(plain)
    except (ValueError, KeyError):
        raise OptionError(found=f"{owner}={text}", fix=f"give {owner.partition(':')[2]} as {kind.__name__}") from None


def available() -> dict[str, str]:
    """Every pass that is installed: its name and where its class is."""
    found: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        with _importing(entry.value):
            table: Mapping[str, str] = entry.load()
        for name, target in table.items():
            if found.setdefault(name, target) != target:
                raise OptionError(found=f"two passes called {name!r}: {found[name]} and {target}", fix="uninstall one")
    return dict(sorted(found.items()))


def find(name: str) -> type[Pass]:
    """The class of a pass. Raises OptionError for an unknown name, with the nearest ones."""
    known = available()
    if name not in known:
        raise OptionError.unknown("pass", name, known)
    module, _, attribute = known[name].partition(":")
    with _importing(known[name]):
        return getattr(import_module(module), attribute)


@contextmanager
def _importing(target: str) -> Generator[None]:
    try:
        yield
    except (ImportError, AttributeError) as error:
        found = f"passes that can't be imported from {target}: {error}"
        fix = "mend or uninstall the package that they come from"
        raise OptionError(found=found, where=f"the entry points {GROUP}", fix=fix) from error


def parse_pass(spec: str, seed: int | None = None) -> Pass:
    """A pass from its spec, `name` or `name:key=value,key="a,b"`; `seed` is for a spec that has none."""
    name, _, text = spec.partition(":")
    with located(spec):
        found = find(name.strip())
        options = _options(name, text)
        return found.parse(options if seed is None else {"seed": str(seed), **options})


def _options(name: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, _cut(text, ",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            fix = f"write options as {name}:key=value, and a value that has a comma in double quotes"
            raise OptionError(found=f"{part!r}, which is no option", fix=fix)
        if key in options:
            raise OptionError(found=f"the option {key!r} twice", fix="give each option once")
        options[key] = value
    return options


@dataclass(frozen=True)
class Pipeline:
    """Passes one after the other."""

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, specs: Iterable[str], seed: int | None = None) -> Self:
        """From specs; `seed` is given to every pass whose spec has none."""
        return cls(tuple(parse_pass(spec, seed) for spec in specs))

    def steps(self, program: Program, data: Data = ()) -> Iterator[Program]:
        """The program after each pass."""
        for one in self.passes:
            program = one(program, data)
            yield program

    def __call__(self, program: Program, data: Data = ()) -> Program:
        """The program after all passes. Raises what a pass raises."""
        return deque((program, *self.steps(program, data)), maxlen=1)[0]


def select(axes: Axes, pattern: str, owner: str) -> Sequence[Named]:
    """The axes that a pattern means: a role (`mlp`), a name (`mlp@blocks.0`), a glob over names, or `re:` a regular
    expression. Raises OptionError when it means none, with the nearest names."""
    named = axes.named
    if not named:
        fix = "choose another model"
        raise OptionError(found=f"no axis for {owner}: the outputs depend on no parameter", fix=fix)
    chosen = [axis for axis in named if axis.name == pattern] or [axis for axis in named if axis.role == pattern]
    if not chosen:
        names = set(matching([axis.name for axis in named], pattern))
        chosen = [axis for axis in named if axis.name in names]
    if not chosen:
        known = [*dict.fromkeys(axis.role for axis in named), *(axis.name for axis in named)]
        raise OptionError.unknown(f"axis for {owner}", pattern, known)
    return chosen


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern means: a name, a glob, or `re:` a regular expression. Raises OptionError for one that is
    none."""
    if pattern in names:
        return [pattern]
    if not pattern.startswith("re:"):
        return [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    try:
        return [name for name in names if re.search(pattern[3:], name)]
    except re.error as error:
        found = f"{pattern!r}, which is no regular expression: {error}"
        raise OptionError(found=found, fix="mend it, or write a glob") from None

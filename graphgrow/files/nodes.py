"""Reading the nodes of a graph from JSON values, each checked before it is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

from graphgrow import ops, sizes
from graphgrow.errors import FileError
from graphgrow.files import check
from graphgrow.files.check import Json
from graphgrow.graph import (
    Argument,
    ByMode,
    Dtype,
    Lowest,
    Node,
    Origin,
    Record,
    Ref,
    ScalarType,
    Structure,
    TensorType,
    Type,
    made,
)  # fmt: skip
from graphgrow.sizes import Dim

_T = TypeVar("_T")
_SIMPLE: dict[str, Type] = {
    "int": ScalarType("int"),
    "float": ScalarType("float"),
    "bool": ScalarType("bool"),
    "none": None,
}
_DEPTH = 16  # of lists in an argument, a type or the outputs
_STRUCTURAL = frozenset({"input", "parameter", "getitem"})
_FLOAT = re.compile(r"-?(inf|nan|[0-9]{1,20}(\.[0-9]{1,20})?(e[-+][0-9]{1,3})?)")
_MODE = frozenset({"train", "eval"})
_ORIGIN = frozenset({"node", "dim", "low", "high"})


@contextmanager
def located(where: str) -> Generator[None]:
    """A FileError out of the block says where."""
    try:
        yield
    except FileError as error:
        error.where = _inside(where, error.where)
        raise


def _inside(outer: str, inner: str) -> str:
    return f"{outer}, {inner}" if inner else outer


def _where(names: Sequence[Json], index: int) -> str:
    """`node 17 (linear_3)`, where a node has a name that can be shown."""
    name = names[index]
    shown = isinstance(name, str) and name.isidentifier() and len(name) < 129
    return f"node {index} ({name})" if shown else f"node {index}"


def _names(values: list[Json]) -> list[str]:
    """Names that differ, checked all at once; one by one where there is an error to find."""
    if not check.identifiers(values) or len({*cast(list[str], values)}) < len(values):
        seen = set[str]()
        for index, value in enumerate(values):
            with located(_where(values, index)):
                if (name := check.identifier(value)) in seen:
                    raise check.bad(f"a second node called {name!r}")
            seen.add(name)
    return cast(list[str], values)


def _values(
    names: Sequence[str], columns: Mapping[str, Json], what: str, checked: Callable[[Json], _T]
) -> tuple[list[_T], list[Json]]:
    """The different values of a column, each checked, and the entries of the nodes. An error says which node has it."""
    match columns[what]:
        case [list(values), list(entries)] if len(entries) == len(names):
            pass
        case found:
            raise check.bad(f"{check.shown(found)} where values and {len(names)} entries belong", where=what)
    table: list[_T] = []
    try:
        for value in values:
            table.append(checked(value))
    except FileError as error:
        number = len(table)
        users = [node for node, entry in enumerate(entries) if number in (entry if type(entry) is list else [entry])]
        error.where = _inside(_where(names, users[0]) if users else what, error.where)
        raise
    return table, entries


def _column(names: Sequence[str], columns: Mapping[str, Json], what: str, checked: Callable[[Json], _T]) -> list[_T]:
    """A column in which an entry is the number of a value."""
    table, entries = _values(names, columns, what, checked)
    numbers = cast(list[int], entries)
    if {*map(type, entries)} - {int} or not {*numbers} <= {*range(len(table))}:
        raise check.bad(f"entries that are not all numbers from 0 to {len(table) - 1}", where=what)
    return [table[number] for number in numbers]


def type_text(kind: Type) -> str:
    """A type as a file has it: `float32[batch, 12]`, `int`, `none`, `(float32[2], float32[3])`."""
    return f"({', '.join(map(type_text, kind))})" if isinstance(kind, tuple) else "none" if kind is None else str(kind)


def sizes_text(values: Sequence[Dim]) -> str:
    """Sizes as a file has them: `batch, 12, -1`."""
    return ", ".join(map(str, values))


def _operator(value: Json) -> str:
    """An operator of the table, or one of the three that a graph has beside it."""
    name = check.operator(value)
    if name not in _STRUCTURAL and not ops.known(name):
        raise check.bad(f"the operator {name!r}, which is not in graphgrow's operator table")
    return name


class Reader:
    """Reads nodes, knowing the dynamic sizes there are; a reference may only point to an earlier node."""

    def __init__(self, symbols: frozenset[str]) -> None:
        self.symbols = symbols
        self.types: dict[str, Type] = {}
        self.known: dict[str | int, Argument] = {}  # what an entry may be: the number of a value, an earlier node
        self.tensors = set[str]()

    def nodes(self, columns: Mapping[str, Json]) -> tuple[Node, ...]:
        """Nodes from their columns (see `files.text`)."""
        names = _names(check.items(columns["names"]))
        operators = _column(names, columns, "operators", _operator)
        types = _column(names, columns, "types", self.type)
        scopes = _column(names, columns, "scopes", check.scope)
        sources = _column(names, columns, "sources", check.source)
        values, rows = _values(names, columns, "arguments", self.argument)
        known = self.known = dict[str | int, Argument](enumerate(values))
        self.types = dict(zip(names, types, strict=True))
        keywords = check.entries(columns["keywords"])
        if unknown := keywords.keys() - self.types.keys():
            raise check.bad(f"keyword arguments of {check.shown(min(unknown))}, which is no node")
        all_args: list[tuple[Argument, ...]] = []
        all_kwargs: list[tuple[tuple[str, Argument], ...]] = []
        try:
            for name, op, kind, row, ref in zip(names, operators, types, rows, made(Ref, names), strict=True):
                args = self.tensor(row) if op == "parameter" else self.arguments(row)
                kwargs = self.keywords(keywords[name]) if name in keywords else ()
                if op in _STRUCTURAL:
                    self.structural(op, args, kwargs, kind)
                all_args.append(args)
                all_kwargs.append(kwargs)
                known[name] = ref
        except FileError as error:
            error.where = _inside(_where(names, len(known) - len(values)), error.where)
            raise
        return made(Node, names, operators, all_args, all_kwargs, types, scopes, sources)

    def arguments(self, row: Json, depth: int = 0) -> tuple[Argument, ...]:
        """Arguments from an entry: names of earlier nodes, numbers of values, lists of these."""
        if type(row) is not list or depth > _DEPTH:
            raise check.bad(f"{check.shown(row)} where arguments belong")
        known = self.known
        try:
            return tuple([
                known[item] if type(item) is str or type(item) is int else self.arguments(item, depth + 1)
                for item in row
            ])  # fmt: skip
        except KeyError as error:
            raise check.bad(f"a use of {check.shown(error.args[0])}, which is no earlier node") from error

    def keywords(self, value: Json) -> tuple[tuple[str, Argument], ...]:
        entries = check.entries(value)
        return tuple(zip(map(check.key, entries), self.arguments(list(entries.values())), strict=True))

    def tensor(self, row: Json) -> tuple[str]:
        """The one argument of a `parameter`: a tensor's name, which no other node reads."""
        name = check.path(row[0] if isinstance(row, list) and len(row) == 1 else None, "tensor")
        if name in self.tensors:
            raise check.bad(f"a second node that reads the tensor {name!r}")
        self.tensors.add(name)
        return (name,)

    def structural(self, op: str, args: tuple[Argument, ...], kwargs: tuple[object, ...], kind: Type) -> None:
        """What the three operators that are not ATen's promise."""
        if kwargs or (op == "input" and args):
            raise check.bad(f"arguments that {op!r} does not take")
        if op == "getitem":
            self.item(args, kind)
        elif not isinstance(kind, TensorType if op == "parameter" else TensorType | ScalarType):
            raise check.bad(f"the type {check.shown(str(kind))} for an {op!r}")

    def item(self, arguments: tuple[Argument, ...], kind: Type) -> None:
        """A `getitem` takes a value from a node with several, and has its type."""
        match arguments:
            case (Ref(name), int(index)) if type(index) is int:
                values = self.types[name]
            case _:
                raise check.bad("a 'getitem' that takes no position from a node")
        if not isinstance(values, tuple) or not 0 <= index < len(values) or values[index] != kind:
            raise check.bad(f"item {index} of {name!r} with the type {kind}, not its own")

    def argument(self, value: Json, depth: int = 0) -> Argument:
        """An argument that has no node in it."""
        if isinstance(value, str):
            tag, colon, rest = value.partition(":")
            return self.tagged(tag, rest) if colon else check.word(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return check.integer(value)
        if isinstance(value, list) and depth < _DEPTH:
            return tuple([self.argument(item, depth + 1) for item in value])
        found = check.fields(value, _MODE)
        return ByMode(self.number(found["train"]), self.number(found["eval"]))

    def tagged(self, tag: str, text: str) -> Argument:
        """An argument whose text begins with its type."""
        match tag:
            case "float" if _FLOAT.fullmatch(text) and repr(float(text)) == text:
                return float(text)
            case "size":
                return self.declared(check.size(text))
            case "sizes" if sizes_text(found := check.dims(text)) == text:
                return tuple([self.declared(size) for size in found])
            case "dtype":
                return Dtype(check.dtype(text))
            case "lowest" if not text:
                return Lowest()
            case _:
                raise check.bad(f"{check.shown(f'{tag}:{text}')} as an argument")

    def number(self, value: Json) -> bool | int | float:
        found = None if isinstance(value, list | dict) else self.argument(value)
        if not isinstance(found, bool | int | float):
            raise check.bad(f"{check.shown(value)} where a number belongs")
        return found

    def declared(self, size: Dim) -> Dim:
        """A size whose dynamic sizes all have an origin."""
        if unknown := sizes.symbols(size) - self.symbols:
            raise check.bad(f"the dynamic size {min(unknown)!r}, which no input has")
        return size

    def type(self, text: Json, depth: int = 0) -> Type:
        """A node's type, from just the text that `type_text` makes of it."""
        if not isinstance(text, str) or depth > _DEPTH:
            raise check.bad(f"{check.shown(text)}, which is not a type")
        if text[:1] == "(":
            kind = tuple([self.type(part, depth + 1) for part in check.parts(text[1:-1])])
        elif text in _SIMPLE:
            kind = _SIMPLE[text]
        else:
            shape, dtype = check.tensor_type(text)
            kind = TensorType(tuple([self.declared(size) for size in shape]), dtype)
        if type_text(kind) != text:
            raise check.bad(f"{check.shown(text)}, which is not how a type is written")
        return kind

    def reference(self, name: str) -> Ref:
        found = self.known.get(name)
        if not isinstance(found, Ref):
            raise check.bad(f"{check.shown(name)} where a node belongs")
        return found

    def structure(self, value: Json, depth: int = 0) -> Structure:
        if depth > _DEPTH:
            raise check.bad("outputs nested too deeply")
        if isinstance(value, str):
            return self.reference(value)
        if value is None:
            return None
        if isinstance(value, list):
            return tuple([self.structure(item, depth + 1) for item in value])
        record = check.entries(check.fields(value, frozenset({"record"}))["record"])
        items = [(check.key(key), self.structure(item, depth + 1)) for key, item in record.items()]
        return Record(tuple(items))

    def origins(self, values: Mapping[str, Json]) -> dict[str, Origin]:
        found: dict[str, Origin] = {}
        for name, value in values.items():
            with located(f"dynamic size {name!r}"):
                found[name] = self.origin(name, value)
        return found

    def origin(self, symbol: str, value: Json) -> Origin:
        """Where a dynamic size is read: a dimension that is just this size."""
        found = check.fields(value, _ORIGIN)
        node, dim, low = found["node"], check.integer(found["dim"], 0), check.integer(found["low"], 0)
        high = None if found["high"] is None else check.integer(found["high"], low)
        kind = self.types.get(node) if isinstance(node, str) else None
        if not isinstance(kind, TensorType) or kind.shape[dim : dim + 1] != (sizes.symbol(symbol),):
            raise check.bad(f"an origin that does not have it: dimension {dim} of {check.shown(node)}")
        return Origin(str(node), dim, low, high)

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
_ROW = 7
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


def _column(names: Sequence[Json], values: Sequence[Json], checked: Callable[[Json], _T]) -> list[_T]:
    """A column of texts through `checked`, equal ones once; an error says at which node."""
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise check.bad(f"{check.shown(value)} where text belongs", where=_where(names, index))
    table: dict[Json, _T] = {}
    for value in dict.fromkeys(values):
        try:
            table[value] = checked(value)
        except FileError as error:
            error.where = _inside(_where(names, values.index(value)), error.where)
            raise
    return [table[value] for value in values]


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
    """Reads nodes, knowing the dynamic sizes there are; a reference may only point to an earlier node.

    The nodes come as rows and are checked by columns: few different operators, types and lines occur.
    """

    def __init__(self, symbols: frozenset[str]) -> None:
        self.symbols = symbols
        self.types: dict[str, Type] = {}
        self.leaves: dict[str, Argument] = {}  # by their text; of references, those to earlier nodes
        self.tensors = set[str]()

    def nodes(self, rows: list[Json]) -> tuple[Node, ...]:
        """Nodes from rows of name, operator, arguments, keyword arguments, type, scope and source."""
        for index, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != _ROW:
                raise check.bad(f"{check.shown(row)} where a node of {_ROW} parts belongs", where=f"node {index}")
        if not rows:
            return ()
        names, operators, arguments, keywords, types, scopes, sources = zip(*cast(list[list[Json]], rows), strict=True)
        columns = (
            self.names(names),
            _column(names, operators, _operator),
            arguments,
            keywords,
            _column(names, types, self.type),
            _column(names, scopes, check.scope),
            _column(names, sources, check.source),
        )
        nodes: list[Node] = []
        for row in zip(*columns, strict=True):
            try:
                nodes.append(self.node(*row))
            except FileError as error:
                error.where = _inside(_where(names, len(nodes)), error.where)
                raise
        return tuple(nodes)

    def names(self, values: Sequence[Json]) -> list[str]:
        """Names that differ."""
        names, seen = _column(values, values, check.identifier), set[str]()
        for index, name in enumerate(names):
            if name in seen:
                raise check.bad(f"a second node called {name!r}", where=_where(names, index))
            seen.add(name)
        return names

    def node(self, name: str, op: str, arguments: Json, keywords: Json, kind: Type, scope: str, source: str) -> Node:
        """A node from its parts, arguments as JSON; the nodes after it may refer to it."""
        items = check.items(arguments, 4096)
        args = (self.tensor(items),) if op == "parameter" else self.arguments(items)
        kwargs = () if keywords == {} else self.keywords(keywords)
        node = Node(name, op, args, kwargs, kind, scope, source)
        if op in _STRUCTURAL:
            self.structural(node)
        self.types[name] = kind
        self.leaves[f"%{name}"] = Ref(name)
        return node

    def arguments(self, items: list[Json], depth: int = 0) -> tuple[Argument, ...]:
        known = self.leaves  # almost every argument has been there before
        return tuple([
            (known.get(item) or self.argument(item, depth)) if type(item) is str else self.argument(item, depth)
            for item in items
        ])  # fmt: skip

    def keywords(self, value: Json) -> tuple[tuple[str, Argument], ...]:
        return tuple([(check.key(key), self.argument(item)) for key, item in check.entries(value).items()])

    def tensor(self, arguments: list[Json]) -> str:
        """The one argument of a `parameter`: a tensor's name, which no other node reads."""
        name = check.path(arguments[0] if len(arguments) == 1 else None, "tensor")
        if name in self.tensors:
            raise check.bad(f"a second node that reads the tensor {name!r}")
        self.tensors.add(name)
        return name

    def structural(self, node: Node) -> None:
        """What the three operators that are not ATen's promise."""
        arguments: tuple[Argument, ...] = () if node.op == "input" else node.args
        if node.kwargs or (node.op == "input" and node.args):
            raise check.bad(f"arguments that {node.op!r} does not take")
        if node.op == "getitem":
            self.item(arguments, node.type)
        elif not isinstance(node.type, TensorType if node.op == "parameter" else TensorType | ScalarType):
            raise check.bad(f"the type {check.shown(str(node.type))} for an {node.op!r}")

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
        """An argument of any kind."""
        if isinstance(value, str):
            return self.leaf(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return check.integer(value)
        if isinstance(value, list) and depth < _DEPTH:
            return self.arguments(value, depth + 1)
        found = check.fields(value, _MODE)
        return ByMode(self.number(found["train"]), self.number(found["eval"]))

    def leaf(self, text: str) -> Argument:
        """An argument from its text."""
        if text not in self.leaves:
            tag, colon, rest = text.partition(":")
            if tag[:1] == "%":
                raise check.bad(f"a use of {check.shown(text[1:])}, which is no earlier node")
            self.leaves[text] = self.tagged(tag, rest) if colon else check.word(text)
        return self.leaves[text]

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

    def reference(self, text: str) -> Ref:
        found = self.argument(text)
        if not isinstance(found, Ref):
            raise check.bad(f"{check.shown(text)} where a node belongs")
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

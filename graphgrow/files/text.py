"""A graph as JSON text and back. The text is deterministic: equal graphs have equal text.

The nodes are columns, in which nothing stands twice, so that each thing is read and checked once: a list of different
values, and for each node an entry. In `operators`, `types`, `scopes` and `sources` the entry is the number of a value.
In `arguments` the values are those without nodes in them, and an entry is a list of numbers of these, names of earlier
nodes, and lists of both; `keywords` has the same by node and key. An argument that is a number is an integer, a string
a word; other strings begin with their type: `size:2*batch` is a dynamic size, `sizes:batch, 12, -1` a list of sizes,
`float:0.5` a float, `dtype:float32` a data type, `lowest:` the most negative number. `{"train": 1, "eval": 0}` is an
argument by mode. Reading builds nothing from text unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from graphgrow.files import check
from graphgrow.files.check import Json
from graphgrow.files.nodes import Reader, located, sizes_text, type_text
from graphgrow.graph import Argument, ByMode, Dtype, Graph, Lowest, Node, Origin, Record, Ref, Structure, refs
from graphgrow.sizes import Size

LONGEST = 32 * 2**20  # characters of JSON; a model of 100 blocks needs about half a million
_GRAPH = frozenset({
    "names", "operators", "arguments", "keywords", "types", "scopes", "sources", "outputs", "symbols",
})  # fmt: skip


def graph_to_text(graph: Graph) -> str:
    """The JSON text of a graph."""
    nodes, numbers = graph.nodes, dict[str, int]()
    rows: list[Json] = [_row(node, numbers) for node in nodes]
    keywords: dict[str, Json] = {
        node.name: _mapping((name, _entry(value, numbers)) for name, value in node.kwargs)
        for node in nodes
        if node.kwargs
    }
    value: dict[str, Json] = {
        "names": [node.name for node in nodes],
        "operators": _column([node.op for node in nodes]),
        "arguments": [[json.loads(text) for text in numbers], rows],
        "keywords": keywords,
        "types": _column([type_text(node.type) for node in nodes]),
        "scopes": _column([node.scope for node in nodes]),
        "sources": _column([node.source for node in nodes]),
        "outputs": _structure_value(graph.outputs),
        "symbols": {name: _origin_value(origin) for name, origin in sorted(graph.symbols.items())},
    }
    lines = ",\n".join(f'"{part}": {_dumped(found)}' for part, found in value.items())
    return f"{{{lines}}}"


def graph_from_text(text: str) -> Graph:
    """The graph whose text this is. Raises FileError, naming the node, for anything that is not one."""
    return graph_from_value(parsed(text))


def graph_from_value(value: Json) -> Graph:
    """The graph whose parsed JSON text this is."""
    found = check.fields(value, _GRAPH)
    symbols = check.entries(found["symbols"])
    reader = Reader(frozenset(check.symbol(name) for name in symbols))
    nodes = reader.nodes(found)
    with located("outputs"):
        outputs = reader.structure(found["outputs"])
    return Graph(nodes, outputs, reader.origins(symbols))


def parsed(text: str) -> Json:
    """The value of a JSON text of bounded length."""
    if len(text) > LONGEST:
        raise check.bad(f"a graph text of {len(text)} characters, more than {LONGEST}")
    try:
        value: Json = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise check.bad(f"a graph text that is not JSON: {error}") from error
    return value


def _no_constant(name: str) -> Json:
    raise check.bad(f"{name} in the graph text, where JSON has no such number")


def _mapping(pairs: Iterable[tuple[str, Json]]) -> dict[str, Json]:
    """A dictionary of pairs whose keys must differ."""
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise check.bad(f"a key that occurs twice, among {check.shown(', '.join(found))}")
    return found


def _dumped(value: Json) -> str:
    return json.dumps(value, allow_nan=False)


def _column(texts: Sequence[str]) -> Json:
    """The different texts, and for each of `texts` its number among them."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return [list(numbers), [numbers[text] for text in texts]]


def _row(node: Node, numbers: dict[str, int]) -> Json:
    if node.op == "parameter":
        return [check.path(str(argument), "tensor") for argument in node.args]
    return [_entry(argument, numbers) for argument in node.args]


def _entry(argument: Argument, numbers: dict[str, int]) -> Json:
    """A node's name; a list, where a node is in it; else the number of the argument, by its text in `numbers`."""
    if isinstance(argument, Ref):
        return argument.name
    if isinstance(argument, tuple) and any(refs(argument)):
        return [_entry(item, numbers) for item in argument]
    return numbers.setdefault(_dumped(_argument_value(argument)), len(numbers))


def _argument_value(argument: Argument) -> Json:
    match argument:
        case Ref(name):
            return f"%{name}"
        case str():
            return check.word(argument)
        case float():
            return f"float:{argument!r}"
        case Size():
            return f"size:{argument}"
        case Dtype(name):
            return f"dtype:{name}"
        case Lowest():
            return "lowest:"
        case ByMode(train, evaluation):
            return {"train": _argument_value(train), "eval": _argument_value(evaluation)}
        case tuple():
            shape = [item for item in argument if isinstance(item, Size) or type(item) is int]
            plain = len(shape) < len(argument) or all(isinstance(item, int) for item in shape)
            return [_argument_value(item) for item in argument] if plain else f"sizes:{sizes_text(shape)}"
        case None | int():
            return argument


def _structure_value(structure: Structure) -> Json:
    match structure:
        case Ref(name):
            return name
        case Record(items):
            return {"record": _mapping((key, _structure_value(value)) for key, value in items)}
        case tuple():
            return [_structure_value(value) for value in structure]
        case None:
            return None


def _origin_value(origin: Origin) -> Json:
    return {"node": origin.node, "dim": origin.dim, "low": origin.low, "high": origin.high}

"""A graph as JSON text and back. The text is deterministic: equal graphs have equal text, one node on a line.

A node is a row of name, operator, arguments, keyword arguments, type, scope and source. In arguments numbers are
integers and strings words; other arguments are text that begins with its type: `%name` is the value of a node,
`size:2*batch` a dynamic size, `sizes:batch, 12, -1` a list of sizes, `float:0.5` a float, `dtype:float32` a data type,
`lowest:` the most negative number. `{"train": 1, "eval": 0}` is an argument by mode. Reading builds nothing from text
unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from graphgrow.files import check
from graphgrow.files.check import Json
from graphgrow.files.nodes import Reader, located, sizes_text, type_text
from graphgrow.graph import Argument, ByMode, Dtype, Graph, Lowest, Node, Origin, Record, Ref, Structure
from graphgrow.sizes import Size

LONGEST = 32 * 2**20  # characters of JSON; a model of 100 blocks needs about a million
_GRAPH = frozenset({"nodes", "outputs", "symbols"})


def graph_to_text(graph: Graph) -> str:
    """The JSON text of a graph."""
    nodes = ",\n".join(_dumped(_node_value(node)) for node in graph.nodes)
    symbols: dict[str, Json] = {name: _origin_value(origin) for name, origin in sorted(graph.symbols.items())}
    outputs = _dumped(_structure_value(graph.outputs))
    return f'{{"nodes": [\n{nodes}\n],\n"outputs": {outputs},\n"symbols": {_dumped(symbols)}}}'


def graph_from_text(text: str) -> Graph:
    """The graph whose text this is. Raises FileError, naming the node, for anything that is not one."""
    return graph_from_value(parsed(text))


def graph_from_value(value: Json) -> Graph:
    """The graph whose parsed JSON text this is."""
    found = check.fields(value, _GRAPH)
    symbols = check.entries(found["symbols"])
    reader = Reader(frozenset(check.symbol(name) for name in symbols))
    nodes = reader.nodes(check.items(found["nodes"]))
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


def _node_value(node: Node) -> Json:
    """A node as a row: name, operator, arguments, keyword arguments, type, scope, source."""
    parameter = node.op == "parameter"
    args: Json = [check.path(str(arg), "tensor") if parameter else _argument_value(arg) for arg in node.args]
    kwargs = _mapping((name, _argument_value(argument)) for name, argument in node.kwargs)
    return [node.name, node.op, args, kwargs, type_text(node.type), node.scope, node.source]


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
            return f"%{name}"
        case Record(items):
            return {"record": _mapping((key, _structure_value(value)) for key, value in items)}
        case tuple():
            return [_structure_value(value) for value in structure]
        case None:
            return None


def _origin_value(origin: Origin) -> Json:
    return {"node": origin.node, "dim": origin.dim, "low": origin.low, "high": origin.high}

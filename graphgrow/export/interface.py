"""What an exported graph takes and gives, by name: ONNX has a flat list of outputs, each with a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from graphgrow.graph import WEIGHTS, Graph, Node, Record, Ref, Structure, TensorType, Type
from graphgrow.program import Program

_PARTS = {"complex64": "float32", "complex128": "float64"}  # ONNX has pairs in place of complex numbers


@dataclass(frozen=True)
class Interface:
    """A graph whose outputs are a tuple of tensors that it computed itself, and the names of these."""

    graph: Graph
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph) -> Interface:
        """The interface of any graph; an output that is an input, a parameter or given twice becomes a copy."""
        taken = {node.name for node in graph.inputs}
        nodes, results, names = list(graph.nodes), list[Ref](), list[str]()
        for wanted, name in _named(graph.outputs, ""):
            node = graph[name]
            if node.op in ("input", "parameter") or Ref(name) in results:
                node = Node(f"{name}_copy_{len(results)}", "aten.clone.default", (Ref(name),), (), node.type)
                nodes.append(node)
            results.append(Ref(node.name))
            names.append(_free(wanted, taken))
        return cls(replace(graph, nodes=tuple(nodes), outputs=tuple(results)), tuple(names))


def _named(structure: Structure, path: str) -> Iterator[tuple[str, str]]:
    """A name for each output, and the node it is: the keys that lead there; `output` where there are none."""
    match structure:
        case Ref(name):
            yield path or "output", name
        case Record(items):
            for key, value in items:
                yield from _named(value, f"{path}_{key}" if path else key)
        case tuple():
            for index, value in enumerate(structure):
                one = len(structure) == 1 and not path
                yield from _named(value, "" if one else f"{path or 'output'}_{index}")
        case None:
            return


def _free(wanted: str, taken: set[str]) -> str:
    """`wanted`, or a longer name where it is taken; now it is."""
    while wanted in taken:
        wanted += "_output"
    taken.add(wanted)
    return wanted


def input_types(program: Program) -> Mapping[str, str]:
    """The types of the inputs for people: `int64[batch, sequence]`."""
    return {name: _text(kind, program.dtype) for name, kind in program.inputs.items()}


def output_types(program: Program, interface: Interface) -> Mapping[str, str]:
    """The types of the outputs for people."""
    nodes = (interface.graph[name] for name in interface.graph.output_names)
    return {name: _text(node.type, program.dtype) for name, node in zip(interface.outputs, nodes, strict=True)}


def _text(kind: Type, weights: str) -> str:
    if isinstance(kind, TensorType) and kind.dtype == WEIGHTS:
        kind = replace(kind, dtype=weights)
    if isinstance(kind, TensorType) and kind.dtype in _PARTS:
        kind = TensorType((*kind.shape, 2), _PARTS[kind.dtype])
    return str(kind)

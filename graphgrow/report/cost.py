"""What a program costs: parameters, floating-point operations of a forward pass, bytes of its tensors.

The operations counted are those of contractions (matrix products, attention, convolutions), two for each product
in them: one to multiply, one to add. All else costs little beside them. Attention counts every pair of positions,
masked ones too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from graphgrow import ops, sizes
from graphgrow.axes import Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.errors import OptionError
from graphgrow.graph import Graph, Node, Ref
from graphgrow.program import Program
from graphgrow.rewrite.masks import Weight, densities, weights
from graphgrow.sizes import Dim

BATCH = 1
LENGTH = 128  # of every dynamic size but the batch


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one contraction, as an expression in the dynamic sizes."""

    node: Node
    flops: Dim


@dataclass(frozen=True)
class Cost:
    """Parameters (tied ones once), operations of one forward pass at `sizes`, those that no mask cuts away
    (`effective`), and bytes of all tensors."""

    parameters: int
    flops: int
    effective: int
    memory: int
    sizes: Mapping[str, int]

    @property
    def at(self) -> str:
        """The dynamic sizes for people: `batch=1, sequence=128`."""
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items()) or "fixed sizes"


def cost(program: Program, given: Mapping[str, int] | None = None) -> Cost:
    """What a program costs. `given` sets dynamic sizes; the batch is else 1 and a sequence 128 long, within the bounds
    of the trace. Raises OptionError for a size there is not, or that the program can't take."""
    values = dynamic_sizes(program.graph, given or {})
    flops: Counter[str] = Counter()
    for found in operations(program):
        flops[found.node.name] += sizes.evaluate(found.flops, values)
    memory, total = sum(tensor.nbytes for tensor in program.tensors.values()), flops.total()
    return Cost(program.size, total, total - _cut(program, flops), memory, values)


def _cut(program: Program, flops: Counter[str]) -> int:
    """The operations, of those of each node, whose weights masks cut away."""
    held, found = densities(program), 0.0
    known = weights(program) if held else {}
    for name, density in held.items():
        weight = known.get(name)
        if isinstance(weight, Weight):
            found += (1 - density) * sum(flops[use.node] for use in weight.uses)
    return round(found)


def dynamic_sizes(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """A number for every dynamic size."""
    for name, size in given.items():
        if name not in graph.symbols:
            raise OptionError.unknown("dynamic size", name, graph.symbols)
        origin = graph.symbols[name]
        low, high = max(1, origin.low), origin.high
        if size < low or (high is not None and size > high):
            bound = f"at least {low}" if high is None else f"{low} to {high}"
            raise OptionError(found=f"{name}={size}, a size the program was not traced for", fix=f"give {bound}")
    return {name: given.get(name, _default(graph, name)) for name in graph.symbols}


def _default(graph: Graph, name: str) -> int:
    origin = graph.symbols[name]
    wanted = max(BATCH if name.startswith("batch") else LENGTH, origin.low)
    return wanted if origin.high is None else min(wanted, origin.high)


def operations(program: Program) -> tuple[Operations, ...]:
    """The operations of every contraction that evaluation runs, in the graph's order."""
    used = _used(program.graph)
    return tuple(
        Operations(
            contraction.node, _flops(program.graph, contraction.node, (*shared, *summed, *(t for f in free for t in f)))
        )
        for contraction, shared, summed, free in program.axes.contractions
        if contraction.node.name in used
    )


def _flops(graph: Graph, node: Node, terms: tuple[Term, ...]) -> Dim:
    """Two for every combination of the contraction's units."""
    if ops.kind(node.op) == "convolution":
        return _convolution(graph, node)
    if node.op == "aten.einsum.default":
        return _einsum(graph, node)
    return sizes.mul(2, *(term.size for term in terms))


def _convolution(graph: Graph, node: Node) -> Dim:
    """Every value that comes out (of a transposed one: goes in) meets one filter of the weight."""
    image, weight = (graph[argument.name] for argument in node.args[:2] if isinstance(argument, Ref))
    met = image if "transpose" in node.op else node
    return sizes.mul(2, *met.shape, *weight.shape[1:])


def _einsum(graph: Graph, node: Node) -> Dim:
    """Operands are multiplied from left to right, each pair summed over what nobody needs any more."""
    shapes = [graph[argument.name].shape for argument in operands(node)[0] if isinstance(argument, Ref)]
    inputs, output = equation(node, [len(shape) for shape in shapes])
    letters: dict[str, Dim] = {}
    for text, shape in zip(inputs, shapes, strict=True):
        letters |= {letter: size for letter, size in zip(text, shape, strict=True) if letters.get(letter, 1) == 1}
    left, found = set(inputs[0]), list[Dim]()
    for index, text in enumerate(inputs[1:], 2):
        met = left | set(text)
        found.append(sizes.mul(2, *(letters[letter] for letter in sorted(met))))
        left = met & set("".join(inputs[index:]) + output)
    return sizes.add(*found)


def _used(graph: Graph) -> set[str]:
    """The nodes that the outputs need in evaluation mode."""
    found: set[str] = set()
    left = list(graph.output_names)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        node = graph[name]
        evaluation = node.args[1] if node.op == "by_mode" else None
        left += [evaluation.name] if isinstance(evaluation, Ref) else node.operands()
    return found

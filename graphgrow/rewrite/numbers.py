"""Numbers that follow sizes: those in a graph (attention's 1/sqrt(d), a table's sqrt(d)), and muP's for new weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphgrow import ops, sizes
from graphgrow.axes import Atom, Axes, Product, Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Node, Ref
from graphgrow.program import Program
from graphgrow.prove import Number
from graphgrow.sizes import Dim

_EXPONENTS = (-0.5, 0.5, -1.0, 1.0)
_FACTORS = {"aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"}
_CLOSE = 1e-6  # such numbers are computed in float32 at the least


def from_sizes(axes: Axes, grown: Mapping[Atom, Dim]) -> dict[Number, float]:
    """The numbers that multiply what a grown axis was summed over (or is about to be) and are a power of its size, each
    with the factor by which it would change with it."""
    found: dict[Number, float] = {}
    for node in axes.graph.nodes:
        place = _number(node)
        if place is None:
            continue
        path, value = place
        for term in _widths(axes, node):
            if any(atom in grown for atom in term.atoms):
                old, new = sizes.number(term.size), sizes.number(term.resized(grown))
                for exponent in _EXPONENTS:
                    if abs(value - old**exponent) <= _CLOSE * old**exponent and (node.name, path) not in found:
                        found[node.name, path] = (new / old) ** exponent
    return found


def mup_factors(program: Program, grown: Mapping[Atom, int]) -> dict[str, float]:
    """By how much the deviation of new weights is to differ from that of the old ones, by parameter, where the number
    of units that they sum over grows: muP's hidden weights have a variance of 1/fan-in, its output weights (what makes
    an axis that outputs show) of 1/fan-in squared (Yang et al., arXiv 2203.03466, table 3)."""
    axes, fans, last = program.axes, dict[str, float](), set[str]()
    shown = {atom for name in axes.graph.output_names for term in axes.terms.get(name, ()) for atom in term.atoms}
    for axis in axes.named:
        for site in axis.sites:
            if axis.atom in grown and "contracts" in site.part:
                ratio = sizes.number(axis.size) / grown[axis.atom]
                fans[site.parameter] = fans.get(site.parameter, 1.0) * ratio
            if axis.atom in shown and "emits" in site.part:
                last.add(site.parameter)
    return {name: ratio if name in last else ratio**0.5 for name, ratio in fans.items()}


def _number(node: Node) -> tuple[tuple[int | str, ...], float] | None:
    if ops.kind(node.op) == "attention":
        scale = dict(node.kwargs).get("scale")
        return (("scale",), scale) if isinstance(scale, float) else None
    value = node.args[1] if node.op in _FACTORS else None
    return (("args", 1), value) if isinstance(value, float) else None


def _widths(axes: Axes, node: Node) -> Iterator[Term]:
    """The dimensions that are summed over to make what a node multiplies, and its last one."""
    first = node.args[0]
    if not isinstance(first, Ref):
        return
    source = axes.graph[first.name]
    if ops.kind(node.op) != "attention" and ops.kind(source.op) == "contraction":
        factors, _ = operands(source)
        shapes = [axes.terms.get(factor.name, ()) if isinstance(factor, Ref) else () for factor in factors]
        inputs, output = equation(source, [len(shape) for shape in shapes])
        for letters, shape in zip(inputs, shapes, strict=True):
            yield from (term for letter, term in zip(letters, shape, strict=True) if letter not in output)
    if axes.terms.get(first.name):
        last = axes.terms[first.name][-1]
        yield last
        if isinstance(last, Product):  # heads * key: the inner factors
            yield from (Product.of(last.parts[index:]) for index in range(1, len(last.parts)))

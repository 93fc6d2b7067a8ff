"""Two programs of one structure: which axes differ in size, found by laying their terms over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from graphgrow.axes import Atom, Axes, Sum, Term
from graphgrow.errors import CheckFailed
from graphgrow.graph import Argument, ByMode, Graph, Node, Tuning
from graphgrow.program import Program
from graphgrow.prove import Number
from graphgrow.rewrite import literal, resize_graph
from graphgrow.sizes import Size


@dataclass(frozen=True)
class Alignment:
    """The atoms of the old program with their sizes in the new one, where these differ, and numbers in the graph. Where
    only numbers do, `sizes` has the axes of concatenations, too (q + k + v): their parts may have other factors."""

    sizes: dict[Atom, int] = field(default_factory=dict[Atom, int])
    numbers: dict[Number, float] = field(default_factory=dict[Number, float])  # in the new graph, where they differ
    factors: dict[Number, float] = field(default_factory=dict[Number, float])  # by how much they were multiplied

    @property
    def shrinks(self) -> bool:
        """Whether axes have become smaller, and none larger."""
        return bool(self.sizes) and all(size < int(str(atom.size)) for atom, size in self.sizes.items())

    @property
    def grows(self) -> bool:
        return all(size >= int(str(atom.size)) for atom, size in self.sizes.items())

    @property
    def changed(self) -> dict[Atom, int]:
        """The atoms whose sizes differ."""
        return {atom: size for atom, size in self.sizes.items() if size != atom.size}


def align(old: Program, new: Program) -> Alignment:
    """Raises CheckFailed where the programs differ in more than the sizes of axes."""
    _same_structure(old, new)
    inferred = _axes(new)
    sizes: dict[Atom, int] = {}
    for name, terms in old.axes.terms.items():
        others = inferred.terms[name]
        for term, other in zip(terms, others, strict=True):
            for atom, size in _pairs(name, term, other):
                if sizes.setdefault(atom, size) != size:
                    raise CheckFailed(found=f"an axis with two new sizes, {sizes[atom]} and {size}", where=name)
    changed = {atom: size for atom, size in sizes.items() if size != atom.size}
    numbers = dict(_numbers(old.graph, new.graph))
    if resize_graph(old.axes, changed, numbers) != new.graph:
        raise CheckFailed(
            found="a number in the new graph that does not follow from its axes",
            where=_first(old, new, changed, numbers),
        )
    _same_tensors(old, new)
    parts = {} if changed or not numbers else dict(_concatenated(old.axes))
    return Alignment(
        changed or parts, numbers, {place: value / literal(old, place) for place, value in numbers.items()}
    )


def _concatenated(axes: Axes) -> Iterator[tuple[Atom, int]]:
    """The atoms of the concatenations in parameters, with their sizes."""
    for terms in axes.parameters.values():
        for atom in (atom for term in terms if isinstance(term, Sum) for atom in term.atoms):
            if isinstance(atom.size, int) and atom not in axes.frozen:
                yield atom, atom.size


def _numbers(old: Graph, new: Graph) -> Iterator[tuple[Number, float]]:
    """The floating numbers in the new graph that differ from the old one's and could be multiples of them."""
    for a, b in zip(old.nodes, new.nodes, strict=True):
        if a.args == b.args and a.kwargs == b.kwargs:
            continue
        pairs = [(("args", index), *both) for index, both in enumerate(zip(a.args, b.args, strict=False))]
        pairs += [((name,), dict(a.kwargs).get(name), value) for name, value in b.kwargs]
        for path, left, right in pairs:
            if left != right and isinstance(right, float) and _scalable(left):
                yield (a.name, path), right


def _same_tensors(old: Program, new: Program) -> None:
    """Tensors by the same names and types, in the shapes that the graph gives them."""
    if odd := sorted(old.tensors.keys() ^ new.tensors.keys()):
        raise CheckFailed(found=f"a tensor that only one program has: {odd[0]}", where="the tensors of the programs")
    for name, tensor in new.tensors.items():
        node = new.graph.parameters.get(name)
        shape = tuple(old.tensors[name].shape) if node is None else node.shape
        if tensor.dtype != old.tensors[name].dtype or tuple(tensor.shape) != shape:
            raise CheckFailed(
                found=f"{tensor.dtype} of shape {tuple(tensor.shape)}, not {old.tensors[name].dtype} of {shape}",
                where=name,
            )


def _axes(new: Program) -> Axes:
    """The axes of a program that may be wrong: inference takes it for granted that sizes fit each other."""
    try:
        return new.axes
    except (AssertionError, IndexError, ValueError) as error:
        raise CheckFailed(found="sizes in the new graph that contradict each other", where=str(error)) from error


def _scalable(number: Argument) -> bool:
    return number is None or (isinstance(number, float) and abs(number) > 0)


def _first(old: Program, new: Program, changed: dict[Atom, int], numbers: dict[Number, float]) -> str:
    graph = resize_graph(old.axes, changed, numbers)
    pairs = zip(graph.nodes, new.graph.nodes, strict=True)
    return next((f"{b} where {a} was expected" for a, b in pairs if a != b), "the outputs or dynamic sizes")


def _same_structure(old: Program, new: Program) -> None:
    if len(old.graph.nodes) != len(new.graph.nodes):
        raise CheckFailed(
            found=f"graphs of {len(old.graph.nodes)} and {len(new.graph.nodes)} nodes",
            where="the structure of the graphs",
        )
    for a, b in zip(old.graph.nodes, new.graph.nodes, strict=True):
        if a.op == "input" and a.type != b.type:
            raise CheckFailed(found=f"an input {b} where the old program takes {a}", where="the inputs")
        if (a.name, a.op) != (b.name, b.op) or list(_fixed(a)) != list(_fixed(b)):
            raise CheckFailed(found=f"{b} where the old program has {a}", where="the structure of the graphs")
    kinds = [{name: replace(kind, pattern="", tuning=Tuning()) for name, kind in p.kinds.items()} for p in (old, new)]
    if old.graph.outputs != new.graph.outputs or old.aliases != new.aliases or kinds[0] != kinds[1]:
        raise CheckFailed(found="other outputs, ties or kinds of tensors", where="the structure of the programs")
    if old.dtype != new.dtype:
        raise CheckFailed(found=f"weights in {old.dtype} and {new.dtype}", fix="compare programs of one data type")


def _fixed(node: Node) -> Iterator[Argument]:
    """The arguments that no growth changes: everything but numbers."""
    for argument in (*node.args, *(value for _, value in node.kwargs)):
        yield from _leaves(argument)


def _leaves(argument: Argument) -> Iterator[Argument]:
    if isinstance(argument, tuple):
        yield len(argument)
        for item in argument:
            yield from _leaves(item)
    elif isinstance(argument, bool | ByMode) or not isinstance(argument, int | float | Size | None):
        yield argument


def _pairs(where: str, term: Term, other: Term) -> Iterator[tuple[Atom, int]]:
    if isinstance(term, Atom) and isinstance(other, Atom):
        if isinstance(other.size, int) and isinstance(term.size, int):
            yield term, other.size
        return
    parts: Sequence[Term] = getattr(term, "parts", ())
    others: Sequence[Term] = getattr(other, "parts", ())
    if type(term) is not type(other) or len(parts) != len(others):
        raise CheckFailed(found=f"dimensions that mean different things: {term} and {other}", where=where)
    for part, match in zip(parts, others, strict=True):
        yield from _pairs(where, part, match)

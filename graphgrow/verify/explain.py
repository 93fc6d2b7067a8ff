"""The derivation of a proof for people: operator by operator, what the new blocks hold and where they vanish.

Layers of one structure come from the same lines of a model's source and hold the same facts: they are told once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from graphgrow.certificate import Step
from graphgrow.graph import Graph, Node
from graphgrow.prove import SAME, Prover, text
from graphgrow.prove.engine import parts
from graphgrow.prove.zeros import Zeros


def growth_steps(prover: Prover) -> tuple[Step, ...]:
    """What the walk of a prover found: every operator that reads or gives something that is not simply the same."""
    return _folded(_growth(prover))


def _growth(prover: Prover) -> Iterator[Step]:
    for node in prover.graph.nodes:
        said = _said(prover, node.name)
        reads = [
            f"{_called(prover.graph, name)} {told}"
            for name in dict.fromkeys(node.operands())
            if (told := _said(prover, name)) != text(SAME)
        ]
        if node.op == "parameter":
            continue
        if reads or said != text(SAME):
            yield Step(place=_place(node), reads=tuple(reads), gives=said)


def _said(prover: Prover, name: str) -> str:
    """What is known of a value: its old units, and its new ones where it has any."""
    old: dict[int, None] = {}
    new: dict[int, None] = {}
    for part, terms in zip(parts(prover.values[name]), prover.shapes(name), strict=False):
        flags = prover.layout.is_old(terms)
        old.update(dict.fromkeys(int(fact) for fact in part[flags]))
        new.update(dict.fromkeys(int(fact) for fact in part[~flags]))
    told = " or ".join(map(text, old)) or text(SAME)
    return f"{told}, in new units {' or '.join(map(text, new))}" if new else told


def depth_steps(graph: Graph, known: Zeros, sums: Mapping[str, str]) -> tuple[Step, ...]:
    """Where new layers become zero, and what keeps their stream, each with the zero or one it is left without."""
    found: list[Step] = []
    for node in graph.nodes:
        if node.name in sums:
            gone = _called(graph, sums[node.name])
            one = known.number(sums[node.name]) == 1
            says = ("one", "x * 1 = x") if one else ("zero", "x + 0 = x")
            found.append(Step(place=_place(node), reads=(f"{gone} is {says[0]}",), gives=f"the stream: {says[1]}"))
        elif node.op != "parameter" and known.number(node.name) == 0:
            reads = tuple(f"{_called(graph, name)} is zero" for name in node.operands() if known.number(name) == 0)
            found.append(Step(place=_place(node), reads=reads, gives="zero"))
    return _folded(found)


def _called(graph: Graph, name: str) -> str:
    """A parameter by its name in the layer, anything else by its operator."""
    node = graph[name]
    if node.op == "parameter":
        words = str(node.args[0]).split(".")
        return ".".join("*" if word.isdigit() else word for word in words)
    return node.op.removeprefix("aten.").partition(".")[0]


def _place(node: Node) -> str:
    return f"{node.op.removeprefix('aten.').partition('.')[0]} ({node.source or node.name})"


def _folded(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Equal steps once, in the order of their first."""
    counts: dict[Step, int] = {}
    for step in steps:
        counts[step] = counts.get(step, 0) + 1
    return tuple(step.model_copy(update={"times": count}) for step, count in counts.items())

"""Weights taken apart into two factors: the graph edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from graphgrow.errors import Refusal
from graphgrow.graph import Graph, Kind, Node
from graphgrow.program import Program
from graphgrow.rewrite.products import Weight

Pair = tuple[Tensor, Tensor]  # (m, r), (r, n)


def factorized(program: Program, chosen: Mapping[str, tuple[Weight, Pair]]) -> Program:
    """The program with two factors in place of each weight, `NAME_left` and `NAME_right`, in the type of the weight."""
    tensors, kinds, names = dict[str, Tensor](), dict[str, Kind](), dict[str, tuple[str, ...]]()
    for name, old in program.tensors.items():
        if name not in chosen:
            tensors[name], kinds[name] = old, program.kinds[name]
            continue
        weight, pair = chosen[name]
        names[name] = _fresh(program, name)
        for new, factor in zip(names[name], weight.tensors(*pair), strict=True):
            tensors[new] = factor.to(old.dtype).requires_grad_(old.requires_grad)
            kinds[new] = program.kinds[name]
    aliases = dict[str, str]()
    for alias, owner in program.aliases.items():
        if owner in names:
            aliases |= dict(zip(_fresh(program, alias), names[owner], strict=True))
        else:
            aliases[alias] = owner
    graph = _graph(program.graph, chosen, names)
    return program.replace(graph=graph, tensors=tensors, kinds=kinds, aliases=aliases)


def _fresh(program: Program, name: str) -> tuple[str, str]:
    """The names of a weight's factors. Raises Refusal where they are taken."""
    pair = f"{name}_left", f"{name}_right"
    for new in pair:
        if new in program.tensors or new in program.aliases:
            fix = "rename that parameter, and trace the model again"
            raise Refusal(found=f"a parameter called {new} already", where=name, fix=fix)
    return pair


def _graph(graph: Graph, chosen: Mapping[str, tuple[Weight, Pair]], names: Mapping[str, tuple[str, ...]]) -> Graph:
    taken, nodes = set(graph.by_name), list[Node]()

    def called(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    uses = {use.node.name: (name, use) for name, (weight, _) in chosen.items() for use in weight.uses}
    made: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        if node.op == "parameter" and node.args[0] in chosen:
            name = str(node.args[0])
            weight, (left, _) = chosen[name]
            made[name] = called(f"{node.name}_left"), called(f"{node.name}_right")
            for new, stored, shape in zip(made[name], names[name], weight.shapes(left.shape[1]), strict=True):
                nodes.append(replace(node, name=new, args=(stored,), type=replace(node.tensor, shape=shape)))
        elif node.name in uses:
            name, use = uses[node.name]
            weight, (left, _) = chosen[name]
            nodes += weight.apart(use, left.shape[1], *made[name], called(f"{node.name}_inner"))
        else:
            nodes.append(node)
    return Graph(tuple(nodes), graph.outputs, graph.symbols)

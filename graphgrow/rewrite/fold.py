"""Masks multiplied into their weights: what is exported has the weights that count, and no masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from graphgrow.graph import Graph, Node, Ref
from graphgrow.program import Program


def folded(program: Program) -> Program:
    """The program in which every weight with a mask (a buffer with a pattern) is the product of both, bit for bit."""
    graph, held = program.graph, dict[str, str]()
    masks = {node.name: name for name, node in graph.parameters.items() if program.kinds[name].pattern}
    weights = {node.name: name for name, node in graph.parameters.items()}
    for node in graph.nodes:
        names = [argument.name for argument in node.args if isinstance(argument, Ref)]
        if node.op == "aten.mul.Tensor" and len(names) == 2 and names[1] in masks and names[0] in weights:
            held[node.name] = names[0]
    tensors: dict[str, Tensor] = dict(program.tensors)
    with torch.no_grad():
        for name in held:
            weight, mask = (str(argument.name) for argument in graph[name].args if isinstance(argument, Ref))
            kept = tensors[weights[weight]] * tensors[masks[mask]]
            tensors[weights[weight]] = kept.requires_grad_(tensors[weights[weight]].requires_grad)
    gone = {name for node, name in masks.items() if all(user.name in held for user in graph.users[node])}
    aliases = {alias: name for alias, name in program.aliases.items() if name not in gone}
    return program.replace(
        graph=_without(graph, held, gone), aliases=aliases,
        tensors={name: tensor for name, tensor in tensors.items() if name not in gone},
        kinds={name: kind for name, kind in program.kinds.items() if name not in gone},
    )  # fmt: skip


def _without(graph: Graph, held: dict[str, str], gone: set[str]) -> Graph:
    """The graph without these products: what reads them reads the weight."""

    def kept(node: Node) -> bool:
        return node.name not in held and not (node.op == "parameter" and str(node.args[0]) in gone)

    def read(node: Node) -> Node:
        return node.map(lambda a: Ref(held.get(a.name, a.name)) if isinstance(a, Ref) else a)

    return replace(graph, nodes=tuple(read(node) for node in graph.nodes if kept(node)))

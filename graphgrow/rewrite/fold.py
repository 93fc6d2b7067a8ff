"""Masks multiplied into their weights: what is exported has the weights that count, and no masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from graphgrow.graph import Graph, Node, Ref
from graphgrow.program import Program
from graphgrow.rewrite.masks import products


def folded(program: Program) -> Program:
    """The program in which every weight with a mask (a buffer with a pattern) is the product of both, bit for bit."""
    graph, tensors = program.graph, dict[str, Tensor](program.tensors)
    found = products(program)
    with torch.no_grad():
        for name, mask in dict(found.values()).items():
            tensors[name] = (tensors[name] * tensors[mask]).requires_grad_(tensors[name].requires_grad)
    held = {node: graph.parameters[name].name for node, (name, _) in found.items()}
    masks = {mask for _, mask in found.values()}
    gone = {mask for mask in masks if all(user.name in held for user in graph.users[graph.parameters[mask].name])}
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

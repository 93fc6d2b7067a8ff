"""Two products with weights through an axis that nothing else reads, as one product with the product of the weights.

With K_A and K_B what the first and the second node multiply by, x K_A K_B is one product with K_A K_B; it is stored as
the second node reads its weight (the first one's, where that is a lookup). Two convolutions are one where along each
dimension of space one of both has a window of one point that moves by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphgrow.axes.contractions import each
from graphgrow.graph import Argument, Graph, Kind, Node, Ref
from graphgrow.program import Program
from graphgrow.rewrite.products import ADDED, Use, Weight, conv_arguments, convolved

_FACTORS = ("_left", "_right")
Known = Mapping[str, Weight | str]


@dataclass(frozen=True)
class Chain:
    """Two weights that make one, `first` @ `second`, each transposed where it says so; and the pairs of nodes that use
    them, in their order: of each pair one stays."""

    first: str
    second: str
    transposed: tuple[bool, bool]
    pairs: tuple[tuple[Use, Use], ...]

    @property
    def name(self) -> str:
        """Of the weight that they make: what both are the factors of, or that of the node that stays."""
        stems = {name.removesuffix(end) for name, end in zip((self.first, self.second), _FACTORS, strict=True)}
        return stems.pop() if len(stems) == 1 else self.first


def chains(program: Program, known: Known) -> dict[tuple[str, str], Chain | str]:
    """Every two weights of which one is multiplied by what the other one makes: what makes them one; or, as text, why
    they are not."""
    weights = [weight for weight in known.values() if isinstance(weight, Weight)]
    owners = {use.node.name: weight for weight in weights for use in weight.uses}
    found: dict[tuple[str, str], Chain | str] = {}
    for after in weights:
        for use in after.uses:
            before = owners.get(use.x.name)
            if before is not None and (after.name, before.name) not in found:
                same = program.kinds[before.name] == program.kinds[after.name]
                pair = _paired(program.graph, before, after)
                found[before.name, after.name] = pair if same else "they are trained in different ways"
    return found


def _paired(graph: Graph, one: Weight, other: Weight) -> Chain | str:
    owners = {use.node.name: (weight, use) for weight in (one, other) for use in weight.uses}
    pairs, orders = list[tuple[Use, Use]](), set[tuple[str, str, bool, bool]]()
    for weight, after in owners.values():
        if after.x.name not in owners:  # the first of two
            users = graph.users[after.node.name]
            if len(users) != 1 or users[0].name not in owners or after.node.name in graph.output_names:
                return f"{_where(after)} is read by something else, too"
            continue
        owner, before = owners[after.x.name]
        reason = f"{owner.name} is applied twice" if owner is weight else _obstacle(before, after)
        if reason:
            return reason
        pairs.append((before, after))
        rows = before.form == "lookup" or after.meets == 0  # what x meets are rows of the product
        forth, back = (
            (owner, before.meets == 1, weight, after.meets == 1),
            (weight, after.meets == 0, owner, before.meets == 0),
        )
        left, turned, right, also = forth if rows else back
        orders.add((left.name, right.name, turned, also))
    if len(orders) != 1:
        return "its weights are used in more than one order"
    first, second, turned, also = orders.pop()
    return Chain(first, second, (turned, also), tuple(pairs))


def _where(use: Use) -> str:
    return f"{use.node.op} ({use.node.source or use.node.name})"


def _obstacle(before: Use, after: Use) -> str:
    """Why two nodes can't be one; empty when they can."""
    if "convolution" in (before.form, after.form):
        alike = before.node.op == after.node.op and convolved(before.node)[0] is None
        points = zip(before.points, after.points, strict=True) if alike else ()
        strings = (
            [value for use in (before, after) if isinstance(value := convolved(use.node)[2], str)] if alike else []
        )
        good = alike and all(map(any, points)) and len(set(strings)) < 2
        return "" if good else f"{_where(before)} and {_where(after)} slide windows that are not one"
    last = before.dim % len(before.node.shape)  # a lookup's vectors lie along the last dimension
    if not after.in_place or last != after.dim or after.form == "lookup":
        return f"{_where(after)} sums over another dimension"
    if before.form == "lookup":
        return f"{_where(after)} adds to what is looked up" if _added(after.node) else ""
    return f"{_where(before)} adds a bias in between" if not before.in_place or _added(before.node) else ""


def _added(node: Node) -> bool:
    """Whether a product has something added to it."""
    return node.op in ADDED or (node.op == "aten.linear.default" and node.argument(2, "bias") is not None)


def merged(program: Program, chains: Sequence[Chain]) -> Program:
    """The program with one weight in place of the two of each chain."""
    by_name = {name: one for one in chains for name in (one.first, one.second)}
    tensors, kinds = dict[str, Tensor](), dict[str, Kind]()
    for name, old in program.tensors.items():
        one = by_name.get(name)
        new = one.name if one else name
        if new not in tensors:
            tensors[new] = _product(program, one).requires_grad_(old.requires_grad) if one else old
            kinds[new] = program.kinds[name]
    aliases = dict[str, str]()
    for alias, owner in program.aliases.items():
        one = by_name.get(owner)
        end = _FACTORS[owner != one.first] if one else ""
        if one is None:
            aliases[alias] = owner
        elif one.name == owner.removesuffix(end) or one.name == owner:
            aliases[alias.removesuffix(end) if one.name != owner else alias] = one.name
    return program.replace(graph=_graph(program.graph, chains, tensors), tensors=tensors, kinds=kinds, aliases=aliases)


def _product(program: Program, one: Chain) -> Tensor:
    names = zip((one.first, one.second), one.transposed, strict=True)
    left, right = (
        factor.transpose(0, 1) if turned else factor
        for factor, turned in ((program.tensors[name].detach(), turned) for name, turned in names)
    )
    found = torch.einsum("or...,ri...->oi...", left.double(), right.double())
    return found.to(program.tensors[one.first].dtype).contiguous()


def _graph(graph: Graph, chains: Sequence[Chain], tensors: Mapping[str, Tensor]) -> Graph:
    parameters = {name: one for one in chains for name in (one.first, one.second)}
    gone = {before.node.name for one in chains for before, _ in one.pairs}
    pairs = {after.node.name: (one, before, after) for one in chains for before, after in one.pairs}
    made, nodes = dict[str, str](), list[Node]()
    for node in graph.nodes:
        if node.op == "parameter" and node.args[0] in parameters:
            one = parameters[str(node.args[0])]
            if one.name not in made:
                made[one.name] = _called(graph, node, one)
                kind = replace(node.tensor, shape=tuple(tensors[one.name].shape))
                nodes.append(replace(node, name=made[one.name], args=(one.name,), type=kind))
        elif node.name in pairs:
            one, before, after = pairs[node.name]
            nodes.append(_joined(before, after, one, made[one.name]))
        elif node.name not in gone:
            nodes.append(node)
    return Graph(tuple(nodes), graph.outputs, graph.symbols)


def _called(graph: Graph, node: Node, one: Chain) -> str:
    """A name for the node of the weight."""
    name = node.name
    for end in _FACTORS:
        name = name.removesuffix(end)
    return node.name if name in graph.by_name or one.name in (one.first, one.second) else name


def _joined(before: Use, after: Use, one: Chain, new: str) -> Node:
    """One node in place of two, under the name of the second, that reads the weight from the node `new`."""
    taken, bias = before.node if before.form == "lookup" else after.node, None
    if before.form == "convolution":
        bias, *outer, _ = convolved(after.node)
        settings = list[Argument]()
        for inner, other in zip(convolved(before.node)[1:4], outer, strict=True):
            count = len(before.points)
            both = zip(before.points, each(inner, count), each(other, count), strict=True)
            settings.append(inner if isinstance(inner, str) else tuple(b if point else a for point, a, b in both))
        args = conv_arguments(Ref(before.x.name), Ref(new), bias, *settings, 1)
        return replace(after.node, args=args, kwargs=())
    changes = {before.node.name: before.x.name, before.weight: new, after.weight: new}

    def changed(argument: Argument) -> Argument:
        return Ref(changes.get(argument.name, argument.name)) if isinstance(argument, Ref) else argument

    return replace(taken.map(changed), name=after.node.name, type=after.node.type)

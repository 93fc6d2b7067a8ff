"""Mixtures of experts from dense MLPs: the operators between two axes, once more for every expert.

An MLP is what lies between the weights that emit an inner axis and the operator that sums over it, found by the axis
alone. Each of its values gets a first dimension, the experts: weights are stacked along it, a contraction is an einsum
that has it in weights and results, and all other operators go along it. Every expert sees every token, and what a token
has of each is added up with the router's weights, which are zero for all but k. (To look up the weights of k experts
token by token takes fewer products, but reads k matrices for every token: measured 5 to 20 times slower.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.axes import Atom
from graphgrow.axes.contractions import equation, operands
from graphgrow.axes.names import shared_path
from graphgrow.graph import Argument, Graph, Kind, Node, Ref, TensorType, Type
from graphgrow.program import Program

DEVIATION = 0.02  # of the router's weights
_LETTER = "E"  # equations have small letters, and capitals only for dots
_ALONG = {"pointwise", "power", "reshape", "getitem", "split", "slice", "select", "unsqueeze", "permute", "glu"}


@dataclass(frozen=True)
class Region:
    """One MLP: the value it reads, its nodes in execution order (parameters too), and the one that comes out of it."""

    entry: str
    nodes: tuple[str, ...]
    exit: str


def regions(program: Program, atoms: Iterable[Atom]) -> dict[Atom, Region | str]:
    """The MLP around each inner axis; or, as text, why there is none. An operator is in one MLP only, the first."""
    axes, inside = program.axes, {atom: set[str]() for atom in atoms}
    for node in program.graph.nodes:
        for shape in (axes.terms.get(node.name, ()), *axes.several.get(node.name, ())):
            for atom in (atom for term in shape for atom in term.atoms):
                if atom in inside:
                    inside[atom].add(node.name)
    found, taken, order = dict[Atom, Region | str](), set[str](), program.graph.order
    for atom, nodes in sorted(inside.items(), key=lambda item: min(map(order.__getitem__, item[1]), default=0)):
        one = _region(program, nodes)
        if isinstance(one, Region):
            one = one if taken.isdisjoint(one.nodes) else "it begins where that of another inner axis ends"
            taken.update(one.nodes if isinstance(one, Region) else ())
        found[atom] = one
    return found


def _region(program: Program, inside: set[str]) -> Region | str:
    """The MLP whose values that have the axis are these."""
    graph = program.graph
    ends = {user.name for name in inside for user in graph.users[name]} - inside
    if len(ends) != 1 or not ends.isdisjoint(graph.output_names):
        return f"{len(ends)} operators sum over it"
    inside = inside | ends
    read = {name for node in inside for name in graph[node].operands()} - inside
    own = {n for n in read if graph[n].op == "parameter" and all(user.name in inside for user in graph.users[n])}
    entries = read - own
    if len(entries) != 1:
        return f"it reads {len(entries)} values"
    found = Region(entries.pop(), tuple(sorted(inside | own, key=graph.order.__getitem__)), ends.pop())
    return _obstacle(program, found) or found


def _obstacle(program: Program, found: Region) -> str:
    """Why an MLP can't be stacked; empty when it can."""
    graph, inside = program.graph, set(found.nodes)
    entry, end = graph[found.entry], graph[found.exit]
    for name in found.nodes:
        node = graph[name]
        kind = ops.kind(node.op)
        if name != found.exit and any(user.name not in inside for user in graph.users[name]):
            return f"{node.args[0] if node.op == 'parameter' else node.op} is used outside of it too"
        if node.op == "parameter":
            if program.kinds[str(node.args[0])].role != "parameter" or str(node.args[0]) in program.aliases.values():
                return f"{node.args[0]} does not learn, or is tied"
        elif kind not in _ALONG and (kind != "contraction" or not _plain(graph, node, inside)):
            return f"{node.op} ({node.source or name}) does not act token by token"
    alike = isinstance(entry.type, TensorType) and entry.tensor.dtype == end.tensor.dtype == "weights"
    same = entry.shape[:-1] == end.shape[:-1] and len(entry.shape) > 1
    return "" if alike and same else "it gives other tokens, or another data type, than it reads"


def _plain(graph: Graph, node: Node, inside: set[str]) -> bool:
    """Whether a contraction is one of activations with a weight."""
    factors, _ = operands(node)
    refs = [factor.name for factor in factors if isinstance(factor, Ref)]
    return len(refs) == len(factors) == 2 and not node.kwargs and any(graph[name].op == "parameter" for name in refs)


class Mixture(NamedTuple):
    """How many experts there are, and how many of them a token goes to."""

    experts: int
    chosen: int


def upcycle(program: Program, regions: Sequence[Region], mixture: Mixture, seed: int) -> Program:
    """The program with a mixture of copies in place of each MLP; routers are random and small."""
    made, taken = list[_Mixing](), set(program.tensors)
    for found in regions:
        made.append(_Mixing(program, found, mixture, seed, frozenset(taken)))
        taken.add(made[-1].router)
    tensors, kinds = dict[str, Tensor](), dict[str, Kind]()
    by_tensor = {name: one for one in made for name in one.names}
    for name, tensor in program.tensors.items():
        one = by_tensor.get(name)
        new = one.names[name] if one else name
        kinds[new], tensors[new] = program.kinds[name], one.stacked(tensor) if one else tensor
        if one and name == one.last:
            kinds[one.router], tensors[one.router] = Kind("parameter"), one.routes(tensor)
    return program.replace(graph=_mixed(program.graph, made), tensors=tensors, kinds=kinds)


def _mixed(graph: Graph, made: Sequence[_Mixing]) -> Graph:
    """The graph with all mixtures; their routers come after the last parameter that there is."""
    by_node, nodes = {name: one for one in made for name in one.region.nodes}, list[Node]()
    last = max(graph.order[node.name] for node in graph.parameters.values())
    for index, node in enumerate(graph.nodes):
        one = by_node.get(node.name)
        nodes += one.lifted(node) if one else [node]
        if index == last:
            nodes += [one.routing for one in made]
        if one and node.name == one.region.exit:
            nodes += one.combined(node)
    return Graph(tuple(nodes), graph.outputs, graph.symbols)


@dataclass(frozen=True)
class _Mixing:
    """What becomes of one MLP of a program in which these names of tensors are `taken`."""

    old: Program
    region: Region
    mixture: Mixture
    seed: int
    taken: frozenset[str]

    @cached_property
    def inside(self) -> frozenset[str]:
        return frozenset(self.region.nodes)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """New names of the tensors that are stacked."""
        graph = self.old.graph
        tensors = [str(graph[name].args[0]) for name in self.region.nodes if graph[name].op == "parameter"]
        path = shared_path(name.rpartition(".")[0] for name in tensors)
        return {name: _joined(path, "experts", name.removeprefix(path).lstrip(".")) for name in tensors}

    @cached_property
    def router(self) -> str:
        """The name of the router's weight, beside the experts."""
        path = shared_path(name.rpartition(".")[0] for name in self.names)
        names = (_joined(path, f"router{number or ''}", "weight") for number in range(len(self.taken) + 1))
        return next(name for name in names if name not in self.taken)

    @property
    def last(self) -> str:
        """The tensor after which the router's weight comes."""
        return [*self.names][-1]

    def stacked(self, tensor: Tensor) -> Tensor:
        copies = tensor.detach().unsqueeze(0).repeat(self.mixture.experts, *[1] * tensor.dim())
        return copies.requires_grad_(tensor.requires_grad)

    def routes(self, like: Tensor) -> Tensor:
        width = self.old.graph[self.region.entry].shape[-1]
        assert isinstance(width, int)
        new = torch.empty(self.mixture.experts, width, dtype=like.dtype, device=like.device)
        if not new.is_meta:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{self.router}".encode()))
            new.normal_(0.0, DEVIATION, generator=generator)
        return new.requires_grad_(True)

    # The graph

    @property
    def routing(self) -> Node:
        """The router's weight."""
        kind = TensorType((self.mixture.experts, self.old.graph[self.region.entry].shape[-1]), "weights")
        return Node(self._called("router"), "parameter", (self.router,), (), kind, self._scope)

    @cached_property
    def _scope(self) -> str:
        return self.router.rpartition(".")[0]

    def _called(self, what: str) -> str:
        """A name for a new node."""
        name = f"{self.region.exit}_{what}"
        while name in self.old.graph.by_name:
            name += "_"
        return name

    def _type(self, kind: Type) -> Type:
        """The type of a value that there is of every expert."""
        if isinstance(kind, TensorType):
            return replace(kind, shape=(self.mixture.experts, *kind.shape))
        return tuple(map(self._type, kind)) if isinstance(kind, tuple) else kind

    def lifted(self, node: Node) -> Iterator[Node]:
        """A node of the MLP, once for all experts."""
        kind, changed = ops.kind(node.op), replace(node, type=self._type(node.type))
        if node.name == self.region.exit:
            changed = replace(changed, name=self._called("experts"))
        if node.op == "parameter":
            yield replace(changed, args=(self.names[str(node.args[0])],))
        elif kind == "contraction":
            yield from self._products(node, changed)
        elif kind in ("pointwise", "power"):
            args = list(changed.args)
            for index, argument in enumerate(args):
                if isinstance(argument, Ref):
                    spread, args[index] = self._spread(argument.name, changed, index)
                    yield from spread
            yield replace(changed, args=tuple(args))
        else:
            yield replace(changed, args=self._along(node, kind))

    def _products(self, node: Node, changed: Node) -> Iterator[Node]:
        """A contraction as an einsum, and what is added to it."""
        factors, bias = operands(node)
        names = [factor.name for factor in factors if isinstance(factor, Ref)]
        inputs, output = equation(node, [len(self.old.graph[name].shape) for name in names])
        lifted = [(_LETTER if name in self.inside else "") + text for name, text in zip(names, inputs, strict=True)]
        args = (f"{','.join(lifted)}->{_LETTER}{output}", tuple(map(Ref, names)))
        product = replace(changed, op="aten.einsum.default", args=args, kwargs=())
        if not isinstance(bias, Ref):
            yield product
            return
        yield replace(product, name=(inner := f"{changed.name}_product"))
        spread, added = self._spread(bias.name, changed, 1)
        yield from spread
        yield replace(changed, op="aten.add.Tensor", args=(Ref(inner), added), kwargs=())

    def _spread(self, name: str, user: Node, index: int) -> tuple[list[Node], Ref]:
        """What a node reads, with as many dimensions as its result where there is one of every expert."""
        kind = self.old.graph[name].type
        assert isinstance(kind, TensorType) and isinstance(user.type, TensorType)
        missing = len(user.type.shape) - len(kind.shape) - 1
        if name not in self.inside or not missing:
            return [], Ref(name)
        shape = (self.mixture.experts, *[1] * missing, *kind.shape)
        called = f"{user.name}_operand{index}"
        args = (Ref(name), shape)
        return [
            Node(called, "aten.reshape.default", args, (), replace(kind, shape=shape), user.scope, user.source)
        ], Ref(called)

    def _along(self, node: Node, kind: str) -> tuple[Argument, ...]:
        """The arguments of an operator that goes along the experts: dimensions count from the end."""
        args, rank = list(node.args), len(self.old.graph[next(node.operands())].shape) if kind != "getitem" else 0
        if kind == "reshape":
            args[1] = (self.mixture.experts, *_tuple(args[1]))
        elif kind == "permute":
            args[1] = (0, *(_int(dim) % rank + 1 for dim in _tuple(args[1])))
        elif kind == "unsqueeze":
            args[1] = _int(args[1]) % (rank + 1) + 1
        elif kind in ops.DIMENSION:
            place = ops.DIMENSION[kind]
            args += [0 if kind == "split" else -1] * (place + 1 - len(args))
            args[place] = _int(args[place]) % rank - rank
        return tuple(args)

    def combined(self, node: Node) -> Iterator[Node]:
        """The router: the best k of its scores, a softmax over them, zeros for all others; and the weighted sum."""
        entry, result = self.old.graph[self.region.entry], node.tensor
        (experts, chosen), tokens = self.mixture, entry.shape[:-1]
        scores = TensorType((*tokens, experts), "weights")
        best = replace(scores, shape=(*tokens, chosen))
        order = (len(tokens), *range(len(tokens)))

        def made(what: str, op: str, args: tuple[Argument, ...], kind: Type) -> Node:
            return Node(self._called(what), op, args, (), kind, self._scope, node.source)

        def ref(what: str) -> Ref:
            return Ref(self._called(what))

        yield made("scores", "aten.linear.default", (Ref(self.region.entry), ref("router")), scores)
        yield made("topk", "aten.topk.default", (ref("scores"), chosen), (best, replace(best, dtype="int64")))
        yield made("best", "getitem", (ref("topk"), 0), best)
        yield made("chosen", "getitem", (ref("topk"), 1), replace(best, dtype="int64"))
        yield made("shares", "aten.softmax.int", (ref("best"), -1), best)
        yield made("zeros", "aten.zeros_like.default", (ref("scores"),), scores)
        yield made("weights", "aten.scatter.src", (ref("zeros"), -1, ref("chosen"), ref("shares")), scores)
        first = replace(scores, shape=(experts, *tokens))
        yield made("by_expert", "aten.permute.default", (ref("weights"), order), first)
        wide = replace(scores, shape=(experts, *tokens, 1))
        yield made("weight", "aten.unsqueeze.default", (ref("by_expert"), -1), wide)
        product = replace(result, shape=(experts, *result.shape))
        yield made("weighted", "aten.mul.Tensor", (ref("experts"), ref("weight")), product)
        yield replace(node, op="aten.sum.dim_IntList", args=(ref("weighted"), (0,)), kwargs=())


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _tuple(argument: Argument) -> tuple[Argument, ...]:
    assert isinstance(argument, tuple)
    return argument


def _int(argument: Argument) -> int:
    assert isinstance(argument, int)
    return argument

"""deepen: more layers in a stack. Nodes and tensors of layers are copied, and names count on as a module list would."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.errors import Refusal
from graphgrow.graph import Argument, Graph, Node, Record, Ref, Structure
from graphgrow.layers import Stack
from graphgrow.lazy import Load, made
from graphgrow.program import Program
from graphgrow.rewrite.blocks import fill_normal

Copied = Literal["copy", "scaled"]


class Place(NamedTuple):
    """One layer of a deeper stack: the old layer that it is, or, when `new`, the one that it is made from."""

    source: int
    new: bool


def planned(old: int, new: int, order: Literal["interleave", "stack"]) -> list[Place]:
    """The layers of a stack of `new` layers made from `old` ones: new ones evenly between them, each after the one that
    it is made from, or all on top."""
    if order == "stack":
        return [*(Place(i, new=False) for i in range(old)), *(Place(i % old, new=True) for i in range(new - old))]
    added = [(i + 1) * (new - old) // old - i * (new - old) // old for i in range(old)]
    return [Place(i, new=copy > 0) for i, count in enumerate(added) for copy in range(count + 1)]


def deepen(
    program: Program, stack: Stack, plan: Sequence[Place], silent: Mapping[str, float], init: Copied, seed: int
) -> Program:
    """The program with the layers of a stack as planned: every old layer once and in order, new ones between them.
    `silent` gives the value that parameters take in new layers, by their names in the layers they are made from; all
    others are copies, or random with the mean and deviation of what they are made from."""
    return _Deepening(program, stack, tuple(plan), silent, init, seed).program()


@dataclass(frozen=True)
class _Deepening:
    old: Program
    stack: Stack
    plan: tuple[Place, ...]
    silent: Mapping[str, float]
    init: Copied
    seed: int

    @cached_property
    def positions(self) -> list[int]:
        """The position of each old layer in the new stack."""
        return [position for position, place in enumerate(self.plan) if not place.new]

    def program(self) -> Program:
        kinds = {self.renamed(name): kind for name, kind in self.old.kinds.items()}
        kinds |= {name: self.old.kinds[origin] for name, (origin, _) in self.origins.items()}
        tensors = made(self.old.tensors, self.origins, self.make)
        aliases = {self.renamed(name): self.renamed(owner) for name, owner in self.old.aliases.items()}
        for position, place in self._new():
            own = self._tensors[place.source]
            for name, owner in self.old.aliases.items():
                if owner in own:
                    aliases[self._moved(name, place.source, position)] = self._moved(owner, place.source, position)
        return self.old.replace(graph=self._graph(), tensors=tensors, kinds=kinds, aliases=aliases)

    def _new(self) -> Iterator[tuple[int, Place]]:
        return ((position, place) for position, place in enumerate(self.plan) if place.new)

    # Names

    @cached_property
    def members(self) -> _Members:
        return _Members(self.old, self.stack)

    @property
    def _tensors(self) -> list[dict[str, None]]:
        return self.members.tensors

    def renamed(self, path: str) -> str:
        """A tensor or module of the old program in the new one."""
        found = self.stack.split(path)
        if found is None or found[1] < self.stack.first:
            return path
        layer = self.members.layer(path)
        if layer is None:
            return self._counted(path, len(self.plan) - len(self.stack.layers))
        if layer == 0 and path in self.old.tensors and path not in self._tensors[0]:
            return path  # what the first layer keeps for all others (T5's positions) stays with the first
        return self._counted(path, self.positions[layer] - layer)

    def _moved(self, path: str, source: int, position: int) -> str:
        """What a tensor or module of an old layer is called in the new layer at `position`."""
        if not self.stack.lists:
            return f"copy{position}.{path}" if path else path
        return self._counted(path, position - source)

    def _counted(self, path: str, layers: int) -> str:
        found = self.stack.split(path)
        if found is None:
            return path
        prefix, number, rest = found
        return ".".join(part for part in (prefix, str(number + layers * self.stack.step), rest) if part)

    @cached_property
    def origins(self) -> Mapping[str, tuple[str, bool]]:
        """All tensors of the new program in order: what each is made from, and whether it is a new layer's."""
        order = {name: index for index, name in enumerate(self.old.tensors)}
        rows = [(index, -1, 0, name, self.renamed(name), None) for name, index in order.items()]
        last = min(order[name] for name in self._tensors[0]) - 1
        found: list[tuple[int, int, int, str, str, int | None]] = [*rows]
        for position, place in enumerate(self.plan):
            names = self._tensors[place.source]
            if not place.new:
                last = max(order[name] for name in names)
                continue
            found += [(last, position, order[n], n, self._moved(n, place.source, position), position) for n in names]
        ordered = sorted(found, key=lambda row: row[:3])
        return {name: (origin, layer is not None) for _, _, _, origin, name, layer in ordered}

    # Tensors

    def make(self, name: str, load: Load) -> Tensor:
        """A tensor of the new program from the old one's."""
        origin, new = self.origins[name]
        return self._made(origin, name, load(origin)) if new else load(origin)

    def _made(self, origin: str, name: str, old: Tensor) -> Tensor:
        if old.is_meta:
            return torch.empty_like(old, requires_grad=old.requires_grad)
        new = old.detach().clone()
        if origin in self.silent:
            new.fill_(self.silent[origin])
        elif self.init == "scaled" and self.old.kinds[origin].role == "parameter" and new.is_floating_point():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
            deviation, mean = torch.std_mean(new.double(), unbiased=False)
            fill_normal(new, float(mean), float(deviation), generator)
        return new.requires_grad_(old.requires_grad)

    # The graph

    def _graph(self) -> Graph:
        graph, layers = self.old.graph, self.stack.layers
        used = set(graph.by_name)
        entry = self.stack.layers[0].start
        stream, after = entry, dict[str, str]()
        copies: list[tuple[tuple[int, int, int], Node]] = []
        anchor = graph.order[entry]
        inputs = max(graph.order[node.name] for node in graph.parameters.values())  # parameters stand before all others
        for position, place in enumerate(self.plan):
            layer = layers[place.source]
            if not place.new:
                after[layer.start] = stream
                stream, anchor = layer.end, graph.order[layer.end]
                continue
            names = {name: _fresh(name, position, used) for name in self.members.nodes(place.source)}
            read = {**names, layer.start: stream}
            for index, name in enumerate(names):
                node = _rewired(graph[name], read)
                scope = self._moved(node.scope, place.source, position)
                at, args = anchor, node.args
                if node.op == "parameter":
                    at, args = inputs, (self._moved(str(node.args[0]), place.source, position),)
                copies.append(((at, position + 1, index), replace(node, name=names[name], args=args, scope=scope)))
            stream = names[layer.end]
        after[layers[-1].end] = stream
        return self._assembled(copies, after)

    def _assembled(self, copies: Sequence[tuple[tuple[int, int, int], Node]], after: Mapping[str, str]) -> Graph:
        """Old nodes and new ones, each after what it reads. `after` gives what old nodes read in place of a stream."""
        graph, layers = self.old.graph, self.stack.layers
        first, before = frozenset(layers[0].nodes), {layers[0].start: after[layers[0].start]}
        later = {name: stream for name, stream in after.items() if name != layers[0].start}
        rows = list(copies)
        for index, node in enumerate(graph.nodes):
            node = _rewired(node, before if node.name in first else later)
            args = (self.renamed(str(node.args[0])),) if node.op == "parameter" else node.args
            rows.append(((index, 0, 0), replace(node, args=args, scope=self.renamed(node.scope))))
        outputs = _repacked(graph.outputs, later)
        return Graph(tuple(_sorted(rows)), outputs, graph.symbols)


def drop(program: Program, stack: Stack, gone: Set[int]) -> Program:
    """The program without some layers of a stack; those after them count down. Nodes keep their names.

    Raises Refusal where what stays reads something of theirs."""
    graph, members = program.graph, _Members(program, stack)
    owned = {name for layer in gone for name in members.tensors[layer]}
    nodes = {name for layer in gone for name in members.nodes(layer)}
    stream = dict[str, str]()
    for layer in sorted(gone):
        start = stack.layers[layer].start
        stream[stack.layers[layer].end] = stream.get(start, start)
    names = {name: _recounted(stack, name, gone) for name in program.tensors if name not in owned}
    kept: list[Node] = []
    for node in (_rewired(node, stream) for node in graph.nodes if node.name not in nodes):
        if lost := next((name for name in node.operands() if name in nodes), None):
            raise Refusal(
                found=f"{node.name}, which reads {lost} of a layer that is to go",
                where=node.source or node.name,
                fix="drop other layers",
            )
        args = (names[str(node.args[0])],) if node.op == "parameter" else node.args
        kept.append(replace(node, args=args, scope=_recounted(stack, node.scope, gone)))
    aliases = {name: owner for name, owner in program.aliases.items() if owner not in owned}
    return program.replace(
        graph=Graph(tuple(kept), _repacked(graph.outputs, stream), graph.symbols),
        tensors=made(program.tensors, names.values(), _Named({new: old for old, new in names.items()})),
        kinds={name: program.kinds[old] for old, name in names.items()},
        aliases={_recounted(stack, name, gone): names[owner] for name, owner in aliases.items()},
    )


@dataclass(frozen=True)
class _Named:
    """Tensors by other names."""

    origins: Mapping[str, str]

    def __call__(self, name: str, load: Load) -> Tensor:
        return load(self.origins[name])


def _recounted(stack: Stack, path: str, gone: Set[int]) -> str:
    """What a tensor or module is called when layers before it are gone."""
    found = stack.split(path)
    if found is None:
        return path
    prefix, number, rest = found
    less = sum(one < (number - stack.first) // stack.step for one in gone)
    return ".".join(part for part in (prefix, str(number - less * stack.step), rest) if part)


@dataclass(frozen=True)
class _Members:
    """What belongs to the layers of a stack."""

    program: Program
    stack: Stack

    @cached_property
    def tensors(self) -> list[dict[str, None]]:
        """What each layer owns: what it alone reads, and by their names the counters and unread buffers it has."""
        graph = self.program.graph
        owned = [dict.fromkeys(layer.tensors) for layer in self.stack.layers]
        read = {str(node.args[0]): graph.users[node.name] for node in graph.parameters.values()}
        for name in self.program.tensors:
            layer = self.layer(name)
            if layer is not None and all(ops.kind(user.op) == "counter" for user in read.get(name, ())):
                owned[layer].setdefault(name)
        return owned

    def layer(self, path: str) -> int | None:
        """The layer that a path names, by the number in it."""
        found = self.stack.split(path)
        if found is None:
            return None
        layer = (found[1] - self.stack.first) // self.stack.step
        return layer if 0 <= layer < len(self.stack.layers) else None

    def nodes(self, layer: int) -> Sequence[str]:
        """The nodes of a layer with those that count its batches, in execution order."""
        graph = self.program.graph
        found = set(self.stack.layers[layer].nodes)
        for name in self.tensors[layer]:
            node = graph.parameters.get(name)
            if node is not None and node.name not in found:
                found.update((node.name, *(user.name for user in graph.users[node.name])))
        return sorted(found, key=graph.order.__getitem__)


def _rewired(node: Node, read: Mapping[str, str]) -> Node:
    if not any(name in read for name in node.operands()):
        return node

    def change(argument: Argument) -> Argument:
        return Ref(read.get(argument.name, argument.name)) if isinstance(argument, Ref) else argument

    return node.map(change)


def _repacked(structure: Structure, read: Mapping[str, str]) -> Structure:
    match structure:
        case Ref(name):
            return Ref(read.get(name, name))
        case Record(items):
            return Record(tuple((key, _repacked(value, read)) for key, value in items))
        case tuple():
            return tuple(_repacked(value, read) for value in structure)
        case None:
            return None


def _fresh(name: str, number: int, used: set[str]) -> str:
    found = f"{name}_{number}"
    while found in used:
        found += "_"
    used.add(found)
    return found


def _sorted(rows: Sequence[tuple[tuple[int, int, int], Node]]) -> Iterator[Node]:
    """Nodes by their keys, but each after what it reads."""
    keys = {node.name: (key, node) for key, node in rows}
    missing = {node.name: len(set(node.operands())) for _, node in rows}
    users: dict[str, list[str]] = {name: [] for name in keys}
    for _, node in rows:
        for name in dict.fromkeys(node.operands()):
            users[name].append(node.name)
    ready = [(key, node.name) for key, node in rows if not missing[node.name]]
    heapq.heapify(ready)
    while ready:
        _, name = heapq.heappop(ready)
        yield keys[name][1]
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (keys[user][0], user))

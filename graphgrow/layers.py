"""Layers: residual blocks that repeat, found in the graph alone.

A *join* is an addition one of whose summands, the stream x, all other summands depend on: x + f(x). Joins whose streams
follow one another are a chain, as are the layers of a transformer or a stage of a residual network. Where the blocks of
a chain repeat (the same operators on the same shapes, read in the same order), one period is a *layer*, and its
repetitions are a *stack*. Blocks that do not repeat are stacks of one layer, those of one entry of a module list
together: only there names of modules decide; elsewhere they only name.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from graphgrow.graph import Argument, Graph, Node, Ref, TensorType
from graphgrow.sizes import total

_ADD = "aten.add.Tensor"
_LONGEST = 64  # residual blocks in one layer


@dataclass(frozen=True)
class Layer:
    """One layer: the stream before it and after it, its nodes in execution order (the last is `end`), and the names of
    the tensors that only it reads."""

    start: str
    end: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """Layers of one structure, one after the other. `lists` are the module lists that their tensors are in, and the
    numbers there grow by `step` from layer to layer, from `first`; without lists names have no such numbers."""

    name: str  # for people: `layers@transformer.h`
    layers: tuple[Layer, ...]
    lists: frozenset[tuple[str, ...]]
    first: int
    step: int

    def split(self, path: str) -> tuple[str, int, str] | None:
        """A tensor or module in one of the lists as what stands before its number, the number, and the rest."""
        parts = path.split(".")
        for place in {len(prefix) for prefix in self.lists}:
            if place < len(parts) and parts[place].isdigit() and tuple(parts[:place]) in self.lists:
                return ".".join(parts[:place]), int(parts[place]), ".".join(parts[place + 1 :])
        return None


def _stack(layers: tuple[Layer, ...]) -> Stack:
    """The stack of some layers: where and by how much the names of their tensors differ."""
    lists: set[tuple[str, ...]] = set()
    steps: set[int] = set()
    for one, two in pairwise(layers):
        for place, step, name in _counted(one.tensors, two.tensors):
            lists.add(tuple(name.split(".")[:place]))
            steps.add(step)
    if len(steps) != 1 or 0 in steps:
        return Stack(f"layers@{layers[0].end}", layers, frozenset(), 0, 0)
    stack = Stack("", layers, frozenset(lists), 0, steps.pop())
    places = [found for name in layers[0].tensors if (found := stack.split(name))]
    return replace(stack, name=_title(places[0][0]), first=min(number for _, number, _ in places))


def _title(prefix: str) -> str:
    return f"layers@{prefix}" if prefix else "layers"


def stacks(graph: Graph) -> tuple[Stack, ...]:
    """The stacks of a graph in execution order."""
    found: list[Stack] = []
    for chain, path in _chains(graph):
        known: dict[object, int] = {}
        labels = [known.setdefault(_structure(graph, start, end), len(known)) for start, end in chain]
        single = dict(enumerate(chain))
        for begin, period, count in _repeats(labels):
            starts = [chain[begin + i * period][0] for i in range(count)]
            ends = [*starts[1:], chain[begin + count * period - 1][1]]
            layers = tuple(_layer(graph, start, end) for start, end in zip(starts, ends, strict=True))
            if all(layer.tensors for layer in layers):
                found.append(_stack(layers))
                single = {index: one for index, one in single.items() if not begin <= index < begin + count * period}
        found += _singles(graph, single, len(chain) - 1, path)
    inside = {name for stack in found for layer in stack.layers for name in layer.nodes if name != layer.end}
    found = [stack for stack in found if stack.layers[-1].end not in inside]  # none within the layers of another
    several = {name for name, count in Counter(stack.name for stack in found).items() if count > 1}
    named = [replace(s, name=f"{s.name}.{s.first}") if s.name in several else s for s in found]
    return tuple(sorted(named, key=lambda stack: graph.order[stack.layers[0].end]))


def _singles(graph: Graph, blocks: Mapping[int, tuple[str, str]], last: int, path: Sequence[str]) -> Iterator[Stack]:
    """Stacks of one layer: residual blocks that do not repeat, those of one entry of a module list together. After the
    last of a chain, whatever of the `path` that follows it lies in that entry belongs to it."""
    entries: dict[tuple[str, ...], list[int]] = {}
    for index, (start, end) in blocks.items():
        if entry := _entry(_layer(graph, start, end).tensors):
            entries.setdefault(entry, []).append(index)
    for entry, found in entries.items():
        start, end = blocks[found[0]][0], blocks[found[-1]][1]
        if found[-1] == last:
            inside = [name for name in path if name == path[0] or _in(graph[name].scope, entry)]
            end = [name for name in inside if graph[name].shape == graph[path[0]].shape][-1]
        if found == list(range(found[0], found[-1] + 1)):
            above, number = entry[:-1], int(entry[len(entry) - 1])
            yield Stack(_title(".".join(above)), (_layer(graph, start, end),), frozenset([above]), number, 1)


def _entry(tensors: Sequence[str]) -> tuple[str, ...]:
    """The innermost entry of a module list that all these tensors are in."""
    parts = [name.split(".") for name in tensors]
    common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))]
    while common and not common[-1].isdigit():
        common.pop()
    return tuple(common)


def _in(scope: str, entry: tuple[str, ...]) -> bool:
    return tuple(scope.split(".")[: len(entry)]) == entry


# Chains of joins


def _chains(graph: Graph) -> Iterator[tuple[list[tuple[str, str]], Sequence[str]]]:
    """Residual blocks that follow one another, each by its stream before and after; and what follows the last join."""
    meets = _meeting_points(graph)
    dynamic = _dynamic(graph)
    streams = dict(_joins(graph, meets))
    begins = {stream: join for join, stream in streams.items()}
    after = {join: list(_after(graph, join, meets, dynamic, begins)) for join in streams}
    linked = {join: begins[path[-1]] for join, path in after.items() if path[-1] in begins}
    for join in streams.keys() - set(linked.values()):
        joins = [join]
        while joins[-1] in linked:
            joins.append(linked[joins[-1]])
        tails = _tails(graph, [(streams[one], after[one]) for one in joins])
        yield [(streams[one], after[one][tail]) for one, tail in zip(joins, tails, strict=True)], after[joins[-1]]


def _tails(graph: Graph, blocks: Sequence[tuple[str, Sequence[str]]]) -> list[int]:
    """How far each block of a chain goes on the path after its join, from its stream and that path: up to the next
    block's stream, if that is as large (else what lies between changes its size, and is none of the block's); like the
    block before where there is none. Where the stream would be left in a shape of its own, all end at their joins."""
    tails: list[int] = []
    for stream, path in blocks:
        follows = len(tails) < len(blocks) - 1 and total(graph[path[-1]].shape) == total(graph[stream].shape)
        before = tails[-1] if tails else 0
        tails.append(len(path) - 1 if follows else min(len(path) - 1, before))
    known = [graph[stream].shape for stream, _ in blocks[-2:]]
    return tails if graph[blocks[-1][1][tails[-1]]].shape in known else [0] * len(tails)


def _joins(graph: Graph, meets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Every join with its stream: the summand that forks before and meets again in this addition."""
    for node in graph.nodes:
        if node.op != _ADD or any(user.op == _ADD for user in _only_user(graph, node.name)):
            continue
        for name in sorted(summands(graph, node.name), key=lambda name: graph.order[stream_of(graph, name).name]):
            source = stream_of(graph, name)
            forks = len(graph.users[source.name]) > 1 and meets.get(source.name) == node.name
            if forks and isinstance(source.type, TensorType) and source.shape == node.shape:
                yield node.name, source.name
                break


def stream_of(graph: Graph, name: str) -> Node:
    """What a value is a cast of that nothing else reads, or that times gains of the residual stream."""
    node = graph[name]
    while len(graph.users[node.name]) == 1 and (node.op == "aten.to.dtype" or gains(graph, node)):
        node = graph[next(other for other in node.operands() if other not in gains(graph, node))]
    return node


def gains(graph: Graph, node: Node) -> tuple[str, ...]:
    """The parameter that a product of one value with one parameter multiplies by; () of any other node."""
    if node.op != "aten.mul.Tensor":
        return ()
    found = tuple(name for name in node.operands() if graph[name].op == "parameter")
    return found if len(found) == 1 and len(set(node.operands())) == 2 else ()


def summands(graph: Graph, join: str) -> Iterator[str]:
    """What an addition adds up, through additions that nothing else reads."""
    for name in graph[join].operands():
        if graph[name].op == _ADD and len(graph.users[name]) == 1:
            yield from summands(graph, name)
        else:
            yield name


def _only_user(graph: Graph, name: str) -> Sequence[Node]:
    users = graph.users[name]
    return users if len(users) == 1 and name not in graph.output_names else ()


def _after(
    graph: Graph, join: str, meets: Mapping[str, str], dynamic: set[str], begins: Mapping[str, str]
) -> Iterator[str]:
    """The join and what follows it alone (an activation, a cast, a norm) until the next fork."""
    name: str | None = join
    while name is not None:
        yield name
        if name in begins:
            return
        following = meets.get(name)
        alone = following and [operand for operand in graph[following].operands() if operand in dynamic] == [name]
        name = following if alone else None


def _dynamic(graph: Graph) -> set[str]:
    """The nodes that depend on inputs."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or any(name in found for name in node.operands()):
            found.add(node.name)
    return found


def _meeting_points(graph: Graph) -> dict[str, str]:
    """For every node the first that all ways from it lead to (its immediate post-dominator). A value that is an output
    and is read by others too counts as read by them only.

    Cooper, Harvey & Kennedy's algorithm, of which an acyclic graph needs one walk; jump pointers (Myers 1983) keep
    each step logarithmic."""
    parent, jump, depth = dict[str, str](), dict[str, str](), {"": 0}

    def common(left: str, right: str) -> str:
        if depth[left] < depth[right]:
            left, right = right, left
        while depth[left] > depth[right]:
            left = jump[left] if depth[jump[left]] >= depth[right] else parent[left]
        while left != right:
            same = jump[left] == jump[right]
            left, right = (parent[left], parent[right]) if same else (jump[left], jump[right])
        return left

    for node in reversed(graph.nodes):
        users = graph.users[node.name]
        meeting = users[0].name if users else ""
        for user in users[1:]:
            meeting = common(meeting, user.name)
        parent[node.name] = meeting
        depth[node.name] = depth[meeting] + 1
        up = jump.get(meeting, "")
        far = depth[meeting] - depth[up] == depth[up] - depth[jump.get(up, "")]
        jump[node.name] = jump.get(up, "") if far else meeting
    return {name: meeting for name, meeting in parent.items() if meeting}


# Layers


def _layer(graph: Graph, start: str, end: str) -> Layer:
    nodes = tuple(sorted(_inside(graph, start, end), key=lambda name: graph.order[name]))
    tensors = tuple(str(graph[name].args[0]) for name in nodes if graph[name].op == "parameter")
    return Layer(start, end, nodes, tensors)


def _inside(graph: Graph, start: str, end: str) -> set[str]:
    """The nodes between two streams: those on the way from one to the other, and what only they read."""
    order, last = graph.order, graph.order[end]
    between, waiting = {start}, [start]
    while waiting:
        for user in graph.users[waiting.pop()]:
            if user.name not in between and order[user.name] <= last:
                between.add(user.name)
                waiting.append(user.name)
    inside = {end}
    heap = [-order[name] for name in graph[end].operands()]
    heapq.heapify(heap)
    outputs = frozenset(graph.output_names)
    while heap:
        node = graph.nodes[-heapq.heappop(heap)]
        if node.name in inside or node.name == start or node.op == "input":
            continue
        private = node.name not in outputs and all(user.name in inside for user in graph.users[node.name])
        if node.name in between or private:
            inside.add(node.name)
            for name in node.operands():
                heapq.heappush(heap, -order[name])
    return _kept(graph, inside, between)


def _kept(graph: Graph, inside: set[str], between: set[str]) -> set[str]:
    """Without what neither depends on the stream nor on tensors of this block: a mask, a table of positions."""
    kept: set[str] = set()
    for name in sorted(inside, key=graph.order.__getitem__):
        node = graph[name]
        owned = node.op == "parameter" and node.shape != ()
        if name in between or owned or any(operand in kept for operand in node.operands()):
            kept.add(name)
    return kept


def _structure(graph: Graph, start: str, end: str) -> object:
    """A block's structure: equal for blocks that differ only in weights, in decimal numbers, and in what they read from
    outside."""
    inside = _inside(graph, start, end)
    numbers = {start: -1}
    rows: list[object] = []
    for name in _in_order(graph, end, inside):
        node = graph[name]
        numbers[name] = len(numbers)

        def read(argument: Argument) -> Argument:
            if isinstance(argument, Ref):
                known = numbers.get(argument.name)
                return known if known is not None else str(graph[argument.name].type)
            return "number" if isinstance(argument, float) else argument

        called = node.map(read) if node.op != "parameter" else node
        arguments = (called.args, called.kwargs) if node.op != "parameter" else ()
        rows.append((node.op, node.type, arguments))
    return tuple(rows)


def _in_order(graph: Graph, end: str, inside: set[str]) -> Iterator[str]:
    """The nodes inside, each after what it reads, in the order of arguments: the same for blocks of one structure."""
    seen, waiting = set[str](), [(end, False)]
    while waiting:
        name, ready = waiting.pop()
        if ready:
            yield name
        elif name not in seen:
            seen.add(name)
            waiting.append((name, True))
            waiting += [(operand, False) for operand in reversed([*graph[name].operands()]) if operand in inside]


def _repeats(labels: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Where labels repeat: the first, the period and how often, as long as can be and without overlap."""
    begin = 0
    while begin < len(labels):
        best = (0, 0)
        for period in range(1, min(_LONGEST, (len(labels) - begin) // 2) + 1):
            same = 0
            while begin + same + period < len(labels) and labels[begin + same] == labels[begin + same + period]:
                same += 1
            covered = (same // period + 1) * period if same >= period else 0
            best = max(best, (covered, -period))
        covered, period = best[0], -best[1]
        if covered:
            yield begin, period, covered // period
        begin += covered or 1


def _counted(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Where the names of two layers differ, by how much, and the names; a step of 0 where they do not count."""
    for one, two in zip(left, right, strict=True):
        parts = list(zip(one.split("."), two.split("."), strict=False))
        odd = [index for index, (a, b) in enumerate(parts) if a != b]
        counts = len(odd) == 1 and one.count(".") == two.count(".") and all(part.isdigit() for part in parts[odd[0]])
        yield (odd[0], int(parts[odd[0]][1]) - int(parts[odd[0]][0]), one) if counts else (0, 0, one)

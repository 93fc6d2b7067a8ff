"""Masks: buffers beside the weights that they cut, multiplied in the graph.

Which weights can have one, and which of their dimensions are summed over, is read from the operators: a weight is
followed from its parameter through what only moves it (layouts, casts, a choice of experts) to the sums of products
that it is a factor of.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.axes.contractions import equation, operands
from graphgrow.axes.names import shared_path
from graphgrow.axes.state import place
from graphgrow.errors import Refusal
from graphgrow.graph import Argument, Graph, Kind, Node, Ref, TensorType
from graphgrow.patterns import Pattern, select
from graphgrow.patterns import density as density_of
from graphgrow.program import Program
from graphgrow.rewrite.units import Resizing

Dims = tuple[int | None, ...]  # for each dimension of a value the one of the parameter that it is
_MOVES = {"aten.to.dtype", "aten.clone.default", "aten.detach.default", "aten.mul.Scalar", "aten.div.Scalar"}
# What leads from logits to outputs, and does not mix them with other activations.
_PLAIN = {"pointwise", "power", "reshape", "permute", "unsqueeze", "expand", "slice", "select", "getitem", "along",
          "sum", "mean", "reduction", "pool", "pad", "split", "loss"}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One sum of products that a weight is a factor of. `inputs` and `outputs` are its dimensions that are summed over
    and that come out; `reads` gives, for every other factor, its dimensions that are the weight's, by its own."""

    node: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    reads: Mapping[str, Mapping[int, int]]
    groups: int = 1  # of a convolution
    picked: bool = False  # an index tensor chooses matrices for each token


@dataclass(frozen=True)
class Weight:
    """A parameter that activations are multiplied with and summed over; `head`: what it gives is an output."""

    name: str
    uses: tuple[Use, ...]
    head: bool

    @property
    def inputs(self) -> int | None:
        """The dimension along which groups run; None where uses do not agree on one."""
        found = {use.inputs[-1] for use in self.uses}
        return found.pop() if len(found) == 1 else None

    @property
    def outputs(self) -> int | None:
        found = {use.outputs[-1] if use.outputs else None for use in self.uses}
        return found.pop() if len(found) == 1 else None


def weights(program: Program) -> dict[str, Weight | str]:
    """Every parameter with two dimensions or more: where it is summed over, or, as text, why it can have no mask."""
    found: dict[str, Weight | str] = {}
    fed = _fed(program.graph)
    for name, node in program.graph.parameters.items():
        kind = program.kinds[name]
        if kind.role != "parameter" or len(node.shape) < 2 or not program.tensors[name].is_floating_point():
            continue
        uses = list(_uses(program, node, fed))
        reason = next((use for use in uses if isinstance(use, str)), "" if uses else "nothing reads it")
        known = tuple(use for use in uses if isinstance(use, Use))
        found[name] = reason or Weight(name, known, any(_shown(program.graph, use.node, fed) for use in known))
    return found


def masks(program: Program) -> dict[str, str]:
    """The masks there are: the name of each, by the parameter's."""
    return dict(products(program).values())


def densities(program: Program) -> dict[str, float]:
    """The part of every masked parameter that its mask keeps, of masks that have values."""
    found = {name: program.tensors[mask] for name, mask in masks(program).items()}
    return {name: density_of(mask) for name, mask in found.items() if not mask.is_meta}


def products(program: Program) -> dict[str, tuple[str, str]]:
    """The products of a parameter and its mask, a buffer with a pattern: both names, by the node's."""
    graph, found = program.graph, dict[str, tuple[str, str]]()
    for name, node in graph.parameters.items():
        for user in graph.users[node.name] if program.kinds[name].pattern else ():
            others = [graph[other] for other in user.operands() if other != node.name]
            if user.op == "aten.mul.Tensor" and [other.op for other in others] == ["parameter"]:
                found[user.name] = (str(others[0].args[0]), name)
    return found


def _fed(graph: Graph) -> frozenset[str]:
    """The nodes that inputs reach."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or not found.isdisjoint(node.operands()):
            found.add(node.name)
    return frozenset(found)


def _uses(program: Program, node: Node, fed: frozenset[str]) -> Iterator[Use | str]:
    """The sums that a weight ends in, or why it can't have a mask."""
    graph = program.graph
    waiting: list[tuple[Node, Dims, bool]] = [(node, tuple(range(len(node.shape))), False)]
    while waiting:
        value, dims, picked = waiting.pop()
        if value.name in graph.output_names:
            yield "an output shows it"
        for user in graph.users[value.name]:
            found = _use(graph, value, dims, user, fed)
            if isinstance(found, Use):
                yield replace(found, picked=picked)
            elif found is None:
                yield f"{place(user)} reads it"
            else:
                chosen = ops.kind(user.op) in ("index", "index_select")
                waiting.append((user, found, picked or (chosen and not fed.isdisjoint(user.operands()))))


def _use(graph: Graph, value: Node, dims: Dims, user: Node, fed: frozenset[str]) -> Use | Dims | None:
    """What one operator makes of a weight: a sum of products, the weight with its dimensions elsewhere, or None."""
    kind = ops.kind(user.op)
    if kind == "contraction":
        return _contraction(graph, value, dims, user, fed)
    if kind == "convolution" and user.args[1] == Ref(value.name) and user.args[0] != user.args[1]:
        return _convolution(dims, user)
    if user.args[0] != Ref(value.name):
        return dims if user.op == "aten.mul.Tensor" and user.shape == value.shape and _masked(graph, user) else None
    if user.op in _MOVES or (user.op == "aten.mul.Tensor" and user.shape == value.shape and _masked(graph, user)):
        return dims
    if kind == "permute":
        order = user.args[1]
        assert isinstance(order, tuple)
        return tuple(dims[int(str(dim)) % len(dims)] for dim in order)
    if kind == "unsqueeze":
        at = int(str(user.args[1])) % (len(dims) + 1)
        return (*dims[:at], None, *dims[at:])
    if kind == "expand":
        return (*[None] * (len(user.shape) - len(dims)), *dims)
    if kind in ("index", "index_select", "select"):
        return _picked(graph, dims, user)
    return None


def _masked(graph: Graph, user: Node) -> bool:
    """Whether a product is one with a parameter or a number alone."""
    others = [argument for argument in user.args if isinstance(argument, Ref)]
    return len(others) == 2 and all(graph[other.name].op == "parameter" for other in others)


def _picked(graph: Graph, dims: Dims, user: Node) -> Dims | None:
    """Matrices chosen along the first dimension of a stack."""
    kind, indices = ops.kind(user.op), user.args[1]
    if kind != "index":
        return (dims[1:] if kind == "select" else (None, *dims[1:])) if indices == 0 else None
    if not isinstance(indices, tuple) or len(indices) != 1 or not isinstance(indices[0], Ref):
        return None
    return (*[None] * len(graph[indices[0].name].shape), *dims[1:])


def _contraction(graph: Graph, value: Node, dims: Dims, user: Node, fed: frozenset[str]) -> Use | None:
    factors, _ = operands(user)
    names = [factor.name if isinstance(factor, Ref) else "" for factor in factors]
    if names.count(value.name) != 1 or not any(name in fed for name in names):
        return None
    texts, output = equation(user, [len(graph[name].shape) if name else 0 for name in names])
    mine = texts[names.index(value.name)]
    letters = {letter: dim for letter, dim in zip(mine, dims, strict=True) if dim is not None}
    others = {name: text for name, text in zip(names, texts, strict=True) if name != value.name}
    inputs = tuple(sorted(dim for letter, dim in letters.items() if letter not in output))
    free = [letter for letter in letters if letter in output and not any(letter in text for text in others.values())]
    if not inputs:
        return None
    reads = {name: {at: letters[c] for at, c in enumerate(text) if c in letters} for name, text in others.items()}
    return Use(user.name, inputs, tuple(sorted(letters[letter] for letter in free)), reads)


def _convolution(dims: Dims, user: Node) -> Use | None:
    image, groups = user.args[0], user.argument(6, "groups", 1)
    assert isinstance(image, Ref) and isinstance(groups, int)
    into, out = (dims[0], dims[1]) if "transpose" in user.op else (dims[1], dims[0])
    if into is None or out is None:
        return None
    channels = len(user.shape) - len(dims) + 1
    return Use(user.name, (into,), (out,), {image.name: {channels: into}}, groups)


def _shown(graph: Graph, name: str, fed: frozenset[str]) -> bool:
    """Whether what a node gives comes out of the program with no other activation added to it or multiplied."""
    reached, waiting = {name}, [name]
    while waiting:
        name = waiting.pop()
        if name in graph.output_names:
            return True
        for user in graph.users[name]:
            kind = ops.kind(user.op)
            alone = kind == "loss" or all(other in reached or other not in fed for other in user.operands())
            if kind in _PLAIN and alone and user.name not in reached:
                reached.add(user.name)
                waiting.append(user.name)
    return False


# Into the graph


def masked(program: Program, chosen: Mapping[str, tuple[Tensor, str]]) -> Program:
    """The program with masks of parameters, and the patterns that they keep to: put in, or in place of those that are
    there. All that reads a parameter reads the product. Raises Refusal where a name is taken."""
    there = masks(program)
    kinds, tensors, added = dict(program.kinds), dict(program.tensors), dict[str, Kind]()
    for name, (mask, pattern) in chosen.items():
        buffer = there.get(name, f"{name}_mask")
        if name not in there and (buffer in tensors or buffer in program.aliases):
            raise Refusal(found=f"a tensor called {buffer}", where="the names of masks", fix=f"rename {buffer}")
        added[buffer] = Kind("buffer", trainable=False, pattern=pattern)
        tensors[buffer] = mask
    new = [name for name in chosen if name not in there]
    order: list[str] = []
    for name in program.tensors:
        order += [name, *([f"{name}_mask"] if name in new else [])]
    kinds |= added
    return program.replace(
        graph=_multiplied(program.graph, new),
        tensors={name: tensors[name] for name in order},
        kinds={name: kinds[name] for name in order},
    )


def _multiplied(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph in which these parameters are multiplied with their masks before anything reads them."""
    parameters = {graph.parameters[name].name: name for name in names}
    used, product, first = set(graph.by_name), dict[str, Node](), dict[str, list[str]]()
    nodes: list[Node] = []
    for name, parameter in parameters.items():
        node, users = graph[name], graph.users[name]
        mask = _fresh(f"{name}_mask", used)
        scopes = dict.fromkeys(user.scope for user in users)
        scope = next(iter(scopes)) if len(scopes) == 1 else shared_path(scopes)
        args: tuple[Argument, ...] = (Ref(name), Ref(mask))
        made = Node(_fresh(f"{name}_masked", used), "aten.mul.Tensor", args, (), node.type, scope, "")
        product[name] = made
        at = min(users, key=lambda user: graph.order[user.name]).name if users else ""
        first.setdefault(at, []).append(name)
        nodes.append(Node(mask, "parameter", (f"{parameter}_mask",), (), TensorType(node.shape, "bool"), node.scope))
    buffers = {str(node.args[0]): node for node in nodes}
    reads = {name: Ref(made.name) for name, made in product.items()}

    def read(argument: Argument) -> Argument:
        return reads.get(argument.name, argument) if isinstance(argument, Ref) else argument

    found: list[Node] = []
    for node in graph.nodes:
        found += [product[name] for name in first.get(node.name, ())]
        found.append(node.map(read))
        if node.name in parameters:
            found.append(buffers[f"{parameters[node.name]}_mask"])
    return Graph(tuple(found), graph.outputs, graph.symbols)


def _fresh(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    used.add(name)
    return name


# Through changes of size


def broken(program: Program, resizing: Resizing) -> Iterator[tuple[str, str, int]]:
    """The masks whose groups would be others: old entries in other groups than before, or groups cut short. Gives each
    with its pattern and the dimension."""
    for name, terms in program.axes.parameters.items():
        pattern = program.kinds[name].pattern
        if pattern and resizing.touches(terms):
            for dim, size in Pattern.parse(pattern).steps:
                if resizing.touches([terms[dim]]) and not _whole(resizing.source(terms[dim]), size):
                    yield name, pattern, dim


def _whole(source: np.typing.NDArray[np.int64], size: int) -> bool:
    """Whether every group is an old one or new altogether."""
    if len(source) % size:
        return False
    groups = source.reshape(-1, size)
    old = (groups[:, :1] % size == 0) & (np.diff(groups, axis=1) == 1).all(1, keepdims=True) & (groups[:, :1] >= 0)
    return bool((old | (groups < 0).all(1, keepdims=True)).all())


def refilled(name: str, mask: Tensor, old: Tensor, pattern: str, free: Tensor, seed: int) -> Tensor:
    """A mask whose `free` entries are chosen at random, as dense as the old one, so that groups keep to the pattern."""
    found, generator = Pattern.parse(pattern), torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    scores = torch.rand(mask.shape, generator=generator) + 1
    if found.kind == "n:m":  # what is known comes first
        scores = torch.where(free, scores, torch.where(mask, 2.0 * found.tile, 0.0))
        return torch.where(free, select(scores, found), mask)
    kept = select(torch.where(free, scores, 0.0), found, density_of(old) * density_of(free))
    return torch.where(free, kept, mask)

"""Proposals: assignments from which a proof may go through. They need not be right; `Prover` judges them.

Three are tried. *Zeros*: every new block is zero. *Means*: what is written into the stream gets the mean of its old
units (layer norm's mean rule). *Copies*: every new unit copies an old one. Failing these, each axis takes the first of
them by which it grows alone. *Shares*, where they are asked for: copies, and weights that do nothing but sum over them
hold shares that add up to the old weights. On the way scales are repaired (`repair`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from graphgrow import ops
from graphgrow.axes import Atom, Sum, Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Graph, Node, Ref
from graphgrow.prove.engine import Assignment, Block, Prover, Strategy
from graphgrow.prove.facts import MEAN, SAME, ZERO, fact
from graphgrow.prove.repair import Repair, is_factor
from graphgrow.prove.rows import Number
from graphgrow.prove.rows.pointwise import PRODUCTS, QUOTIENTS, short
from graphgrow.prove.sources import CASTS

STRATEGIES: tuple[Strategy, ...] = ("zeros", "means", "copies", "shares")
BY_ITSELF = STRATEGIES[:3]
Way = Strategy | Mapping[int, Strategy]  # one for all axes, or one for each, by its number
_STREAMS = 8  # axes for which strategies are looked for one by one


def proposals(
    prover: Prover, numbers: Mapping[Number, float], strategies: Sequence[Strategy] | None
) -> tuple[Assignment, str]:
    """The first proposal that holds; or the one that came furthest, and why it does not hold."""
    failed: list[tuple[int, tuple[Assignment, str]]] = []
    for way in ways(prover, numbers, strategies or BY_ITSELF):
        found = propose(prover, way, numbers)
        if not found[1]:
            return found
        failed.append((len(prover.values), found))
    return max(failed, key=lambda one: one[0])[1]


def ways(prover: Prover, numbers: Mapping[Number, float], strategies: Sequence[Strategy]) -> Iterator[Way]:
    """The ways to keep the function: each strategy for all axes, then for each axis (where they are few) the first by
    which it grows alone, where these differ."""
    yield from strategies
    found: dict[int, Strategy] = {}
    grown = prover.layout.grown
    for atom, size in grown.items() if len(grown) <= _STREAMS else ():
        alone = Prover(prover.axes, {atom: size}, prover.fixed, prover.extend_outputs)
        alike: list[Strategy] = [way for way in strategies if way in BY_ITSELF]
        first: Strategy | None = next((way for way in alike if not propose(alone, way, numbers)[1]), None)
        if first is None:
            return
        found[atom.number] = first
    if len(set(found.values())) > 1:
        yield found


def propose(prover: Prover, strategy: Way, numbers: Mapping[Number, float] | None = None) -> tuple[Assignment, str]:
    """One proposal, with scales repaired, and why it does not hold (empty when it does). With a strategy for each axis,
    what is new in several is as the first of zero, mean and copy that one of them has."""

    def start(block: Block) -> int:
        if isinstance(strategy, str):
            return _START[strategy](prover, block)
        terms = prover.axes.parameters[block.parameter]
        new = {atom.number for dim in block.dims for atom in terms[dim].atoms} & strategy.keys()
        facts = {_START[strategy[number]](prover, block) for number in new}
        return next(known for known in (ZERO, MEAN, SAME) if known in facts)

    blocks = {block: start(block) for block in prover.blocks}
    return Repair(prover, blocks | (_shares(prover) if strategy == "shares" else {}), dict(numbers or {})).run()


def chosen(graph: Graph, numbers: Mapping[Number, float]) -> dict[Number, float]:
    """The numbers that a growth was free to multiply: factors (attention's scale). Those that are added follow."""
    return {place: factor for place, factor in numbers.items() if is_factor(graph[place[0]])}


def _written(prover: Prover, block: Block) -> int:
    """For *means*: the mean in what is written into the stream (tied tables too), zero in what only multiplies or sums
    over it: gains and biases of norms, readers."""
    node = prover.graph.parameters[block.parameter]
    if not all(_plain(prover.axes.terms[node.name][dim]) for dim in block.dims):
        return ZERO
    for user in _uses(prover, node):
        op = ops.kind(user.op)
        if op in ("layer_norm", "batch_norm", "group_norm") or short(user) in PRODUCTS | QUOTIENTS:
            continue
        if op in ("contraction", "convolution") and _sums_over(prover, user, node, block):
            continue
        return MEAN
    return ZERO


def _plain(term: Term) -> bool:
    """An axis, or a concatenation of such: what a mean can be taken over."""
    return isinstance(term, Atom) or (isinstance(term, Sum) and all(isinstance(part, Atom) for part in term.parts))


def _uses(prover: Prover, node: Node) -> list[Node]:
    """The operators that read a parameter, casts and moves left out."""
    found: list[Node] = []
    waiting = [node]
    while waiting:
        for user in prover.graph.users[waiting.pop().name]:
            follows = user.op in CASTS or ops.kind(user.op) in ("permute", "reshape", "unsqueeze", "expand", "getitem")
            (waiting if follows else found).append(user)
    return found


def _sums_over(prover: Prover, user: Node, node: Node, block: Block) -> bool:
    """Whether an operator sums over a dimension in which the block is new."""
    new = {atom for dim in block.dims for atom in prover.axes.terms[node.name][dim].atoms} & prover.layout.grown.keys()
    kept = {atom for term in prover.axes.terms[user.name] for atom in term.atoms}
    return not new <= kept


_START: dict[Strategy, Callable[[Prover, Block], int]] = {
    "zeros": lambda _, __: ZERO,
    "means": _written,
    "copies": lambda _, __: SAME,
    "shares": lambda _, __: SAME,
}


def _shares(prover: Prover) -> dict[Block, int]:
    """Shares in all blocks of weights that only sum over grown dimensions, the same ones in every use."""
    found: dict[Block, int] = {}
    for name, node in prover.graph.parameters.items():
        if node.name in prover.touched and node.tensor.dtype.startswith(("weights", "float", "bfloat")):
            uses = set(_sums(prover, node))
            along = uses.pop() if len(uses) == 1 else ()
            found |= dict.fromkeys(prover.blocks_of(name), fact("share", 1.0, along=along)) if along else {}
    return found


def _sums(prover: Prover, parameter: Node) -> Iterator[tuple[int, ...]]:
    """For every use of a parameter the grown dimensions that it sums over."""
    terms = prover.axes.terms
    waiting = [(parameter, tuple(range(len(terms[parameter.name]))))]
    while waiting:
        node, dims = waiting.pop()
        for user in prover.graph.users[node.name]:
            op, here = ops.kind(user.op), Ref(node.name)
            if user.op in CASTS:
                waiting.append((user, dims))
            elif op == "permute":
                waiting.append((user, tuple(dims[dim] for dim in prover.context.dims(user, 1, "dims"))))
            elif op == "convolution" and user.args[1] == here and user.argument(6, "groups", 1) == 1:
                yield tuple(dims[d] for d in ["transpose" not in user.op] if prover.layout.touches(terms[node.name][d]))
            elif op == "contraction" and here in (factors := operands(user)[0]) and here != operands(user)[1]:
                inputs, output = equation(user, [len(prover.context.terms(factor)) for factor in factors])
                for text in (text for text, factor in zip(inputs, factors, strict=True) if factor == here):
                    grown = [d for d, term in enumerate(terms[node.name]) if prover.layout.touches(term)]
                    yield tuple(sorted(dims[d] for d in grown if text[d] not in output))
            else:
                yield ()

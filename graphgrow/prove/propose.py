"""Proposals: assignments from which a proof may go through. They need not be right; `Prover` judges them.

Three are tried. *Zeros*: every new block is zero. *Means*: what is written into the stream gets the mean of its old
units (layer norm's mean rule). *Copies*: every new unit copies an old one. Failing these, each axis takes the first of
them by which it grows alone. *Shares*, where they are asked for: copies, and weights that do nothing but sum over them
hold shares that add up to the old weights. On the way scales are repaired: where a value has become a multiple of the
original's, the first parameter that multiplies it takes the inverse (a norm's gain), a number added to it follows (a
norm's eps), and, failing that, the nearest weights before it do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from graphgrow import ops
from graphgrow.axes import Atom, Sum, Term
from graphgrow.axes.contractions import equation, operands
from graphgrow.graph import Argument, Graph, Node, Ref
from graphgrow.prove.engine import Assignment, Block, Prover, Strategy, parts
from graphgrow.prove.facts import MEAN, POSITIVE, SAME, UNDEFINED, ZERO, Cells, fact, kind, multiple, scale
from graphgrow.prove.rows import Number, Value
from graphgrow.prove.rows.contractions import attention_scores, multiplied
from graphgrow.prove.rows.norms import normalised
from graphgrow.prove.rows.pointwise import CHOICES, HOMOGENEOUS, LINEAR, POWERS, PRODUCTS, QUOTIENTS, SUMS, short

STRATEGIES: tuple[Strategy, ...] = ("zeros", "means", "copies", "shares")
BY_ITSELF = STRATEGIES[:3]
Part = tuple[int, frozenset[int]]  # of a parameter: a dimension and its cells
_ATTEMPTS = 3  # at weights before a value, the nearest first
_NEAR = 100  # nodes between a value and the weights it comes from
Way = Strategy | Mapping[int, Strategy]  # one for all axes, or one for each, by its number
_STREAMS = 8  # axes for which strategies are looked for one by one
_CASTS = {"aten.to.dtype", "aten.clone.default", "aten.detach.default"}
_MOVES = {"reshape", "permute", "unsqueeze", "expand", "slice", "select", "split", "getitem", "cat", "stack", "unbind",
          "repeat", "repeat_interleave", "sum", "mean", "flip", "roll"}  # fmt: skip


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
    return _Repair(prover, blocks | (_shares(prover) if strategy == "shares" else {}), dict(numbers or {})).run()


def chosen(graph: Graph, numbers: Mapping[Number, float]) -> dict[Number, float]:
    """The numbers that a growth was free to multiply: factors (attention's scale). Those that are added follow."""
    return {place: factor for place, factor in numbers.items() if _is_factor(graph[place[0]])}


def _is_factor(node: Node) -> bool:
    return ops.kind(node.op) == "attention" or short(node) in PRODUCTS | QUOTIENTS


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
            follows = user.op in _CASTS or ops.kind(user.op) in ("permute", "reshape", "unsqueeze", "expand", "getitem")
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
            if user.op in _CASTS:
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


def _undefined(value: Value) -> bool:
    return any((part == UNDEFINED).any() for part in parts(value))


class _Repair:
    """Runs a proposal through the graph once and repairs scales on the way."""

    def __init__(self, prover: Prover, blocks: dict[Block, int], numbers: dict[Number, float]) -> None:
        self.prover, self.blocks, self.numbers = prover, blocks, numbers
        self.graph, self.context = prover.graph, prover.context
        self.avoided: set[str] = set()  # parameters that a scale was tried on without success

    def run(self) -> tuple[Assignment, str]:
        prover = self.prover
        prover.begin(Assignment(self.blocks, self.numbers))
        self.context.proposing = True
        try:
            why = self._walk()
        finally:
            self.context.proposing = False
        return Assignment(self.blocks, dict(self.context.numbers)), why

    def _walk(self) -> str:
        prover = self.prover
        for index, node in enumerate(self.graph.nodes):
            prover.step(node)
            if short(node) in QUOTIENTS or POWERS.get(short(node), 1.0) < 0:
                self._define(node)
            if node.op == "parameter" or prover.old_facts(node.name) == {SAME}:
                continue
            self._settle(node, index)
            self._absorb(node, index)
            if prover.lost(node.name) and not self._rescale_operands(node, index):
                return prover.explain(node.name)
        for name in self.graph.output_names:
            factor = self._uniform(name)
            if factor not in (None, 1.0) and name not in prover.touched:
                node, end = self.graph[name], len(self.graph.nodes)
                factors = operands(node)[0] if ops.kind(node.op) == "contraction" else []
                # The weight of the last contraction may be tied: then what it multiplies follows.
                for value in (name, *(ref.name for ref in factors if isinstance(ref, Ref))):
                    if self._rescale(value, 1 / (factor or 1.0), end, lambda: self._uniform(name) == 1.0):  # noqa: B023
                        break
        return prover.failure()

    def _uniform(self, name: str) -> float | None:
        """The one factor that all old cells of a node are multiplied by, if there is one."""
        facts = self.prover.old_facts(name)
        fact_ = next(iter(facts))
        return scale(fact_) if len(facts) == 1 and fact_ >= SAME and kind(fact_) == "same" else None

    def _define(self, node: Node) -> None:
        """Where new units are divided by new zeros, the parameters that divide them become positive instead."""
        divisor = node.args[1 if short(node) in QUOTIENTS else 0]
        if not isinstance(divisor, Ref) or not _undefined(self.prover.values[node.name]):
            return
        names = self._sources(divisor.name)
        for block in (block for name in names for block in self.prover.blocks_of(name)):
            if self.blocks.get(block) == ZERO and not self.prover.relax(block, POSITIVE)[0]:
                self.blocks[block] = POSITIVE
        self._give(names)

    def _sources(self, name: str) -> list[str]:
        """The parameters that a value is made of, if it is made of parameters alone."""
        found, waiting = dict[str, None](), [name]
        while waiting and len(found) < _NEAR:
            node = self.graph[waiting.pop()]
            if node.op == "input":
                return []
            found[node.name] = None
            waiting += [operand for operand in node.operands() if operand not in found]
        return [str(self.graph[name].args[0]) for name in found if self.graph[name].op == "parameter"]

    def _give(self, parameters: Iterable[str]) -> None:
        """Let the prover know what blocks of parameters hold now."""
        for name in parameters:
            found = [(block, self.blocks.get(block)) for block in self.prover.blocks_of(name)]
            self.prover.given[name] = [(block.cell, known) for block, known in found if known is not None]

    def _settle(self, node: Node, index: int) -> None:
        """Where a number that multiplies is given, and what follows is no weight, the weights before it take the
        inverse: what is added to the value needs it as it was."""
        if (node.name, ("args", 1)) not in self.numbers or not _is_factor(node):
            return
        factor = self._uniform(node.name)
        if factor in (None, 1.0) or all(ops.kind(user.op) == "contraction" for user in self.graph.users[node.name]):
            return
        self._rescale(node.name, 1 / (factor or 1.0), index, lambda: self._uniform(node.name) == 1.0)

    # Forward: the first parameter that multiplies

    def _absorb(self, node: Node, index: int) -> None:
        """Where old values have become a multiple, the parameter that multiplies them here takes the inverse."""
        factor, factors = self._product_factor(node)
        if factor == 1:
            return
        for argument in factors:
            if isinstance(argument, Ref) and self._scale_parameter(argument.name, 1 / factor, index):
                self.prover.step(node)
                return

    def _product_factor(self, node: Node) -> tuple[float, Sequence[Argument]]:
        """By how much what a node multiplies is a multiple of the original's (1 also where it is none), and the
        factors."""
        found = self._product(node)
        if found is None:
            return 1.0, ()
        cells, factors = found
        old = self.prover.layout.is_old(self.prover.axes.terms[node.name])
        facts = {int(f) for f in cells[np.broadcast_to(old, cells.shape)]}
        number = next(iter(facts))
        if len(facts) > 1 or number < SAME or kind(number) not in ("same", "constant"):
            return 1.0, ()
        return scale(number), factors

    def _product(self, node: Node) -> tuple[Cells, Sequence[Argument]] | None:
        """What a node multiplies, before a bias is added, and the factors that may be parameters."""
        op = ops.kind(node.op)
        if op == "contraction":
            return multiplied(self.context, node), operands(node)[0]
        if op == "convolution":
            return multiplied(self.context, node), node.args[1:2]
        if op == "layer_norm":
            return normalised(self.context, node), [node.argument(2, "weight")]
        if short(node) in PRODUCTS:
            value = self.prover.values[node.name]
            return (value, node.args[:2]) if isinstance(value, np.ndarray) else None
        return None

    def _scale_parameter(self, name: str, factor: float, index: int) -> bool:
        """Multiply what a node makes of one parameter, if it was not used before the node at `index`. Numbers added to
        the parameter on the way (the 1 of 1 + gain) are made up for."""
        chain: list[Node] = []
        shift = 0.0
        node = self.graph[name]
        while node.op != "parameter":
            first = node.args[0] if node.args else None
            number = node.args[1] if len(node.args) > 1 else None
            if node.op == "aten.add.Tensor" and isinstance(number, int | float):
                shift += number
            elif node.op not in _CASTS and ops.kind(node.op) not in ("reshape", "permute", "unsqueeze", "expand"):
                return False
            if not isinstance(first, Ref):
                return False
            chain.append(node)
            node = self.graph[first.name]
        inside = {link.name for link in chain} | {self.graph.nodes[index].name}
        users = [user for link in (node, *chain) for user in self.graph.users[link.name]]
        if any(self.prover.order[user.name] < index and user.name not in inside for user in users):
            return False
        if not node.tensor.dtype.startswith(("weights", "float", "bfloat")):
            return False
        self._multiply(str(node.args[0]), factor, (factor - 1) * shift)
        for link in (node, *reversed(chain)):
            self.prover.step(link)
        return True

    def _multiply(self, parameter: str, factor: float, shift: float = 0.0, part: Part | None = None) -> None:
        """Multiply the blocks of a parameter, those in `part` where it is given."""
        for block in self.prover.blocks_of(parameter):
            if part is not None and block.cell[part[0]] not in part[1]:
                continue
            number = self.blocks.get(block, SAME)
            if number >= SAME:
                found = multiple(number)
                kind_ = "affine" if found.kind == "same" else found.kind
                self.blocks[block] = fact(kind_, found.scale * factor, found.shift * factor + shift, found.along)
        self._give([parameter])

    # Backward: the nearest weights before

    def _rescale_operands(self, node: Node, index: int) -> bool:
        """Make operands that are multiples of the original's the same again."""

        def good() -> bool:
            return not self.prover.lost(node.name)

        key = node.args[1] if ops.kind(node.op) == "attention" else None
        if isinstance(key, Ref):
            scales = {scale(f) for f in map(int, attention_scores(self.context, node).reshape(-1)) if f >= SAME}
            factor = scales.pop() if len(scales) == 1 else 1.0
            return factor != 1 and self._rescale(key.name, 1 / factor, index, good)
        product, factors = self._product_factor(node)
        for argument in factors if product != 1 else ():
            if isinstance(argument, Ref) and self._rescale(argument.name, 1 / product, index, good):
                return True
        for name in node.operands():
            factor = self._uniform(name)
            if factor not in (None, 1.0) and self._rescale(name, 1 / (factor or 1.0), index, good):
                return True
        return False

    def _rescale(self, name: str, factor: float, index: int, good: Callable[[], bool]) -> bool:
        """Multiply the weights that a value comes from: all their blocks, or the part of a fused weight. Where the
        nearest have other uses too (a tied head), those before them."""
        self.avoided.clear()
        for _ in range(_ATTEMPTS):
            weights = self._weights(name, set())
            if not weights:
                return False
            if self._rescale_one(weights, name, factor, index, good):
                return True
            self.avoided |= {self.graph.parameters[weight].name for weight in weights}
        return False

    def _rescale_one(
        self, weights: Sequence[str], name: str, factor: float, index: int, good: Callable[[], bool]
    ) -> bool:
        if self._try(weights, factor, None, index, good):
            return True
        for dim, term in enumerate(self.prover.axes.parameters[weights[0]]):
            flags = self.prover.layout.old(term)
            if sum(flags) > 1:
                cells = range(len(flags))
                part = frozenset(
                    cell for cell in cells if self._reaches(weights, (dim, frozenset((cell,))), name, index)
                )
                for some in dict.fromkeys((part, *(frozenset((cell,)) for cell in part))):
                    if some and self._try(weights, factor, (dim, some), index, good):
                        return True
        return False

    def _reaches(self, weights: Sequence[str], part: Part, name: str, index: int) -> bool:
        """Whether a value depends on one part of weights."""
        before = self.prover.values[name]

        def changed() -> bool:
            pairs = zip(parts(before), parts(self.prover.values[name]), strict=True)
            found = not all(np.array_equal(a, b) for a, b in pairs)
            reached.append(found)
            return False

        reached: list[bool] = []
        self._try(weights, 2.0, part, index, changed)
        return any(reached)

    def _try(
        self, weights: Sequence[str], factor: float, part: Part | None, index: int, good: Callable[[], bool]
    ) -> bool:
        """Multiply weights (all old blocks, or those in one part) and see whether that is good; else undo it."""
        own = [block for name in weights for block in self.prover.blocks_of(name)]
        before, undo = {block: self.blocks[block] for block in own if block in self.blocks}, dict[str, Value]()
        nodes = [self.graph.parameters[name] for name in weights]
        term = self.prover.axes.parameters[weights[0]][part[0]] if part else None
        for name, node in zip(weights, nodes, strict=True):
            undo[node.name] = self.prover.values[node.name]
            terms = self.prover.axes.parameters[name]
            if part is None:
                self._multiply(name, factor)
            elif term in terms:
                self._multiply(name, factor, part=(terms.index(term), part[1]))
            self.prover.step(node)
        for _ in self.prover.carry([node.name for node in nodes], undo, index):
            pass
        if good() and not any(self.prover.order[name] < index and self.prover.lost(name) for name in undo):
            return True
        for block in own:
            self.blocks.pop(block, None)
        self.blocks |= before
        self._give(weights)
        self.prover.values.update(undo)
        return False

    def _weights(self, name: str, seen: set[str]) -> list[str] | None:
        """The parameters that multiply a value when they are multiplied together (but those of nodes in `seen`, which
        are taken care of); None where there are none."""
        if name in seen:
            return []
        if len(seen) > _NEAR:
            return None
        seen.add(name)
        node = self.graph[name]
        if node.op == "parameter":
            return None if name in self.avoided else [str(node.args[0])]
        op, short_ = ops.kind(node.op), short(node)
        if op == "contraction":
            factors, bias = operands(node)
            return self._one_of(factors, bias, seen)
        if op == "embedding":
            return self._one_of(node.args[:1], None, seen)
        if op == "convolution":
            return self._one_of(node.args[1:2], node.argument(2, "bias"), seen)
        if op == "layer_norm":
            return self._one_of([node.argument(2, "weight")], node.argument(3, "bias"), seen)
        if short_ in PRODUCTS or short_ in QUOTIENTS:
            return self._one_of(node.args[:1] if short_ in QUOTIENTS else node.args[:2], None, seen)
        if short_ in CHOICES:
            picked = node.args[1:3] if short_.startswith("where") else node.args[:1]
            return self._all_of([argument.name for argument in picked if isinstance(argument, Ref)], seen)
        tensors = [argument for argument in node.args if isinstance(argument, Ref)]
        linear = op in _MOVES or short_ in LINEAR or short_ in HOMOGENEOUS or (short_ in SUMS and len(tensors) > 1)
        return self._all_of(node.operands(), seen) if linear else None

    def _all_of(self, names: Iterable[str], seen: set[str]) -> list[str] | None:
        """Weights of all operands."""
        found: list[str] = []
        for name in dict.fromkeys(names):
            weights = self._weights(name, seen)
            if weights is None:
                return None
            found += weights
        return list(dict.fromkeys(found))

    def _one_of(self, factors: Sequence[Argument], bias: Argument, seen: set[str]) -> list[str] | None:
        """Weights of one of the factors, a parameter if there is one, and of what is added."""
        refs = [factor for factor in factors if isinstance(factor, Ref)]
        refs.sort(key=lambda ref: not self._is_parameter(ref.name))
        for ref in refs:
            found = self._weights(ref.name, seen)
            if found is not None:
                more = self._weights(bias.name, seen) if isinstance(bias, Ref) else []
                return None if more is None else [*found, *more]
        return None

    def _is_parameter(self, name: str) -> bool:
        node = self.graph[name]
        while node.op in _CASTS or ops.kind(node.op) == "permute" or self._masked(node):
            node = self.graph[next(iter(node.operands()))]
        return node.op == "parameter"

    def _masked(self, node: Node) -> bool:
        """Whether a node is the product of a parameter and its mask."""
        kinds = [self.graph[name] for name in node.operands()]
        return (
            short(node) in PRODUCTS and [k.op for k in kinds] == ["parameter"] * 2 and kinds[1].tensor.dtype == "bool"
        )

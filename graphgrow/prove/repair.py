"""Proposals with scales repaired, in one walk through the graph.

Where a value has become a multiple of the original's, the first parameter that multiplies it takes the inverse (a
norm's gain), a number added to it follows (a norm's eps), and, failing that, the nearest weights before it do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from graphgrow import ops
from graphgrow.axes.contractions import operands
from graphgrow.graph import Argument, Node, Ref
from graphgrow.prove.engine import Assignment, Block, Prover, parts
from graphgrow.prove.facts import POSITIVE, SAME, UNDEFINED, ZERO, Cells, fact, kind, multiple, scale
from graphgrow.prove.rows import Number, Value
from graphgrow.prove.rows.contractions import attention_scores, multiplied
from graphgrow.prove.rows.norms import normalised
from graphgrow.prove.rows.pointwise import POWERS, PRODUCTS, QUOTIENTS, short
from graphgrow.prove.sources import CASTS, Sources

Part = tuple[int, frozenset[int]]  # of a parameter: a dimension and its cells
_ATTEMPTS = 3  # at weights before a value, the nearest first


def is_factor(node: Node) -> bool:
    """Whether a number of the node multiplies."""
    return ops.kind(node.op) == "attention" or short(node) in PRODUCTS | QUOTIENTS


def _undefined(value: Value) -> bool:
    return any((part == UNDEFINED).any() for part in parts(value))


class Repair:
    """Runs a proposal through the graph once and repairs scales on the way."""

    def __init__(self, prover: Prover, blocks: dict[Block, int], numbers: dict[Number, float]) -> None:
        self.prover, self.blocks, self.numbers = prover, blocks, numbers
        self.graph, self.context = prover.graph, prover.context
        self.sources = Sources(prover.graph)

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
        names = self.sources.parameters(divisor.name)
        for block in (block for name in names for block in self.prover.blocks_of(name)):
            if self.blocks.get(block) == ZERO and not self.prover.relax(block, POSITIVE)[0]:
                self.blocks[block] = POSITIVE
        self._give(names)

    def _give(self, parameters: Iterable[str]) -> None:
        """Let the prover know what blocks of parameters hold now."""
        for name in parameters:
            found = [(block, self.blocks.get(block)) for block in self.prover.blocks_of(name)]
            self.prover.given[name] = [(block.cell, known) for block, known in found if known is not None]

    def _settle(self, node: Node, index: int) -> None:
        """Where a number that multiplies is given, and what follows is no weight, the weights before it take the
        inverse: what is added to the value needs it as it was."""
        if (node.name, ("args", 1)) not in self.numbers or not is_factor(node):
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
            elif node.op not in CASTS and ops.kind(node.op) not in ("reshape", "permute", "unsqueeze", "expand"):
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
            if factor == 1:
                return False
            return self._rescale(key.name, 1 / factor, index, good) or self._renumber(node, 1 / factor, index, good)
        product, factors = self._product_factor(node)
        for argument in factors if product != 1 else ():
            if isinstance(argument, Ref) and self._rescale(argument.name, 1 / product, index, good):
                return True
        for name in node.operands():
            factor = self._uniform(name)
            if factor not in (None, 1.0) and self._rescale(name, 1 / (factor or 1.0), index, good):
                return True
        for name in node.operands():
            factor = self._uniform(name)
            if factor not in (None, 1.0) and self._renumber(self.graph[name], 1 / (factor or 1.0), index, good):
                return True
        return False

    def _renumber(self, node: Node, factor: float, index: int, good: Callable[[], bool]) -> bool:
        """Where no weights can, multiply the number by which a node multiplies: attention's scale."""
        if not is_factor(node):
            return False
        path = ("scale",) if ops.kind(node.op) == "attention" else ("args", 1)
        number = dict(node.kwargs).get("scale") if len(path) == 1 else node.args[1]
        place, numbers = (node.name, path), dict(self.context.numbers)
        if not isinstance(number, float) or place in numbers:
            return False
        before, undo = self.prover.values[node.name], dict[str, Value]()
        self.context.multiply({place: factor})
        self.prover.step(node)
        for _ in self.prover.carry([node.name], undo, index):
            pass
        if good():
            return True
        self.context.numbers = numbers
        self.prover.values.update(undo | {node.name: before})
        return False

    def _rescale(self, name: str, factor: float, index: int, good: Callable[[], bool]) -> bool:
        """Multiply the weights that a value comes from: all their blocks, or the part of a fused weight. Where the
        nearest have other uses too (a tied head), those before them."""
        self.sources.avoided.clear()
        for _ in range(_ATTEMPTS):
            weights = self.sources.weights(name, set())
            if not weights:
                return False
            if self._rescale_one(weights, name, factor, index, good):
                return True
            self.sources.avoided |= {self.graph.parameters[weight].name for weight in weights}
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
        numbers = dict(self.context.numbers)  # rows change those that follow a scale
        nodes = [self.graph.parameters[name] for name in weights]
        term = self.prover.axes.parameters[weights[0]][part[0]] if part else None
        for name, node in zip(weights, nodes, strict=True):
            undo[node.name] = self.prover.values[node.name]
            terms = self.prover.axes.parameters[name]
            shift = (factor - 1) * self.sources.added(node)
            if part is None:
                self._multiply(name, factor, shift)
            elif term in terms:
                self._multiply(name, factor, shift, (terms.index(term), part[1]))
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
        self.context.numbers = numbers
        return False

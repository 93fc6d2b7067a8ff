"""Two graphs that write one function in other operators, brought into one form by laws.

- What is computed from stored tensors alone is a stored tensor: `W * mask`.
- Two linear maps by stored weights in a row are one: `(x V) U = x (V U)`, also for lookups and convolutions.
- `x = x * 1`: a multiplication by a number that one graph alone has is one by 1 in the other.

The graph with fewer nodes gives the form. Nodes of both are numbered by what they compute, with any weight in the place
of a weight and any number in that of a floating one; the larger graph takes a law where its node would have no twin
otherwise. Then pairs are followed from the outputs down: a weight of one graph meets what the other has in its place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace

from graphgrow import ops
from graphgrow.graph import Argument, ByMode, Graph, Node, Record, Ref, Structure, TensorType
from graphgrow.prove.products import Product, canonical, product

_RANDOM = (
    "aten.rand",
    "aten.bernoulli",
    "aten.dropout",
    "aten.normal",
    "aten.uniform",
    "aten.exponential",
    "aten.empty",
)
_TIMES = {"aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"}


@dataclass(frozen=True)
class Form:
    """The smaller graph with the multiplications that the larger one has besides (`plain`: by 1), and the same with all
    floating numbers of the larger one (`other`). `weights` says for each of its stored tensors which node or product
    of the larger graph stands there, `computed` which node of the smaller one, where that is none of its tensors."""

    plain: Graph
    other: Graph
    weights: Mapping[str, str]
    computed: Mapping[str, str]
    products: Mapping[str, Product]


def stored(graph: Graph) -> set[str]:
    """The nodes that are computed from stored tensors alone, by no chance and in every mode."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "parameter":
            found.add(node.name)
        elif isinstance(node.type, TensorType) and all(isinstance(size, int) for size in node.type.shape):
            read = list(node.operands())
            if read and found.issuperset(read) and not node.op.startswith(_RANDOM) and not _moody(node):
                found.add(node.name)
    return {name for name in found if ops.kind(graph[name].op) != "counter"}


def one_form(small: Graph, large: Graph) -> Form | str:
    """The form that both graphs have; or, as text, what the larger one computes that the smaller one does not."""
    return _Forms(small, large).form()


def _moody(node: Node) -> bool:
    return node.op == "by_mode" or any(isinstance(a, ByMode) for a in (*node.args, *dict(node.kwargs).values()))


class _Forms:
    def __init__(self, small: Graph, large: Graph) -> None:
        self.small, self.large = small, large
        self.table: dict[Hashable, int] = {}
        self.fixed = stored(small), stored(large)
        self.numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.products: dict[str, Product] = {}
        self.views: dict[str, Node] = {}  # the larger graph's nodes as they are read: plain, or one for two
        self.times: dict[str, str] = {}  # its multiplications by a number of which the other has none, and of what
        self.pairs: dict[str, str] = {}
        self.met: set[tuple[str, str]] = set()
        self.over: dict[str, dict[str, str]] = {}  # over a node of the form: multiplications, and what each reads
        self.alike: set[str] = set()  # weights that both compute from others in one way
        self.weights: dict[str, str] = {}
        self.computed: dict[str, str] = {}
        for node in small.nodes:
            self._number(0, node, self._key(0, node))
        self.known = set(self.table.values())
        for node in large.nodes:
            self._read(node)

    def _number(self, side: int, node: Node, key: Hashable) -> None:
        self.numbers[side][node.name] = self.table.setdefault(key, len(self.table))

    def _key(self, side: int, node: Node) -> Hashable:
        numbers = self.numbers[side]

        def spelled(argument: Argument) -> Hashable:
            if isinstance(argument, Ref):
                made = self.products.get(argument.name)
                return ("value", self._weight(made.type) if made else numbers[argument.name])
            if isinstance(argument, tuple):
                return tuple(map(spelled, argument))
            return "number" if isinstance(argument, float | None) else (type(argument).__name__, argument)

        if node.name in self.fixed[side]:
            return ("weight", node.type)
        if node.op == "input":
            return ("input", node.name, node.type)
        node = canonical(node)
        named = tuple(sorted((name, spelled(a)) for name, a in node.kwargs if not isinstance(a, float | None)))
        return (node.op, tuple(map(spelled, node.args)), named, node.type)

    def _weight(self, kind: TensorType) -> int:
        return self.table.setdefault(("weight", kind), len(self.table))

    def _read(self, node: Node) -> None:
        """Number a node of the larger graph, by a law where it has no twin without one."""
        self.views[node.name] = node
        plain = self._key(1, node)
        if self.table.get(plain, -1) in self.known or node.name in self.fixed[1]:
            return self._number(1, node, plain)
        for view, made in self._products(node):
            self.products[made.name] = made
            key = self._key(1, view)
            if self.table.get(key, -1) in self.known:
                self.views[node.name] = view
                return self._number(1, node, key)
        if (read := multiplied(node)) and self.numbers[1][read] in self.known:
            self.times[node.name] = read
            self.numbers[1][node.name] = self.numbers[1][read]
            return None
        return self._number(1, node, plain)

    def _products(self, node: Node) -> Iterator[tuple[Node, Product]]:
        """The node and one that it reads as one node."""
        for name in dict.fromkeys(node.operands()):
            inner = self.views[name]
            if len(self.large.users[name]) == 1 and name not in self.large.output_names:
                found = product(self.large, node, inner, self.fixed[1], self.products)
                if found is not None:
                    yield found

    def form(self) -> Form | str:
        why = self._pair()
        if why:
            return why
        replaced = {node: name for name, node in self.computed.items()}
        plain, other = list[Node](), list[Node]()
        for node in self.small.nodes:
            if node.name in replaced:
                nodes = [replace(node, op="parameter", args=(replaced[node.name],), kwargs=())] * 2
            elif node.op == "input" or node.name in self.alike or _reads(node, self.weights):
                nodes = [node, node]
            elif node.name in self.pairs:
                twin = canonical(self.views[self.pairs[node.name]])
                nodes = [self._with(canonical(node), twin, numbers) for numbers in (False, True)]
            else:
                continue  # no output needs it, or what it makes is a weight's part
            plain.append(nodes[0])
            other.append(nodes[1])
            for factor, base in self.over.get(node.name, {}).items():
                args = (Ref(base), _number(self.large[factor]))
                made = replace(self.large[factor], name=self._name(factor), args=args)
                plain.append(replace(made, args=(args[0], 1.0)))
                other.append(made)
        for nodes in (plain, other):
            nodes.sort(key=lambda node: node.op not in ("input", "parameter"))
        ends = dict(zip(self.small.output_names, self.large.output_names, strict=True))
        outputs = _renamed(self.small.outputs, {a: self._at(a, b) for a, b in ends.items()})
        first = replace(self.small, nodes=tuple(plain), outputs=outputs)
        return Form(first, replace(first, nodes=tuple(other)), self.weights, self.computed, self.products)

    def _pair(self) -> str:
        """Follow pairs of nodes from the outputs and counters down; say where they are none."""
        counters = [[n.name for n in graph.nodes if ops.kind(n.op) == "counter"] for graph in (self.small, self.large)]
        ends = [
            [*graph.output_names, *counted] for graph, counted in zip((self.small, self.large), counters, strict=True)
        ]
        if len(ends[0]) != len(ends[1]):
            return "other outputs or counters"
        waiting = list(zip(*ends, strict=True))
        while waiting:
            small, large = waiting.pop()
            base, _ = self._stripped(large)
            if self._of(0, small) != self._of(1, base):
                return self._odd(large)
            if small in self.fixed[0]:
                if why := self._weigh(small, base):
                    return why
                continue
            if self.pairs.setdefault(small, base) != base:
                return self._odd(large)
            self._at(small, large)
            if (small, base) in self.met:
                continue
            self.met.add((small, base))
            mine, theirs = canonical(self.small[small]), canonical(self.views[base])
            waiting += zip(mine.operands(), theirs.operands(), strict=True)
        return ""

    def _of(self, side: int, name: str) -> int:
        made = self.products.get(name)
        return self._weight(made.type) if made else self.numbers[side][name]

    def _odd(self, name: str) -> str:
        node = self.large[name]
        return f"{node.op} ({node.source or name}) computes what the other program does not"

    def _weigh(self, small: str, large: str) -> str:
        """What stands where the smaller graph has a weight: at a tensor of its own, if that is computed alike."""
        waiting = [(small, large)]
        while waiting:
            small, large = waiting.pop()
            mine = self.small[small]
            if mine.op != "parameter" and large not in self.products and self._alike(mine, self.large[large]):
                self.alike.add(small)
                waiting += zip(mine.operands(), self.large[large].operands(), strict=True)
                continue
            name = str(mine.args[0]) if mine.op == "parameter" else f"computed.{small}"
            if mine.op != "parameter":
                self.computed[name] = small
            if self.weights.setdefault(name, large) != large:
                return f"{name} has two values"
        return ""

    def _alike(self, mine: Node, other: Node) -> bool:
        """Whether both compute a weight in one way from weights of the same types."""
        if other.op == "parameter" or self._shallow(0, mine) != self._shallow(1, other):
            return False
        pairs = zip(mine.operands(), other.operands(), strict=True)
        return all(self.small[a].type == self.large[b].type for a, b in pairs)

    def _shallow(self, side: int, node: Node) -> Hashable:
        plain = node.map(lambda a: a if not isinstance(a, Ref) else "weight")
        return (node.op, plain.args, plain.kwargs, len(list(node.operands())))

    def _stripped(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A node of the larger graph without multiplications that the other one does not have, and these, outermost
        last."""
        over: list[str] = []
        while name in self.times:
            over.append(name)
            name = self.times[name]
        return name, tuple(reversed(over))

    def _at(self, small: str, large: str) -> str:
        """The node of the form that stands for both: the smaller graph's, or a multiplication over it."""
        _, over = self._stripped(large)
        base = small
        for factor in over:
            self.over.setdefault(small, {})[factor] = base
            base = self._name(factor)
        return base

    def _name(self, factor: str) -> str:
        return factor if factor not in self.small.by_name else f"{factor}_factor"

    def _with(self, node: Node, twin: Node, numbers: bool) -> Node:
        """A node of the smaller graph that reads the form, with its own floating numbers or those of its twin."""

        def both(mine: Argument, theirs: Argument) -> Argument:
            if isinstance(mine, Ref) and isinstance(theirs, Ref):
                return Ref(self._at(mine.name, theirs.name)) if mine.name not in self.fixed[0] else mine
            if isinstance(mine, tuple) and isinstance(theirs, tuple):
                return tuple(both(a, b) for a, b in zip(mine, theirs, strict=True))
            return theirs if numbers and isinstance(theirs, float | None) else mine

        args = tuple(both(a, b) for a, b in zip(node.args, twin.args, strict=True))
        own, given = dict(node.kwargs), dict(twin.kwargs)
        named = {name: both(own.get(name), given.get(name)) for name in dict.fromkeys((*own, *given))}
        kept = tuple((name, value) for name, value in named.items() if name in (given if numbers else own))
        return replace(node, args=args, kwargs=kept)


def _reads(node: Node, tensors: Mapping[str, str]) -> bool:
    return node.op == "parameter" and str(node.args[0]) in tensors


def multiplied(node: Node) -> str | None:
    """What the node multiplies by a number, without a change of its type."""
    if node.op not in _TIMES or node.kwargs or len(node.args) != 2 or not isinstance(node.args[0], Ref):
        return None
    return node.args[0].name if isinstance(node.args[1], int | float) else None


def _number(node: Node) -> float:
    number = node.args[1]
    assert isinstance(number, int | float)
    return float(number)


def _renamed(outputs: Structure, names: Mapping[str, str]) -> Structure:
    match outputs:
        case Ref(name):
            return Ref(names[name])
        case Record(items):
            return Record(tuple((key, _renamed(value, names)) for key, value in items))
        case tuple():
            return tuple(_renamed(value, names) for value in outputs)
        case None:
            return None

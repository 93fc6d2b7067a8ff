"""What facts promise, checked with numbers: graphs are built node by node and run, grown by random facts, run again.

Independent of `prove` and `rewrite` but for the graphs, the axes and the sizes: positions, copies and means are worked
out here once more, and so is what every fact says of a tensor.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphgrow.axes import Atom, Sum, Term
from graphgrow.graph import WEIGHTS, Argument, ByMode, Dtype, Graph, Kind, Lowest, Node, Ref, TensorType
from graphgrow.module.lowering import factory, overload
from graphgrow.program import Program
from graphgrow.prove import ANY, MEAN, POSITIVE, SAME, ZERO, Assignment, Block, Number, Prover, fact, multiple, text
from graphgrow.prove.engine import parts
from graphgrow.prove.facts import NONNEGATIVE, UNDEFINED, free, kind
from graphgrow.rewrite import resize_graph

Value = Tensor | tuple[Tensor, ...]
SCALES = (1.0, 1.0, 1.0, 2.0, 0.5, -1.0, -2.0)


class Maker:
    """Builds a graph of random parameters and the operators asked for, with all values as it goes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return tuple(self.tensor(ref).shape)

    def tensor(self, ref: Ref) -> Tensor:
        value = self.values[ref.name]
        assert isinstance(value, Tensor)
        return value

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def given(self, values: Tensor) -> Ref:
        """A parameter with these values."""
        name = f"p{len(self.tensors)}"
        self.tensors[name] = values
        return self._add(name, "parameter", (name,), (), values)

    def parameter(self, *shape: int) -> Ref:
        """A parameter of random values: of any sign, or positive."""
        values = self.draw(*shape)
        return self.given(values.abs() + 0.2 if self.random.random() < 0.3 else values)

    def index(self, high: int, *shape: int, low: int = 0) -> Ref:
        """An index tensor."""
        return self.given(torch.randint(low, high, shape, generator=self.generator))

    def call(self, op: str, *args: Argument, **kwargs: Argument) -> Ref:
        """One operator; of several results the first, all have nodes of their own."""
        name = f"n{len(self.nodes)}"
        full = op if op.startswith(("aten.", "by_mode")) else f"aten.{op}" + ("" if "." in op else ".default")
        node = Node(name, full, args, tuple(kwargs.items()), None)
        value = run(node, self.values)
        ref = self._add(name, full, args, tuple(kwargs.items()), value)
        if isinstance(value, tuple):
            items = [self._add(f"{name}_{i}", "getitem", (ref, i), (), v) for i, v in enumerate(value)]
            return items[0]
        return ref

    def _add(self, name: str, op: str, args: tuple[Argument, ...], kwargs: tuple[tuple[str, Argument], ...], value: Value) -> Ref:  # fmt: skip  # noqa: E501
        type_ = tuple(_type(v) for v in value) if isinstance(value, tuple) else _type(value)
        self.nodes.append(Node(name, op, args, kwargs, type_))
        self.values[name] = value
        return Ref(name)

    def program(self) -> Program:
        """All that was built; every tensor is an output."""
        first = [node for node in self.nodes if node.op == "parameter"]
        nodes = (*first, *(node for node in self.nodes if node.op != "parameter"))
        outputs = tuple(Ref(node.name) for node in nodes if isinstance(node.type, TensorType))
        kinds = {name: Kind("parameter") for name in self.tensors}
        return Program(Graph(nodes, outputs), self.tensors, kinds, dtype="float64")


def _type(value: Tensor) -> TensorType:
    dtype = WEIGHTS if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
    return TensorType(tuple(value.shape), dtype)


def run(node: Node, values: Mapping[str, Value]) -> Value:
    """One node in evaluation mode and float64."""

    def plain(argument: Argument) -> Any:
        match argument:
            case Ref(name):
                return values[name]
            case tuple():
                return [plain(item) for item in argument]
            case Dtype(name):
                return torch.float64 if name in (WEIGHTS, "float32", "float64") else getattr(torch, name)
            case Lowest():
                return torch.finfo(torch.float64).min
            case ByMode(_, evaluation):
                return evaluation
            case _:
                return argument

    args = [plain(argument) for argument in node.args]
    if node.op == "getitem":
        return args[0][args[1]]
    if node.op == "by_mode":
        return args[1]
    kwargs = {name: plain(value) for name, value in node.kwargs}
    if factory(node.op).dtype and "dtype" not in kwargs and "full" not in node.op:
        kwargs["dtype"] = torch.int64 if "arange" in node.op else torch.float64
    if "full" in node.op and factory(node.op).dtype:
        kwargs["dtype"] = torch.float64
    found = overload(node.op)(*args, **kwargs)
    return tuple(found) if isinstance(found, list | tuple) else found


# Positions


class Position(NamedTuple):
    """One position of a grown dimension: its cell, the old one that a copy copies, and those that a mean is over."""

    cell: int
    copy: int
    mean: tuple[int, ...]


def cells(term: Term, sizes: Mapping[Atom, int]) -> int:
    """Into how many cells a term falls."""
    if not any(atom in sizes for atom in term.atoms):
        return 1
    if isinstance(term, Atom):
        return 2
    counts = [cells(part, sizes) for part in term.parts]
    return sum(counts) if isinstance(term, Sum) else int(np.prod(counts))


def positions(term: Term, sizes: Mapping[Atom, int]) -> list[Position]:
    """All positions of a term after growth, in order."""
    old = int(str(term.size))
    if not any(atom in sizes for atom in term.atoms):
        return [Position(0, j, (j,)) for j in range(old)]
    if isinstance(term, Atom):
        return [Position(int(j >= old), j % old, (j,) if j < old else tuple(range(old))) for j in range(sizes[term])]
    found: list[Position] = []
    if isinstance(term, Sum):
        start, first = 0, 0
        for part in term.parts:
            found += [
                Position(p.cell + first, p.copy + start, tuple(j + start for j in p.mean))
                for p in positions(part, sizes)
            ]
            start, first = start + int(str(part.size)), first + cells(part, sizes)
        return found
    found = [Position(0, 0, (0,))]
    for part in term.parts:
        size, count, inner = int(str(part.size)), cells(part, sizes), positions(part, sizes)
        found = [
            Position(
                a.cell * count + b.cell, a.copy * size + b.copy, tuple(i * size + j for i in a.mean for j in b.mean)
            )
            for a in found
            for b in inner
        ]
    return found


class Cell:
    """One cell of a grown tensor: which positions it has, and what of the old tensor belongs there."""

    def __init__(
        self, at: Sequence[Sequence[tuple[int, Position]]], dims: Sequence[Sequence[tuple[int, Position]]]
    ) -> None:
        self.at, self.all = at, dims

    def index(self, dim: int) -> Tensor:
        return torch.tensor([index for index, _ in self.at[dim]])

    def added(self, grown: Tensor, dim: int) -> Tensor:
        """Sums over all units of a dimension that copy the same one."""
        copies = torch.tensor([position.copy for _, position in self.all[dim]])
        shape = [*grown.shape[:dim], int(copies.max()) + 1, *grown.shape[dim + 1 :]]
        return torch.zeros(shape, dtype=grown.dtype).index_add(dim, copies, grown)

    @property
    def new(self) -> bool:
        return any(len(position.mean) > 1 or index != position.copy for dim in self.at for index, position in dim)

    def of(self, grown: Tensor) -> Tensor:
        for dim, chosen in enumerate(self.at):
            grown = grown.index_select(dim, torch.tensor([index for index, _ in chosen]))
        return grown

    def put(self, grown: Tensor, values: Tensor) -> None:
        index = np.ix_(*([index for index, _ in chosen] for chosen in self.at))
        grown[index] = values.to(grown.dtype) if self.at else values

    def copies(self, old: Tensor) -> Tensor:
        for dim, chosen in enumerate(self.at):
            old = old.index_select(dim, torch.tensor([position.copy for _, position in chosen]))
        return old

    def _over(self, old: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        for dim, chosen in enumerate(self.at):
            picked = [old.index_select(dim, torch.tensor(position.mean)) for _, position in chosen]
            old = torch.cat([function(part, dim) for part in picked], dim)
        return old

    def means(self, old: Tensor) -> Tensor:
        return self._over(old, lambda part, dim: part.mean(dim, keepdim=True))

    def varies(self, old: Tensor, allowed: float) -> bool:
        """Whether the old tensor varies along the dimensions in which the cell is new."""
        finite = old.nan_to_num(0.123, 4.56, -7.89)
        high = self._over(finite, lambda part, dim: part.amax(dim, keepdim=True))
        low = self._over(finite, lambda part, dim: part.amin(dim, keepdim=True))
        return bool((high - low > allowed).any())


def tensor_cells(terms: Sequence[Term], sizes: Mapping[Atom, int]) -> list[tuple[tuple[int, ...], Cell]]:
    """The cells of a tensor that have any positions, by place."""
    dims = [list(enumerate(positions(term, sizes))) for term in terms]
    counts = [cells(term, sizes) for term in terms]
    found: list[tuple[tuple[int, ...], Cell]] = []
    for place in product(*(range(count) for count in counts)):
        at = [[item for item in dim if item[1].cell == wanted] for dim, wanted in zip(dims, place, strict=True)]
        if all(at):
            found.append((place, Cell(at, dims)))
    return found


# What facts say


def wrong(number: int, old: Tensor, new: Tensor, cell: Cell) -> str:
    """How the values in a cell contradict a fact; empty when they don't. Where the original is not finite (log of what
    is negative), a new unit may be anything."""
    if number == UNDEFINED:
        return ""
    found, before = _number(cell.of(new)), _number(cell.copies(old))
    defined = before.isfinite()
    finite = [t[t.isfinite()].abs().max().item() for t in (_number(old), _number(new)) if t.isfinite().any()]
    allowed = 1e-9 * (1 + max(finite, default=0.0))
    if number == ZERO:
        return _unless((found.abs() <= allowed) | ~defined, "not zero", found)
    if free(number):
        if bool((~found.isfinite() & defined).any()):
            return f"not finite: {found}"
        if number == NONNEGATIVE:
            return _unless((found.real >= -allowed) | ~defined, "negative", found)
        return _unless((found.real > -allowed) | ~defined, "not positive", found) if number == POSITIVE else ""
    said = multiple(number)
    if said.kind == "share":
        sums = _number(new)
        for dim in range(len(cell.at)):
            sums = cell.added(sums, dim) if dim in said.along else sums.index_select(dim, cell.index(dim))
        for dim in said.along:
            sums = sums.index_select(dim, torch.tensor([position.copy for _, position in cell.at[dim]]))
        return _unless((sums - said.scale * before).abs() <= allowed * (1 + len(cell.all)), "no shares", sums)
    if said.kind == "constant" and cell.varies(_number(old).abs(), allowed):
        return "the original varies"
    if said.kind == "mean":
        before = cell.means(_number(old))
    expected = said.scale * before + said.shift
    same = (found - expected).abs() <= allowed * (1 + abs(said.scale))
    both = ~expected.isfinite() & ~found.isfinite()
    return _unless(same | both | ~before.isfinite(), f"not {expected}", found)


def _number(value: Tensor) -> Tensor:
    return value if value.is_complex() else value.double()


def _unless(good: Tensor, what: str, found: Tensor) -> str:
    return "" if bool(good.all()) else f"{what}: {found}"


# Growing


@dataclass(frozen=True)
class Grown:
    """A program, new sizes, what its blocks hold, and all values before and after."""

    program: Program
    sizes: Mapping[Atom, int]
    assignment: Assignment
    old: Mapping[str, Value]
    new: Mapping[str, Value]

    def mistakes(self) -> list[str]:
        """Facts that the prover derives and that the values contradict."""
        prover = Prover(self.program.axes, dict(self.sizes))
        prover.begin(self.assignment)
        found: list[str] = []
        for node in self.program.graph.nodes:
            prover.step(node)
            if node.op == "parameter":
                continue
            facts, shapes = parts(prover.values[node.name]), prover.shapes(node.name)
            for number, (array, terms) in enumerate(zip(facts, shapes, strict=True)):
                old, new = self.old[node.name], self.new[node.name]
                pair = (old[number], new[number]) if isinstance(old, tuple) else (old, new)
                for place, cell in tensor_cells(terms, self.sizes):
                    fact = int(array[place])
                    why = wrong(fact, *pair, cell)  # type: ignore[arg-type]
                    if why:
                        found.append(f"{node} at {place}: said to be {text(fact)}, {why}")
            if found:
                for n in self.program.graph.nodes:
                    if n.name in {*node.operands(), node.name}:
                        facts = [text(int(f)) for p in parts(prover.values[n.name]) for f in p.flat]
                        found.append(f"{n.name}: {facts} {prover.shapes(n.name)}")
                break
        return found


@dataclass
class Grower:
    """Grows a program by random facts."""

    maker: Maker
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.program = self.maker.program()

    def grown(self, seed: int) -> Grown | None:
        """None where no axis of a parameter can grow."""
        rng = random.Random(seed)
        axes = self.program.axes
        atoms = {atom for terms in axes.parameters.values() for term in terms for atom in term.atoms}
        atoms = sorted((atom for atom in atoms if atom not in axes.frozen), key=lambda atom: atom.number)
        if not atoms:
            return None
        chosen = [atom for atom in atoms if rng.random() < 0.6] or [rng.choice(atoms)]
        sizes = {atom: self._size(rng, int(str(atom.size))) for atom in chosen}
        prover = Prover(axes, dict(sizes))
        blocks = facts_of(rng, prover, self.program)
        assignment = Assignment(blocks, self._numbers(rng, prover, blocks))
        numbers = {place: literal(self.program.graph, place) * by for place, by in assignment.numbers.items()}
        graph = resize_graph(axes, sizes, numbers)
        new: dict[str, Value] = {}
        for node in graph.nodes:
            if node.op == "parameter":
                name = str(node.args[0])
                new[node.name] = self._parameter(rng, name, sizes, blocks)
            else:
                new[node.name] = run(node, new)
        return Grown(self.program, sizes, assignment, self.maker.values, new)

    def _size(self, rng: random.Random, old: int) -> int:
        return rng.choice([2 * old, 2 * old, 3 * old, old + 1])

    def _numbers(self, rng: random.Random, prover: Prover, blocks: Mapping[Block, int]) -> dict[Number, float]:
        """Numbers in the graph multiplied: as rows need it, or at random."""
        how = rng.random()
        if how < 0.4:
            prover.begin(Assignment(blocks))
            prover.context.proposing = True
            for node in self.program.graph.nodes:
                prover.step(node)
            return dict(prover.context.numbers)
        places = list(numbers_in(self.program.graph)) if how > 0.8 else []
        return {place: rng.choice([2.0, 0.5]) for place in places if rng.random() < 0.5}

    def _parameter(
        self, rng: random.Random, name: str, sizes: Mapping[Atom, int], blocks: Mapping[Block, int]
    ) -> Tensor:
        old = self.program.tensors[name]
        terms = self.program.axes.parameters[name]
        new = old.new_zeros([int(str(term.resized(sizes))) for term in terms])
        shares = next((multiple(f) for b, f in blocks.items() if b.parameter == name and kind(f) == "share"), None)
        if shares is not None:
            return shared(rng, old, [positions(term, sizes) for term in terms], shares.scale, shares.along)
        for place, cell in tensor_cells(terms, sizes):
            number = next((f for b, f in blocks.items() if (b.parameter, b.cell) == (name, place)), SAME)
            cell.put(new, held(rng, number, old, cell))
        return new


def held(rng: random.Random, number: int, old: Tensor, cell: Cell) -> Tensor:
    """Values that a fact allows in a cell."""
    copies = cell.copies(old)
    if not old.is_floating_point():
        return copies if number >= SAME else copies.flip(0) if copies.dim() else copies
    if number == ZERO:
        return torch.zeros_like(copies)
    if free(number):
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        values = torch.randn(copies.shape, generator=generator, dtype=torch.float64)
        if number in (POSITIVE, NONNEGATIVE):
            return values.abs() + 0.1
        style = rng.random()
        if style < 0.2:
            return -values.abs() - 0.1
        return values * (torch.rand(copies.shape, generator=generator) < 0.6) if style < 0.6 else values
    said = multiple(number)
    return said.scale * (cell.means(old) if said.kind == "mean" else copies) + said.shift


def shared(
    rng: random.Random, old: Tensor, at: Sequence[Sequence[Position]], scale: float, along: Sequence[int]
) -> Tensor:
    """Random values of which those along some dimensions that copy the same unit add up to a multiple of the old."""
    left = old * scale
    for dim, dimension in enumerate(at):
        if dim not in along:
            left = left.index_select(dim, torch.tensor([position.copy for position in dimension]))
    left = left.clone()
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    new = torch.randn([len(dimension) for dimension in at], generator=generator, dtype=torch.float64)
    units = {
        place: tuple(at[d][i].copy if d in along else i for d, i in enumerate(place))
        for place in np.ndindex(*new.shape)
    }
    last = {unit: place for place, unit in units.items()}
    for place, unit in units.items():
        new[place] = left[unit] if last[unit] == place else new[place]
        left[unit] -= new[place]
    return new


def facts_of(rng: random.Random, prover: Prover, program: Program) -> dict[Block, int]:
    """Facts for all blocks: of one kind for a parameter, or of any; old ones multiplied now and then."""
    found: dict[Block, int] = {}
    style = rng.choice(["same", "same", "each"])
    common, scale = rng.choice(["copy", "mean", "zero", "free"]), rng.choice(SCALES)
    for name in program.graph.parameters:
        if not program.tensors[name].is_floating_point():
            found |= {block: SAME for block in prover.blocks_of(name) if block.dims}
            continue
        how, by = (common, scale) if style == "same" and rng.random() < 0.7 else (
            rng.choice(["copy", "mean", "zero", "free", "any"]), rng.choice(SCALES))  # fmt: skip
        blocks = list(prover.blocks_of(name))
        dims = sorted({dim for block in blocks for dim in block.dims})
        if dims and rng.random() < 0.25:
            share = fact("share", by, along=tuple(sorted(rng.sample(dims, rng.choice([1, 1, len(dims)])))))
            found |= {block: ANY if block.dims and rng.random() < 0.02 else share for block in blocks}
            continue
        shift = rng.choice([0.5, 1.0, -1.0]) if rng.random() < 0.1 else 0.0
        for block in prover.blocks_of(name):
            factor = by if rng.random() < 0.9 else rng.choice(SCALES)
            kind_ = "affine" if shift else "same"
            if block.dims:
                pool = {
                    "copy": [fact(kind_, factor, shift)], "mean": [fact("mean", factor)], "zero": [ZERO],
                    "free": [ANY, ANY, POSITIVE],
                    "any": [fact("same", factor), fact("mean", factor), ZERO, ANY, POSITIVE, NONNEGATIVE],
                }  # fmt: skip
                found[block] = rng.choice(pool[how])
            elif factor != 1 or shift:
                found[block] = fact(kind_, factor, shift)
    return found


def numbers_in(graph: Graph) -> list[Number]:
    """The floating numbers in a graph that are not zero."""
    found: list[Number] = []
    for node in graph.nodes:
        found += [(node.name, ("args", i)) for i, a in enumerate(node.args) if isinstance(a, float) and a]
        found += [(node.name, (name,)) for name, a in node.kwargs if isinstance(a, float) and a]
    return found


def literal(graph: Graph, place: Number) -> float:
    name, (first, *rest) = place
    value = graph[name].args[int(rest[0])] if first == "args" else dict(graph[name].kwargs)[str(first)]
    assert isinstance(value, int | float)
    return float(value)


__all__ = ["MEAN", "Cell", "Grower", "Grown", "Maker", "kind", "wrong"]

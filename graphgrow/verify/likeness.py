"""The judge of programs that write one function in other operators: masks, factors of weights, multipliers.

Both are brought into one form by laws (`prove.forms`); then the weights are compared that stand in the same places. The
laws themselves are tested: a program is run against its own form, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from graphgrow.certificate import Bound, Move, Proof, Test
from graphgrow.graph import Graph, Kind, Ref
from graphgrow.module import lower
from graphgrow.program import Program
from graphgrow.prove.forms import Form, one_form
from graphgrow.prove.products import Product
from graphgrow.rewrite.reading import same
from graphgrow.verify.align import Alignment
from graphgrow.verify.depth import shrunk_alike
from graphgrow.verify.equivalence import FULL_SIZE, Pair, as_stored, runners, sizes_to_try, trial, verdict

SQUARINGS = 6  # a norm is found within rank ** (1 / 2 ** (SQUARINGS + 2)): 1.03 at rank 1000
ROUNDING = 1.001  # what these products, in float32, may be off by
ULPS = 2  # half of one for each: both factors, the weight itself if it was a product, and the fit that spreads this


@dataclass(frozen=True)
class Likeness:
    """Two programs, and both in the form of the smaller one. `products` says which weights are products in the larger
    one; `rounded` of which weights they are the factors, but for rounding."""

    first: Program
    second: Program
    old: Program
    new: Program
    form: Form
    exact: Mapping[str, Tensor]  # of the larger one, in float64 where they are products
    rounded: frozenset[str]

    @property
    def _larger(self) -> tuple[Program, Program]:
        """The program with more operators, and its form."""
        turned = len(self.first.graph.nodes) > len(self.second.graph.nodes)
        return (self.first, self.old) if turned else (self.second, self.new)

    @cached_property
    def differing(self) -> tuple[str, ...]:
        """The tensors of the form that do not hold the same."""
        return tuple(n for n, t in self.old.tensors.items() if t.is_meta or not same(t, self.new.tensors[n]))

    @property
    def numbered(self) -> bool:
        """Whether numbers in the graphs differ."""
        return self.form.plain != self.form.other

    def explain(self, proof: Proof) -> str:
        """What the proof says, with the laws that brought both programs into one form."""
        laws = [f"{len(self.form.products)} weights are products"] if self.form.products else []
        laws += [f"{len(self.rounded)} of them but for the rounding of their factors"] if self.rounded else []
        masked = sum(origin not in self.form.products and self._larger[0].graph[origin].op != "parameter"
                     for origin in self.form.weights.values())  # fmt: skip
        laws += [f"{masked} are computed from stored tensors"] if masked else []
        return "; ".join([proof.why, *laws])

    @property
    def removed(self) -> tuple[str, ...]:
        """The parameters of the old program that the new one does not have."""
        kinds = self.first.kinds
        return tuple(n for n in self.first.tensors if kinds[n].role == "parameter" and n not in self.second.tensors)

    def fresh(self) -> Iterator[Move]:
        """Which parameters belong where old ones did that they have nothing of: factors, and products of factors."""
        larger = self._larger[0]
        for name, origin in self.form.weights.items():
            if origin in self.form.products:
                parts = list(_parts(larger, origin, self.form.products))
                pairs = [(name, part) for part in parts] if larger is self.second else [(parts[0], name)]
                for old, new in pairs:
                    if old in self.first.tensors and new in self.second.tensors and new not in self.first.tensors:
                        yield Move(old=old, new=new, shape=tuple(self.second.tensors[new].shape), fresh=True)

    def bounds(self) -> Iterator[Bound]:
        """By how much weights differ."""
        for name in self.differing:
            old, new = self.old.tensors[name].detach().double(), self.exact_of(name).detach().double()
            difference, made = new - old, self.form.products.get(self.form.weights.get(name, ""))
            yield Bound(
                at=name, value=spectral_norm(_matrix(difference, made)),
                share=_norm(difference) / (_norm(old) or 1.0),
            )  # fmt: skip

    def exact_of(self, name: str) -> Tensor:
        return self.exact[name] if self._larger[1] is self.new else self.new.tensors[name]

    def test(self, seed: int, stored: bool) -> Test:
        """Run the larger program against its form; with `stored`, also both programs as they are stored."""
        small = self.first.size + self.second.size > FULL_SIZE
        found = self
        if small:
            shrunk = likeness(*shrunk_alike(self.first, self.second))
            if isinstance(shrunk, str):
                return Test(holds=False, why=f"not run: the programs can't be shrunk alike ({shrunk})", seed=seed)
            found = shrunk
        program, form = found._larger
        pair = Pair(form, program, Alignment())
        before, after = runners(form, found.exact), runners(program, program.tensors)
        trials = [trial(pair, before, after, sizes, seed + i) for i, sizes in enumerate(sizes_to_try(form))]
        if stored and not small:
            trials.append(as_stored(self.first, self.second, seed))
        return verdict(trials, small, seed)


def likeness(old: Program, new: Program) -> Likeness | str:
    """Both programs in one form; or, as text, why there is none."""
    turned = len(old.graph.nodes) > len(new.graph.nodes)
    small, large = (new, old) if turned else (old, new)
    form = one_form(small.graph, large.graph)
    if isinstance(form, str):
        return form
    if old.dtype != new.dtype:
        return f"weights in {old.dtype} and {new.dtype}"
    mine, exact, stored, rounded = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor](), set[str]()
    for name, origin in form.weights.items():
        held = _value(small, form.computed[name], {}) if name in form.computed else small.tensors[name]
        value = _value(large, origin, form.products)
        if origin in form.products and _rounds_to(held, value, large, form.products[origin], form.products):
            rounded.add(name)
            stored[name] = held
        else:
            stored[name] = value.to(held.dtype) if origin in form.products else value
        mine[name], exact[name] = held, value
    kinds = {name: small.kinds.get(name, Kind("parameter")) for name in form.weights}
    plain = small.replace(graph=form.plain, tensors=mine, kinds=kinds, aliases={}, journal=())
    other = plain.replace(graph=form.other, tensors=stored)
    pair = (other, plain) if turned else (plain, other)
    return Likeness(old, new, *pair, form, exact, frozenset(rounded))


def _value(program: Program, name: str, products: Mapping[str, Product]) -> Tensor:
    """What a node that is computed from stored tensors holds; a product in float64."""
    if made := products.get(name):
        outer, inner = (_value(program, part, products).detach().double() for part in (made.outer, made.inner))
        return torch.einsum(made.einsum, outer, inner)
    node = program.graph[name]
    if node.op == "parameter":
        return program.tensors[str(node.args[0])]
    graph = _cone(program.graph, name)
    tensors = {held: program.tensors[held] for held in graph.parameters}
    with torch.no_grad():
        return lower(graph, tensors, {held: program.kinds[held] for held in tensors}, {}, program.dtype).eval()()


def _parts(program: Program, name: str, products: Mapping[str, Product]) -> Iterator[str]:
    """The parameters that a weight is made of."""
    if made := products.get(name):
        yield from _parts(program, made.outer, products)
        yield from _parts(program, made.inner, products)
        return
    held = _cone(program.graph, name).parameters
    yield from (parameter for parameter in held if program.kinds[parameter].role == "parameter")


def _cone(graph: Graph, name: str) -> Graph:
    """What one node is computed from."""
    needed, waiting = {name}, [name]
    while waiting:
        new = set(graph[waiting.pop()].operands()) - needed
        needed |= new
        waiting += new
    return Graph(tuple(sorted((graph[n] for n in needed), key=lambda node: graph.order[node.name])), Ref(name))


def _rounds_to(held: Tensor, value: Tensor, program: Program, made: Product, products: Mapping[str, Product]) -> bool:
    """Whether a product is a weight but for rounding: of its factors, and of the weight itself where but for that it
    would have their rank (a fit spreads it over rows and columns). An entry is off by as many units of what is
    multiplied and summed there, which the product of the norms bounds (Cauchy and Schwarz): that is allowed."""
    if held.is_meta or value.is_meta:
        return False
    outer, inner = (_value(program, part, products).detach().double() for part in (made.outer, made.inner))
    *letters, result = made.letters
    terms = math.prod(n for n, c in zip(outer.shape, letters[0], strict=True) if c not in result)
    unit = ULPS * torch.finfo(held.dtype).eps + terms * torch.finfo(torch.float64).eps  # of factors, and of this sum
    free = ["".join(c for c in own if c in result) for own in letters]
    squares = zip(letters, free, (outer**2, inner**2), strict=True)
    norms = [torch.einsum(f"{own}->{kept}", square).sqrt() for own, kept, square in squares]
    allowed = unit * torch.einsum("{},{}->{}".format(*free, result), *norms)
    return bool(((held.detach().double() - value).abs() <= allowed).all())


def _matrix(difference: Tensor, made: Product | None) -> Tensor:
    """A weight as a matrix: of a product, with the outer factor's dimensions as rows."""
    if difference.dim() < 2:
        return difference.reshape(1, -1)
    if made is None:
        return difference.flatten(1)
    rows = [dim for dim, letter in enumerate(made.letters[2]) if letter in made.letters[0]]
    columns = [dim for dim in range(difference.dim()) if dim not in rows]
    return difference.permute(*rows, *columns).flatten(len(rows)).flatten(0, len(rows) - 1)


def _norm(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().sum()))


def spectral_norm(matrix: Tensor) -> float:
    """An upper bound of a matrix's largest singular value, at most rank ** (1 / 2 ** (SQUARINGS + 2)) times too
    large: the Frobenius norm of a power of the Gram matrix."""
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0.0:
        return 0.0
    matrix = (matrix / scale).float()
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    gram, log, power = matrix @ matrix.mT, 0.0, 2.0
    for _ in range(SQUARINGS):
        norm = _norm(gram)
        log, power = log + math.log(norm) / power, 2 * power
        gram = (gram / norm) @ (gram / norm)
    return scale * ROUNDING * math.exp(log + math.log(_norm(gram)) / power)

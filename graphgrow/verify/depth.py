"""The judge of programs that differ in depth: value numbering over both graphs, then numbers.

What a new layer adds must be zero whatever its other weights hold: parameters that hold one value everywhere are taken
as facts, carried through the new graph by the rows of the prover, and set free again where no sum needs them. Both
graphs are then numbered (`prove.numbering`): every output must have one number in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from graphgrow import ops
from graphgrow.certificate import WHOLE, Constraint, Growth, Proof, Test
from graphgrow.digest import fingerprint
from graphgrow.errors import CheckFailed
from graphgrow.graph import Graph, Node, Ref
from graphgrow.layers import gains, stacks
from graphgrow.program import Program
from graphgrow.prove.numbering import Numbering, kept, needed
from graphgrow.prove.silence import is_bias, silenced
from graphgrow.prove.zeros import Zeros
from graphgrow.rewrite.blocks import fill_normal
from graphgrow.verify.align import Alignment
from graphgrow.verify.equivalence import FULL_SIZE, Pair, runners, sizes_to_try, trial, verdict
from graphgrow.verify.explain import depth_steps
from graphgrow.verify.gradients import DRAWS, gradients_of
from graphgrow.verify.mixtures import Mixture, copies, dead_parameters, growth, mixtures, stacked
from graphgrow.verify.reduce import first_units, shrunk_to


@dataclass(frozen=True)
class Deepened:
    """What was found: the proof, which stacks grew, and which tensors of the new program are new."""

    proof: Proof
    growth: tuple[Growth, ...]
    new: frozenset[str]
    mixtures: tuple[Mixture, ...] = ()

    @property
    def constrained(self) -> frozenset[str]:
        return frozenset(row.parameter for row in self.proof.constraints)


def prove_depth(old: Program, new: Program) -> Deepened:
    """Whether every output of `new` is that of `old` whatever the unconstrained tensors of new layers hold. Raises
    CheckFailed for programs whose inputs or outputs differ."""
    _same_face(old, new)
    judge = _Judge(old, new)
    grown = tuple(growth(new, found) for found in judge.mixtures) or _growth(old.graph, new.graph)
    return Deepened(judge.proof(), grown, judge.added, judge.mixtures)


def _same_face(old: Program, new: Program) -> None:
    if [(n.name, n.type) for n in old.graph.inputs] != [(n.name, n.type) for n in new.graph.inputs]:
        raise CheckFailed(found="graphs that take different inputs", where="the inputs")
    kinds = [[program.graph[name].type for name in program.graph.output_names] for program in (old, new)]
    if kinds[0] != kinds[1] or old.dtype != new.dtype:
        raise CheckFailed(found="outputs or weights of different types", where="the outputs")


def _growth(old: Graph, new: Graph) -> tuple[Growth, ...]:
    pairs = zip(stacks(old), stacks(new), strict=False)
    return tuple(
        Growth(axis=a.name, old=len(a.layers), new=len(b.layers)) for a, b in pairs if len(a.layers) != len(b.layers)
    )


@dataclass(frozen=True)
class _Judge:
    old: Program
    new: Program

    @cached_property
    def contents(self) -> tuple[dict[str, Hashable], dict[str, Hashable]]:
        """What the tensors of both programs hold: equal for equal contents. Those without values go by the names of
        their nodes."""
        found: list[dict[str, Hashable]] = []
        for program in (self.old, self.new):
            nodes = {name: node.name for name, node in program.graph.parameters.items()}
            found.append({
                name: (t.dtype, t.shape, nodes.get(name) if t.is_meta else fingerprint(t))
                for name, t in program.tensors.items()
            })  # fmt: skip
        return found[0], found[1]

    @cached_property
    def added(self) -> frozenset[str]:
        """The tensors of the new program that the old one has not. (That decides only which of them are looked at for
        constraints: what counts as equal are contents.)"""
        before, after = self.contents
        places = {node.name: before[name] for name, node in self.old.graph.parameters.items()}
        here = {node.name: after[name] for name, node in self.new.graph.parameters.items()}
        if all(here.get(node) == content for node, content in places.items()):  # nodes kept their names
            nodes = self.new.graph.parameters
            return frozenset(n for n in self.new.tensors if n not in nodes or nodes[n].name not in places)
        have = set(before.values())
        stay = {str(n.args[0]) for n in self.new.graph.parameters.values() if here[n.name] == places.get(n.name)}
        odd = {n for n, t in self.new.tensors.items() if after[n] not in have or constant(t) is not None}
        return frozenset(odd - stay)

    @cached_property
    def known(self) -> tuple[Zeros, dict[str, float]]:
        """The zeros and ones of the new program, and the constants of which they are made."""
        constants = silent(self.new, self.added)
        return Zeros(self.new.axes, constants, self.new.fixed), constants

    @cached_property
    def numbers(self) -> tuple[Numbering, dict[str, int], dict[str, int]]:
        """The numbers of all values of both graphs."""
        numbering = Numbering()
        before = numbering.graph(self.old.graph, self.contents[0], {}, stacked(self.old, self.old))
        numbering.averages.clear()
        after = numbering.graph(self.new.graph, self.contents[1], self.known[0].found(), stacked(self.new, self.old))
        return numbering, before, after

    @cached_property
    def mixtures(self) -> tuple[Mixture, ...]:
        """The mixtures that the new program has in place of dense parts."""
        numbering, before, after = self.numbers
        found = mixtures(self.new.graph, numbering, after, set(before.values()))
        return tuple(one for one in found if one.experts)

    def proof(self) -> Proof:
        graph = self.new.graph
        (known, constants), (_, before, after) = self.known, self.numbers
        found = known.found()
        if why := self._differs(before, after):
            return Proof(holds=False, why=why)
        steps = depth_steps(graph, known, {node.name: gone for node, gone in _left_out(graph, found)})
        rows = (
            *self._constraints(known, constants, _used(graph, found)),
            *(row for one in self.mixtures for row in copies(self.new, one)),
        )
        why = f"every output is the same value; {len(graph.nodes) - len(self.old.graph.nodes)} nodes were added"
        return Proof(holds=True, why=why, constraints=rows, steps=steps)

    def _differs(self, before: Mapping[str, int], after: Mapping[str, int]) -> str:
        """The first value that the old program does not have, as text; empty when all outputs are there."""
        old, new = self.old.graph, self.new.graph
        known = set(before.values())
        outputs = zip(old.output_names, new.output_names, strict=True)
        counted = {before[node.name] for node in old.nodes if ops.kind(node.op) == "counter"}
        missing = counted - set(after.values())
        if all(before[a] == after[b] for a, b in outputs) and not missing:
            return ""
        odd = next((node for node in new.nodes if node.name in after and after[node.name] not in known), None)
        if odd is None:
            return "outputs in another order"
        return f"{odd.op} ({odd.source or odd.name}) computes what the old program does not"

    def _constraints(
        self, known: Zeros, constants: Mapping[str, float], used: Mapping[str, str]
    ) -> Iterator[Constraint]:
        """The constants without which a sum would not keep its stream."""
        graph = self.new.graph
        layer = {name: stack.name for stack in stacks(graph) for one in stack.layers for name in one.tensors}
        for name in sorted(constants, key=lambda name: graph.order[graph.parameters[name].name]):
            if reason := known.release(name, used):
                value = constants[name]
                yield Constraint(
                    parameter=name, dim=WHOLE, axis=layer.get(name, ""), fill="zero" if value == 0 else "constant",
                    text="zero" if value == 0 else f"{value:g}", reason=reason,
                )  # fmt: skip


def _left_out(graph: Graph, known: Mapping[str, float]) -> Iterator[tuple[Node, str]]:
    """The sums and products that are one of their operands, each with the zero or one that it is left without."""
    live = needed(graph, known)
    for node in graph.nodes:
        stays = kept(graph, node, known) if node.name in live and known.get(node.name) != 0 else None
        if stays is not None:
            yield node, next(name for name in node.operands() if name != stays)


def _used(graph: Graph, known: Mapping[str, float]) -> dict[str, str]:
    """The zeros and ones that the numbering relies on, with the operator that needs each."""
    zeros = [name for name in needed(graph, known) if known.get(name) == 0]
    found = {name: f"{graph[name].op} ({graph[name].source or name})" for name in zeros}
    return found | {gone: f"{node.op} ({node.source or node.name})" for node, gone in _left_out(graph, known)}


def silent(program: Program, names: Set[str]) -> dict[str, float]:
    """Of some tensors, the parameters that could make something zero, with the number they hold everywhere: zeros, and
    a number that is taken away; and gains of one. Without values, those that would have to."""
    found: dict[str, float] = {}
    for name in names & program.graph.parameters.keys() - program.fixed:
        value = constant(program.tensors[name])
        users = program.graph.users[program.graph.parameters[name].name]
        gain = value == 1 and any(gains(program.graph, user) for user in users)
        if value is not None and (value == 0 or gain or _taken_away(program.graph, name, value)):
            found[name] = value
    for layer in (layer for stack in stacks(program.graph) for layer in stack.layers):
        if all(name in names and program.tensors[name].is_meta for name in layer.tensors):
            found |= silenced(program.graph, layer, names - program.fixed)
    return found


def _taken_away(graph: Graph, parameter: str, value: float) -> bool:
    """Whether a number is added to a parameter that makes it zero (the 1 of 1 + gain)."""
    waiting = [graph.parameters[parameter]]
    while waiting:
        for user in graph.users[waiting.pop().name]:
            if user.op in ("aten.add.Tensor", "aten.sub.Tensor"):
                numbers = [a for a in user.args if isinstance(a, int | float)]
                if value in numbers or -value in numbers:
                    return True
            elif user.op in ("aten.to.dtype", "aten.reshape.default", "aten.mul.Tensor"):
                waiting.append(user)
    return False


def constant(tensor: Tensor) -> float | None:
    """The one value that a floating tensor holds everywhere."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return None
    first = tensor.detach().reshape(-1)[0]
    value = float(first)
    return value if torch.isfinite(first) and bool((tensor == first).all()) else None


def shallower(old: Program, new: Program) -> Program | None:
    """The new program without its new layers, under the old program's names: what is left to compare when axes have
    grown too. None where nodes that the old program does not have do more than nothing."""
    names = old.graph.by_name
    parameters = {node.name: name for name, node in old.graph.parameters.items()}
    tensors = {node.name: new.tensors[name] for name, node in new.graph.parameters.items()}
    added = {name for name, node in new.graph.parameters.items() if node.name not in names}
    constants = silent(new, added)
    if not constants or any(name not in tensors for name in parameters):
        return None
    contents = {name: ("name", name) for name in new.tensors}
    numbers = Numbering().graph(new.graph, contents, Zeros(new.axes, constants, new.fixed).found())

    def kept(name: str) -> str | None:
        while name not in names:
            same = (operand for operand in new.graph[name].operands() if numbers.get(operand) == numbers.get(name, -1))
            found = next(same, None)
            if found is None:
                return None
            name = found
        return name

    nodes: list[Node] = []
    for node in new.graph.nodes:
        if node.name not in names:
            continue
        read = {name: kept(name) for name in node.operands()}
        if None in read.values():
            return None
        changed = node.map(lambda a: Ref(read[a.name] or "") if isinstance(a, Ref) else a)  # noqa: B023
        args = (parameters.get(node.name, ""),) if node.op == "parameter" else changed.args
        nodes.append(replace(changed, args=args))
    nodes.sort(key=lambda node: old.graph.order[node.name])
    ends = zip(old.graph.output_names, new.graph.output_names, strict=True)
    if len(nodes) != len(old.graph.nodes) or any(kept(theirs) != ours for ours, theirs in ends):
        return None
    graph = replace(new.graph, nodes=tuple(nodes), outputs=old.graph.outputs)
    moved = {name: tensors[node] for node, name in parameters.items()}
    held = {name: moved.get(name, new.tensors.get(name, tensor)) for name, tensor in old.tensors.items()}
    return old.replace(graph=graph, tensors=held, journal=())


def test_depth(old: Program, new: Program, found: Deepened, seed: int) -> Test:
    """Compare outputs and input gradients on several sizes, with random values in what the proof leaves free."""
    small = old.size + new.size > FULL_SIZE
    return compared_depth(*(shrunk_alike(old, new) if small else (old, new)), found, small, seed)


def compared_depth(old: Program, new: Program, found: Deepened, small: bool, seed: int) -> Test:
    """The test of two programs; `small` tells that they were shrunk."""
    pair = Pair(old, new, Alignment())
    before, drawn = runners(old, old.tensors), runners(new, drawn_layers(new, found, seed))
    trials = [trial(pair, before, drawn, sizes, seed + index) for index, sizes in enumerate(sizes_to_try(old))]
    trials.append(trial(pair, before, runners(new, new.tensors), sizes_to_try(old)[0], seed))
    return verdict(trials, small, seed)


def drawn_layers(new: Program, found: Deepened, seed: int, *, zeros: bool = True) -> dict[str, Tensor]:
    """The tensors of the new program in float64, with random values in the parameters that the proof leaves free (with
    `zeros`, in those too that are zero)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(new.tensors)
    for name in sorted(found.new - found.constrained - new.fixed):
        value = tensors[name].detach()
        if value.is_floating_point() and (zeros or bool(value.count_nonzero())):
            deviation = float(value.double().std(unbiased=False)) or 0.1
            tensors[name] = torch.empty(value.shape, dtype=torch.float64)
            fill_normal(tensors[name], float(value.double().mean()), deviation, generator)
    return tensors


def dead_layers(old: Program, new: Program, found: Deepened, seed: int) -> list[str]:
    """The new layers none of whose constrained parameters ever gets a gradient, each by the name of one. Biases do not
    count: they learn even where nothing comes out of a layer but them."""
    if old.size + new.size > FULL_SIZE:
        _, new = shrunk_alike(old, new)
    if found.mixtures:
        return dead_parameters(new, {name for one in found.mixtures for name in (*one.experts, *one.others)}, seed)
    weights = {name for name in found.constrained if not is_bias(new.graph, name)}
    alive: set[str] = set()
    for draw in range(DRAWS):
        drawn = drawn_layers(new, found, seed + draw, zeros=False)
        gradients = gradients_of(new, drawn, weights, seed + draw)
        if gradients is None:
            return []
        alive.update(name for name, gradient in gradients.items() if bool(gradient.count_nonzero()))
    layers = [layer for stack in stacks(new.graph) for layer in stack.layers]
    groups = [[name for name in layer.tensors if name in weights] for layer in layers]
    return [names[0] for names in groups if names and not alive.intersection(names)]


def shrunk_alike(old: Program, new: Program) -> tuple[Program, Program]:
    """Both programs with the first units of every axis only: of one that new layers alone have, as many."""
    kept_old = first_units(old)
    kept_new = first_units(new)
    nodes = {node.name: name for name, node in new.graph.parameters.items()}
    for name, node in old.graph.parameters.items():
        twin = nodes.get(node.name)
        for term, other in zip(old.axes.parameters[name], new.axes.parameters[twin] if twin else (), strict=False):
            for a, b in zip(term.atoms, other.atoms, strict=False):
                if (a in kept_old) != (b in kept_new):
                    kept_old.pop(a, None)
                    kept_new.pop(b, None)
    return shrunk_to(old, kept_old), shrunk_to(new, kept_new)

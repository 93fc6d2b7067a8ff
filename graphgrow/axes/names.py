"""Names for people: each axis that lives in parameters is named by what it does in the graph.

What is looked at: which contractions emit an axis, sum over it or go along it, whether two activations are multiplied
over it (attention), whether an index picks from it, whether residual additions join it, whether it is seen outside.
Names of modules only tell where an axis is (`mlp@blocks.0`), never what it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from graphgrow import ops
from graphgrow.axes.term import Atom, Product, Term
from graphgrow.graph import Graph, Node, TensorType
from graphgrow.sizes import Dim

if TYPE_CHECKING:
    from graphgrow.axes.infer import Axes


@dataclass(frozen=True)
class Site:
    """One dimension of a parameter on an axis, and its part there: `emits`, `contracts` or `aligns`."""

    parameter: str
    dim: int
    part: str


@dataclass(frozen=True)
class Named:
    """An axis with its name (`mlp@blocks.0`), role and sites. `inner`: it neither carries a residual stream nor is
    seen at inputs or outputs."""

    name: str
    role: str
    atom: Atom
    sites: tuple[Site, ...]
    inner: bool
    frozen: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()

    @property
    def size(self) -> Dim:
        return self.atom.size

    def __str__(self) -> str:
        return self.name


@dataclass
class _Facts:
    """What was seen of one atom."""

    emitted: dict[str, str] = field(default_factory=dict[str, str])  # parameter -> kind of operator
    contracted: dict[str, str] = field(default_factory=dict[str, str])
    aligned: dict[str, str] = field(default_factory=dict[str, str])
    roles: Counter[str] = field(default_factory=Counter[str])
    joined: bool = False
    between: bool = False  # something else than products with weights makes or reads activations with it
    visible: set[str] = field(default_factory=set[str])


def name_atoms(axes: Axes) -> tuple[Named, ...]:
    """All axes that live in parameters, in the order they are met."""
    seen = _look(axes)
    places: dict[Atom, list[tuple[str, int]]] = {}
    for parameter, terms in axes.parameters.items():
        for dim, term in enumerate(terms):
            for atom in (atom for atom in term.atoms if isinstance(atom.size, int)):
                places.setdefault(atom, []).append((parameter, dim))
    logits = {atom.size for atom, facts in seen.items() if facts.roles["vocab"]}
    roles = {atom: _role(atom, seen[atom], logits) for atom in places}
    names = _names(roles, places, seen)
    return tuple(
        Named(
            names[atom],
            roles[atom],
            atom,
            tuple(Site(parameter, dim, _part(seen[atom], parameter)) for parameter, dim in found),
            _inner(seen[atom]),
            axes.frozen.get(atom, ()),
            axes.ordered.get(atom, ()),
        )
        for atom, found in places.items()
    )


def _part(facts: _Facts, parameter: str) -> str:
    parts = [word for word, found in (("emits", facts.emitted), ("contracts", facts.contracted)) if parameter in found]
    return " and ".join(parts) or "aligns"


def _atoms(terms: Iterable[Term]) -> list[Atom]:
    return [atom for term in terms for atom in term.atoms]


def _look(axes: Axes) -> dict[Atom, _Facts]:
    seen: dict[Atom, _Facts] = defaultdict(_Facts)
    weights = from_parameters(axes.graph)
    _contractions(axes, weights, seen)
    _norm_groups(axes, seen)
    _lookups(axes, weights, seen)
    _choices(axes, seen)
    _joins(axes, weights, seen)
    _between(axes, weights, seen)
    for node in axes.graph.inputs:
        for atom in _atoms(axes.terms[node.name]):
            seen[atom].visible.add("input")
    for name in axes.graph.output_names:
        for atom in _atoms(axes.terms.get(name, ())):
            seen[atom].visible.add("output")
    return seen


def from_parameters(graph: Graph) -> Mapping[str, tuple[str, ...]]:
    """Nodes of fixed size computed from parameters alone (a layout, a cast, a normalised weight), or a choice of a
    parameter's matrices (experts); with the parameters' names."""
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op == "parameter":
            found[node.name] = (str(node.args[0]),)
            continue
        operands = list(dict.fromkeys(node.operands()))
        if not operands or operands[0] not in found:
            continue
        if ops.kind(node.op) in ("index", "index_select") and len(graph[operands[0]].shape) > 2:
            found[node.name] = found[operands[0]]
        elif all(name in found for name in operands) and _static(node):
            found[node.name] = tuple(dict.fromkeys(p for name in operands for p in found[name]))
    return found


def _static(node: Node) -> bool:
    return not isinstance(node.type, TensorType) or all(isinstance(size, int) for size in node.shape)


def _contractions(axes: Axes, weights: Mapping[str, tuple[str, ...]], seen: dict[Atom, _Facts]) -> None:
    for contraction, shared, summed, free in axes.contractions:
        mine = [(index, p) for index, name in enumerate(contraction.operands) for p in weights.get(name, ())]
        if not mine and len(contraction.operands) == 2:
            for role, terms in (("heads", shared), ("key", summed), ("value", [t for part in free for t in part])):
                for atom in _atoms(terms):
                    seen[atom].roles[role] += 1
        kind = ops.kind(contraction.node.op)
        inside = [atom for atom in _atoms(summed) if atom not in axes.frozen]
        if kind == "convolution":
            for atom in _atoms(shared if inside else ()):
                seen[atom].roles["groups"] += 1
            for atom in _atoms(axes.terms[contraction.operands[1]][2:]):
                seen[atom].roles["kernel"] += 1
        for index, parameter in mine:
            for atom in _atoms(free[index] if index < len(free) else ()):
                seen[atom].emitted[parameter] = kind
            for atom in _atoms(summed):
                seen[atom].contracted[parameter] = kind
            for atom in _atoms(shared):
                seen[atom].aligned[parameter] = kind


def _norm_groups(axes: Axes, seen: dict[Atom, _Facts]) -> None:
    """Group norms: the outer factor of the channels."""
    for node in axes.graph.nodes:
        if ops.kind(node.op) == "group_norm":
            channels = axes.terms[node.name][1]
            if isinstance(channels, Product):
                for atom in channels.parts[0].atoms:
                    seen[atom].roles["groups"] += 1


def _lookups(axes: Axes, weights: Mapping[str, tuple[str, ...]], seen: dict[Atom, _Facts]) -> None:
    counted, factors = _from_order(axes.graph), _factors(axes, weights)
    for lookup, term in axes.lookups:
        first = next(iter(lookup.node.operands()))
        if first not in weights:
            continue
        parameter = weights[first][0]
        role = "positions" if counted[lookup.index] != {"input"} else "vocab"
        if lookup.node.name in factors:
            role = "experts"
        for atom in term.atoms:
            seen[atom].roles[role] += 1
        if ops.kind(lookup.node.op) == "embedding":
            for atom in _atoms(axes.terms[first][1:]):
                seen[atom].emitted[parameter] = "embedding"


def _choices(axes: Axes, seen: dict[Atom, _Facts]) -> None:
    """Routers: the largest are taken of an axis along which matrices are stacked."""
    for node in axes.graph.nodes:
        if ops.kind(node.op) == "topk":
            dim = node.argument(2, "dim", -1)
            assert isinstance(dim, int)
            for atom in axes.terms[next(node.operands())][dim].atoms:
                weights = {**seen[atom].emitted, **seen[atom].contracted, **seen[atom].aligned}
                stacked = [p for p, kind in weights.items() if kind == "contraction" and len(axes.parameters[p]) > 2]
                seen[atom].roles["experts"] += len(stacked)


def _factors(axes: Axes, weights: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The weights that are multiplied and summed over, and what they are computed from."""
    found: set[str] = set()
    waiting = [name for contraction, *_ in axes.contractions for name in contraction.operands]
    while waiting:
        name = waiting.pop()
        if name in weights and name not in found:
            found.add(name)
            waiting += axes.graph[name].operands()
    return found


def _from_order(graph: Graph) -> Mapping[str, set[str]]:
    """Where an index tensor's values come from: inputs, counting (`arange`, `cumsum`), or what the model holds."""
    found: dict[str, set[str]] = {}
    for node in graph.nodes:
        kind = ops.kind(node.op)
        if kind == "input":
            found[node.name] = {"input"}
        elif kind in ("arange", "ordered", "factory", "parameter"):
            found[node.name] = {kind}
        else:
            found[node.name] = set().union(*(found[name] for name in node.operands()))
    return found


def _joins(axes: Axes, weights: Mapping[str, tuple[str, ...]], seen: dict[Atom, _Facts]) -> None:
    """Residual additions: two activations from different contractions are added unit by unit."""
    sources: dict[str, frozenset[str]] = {}
    for node in axes.graph.nodes:
        kind = ops.kind(node.op)
        if node.name in weights or kind == "input":
            sources[node.name] = frozenset()
            continue
        if kind in ("contraction", "convolution", "attention", "embedding", "batch_norm"):
            sources[node.name] = frozenset((node.name,))
            continue
        operands = list(dict.fromkeys(node.operands()))
        found = [sources[name] for name in operands if sources.get(name)]
        joined = frozenset[str]().union(*found)
        if node.op == "aten.add.Tensor" and len(found) == 2 and found[0] != found[1]:
            _mark_join(axes, node, operands, seen)
        sources[node.name] = joined if len(joined) <= 8 else frozenset(sorted(joined)[-8:])


def _between(axes: Axes, weights: Mapping[str, tuple[str, ...]], seen: dict[Atom, _Facts]) -> None:
    """What stands between the product that emits an axis and those that sum over it: other operators (but a factor that
    is one number), products of activations, and parameters along it (a bias, a gain)."""
    for contraction, shared, summed, free in axes.contractions:
        if sum(name not in weights for name in contraction.operands) > 1:
            for atom in _atoms((*shared, *summed, *(term for terms in free for term in terms))):
                seen[atom].between = True
    for node in axes.graph.nodes:
        linear = ops.kind(node.op) in ("contraction", "convolution", "embedding") or _scales(node)
        if node.name not in weights and not linear:
            shapes = axes.several.get(node.name, ()) or (axes.terms.get(node.name, ()),)
            for atom in (atom for shape in shapes for atom in _atoms(shape)):
                seen[atom].between = True
    for parameter, terms in axes.parameters.items():
        for atom in _atoms(terms):
            facts = seen[atom]
            if parameter in facts.aligned or not (parameter in facts.emitted or parameter in facts.contracted):
                facts.between = True


def _mark_join(axes: Axes, node: Node, operands: list[str], seen: dict[Atom, _Facts]) -> None:
    for term, *aligned in zip(*(axes.terms[name] for name in (node.name, *operands)), strict=False):
        if all(other.size == term.size for other in aligned):
            for atom in term.atoms:
                seen[atom].joined = True


def _scales(node: Node) -> bool:
    """Whether a node multiplies by one number."""
    return node.op in ("aten.mul.Tensor", "aten.mul.Scalar") and isinstance(node.args[1], int | float)


def _inner(facts: _Facts) -> bool:
    return bool(facts.emitted and facts.contracted) and not (facts.visible or _residual(facts))


def _residual(facts: _Facts) -> bool:
    return facts.joined and len(facts.emitted) > 1 and len(facts.contracted) > 1


def _role(atom: Atom, facts: _Facts, vocabularies: set[Dim]) -> str:
    for role in ("kernel", "vocab", "experts", "positions"):
        if facts.roles[role]:
            return role
    if facts.emitted or facts.contracted or facts.aligned:
        for role in ("key", "heads", "value"):
            used = role != "value" or facts.contracted or facts.visible  # else rows that a product is picked from
            if facts.roles[role] and used and (role == "heads" or not _residual(facts)):
                return role
    if "input" in facts.visible:
        return "features"
    if "output" in facts.visible and not facts.contracted:
        return "vocab" if atom.size in vocabularies else "classes"
    if _inner(facts) and not facts.between:
        return "rank"
    if facts.roles["groups"]:
        return "groups"
    kinds = Counter([*facts.emitted.values(), *facts.aligned.values()])
    if _residual(facts):
        return "channels" if kinds["convolution"] * 2 > sum(kinds.values()) else "hidden"
    if kinds["convolution"]:
        return "channels"
    if facts.emitted and facts.contracted:
        return "mlp"
    return "axis"


def _names(
    roles: dict[Atom, str], places: Mapping[Atom, list[tuple[str, int]]], seen: Mapping[Atom, _Facts]
) -> dict[Atom, str]:
    """`role` where there is one such axis, else `role@module`, the module that holds all its sites."""
    _tell_groups(roles, places)
    counts = Counter(roles.values())
    names = {atom: role for atom, role in roles.items() if counts[role] == 1}
    for candidates in (_common, _mostly, _emitter):
        wanted = {
            atom: f"{role}@{path}"
            for atom, role in roles.items()
            if atom not in names and (path := candidates(atom, places, seen))
        }
        taken = Counter([*wanted.values(), *names.values()])
        names |= {atom: name for atom, name in wanted.items() if taken[name] == 1}
    used = set(names.values())
    for atom, role in roles.items():
        if atom not in names:
            base = f"{role}@{_emitter(atom, places, seen) or '.'}"
            number = next(n for n in range(1, len(roles) + 2) if f"{base}#{n}" not in used)
            names[atom] = f"{base}#{number}"
            used.add(names[atom])
    return names


def _common(atom: Atom, places: Mapping[Atom, list[tuple[str, int]]], seen: Mapping[Atom, _Facts]) -> str:
    return shared_path(parameter.rpartition(".")[0] for parameter, _ in places[atom])


def shared_path(paths: Iterable[str]) -> str:
    """The longest module path that all of `paths` are in."""
    shared: list[str] | None = None
    for path in paths:
        parts = path.split(".") if path else []
        same = takewhile(
            lambda pair: pair[0] == pair[1], zip(parts, shared if shared is not None else parts, strict=False)
        )
        shared = [part for part, _ in same]
    return ".".join(shared or [])


def _mostly(atom: Atom, places: Mapping[Atom, list[tuple[str, int]]], seen: Mapping[Atom, _Facts]) -> str:
    """The longest module path that holds four fifths of the sites."""
    counts: Counter[str] = Counter()
    for parameter, _ in places[atom]:
        parts = parameter.split(".")[:-1]
        counts.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    enough = [path for path, count in counts.items() if count >= 0.8 * len(places[atom])]
    return max(enough, key=len, default="")


def _emitter(atom: Atom, places: Mapping[Atom, list[tuple[str, int]]], seen: Mapping[Atom, _Facts]) -> str:
    first = next(iter(seen[atom].emitted), places[atom][0][0])
    return first.rpartition(".")[0]


def _tell_groups(roles: dict[Atom, str], places: Mapping[Atom, list[tuple[str, int]]]) -> None:
    """Of the axes that make up the heads, those that the keys have too are `kv_heads`; `heads` then repeats them."""
    holds = {atom: {parameter for parameter, _ in found} for atom, found in places.items()}
    inside: dict[str, set[Atom]] = defaultdict(set)
    for atom, found in holds.items():
        for parameter in found:
            inside[parameter].add(atom)
    for atom in [atom for atom, role in roles.items() if role == "heads"]:
        for parameter in holds[atom]:
            for other in inside[parameter]:
                if roles[other] == "heads" and other is not atom and holds[atom] < holds[other]:
                    roles[other] = "kv_heads"

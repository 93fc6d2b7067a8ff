"""Rewriter: the only editor of programs. A pass asks it for edits; it keeps a list of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from torch import Tensor

from graphgrow.axes import Atom, Axes
from graphgrow.errors import Refusal
from graphgrow.layers import Stack
from graphgrow.patterns import Pattern
from graphgrow.program import Program
from graphgrow.prove import Assignment, Derivation, Prover, kind, multiple
from graphgrow.prove.engine import Strategy
from graphgrow.prove.silence import silenced
from graphgrow.rewrite.depth import Copied, Place, deepen, drop
from graphgrow.rewrite.experts import Mixture, Region, regions, upcycle
from graphgrow.rewrite.factorize import Pair, factorized
from graphgrow.rewrite.masks import broken, masked, masks
from graphgrow.rewrite.merge import Chain, chains, merged
from graphgrow.rewrite.numbers import from_sizes, mup_factors
from graphgrow.rewrite.parameterize import Multipliers, Parameterization, multipliers, restarted, tuned
from graphgrow.rewrite.products import Cut, Weight, weights
from graphgrow.rewrite.prune import pruned, reordered, scaled_back, seen
from graphgrow.rewrite.regroup import Groups, regrouped
from graphgrow.rewrite.resize import APART, Fills, Init, literal, refuse_frozen, resize
from graphgrow.rewrite.single import singled
from graphgrow.rewrite.units import Resizing
from graphgrow.rewrite.widths import Widths
from graphgrow.sizes import number, total

Data = Sequence[Mapping[str, Tensor]]


class Rewriter:
    """Edits a copy-on-write view of one program; `program` is the result so far, `edits` what was done,
    `notes` what a reader of the certificate should know."""

    def __init__(self, program: Program, seed: int = 0, data: Data = ()) -> None:
        """`data`: batches of inputs by name, for passes that look at activations."""
        self.program, self.seed, self.data = program, seed, data
        self.edits: list[str] = []
        self.notes: list[str] = []

    def obstacles(self, sizes: Mapping[Atom, int], extend_outputs: bool = False) -> dict[Atom, str]:
        """Which of these axes can't grow together without changing the function, each with the reason."""
        frozen = {atom: self.program.axes.frozen[atom][0] for atom in sizes if atom in self.program.axes.frozen}
        free = {atom: size for atom, size in sizes.items() if atom not in frozen}
        return frozen | Prover(self.program.axes, free, self.program.fixed, extend_outputs).obstacles()

    def why_not(
        self, sizes: Mapping[Atom, int], strategies: Sequence[Strategy] | None = None, extend_outputs: bool = False
    ) -> str:
        """Why these axes can't grow together without changing the function. Empty when they can."""
        prover = Prover(self.program.axes, dict(sizes), self.program.fixed, extend_outputs)
        found = prover.derive(strategies=strategies)
        return "" if found.holds else found.why

    def leave(self, axis: str, reason: str) -> None:
        """Note that an axis was left as it is: the certificate says so."""
        self.notes.append(f"{axis} left as it is: {reason}")

    def grow(
        self,
        sizes: Mapping[Atom, int],
        init: Init = "scaled",
        rescale: bool = False,
        strategies: Sequence[Strategy] | None = None,
        extend_outputs: bool = False,
        noise: float = APART,
    ) -> Derivation:
        """Give axes more units so that the function stays: what new blocks must hold is derived on the graph. With
        `rescale`, numbers that were computed from a size follow it (attention's 1/sqrt(d)), and weights make up for it.
        `strategies` are the ways to keep the function that may be taken (default: all). With `extend_outputs` outputs
        may have new units beside the old ones, which stay. `noise` is that of shares, relative to even ones.

        Raises Refusal for frozen axes, and where no assignment of the new blocks keeps the function.
        """
        axes = self.program.axes
        for atom in sizes:
            refuse_frozen(axes, atom)
        self._keep_groups(Resizing(sizes), "change the axis by whole groups (multiple_of={size})")
        numbers = from_sizes(axes, sizes) if rescale else None
        prover = Prover(axes, dict(sizes), self.program.fixed, extend_outputs)
        derivation = prover.derive(numbers=numbers, strategies=strategies)
        if not derivation.holds:
            raise Refusal(
                found=f"{_names(axes, sizes)} can't grow without changing the function: {derivation.why}",
                where="the proof on this graph",
                fix="choose other axes: `graphgrow axes` lists them; outputs=extend grows what outputs show, too",
            )
        found = derivation.assignment
        numbers = {place: literal(self.program, place) * factor for place, factor in found.numbers.items()}
        factors = mup_factors(self.program, sizes) if init == "mup" else {}
        if "shares" in (strategies or ()):
            self._apart(sizes, found)
        self._resize(sizes, Fills(found.blocks, init, self.seed, apart=noise, numbers=numbers, factors=factors))
        return derivation

    def _apart(self, sizes: Mapping[Atom, int], found: Assignment) -> None:
        """Note the axes whose copies no shares tell apart. Raises Refusal where that is all of them."""
        axes = self.program.axes
        shares = {(block.parameter, multiple(f).along) for block, f in found.blocks.items() if kind(f) == "share"}
        apart = {atom for name, along in shares for dim in along for atom in axes.parameters[name][dim].atoms}
        alike = {atom: size for atom, size in sizes.items() if atom not in apart}
        if len(alike) == len(sizes):
            raise Refusal(
                found=f"no weights that only sum over {_names(axes, sizes)}: there is nothing to share out",
                where="the uses of parameters in this graph",
                fix="take by=copies, which stay alike, or another axis",
            )
        if alike:
            self.notes.append(f"copies stay alike on {_names(axes, alike)}: no weights only sum over them")

    def deepen(self, stack: Stack, plan: Sequence[Place], init: Copied = "copy") -> None:
        """Put new layers between those of a stack so that the function stays: the parameters that make a layer add
        nothing are found on the graph (`prove.silence`), all others are copies or random.

        Raises Refusal where a layer can't be made to add nothing.
        """
        learned = self.program.kinds.keys() - self.program.fixed
        silent: dict[str, float] = {}
        for source in sorted({place.source for place in plan if place.new}):
            silent |= silenced(self.program.graph, stack.layers[source], learned)
        self.program = deepen(self.program, stack, plan, silent, init, self.seed)
        self.edits.append(f"deepen {stack.name}: {len(stack.layers)} -> {len(plan)}")

    def regions(self, atoms: Iterable[Atom]) -> Mapping[Atom, Region | str]:
        """The MLP around each inner axis; or, as text, why there is none that can be stacked."""
        return regions(self.program, atoms)

    def upcycle(self, regions: Sequence[Region], mixture: Mixture) -> None:
        """Put a mixture of copies in place of each MLP, with a random router."""
        self.program = upcycle(self.program, regions, mixture, self.seed)
        self.edits += [f"upcycle {found.exit}: {mixture.experts} experts" for found in regions]

    def single_heads(self) -> None:
        """Give axes to single heads of keys and values that have none."""
        self.program = singled(self.program)

    def weights(self, cut: Cut) -> Mapping[str, Weight | str]:
        """Every parameter of two dimensions or more: how it comes apart into two factors; or, as text, why not. Raises
        Refusal for a program without weights."""
        if not self.program.has_weights:
            raise Refusal(
                found="a pass that takes weights apart, or multiplies them",
                where="a program of shapes only, or with weights that stay on the disk",
                fix="apply it without --stream, on a machine that holds the weights",
            )
        return weights(self.program, cut)

    def factorize(self, chosen: Mapping[str, tuple[Weight, Pair]]) -> None:
        """Put two factors in place of each weight, and two nodes of each that reads it. Promises nothing of the
        function. Raises Refusal where their names are taken."""
        self.program = factorized(self.program, chosen)
        for name, (weight, (left, _)) in chosen.items():
            self.edits.append(f"factorize {name}: {weight.rows} x {weight.columns} at rank {left.shape[1]}")

    def chains(self) -> Mapping[tuple[str, str], Chain | str]:
        """Every two weights of which one is multiplied by what the other one makes, by their names; or, as text, why
        they can't be one. Raises Refusal for a program without weights."""
        return chains(self.program, self.weights("pointwise"))

    def merge(self, chains: Sequence[Chain]) -> None:
        """Put the product of two weights in their place, and one node for each two."""
        self.program = merged(self.program, chains)
        self.edits += [f"merge {one.first} and {one.second}" for one in chains]

    def regroup(self, chosen: Groups) -> None:
        """Repeat heads of keys and values for parts of the query heads that use them. Raises Refusal where they stand
        in another order."""
        names = {named.atom: named.name for named in self.program.unit_axes.named}
        self.program = regrouped(self.program, chosen)
        self.edits += [f"regroup {names[keys]}: each {copies} times" for keys, (_, copies) in chosen.items()]

    def drop(self, stack: Stack, layers: Set[int]) -> None:
        """Take layers (by their positions) out of a stack. Promises nothing of the function.

        Raises Refusal where what stays needs something of them."""
        self.program = drop(self.program, stack, layers)
        self.edits.append(f"drop from {stack.name}: {len(stack.layers)} -> {len(stack.layers) - len(layers)}")

    def prune(self, kept: Mapping[Atom, Sequence[int]], rescaled: Mapping[str, float] | None = None) -> None:
        """Keep only the units listed of each axis, in that order. Where those that go are dead, what the growth that
        adds them would multiply (gains of norms) is divided, so that the function stays; `rescaled` gives the numbers
        that nodes had before that growth. Promises nothing of the function otherwise.

        Raises Refusal for frozen axes, and for ordered ones of which others than the last units would go.
        """
        axes, names = self.program.axes, {named.atom: named.name for named in self.program.axes.named}
        for atom, units in kept.items():
            refuse_frozen(axes, atom)
            if atom in axes.positional and list(units) != list(range(len(units))):
                raise Refusal(
                    found=f"units of {names[atom]}, which are told apart by their position: {axes.positional[atom]}",
                    where="prune",
                    fix="remove the last units only",
                )
        self._keep_groups(Resizing({atom: len(units) for atom, units in kept.items()}, kept), "remove whole groups")
        rescaled = rescaled or {}
        large, small = reordered(self.program, kept), pruned(self.program, kept)
        twins = {named.atom.number: named.atom for named in small.axes.named}
        sizes = {twins[atom.number]: int(str(atom.size)) for atom in kept}
        if self.program.has_weights:
            changed = from_sizes(axes, {atom: len(units) for atom, units in kept.items()})
            numbers = {place: 1 / factor for place, factor in changed.items() if place[0] in rescaled}
            small = scaled_back(small, large, sizes, numbers, rescaled)
        self.program = small
        self.edits += [f"prune {names[atom]}: {atom.size} -> {len(units)}" for atom, units in kept.items()]

    def reorder(self, orders: Mapping[Atom, Sequence[int]]) -> None:
        """Put the units of axes into other orders, everywhere.

        Raises Refusal for axes whose units are told apart, and for those that inputs or outputs show."""
        axes, names = self.program.axes, {named.atom: named.name for named in self.program.axes.named}
        for atom in orders:
            refuse_frozen(axes, atom)
            told = axes.positional.get(atom) or next((f"{at} shows it" for at in seen(self.program, atom)), "")
            if told:
                found = f"units of {names[atom]}, which have their places: {told}"
                raise Refusal(found=found, where="reorder", fix="choose another axis: `graphgrow axes` lists them")
        sizes = {atom: len(order) for atom, order in orders.items()}
        self._keep_groups(Resizing(sizes, orders), "move whole groups")
        self.program = reordered(self.program, orders)
        self.edits += [f"reorder {names[atom]}" for atom in orders]

    def mask(self, chosen: Mapping[str, tuple[Tensor, str]]) -> None:
        """Put masks on weights, by the parameters' names, each with its pattern; in place of those that are there."""
        there = masks(self.program)
        self.program = masked(self.program, chosen)
        self.edits += [f"{'mask' if name not in there else 'mask anew'} {name}: {chosen[name][1]}" for name in chosen]

    def _keep_groups(self, resizing: Resizing, fix: str) -> None:
        """Raises Refusal where groups of masks would no longer be what they are."""
        for name, pattern, dim in broken(self.program, resizing):
            size = dict(Pattern.parse(pattern).steps)[dim]
            raise Refusal(
                found=f"the mask {name}, whose groups of {size} along dimension {dim} ({pattern}) would not stay whole",
                where=_names(self.program.axes, resizing.sizes),
                fix=f"{fix.format(size=size)}, or do this before sparsify",
            )

    def reparameterize(self, wanted: Parameterization) -> None:
        """Give the program the multipliers and the training recipe of a maximal update parameterization, and multiply
        weights (heads, keys, embeddings, or the gains before) by the inverse, so that the function stays.

        Raises Refusal where no weights can take a multiplier's inverse.
        """
        widths = Widths(self.program, wanted.base, wanted.density)
        found = multipliers(widths, wanted)
        axes = found.program.axes
        sizes = {atom: number(atom.size) for one in widths.attentions for atom in one.keys if atom not in axes.frozen}
        derivation = Prover(axes, sizes, self.program.fixed).derive(numbers=found.factors, strategies=("zeros",))
        if not derivation.holds:
            raise Refusal(
                found=f"no weights that can take the inverse of a multiplier: {derivation.why}",
                where="the proof on this graph",
                fix="start with fresh weights: form=fresh",
            )
        self._parameterized(widths, wanted, found, derivation.assignment)

    def restart(self, wanted: Parameterization, sigma: float | Mapping[str, float] | None = None) -> None:
        """Give the program the multipliers, the training recipe and new random weights of a maximal update
        parameterization. `sigma` is the deviation of weights in the base model: one, of each its own, or as it is."""
        widths = Widths(self.program, wanted.base, wanted.density)
        if not self.program.has_weights:
            raise Refusal(found="a program without weights", where="its tensors", fix="trace the model with weights")
        tensors = restarted(widths, sigma, self.seed)
        found = multipliers(widths, wanted)
        self._parameterized(widths, wanted, found, Assignment(numbers=found.factors))
        self.program = self.program.replace(tensors=tensors)

    def _parameterized(self, widths: Widths, wanted: Parameterization, found: Multipliers, held: Assignment) -> None:
        numbers = {place: literal(found.program, place) * factor for place, factor in held.numbers.items()}
        sizes = {atom: number(atom.size) for one in widths.attentions for atom in one.keys}
        self.program = resize(found.program, Resizing(sizes), Fills(held.blocks, numbers=numbers))
        self.program = self.program.replace(kinds=tuned(widths, wanted))
        parts = Counter(weight.part for weight in widths.weights.values())
        told = ", ".join(f"{parts[part]} {part}" for part in ("input", "hidden", "output", "vector") if parts[part])
        self.notes.append(f"parameters by their part: {told}")
        if widths.masks:
            self.notes.append("multipliers are for masks that stay: with dynamic ones (RigL, GMP) they do not transfer")
        self.edits.append(f"parameterize: {len(found.numbers)} multipliers")

    def _resize(self, sizes: Mapping[Atom, int], fills: Fills) -> None:
        names = {named.atom: named.name for named in self.program.axes.named}
        _refuse_too_large(self.program, sizes)
        self.program = resize(self.program, Resizing(sizes), fills)
        self.edits += [f"resize {names.get(atom, atom)}: {atom.size} -> {size}" for atom, size in sizes.items()]


def _refuse_too_large(program: Program, sizes: Mapping[Atom, int]) -> None:
    """Raise Refusal where the new tensors would not fit into this machine's memory."""
    if not program.has_weights:
        return
    needed = 0
    for name, terms in program.axes.parameters.items():
        if any(atom in sizes for term in terms for atom in term.atoms):
            shape = [term.resized(sizes) for term in terms]
            needed += int(str(total(shape))) * program.tensors[name].element_size()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise Refusal(
            found=f"new tensors of {needed / 1e9:,.0f} GB in a machine with {memory / 1e9:,.0f} GB of memory",
            where=_names(program.axes, sizes),
            fix="grow by less",
        )


def _names(axes: Axes, sizes: Mapping[Atom, int]) -> str:
    found = [named.name for named in axes.named if named.atom in sizes]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more axes" if len(found) > 3 else "")

"""Rewriter: the only editor of programs. A pass asks it for edits; it keeps a list of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set

from torch import Tensor

from graphgrow.axes import Atom, Axes
from graphgrow.errors import Refusal
from graphgrow.layers import Stack
from graphgrow.program import Program
from graphgrow.prove import Derivation, Prover
from graphgrow.prove.engine import Strategy
from graphgrow.prove.silence import silenced
from graphgrow.rewrite.depth import Copied, Place, deepen, drop
from graphgrow.rewrite.experts import Mixture, Region, region, upcycle
from graphgrow.rewrite.factorize import Pair, factorized
from graphgrow.rewrite.merge import Chain, chains, merged
from graphgrow.rewrite.numbers import from_sizes, mup_factors
from graphgrow.rewrite.products import Cut, Weight, weights
from graphgrow.rewrite.prune import pruned, reordered, scaled_back
from graphgrow.rewrite.regroup import Groups, regrouped
from graphgrow.rewrite.resize import Fills, Init, literal, refuse_frozen, resize
from graphgrow.rewrite.units import Resizing
from graphgrow.sizes import total

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
    ) -> Derivation:
        """Give axes more units so that the function stays: what new blocks must hold is derived on the graph. With
        `rescale`, numbers that were computed from a size follow it (attention's 1/sqrt(d)), and weights make up for it.
        `strategies` are the ways to keep the function that may be taken (default: all). With `extend_outputs` outputs
        may have new units beside the old ones, which stay.

        Raises Refusal for frozen axes, and where no assignment of the new blocks keeps the function.
        """
        axes = self.program.axes
        for atom in sizes:
            refuse_frozen(axes, atom)
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
        self._resize(sizes, Fills(found.blocks, init, self.seed, numbers=numbers, factors=factors))
        return derivation

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

    def region(self, atom: Atom) -> Region | str:
        """The MLP around an inner axis; or, as text, why there is none that can be stacked."""
        return region(self.program, atom)

    def upcycle(self, regions: Sequence[Region], mixture: Mixture) -> None:
        """Put a mixture of copies in place of each MLP, with a random router."""
        self.program = upcycle(self.program, regions, mixture, self.seed)
        self.edits += [f"upcycle {found.exit}: {mixture.experts} experts" for found in regions]

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
        names = {named.atom: named.name for named in self.program.axes.named}
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

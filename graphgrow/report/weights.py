"""What single weights cost and hold: density and pattern, rank, operations and bytes, as they are and as they could be.

`effective` operations are those whose weight is not cut away. `packed` bytes are what is kept with its places: of N:M
the bits of a place in its group for each (for a tile once), of blocks two bytes for each block, of any other mask a
byte for each entry and one for every 256 of the weight. No runtime that graphgrow exports to skips or packs them yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from math import ceil, log2

from torch import Tensor

from graphgrow import sizes
from graphgrow.axes import Atom, Term
from graphgrow.patterns import Pattern, valid
from graphgrow.program import Program
from graphgrow.report.cost import dynamic_sizes, operations
from graphgrow.rewrite.masks import densities, masks, weights

RANK = "rank"  # the role of an axis between two factors


@dataclass(frozen=True)
class WeightCost:
    """One weight. `pattern` is what its mask is to keep to and `keeps` whether it does; `rank` is that of a factor."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    keeps: bool
    density: float
    rank: int | None
    flops: int
    effective: int
    bytes: int
    packed: int

    @property
    def plain(self) -> bool:
        """Neither masked nor a factor."""
        return not self.pattern and self.rank is None


def weight_costs(program: Program, given: Mapping[str, int] | None = None) -> tuple[WeightCost, ...]:
    """All weights with two dimensions or more; operations at the dynamic sizes given (`cost`)."""
    at = dynamic_sizes(program.graph, given or {})
    flops = {found.node.name: sizes.evaluate(found.flops, at) for found in operations(program)}
    ranks = {axis.atom for axis in program.axes.named if axis.role == RANK}
    held, kept = masks(program), densities(program)
    found: list[WeightCost] = []
    for name, weight in weights(program).items():
        readers = program.graph.users[program.graph.parameters[name].name]
        uses = [one.name for one in readers] if isinstance(weight, str) else [use.node for use in weight.uses]
        count = sum(flops.get(node, 0) for node in uses)
        tensor, mask = program.tensors[name], program.tensors.get(held.get(name, ""))
        pattern = program.kinds[held[name]].pattern if name in held else ""
        density = kept.get(name, 1.0)
        found.append(
            WeightCost(
                name=name, shape=tuple(tensor.shape), pattern=pattern, density=density,
                keeps=mask is None or name not in kept or valid(mask, Pattern.parse(pattern)),
                rank=_rank(program.axes.parameters[name], ranks), flops=count, effective=round(count * density),
                bytes=tensor.nbytes, packed=_packed(tensor, pattern, density),
            )
        )  # fmt: skip
    return tuple(found)


def _rank(terms: tuple[Term, ...], ranks: Set[Atom]) -> int | None:
    return next((int(str(atom.size)) for term in terms for atom in term.atoms if atom in ranks), None)


def _packed(tensor: Tensor, pattern: str, density: float) -> int:
    if not pattern:
        return tensor.nbytes
    found, kept = Pattern.parse(pattern), density * tensor.numel()
    if found.kind == "n:m":
        places = kept * ceil(log2(found.group)) / 8 / found.tile
    else:
        places = 2 * kept / (found.tile * found.group) if found.kind == "block" else kept + tensor.numel() / 256
    return min(tensor.nbytes, ceil(kept * tensor.element_size() + places))

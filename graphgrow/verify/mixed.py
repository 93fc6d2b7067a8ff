"""Programs of which some axes are larger and others smaller: judged by way of a program between them.

That is the new program without the units that it has more of; what the growth that adds them multiplies is divided.
From the old program to it units went, from it to the new one units came, and each of both is judged by itself: whoever
finds the program between claims nothing.
"""

from __future__ import annotations

import torch

from graphgrow.program import Program
from graphgrow.rewrite import Rewriter, literal
from graphgrow.verify.align import Alignment

_ULPS = 4  # by which what was multiplied and divided again differs from what it was


def between(old: Program, new: Program, alignment: Alignment) -> Program | None:
    """The new program without its new units. None where axes have not both grown and shrunk, or can't be cut."""
    larger = {atom: int(str(atom.size)) for atom, size in alignment.sizes.items() if size > int(str(atom.size))}
    if not larger or len(larger) == len(alignment.sizes) or not new.has_weights:
        return None
    twins = {named.atom.number: named.atom for named in new.axes.named}
    kept = {twins[atom.number]: range(size) for atom, size in larger.items() if atom.number in twins}
    if len(kept) < len(larger) or any(atom in new.axes.frozen for atom in kept):
        return None
    rewriter = Rewriter(new)
    rewriter.prune(kept, {place[0]: literal(old, place) for place in alignment.numbers})
    found = rewriter.program
    return found.replace(
        tensors={name: _unrounded(old.tensors[name], tensor) for name, tensor in found.tensors.items()}
    )


def _unrounded(old: torch.Tensor, divided: torch.Tensor) -> torch.Tensor:
    """The old values where they differ by no more than rounding."""
    if old.shape != divided.shape or not old.is_floating_point():
        return divided
    near = torch.allclose(divided, old, rtol=_ULPS * torch.finfo(old.dtype).eps, atol=0.0)
    return old if near else divided

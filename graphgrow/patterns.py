"""Patterns of sparse weights: their text, masks that keep to them, densities.

    unstructured        any entries
    2:4@1               at most 2 of every 4 along dimension 1, the one that is summed over
    2:4x8@0x1           the same choice for tiles of 8 along dimension 0
    block4x8@0x1        blocks of 4 (dimension 0) by 8 (dimension 1), whole or gone

Without dimensions the text is what a person asks for; with them it is what the mask of a weight keeps to. Where a
dimension is not a multiple of the group, the last group counts as filled up with zeros. Selection looks at absolute
values; of equal ones the first in storage stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from graphgrow.errors import OptionError

_NUMBER = "([1-9][0-9]{0,3})"
_DIM = "([0-9])"
_TEXT = re.compile(
    rf"(?P<free>unstructured)|(?:{_NUMBER}:{_NUMBER}(?:x{_NUMBER})?|block{_NUMBER}x{_NUMBER})(?:@(?:{_DIM}x)?{_DIM})?"
)
_CHUNK = 2**18  # entries at a time: what a core's cache holds
_DIGIT = 16  # bits of a number that are counted at a time
_PAIRS = 16  # the largest group whose entries are compared in pairs


@dataclass(frozen=True)
class Pattern:
    """`kept` of every `group` along dimension `inputs`, alike for `tile` neighbours along `outputs`; all of the group
    or nothing in a block."""

    kind: Literal["unstructured", "n:m", "block"] = "unstructured"
    kept: int = 1
    group: int = 1
    tile: int = 1
    outputs: int | None = None
    inputs: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """A pattern from its text. Raises OptionError for anything else."""
        found = _TEXT.fullmatch(text)
        fix = "write unstructured, N:M (2:4), N:MxT (2:4x8, one choice for T outputs) or blockBxB (block4x4, block1x8)"
        if found is None:
            raise OptionError(found=f"{text!r}, which is no pattern", fix=fix)
        if found["free"]:
            return cls()
        kept, group, tile, rows, columns, outputs, inputs = (int(n) if n else None for n in found.groups()[1:])
        if rows and columns:
            one = cls("block", columns, columns, rows, outputs, inputs)
        else:
            one = cls("n:m", kept or 1, group or 1, tile or 1, outputs, inputs)
        odd = inputs is not None and (outputs == inputs or (outputs is not None) != one.shared)
        if one.kept > one.group or str(one) != text or odd:
            raise OptionError(found=f"{text!r}, which is no pattern", fix=fix)
        return one

    def along(self, outputs: int | None, inputs: int) -> Pattern:
        """The pattern for a weight that is summed over dimension `inputs` and emits `outputs`."""
        if self.kind == "unstructured":
            return self
        return replace(self, inputs=inputs, outputs=outputs if self.shared else None)

    @property
    def shared(self) -> bool:
        """Whether it joins neighbours along the outputs."""
        return self.kind == "block" or self.tile > 1

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """The dimensions that are cut into groups, each with the size of a group."""
        pairs = ((self.outputs, self.tile), (self.inputs, self.group))
        return tuple((dim, size) for dim, size in pairs if dim is not None and size > 1)

    def __str__(self) -> str:
        if self.kind == "unstructured":
            return self.kind
        tile = f"x{self.tile}" if self.tile > 1 else ""
        text = f"block{self.tile}x{self.group}" if self.kind == "block" else f"{self.kept}:{self.group}{tile}"
        dims = [str(dim) for dim in (self.outputs, self.inputs) if dim is not None]
        return f"{text}@{'x'.join(dims)}" if dims else text


def select(scores: Tensor, pattern: Pattern, density: float = 0.5) -> Tensor:
    """The mask that keeps the largest scores. Of N:M patterns the density is N/M; of others `density` of the entries
    (blocks) are kept, rounded to a whole number."""
    return select_together([scores], [pattern], density)[0]


def select_together(scores: Sequence[Tensor], patterns: Sequence[Pattern], density: float) -> list[Tensor]:
    """Masks that keep `density` of the entries (blocks) of all tensors together, whichever these are in."""
    pairs = list(zip(scores, patterns, strict=True))
    if all(pattern.kind == "n:m" for pattern in patterns):
        return [_spread(_grouped(_summed(s, p), p), s, p) for s, p in pairs]
    folded = [s if p.kind == "unstructured" else _summed(s, p) for s, p in pairs]
    found = largest(folded, round(density * sum(one.numel() for one in folded)))
    return [_spread(mask, s, p) for mask, (s, p) in zip(found, pairs, strict=True)]


def valid(mask: Tensor, pattern: Pattern) -> bool:
    """Whether a mask keeps to a pattern: at most N of M; tiles alike, blocks whole."""
    if pattern.kind == "unstructured":
        return True
    alike = pattern.tile if pattern.kind == "n:m" else pattern.tile * pattern.group
    if alike > 1:
        steps = pattern.steps if pattern.kind == "block" else pattern.steps[:1]
        some, whole = _folded(mask.to(torch.int32), steps), _folded(torch.ones_like(mask, dtype=torch.int32), steps)
        if not bool(((some == 0) | (some == whole)).all()):
            return False
    if pattern.kind == "block" or pattern.inputs is None:
        return True
    return bool((_folded(mask.to(torch.int32), ((pattern.inputs, pattern.group),)) <= pattern.kept).all())


def density(mask: Tensor) -> float:
    """The part of the entries that a mask keeps."""
    return int(mask.count_nonzero()) / max(1, mask.numel())


def erdos_renyi(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """The density of each tensor in the Erdős-Rényi-kernel allocation: in proportion to the sum of its dimensions over
    their product, 1 at most, and `density` over all of them (ITOP, arXiv 2102.02887)."""
    raw = [sum(shape) / prod(shape) for shape in shapes]
    counts = [prod(shape) for shape in shapes]
    dense = set[int]()
    while True:
        sparse = [index for index in range(len(shapes)) if index not in dense]
        if not sparse:
            return [1.0] * len(shapes)
        wanted = density * sum(counts) - sum(counts[index] for index in dense)
        factor = wanted / sum(raw[index] * counts[index] for index in sparse)
        top = max(raw[index] for index in sparse)
        if factor * top <= 1:
            return [1.0 if index in dense else factor * raw[index] for index in range(len(shapes))]
        dense |= {index for index in sparse if raw[index] == top}


# Groups


def _padded(values: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros up to whole groups."""
    for dim, size in steps:
        missing = -values.shape[dim] % size
        if missing:
            shape = [missing if d == dim else n for d, n in enumerate(values.shape)]
            values = torch.cat([values, values.new_zeros(shape)], dim)
    return values


def _folded(values: Tensor, steps: Sequence[tuple[int, int]]) -> Tensor:
    """Sums over groups."""
    values = _padded(values, steps)
    for dim, size in steps:
        shape = values.shape
        values = values.reshape(*shape[:dim], -1, size, *shape[dim + 1 :]).sum(dim + 1)
    return values


def _summed(scores: Tensor, pattern: Pattern) -> Tensor:
    """The scores among which a pattern chooses: of entries, of tiles, of blocks."""
    if pattern.inputs is None or (pattern.shared and pattern.outputs is None):
        raise OptionError(found=f"the pattern {pattern} without dimensions", fix="give the dimension it runs along")
    scores = scores.detach()
    if pattern.kind == "block":
        return _folded(scores.abs(), pattern.steps)
    joined = _folded(scores.abs(), pattern.steps[:1]) if pattern.tile > 1 else scores
    return _padded(joined, ((pattern.inputs, pattern.group),))


def _spread(mask: Tensor, scores: Tensor, pattern: Pattern) -> Tensor:
    """A choice among tiles or blocks as a mask of entries."""
    steps = pattern.steps if pattern.kind == "block" else pattern.steps[:1] if pattern.tile > 1 else ()
    for dim, size in steps:
        mask = mask.repeat_interleave(size, dim)
    for dim, size in enumerate(scores.shape):
        mask = mask.narrow(dim, 0, size)
    return mask.contiguous()


def _grouped(scores: Tensor, pattern: Pattern) -> Tensor:
    """Of every group along a dimension the `kept` largest."""
    assert pattern.inputs is not None
    kept, size = pattern.kept, pattern.group
    if kept == size:
        return torch.ones_like(scores, dtype=torch.bool)
    inner = prod(scores.shape[pattern.inputs + 1 :])
    values = scores.contiguous().view(-1, size, inner)
    mask = torch.empty(values.shape, dtype=torch.bool, device=scores.device)
    rows = max(1, _CHUNK // (size * inner))
    for start in range(0, len(values), rows):
        part = values[start : start + rows].abs()
        if size > _PAIRS:
            order = part.sort(dim=1, descending=True, stable=True).indices
            mask[start : start + rows] = torch.zeros_like(part, dtype=torch.bool).scatter_(1, order[:, :kept], True)
        else:
            entries = (part.squeeze(2).t().contiguous() if inner == 1 else part).unbind(0 if inner == 1 else 1)
            for index, won in enumerate(_wins(entries)):
                mask[start : start + rows, index] = (won >= size - kept).view(-1, inner)
    return mask.view(scores.shape)


def _wins(entries: Sequence[Tensor]) -> list[Tensor]:
    """Of each entry how many others of its group it is larger than; the first of equal ones is the larger."""
    wins = [torch.zeros_like(entry, dtype=torch.uint8) for entry in entries]
    for right in range(len(entries)):
        for left in range(right):
            first = entries[left] >= entries[right]
            wins[left] += first
            wins[right] += first.logical_not_()
    return wins


# The largest of all


def largest(scores: Sequence[Tensor], keep: int) -> list[Tensor]:
    """Masks of the `keep` entries with the largest absolute values of all tensors together.

    The bits of floating numbers that are not negative are in their order, so the smallest one kept is found digit by
    digit, from counts: no sort, and no memory but the masks."""
    flat = [one.detach().contiguous().view(-1) for one in scores]
    wide = any(one.dtype == torch.float64 for one in flat)
    masks = [torch.zeros(one.shape, dtype=torch.bool, device=one.device) for one in scores]
    if keep <= 0:
        return masks
    if keep >= sum(one.numel() for one in flat):
        return [mask.fill_(True) for mask in masks]
    bound, equal = _threshold(flat, keep, wide)
    for values, mask in zip(flat, masks, strict=True):
        for start, bits in _bits(values, wide):
            part = mask.view(-1)[start : start + len(bits)]
            torch.gt(bits, bound, out=part)
            if equal:
                same = (bits == bound).nonzero()[:equal, 0]
                part[same] = True
                equal -= len(same)
    return masks


def _threshold(flat: Sequence[Tensor], keep: int, wide: bool) -> tuple[int, int]:
    """The bits of the smallest value that is kept, and how many equal to it are."""
    prefix, digits = 0, (64 if wide else 32) // _DIGIT
    for shift in reversed(range(0, digits * _DIGIT, _DIGIT)):
        counts = torch.zeros(2**_DIGIT, dtype=torch.int64)
        for values in flat:
            for _, bits in _bits(values, wide):
                if shift + _DIGIT < digits * _DIGIT:
                    bits = bits[(bits >> (shift + _DIGIT)) == prefix]
                digit = (bits >> shift) & (2**_DIGIT - 1)
                counts += torch.bincount(digit, minlength=2**_DIGIT).cpu()
        above = counts.flip(0).cumsum(0).flip(0)  # as large or larger
        digit = int((above >= keep).nonzero()[-1])
        keep -= int(above[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
    return prefix, keep


def _bits(flat: Tensor, wide: bool) -> Iterator[tuple[int, Tensor]]:
    """The bits of absolute values as whole numbers, some at a time, and where these start."""
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].to(torch.float64 if wide else torch.float32)
        yield start, part.view(torch.int64 if wide else torch.int32) & (2**63 - 1 if wide else 2**31 - 1)

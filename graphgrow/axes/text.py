"""Axes as plain text for people: what repeats from layer to layer is folded into one row."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from graphgrow import sizes
from graphgrow.axes.names import Named

FOLDED_ROLE = "kernel"  # windows over space: many, and never resized
_NUMBER = re.compile(r"(?:(?<=[.@])|^)\d+(?=[.#]|$)")


@dataclass(frozen=True)
class Fold:
    """Names that differ in layer numbers only, as one pattern (`h.*.mlp`), with their places in what was folded."""

    pattern: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Axes that repeat from layer to layer: of one role and size, with the same number of sites."""

    name: str  # a name, or a glob that matches all of them
    axes: tuple[Named, ...]
    where: str

    @property
    def mark(self) -> str:
        """Whether the axes can't change their size, and whether the order of their units matters."""
        first = self.axes[0]
        return ", ".join(word for word, found in (("frozen", first.frozen), ("ordered", first.ordered)) if found)


def fold(names: Sequence[str], keys: Sequence[Hashable]) -> list[Fold]:
    """Fold names that are equal but for numbers in their paths, and have equal keys. The pattern keeps the numbers that
    all of them share."""
    found: dict[tuple[str, Hashable], list[int]] = {}
    for index, (name, key) in enumerate(zip(names, keys, strict=True)):
        found.setdefault((_NUMBER.sub("*", name), key), []).append(index)
    return [Fold(_pattern([names[index] for index in members]), tuple(members)) for members in found.values()]


def _pattern(names: Sequence[str]) -> str:
    """The names' pattern: `*` where their numbers differ."""
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    numbers = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return _NUMBER.sub(lambda _: next(numbers), names[0])


def grouped(named: Iterable[Named], every: bool = False) -> tuple[Group, ...]:
    """The axes in groups, in the order they are met; with `every` each one is a group of its own."""
    axes = tuple(named)
    if every:
        return tuple(Group(axis.name, (axis,), _where((axis,))) for axis in axes)
    keys = [(axis.role, str(axis.size), len(axis.sites), bool(axis.frozen), bool(axis.ordered)) for axis in axes]
    folds = fold([axis.name for axis in axes], keys)
    groups = [(folded.pattern, tuple(axes[index] for index in folded.members)) for folded in folds]
    return tuple(Group(pattern, members, _where(members)) for pattern, members in groups)


def _where(axes: Sequence[Named]) -> str:
    """`3 sites in h.0.mlp`, or for several axes `3 sites each in h.*.mlp`."""
    count = len(axes[0].sites)
    each = " each" if len(axes) > 1 else ""
    paths = [_home(axis) for axis in axes]
    folds = fold(paths, [0] * len(paths))
    place = f" in {folds[0].pattern}" if len(folds) == 1 and folds[0].pattern else ""
    return f"{count} site{'s' * (count != 1)}{each}{place}"


def _home(axis: Named) -> str:
    """The module that holds all sites of an axis; a parameter's own name for one site."""
    names = [site.parameter for site in axis.sites]
    if len(set(names)) == 1:
        return names[0]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*(name.split(".") for name in names), strict=False))
    return ".".join(level[0] for level in shared)


def split_kernels(groups: Sequence[Group]) -> tuple[list[Group], str]:
    """The groups without windows over space, and a line about these (empty if there are none)."""
    kept = [group for group in groups if group.axes[0].role != FOLDED_ROLE]
    kernels = [axis for group in groups for axis in group.axes if axis.role == FOLDED_ROLE]
    if not kernels:
        return kept, ""
    found = sorted({sizes.number(axis.size) for axis in kernels})
    several = "es" if len(kernels) > 1 else "is"
    listed = ", ".join(map(str, found))
    return kept, f"and {len(kernels)} kernel ax{several} (size {listed}): windows over space, which are not resized"


def table(named: Iterable[Named]) -> str:
    """All axes as aligned text: name, how many, role, size, where; and below why axes are frozen or ordered."""
    groups, rest = split_kernels(grouped(named))
    if not groups:
        return rest or "no axes: no parameter is used"
    head = ("axis", "", "role", "size", "where", "")
    rows = [head, *(row(group) for group in groups)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if column == 3 else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    return "\n".join([*(line.rstrip() for line in lines), *reasons(groups), *([rest] if rest else [])])


def row(group: Group) -> tuple[str, str, str, str, str, str]:
    """One group as cells: name, `x12`, role, size, where, mark."""
    first = group.axes[0]
    count = f"x{len(group.axes)}" if len(group.axes) > 1 else ""
    return group.name, count, first.role, str(first.size), group.where, group.mark


def reasons(groups: Sequence[Group]) -> list[str]:
    """Why axes are frozen or ordered, each reason once with the axes that it holds for."""
    found: dict[str, list[str]] = {}
    for group in groups:
        first = group.axes[0]
        for word, why in (("frozen", first.frozen[:1]), ("ordered", first.ordered[:1])):
            for reason in why:
                found.setdefault(f"{word}: {reason}", []).append(group.name)
    return [
        f"{reason} ({names[0]}{f' and {len(names) - 1} more' if names[1:] else ''})" for reason, names in found.items()
    ]

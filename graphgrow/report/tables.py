"""Reports as tables for people, drawn by rich. Plain letters only, so that they print everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphgrow.axes import Axes
from graphgrow.axes.text import Fold, fold, grouped, reasons, row, split_kernels
from graphgrow.certificate import Bound, Certificate, Growth, Proof, Test
from graphgrow.program import Program
from graphgrow.report.cost import Cost
from graphgrow.report.diff import Change, Difference
from graphgrow.report.passes import Described
from graphgrow.report.values import inputs
from graphgrow.report.weights import WeightCost

_LISTED = 12  # rows of a list that a person reads; JSON has all of them
_NAME = 48  # columns that names of axes get before places do


def program_table(program: Program, cost: Cost) -> RenderableType:
    """Size and inputs of a program."""
    rows = [
        ("parameters", f"{cost.parameters:,} ({program.dtype})"),
        ("FLOPs", f"{amount(cost.flops)} at {cost.at}"),
        ("memory", f"{amount(cost.memory, 'B')} of weights"),
        ("inputs", "\n".join(f"{name}: {kind}" for name, kind in inputs(program).items()) or "none"),
        ("axes", f"{len(program.axes.named)}, of the roles {_roles(program.axes)}"),
    ]
    return pairs([*rows, *(("journal", f"{c.spec}: {c.scope}") for c in program.journal)])


def _roles(axes: Axes) -> str:
    return ", ".join(dict.fromkeys(axis.role for axis in axes.named)) or "none"


def axes_table(axes: Axes, every: bool = False) -> RenderableType:
    """Names, roles, sizes and places of the axes; layers folded into one row, kernels into a line, unless `every`."""
    groups = grouped(axes.named, every)
    kept, rest = (list(groups), "") if every else split_kernels(groups)
    found = columns("axis", "", "role", "+size", "where", "")
    for group in kept:
        found.add_row(*row(group))
    found.columns[0].min_width = min(_NAME, max((len(group.name) for group in kept), default=0))
    notes = [*reasons(kept), *([f"{rest} (--all lists them)"] if rest else [])]
    return Group(found, *(Text(note) for note in notes))


def cost_table(old: Cost, new: Cost) -> RenderableType:
    """Before, after and their ratio."""
    found = columns("", "+before", "+after", "+ratio")
    found.add_row("parameters", f"{old.parameters:,}", f"{new.parameters:,}", ratio(old.parameters, new.parameters))
    found.add_row("FLOPs", amount(old.flops), amount(new.flops), ratio(old.flops, new.flops))
    masked = any(one.effective != one.flops for one in (old, new))
    if masked:
        one, other = old.effective, new.effective
        found.add_row("effective FLOPs", amount(one), amount(other), ratio(one, other))
    found.add_row("memory", amount(old.memory, "B"), amount(new.memory, "B"), ratio(old.memory, new.memory))
    words = "; effective: without what masks cut away, which no dense kernel skips" if masked else ""
    return Group(found, Text(f"(FLOPs of one forward pass at {new.at}{words}; memory of the weights)", style="dim"))


def weights_table(found: Sequence[WeightCost], every: bool = False) -> RenderableType:
    """Weights one by one, layers folded unless `every`; and what skipping and packing would make of all."""
    shown = columns("weight", "", "shape", "pattern", "+density", "+rank", "+FLOPs", "+effective", "+bytes", "+packed")
    keys = [(one.shape, one.pattern, one.keeps, f"{one.density:.3f}", one.rank, one.flops) for one in found]
    names = [one.name for one in found]
    folds = [Fold(name, (at,)) for at, name in enumerate(names)] if every else fold(names, keys)
    for folded in folds:
        one, count = found[folded.members[0]], len(folded.members)
        kept = one.pattern + ("" if one.keeps else " (broken)")
        shown.add_row(
            folded.pattern, times(count), _shown(one.shape), kept or "dense", f"{one.density:.3g}", str(one.rank or ""),
            amount(count * one.flops), amount(count * one.effective),
            amount(count * one.bytes, "B"), amount(count * one.packed, "B"),
        )  # fmt: skip
    total = [sum(getattr(one, part) for one in found) for part in ("flops", "effective", "bytes", "packed")]
    flops, effective, held, packed = total
    shown.add_row("all", times(len(found)), "", "", "", "", amount(flops), amount(effective),
                  amount(held, "B"), amount(packed, "B"), style="bold")  # fmt: skip
    return Group(shown, *(Text(note) for note in notes_of(found)))


def notes_of(found: Sequence[WeightCost]) -> list[str]:
    """What the numbers do not say by themselves."""
    notes = [f"{one.name}: its mask does not keep to {one.pattern}" for one in found if not one.keeps]
    if any(one.pattern for one in found):
        notes.append(
            "Masks alone make nothing faster here: dense kernels multiply the zeros, too. "
            "graphgrow export -o model.onnx --sparse-initializers makes a smaller file where less than a third is kept."
        )
    return notes


def growth_table(growths: Iterable[Growth]) -> RenderableType:
    """Axes with their sizes before and after, layers folded."""
    return changes_table("axis", [Change(growth.axis, growth.old, growth.new) for growth in growths], None)


def changes_table(title: str, changes: Sequence[Change[Any]], listed: int | None = _LISTED) -> RenderableType:
    """`name  x12  old -> new`, layers folded."""
    found = columns(title, "", "+before", "", "after")
    folds = fold([change.name for change in changes], [(change.old, change.new) for change in changes])
    for folded in folds[:listed]:
        first = changes[folded.members[0]]
        found.add_row(folded.pattern, times(len(folded.members)), _shown(first.old), "->", _shown(first.new))
    rest = len(folds) - len(folds[:listed])
    return Group(found, Text(f"and {rest} more (--json lists all)")) if rest else found


def _shown(value: object) -> str:
    if value is None:
        return "(none)"
    return " x ".join(str(size) for size in value) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def difference_table(found: Difference) -> RenderableType:
    """Axes, tensors, costs and journals of two programs side by side."""
    parts: list[RenderableType] = [cost_table(*found.costs)]
    if any(not one.plain for one in found.weights):
        parts += ["", weights_table(found.weights)]
    if found.axes:
        parts += ["", changes_table("axis", found.axes)]
    if found.shapes:
        parts += ["", changes_table("tensor", found.shapes)]
    if found.values:
        others = [Change(name, "old values", "new values") for name in found.values]
        parts += ["", changes_table("tensor of the same shape", others)]
    if found.empty:
        parts += ["", "no axis and no tensor differs"]
    for title, program in (("old", found.old), ("new", found.new)):
        parts += ["", Text(f"certificates of the {title} program", style="bold")]
        parts += [certificate_table(certificate) for certificate in program.journal] or ["none"]
    return Group(*parts)


def certificate_table(certificate: Certificate, growth: bool = True) -> RenderableType:
    """What is claimed, and by what evidence."""
    rows: list[tuple[str, RenderableType]] = [("claim", certificate.scope)]
    if growth and certificate.growth:
        rows.append(("axes", growth_table(certificate.growth)))
    if certificate.proof:
        rows.append(("proof" if certificate.proof.holds else "no proof", certificate.proof.why))
        rows += _constraints(certificate.proof)
    if certificate.test:
        rows.append(("test", _test(certificate.test)))
    if certificate.bounds:
        folds = fold([one.at for one in certificate.bounds], [0] * len(certificate.bounds))
        told = [(f.pattern, times(len(f.members)), _bounds([certificate.bounds[i] for i in f.members])) for f in folds]
        rest = [f"and {len(told) - _LISTED} more (--json lists all)"] if told[_LISTED:] else []
        rows.append(("within", "\n".join([*(" ".join(filter(None, row)) for row in told[:_LISTED]), *rest])))
    if certificate.measured:
        rows.append(("measured", str(certificate.measured)))
    rows += [("note", note) for note in certificate.notes]
    seed = f"seed {certificate.test.seed}, " if certificate.test else ""
    rows.append(("made", f"{seed}{certificate.old[:12]} -> {certificate.new[:12]}, graphgrow {certificate.version}"))
    return Group(Text(certificate.spec, style="bold green" if certificate.holds else "bold red"), pairs(rows, "  "))


def steps_table(proof: Proof) -> RenderableType:
    """The derivation: what each operator reads that is not simply the same, and what follows."""
    rows: list[tuple[str, RenderableType]] = []
    for step in proof.steps:
        many = f"  {times(step.times)}" if step.times > 1 else ""
        reads = [f"{told}" for told in step.reads]
        rows.append((step.place + many, "\n".join([*reads, f"=> {step.gives}"])))
    return pairs(rows, "") if rows else "nothing differs: there is nothing to derive"


def _constraints(proof: Proof) -> list[tuple[str, RenderableType]]:
    """What the proof needs of blocks and of numbers in the graph, layers folded."""
    found = [*proof.constraints]
    keys = [(item.text or item.fill, item.block) for item in found]
    folds = fold([item.parameter for item in found], keys)
    parts: list[RenderableType] = []
    for text, block in sorted(set(keys), key=keys.index):
        mine = [folded for folded in folds if keys[folded.members[0]] == (text, block)]
        rows = [(folded.pattern, times(len(folded.members))) for folded in mine]
        parts += [f"{text} in {block} of", pairs(rows[:_LISTED], "  ")]
        parts += [f"  and {len(rows) - _LISTED} more (--json lists all)"] if rows[_LISTED:] else []
    numbers = Counter((item.old, item.new, item.place) for item in proof.numbers)
    changed = [(f"{old:g} becomes {new:g}", f"{place} {times(n)}") for (old, new, place), n in numbers.items()]
    parts += ["numbers in the graph", pairs(changed[:_LISTED], "  ")] if changed else []
    parts += [f"  and {len(changed) - _LISTED} more (--json lists all)"] if changed[_LISTED:] else []
    return [("needs", Group(*parts))] if parts else []


def _bounds(bounds: Sequence[Bound]) -> str:
    worst, share = max(one.value for one in bounds), max(one.share for one in bounds)
    return f"off by at most {worst:.3g} (spectral norm), {share:.2g} of its own norm"


def _test(test: Test) -> str:
    worst = test.worst
    if worst is None:
        return test.why
    return (
        f"{test.why}\n"
        f"worst at {worst.sizes or 'fixed sizes'}: outputs {worst.output64:.1e}, gradients {worst.gradient64:.1e}, "
        f"allowed {worst.tolerance64:.1e}\n"
        f"in float32: outputs {worst.output32:.1e}, where the old program itself rounds by {worst.rounding32:.1e}"
    )


def passes_table(passes: Iterable[Described]) -> RenderableType:
    """One row per pass."""
    found = columns("pass", "claim", "what it does")
    for one in passes:
        found.add_row(one.name, one.claim.lower(), one.summary)
    return found


def pass_table(one: Described) -> RenderableType:
    """One pass: summary, claim, options, theorem."""
    options = columns("option", "type", "default", "")
    for option in one.options:
        options.add_row(option.name, option.type, option.default or "(required)", option.doc)
    title = Text.assemble((one.name, "bold green"), f": {one.summary}")
    return Group(title, f"claim: {one.claim.lower()}", "", options, "", Text("theorem", style="bold"), one.theorem)


def columns(*titles: str) -> Table:
    """An empty table; a title with `+` has its column to the right."""
    found = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        found.add_column(title.removeprefix("+"), justify="right" if title.startswith("+") else "left", overflow="fold")
    return found


def pairs(rows: Iterable[tuple[str, RenderableType]], indent: str = "") -> Table:
    """Labels and what belongs to them."""
    found = columns("", "")
    found.show_header = False
    for label, value in rows:
        found.add_row(indent + label, value)
    return found


def times(count: int) -> str:
    """`x12`, nothing for one."""
    return f"x{count}" if count > 1 else ""


def ratio(old: int, new: int) -> str:
    """`x1.38`."""
    return f"x{new / old:.2f}" if old else "-"


def amount(number: int, unit: str = "") -> str:
    """A large number for people: `1.53 G`, `12.0 MB`."""
    if number < 1000:
        return f"{number} {unit}".rstrip()
    size, prefixes = number / 1000, "kMGTPE"
    while size >= 999.5 and len(prefixes) > 1:
        size, prefixes = size / 1000, prefixes[1:]
    return f"{size:.3g} {prefixes[0]}{unit}"

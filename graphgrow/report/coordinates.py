"""A coordinate check as a table, as plain values, as CSV and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import log10
from statistics import fmean
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from graphgrow.report.tables import columns
from graphgrow.runtime.coordinates import Coordinates, Over, Point, Scheme

_WIDE, _HIGH, _MARGIN = 320, 220, 40  # of one panel
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def coordinates_table(found: Coordinates) -> RenderableType:
    """A row for each slope, and the verdicts."""
    table = columns("parameterization", "activation", "over", "+slope", "+95 % interval", "verdict")
    for slope in found.slopes:
        interval = f"[{slope.low:+.2f}, {slope.high:+.2f}]"
        table.add_row(slope.scheme, slope.activation, slope.over, f"{slope.value:+.2f}", interval, slope.verdict)
    verdicts = [f"{scheme}: {found.verdict(scheme)}" for scheme in found.settings.schemes]
    told = f"stable: the whole interval within {found.settings.tolerance:g}; unclear: more seeds or sizes are needed"
    return Group(table, "", Text("; ".join(verdicts), style="bold"), Text(told, style="dim"))


def coordinates_value(found: Coordinates) -> dict[str, Any]:
    """Settings, points, slopes and verdicts."""
    return {
        "settings": asdict(found.settings),
        "points": [asdict(point) for point in found.points],
        "slopes": [
            {**asdict(one), "low": _number(one.low), "high": _number(one.high)} for one in found.slopes
        ],
        "verdicts": {scheme: found.verdict(scheme) for scheme in found.settings.schemes},
        "stable": found.stable,
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def coordinates_csv(found: Coordinates) -> str:
    """A line for each point."""
    rows = [f"{p.scheme},{p.activation},{p.width},{p.density:g},{p.seed},{p.size:.6g}" for p in found.points]
    return "\n".join(["parameterization,activation,width,density,seed,size", *rows, ""])


def coordinates_plot(found: Coordinates) -> str:
    """An SVG: a row for each parameterization, sizes over width and over 1/density, both logarithmic, a line for each
    activation (the mean of the others)."""
    overs: list[Over] = ["width", "sparsity"]
    overs = [over for over in overs if len({_x(point, over) for point in found.points}) > 1]
    schemes, names = found.settings.schemes, list(dict.fromkeys(point.activation for point in found.points))
    width, height = _WIDE * len(overs), _HIGH * len(schemes) + 14 * len(names) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
             'font-size="10">', f'<rect width="{width}" height="{height}" fill="white"/>']  # fmt: skip
    for row, scheme in enumerate(schemes):
        for column, over in enumerate(overs):
            parts += _panel(found, scheme, over, names, column * _WIDE, row * _HIGH)
    for index, name in enumerate(names):
        y = _HIGH * len(schemes) + 14 * (index + 1)
        parts.append(f'<text x="{_MARGIN}" y="{y}" fill="{_COLOURS[index % len(_COLOURS)]}">{_escaped(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _x(point: Point, over: Over) -> float:
    return float(point.width) if over == "width" else 1 / point.density


def _panel(found: Coordinates, scheme: Scheme, over: Over, names: Sequence[str], left: int, top: int) -> Iterator[str]:
    sizes = [log10(max(point.size, 1e-30)) for point in found.points]
    places = [log10(_x(point, over)) for point in found.points]
    low, high = min(sizes), max(*sizes, min(sizes) + 1e-9)

    def at(x: float, size: float) -> str:
        across = (log10(x) - min(places)) / (max(places) - min(places))
        up = (log10(max(size, 1e-30)) - low) / (high - low)
        inner = _WIDE - 2 * _MARGIN, _HIGH - 2 * _MARGIN
        return f"{left + _MARGIN + across * inner[0]:.1f},{top + _HIGH - _MARGIN - up * inner[1]:.1f}"

    yield (f'<rect x="{left + _MARGIN}" y="{top + _MARGIN}" width="{_WIDE - 2 * _MARGIN}" '
           f'height="{_HIGH - 2 * _MARGIN}" fill="none" stroke="#999"/>')  # fmt: skip
    title = f"{scheme}: mean |x| over {'width' if over == 'width' else '1/density'}"
    yield f'<text x="{left + _MARGIN}" y="{top + _MARGIN - 6}">{title} ({found.verdict(scheme)})</text>'
    yield f'<text x="{left + 4}" y="{top + _MARGIN + 8}">{10**high:.2g}</text>'
    yield f'<text x="{left + 4}" y="{top + _HIGH - _MARGIN}">{10**low:.2g}</text>'
    for x in sorted({_x(point, over) for point in found.points}):
        place = at(x, 10**low).partition(",")[0]
        yield f'<text x="{place}" y="{top + _HIGH - _MARGIN + 12}" text-anchor="middle">{x:g}</text>'
    for index, name in enumerate(names):
        mine = [point for point in found.points if (point.scheme, point.activation) == (scheme, name)]
        line = [at(x, 10 ** fmean(log10(max(p.size, 1e-30)) for p in mine if _x(p, over) == x))
                for x in sorted({_x(point, over) for point in mine})]  # fmt: skip
        yield f'<polyline points="{" ".join(line)}" fill="none" stroke="{_COLOURS[index % len(_COLOURS)]}"/>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")

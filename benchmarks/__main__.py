"""Run benchmarks and write what they found: `python -m benchmarks [NAME ...]` (all of them without a name)."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row, Skipped

NAMES = (
    "analysis", "depth", "huge", "stream", "widen_xl", "growth", "load", "module", "startup", "verify", "errors",
    "pipelines", "training", "sparsify", "permute", "coordinates", "factorize", "references",
)  # fmt: skip
FOLDER = pathlib.Path(__file__).parent
HEADINGS = ("what", "graphgrow", "against", "ratio", "by CPU time", "target", "")


def machine() -> str:
    """Processor, cores and versions, on one line."""
    import torch

    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores, threads = os.cpu_count(), torch.get_num_threads()
    python = platform.python_version()
    return f"{model}, {cores} cores ({threads} threads in torch), Python {python}, torch {torch.__version__}"


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The page of one benchmark: what it measures, the command, the machine, the table."""
    text = str(importlib.import_module(f"benchmarks.{name}").__doc__).strip()
    variables = [f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS",) if key in os.environ]
    command = shlex.join([*variables, "python", "-m", "benchmarks", name])
    table = [HEADINGS, ["---"] * len(HEADINGS), *(row.cells for row in rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([f"## {name}", "", text, "", f"`{command}` on {machine()}", "", *lines, ""])


def show(name: str, rows: Sequence[Row]) -> None:
    table = Table(*HEADINGS, title=name)
    for row in rows:
        table.add_row(*row.cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def write_docs() -> None:
    """docs/benchmarks.md: all results there are, one after the other."""
    pages = [page.read_text() for name in NAMES if (page := FOLDER / "results" / f"{name}.md").exists()]
    head = (
        "# Benchmarks\n\nWritten by `make bench`. Each ratio compares two things run in turns in one run: the median "
        "of the ratios of the turns.\nTimes are wall-clock medians, given only for scale.\n"
    )
    (FOLDER.parent / "docs").mkdir(exist_ok=True)
    (FOLDER.parent / "docs" / "benchmarks.md").write_text("\n".join([head, *pages]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(NAMES)}")
    missed = 0
    for name in names:
        try:
            rows = list(importlib.import_module(f"benchmarks.{name}").rows())
        except Skipped as reason:
            print(f"{name} skipped: {reason}")
            continue
        (FOLDER / "results").mkdir(exist_ok=True)
        (FOLDER / "results" / f"{name}.md").write_text(markdown(name, rows))
        show(name, rows)
        missed += sum(row.met is False for row in rows)
    write_docs()
    print(f"{missed} targets missed" if missed else "all targets met")
    return 0


if __name__ == "__main__":
    sys.exit(main())

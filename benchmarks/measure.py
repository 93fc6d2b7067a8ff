"""Measuring: turns, medians, fresh processes, peak memory."""

from __future__ import annotations

import gc
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Work = Callable[[], object]
_TIMEOUT = 1200  # seconds for one process


class Skipped(Exception):
    """A benchmark that this machine can't run, with the reason."""


@dataclass(frozen=True)
class Time:
    """Seconds on the clock and of the processor."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall * 1000:.1f} ms" if self.wall < 1 else f"{self.wall:.2f} s"


@dataclass(frozen=True)
class Row:
    """One line of a table. `target` is a bound on `ratio`: at most, or at least with `least`."""

    what: str
    ours: str
    peer: str
    ratio: float
    cpu: float | None = None
    target: float | None = None
    least: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio >= self.target if self.least else self.ratio <= self.target

    @property
    def cells(self) -> list[str]:
        bound = "" if self.target is None else f"{'>=' if self.least else '<='} {self.target:g}"
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return [
            self.what,
            self.ours,
            self.peer,
            _short(self.ratio),
            "" if self.cpu is None else _short(self.cpu),
            bound,
            verdict,
        ]


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def timed(work: Work) -> Time:
    """One run, its result dropped outside the clock. The garbage collector looks only at what the run itself makes."""
    gc.collect()
    gc.freeze()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    found = Time(time.perf_counter() - wall, time.process_time() - cpu)
    gc.unfreeze()
    del result
    return found


def in_turns(works: Mapping[str, Work], turns: int, warm: int = 1) -> dict[str, list[Time]]:
    """Each work once per turn, in alternating order; the first `warm` turns don't count."""
    found: dict[str, list[Time]] = {name: [] for name in works}
    for turn in range(turns + warm):
        for name in list(works) if turn % 2 else list(works)[::-1]:
            once = timed(works[name])
            if turn >= warm:
                found[name].append(once)
    return found


def middle(times: Sequence[Time]) -> Time:
    return Time(median(time.wall for time in times), median(time.cpu for time in times))


def ratio_row(
    what: str, times: tuple[Sequence[Time], Sequence[Time]], peer: str, scale: float = 1.0, **rest: Any
) -> Row:
    """Ours over the peer's, for `scale` times the work: the median over the turns of each turn's ratio."""
    ours, theirs = times
    wall = median(a.wall / b.wall for a, b in zip(ours, theirs, strict=True)) / scale
    cpu = median(a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True)) / scale
    return Row(what, str(middle(ours)), f"{peer}: {middle(theirs)}", wall, cpu, **rest)


def fresh(target: str, *arguments: Any) -> Any:
    """What `module:function` returns (as JSON) for `arguments` in a new process."""
    module, _, function = target.partition(":")
    code = (
        f"import json, sys; from {module} import {function} as f; r = f(*json.loads(sys.argv[1])); print(json.dumps(r))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{target} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(field: str = "VmRSS") -> float:
    """Resident memory of this process in GB; with `VmHWM` its peak since the start or the last `forget_peak`."""
    found = re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    if found is None:
        raise Skipped("memory is read from /proc, which this system does not have")
    return int(found[1]) * 1024 / 1e9


def forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def available_memory() -> float:
    """GB that new processes can take."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 / 1e9 if found else 0.0

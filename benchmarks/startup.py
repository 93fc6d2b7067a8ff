"""`graphgrow --help` in a fresh process, against `python -c pass`: seconds beyond the bare interpreter, over 0.3 s."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.measure import Row, Skipped, Work, in_turns, middle

LIMIT = 0.3  # seconds


def rows() -> Iterator[Row]:
    script = pathlib.Path(sys.executable).with_name("graphgrow")
    if not script.exists():
        raise Skipped(f"no {script}: install graphgrow first")

    def command(*words: str) -> Work:
        return lambda: subprocess.run(words, check=True, capture_output=True)

    works = {"help": command(str(script), "--help"), "python": command(sys.executable, "-c", "pass")}
    found = in_turns(works, turns=11)
    beyond = median(a.wall - b.wall for a, b in zip(found["help"], found["python"], strict=True))
    peer = f"interpreter: {middle(found['python'])}; limit {LIMIT} s"
    yield Row("graphgrow --help, beyond the interpreter", f"{beyond:.3f} s", peer, beyond / LIMIT, target=1.0)

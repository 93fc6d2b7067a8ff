"""What the certificate costs: the parts of `widen` (all inner axes times 2) on 124 million parameters (the GPT-2 small
shape) as fractions of the whole pass. Nothing is taken from an earlier run: tensors are digested, axes inferred again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from benchmarks import models
from benchmarks.analysis import forgotten
from benchmarks.measure import Row, Time, middle, timed
from graphgrow import digest
from graphgrow.program import Program
from passes import Widen

TURNS = 5
PARTS = {  # where the pass looks each part up, and what it is
    "passes.widen.Widen.rewrite": "rewrite (with its own proof)",
    "graphgrow.verify.judges.align": "alignment (with the axes of the new program)",
    "graphgrow.verify.judges.prove": "proof (with reading all weights)",
    "graphgrow.verify.judges.test": "numeric test",
    "graphgrow.verify.judges._dead": "test for dead growth",
    "graphgrow.program.digest": "digests of both programs",
}


class Stopwatch:
    """Adds up the time spent in functions, not counting one inside another."""

    def __init__(self) -> None:
        self.spent: dict[str, Time] = {}
        self.inside = False

    def watching(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return work(*arguments, **options)
            self.inside = True
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return work(*arguments, **options)
            finally:
                self.inside = False
                before = self.spent.get(name, Time(0.0, 0.0))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                self.spent[name] = Time(before.wall + wall, before.cpu + cpu)

        return run


def one_pass(program: Program) -> dict[str, Time]:
    """The parts of one pass, and `whole`."""
    digest._known.clear()  # pyright: ignore[reportPrivateUsage]
    program = forgotten(program)
    watch = Stopwatch()
    with ExitStack() as stack:
        for place, name in PARTS.items():
            patcher = patch(place)
            original, _ = patcher.get_original()
            stack.enter_context(patch(place, watch.watching(name, original)))
        whole = timed(lambda: Widen()(program))
    return {"whole": whole, **watch.spent}


def rows() -> Iterator[Row]:
    program = models.gpt2_program(12, 768, 12)
    turns = [one_pass(program) for _ in range(TURNS + 1)][1:]
    whole = middle([turn["whole"] for turn in turns])
    copies = [timed(lambda: [tensor.detach().clone() for tensor in program.tensors.values()]) for _ in range(TURNS + 1)]
    copy = middle(copies[1:])
    yield Row("whole pass, against a copy of the old program", str(whole), f"clone: {copy}", whole.wall / copy.wall)
    for name in PARTS.values():
        part = middle([turn[name] for turn in turns])
        yield Row(name, str(part), f"whole pass: {whole}", part.wall / whole.wall, part.cpu / whole.cpu)

"""Loading a saved program, against `torch.load(mmap=True)` of the same file, which reads its tensors and, as
text, its header: each in fresh processes, the first call, imports not counted, the file in the page cache. What is
beyond torch.load is the reading and checking of the graph: by the number of nodes, whatever the size of the weights.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

from benchmarks.measure import Row, Time, fresh, ratio_row

LAYERS, TURNS = 48, 9


def by_torch(path: str) -> tuple[float, float]:
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    found = torch.load(path, mmap=True)
    return time.perf_counter() - wall, time.process_time() - cpu + 0 * len(found)


def by_graphgrow(path: str) -> tuple[float, float]:
    from graphgrow.program import Program

    wall, cpu = time.perf_counter(), time.process_time()
    found = Program.load(path)
    return time.perf_counter() - wall, time.process_time() - cpu + 0 * len(found.tensors)


def compare(what: str, path: pathlib.Path, turns: int = TURNS) -> Row:
    """The first turn, which also brings the file into the page cache, does not count."""
    ours: list[Time] = []
    theirs: list[Time] = []
    for _ in range(turns + 1):
        theirs.append(Time(*fresh("benchmarks.load:by_torch", str(path))))
        ours.append(Time(*fresh("benchmarks.load:by_graphgrow", str(path))))
    return ratio_row(what, (ours[1:], theirs[1:]), "torch.load", target=1.3)


def rows() -> Iterator[Row]:
    from benchmarks import models

    program = models.gpt2_program(LAYERS, hidden=128, heads=4)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "program.pt"
        program.save(path)
        yield compare(
            f"GPT-2 of {LAYERS} layers, {len(program.graph.nodes)} nodes, {path.stat().st_size / 1e6:.0f} MB", path
        )

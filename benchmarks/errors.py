"""How far outputs are off after each growth pass with its defaults, on every model of the tests: the worst of the
numeric test in float64 (relative to the largest output), random values in free blocks, over what the test allows there;
and the worst in float32, over what the old program itself rounds by.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Row, Skipped
from graphgrow.certificate import Trial
from graphgrow.errors import GraphgrowError
from graphgrow.pipeline import find


def rows() -> Iterator[Row]:
    try:
        from tests.growth import PASSES
        from tests.programs import traced
        from tests.zoo import ZOO
    except ImportError as error:
        raise Skipped(f"needs the tests beside it: {error}") from error
    found: dict[str, list[tuple[str, Trial]]] = {name: [] for name in PASSES}
    for model in ZOO:
        for name in PASSES:
            try:
                certificate = find(name)()(traced(model)).certificate
            except GraphgrowError:
                continue
            trials = certificate.test.trials if certificate and certificate.test else ()
            found[name] += [(model, trial) for trial in trials]
        traced.cache_clear()
    for name, trials in found.items():
        if trials:
            yield from _worst(name, trials)


def _worst(name: str, trials: list[tuple[str, Trial]]) -> Iterator[Row]:
    models = len({model for model, _ in trials})
    model, worst = max(trials, key=lambda one: one[1].output64 / one[1].tolerance64)
    what = f"{name}: {models} models, float64, worst on {model}"
    ratio = worst.output64 / worst.tolerance64
    yield Row(what, f"{worst.output64:.1e}", f"{worst.tolerance64:.1e} allowed", ratio, target=1.0)
    single = [(model, trial) for model, trial in trials if trial.rounding32]
    model, worst = max(single, key=lambda one: one[1].output32 / one[1].rounding32)
    what = f"{name}: float32, worst on {model}"
    yield Row(what, f"{worst.output32:.1e}", f"{worst.rounding32:.1e} of its own", worst.output32 / worst.rounding32)

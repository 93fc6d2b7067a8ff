"""Coordinate checks: slopes with their intervals, verdicts, and the command with its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from math import exp, log
from pathlib import Path

import pytest
import torch

from graphgrow.errors import OptionError
from graphgrow.runtime.coordinates import Coordinates, Point, Settings, coordinates
from graphgrow.runtime.coordinates.slopes import fitted, verdict
from tests.factories import residual

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


def test_a_slope_and_its_interval() -> None:
    """By hand: x = 0, 1, 2 and y = 0, 1.5, 2 give a slope of 1 and residuals -1/6, 1/3, -1/6: their squares, 1/6, over
    one degree of freedom and a spread of 2, so that half the interval is 12.706 sqrt(1/12)."""
    rows = [("a", exp(x), exp(y)) for x, y in [(0, 0.0), (1, 1.5), (2, 2.0)]]
    slope, half = fitted(rows)
    assert slope == pytest.approx(1)
    assert half == pytest.approx(12.706 * (1 / 12) ** 0.5)
    shifted = [(group, x, size * 7) for _, x, size in rows for group in ("b",)]
    assert fitted([*rows, *shifted])[0] == pytest.approx(1), "each group has an intercept of its own"
    assert fitted([("a", 1.0, 1.0), ("a", 2.0, 4.0)]) == (pytest.approx(2), float("inf"))


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(-0.1, 0.1, "stable"), (0.3, 0.9, "grows"), (-2, -0.3, "vanishes"), (-0.1, 0.3, "unclear"), (-1, 1, "unclear")],
)
def test_verdicts_are_by_the_interval(low: float, high: float, told: str) -> None:
    assert verdict(low, high, 0.2) == told


def test_what_falls_with_density_vanishes() -> None:
    settings = Settings(widths=(8,), densities=(1.0, 0.5, 0.25), base=8, seeds=2)
    points = tuple(Point("supar", "a", 8, d, seed, d * (1 + 0.01 * seed * d)) for d in settings.densities
                   for seed in range(2))  # fmt: skip
    (slope,) = Coordinates(settings, points).slopes
    assert (slope.over, slope.verdict) == ("sparsity", "vanishes")
    assert slope.value == pytest.approx(-1, abs=0.02)


def test_supar_is_stable_where_the_standard_vanishes() -> None:
    settings = Settings(widths=(64,), densities=(1.0, 1 / 4, 1 / 16), schemes=("sp", "mup", "supar"), base=32, steps=5)
    found = coordinates(residual, settings)
    assert {point.activation for point in found.points} == {"downs.0", "downs.1", "output"}
    assert found.verdict("supar") == "stable", found.slopes
    assert found.verdict("mup") == found.verdict("sp") == "vanishes"
    assert not found.stable


def test_the_standard_grows_with_width() -> None:
    settings = Settings(widths=(64, 128, 256), schemes=("sp", "supar"), base=64, steps=5)
    found = coordinates(residual, settings)
    assert (found.verdict("sp"), found.verdict("supar")) == ("grows", "stable"), found.slopes


def test_sizes_that_say_nothing_are_refused() -> None:
    with pytest.raises(OptionError, match="one width and one density"):
        Settings(widths=(8,), base=8)
    with pytest.raises(OptionError, match="no interval"):
        Settings(widths=(8, 16), base=8, seeds=1)
    fixed = Settings(widths=(8, 16), base=8)
    with pytest.raises(OptionError, match="the same size"):
        coordinates(lambda width: residual(8), fixed)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from graphgrow.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "coord-check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_command(tmp_path: Path) -> None:
    few = ["tests.factories:residual", "--widths", "64", "--base", "32", "--densities", "1,1/4,1/16", "--steps", "5",
           "--lr", "0.003"]  # fmt: skip
    done = run(*few, "--json", "-o", str(tmp_path / "coords"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdicts"] == {"supar": "stable"}
    assert (
        (tmp_path / "coords.csv").read_text().startswith("parameterization,activation,width,density,seed,size\nsupar")
    )
    assert (tmp_path / "coords.svg").read_text().count("<polyline") == 3
    sparse = run(*few, "--parameterization", "sp")
    assert sparse.returncode == 1, sparse.stdout
    assert "sp: vanishes" in sparse.stderr
    assert run("tests.factories:plain", "--widths", "1,2").returncode == 1, "it takes no width"
    assert run("no factory").returncode == run(few[0], "--widths", "a").returncode == 2


def test_slopes_of_a_power_law_are_its_exponent() -> None:
    rows = [((d, s), float(w), w**0.5 * d * exp(0.1 * s)) for w in (8, 16, 32) for d in (1.0, 0.5) for s in (0, 1)]
    slope, half = fitted(rows)
    assert slope == pytest.approx(0.5)
    assert half == pytest.approx(0, abs=1e-9)
    assert log(2) * slope == pytest.approx(log(2**0.5))

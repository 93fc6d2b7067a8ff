"""Recipes: what can be written in YAML, and what a careless one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphgrow.cli import app
from graphgrow.errors import FileError, OptionError
from graphgrow.program import Program
from graphgrow.recipe import Recipe
from tests.programs import traced

RUN = CliRunner()
GROW = """
seed: 3
passes:
  - widen: {axis: 're:mlp@blocks\\.[01]', factor: 1.5, init: copy}
  - add-heads:to=6
  - widen-hidden: {to: 72, seed: 5}
  - deepen
"""


def recipe(folder: Path, text: str) -> Path:
    path = folder / "grow.yaml"
    path.write_text(text)
    return path


def test_passes_in_every_spelling(tmp_path: Path) -> None:
    read = Recipe.read(recipe(tmp_path, GROW))
    assert read.checked() == [
        "widen:axis=re:mlp@blocks\\.[01],factor=1.5,init=copy", "add-heads:to=6", "widen-hidden:to=72,seed=5", "deepen",
    ]  # fmt: skip
    pipeline = read.pipeline(traced("nanogpt"))
    assert [one.seed for one in pipeline.passes] == [3, 3, 5, 3]
    assert [one.seed for one in read.pipeline(traced("nanogpt"), seed=9).passes] == [9, 9, 5, 9]


def test_a_target_is_planned(tmp_path: Path) -> None:
    read = Recipe.read(recipe(tmp_path, "target: {hidden: 96, layers: 3, heads: 8}"))
    assert read.planned(traced("llama")).specs == ("add-kv-heads:to=4", "widen-hidden:to=96", "deepen:to=3")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("passes: [widen", "no YAML"),
        ("passes: widen", "passes: "),
        ("pases: [widen]", "pases"),
        ("seed: -1\npasses: [widen]", "seed"),
        ("{}", "either passes or a target"),
        ("passes: [widen]\ntarget: {hidden: 4}", "either passes or a target"),
        ("target: {hiden: 4}", "target.hiden"),
        ("target: {hidden: 0}", "greater than 0"),
        ("passes: []", "no passes"),
        ("passes: [widn]", "'widen'"),
        ("passes: [{widen: {factr: 2}}]", "'factor'"),
        ("passes: [{widen: {}, deepen: {}}]", "item of its own"),
        ("passes: [{widen: {factor: many}}]", "as float"),
    ],
)
def test_a_careless_recipe(text: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        Recipe.read(recipe(tmp_path, text)).checked()
    assert word in str(caught.value) and caught.value.fix


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="can't be read"):
        Recipe.read(tmp_path / "none.yaml")


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    traced("nanogpt").save("model.pt")
    recipe(tmp_path, GROW)
    done = RUN.invoke(app, ["apply", "model.pt", "--recipe", "grow.yaml", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "model.grow.pt"
    assert len(Program.load("model.grow.pt").journal) == 4
    both = RUN.invoke(app, ["apply", "model.pt", "--recipe", "grow.yaml", "--pass", "widen"])
    assert both.exit_code == 2 and "one of both" in both.stderr
    recipe(tmp_path, "passes: [widn]")
    assert RUN.invoke(app, ["apply", "model.pt", "--recipe", "grow.yaml", "-o", "other.pt"]).exit_code == 2
    told = RUN.invoke(app, ["check", "model.pt", "model.grow.pt", "--explain"])
    assert told.exit_code == 0 and "x + 0 = x" in told.stdout, told.stderr

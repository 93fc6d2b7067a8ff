"""Targets: a number of parameters is counted right, met as near as it can be, in proportion, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphgrow.cli import app
from graphgrow.errors import OptionError, Refusal
from graphgrow.pipeline import Pipeline
from graphgrow.plan import Sizes, measured
from graphgrow.program import Program
from graphgrow.recipe import Recipe
from graphgrow.sizes import evaluate
from graphgrow.target import MISSED, counted, parsed, planned
from tests.programs import traced

RUN = CliRunner()
NONE = Sizes()
MODELS = ["gpt2", "llama", "phi3", "t5", "bert", "vit", "albert", "skip_mlp", "small_cnn"]


@pytest.mark.parametrize("model", MODELS)
def test_the_polynomial_counts_what_there_is(model: str) -> None:
    program = traced(model)
    now = measured(program)
    values = {kind: size for kind, size in vars(now).items() if size is not None}
    values["heads"] = (now.heads or 0) // (now.kv_heads or 1)
    assert evaluate(counted(program, now), values) == program.size


@pytest.mark.parametrize(
    ("model", "params"), [("gpt2", "2.5x"), ("llama", "2x"), ("t5", "150k"), ("skip_mlp", "4x"), ("bert", "5x")]
)
def test_what_is_planned_is_reached(model: str, params: str) -> None:
    program = traced(model)
    found = planned(program, NONE, params)
    new = Pipeline.parse(found.specs)(program)
    assert new.size == found.parameters
    assert measured(new) == found.sizes
    assert abs(new.size / parsed(params, program.size) - 1) < 0.02
    assert all(certificate.holds for certificate in new.journal)


def test_proportions_are_kept() -> None:
    """Far from the rounding: twice the size of everything is what a target of that many parameters takes."""
    program = traced("gpt2")
    now = measured(program)
    twice = {kind: 2 * size for kind, size in vars(now).items() if size and kind != "head_size"}
    values = {**twice, "head_size": now.head_size or 0}
    found = planned(program, NONE, evaluate(counted(program, now), values)).sizes
    assert found == Sizes(**values)


def test_heads_keep_their_size_and_groups() -> None:
    for model in ("gpt2", "llama"):
        now, found = measured(traced(model)), planned(traced(model), NONE, "8x").sizes
        assert found and found.head_size == now.head_size and found.heads and now.heads
        assert found.heads // (found.kv_heads or found.heads) == now.heads // (now.kv_heads or now.heads)
    found = planned(traced("gpt2"), NONE, "8x").sizes
    assert found and (found.heads or 0) * (found.head_size or 0) == found.hidden


def test_what_is_given_stays() -> None:
    found = planned(traced("gpt2"), Sizes(layers=2), "4x")
    assert found.sizes and found.sizes.layers == 2 and abs(found.parameters / found.wanted - 1) < 0.02
    assert not any("deepen" in spec for spec in found.specs)
    found = planned(traced("gpt2"), Sizes(layers=4), "4x")
    assert "deepen:to=4" in found.specs


def test_what_cannot_grow_is_noted() -> None:
    bert = planned(traced("bert"), NONE, "5x")
    assert [note.partition(" ")[0] for note in bert.notes] == ["layers"] and "after the addition" in bert.notes[0]
    assert bert.sizes and (bert.sizes.hidden or 1) % 48 == 0, "layer norm after the addition: multiples only"
    t5 = planned(traced("t5"), NONE, "2x")
    assert "hidden left as it is: the axis is seen in the output" in str(t5)
    assert planned(traced("phi3"), NONE, "2x").notes == ("heads left as it is: there are several, of 2, 3",)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(Refusal, match="the nearest") as caught:
        planned(traced("densenet"), NONE, "2x")
    assert caught.value.fix == "apply passes to axes that can grow"
    program = traced("distilbert")
    with pytest.raises(Refusal, match="mlp left as it is: there are several, of 48, 80") as caught:
        planned(program, NONE, "2x")
    reached = int(caught.value.fix.split("params=")[1].split()[0])
    assert abs(reached / (2 * program.size) - 1) > MISSED
    assert planned(program, NONE, reached).parameters == reached, "what is said can be reached can be"


@pytest.mark.parametrize(
    ("params", "number"),
    [("2x", 200), ("1.5x", 150), (350, 350), ("350", 350), ("1_000", 1000), ("1.5k", 1500), ("350M", 350_000_000),
     ("7B", 7_000_000_000), (" 2X ", 200)],
)  # fmt: skip
def test_numbers_of_parameters(params: str | int, number: int) -> None:
    assert parsed(params, 100) == number


@pytest.mark.parametrize("params", ["", "x", "two", "2y", "-2x", "1x", "0.5x", "100", "99", "1e9", "2xx", "nan"])
def test_careless_numbers(params: str) -> None:
    with pytest.raises(OptionError) as caught:
        parsed(params, 100)
    assert caught.value.fix


def test_sizes_that_would_follow_cannot_be_given() -> None:
    with pytest.raises(OptionError, match="only layers and mlp"):
        planned(traced("gpt2"), Sizes(hidden=96), "2x")
    with pytest.raises(OptionError, match="where the model has 2"):
        planned(traced("gpt2"), Sizes(layers=1), "2x")


def test_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = traced("gpt2")
    program.save("model.pt")
    specs = list(planned(program, NONE, "2x").specs)
    Path("grow.yaml").write_text("target: {params: 2x}")
    assert list(Recipe.read("grow.yaml").planned(program).specs) == specs
    told = RUN.invoke(app, ["plan", "model.pt", "--params", "2x", "--json"])
    assert (
        json.loads(told.stdout)["passes"] == specs and json.loads(told.stdout)["target"]["wanted"] == 2 * program.size
    )
    shown = RUN.invoke(app, ["plan", "model.pt", "--params", "2x"])
    assert f"of the {2 * program.size:,} wanted" in shown.stdout and not list(tmp_path.glob("*params*"))
    done = RUN.invoke(app, ["apply", "model.pt", "--target", "params=2x"])
    assert done.exit_code == 0 and f"of the {2 * program.size:,} wanted" in done.stdout, done.stderr
    new = Program.load("model.params-2x.pt")
    assert [certificate.spec for certificate in new.journal] == specs
    sized = RUN.invoke(app, ["apply", "model.pt", "--target", "mlp=96, layers=3", "--dry-run", "--json"])
    assert json.loads(sized.stdout)["passes"] == ["widen:axis=mlp,to=96", "deepen:to=3"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["apply", "model.pt", "--target", "params=2x", "--pass", "widen"], 2, "one of both"),
        (["apply", "model.pt", "--target", "params=many"], 2, "no number of parameters"),
        (["apply", "model.pt", "--target", "parms=2x"], 2, "parms"),
        (["apply", "model.pt", "--target", "hidden=wide"], 2, "hidden"),
        (["apply", "model.pt", "--target", ""], 2, "names: "),
        (["plan", "model.pt", "--params", "0.5x"], 2, "give a larger number"),
        (["plan", "model.pt", "--params", "2x", "--heads", "8"], 2, "only layers and mlp"),
    ],
)
def test_a_careless_target(
    arguments: list[str], code: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    traced("gpt2").save("model.pt")
    refused = RUN.invoke(app, arguments)
    assert refused.exit_code == code and word in refused.stderr, refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]

"""Specs of passes: whatever the options hold, the text says it, and reading it gives the pass back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphgrow import pipeline
from graphgrow.errors import OptionError
from graphgrow.pipeline import Pass, Pipeline, option, parse_pass
from graphgrow.rewrite import Rewriter
from passes import Widen


@dataclass(frozen=True, kw_only=True)
class Every(Pass):
    """An option of every kind."""

    name: ClassVar[str] = "every"
    claim: ClassVar[Literal["Changes"]] = "Changes"

    text: str = option("", default="auto")
    count: int | None = option("", default=None)
    factor: float = option("", default=1.0)
    on: bool = option("", default=False)
    way: Literal["a", "b,c", '"', 3] | None = option("", default="a")
    names: tuple[str, ...] = option("", default=())
    numbers: tuple[float, ...] | None = option("", default=())

    def rewrite(self, rewriter: Rewriter) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "available", lambda: {"every": f"{__name__}:Every", "widen": "passes.widen:Widen"})


# Text where a spec could go wrong: its own marks, words that mean a value, spaces.
TEXT = st.one_of(st.text(alphabet="\",+= :\\nN\n'", max_size=6), st.sampled_from(["none", "None", "seed=3"]), st.text())
FLOATS = st.one_of(st.floats(allow_nan=False), st.integers(-(2**53), 2**53))
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "count": st.none() | st.integers(),
    "factor": FLOATS,
    "on": st.booleans(),
    "way": st.sampled_from(["a", "b,c", '"', 3, None]),
    "names": st.lists(TEXT, max_size=3).map(tuple),
    "numbers": st.none() | st.lists(FLOATS, max_size=3).map(tuple),
    "seed": st.integers(0, 2**32 - 1),
}


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({}, optional=OPTIONS), st.integers(0, 9))
def test_specs_round_trip(options: dict[str, Any], seed: int) -> None:
    one = Every(**options)
    again = parse_pass(one.spec)
    assert again == one and again.spec == one.spec
    seeded = parse_pass(one.spec, seed)
    assert seeded == (one if one.seed else Every(**{**options, "seed": seed}))


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        ('widen:axis="re:mlp@h.(1,2)",to=8', "re:mlp@h.(1,2)"),
        ('widen: to = 8 , axis = "a, b" ', "a, b"),
        (r"widen:to=8,axis=re:mlp@h\.\d+", r"re:mlp@h\.\d+"),
        ('widen:axis="say ""hi""",to=8', 'say "hi"'),
        ('widen:axis="",to=8,', ""),
        ("widen:axis=a=b+c,to=8", "a=b+c"),
    ],
)
def test_values_as_people_write_them(spec: str, axis: str) -> None:
    assert parse_pass(spec) == Widen(axis=axis, to=8)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ('widen:axis="re:mlp@h.(1,2),to=8', "double quotes"),
        ('widen:axis=say "hi"', "double quotes"),
        ('widen:axis="a"b"', "double quotes"),
        ("widen:to=8,to=9", "each option once"),
        ("widen:axis=re:(1,2)", "key=value"),
        ("widen:to=", "as int"),
        ("every:way=c", "valid"),
        ("every:on=maybe", "as bool"),
        ("every:numbers=1+x", "as float"),
        ("every:count=1.5", "as int"),
    ],
)
def test_specs_that_cannot_be_read(spec: str, word: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_pass(spec)
    assert word in caught.value.fix, caught.value


@pytest.mark.parametrize(
    "options",
    [{"names": ("a", 1)}, {"names": "a"}, {"numbers": ["1"]}, {"way": "d"}, {"factor": 2**60 + 1}, {"count": True}],
)
def test_values_of_another_kind_are_refused_in_python(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Every(**options)


def test_a_seed_is_for_specs_that_have_none() -> None:
    """Decided from the options, not from the text."""
    specs = ["widen", "widen:axis=seed=1", "widen:seed=0", " widen : seed = 1"]
    assert [one.seed for one in Pipeline.parse(specs, seed=8).passes] == [8, 8, 0, 1]
    assert [one.seed for one in Pipeline.parse(specs).passes] == [0, 0, 0, 1]

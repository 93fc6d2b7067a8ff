"""The errors' text, and the nearest names of a misspelled one."""

import pickle

import pytest

from graphgrow.errors import CheckFailed, FileError, GraphgrowError, OptionError, Refusal, TraceError


def test_text_has_one_row_per_field():
    error = Refusal(found="14 heads in 4 groups", where="heads@h.3", fix="use 16,\nor grow 'kv_heads'")

    assert str(error) == ("found  14 heads in 4 groups\nwhere  heads@h.3\ndo     use 16,\n       or grow 'kv_heads'")


def test_empty_fields_have_no_row():
    assert str(FileError(found="a size of 900 characters")) == "found  a size of 900 characters"


def test_outer_context_can_be_added():
    error = FileError(found="'2**9', which is not a size")
    error.where = "model.pt"

    assert str(error) == "found  '2**9', which is not a size\nwhere  model.pt"


@pytest.mark.parametrize("kind", [Refusal, TraceError, FileError, OptionError, CheckFailed])
def test_errors_are_one_family_and_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind(found="a", where="b", fix="c")))

    assert type(error) is kind
    assert isinstance(error, GraphgrowError)
    assert (error.found, error.where, error.fix) == ("a", "b", "c")


def test_unknown_name_gets_the_nearest_and_all_names():
    error = OptionError.unknown("pass", "widn", ["sparsify", "widen", "deepen", "widen"], where="--pass")

    assert error.found == "'widn', which is not a known pass"
    assert error.where == "--pass"
    assert error.fix.startswith("use 'widen'")
    assert error.fix.endswith("\nvalid: deepen, sparsify, widen")


def test_nearness_ignores_case_and_keeps_the_spelling():
    assert OptionError.unknown("axis", "MLP", ["Mlp", "mlp", "hidden"]).fix.startswith("use 'Mlp' or 'mlp'\n")


def test_nothing_near_lists_what_there_is():
    error = OptionError.unknown("pass", "quantise", ["widen"])

    assert error.fix == "use one of the names that exist\nvalid: widen"


def test_no_names_at_all():
    assert "no option" in OptionError.unknown("option", "seed", []).fix


def test_long_lists_are_cut_but_counted():
    names = [f"mlp@h.{layer:02}" for layer in range(96)]
    fix = OptionError.unknown("axis", "mlp@h.99", names).fix

    assert fix.endswith("mlp@h.19, and 76 more")
    assert "use 'mlp@h.9" in fix

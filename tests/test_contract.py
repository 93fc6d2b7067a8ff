"""Every registered pass against every promise that a pass makes; and the registry itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import product
from math import inf, nextafter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphgrow import pipeline
from graphgrow.errors import GraphgrowError, OptionError, Refusal
from graphgrow.pipeline import Pass, Pipeline, available, find, parse_pass, select
from graphgrow.program import Program
from graphgrow.prove import fresh
from graphgrow.prove.facts import settle
from graphgrow.verify import check
from tests.programs import outputs, traced

torch.set_num_threads(1)


@dataclass(frozen=True)
class Promise:
    """What a pass is held to. `options` make sense on all of `models`; `specs` are others that round trip; `nonsense`
    comes with a word that its error must say; `text` are specs that can't be read; `refused` fails on skip_mlp."""

    models: list[str]
    options: list[dict[str, Any]]
    refused: dict[str, Any]
    specs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    nonsense: list[tuple[dict[str, Any], str]] = field(default_factory=list[tuple[dict[str, Any], str]])
    text: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    renames: bool = False  # tensors, so that old state dicts have other names
    after: tuple[str, ...] = ()  # passes that are run before
    random: bool = True  # the seed matters
    once: bool = False  # its own output leaves it nothing to do
    again: dict[str, Any] = field(default_factory=dict[str, Any])  # other options for its own output


WIDTHS = ["skip_mlp", "small_cnn", "tied_autoencoder", "nanogpt", "llama", "densenet"]
ATTENTION = ["nanogpt", "llama"]
NO_AXIS = {"axis": "classes"}

# A pass without a row here fails `test_every_pass_is_here`.
PROMISES: dict[str, Promise] = {
    "widen": Promise(
        WIDTHS,
        [{"factor": 1.5}, {"factor": 1.25, "multiple_of": 4, "init": "copy", "seed": 3}],
        NO_AXIS,
        [
            {}, {"axis": "mlp"}, {"axis": "mlp@ups.0", "to": 48}, {"factor": 1.5}, {"factor": 1e-3 + 1, "seed": 7},
            {"axis": "re:mlp@.*", "multiple_of": 64}, {"axis": "*.h.?.mlp", "init": "zero"},
            {"axis": "a=b:c", "init": "copy"}, {"axis": "re:mlp@h.(1,2)"}, {"axis": 'say "hi"', "factor": 2.0},
        ],
        [
            ({"to": 80, "factor": 2.0}, "not both"), ({"factor": 0.5}, "at least 1"),
            ({"factor": float("nan")}, "at least 1"), ({"factor": float("inf")}, "at least 1"),
            ({"to": 0}, "positive"), ({"to": -3}, "positive"), ({"multiple_of": 0}, "positive"),
            ({"axis": "mpl"}, "'mlp'"), ({"axis": "mlp@ups.7"}, "'mlp@ups.0'"), ({"axis": ""}, "valid"),
            ({"axis": "mlp", "to": 2}, "more than 40"), ({"axis": "mlp", "to": 40}, "larger"),
            ({"axis": "classes"}, "other axes"), ({"axis": "features"}, "other axes"),
            ({"init": "zero"}, "init=scaled"),
        ],
        [
            ("widen:to=many", "as int"), ("widen:factor=x", "as float"),
            ("widen:init=ones", "valid: copy, mup, scaled, zero"),
            ("widen:factr=2", "'factor'"), ("widen:axis", "key=value"), ("widen:seed=1.5", "as int"),
        ],
    ),
    "widen-experts": Promise(
        ["mixtral", "routed"], [{"factor": 1.5}], NO_AXIS, [{"to": 96, "init": "copy"}],
        [({}, "`widen`"), ({"axis": "mlp"}, "leave 'mlp' to"), ({"axis": "mpl"}, "'mlp'")],
    ),
    "duplicate-experts": Promise(
        ["mixtral", "routed"], [{}], {}, [{"factor": 3, "axis": "experts@*"}],
        [
            ({}, "axis of experts"), ({"axis": "hidden"}, "axis of experts"), ({"factor": 1}, "from 2"),
            ({"axis": "expert"}, "valid"),
        ],
        [("duplicate-experts:factor=1.5", "as int")], random=False,
    ),
    "upcycle": Promise(
        ["skip_mlp", "nanogpt"], [{"experts": 3, "every": 2}], {"every": 4},
        [{"axis": "mlp@*", "top_k": 3}, {"experts": 64, "seed": 2}],
        [
            ({"top_k": 1}, "at least 2"), ({"experts": 4, "top_k": 5}, "of at most"), ({"every": 0}, "positive"),
            ({"axis": "mlp@up.0"}, "'mlp@ups.0'"), ({"axis": "hidden"}, "name another"), ({"every": 4}, "every=3"),
        ],
        [("upcycle:experts=some", "as int")], renames=True, again={"every": 1},
    ),
    "add-heads": Promise(
        ATTENTION, [{"factor": 1.5}], NO_AXIS, [{"to": 12, "init": "copy"}], [({}, "axis of the role heads")]
    ),
    "add-kv-heads": Promise(["llama"], [{}], NO_AXIS, [{"factor": 1.5}], [({}, "axis of the role kv_heads")]),
    "widen-keys": Promise(
        ATTENTION, [{"factor": 1.5}], NO_AXIS, [{"scale": "weights"}], [({}, "axis of the role key")],
        [("widen-keys:scale=auto", "valid: literal, weights")],
    ),
    "widen-values": Promise(ATTENTION, [{"factor": 1.5}], NO_AXIS, [{}], [({}, "axis of the role value")]),
    "widen-hidden": Promise(
        ATTENTION, [{"factor": 1.5}], NO_AXIS, [{"by": "means"}, {"by": "copies", "factor": 2}],
        [({"by": "copies", "factor": 1.5}, "without changing"), ({"to": 8, "factor": 2.0}, "not both")],
        [("widen-hidden:by=magic", "valid: auto, copies, means, shares, zeros")],
    ),
    "grow-vocab": Promise(ATTENTION, [{"factor": 1.5}], {}, [{"to": 120}, {"multiple_of": 64}]),
    "prune-axis": Promise(
        WIDTHS, [{"factor": 0.75}, {"factor": 0.6, "multiple_of": 2}], {"axis": "classes"},
        [{"units": (3, 7)}, {"score": "activation", "axis": "re:mlp@.*"}],
        [
            ({"to": 8, "factor": 0.5}, "one of"), ({"factor": 1.5}, "at most 1"), ({"factor": 0.0}, "above 0"),
            ({"to": 0}, "positive"), ({"multiple_of": 0}, "positive"), ({"to": 99}, "at most 40"),
            ({"to": 40}, "smaller"), ({"units": (40,)}, "not all"), ({"units": (2, 2)}, "once"),
            ({"axis": "mpl"}, "'mlp'"), ({"axis": "features"}, "another axis"), ({"score": "activation"}, "--data"),
            ({"score": "taylor"}, "--data"), ({"allocation": "global", "to": 8}, "factor"),
        ],
        [("prune-axis:units=a", "as int"), ("prune-axis:score=size", "valid: activation, magnitude, taylor")],
        random=False,
    ),
    "drop-blocks": Promise(
        ["nanogpt", "llama"], [{"layers": (1,)}], {"layers": (9,)}, [{"stack": "layers@*", "to": 1}, {"factor": 0.5}],
        [
            ({"to": 1, "layers": (1,)}, "one of"), ({"factor": 1.5}, "at most 1"), ({"to": 0}, "positive"),
            ({"layers": (1, 1)}, "once"), ({}, "--data"), ({"layers": (0,), "stack": "h"}, "valid"),
            ({"layers": (0, 1, 2, 3, 4, 5)}, "not all"),
        ],
        [("drop-blocks:layers=a", "as int")], renames=True, random=False, once=True,
    ),
    "sparsify": Promise(
        ["skip_mlp", "small_cnn", "nanogpt", "llama"],
        [{}, {"pattern": "unstructured", "density": 0.3, "allocation": "erk"}], {"pattern": "2:1000"},
        [
            {"score": "wanda"}, {"pattern": "block4x4", "density": 0.25, "at": "re:up.*"}, {"pattern": "2:4x8"},
            {"pad": True, "keep": "*.down.*"}, {"masked": "replace", "score": "random", "seed": 3},
        ],
        [
            ({"pattern": "2:1"}, "unstructured"), ({"pattern": "2:4@1"}, "without dimensions"),
            ({"density": 0.5}, "says both"), ({"allocation": "global"}, "says both"),
            ({"pattern": "unstructured", "density": 2.0}, "at most 1"), ({"at": "*.nothing"}, "valid"),
            ({"keep": "nothing"}, "valid"), ({"score": "gradient"}, "--data"), ({"score": "wanda"}, "--data"),
        ],
        [("sparsify:pad=some", "as bool"), ("sparsify:score=size", "valid: gradient, magnitude, random, wanda")],
        renames=True, random=False,
        again={"pattern": "unstructured", "density": 0.1, "allocation": "uniform"},
    ),
    "permute-for-nm": Promise(
        ["skip_mlp", "small_cnn", "nanogpt", "llama"], [{"rounds": 0}], {"axis": "classes"},
        [{"axis": "mlp@*", "pattern": "1:4"}, {"rounds": 100, "seed": 2}],
        [
            ({"pattern": "unstructured"}, "N below M"), ({"pattern": "4:4"}, "N below M"), ({"rounds": -1}, "or more"),
            ({"pattern": "2:4x8"}, "N below M"), ({"axis": "mpl"}, "'mlp'"),
        ],
        [("permute-for-nm:rounds=many", "as int")], renames=True, random=False, once=True,
    ),
    "factorize": Promise(
        ["skip_mlp", "small_cnn", "nanogpt", "llama"], [{}, {"fraction": 0.4, "init": "ones"}], {"rank": 500},
        [
            {"at": "re:mlp.*", "rank": 4}, {"energy": 0.9, "larger": True}, {"by": "activations", "fraction": 0.1},
            {"method": "randomised", "conv": "separable", "seed": 2}, {"init": "random", "rank": 3},
        ],
        [
            ({"rank": 2, "budget": 0.5}, "one of"), ({"rank": 0}, "positive"), ({"fraction": 1.5}, "at most 1"),
            ({"energy": 0.0}, "above 0"), ({"budget": float("nan")}, "above 0"),
            ({"at": "up.0.weight"}, "'ups.0.weight'"), ({"by": "activations"}, "--data"),
            ({"energy": 0.5, "method": "randomised"}, "rank or fraction"),
            ({"by": "activations", "init": "random"}, "method=svd"), ({"budget": 0.5, "larger": True}, "leave out"),
        ],
        [("factorize:rank=a", "as int"), ("factorize:init=he", "valid: ones, random, spectral")],
        renames=True, random=False,
    ),
    "merge-factors": Promise(
        ["skip_mlp", "small_cnn", "nanogpt", "llama"], [{}], {}, [{"at": "*_left"}],
        [({}, "no weight is multiplied")], after=("factorize",), renames=True, random=False, once=True,
    ),
    "split-kv-heads": Promise(
        ["qwen3", "phi3"], [{}], {}, [{"to": 6}, {"axis": "re:kv.*"}],
        [({"to": 4, "factor": 2}, "not both"), ({"factor": 1}, "from 2"), ({}, "share")],
        random=False, once=True,
    ),
    "supar": Promise(
        ["skip_mlp"], [{"base": ("hidden=8", "mlp=10")}], {"base": ("hidden=8",)},
        [
            {"base": ("hidden=256", "mlp=1024"), "density": 0.5}, {"base": ("re:mlp@ups.(0,1)=4",), "alpha_in": 9.25},
            {"base": ("hidden=8",), "form": "fresh", "sigma": 0.02, "optimizer": "sgd", "decay": "scale"},
        ],
        [
            ({"base": ()}, "name widths"), ({"base": ("hidden",)}, "AXIS=SIZE"), ({"base": ("hidden=0",)}, "AXIS=SIZE"),
            ({"base": ("hidn=8",)}, "'hidden'"), ({"base": ("hidden=8",)}, "mlp=40 if it does not"),
            ({"base": ("hidden=8", "*=4")}, "once"), ({"base": ("hidden=8",), "density": 0.0}, "above 0"),
            ({"base": ("hidden=8",), "alpha_out": -1.0}, "positive"),
            ({"base": ("hidden=8",), "sigma": 0.1}, "form=fresh"),
        ],
        [("supar:base=hidden=8,form=new", "valid: fresh, reparameterise")], random=False,
        renames=True,  # no shape changes, and the values of a head do
    ),
    "undo": Promise(
        WIDTHS, [{}], {}, after=("widen:factor=1.25", "widen:factor=1.5"), random=False,
        nonsense=[({}, "keep the file from before")],
    ),
    "deepen": Promise(
        ["skip_mlp", "nanogpt", "llama"], [{"factor": 1.5, "init": "scaled"}], {"at": 9},
        [{"at": 0, "to": 4}, {"order": "stack"}, {"stack": "re:encoder.*,x"}],
        [
            ({"to": 8, "factor": 2.0}, "not both"), ({"factor": 0.5}, "at least 1"), ({"to": 2}, "more than 3"),
            ({"to": 3}, "larger"), ({"at": 1, "order": "stack"}, "without `order`"), ({"at": 9}, "up to 3"),
            ({"stack": "layers@up"}, "'layers@ups'"), ({"stack": "re:("}, "mend"), ({"at": -1}, "from 0"),
        ],
        [("deepen:order=top", "valid: interleave, stack")], renames=True,
    ),
}  # fmt: skip


def passes() -> Iterator[Any]:
    for name in available():
        for index, options in enumerate(PROMISES[name].options if name in PROMISES else []):
            yield pytest.param(name, index, id=find(name)(**options).spec)


def cases() -> Iterator[Any]:
    for item in passes():
        for model in PROMISES[item.values[0]].models:
            yield pytest.param(*item.values, model, id=f"{item.id}-{model}")


def made(name: str, index: int, **changes: Any) -> Pass:
    return find(name)(**{**PROMISES[name].options[index], **changes})


@cache
def begun(name: str, model: str) -> Program:
    """What a pass is given: the traced program, or what other passes made of it."""
    return Pipeline.parse(PROMISES[name].after)(traced(model))


@cache
def applied(name: str, index: int, model: str) -> Program:
    return made(name, index)(begun(name, model))


def test_every_pass_is_here() -> None:
    assert set(available()) == set(PROMISES)


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_the_input_is_untouched(name: str, index: int, model: str) -> None:
    program = begun(name, model)
    before = {key: tensor.detach().clone() for key, tensor in program.tensors.items()}
    places = {key: tensor.data_ptr() for key, tensor in program.tensors.items()}
    digest, graph, journal = program.digest, str(program.graph), program.journal
    new = made(name, index)(program)
    assert new.digest != digest, "a pass that changes nothing keeps every promise"
    # A fresh program: digests are remembered by tensor, so one changed in place would keep its old one.
    copied = program.replace(tensors={key: tensor.detach().clone() for key, tensor in program.tensors.items()})
    assert program.digest == copied.digest == digest
    assert (str(program.graph), program.journal) == (graph, journal)
    assert all(torch.equal(before[key], tensor) for key, tensor in program.tensors.items())
    assert places == {key: tensor.data_ptr() for key, tensor in program.tensors.items()}


def meet_neighbours() -> None:
    """Let the prover meet numbers that are one unit in the last place beside those of small growths."""
    for new, old, exponent in product(range(1, 129), range(1, 129), (0.5, 1.0, 2.0)):
        settle(nextafter((new / old) ** exponent, inf))


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_deterministic_in_its_seed(name: str, index: int, model: str) -> None:
    program, first = begun(name, model), applied(name, index, model)
    torch.manual_seed(99)  # the global generator plays no part
    state = torch.get_rng_state()
    with fresh():
        meet_neighbours()  # nor does what was proved before
        assert made(name, index)(program).digest == first.digest
    assert torch.equal(state, torch.get_rng_state())
    other = made(name, index, seed=made(name, index).seed + 1)(program)
    assert (other.digest != first.digest) == PROMISES[name].random
    assert other.certificate and (other.certificate.test or other.certificate.measured) and other.certificate.holds


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_the_claim_holds(name: str, index: int, model: str) -> None:
    """By its certificate, by a check from outside, and by the outputs themselves."""
    old, new = begun(name, model), applied(name, index, model)
    certificate = new.certificate
    assert certificate is not None and certificate.holds
    assert (certificate.old, certificate.new) == (old.digest, new.digest)
    assert (certificate.spec, certificate.claim) == (made(name, index).spec, find(name).claim)
    outside = check(old, new, seed=12)
    assert outside.growth == certificate.growth
    assert outside.holds == (certificate.claim == "Exact")
    if certificate.claim == "Exact":
        assert outside.proof == certificate.proof
        assert certificate.evidence == "proved and tested"
        inputs = old.example(seed=5)
        with torch.no_grad():
            left, right = (outputs(program.module().eval(), inputs) for program in (old, new))
        for a, b in zip(left, old_units(old, new, right), strict=True):
            # float32 sums of some hundred terms in another order: 100 * eps32 of the largest value
            assert float((a - b).abs().max()) <= 100 * torch.finfo(torch.float32).eps * float(a.abs().max())


def old_units(old: Program, new: Program, found: list[Tensor]) -> list[Tensor]:
    """Of outputs that have new units the old ones: they stand first."""
    shapes = [old.graph[name].shape for name in old.graph.output_names]
    assert [name for name in old.graph.output_names if new.graph[name].shape != old.graph[name].shape] == list(
        new.certificate.extended if new.certificate else ()
    )
    cut = [tuple(slice(n if isinstance(n, int) else None) for n in shape) for shape in shapes]
    return [output[at] for output, at in zip(found, cut, strict=True)]


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_its_output_is_a_valid_input(name: str, index: int, model: str) -> None:
    once = applied(name, index, model)
    if PROMISES[name].once:
        with pytest.raises(Refusal):
            made(name, index)(once)
        return
    twice = made(name, index, **PROMISES[name].again)(once)
    assert twice.certificate and twice.certificate.holds
    assert twice.certificate.old == once.digest
    assert [c.new for c in twice.journal[-2:]] == [once.digest, twice.digest]
    if twice.certificate.claim == "Exact":
        assert check(begun(name, model), twice).holds, "the first and the last do the same"


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_old_state_dicts_load_where_shapes_stay(name: str, index: int, model: str) -> None:
    if PROMISES[name].renames:
        return
    old, new = begun(name, model).module(), applied(name, index, model).module()
    given, taken = old.state_dict(), new.state_dict()
    assert list(given) == list(taken)
    fitting = {key: value for key, value in given.items() if value.shape == taken[key].shape}
    assert len(fitting) < len(given)
    assert all(torch.equal(value, taken[key]) for key, value in fitting.items()), "what kept its shape kept its values"
    noise = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in fitting.items()}
    found = new.load_state_dict(noise, strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= set(given) - set(fitting)
    changed = new.state_dict()
    assert all(torch.equal(changed[key], value) for key, value in _owners(noise, begun(name, model)).items())


def _owners(values: dict[str, Tensor], program: Program) -> dict[str, Tensor]:
    """Of tied names the last one loaded wins: names without a tie only."""
    tied = {*program.aliases, *program.aliases.values()}
    return {key: value for key, value in values.items() if key not in tied}


@pytest.mark.parametrize(("name", "index", "model"), list(cases()))
def test_saved_and_loaded_it_is_the_same(name: str, index: int, model: str, tmp_path: Path) -> None:
    new = applied(name, index, model)
    new.save(tmp_path / "new.pt")
    loaded = Program.load(tmp_path / "new.pt")
    assert loaded.digest == new.digest and loaded.journal == new.journal
    assert loaded.certificate and loaded.certificate.new == loaded.digest
    assert check(begun(name, model), loaded).holds == (loaded.certificate.claim == "Exact")


@pytest.mark.parametrize(("name", "index"), list(passes()))
def test_the_journal_is_kept(name: str, index: int) -> None:
    model = PROMISES[name].models[0]
    program = begun(name, model)
    before = program.journal
    again = () if PROMISES[name].once else (made(name, index, **PROMISES[name].again),)
    passes = (made(name, index), *again)
    journal = Pipeline(passes)(program).journal
    assert journal[: len(before)] == before and journal[len(before)] == applied(name, index, model).certificate
    assert len(journal) == len(before) + len(passes)
    assert program.journal == before


@pytest.mark.parametrize("name", available())
def test_specs_round_trip(name: str) -> None:
    for options in [*PROMISES[name].specs, *PROMISES[name].options]:
        one = find(name)(**options)
        again = parse_pass(one.spec)
        assert again == one and again.spec == one.spec and type(again) is type(one)
        assert set(options) <= {item.name for item in fields(one)}
    assert find(name)().spec == name, "defaults are not written"


@pytest.mark.parametrize("name", available())
def test_a_pass_is_a_frozen_value_whose_options_have_a_doc(name: str) -> None:
    one = find(name)()
    with pytest.raises(AttributeError):
        one.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(one) == hash(find(name)())
    assert all(item.metadata.get("doc") for item in fields(one))
    assert one.name == name and one.claim in ("Exact", "Within", "Changes")
    assert replace(one, seed=4) != one


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [pytest.param(name, o, w, id=f"{name}-{o}") for name, one in PROMISES.items() for o, w in one.nonsense],
)
def test_nonsense_is_refused_with_advice(name: str, options: dict[str, Any], word: str) -> None:
    """What was found and what to do instead; where, if it is about the program."""
    program = traced("skip_mlp")
    digest = program.digest
    with pytest.raises(GraphgrowError) as caught:
        find(name)(**options)(program)
    error = caught.value
    assert isinstance(error, Refusal | OptionError)
    assert error.found and error.fix and word in str(error)
    assert program.digest == digest


@pytest.mark.parametrize("name", available())
def test_refusals_about_the_program_say_where(name: str) -> None:
    """A pass asked for the impossible on a real program: found, where and fix are all there."""
    with pytest.raises(Refusal) as caught:
        find(name)(**PROMISES[name].refused)(traced("skip_mlp"))
    assert all((caught.value.found, caught.value.where, caught.value.fix))


@pytest.mark.parametrize(("text", "word"), [row for one in PROMISES.values() for row in one.text])
def test_specs_that_cannot_be_read(text: str, word: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_pass(text)
    assert word in str(caught.value) and caught.value.fix


# The registry


def test_the_entry_point_is_found() -> None:
    entries = [entry for entry in entry_points(group=pipeline.GROUP) if entry.value == "passes:TABLE"]
    assert entries
    table = entries[0].load()
    assert set(table) <= set(available())
    assert list(available()) == sorted(available())
    for name in available():
        assert issubclass(find(name), Pass) and find(name).name == name


def test_unknown_passes_options_and_axes_get_the_nearest_names() -> None:
    with pytest.raises(OptionError, match="'widen'"):
        find("widn")
    with pytest.raises(OptionError, match="'widen'"):
        parse_pass("Widen:axis=mlp")
    with pytest.raises(OptionError, match="'multiple_of'"):
        parse_pass("widen:multiple=4")
    with pytest.raises(OptionError, match=r"'mlp@ups\.0'"):
        select(traced("skip_mlp").axes, "mlp@up.0", "widen")


def test_patterns_select_by_name_role_glob_and_expression() -> None:
    axes = traced("skip_mlp").axes
    mlps = ["mlp@ups.0", "mlp@ups.1", "mlp@ups.2"]
    names = lambda pattern: [axis.name for axis in select(axes, pattern, "test")]  # noqa: E731
    assert names("mlp") == names("mlp@*") == names("re:^mlp@ups") == mlps
    assert names("mlp@ups.1") == ["mlp@ups.1"] and names("mlp@ups.[02]") == [mlps[0], mlps[2]]


class _Entries:
    """Stands for the installed distributions."""

    def __init__(self, *tables: dict[str, str]) -> None:
        self.tables = tables

    def __call__(self, group: str) -> list[Any]:
        assert group == pipeline.GROUP

        class Fake(EntryPoint):
            def load(self) -> Any:
                return tables[int(self.name)]

        tables = self.tables
        return [Fake(str(index), "somewhere:TABLE", group) for index in range(len(tables))]


def test_a_third_party_adds_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"widen": "passes.widen:Widen"}
    monkeypatch.setattr(pipeline, "entry_points", _Entries(table, {"again": "passes.widen:Widen"}))
    assert available() == {"again": "passes.widen:Widen", "widen": "passes.widen:Widen"}
    assert find("again") is find("widen")


def test_a_package_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "entry_points", _Entries({"odd": "passes.nothing:Odd", "old": "passes.widen:Odd"}))
    for name in ("odd", "old"):
        with pytest.raises(OptionError, match="can't be imported from passes"):
            find(name)


def test_two_passes_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "entry_points", _Entries({"widen": "a:A"}, {"widen": "b:B"}))
    with pytest.raises(OptionError, match="two passes called 'widen'"):
        available()
    monkeypatch.setattr(pipeline, "entry_points", _Entries({"widen": "a:A"}, {"widen": "a:A"}))
    assert available() == {"widen": "a:A"}

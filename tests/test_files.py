"""The program file: what is saved comes back, and no other file does anything but raise a FileError."""

import errno
import io
import json
import math
import os
import pickle
import resource
import zipfile
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from graphgrow import certificate, files, sizes
from graphgrow.errors import FileError
from graphgrow.files import check, read
from graphgrow.files.contents import contents_from
from graphgrow.graph import (
    WEIGHTS,
    ByMode,
    Dtype,
    Graph,
    Kind,
    Lowest,
    Node,
    Origin,
    Record,
    Ref,
    ScalarType,
    TensorType,
    Tuning,
)  # fmt: skip

BATCH = sizes.symbol("batch")
EVEN = sizes.apply("//", sizes.add(BATCH, 1), 2)
X = TensorType((BATCH, 4), WEIGHTS)
W = TensorType((4, 4), WEIGHTS)
HALF = TensorType((BATCH, 2), WEIGHTS)
SPLIT = "aten.split_with_sizes.default"
TRIAL = certificate.Trial(
    sizes="batch=1", output64=math.inf, output32=1e-7, gradient64=0.0, rounding32=1e-7, tolerance64=1e-13
)
CERTIFICATE = certificate.Certificate(
    spec="widen:axis=mlp", old="a", new="b", claim="Exact", growth=(certificate.Growth(axis="mlp", old=4, new=6),),
    test=certificate.Test(holds=False, trials=(TRIAL,), why="two\nlines"),
)  # fmt: skip


def every_argument() -> tuple[Node, ...]:
    """Nodes with an argument of every kind there is."""
    leaves = (
        None, True, False, 0, -(2**63), 2**63 - 1, 0.1, -0.0, 1e-300, math.inf, -math.inf, "", "tanh", "bij,bjk->bik",
        Dtype("bfloat16"), Dtype(WEIGHTS), Lowest(), ByMode(True, False), ByMode(0.5, 0), BATCH, EVEN,
        sizes.apply("max", BATCH, 2), sizes.mul(-3, BATCH), (), ((1, (EVEN,)), Ref("x")),
        (EVEN, -1, 2**63 - 1), (True, BATCH), (3, 4), (BATCH, None),
    )  # fmt: skip
    return (
        Node("odd", "aten.add.Tensor", leaves, (("alpha", 2), ("other", Ref("x"))), X, "blocks.0.mlp", "m.py:3 in f"),
    )


def contents(more: tuple[Node, ...] = (), **changes: object) -> files.Contents:
    """A small program: tied weights, several data types, a split, a scalar, outputs in a record."""
    nodes = (
        Node("x", "input", (), (), X),
        Node("w", "parameter", ("h.0.w",), (), W),
        Node("steps", "parameter", ("steps",), (), TensorType((), "int64")),
        Node("linear", "aten.linear.default", (Ref("x"), Ref("w"), None), (), X, "h.0", "model.py:3 in f"),
        Node("parts", SPLIT, (Ref("linear"), (2, 2), -1), (), (HALF, HALF)),
        Node("half", "getitem", (Ref("parts"), 1), (), HALF),
        Node("count", "aten.add.Tensor", (2, 1), (), ScalarType("int")),
        *more,
    )
    outputs = Record((("logits", Ref("half")), ("rest", (None, Ref("linear"))), ("empty", ())))
    values: dict[str, object] = {
        "graph": Graph(nodes, outputs, {"batch": Origin("x", 0, 1, None)}),
        "tensors": {
            "h.0.w": nn.Parameter(torch.randn(4, 4)), "steps": torch.tensor(7),
            "unused": torch.arange(24, dtype=torch.bfloat16).view(4, 6).t()[1:3],
            "none": torch.zeros(0, 3), "mask": torch.zeros(0, 3, dtype=torch.bool),
        },
        "kinds": {
            "h.0.w": Kind("parameter", tuning=Tuning(0.25, 4.0, 1e-05)), "steps": Kind("buffer", True, False),
            "unused": Kind("buffer", False, True), "none": Kind("buffer", True, False),
            "mask": Kind("buffer", True, False, "2:4@1"),
        },
        "aliases": {"head.weight": "h.0.w"}, "dtype": "float32", "journal": (CERTIFICATE,),
    }  # fmt: skip
    return files.Contents(**(values | changes))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


@pytest.fixture
def saved(path):
    files.save(path, contents())
    return path


def rewritten(path, **changes):
    """The file at `path` again, with entries of its dictionary changed; None removes one."""
    value = torch.load(path, weights_only=True) | changes
    torch.save({key: item for key, item in value.items() if item is not None}, path)
    return path


def header(path, change):
    """The file at `path` with its header changed in place by `change(header)`."""
    value = json.loads(torch.load(path, weights_only=True)["header"])
    change(value)
    return rewritten(path, header=json.dumps(value))


def same(first: files.Contents, second: files.Contents) -> bool:
    """Equality with tensors by value."""
    equal = all(
        torch.equal(tensor, second.tensors[name]) and tensor.dtype is second.tensors[name].dtype
        for name, tensor in first.tensors.items()
    )
    rest = [replace(value, tensors={}) for value in (first, second)]
    return equal and list(first.tensors) == list(second.tensors) and rest[0] == rest[1]


def refused(path, *words: str) -> FileError:
    """The error of loading `path`, which says `words` and where."""
    with pytest.raises(FileError) as caught:
        files.load(path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.where.count(str(path)) == 1 and caught.value.found and caught.value.fix
    return caught.value


class Payload:
    """Unpickling one makes a folder: the trace that code ran."""

    def __init__(self, mark) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"mkdir {self.mark}",)


# Round trips


def test_round_trip(path):
    program = contents(every_argument())
    files.save(path, program)
    loaded = files.load(path)
    assert same(program, loaded)
    assert files.graph_to_text(loaded.graph) == files.graph_to_text(program.graph)
    assert repr(loaded.graph["odd"].args) == repr(program.graph["odd"].args)  # -0.0 and 0, True and 1 apart
    assert files.identify(path) == "program"


def test_not_a_number_survives():
    graph = contents((Node("odd", "aten.add.Tensor", (math.nan,), (), X),)).graph
    assert math.isnan(files.graph_from_text(files.graph_to_text(graph))["odd"].args[0])  # pyright: ignore


def test_text_is_deterministic():
    graph = contents().graph
    text = files.graph_to_text(graph)
    swapped = replace(graph, symbols=dict(reversed({**graph.symbols, "a": Origin("x", 0)}.items())))
    again = replace(graph, symbols={"a": Origin("x", 0), **graph.symbols})
    assert files.graph_to_text(swapped) == files.graph_to_text(again)
    assert files.graph_from_text(text) == graph
    assert '"outputs": {"record": {"logits": "half", "rest": [null, "linear"], "empty": []}},' in text.split("\n")


def test_tensors_are_stored_compact_and_plain(path):
    large = torch.randn(1000, 1000)
    files.save(path, contents(tensors={**contents().tensors, "unused": large[:2, :3], "none": large[5:7, :3]}))
    assert path.stat().st_size < 20_000
    loaded = torch.load(path, weights_only=True)
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in loaded["tensors"].values())
    assert set(loaded) == {"format", "version", "header", "tensors"}


def test_a_tensor_under_two_names_is_two_tensors_unless_an_alias_says_so(path):
    both = torch.ones(2, 3)
    files.save(path, contents(tensors={**contents().tensors, "unused": both, "none": both}))
    loaded = files.load(path).tensors
    loaded["unused"].zero_()
    assert torch.equal(loaded["none"], both)


def test_tensors_are_mapped_not_read(path):
    big = torch.ones(1 << 20)
    files.save(path, contents(tensors={**contents().tensors, "none": big}))
    loaded = files.load(path)
    with path.open("r+b") as file:  # a shared page of the file, written before it is first read
        position = path.read_bytes().index(b"\x00\x00\x80\x3f" * 64)
        file.seek(position + 4096)
        file.write(b"\0" * 4)
    assert (loaded.tensors["none"] == 0).sum() == 1


def test_saving_leaves_the_program_as_it_was(path):
    program = contents()
    files.save(path, program)
    weight = program.tensors["h.0.w"]
    assert isinstance(weight, nn.Parameter) and weight.requires_grad
    assert not program.tensors["unused"].is_contiguous()


# What else a file can be


def other_files(folder) -> dict[str, str]:
    """A file of every kind that is no program, and what it is."""
    from safetensors.torch import save_file

    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), folder / "state-dict")
    torch.save(model, folder / "pickle")
    torch.save(model, folder / "legacy-pickle", _use_new_zipfile_serialization=False)
    torch.save(model.state_dict(), folder / "old", _use_new_zipfile_serialization=False)
    (folder / "plain").write_bytes(pickle.dumps({"a": 1}))
    (folder / "text-protocol").write_bytes(pickle.dumps(Payload(folder / "ran"), protocol=0))
    torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), folder / "model.pt2")
    save_file(model.state_dict(), folder / "safetensors")
    (folder / "truncated").write_bytes((folder / "pickle").read_bytes()[:500])
    (folder / "empty").touch()
    (folder / "directory").mkdir()
    (folder / "unknown").write_text("hello, world")
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(folder / "script", "w") as archive:
        archive.writestr("m/constants.pkl", "a")
    names = ("state-dict", "pickle", "legacy-pickle", "safetensors", "truncated")
    rest = {"old": "state-dict", "plain": "legacy-pickle", "text-protocol": "legacy-pickle", "model.pt2": "pt2"}
    rest |= {"zip": "unknown", "script": "torchscript"}
    return rest | {name: name for name in (*names, "empty", "directory", "missing", "unknown")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_other_files_are_named(tmp_path):
    errors = {}
    for name, what in other_files(tmp_path).items():
        assert files.identify(tmp_path / name) == what, name
        error = refused(tmp_path / name)
        errors[what] = error.found.replace(", not a program", "").partition(" (")[0].partition(":")[0]
        assert ("--trust-pickle" in error.fix) == (what in ("pickle", "legacy-pickle", "pt2")), name
    assert len(errors) == len(set(errors.values())) == 11  # one message for each kind
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "pickle").found
    assert "any code" in refused(tmp_path / "pickle").fix
    assert not (tmp_path / "ran").exists()


def test_a_name_almost_right(saved):
    assert str(saved) in refused(saved.with_name("modle.pt")).fix


def test_a_path_no_file_can_have(tmp_path):
    assert "too long" in refused(tmp_path / ("x" * 5000)).found


def test_special_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert files.identify(tmp_path / "pipe") == "unknown"


# Code in pickles


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_bare_pickle_runs_nothing(path, protocol):
    path.write_bytes(pickle.dumps(Payload(path.with_name("ran")), protocol=protocol))
    refused(path, "--trust-pickle", "system")
    assert not path.with_name("ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_saved_payload_runs_nothing(path, zipped):
    torch.save(Payload(path.with_name("ran")), path, _use_new_zipfile_serialization=zipped)
    refused(path, "--trust-pickle", "system")
    assert not path.with_name("ran").exists()


@pytest.mark.parametrize("key", ["version", "header", "tensors", "more"])
def test_payload_inside_a_program_runs_nothing(saved, key):
    rewritten(saved, **{key: Payload(saved.with_name("ran"))})
    assert files.identify(saved) == "program"
    error = refused(saved, "posix.system")
    assert "--trust-pickle" not in error.fix
    assert not saved.with_name("ran").exists()


def test_payload_among_the_tensors_runs_nothing(saved):
    rewritten(saved, tensors={"h.0.w": Payload(saved.with_name("ran"))})
    refused(saved, "posix.system")
    assert not saved.with_name("ran").exists()


def test_the_environment_cannot_switch_checking_off(saved, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    rewritten(saved, more=Payload(saved.with_name("ran")))
    refused(saved)
    assert not saved.with_name("ran").exists()


# Parts of the dictionary


@pytest.mark.parametrize("changes, word", [
    ({"version": 3}, "newer"), ({"version": 10**30}, "newer"), ({"version": 1}, "older"), ({"version": -1}, "older"),
    ({"version": "2"}, "version"), ({"version": True}, "version"), ({"version": None}, "version"),
    ({"more": 1}, "unknown parts"),
    ({"header": None}, "unknown parts"), ({"header": 3}, "header"), ({"tensors": [1]}, "tensors"),
    ({"header": "{"}, "JSON"), ({"header": "[" * 100_000}, "JSON"), ({"header": '{"graph":' * 100_000}, "JSON"),
    ({"header": "[" * 400 + "]" * 400}, "dictionary"), ({"header": "9" * 5000}, "JSON"), ({"header": "NaN"}, "NaN"),
    ({"header": " " * (33 * 2**20)}, "characters"),
    ({"header": "{}"}, "'aliases'"), ({"header": "\ud800"}, "JSON"),
])  # fmt: skip
def test_parts_that_are_wrong(saved, changes, word):
    refused(rewritten(saved, **changes), word)


def tensor_changes() -> dict[str, torch.Tensor | object]:
    whole = torch.zeros(8, 4)
    return {
        "requires a gradient": torch.zeros(4, 4, requires_grad=True), "parameter": nn.Parameter(torch.zeros(4, 4)),
        "sparse": torch.zeros(4, 4).to_sparse(), "expanded": torch.zeros(1).expand(4, 4),
        "transposed": torch.arange(16.0).view(4, 4).t(), "part of a storage": whole[:4], "number": 3, "none": None,
        "quantised": torch.quantize_per_tensor(torch.zeros(4, 4), 1.0, 0, torch.qint8), "meta": whole.to("meta"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_tensors_that_are_not_plain(saved):
    tensors = torch.load(saved, weights_only=True)["tensors"]
    for name, tensor in tensor_changes().items():
        rewritten(saved, tensors={**tensors, "h.0.w": tensor})
        assert "'h.0.w'" in refused(saved).found, name
    refused(rewritten(saved, tensors={**tensors, 3: torch.zeros(1)}), "3, which is no plain tensor")
    both = torch.zeros(4, 4)
    refused(rewritten(saved, tensors={**tensors, "h.0.w": both, "none": both.view(16)}), "same bytes")


@pytest.mark.parametrize("tensor, word", [
    (torch.zeros(4, 5), "[4, 5]"), (torch.zeros(4, 4, 1), "[4, 4, 1]"), (torch.zeros(4, 4).half(), "float16"),
    (torch.zeros(4, 4).int(), "int32"),
])  # fmt: skip
def test_tensors_unlike_their_nodes(saved, tensor, word):
    tensors = torch.load(saved, weights_only=True)["tensors"]
    error = refused(rewritten(saved, tensors={**tensors, "h.0.w": tensor}), word)
    assert "'h.0.w'" in str(error)


def test_tensors_missing_and_too_many(saved):
    tensors = torch.load(saved, weights_only=True)["tensors"]
    rewritten(saved, tensors={name: value for name, value in tensors.items() if name != "steps"})
    refused(saved, "'steps'")
    refused(rewritten(saved, tensors={**tensors, "extra": torch.zeros(1)}), "'extra'")
    header(rewritten(saved, tensors=tensors), set_node(1, args=["h.1.w"]))
    refused(saved, "node 1 (w)", "there is none")


# The header


COLUMNS = {"op": "operators", "type": "types", "scope": "scopes", "source": "sources"}


def set_node(index: int, **changes: object):
    """Change the parts of a node: its name, its entries for `args` and `kwargs`, or a value that is its own."""

    def change(value) -> None:
        graph = value["graph"]
        for part, new in changes.items():
            if part == "name":
                graph["names"][index] = new
            elif part == "args":
                graph["arguments"][1][index] = new
            elif part == "kwargs":
                graph["keywords"][graph["names"][index]] = new
            else:
                values, entries = graph[COLUMNS[part]]
                entries[index] = len(values)
                values.append(new)

    return change


def set_argument(index: int, argument: object):
    """Make a node's one argument that one in the table of arguments."""

    def change(value) -> None:
        values, entries = value["graph"]["arguments"]
        entries[index] = [len(values)]
        values.append(argument)

    return change


def set_entry(column: str, index: int, entry: object):
    def change(value) -> None:
        value["graph"][column][1][index] = entry

    return change


def append(column: str, which: int, new: object):
    """Append to the values (0) or the entries (1) of a column."""

    def change(value) -> None:
        value["graph"][column][which].append(new)

    return change


def set_graph(**changes: object):
    def change(value) -> None:
        value["graph"].update(changes)

    return change


def set_part(part: str, **changes: object):
    def change(value) -> None:
        value[part].update(changes)

    return change


def nested(value, depth: int):
    """Modes of modes, or lists of lists, `depth` deep."""
    for _ in range(depth):
        value = [value] if isinstance(value, list) else {"train": value, "eval": 0}
    return value


CODE = "x;__import__('os').system('mkdir ran')"
ORIGIN = {"node": "x", "dim": 0, "low": 1, "high": None}
NAMES = [
    CODE, "", "a b", "a\n", "é", "x" * 129, "1x", "class", "self", "training", "torch", "getattr", "slice", "__x",
    "x.y", "None", "a\u2028b", 3, None, ["x"],
]  # fmt: skip
PATHS = [
    CODE,
    "",
    "a..b",
    ".a",
    "a.",
    "a-b",
    "a b",
    "__class__",
    "a.__dict__.b",
    "a" * 129,
    "a." * 300 + "a",
    "é",
    3,
    None,
]
SIZES = [
    CODE, "__import__('os')", "batch**9", "2", "batch*1", "batch + 0", "1 + batch", "(" * 500 + "batch" + ")" * 500,
    "-" * 1500 + "batch", "batch // 0", "batch // (batch - batch)", "batch*" * 300 + "batch!", "other", "x" * 3000, "",
    "*".join(["(a + b + c + d + e + f)"] * 60), "max(batch)", "9" * 30, "batch*999999999999*999999999999", "٣*batch",
]  # fmt: skip
ARGUMENTS = [
    "%y", "%linear2", "%", "x; y", "a" * 65, "aten/../", "float:1", "float:1e5", "float:__import__", 1.5, "float:",
    "float:infinity", "float:" + "9" * 400, "dtype:float33", "dtype:", "lowest:1", "lowest:lowest:", "code:x",
    {"train": 1}, {"train": 1, "eval": "a"}, {"train": 1, "eval": [2]}, {"train": 1, "eval": 0, "test": 0}, {}, 2**63,
    "sizes:1,2", "sizes:batch, 01", "sizes:other", "sizes:batch, float:1", f"sizes:{'1, ' * 70}1", "sizes:1, ",
    "sizes:--1", nested({}, 480), nested([], 480), {"train": {"train": 1, "eval": 0}, "eval": 0},
    {"train": None, "eval": 0}, {CODE: 1}, -(2**63) - 1, 10**400, ":", "%x",
]  # fmt: skip
ENTRIES = [True, False, 1.0, -1, 6, 99, 2**63, 10**400, None, {}, {"train": 0, "eval": 0}, "%x", "y", "half", "", CODE]
TYPES = [
    "(int", "(int,int)", "int)", "(int, weights[batch, 4)", "(int)(int)", "None", None, [], 3, {"a": 1}, True, "object",
    "weights[batch, 4", "weights", "float33[4]", "weights[-1]", "weights[4,4]", "weights[04]", "weights[ 4]",
    "weights[99999999999999999999]", "weights[9223372036854775808]", f"weights[{', '.join('4' * 65)}]",
    "weights[4, ]", "weights[, 4]", "weights[max(batch, 4]", "weights[batch)]",
]  # fmt: skip


def hostile_headers():
    """Changes to a header, each of which makes it one that graphgrow never wrote."""
    yield "operator outside the table", set_node(3, op="aten.from_file.default"), "aten.from_file.default"
    for op in (CODE, "os.system", "builtins.eval", "aten.__init__.default", "__import__", "", 3, None, "aten." * 40):
        yield f"operator {op!r:.30}", set_node(3, op=op), "node 3 (linear)"
    for name in NAMES:
        yield f"name {name!r:.30}", set_node(3, name=name), "node 3"
        if isinstance(name, str):
            yield f"keyword {name!r:.30}", set_node(3, kwargs={name: 1, "a b": 1}), "node 3"
    for scope in PATHS:
        if scope != "":
            yield f"scope {scope!r:.30}", set_node(3, scope=scope), "node 3"
        yield f"tensor {scope!r:.30}", set_node(1, args=[scope]), "node 1"
        if isinstance(scope, str):
            yield f"alias {scope!r:.30}", set_part("aliases", **{scope: "h.0.w"}), ""
        yield f"alias for {scope!r:.30}", set_part("aliases", other=scope), "tied"
    for text in SIZES:
        yield f"size {text!r:.30}", set_argument(3, f"size:{text}"), "node 3 (linear)"
        if text and text != "2":
            yield f"dimension {text!r:.30}", set_node(3, type=f"weights[{text}]"), "node 3 (linear)"
    for argument in ARGUMENTS:
        yield f"argument {argument!r:.30}", set_argument(3, argument), "node 3 (linear)"
        yield f"nested {argument!r:.30}", set_argument(3, [1, [argument]]), "node 3 (linear)"
        yield f"argument of no node {argument!r:.30}", append("arguments", 0, argument), "arguments"
    for entry in ENTRIES:
        yield f"entry {entry!r:.30}", set_node(3, args=[entry]), "node 3 (linear)"
        yield f"nested entry {entry!r:.30}", set_node(3, args=["x", [0, [entry]]]), "node 3 (linear)"
        yield f"keyword entry {entry!r:.30}", set_node(3, kwargs={"a": entry}), "node 3 (linear)"
        for column in COLUMNS.values():
            yield f"number in {column} {entry!r:.30}", set_entry(column, 3, entry), column
    for kind in TYPES:
        yield f"type {kind!r:.30}", set_node(3, type=kind), "node 3 (linear)"
    for source in ("a\nimport os", "\x1b[2J", "x" * 1001, 3, None, "a\u2028b"):
        yield f"source {source!r:.30}", set_node(3, source=source), "node 3 (linear)"
    for name in ("forward", "h.training", "h._parameters.w", "a.state_dict", "h.0", "h", "head.weight.x"):
        yield f"alias that hides {name}", set_part("aliases", **{name: "h.0.w"}), "odule"


def item_of(name: str, item: object):
    """Make node 5 take an item of a node."""

    def change(value) -> None:
        set_argument(5, item)(value)
        value["graph"]["arguments"][1][5].insert(0, name)

    return change


def more_hostile_headers():
    """The same, about the graph as a whole."""
    deep: object = "x"
    for _ in range(40):
        deep = [deep]
    yield "deep argument", set_node(3, args=[deep]), "node 3"
    yield "deep type", set_node(3, type="(" * 40 + "int" + ")" * 40), "node 3"
    yield "very deep type", set_node(3, type="(" * 9000 + "int" + ")" * 9000), "node 3"
    yield "deep outputs", set_graph(outputs=deep), "outputs"
    yield "second node of a name", set_node(3, name="x"), "second node"
    yield "second reader of a tensor", set_node(2, args=["h.0.w"]), "second node"
    yield "itself", set_node(3, args=["linear"]), "no earlier node"
    yield "forward reference", set_node(3, args=["half"]), "no earlier node"
    yield "itself as a keyword", set_node(3, kwargs={"a": "linear"}), "no earlier node"
    for row in ("", "x", None, 0, {}, [{}]):
        yield f"arguments {row!r:.30}", set_node(3, args=row), "node 3 (linear)"
        yield f"keywords {row!r:.30}", set_node(3, kwargs=row or []), "node 3 (linear)"
    yield "keywords of no node", lambda value: value["graph"]["keywords"].update(y={}), "'y'"
    yield "keywords that are none", set_graph(keywords=[]), "dictionary"
    for column in ("arguments", *COLUMNS.values()):
        yield f"{column} too long", append(column, 1, 0), column
        yield f"{column} too short", lambda value, column=column: value["graph"][column][1].pop(), column
        yield f"{column} in three", lambda value, column=column: value["graph"][column].append([]), column
        for found in ([], {}, "ab", None, 3, [[]], [{}, []], [[], {}], ["", ""]):
            yield f"{column} {found}", set_graph(**{column: found}), column
        yield f"no {column}", lambda value, column=column: value["graph"].pop(column), column
    for names in ("xy", {}, None, ["x"] * 7, [["x"]] * 7, ["x"]):
        yield f"names {names}", set_graph(names=names), ""
    yield "operator of no node", append("operators", 0, CODE), "operators"
    yield "nodes as rows", set_graph(nodes=[]), "'nodes'"
    yield "arguments of an input", set_node(0, args=[1]), "node 0 (x)"
    yield "keywords of an input", set_node(0, kwargs={"a": 1}), "node 0 (x)"
    yield "type of an input", set_node(0, type="none"), "node 0 (x)"
    yield "type of a parameter", set_node(1, type="int"), "node 1 (w)"
    yield "dynamic parameter", set_node(1, type="weights[batch, 4]"), "node 1 (w)"
    yield "two arguments of a parameter", set_node(1, args=["h.0.w", 1]), "node 1 (w)"
    yield "list as the argument of a parameter", set_node(1, args=[["h.0.w"]]), "node 1 (w)"
    for item in (2, -1, True, "a", 1.0):
        yield f"item {item}", item_of("parts", item), "node 5 (half)"
    yield "item of one tensor", item_of("x", 0), "node 5 (half)"
    for args in ([0, 1], ["parts"], ["parts", "parts"], ["parts", 0, 0], [["parts"], 0]):
        yield f"item {args}", set_node(5, args=args), "node 5 (half)"
    yield "type of an item", set_node(5, type="weights[batch, 4]"), "node 5 (half)"
    for outputs in (
        "nothing",
        "%x",
        3,
        0,
        {"a": "x"},
        {"record": {CODE: "x"}},
        {"record": ["x"]},
        {"record": {"__x": None}},
    ):
        yield f"outputs {outputs}", set_graph(outputs=outputs), "outputs"
    for change in ({"node": "w"}, {"node": CODE}, {"dim": 1}, {"dim": 2}, {"dim": -2}, {"dim": 1.0}, {"low": -1},
                   {"high": 0}, {"more": 1}, {"node": ["x"]}, {"node": "parts"}):  # fmt: skip
        yield f"origin {change}", set_graph(symbols={"batch": ORIGIN | change}), "'batch'"
    for name in (CODE, "Batch", "max", "_b", "x" * 65):
        yield f"symbol {name:.30}", set_graph(symbols={"batch": ORIGIN, name: ORIGIN}), "dynamic size"
    yield "no symbols", set_graph(symbols={}), "'batch'"
    yield "alias of an alias", set_part("aliases", second="head.weight"), "tied"
    yield "alias of itself", set_part("aliases", second="second"), "tied"
    yield "alias loop", set_part("aliases", one="two", two="one"), "tied"
    yield "alias that is a tensor", set_part("aliases", steps="h.0.w"), "tied"
    for kind in ("evil", "parameter", None, ["parameter"], {"role": "parameter"}):
        yield f"kind {kind}", set_part("kinds", steps=kind), "'steps'"
    for kind in ("parameter persistent trainable mask=2:4@1", "buffer persistent frozen rate=1 decay=1 eps=1",
                 "parameter persistent trainable rate=nan decay=1 eps=1",
                 "buffer persistent frozen mask=a b", "buffer persistent frozen mask=2:4@1"):  # fmt: skip
        yield f"kind {kind}", set_part("kinds", steps=kind), "'steps'"
    for pattern in ("evil", "4:2@1", "2:4", "2:4@2", "2:4x2@1", "block2x2@0x2"):
        yield f"pattern {pattern}", set_part("kinds", mask=f"buffer persistent frozen mask={pattern}"), "'mask'"
    yield "gradient of an integer", set_part("kinds", steps="parameter persistent trainable"), "'steps'"
    yield "kind of no tensor", set_part("kinds", other="buffer persistent frozen"), "'other'"
    for dtype in ("int8", "weights", CODE, None):
        yield f"dtype {dtype}", lambda value, dtype=dtype: value.update(dtype=dtype), "data type"
    for change in ({"claim": "Sure"}, {"more": 1}, {"spec": "\x1b[2J"}, {"growth": 3}, {"old": None}, {"proof": deep}):
        yield (
            f"journal {change!r:.30}",
            lambda value, change=change: value["journal"][0].update(change),
            "certificate 0",
        )
    yield "journal", lambda value: value.update(journal=[3]), "certificate 0"
    yield "unknown part", lambda value: value.update(code=CODE), "'code'"


def test_hostile_headers(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    text, tensors = (torch.load(saved, weights_only=True)[part] for part in ("header", "tensors"))
    assert same(contents_from(text, tensors), files.load(saved))
    wrong: list[str] = []
    for what, change, word in (*hostile_headers(), *more_hostile_headers()):
        value = json.loads(text)
        change(value)
        try:
            contents_from(json.dumps(value), tensors)
        except FileError as error:
            if word not in str(error) or not str(error).replace("\n", "").isprintable():
                wrong.append(f"{what}: {error}")
        else:
            wrong.append(f"{what}: accepted")
    assert not wrong, "\n".join(wrong)
    assert list(saved.parent.iterdir()) == [saved]


def test_the_error_names_file_and_node(saved):
    header(saved, set_node(3, op="aten.from_file.default"))
    error = refused(saved)
    assert error.where == f"{saved}, node 3 (linear)"
    assert "operator table" in error.found


def test_what_a_file_cannot_hold_is_not_saved(path):
    bad = Node("torch", "input", (), (), X)
    program = contents()
    for changes in ({"graph": replace(program.graph, nodes=(bad, *program.graph.nodes))}, {"kinds": {}},
                    {"tensors": {**program.tensors, "h.0.w": torch.zeros(4, 4, device="meta")}},
                    {"tensors": {**program.tensors, "h.0.w": torch.zeros(4, 5)}}, {"dtype": "float16"}):  # fmt: skip
        with pytest.raises(FileError) as caught:
            files.save(path, replace(program, **changes))
        assert str(path) in caught.value.where
        assert not path.exists()
    with pytest.raises(FileError):  # it would read back as a reference
        files.graph_to_text(contents((Node("odd", "aten.add.Tensor", ("%x",), (), X),)).graph)


# Damage


def harmless(path, program) -> None:
    """Loading `path` gives `program` or a FileError."""
    try:
        loaded = files.load(path)
    except FileError:
        return
    assert same(loaded, program)


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    for length in {*range(0, 200), *range(0, len(data), 37), *range(len(data) - 100, len(data))}:
        saved.write_bytes(data[:length])
        refused(saved)


def test_bits_flipped_in_the_header(saved):
    data, program = saved.read_bytes(), files.load(saved)
    start, end = data.index(b'{"graph"'), data.index(b"journal")
    for position in (*range(0, start), *range(start, end, 17)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        saved.write_bytes(flipped)
        harmless(saved, program)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(position=st.integers(0, 10**9), value=st.binary(min_size=1, max_size=6))
def test_bytes_overwritten_anywhere(tmp_path_factory, position, value):
    folder = tmp_path_factory.mktemp("files")
    files.save(folder / "model.pt", contents())
    data = bytearray((folder / "model.pt").read_bytes())
    position %= len(data)
    data[position : position + len(value)] = value
    (folder / "model.pt").write_bytes(data)
    with suppress(FileError):
        files.load(folder / "model.pt")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    data=st.binary(max_size=300), head=st.sampled_from([b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"(", b"c"])
)
def test_any_bytes_are_told_apart(tmp_path_factory, data, head):
    path = tmp_path_factory.mktemp("files") / "any"
    path.write_bytes(head + data)
    refused(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab batch+-*/%(),0123max", max_size=60))
def test_sizes_are_read_or_refused(text):
    with suppress(FileError):
        assert str(check.size(text)) == text


@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile's, of a name that occurs twice
def test_archives_that_torch_did_not_write(saved):
    data = {name: zipfile.ZipFile(saved).read(name) for name in zipfile.ZipFile(saved).namelist()}
    for compression, names in (
        (zipfile.ZIP_DEFLATED, [*data]),
        (zipfile.ZIP_STORED, [name for name in data if "data/" not in name]),
    ):
        with zipfile.ZipFile(saved, "w", compression) as archive:
            for name in names:
                archive.writestr(name, data[name])
        refused(saved)


def test_what_torch_saved_is_told_without_zipfile(saved, monkeypatch):
    """`ZipFile` takes longer than the rest of loading; it is for what has another form."""
    monkeypatch.setattr(read, "ZipFile", None)
    assert files.identify(saved) == "program"
    with pytest.raises(TypeError):
        saved.write_bytes(saved.read_bytes() + b"\0")
        files.identify(saved)


def test_an_archive_packed_again_is_read(saved):
    """Other programs write other zip archives; torch maps what they didn't compress."""
    program, data = files.load(saved), zipfile.ZipFile(saved)
    with zipfile.ZipFile(saved.with_name("again.pt"), "w", zipfile.ZIP_STORED) as archive:
        for name in data.namelist():
            archive.writestr(name, data.read(name))
    assert same(files.load(saved.with_name("again.pt")), program)


def test_a_zip_bomb_is_not_unpacked(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model/data.pkl", "w") as member:
        member.write(b"\x80\x02}q\0(X\x06\0\0\0formatq\x01X\x11\0\0\0graphgrow programq\x02")
        for _ in range(300):
            member.write(bytes(2**20))
    refused(path, "compressed")


# Saving that fails


def test_full_disk_leaves_nothing(path, monkeypatch):
    def write(value, file) -> None:
        file.write(b"PK\x03\x04")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(FileError, match="no space left"):
        files.save(path, contents())
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), RuntimeError("unexpected pos 64"), KeyboardInterrupt()]
)
def test_failed_save_leaves_the_target(saved, monkeypatch, error):
    before = saved.read_bytes()

    def write(value, file) -> None:
        file.write(b"PK\x03\x04")
        raise error

    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FileError):
        files.save(saved, contents())
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_a_disk_that_takes_no_more(saved):
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    big = contents(tensors={**contents().tensors, "none": torch.ones(100_000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(FileError, match="could not be written"):
            files.save(saved, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_saving_over_the_file_a_program_is_mapped_from(saved):
    loaded = files.load(saved)
    files.save(saved, loaded)
    assert same(files.load(saved), loaded)


def test_save_goes_through_a_buffer_of_any_kind(saved):
    """torch reads the file as any other: `torch.load` needs nothing of graphgrow."""
    value = torch.load(io.BytesIO(saved.read_bytes()), weights_only=True)
    assert value["format"] == "graphgrow program" and value["version"] == 2

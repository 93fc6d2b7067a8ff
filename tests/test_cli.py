"""The command line: what it prints where, its exit codes, what it writes, and the errors of a careless user."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from graphgrow.cli import app
from graphgrow.program import Program
from graphgrow.tracing import trace
from tests.programs import traced

RUN = CliRunner()
FACTORY = """
import torch
from torch import nn

def model():
    print("a model that prints")
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (torch.randn(3, 4),)

def broken():
    raise ValueError("no data")

def without_example():
    return nn.Linear(2, 2)

def slow():
    import time
    print("started", flush=True)
    time.sleep(600)
"""


def run(*arguments, code=0):
    """One command in this process; its result, whose exit code is `code`."""
    result = RUN.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}"
    return result


def command(*arguments, **options):
    """One command in a process of its own, which hears interrupts also where the tests run in the background."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    line = [sys.executable, "-c", f"{heard}; from graphgrow.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with a small program in it, `model.pt`."""
    monkeypatch.chdir(tmp_path)
    traced("skip_mlp").save("model.pt")
    return tmp_path


@pytest.fixture
def factory(folder, monkeypatch):
    """A module of model factories in the current folder."""
    name = f"factory_{folder.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(FACTORY)
    yield name
    sys.modules.pop(name, None)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# Help


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["passes", "--help"], ["apply", "--help"], ["export", "-h"], ["aply"]]
)
def test_asking_for_help_imports_nothing_heavy(arguments):
    own = "'pydantic', " if arguments[0].startswith("--") else ""  # typer reads the options of a command with pydantic
    code = (
        "import atexit, sys\n"
        f"heavy = {{{own}'torch', 'numpy', 'onnx', 'networkx', 'transformers', 'graphgrow.program'}}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from graphgrow.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1] == "heavy: []"
    assert done.returncode == (2 if arguments == ["aply"] else 0)


def test_version():
    assert run("--version").stdout.startswith("graphgrow 0.")


def test_no_command_prints_the_help():
    result = RUN.invoke(app, [])
    assert result.exit_code == 2
    assert "apply" in result.output and "found" not in result.output


# apply


def test_widen_needs_no_further_option(folder):
    before = Path("model.pt").read_bytes()
    result = run("apply", "--pass", "widen", "model.pt")

    assert files(folder) == ["model.pt", "model.widen.pt"]
    assert Path("model.pt").read_bytes() == before
    old, new = Program.load("model.pt"), Program.load("model.widen.pt")
    assert f"{old.size:,}" in result.stdout and f"{new.size:,}" in result.stdout
    for text in ("parameters", "FLOPs", "memory", "ratio", "40  ->  80", "exact, proved and tested"):
        assert text in result.stdout
    assert result.stdout.endswith("wrote model.widen.pt\n")
    assert result.stderr == ""


def test_several_passes_run_in_order(folder):
    result = run("apply", "model.pt", "--pass", "widen:to=50", "-p", "widen:axis=mlp@ups.*,to=60", "--json")
    found = json.loads(result.stdout)

    assert found["output"] == "model.widen-widen.pt"
    assert found["passes"] == ["widen:to=50", "widen:axis=mlp@ups.*,to=60"]
    assert [growth["new"] for growth in found["axes"]] == [50] * 3 + [60] * 3
    assert [certificate["evidence"] for certificate in found["certificates"]] == ["proved and tested"] * 2
    assert found["after"]["parameters"] == Program.load("model.widen-widen.pt").size
    assert len(Program.load("model.widen-widen.pt").journal) == 2


def test_a_seed_gives_the_same_program_again(folder):
    digests = [
        json.loads(run("apply", "model.pt", "-p", "widen", *seed, "--dry-run", "--json").stdout)["certificates"][0][
            "new"
        ]
        for seed in (("--seed", 7), ("--seed", 7), ("--seed", 8), ())
    ]

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_dry_run_writes_nothing(folder):
    result = run("apply", "--pass", "widen", "model.pt", "--dry-run")

    assert files(folder) == ["model.pt"]
    assert result.stdout.endswith("dry run: nothing was written\n")


def test_quiet_prints_nothing(folder, factory):
    result = run("apply", "--pass", "widen", f"{factory}:model", "--quiet", "-o", "out.pt")

    assert (result.stdout, result.stderr) == ("", "")
    assert Path("out.pt").exists()


def test_results_of_a_factory_are_in_the_current_folder(folder, factory):
    run("apply", "--pass", "widen", f"{factory}:model")
    assert "model.widen.pt" in files(folder)


def test_outputs_are_replaced_by_force_only(folder):
    run("apply", "-q", "--pass", "widen", "model.pt")
    first = Path("model.widen.pt").read_bytes()
    refused = run("apply", "-q", "--pass", "widen:factor=3", "model.pt", code=1)

    assert "a file that exists already" in refused.stderr and "--force" in refused.stderr
    assert Path("model.widen.pt").read_bytes() == first
    run("apply", "-q", "--pass", "widen:factor=3", "model.pt", "--force")
    assert Path("model.widen.pt").read_bytes() != first


@pytest.mark.parametrize("name", ["model.pt", "./model.pt", "link.pt"])
def test_the_input_is_never_the_output(folder, name):
    Path("link.pt").symlink_to("model.pt")
    before = Path("model.pt").read_bytes()
    result = run("apply", "--pass", "widen", "model.pt", "-o", name, "--force", code=1)

    assert "the input as output" in result.stderr
    assert Path("model.pt").read_bytes() == before


def test_flops_are_counted_at_the_sizes_given(folder):
    def flops(*at):
        return json.loads(run("apply", "model.pt", "-p", "widen", "--dry-run", "--json", *at).stdout)["before"]["flops"]

    assert flops("--at", "batch=8") == 8 * flops()


# The other commands


def test_trace_writes_a_program(folder, factory):
    result = run("trace", f"{factory}:model", "-o", "traced.pt", "--json")
    found = json.loads(result.stdout)

    assert found["program"]["parameters"] == Program.load("traced.pt").size == 58
    assert found["program"]["inputs"] == {"input": "float32[batch, 4]"}
    assert "a model that prints" in result.stderr
    assert "wrote again.pt" in run("trace", "traced.pt", "-o", "again.pt", "--mode", "eval", "--no-check").stdout


def test_trace_keeps_the_outputs_that_are_named(folder):
    class Two(nn.Module):
        def forward(self, x):
            return {"first": x.cos(), "second": x.sin()}

    trace(Two(), (torch.randn(3, 4),)).save("two.pt")
    run("trace", "two.pt", "-o", "one.pt", "--outputs", "first")

    assert list(Program.load("one.pt").module()(torch.randn(2, 4))) == ["first"]
    assert "valid: first, second" in run("trace", "two.pt", "-o", "none.pt", "--outputs", "third", code=2).stderr


def test_trust_lets_a_pickle_be_traced(folder):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.export.save(torch.export.export(model, (torch.randn(3, 4),)), "model.pt2")

    refused = run("axes", "model.pt2", code=1)
    assert "--trust-pickle" in refused.stderr
    assert "mlp" in run("axes", "model.pt2", "--trust-pickle").stdout


def test_axes_are_listed(folder):
    result = run("axes", "model.pt")
    assert "mlp@ups.*" in result.stdout and "x3" in result.stdout
    assert "mlp@ups.1" in run("axes", "model.pt", "--all").stdout

    found = json.loads(run("axes", "model.pt", "--json").stdout)["axes"]
    first = next(axis for axis in found if axis["role"] == "mlp")
    assert set(first) == {"name", "role", "size", "inner", "sites", "frozen", "ordered"}
    assert first["size"] == 40 and set(first["sites"][0]) == {"parameter", "dim", "part"}


def test_passes_are_listed_and_described(folder):
    assert "widen" in run("passes").stdout
    assert json.loads(run("passes", "--json").stdout)["passes"][0]["claim"] == "Exact"
    text = run("passes", "widen").stdout
    for word in ("multiple_of", "scaled | copy | zero | mup", "claim: exact", "Statement.", "Proof.", "Reference."):
        assert word in text
    assert json.loads(run("passes", "widen", "--json").stdout)["options"][0]["name"] == "seed"


def test_check_finds_what_is_not_equal(folder):
    run("apply", "-q", "--pass", "widen", "model.pt")
    assert "exact, proved and tested" in run("check", "model.pt", "model.widen.pt").stdout
    assert json.loads(run("check", "model.pt", "model.widen.pt", "--json").stdout)["holds"] is True

    new = Program.load("model.widen.pt")
    name = next(name for name in new.tensors if name.endswith("bias"))
    new.replace(tensors={**new.tensors, name: new.tensors[name] + 1e-3}).save("wrong.pt")
    result = run("check", "model.pt", "wrong.pt", "--json", code=1)
    assert json.loads(result.stdout)["holds"] is False
    assert json.loads(result.stderr)["error"]["type"] == "CheckFailed"
    assert "graphgrow diff model.pt wrong.pt" in run("check", "model.pt", "wrong.pt", code=1).stderr


def test_check_of_other_graphs_says_what_to_do(folder):
    traced("small_cnn").save("cnn.pt")
    assert "graphgrow diff model.pt cnn.pt" in run("check", "model.pt", "cnn.pt", code=1).stderr
    assert "(none)" in run("diff", "model.pt", "cnn.pt").stdout


def test_diff_lists_what_differs(folder):
    run("apply", "-q", "--pass", "widen", "model.pt")
    found = json.loads(run("diff", "model.pt", "model.widen.pt", "--json").stdout)

    assert {(change["old"], change["new"]) for change in found["axes"]} == {(40, 80)}
    assert found["journals"]["old"] == [] and found["journals"]["new"][0]["spec"] == "widen"
    assert "certificates of the new program" in run("diff", "model.pt", "model.widen.pt").stdout


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2", ".onnx"])
def test_export_goes_by_the_extension(folder, suffix):
    result = run("export", "model.pt", "-o", f"out{suffix}", "--json")
    found = json.loads(result.stdout)

    assert found["format"] == suffix[1:]
    assert found["bytes"] == Path(f"out{suffix}").stat().st_size


# Errors

ERRORS = [
    ("axes modl.pt", 1, "no file of this name", "model.pt"),
    ("axes empty", 1, "a folder without config.json", "save_pretrained"),
    ("axes state.pt", 1, "a state dict", "gg.trace"),
    ("axes pickle.pt", 1, "a pickled object", "--trust-pickle"),
    ("axes cut.pt", 1, "cut off", "again"),
    ("axes text.pt", 1, "nothing graphgrow can read", ".pt"),
    ("axes FACTORY:modl", 2, "not a known name", "'model'"),
    ("axes FACTORY:broken", 1, "ValueError: no data", "arguments"),
    ("axes FACTORY:without_example", 1, "no example inputs", "(model, example_inputs)"),
    ("axes no.such.module:model", 1, "can't be imported", "import from here"),
    ("axes ''", 2, "an empty name", "name a file"),
    ("axes", 2, "missing argument 'MODEL'", "graphgrow axes --help"),
    ("axes model.pt --al", 2, "no such option: --al", "use --all"),
    ("axis model.pt", 2, "no such command 'axis'", "use 'axes'"),
    ("passes widn", 2, "not a known pass", "'widen'"),
    ("apply model.pt", 2, "no pass", "--pass widen"),
    ("apply widen model.pt", 2, "extra argument", "--pass widen"),
    ("apply model.pt --pass widn", 2, "not a known pass", "'widen'"),
    ("apply model.pt --pass widen:axs=mlp", 2, "not a known option of widen", "'axis'"),
    ("apply model.pt --pass widen:axis=mpl", 2, "not a known axis", "'mlp'"),
    ("apply model.pt --pass widen:factor=big", 2, "factor=big", "float"),
    ("apply model.pt --pass widen:factor=0.5", 2, "factor=0.5", "at least 1"),
    ("apply model.pt --pass widen:3", 2, "'3'", "key=value"),
    ("apply model.pt --pass widen:to=30", 1, "fewer", "more than 40"),
    ("apply model.pt --pass widen:axis=features", 1, "features", "`graphgrow axes`"),
    ("apply model.pt --pass widen -o out", 2, "without an extension", "out.pt"),
    ("apply model.pt --pass widen -o out.onnx", 2, "ends in '.onnx'", "out.pt"),
    ("apply model.pt --pass widen -o no/out.pt", 1, "no folder no", "mkdir -p no"),
    ("apply model.pt --pass widen -o empty", 1, "a folder where a file", "empty/model.pt"),
    ("apply model.pt --pass widen -o model.pt/out.pt", 1, "model.pt, which is no folder", "another place"),
    ("apply model.pt --pass widen --seed 99999999999999999999", 2, "seed=", "2**32"),
    ("apply linear.pt --pass widen", 1, "no inner axis", "`graphgrow axes`"),
    ("apply nothing.pt --pass widen:axis=mlp", 2, "no axis for widen", "another model"),
    ("check model.pt model.pt --seed -1", 2, "--seed", "graphgrow check --help"),
    ("apply model.pt --pass widen --at batch=0", 2, "batch=0", "at least 1"),
    ("apply model.pt --pass widen --seed x", 2, "--seed", "graphgrow apply --help"),
    ("apply model.pt --pass widen --at batch", 2, "--at batch", "--at batch=8"),
    ("apply model.pt --pass widen --at bach=3", 2, "not a known dynamic size", "'batch'"),
    ("trace model.pt", 2, "no output file", "-o model.traced.pt"),
    ("export model.pt", 2, "no output file", "-o model.onnx"),
    ("export model.pt -o out.onn", 2, "ends in '.onn'", ".onnx or .pt2 or .safetensors"),
    ("export model.pt -o out.pt2 --opset 18", 2, "--opset", "leave it out"),
]


@pytest.fixture
def mistakes(folder, factory):
    """Files that are no programs."""
    Path("empty").mkdir()
    Path("text.pt").write_text("hello")
    torch.save(nn.Linear(2, 2).state_dict(), "state.pt")
    torch.save(nn.Linear(2, 2), "pickle.pt")
    for name, model in (("linear", nn.Linear(4, 2)), ("nothing", nn.Identity())):
        trace(model, (torch.randn(3, 4),)).save(f"{name}.pt")
    whole = Path("model.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    return factory


@pytest.mark.parametrize(("line", "code", "found", "do"), ERRORS, ids=[row[0] for row in ERRORS])
def test_errors_say_what_was_found_and_what_to_do(mistakes, folder, line, code, found, do):
    before = files(folder)
    result = run(*shlex.split(line.replace("FACTORY", mistakes)), code=code)
    rows = {row[:5].strip(): row[7:] for row in result.stderr.splitlines() if row[:1] != " "}

    assert found in rows["found"]
    assert rows["where"]
    assert do in result.stderr[result.stderr.index("\ndo ") :]
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert [name for name in files(folder) if name != "__pycache__"] == before


def test_errors_are_json_where_the_results_are(folder):
    for line in (
        "axes modl.pt --json",
        "apply model.pt --pass widn --json",
        "axes --json",
        "axes model.pt --json --al",
    ):
        result = run(*line.split(), code=1 if "modl" in line else 2)
        assert set(json.loads(result.stderr)["error"]) == {"type", "found", "where", "do"}
        assert result.stdout == ""


def test_an_unexpected_error_has_a_traceback_on_request_only(folder, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("a wheel came off")

    monkeypatch.setattr(Program, "load", fail)
    assert "RuntimeError: a wheel came off" in run("axes", "model.pt", code=1).stderr
    assert "Traceback" not in run("axes", "model.pt", code=1).stderr
    monkeypatch.setenv("GRAPHGROW_DEBUG", "1")
    assert "Traceback" in run("axes", "model.pt", code=1).stderr


@pytest.mark.parametrize("name", ["out.pt", "out.onnx", "out.pt2", "out.safetensors"])
def test_no_permission_is_said_before_any_work(folder, monkeypatch, name):
    """The superuser writes anywhere: the system's answer is feigned."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.relative_to(folder))
    monkeypatch.setattr(Program, "load", lambda path: pytest.fail("the model was read"))
    line = ["apply", "-p", "widen"] if name == "out.pt" else ["export"]
    result = run(*line, "model.pt", "-o", name, code=1)
    assert "no permission to write" in result.stderr and "another place" in result.stderr


def test_the_package_is_a_command(folder):
    line = [sys.executable, "-m", "graphgrow", "passes"]
    assert "widen" in subprocess.run(line, capture_output=True, text=True, check=True).stdout


# Processes


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
@pytest.mark.parametrize("arguments", [["passes"], ["passes", "--json"], ["--help"]])
def test_a_full_disk_behind_the_output(folder, arguments):
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "graphgrow", *arguments]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left" in done.stderr and "standard output" in done.stderr


def test_closed_streams_are_no_matter(folder):
    line = f"{sys.executable} -m graphgrow"
    for command in (f"{line} passes >&-", f"{line} passes -q 2>&-"):
        assert subprocess.run(command, shell=True, check=False).returncode == 0
    done = subprocess.run(f"{line} axes no.pt 2>&-", shell=True, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_stdout_holds_one_json_document_and_nothing_else(folder, factory):
    process = command("apply", "--pass", "widen", f"{factory}:model", "-o", "out.pt", "--json")
    out, err = process.communicate(timeout=300)

    assert process.returncode == 0
    assert json.loads(out)["output"] == "out.pt"
    assert err == "a model that prints\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_behind(folder, factory, number, code):
    process = command("trace", f"{factory}:slow", "-o", "out.pt")
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=300)

    assert process.returncode == code
    assert "Traceback" not in err
    assert [name for name in files(folder) if "out" in name] == []


def test_an_interrupt_while_writing_leaves_nothing_behind(folder, monkeypatch):
    def interrupted(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    result = run("apply", "--pass", "widen", "model.pt", code=130)

    assert "nothing half-written" in result.stderr
    assert files(folder) == ["model.pt"]


def test_a_closed_pipe_is_no_matter(folder):
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-c", "from graphgrow.cli import main; main()", "axes", "model.pt"]
    process = subprocess.Popen(line, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    _, err = process.communicate(timeout=300)

    assert err == ""
    assert process.returncode == 141

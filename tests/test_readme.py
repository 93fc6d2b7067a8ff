"""Every block of the README runs, in order, in one folder, as a new user would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(python|bash|text)\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_then_shell(folder: Path) -> None:
    """One test, as the shell block reads what the Python block wrote."""
    (python,) = [text for language, text in BLOCKS if language == "python"]
    printed = run([sys.executable, "-W", "ignore", "-c", python], folder)
    assert "exact, proved and tested" in printed
    for shell in (text for language, text in BLOCKS if language == "bash"):
        run(["bash", "-euo", "pipefail", "-c", shell], folder)
    written = {path.name for path in folder.iterdir()}
    assert {
        "model.pt",
        "bigger.pt",
        "bigger.onnx",
        "model.widen.pt",
        "wide.pt",
        "wide.onnx",
        "cut.onnx",
        "mup.pt",
    } <= written
    (shown,) = [text for language, text in BLOCKS if language == "text"]
    assert certificate_lines(shown) <= {blurred(line) for line in printed.splitlines()}


def certificate_lines(text: str) -> set[str]:
    return {blurred(line) for line in text.strip().splitlines()}


def blurred(line: str) -> str:
    """A line without the digits of a measured deviation, which differ by machine."""
    return re.sub(r"\d\.\de-\d\d", "x", line.strip())

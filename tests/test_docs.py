"""The map of the rooms in docs/design.md is the one that import-linter enforces."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_map_of_the_rooms_is_the_contract():
    text = (ROOT / "docs" / "design.md").read_text().partition("## Rooms")[2]
    shown = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in text.splitlines() if row.startswith("| `")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    height = {room: at for at, layer in enumerate(layers) for room in re.findall(r"graphgrow\.(\w+)", layer)}

    assert sorted(room for row in shown for room in row) == sorted(height)
    heights = [height[room] for row in shown for room in row]
    assert heights == sorted(heights)

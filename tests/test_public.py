"""The public surface: what `import graphgrow` offers."""

from __future__ import annotations

import subprocess
import sys


def test_trace_stays_a_function() -> None:
    """A room of that name would take its place once it is imported."""
    code = (
        "import torch, graphgrow as gg, graphgrow.tracing\n"
        "for _ in range(2):\n"
        "    program = gg.trace(torch.nn.Linear(3, 4), torch.randn(2, 3))\n"
        "print(all(getattr(gg, name) for name in gg.__all__), program.size)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "16"], done.stderr

"""graphgrow: a compiler for neural networks. See `graphgrow.trace`, `graphgrow.check` and the passes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphgrow.export import export_huggingface, export_onnx, export_pt2, export_safetensors
    from graphgrow.pipeline import Pass, Pipeline
    from graphgrow.program import Program
    from graphgrow.runtime import grow_optimizer, parameter_groups
    from graphgrow.tracing import trace
    from graphgrow.verify import check

    load = Program.load

__all__ = [
    "Pass", "Pipeline", "Program", "check", "export_huggingface", "export_onnx", "export_pt2", "export_safetensors",
    "grow_optimizer", "load", "parameter_groups", "trace",
]  # fmt: skip

_HOMES = {
    "Pass": "pipeline", "Pipeline": "pipeline", "Program": "program", "check": "verify", "trace": "tracing",
    "export_huggingface": "export", "export_onnx": "export", "export_pt2": "export", "export_safetensors": "export",
    "grow_optimizer": "runtime", "parameter_groups": "runtime",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Rooms are opened when they are used: `import graphgrow` imports no torch."""
    from importlib import import_module

    if name == "load":
        return import_module("graphgrow.program").Program.load
    if name in _HOMES:
        return getattr(import_module(f"graphgrow.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'graphgrow' has no attribute {name!r}")

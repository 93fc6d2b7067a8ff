"""The passes that come with graphgrow: one file each, found through this table."""

from typing import TYPE_CHECKING, Any

TABLE = {"widen": "passes.widen:Widen"}

if TYPE_CHECKING:
    from passes.widen import Widen

__all__ = ["TABLE", "Widen"]


def __getattr__(name: str) -> Any:
    """`from passes import Widen` imports the file of that pass only."""
    from importlib import import_module

    for target in TABLE.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'passes' has no attribute {name!r}")

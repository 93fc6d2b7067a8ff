"""What the generated code calls beside ATen's operators; and the dictionary in which named outputs come."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree  # torch.utils offers it under no other name

from graphgrow.errors import OptionError

_Value = TypeVar("_Value")


class Outputs(dict[str, Any]):
    """Named outputs: `outputs["logits"]`, `outputs.logits`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}: there are {', '.join(self)}") from None


def record(names: Sequence[str], values: Sequence[Any]) -> Outputs:
    """Values by their names."""
    return Outputs(zip(names, values, strict=True))


def by_mode(training: bool, train: _Value, evaluation: _Value) -> _Value:
    """`train` in training mode, `evaluation` otherwise."""
    return train if training else evaluation


def count(counter: Tensor, training: bool, train: int, evaluation: int) -> Tensor:
    """Advance a counter in place, which is not touched where it advances by nothing."""
    step = train if training else evaluation
    return counter.add_(step) if step else counter


def within(size: int, name: str, low: int, high: int | None) -> None:
    """Raise OptionError for a dynamic size beyond what the model was traced for: a branch of its code may lie there."""
    if size < low or (high is not None and size > high):
        fix = f"give at least {low}" + (f" and at most {high}" if high is not None else "")
        raise OptionError(found=f"a {name} of {size}, which was not traced", fix=fix)


def _flatten(outputs: Outputs) -> tuple[list[Any], list[str]]:
    return list(outputs.values()), list(outputs)


def _flatten_with_keys(outputs: Outputs) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
    keys: list[Any] = [pytree.MappingKey[str, Any](name) for name in outputs]
    return list(zip(keys, outputs.values(), strict=True)), list(outputs)


def _unflatten(values: Any, names: Any) -> Outputs:
    return record(names, list(values))


pytree.register_pytree_node(
    Outputs,
    _flatten,
    _unflatten,
    serialized_type_name="graphgrow.module.Outputs",
    flatten_with_keys_fn=_flatten_with_keys,
)

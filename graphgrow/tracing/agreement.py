"""A traced program against its model, on the example inputs."""

# pyright: reportUnknownMemberType=false
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphgrow.errors import TraceError
from graphgrow.program import Program

_RELATIVE = 1e-4  # both compute the same operators in the same order: what is more is no rounding


def require_agreement(model: nn.Module, program: Program, inputs: Mapping[str, Tensor]) -> None:
    """Raises TraceError where the program computes something else than the model in evaluation mode."""
    expected, computed = _outputs(model, inputs), _outputs(program.module(share=True), inputs)
    if len(expected) != len(computed):
        raise TraceError(
            found=f"{len(computed)} outputs traced of {len(expected)}", fix="return tensors, tuples or dicts"
        )
    for index, (left, right) in enumerate(zip(expected, computed, strict=True)):
        deviation = _deviation(left, right)
        if not deviation <= max(_RELATIVE, _rounding(left)):
            raise TraceError(
                found=f"a trace that computes something else than the model: output {index} is off by {deviation:.1e}",
                where=type(model).__name__,
                fix="look for Python state that changes between calls, and for random numbers",
            )


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The output tensors in evaluation mode; the model is left as it was, in mode and buffers."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            result = model(**inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _deviation(left: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where shapes or non-finite values differ."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return float("inf")
    finite = left.isfinite()
    if not torch.equal(finite, right.isfinite()) or not torch.equal(
        left[~finite].nan_to_num(), right[~finite].nan_to_num()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    wide = torch.complex128 if left.is_complex() else torch.float64
    left, right = left[finite].to(wide), right[finite].to(wide)
    largest = float(left.abs().max())
    return float((left - right).abs().max()) / (largest or 1.0)


def _rounding(tensor: Tensor) -> float:
    return 4 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0

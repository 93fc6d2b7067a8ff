"""Reports as plain values for JSON: stable keys, numbers as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from graphgrow.axes import Axes
from graphgrow.axes.names import Named
from graphgrow.certificate import Certificate
from graphgrow.program import Program
from graphgrow.report.cost import Cost
from graphgrow.report.diff import Change, Difference
from graphgrow.report.weights import WeightCost

Value: TypeAlias = "dict[str, Value] | list[Value] | str | int | float | bool | None"


def program_value(program: Program) -> dict[str, Any]:
    """Inputs, dynamic sizes with their bounds, sizes and the specs of the journal."""
    return {
        "parameters": program.size,
        "tensors": len(program.tensors),
        "nodes": len(program.graph.nodes),
        "dtype": program.dtype,
        "inputs": inputs(program),
        "dynamic": {name: [origin.low, origin.high] for name, origin in program.graph.symbols.items()},
        "journal": [certificate.spec for certificate in program.journal],
    }


def inputs(program: Program) -> dict[str, str]:
    """The inputs' types as text, by name: `int64[batch, sequence]`."""
    return {name: str(kind).replace("weights[", f"{program.dtype}[") for name, kind in program.inputs.items()}


def axes_value(axes: Axes) -> list[dict[str, Any]]:
    """Every axis, one by one."""
    return [_axis(axis) for axis in axes.named]


def _axis(axis: Named) -> dict[str, Any]:
    return {
        "name": axis.name,
        "role": axis.role,
        "size": int(str(axis.size)),
        "inner": axis.inner,
        "sites": [{"parameter": site.parameter, "dim": site.dim, "part": site.part} for site in axis.sites],
        "frozen": list(axis.frozen),
        "ordered": list(axis.ordered),
    }


def cost_value(cost: Cost) -> dict[str, Any]:
    """Parameters, operations, bytes, and the sizes they hold for."""
    return {
        "parameters": cost.parameters, "flops": cost.flops, "effective": cost.effective, "memory": cost.memory,
        "sizes": dict(cost.sizes),
    }  # fmt: skip


def certificate_value(certificate: Certificate) -> dict[str, Any]:
    """The certificate's fields, and what follows from them: `holds` and `evidence`."""
    found = certificate.model_dump(mode="json")
    return {**_finite(found), "holds": certificate.holds, "evidence": certificate.evidence}


def difference_value(found: Difference) -> dict[str, Any]:
    """Changed axes and tensors, costs and journals of both programs."""
    return {
        "axes": changes_value(found.axes),
        "tensors": changes_value(found.shapes),
        "values": list(found.values),
        "weights": weights_value(found.weights),
        "costs": {"old": cost_value(found.costs[0]), "new": cost_value(found.costs[1])},
        "journals": {"old": journal(found.old), "new": journal(found.new)},
    }


def weights_value(found: Sequence[WeightCost]) -> list[dict[str, Any]]:
    """Weights one by one."""
    return [asdict(one) | {"shape": list(one.shape)} for one in found]


def journal(program: Program) -> list[dict[str, Any]]:
    """All certificates of a program."""
    return [certificate_value(certificate) for certificate in program.journal]


def changes_value(changes: Sequence[Change[Any]]) -> list[dict[str, Any]]:
    """Names with what they were and are; null where there is none."""
    return [{"name": change.name, "old": change.old, "new": change.new} for change in changes]


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_finite(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value

"""Groups of parameters for torch's optimizers, from the training recipe that a program holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from graphgrow.errors import Refusal
from graphgrow.graph import Kind
from graphgrow.module import ProgramModule
from graphgrow.program import Program


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    program: Program | None = None,
) -> list[dict[str, Any]]:
    """`torch.optim.AdamW(gg.parameter_groups(module, lr=1e-2))`: the module's parameters, those of one recipe in one
    group, with its own `lr`, `weight_decay` and, where `eps` is given (for Adam), `eps`.

    Each group keeps `lr_scale`, by which `lr` was multiplied: a schedule that writes rates itself multiplies by it, as
    in `group["lr"] = group["lr_scale"] * schedule(step)` (torch's own schedulers multiply what there is). The recipe is
    that of the program that the module comes from, or of `program`.

    Raises Refusal for a module of no program, and for parameters that the program does not have.
    """
    kinds = program.kinds if program is not None else _kinds(module)
    groups: dict[object, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if name not in kinds:
            fix = "give a module that program.module() made, or the program whose names it has: program=..."
            raise Refusal(found=f"the parameter {name}, of which no recipe tells", where="parameter_groups", fix=fix)
        if not parameter.requires_grad:
            continue
        tuning = kinds[name].tuning
        group: dict[str, Any] = {
            "params": [], "lr": lr * tuning.rate, "lr_scale": tuning.rate, "weight_decay": weight_decay * tuning.decay
        }  # fmt: skip
        if eps is not None:
            group["eps"] = eps * tuning.eps
        groups.setdefault(tuning, group)["params"].append(parameter)
    return list(groups.values())


def _kinds(module: nn.Module) -> Mapping[str, Kind]:
    if not isinstance(module, ProgramModule):
        fix = "give a module that program.module() made, or the program whose names it has: program=..."
        raise Refusal(found=f"a {type(module).__name__}, made by no program", where="parameter_groups", fix=fix)
    return module.recipe.kinds

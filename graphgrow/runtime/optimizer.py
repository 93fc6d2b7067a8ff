"""The state of an optimizer goes with the weights through growth.

Where a weight became c times what it was, and k copies share its part, its gradient is 1/(k c) of what it was: first
moments take that factor, second moments its square. New entries start at zero, with a count of steps of their own: Adam
divides its moments by 1 - beta^t, and at the old t that would make first steps several times too large or too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graphgrow.certificate import Certificate, Move, Run
from graphgrow.errors import OptionError, Refusal

_SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "row_var", "col_var", "variance", "exp_inf"}
_CORRECTED = {"exp_avg", "exp_avg_sq", "step"}  # what Adam keeps, and divides by 1 - beta^step
_SETTLED = 1e-4  # a correction this near to 1 is none

State = dict[str, Any]
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


@overload
def grow_optimizer(
    optimizer: AnyOptimizer, old: nn.Module, new: nn.Module, journal: Sequence[Certificate] | None = None
) -> AnyOptimizer: ...
@overload
def grow_optimizer(
    optimizer: Mapping[str, Any], old: nn.Module, new: nn.Module, journal: Sequence[Certificate] | None = None
) -> dict[str, Any]: ...
def grow_optimizer(
    optimizer: Optimizer | Mapping[str, Any],
    old: nn.Module,
    new: nn.Module,
    journal: Sequence[Certificate] | None = None,
) -> Optimizer | dict[str, Any]:
    """The optimizer of `old` for `new`, a module of the program that passes have made of the old one's; or its state
    dict, of an optimizer with the old one's groups, each in the order of `new.parameters()`.

    `journal` has the certificates of these passes; modules of programs know theirs. Groups and settings stay; a
    parameter of a new layer joins the group of the layer that it is made like. SGD's momentum, Adam's moments and those
    of every optimizer that keeps its state in tensors of the parameter's shape are carried, Adafactor's rows and
    columns too. Adam and AdamW correct the bias of new entries by their own age (an optimizer only: a state dict has no
    place for it; there, warm up instead).

    Raises Refusal where a parameter of the optimizer is not one of `old`, or `new` is not what the journal made of it.
    """
    made = _journal(old, new) if journal is None else journal
    if isinstance(optimizer, Optimizer):
        return _optimizer(optimizer, old, new, made)
    return _state_dict(optimizer, old, new, made)


def _journal(old: nn.Module, new: nn.Module) -> Sequence[Certificate]:
    before, after = (cast("tuple[Certificate, ...] | None", getattr(m, "journal", None)) for m in (old, new))
    if before is None or after is None:
        fix = "give modules that program.module() made, or the certificates: journal=program.journal"
        raise OptionError(found="a module that does not know which passes made it", fix=fix)
    if after[: len(before)] != before:
        fix = "give the module of the program that the passes were applied to, and of the one that came out"
        raise Refusal(found="two modules of which the second does not come from the first", fix=fix)
    return after[len(before) :]


def _optimizer(optimizer: Optimizer, old: nn.Module, new: nn.Module, journal: Sequence[Certificate]) -> Optimizer:
    names = {id(parameter): name for name, parameter in old.named_parameters()}
    targets = dict(new.named_parameters())
    groups: list[dict[str, Any]] = []
    states: dict[str, State] = {}
    for group in optimizer.param_groups:
        own = [names.get(id(parameter)) for parameter in group["params"]]
        if None in own:
            fix = "give the module whose parameters the optimizer was made with"
            raise Refusal(found="an optimizer of parameters that the old module does not have", fix=fix)
        groups.append({**group, "params": own})
        states |= {name: optimizer.state.get(p, {}) for name, p in zip(own, group["params"], strict=True) if name}
    grown = Grown.of(states, journal)
    made = copy_of(optimizer)
    made.param_groups.clear()
    made.state = defaultdict(dict)
    for group in groups:
        wanted = _members(group["params"], journal, targets)
        made.add_param_group({**group, "params": [targets[name] for name in wanted]})
        for name in wanted:
            if state := grown.states.get(name):
                made.state[targets[name]] = _fitting(name, state, targets[name])
    fresh = {targets[name]: mask for name, mask in grown.fresh.items() if name in targets and bool(mask.any())}
    if fresh and any(state.keys() >= _CORRECTED for state in made.state.values()):
        Ages(made, fresh)
    return made


def copy_of(optimizer: AnyOptimizer) -> AnyOptimizer:
    """An optimizer of the same class and settings, without the hooks and state of the old one."""
    made = object.__new__(type(optimizer))
    made.__dict__.update(optimizer.__dict__)
    first = optimizer.param_groups[0]["params"][:1]
    Optimizer.__init__(made, first, deepcopy(optimizer.defaults))
    return made


def _members(own: Iterable[str], journal: Sequence[Certificate], targets: Mapping[str, Tensor]) -> list[str]:
    """The parameters of a group after all passes, in the module's order, those of new layers with what they are made
    like."""
    names = list(own)
    for certificate in journal:
        became: dict[str, dict[str, None]] = {}
        for move in certificate.moves:
            became.setdefault(move.old, {})[move.new] = None
        moved = {move.old for move in certificate.moves if not move.fresh} | {*certificate.removed}
        names = [
            new
            for name in names
            for new in ([*became.get(name, {})] if name in moved else [name, *became.get(name, {})])
        ]
    if missing := [name for name in names if name not in targets]:
        fix = "give the module of the program that the passes made"
        raise Refusal(found=f"a parameter that the new module does not have: {missing[0]}", fix=fix)
    order = {name: index for index, name in enumerate(targets)}
    return sorted(names, key=order.__getitem__)


def _fitting(name: str, state: State, parameter: Tensor) -> State:
    """The state on the parameter's device. Raises Refusal where shapes tell that it is another parameter's."""
    shape = state.pop("", None)
    if shape is not None and tuple(shape) != tuple(parameter.shape):
        fix = "give the module of the program that the passes made"
        raise Refusal(found=f"{name} of shape {tuple(parameter.shape)}, which the passes made {tuple(shape)}", fix=fix)
    return {
        key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
        for key, value in state.items()
    }


def _state_dict(
    found: Mapping[str, Any], old: nn.Module, new: nn.Module, journal: Sequence[Certificate]
) -> dict[str, Any]:
    groups: list[dict[str, Any]] = found["param_groups"]
    total = sum(len(group["params"]) for group in groups)
    order = [name for name, _ in old.named_parameters()]
    targets = dict(new.named_parameters())
    if len(order) != total or (len(groups) > 1 and not all("param_names" in group for group in groups)):
        raise Refusal(
            found=f"a state dict of {total} parameters in {len(groups)} groups without names, of {len(order)} in all",
            where="grow_optimizer",
            fix="make the optimizer with names, AdamW(module.named_parameters()), or give the optimizer itself",
        )
    states: dict[str, State] = {}
    names: list[list[str]] = []
    for group in groups:
        numbers: list[int] = group["params"]
        own: list[str] = list(group["param_names"]) if "param_names" in group else [order[index] for index in numbers]
        names.append(own)
        states |= {name: found["state"].get(index, {}) for name, index in zip(own, numbers, strict=True)}
    grown = Grown.of(states, journal)
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    count = 0
    for group, own in zip(groups, names, strict=True):
        wanted = _members(own, journal, targets)
        numbers = list(range(count, count + len(wanted)))
        count += len(wanted)
        changed = {**group, "params": numbers}
        if "param_names" in group:
            changed["param_names"] = wanted
        made["param_groups"].append(changed)
        for index, name in zip(numbers, wanted, strict=True):
            if state := grown.states.get(name):
                made["state"][index] = _fitting(name, state, targets[name])
    return made


@dataclass
class Grown:
    """States by the names of parameters, and which entries of them are new."""

    states: dict[str, State]
    fresh: dict[str, Tensor]

    @classmethod
    def of(cls, states: Mapping[str, State], journal: Sequence[Certificate]) -> Grown:
        """The states after all passes of a journal."""
        grown = cls({name: dict(state) for name, state in states.items()}, {})
        for certificate in journal:
            grown = grown.after(certificate)
        return grown

    def after(self, certificate: Certificate) -> Grown:
        moves: dict[str, list[Move]] = {}
        for move in certificate.moves:
            if not move.fresh:
                moves.setdefault(move.new, []).append(move)
        gone = {move.old for found in moves.values() for move in found} | {*certificate.removed}
        states = {name: state for name, state in self.states.items() if name not in gone}
        fresh = {name: mask for name, mask in self.fresh.items() if name not in gone}
        for name, found in moves.items():
            origin = found[0].old
            if origin in self.states:
                states[name] = _moved(self.states[origin], found)
            mask = self.fresh.get(origin)
            fresh[name] = torch.ones(found[0].shape, dtype=torch.bool)
            for move in found:
                _put(fresh[name], torch.zeros(()) if mask is None else mask, move, 1.0)
        return Grown(states, fresh)


def _moved(state: State, moves: Sequence[Move]) -> State:
    """The state of one parameter, grown."""
    grown: State = {"": moves[0].shape} if state else {}
    for key, value in state.items():
        if not key:
            continue
        if not isinstance(value, Tensor) or value.dim() == 0:
            grown[key] = value.clone() if isinstance(value, Tensor) else value
            continue
        if moves[0].stacked:
            value = value.expand(moves[0].shape[0], *value.shape)
        full = _expanded(value, moves[0].shape)
        new = torch.zeros([size if f else 1 for size, f in zip(moves[0].shape, full, strict=True)], dtype=value.dtype)
        if not all(full):
            new.fill_(float(value.mean()))  # of rows and columns that nothing is known of: what others have
        for move in moves:
            factor = 1.0 / (move.scale * move.copies)
            _put(new, value.cpu(), move, factor**2 if key in _SECOND else factor)
        grown[key] = new.to(value.device) if value.dim() == len(full) else new.reshape(new.shape[: value.dim()])
    return grown


def _expanded(value: Tensor, shape: Sequence[int]) -> list[bool]:
    """Along which dimensions of a parameter a tensor of its state has an entry for each unit."""
    return [dim < value.dim() and value.shape[dim] != 1 for dim in range(len(shape))]


def _put(target: Tensor, source: Tensor, move: Move, factor: float) -> None:
    """Copy the block that moved, times a factor."""
    pieces: list[tuple[Tensor, Tensor]] = [(target, source)]
    for dim, runs in enumerate(move.runs):
        if target.shape[dim] != 1 or move.shape[dim] == 1:
            pieces = [(to.narrow(dim, r.to, r.length), _part(s, dim, r)) for to, s in pieces for r in runs]
    for to, piece in pieces:
        to.copy_(piece if factor == 1 else piece * factor)


def _part(source: Tensor, dim: int, run: Run) -> Tensor:
    varies = dim < source.dim() and source.shape[dim] != 1
    return source.narrow(dim, run.start, run.length) if varies else source


class Ages:
    """Counts the steps of new entries, and has Adam correct their bias by these.

    Adam divides by 1 - beta^t with one t for all entries. Before each step, the moments of new entries and their
    gradients are scaled so that after it they stand as if divided by 1 - beta^s, s their own steps.
    """

    def __init__(self, optimizer: Optimizer, fresh: Mapping[nn.Parameter, Tensor]) -> None:
        self.fresh = {parameter: mask.to(parameter.device) for parameter, mask in fresh.items()}
        self.steps = 0
        self.handle = optimizer.register_step_pre_hook(self.before)

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Scale what belongs to new entries."""
        self.steps += 1
        settled = True
        for group in optimizer.param_groups:
            if "betas" not in group:
                continue
            for parameter in group["params"]:
                mask, state = self.fresh.get(parameter), optimizer.state.get(parameter, {})
                if mask is None or parameter.grad is None or not state.keys() >= _CORRECTED or group.get("amsgrad"):
                    continue
                decay = 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))
                parameter.grad.add_(parameter.detach(), alpha=decay)  # what Adam would add itself
                settled &= self._scale(parameter.grad, state, mask, group["betas"])
                parameter.grad.sub_(parameter.detach(), alpha=decay)
        if settled:
            self.handle.remove()

    def _scale(self, gradient: Tensor, state: State, mask: Tensor, betas: tuple[float, float]) -> bool:
        """Whether the correction has come to its end."""
        step = float(state["step"]) + 1
        now, before = ([_excess(beta, step - back, self.steps - back) for beta in betas] for back in (0, 1))
        first, second = state["exp_avg"][mask], state["exp_avg_sq"][mask]
        raw, own = gradient[mask], gradient[mask] * now[0]
        wanted = now[1] * (betas[1] * second / before[1] + (1 - betas[1]) * raw.square())
        state["exp_avg"][mask] = first / before[0] * now[0]
        state["exp_avg_sq"][mask] = (wanted - (1 - betas[1]) * own.square()) / betas[1]
        gradient[mask] = own
        return all(abs(value - 1) < _SETTLED for value in now)


def _excess(beta: float, step: float, own: int) -> float:
    """By how much larger a moment must stand than it is, to be divided by 1 - beta^step in place of 1 - beta^own."""
    return (1 - beta**step) / (1 - beta**own) if own else 1.0

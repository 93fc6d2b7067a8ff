"""What a coordinate check watches and minimises: the activations of a program, its output, and the loss of that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graphgrow import ops
from graphgrow.errors import Refusal
from graphgrow.graph import Graph, Node, TensorType
from graphgrow.rewrite.widths import Widths

_PASSING = {"reshape", "permute", "unsqueeze", "expand", "getitem"}
_KEEPING = {"aten.to.dtype", "aten.clone.default", "aten.dropout.default", "aten.add.Tensor", "aten.mul.Tensor"}


def activations(widths: Widths) -> dict[str, str]:
    """What every hidden weight adds to a residual stream, or, where none does, what each makes: nodes by the weights'
    names."""
    graph, hidden = widths.program.graph, dict[str, str]()
    for name, weight in widths.weights.items():
        if weight.part == "hidden":
            hidden |= {name if len(weight.uses) == 1 else f"{name} ({use})": use for use in weight.uses}
    joined = {name: found for name, use in hidden.items() if (found := _joined(widths, use))}
    found = joined or {name: _followed(graph, use, widths.made)[0] for name, use in hidden.items()}
    return {name.removesuffix(".weight"): node for name, node in found.items()}


def _followed(graph: Graph, name: str, made: Mapping[str, tuple[str, ...]]) -> tuple[str, Node | None]:
    """What becomes of a value until the first operator that has another activation or is not linear, and that."""
    while True:
        users = graph.users[name]
        if len(users) != 1:
            return name, None
        user = users[0]
        others = [operand for operand in user.operands() if operand != name]
        passing = ops.kind(user.op) in _PASSING or user.op in _KEEPING
        if not passing or any(operand not in made for operand in others):
            return name, user
        name = user.name


def _joined(widths: Widths, use: str) -> str:
    """The value that a weight adds to another activation of the same shape; empty where it adds none."""
    graph = widths.program.graph
    value, user = _followed(graph, use, widths.made)
    if user is None or user.op != "aten.add.Tensor":
        return ""
    return value if all(graph[name].shape == graph[value].shape for name in user.operands()) else ""


def output_of(widths: Widths) -> str:
    """The output that is trained: the first of floating numbers that no width is in."""
    program = widths.program
    for name in program.graph.output_names:
        node = program.graph[name]
        floating = isinstance(node.type, TensorType) and node.type.dtype.startswith(("weights", "float", "bfloat"))
        if floating and not widths.wide(program.axes.terms[name]):
            return name
    raise Refusal(
        found="no output of numbers whose size is the same at every width",
        where="the outputs of the model",
        fix="give a model with a head: logits, or a loss",
    )


def loss_of(output: Tensor, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
    """What is minimised: a loss as it is; of logits for tokens the cross-entropy of the next one; of other outputs
    that of random classes, the same at every size."""
    if output.dim() == 0:
        return output
    rows = output.float().flatten(0, -2)
    tokens = next((one for one in inputs.values() if one.dtype == torch.long and one.shape == output.shape[:-1]), None)
    if tokens is not None and output.dim() > 2 and int(tokens.max()) < output.shape[-1]:
        return nn.functional.cross_entropy(output[:, :-1].float().flatten(0, -2), tokens[:, 1:].flatten())
    generator = torch.Generator().manual_seed(seed)
    if rows.shape[-1] == 1:
        return (rows - torch.randn(rows.shape, generator=generator)).square().mean()
    return nn.functional.cross_entropy(rows, torch.randint(rows.shape[-1], rows.shape[:1], generator=generator))

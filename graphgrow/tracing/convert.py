"""From an `ExportedProgram` to a `Graph`: nested graphs inlined, asserts dropped, sizes made symbolic expressions."""

# torch.fx and torch.export are untyped where this file speaks to them.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeStubs=false, reportPrivateUsage=false

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import is_symbolic
from torch.utils import _pytree as pytree

from graphgrow import sizes
from graphgrow.errors import TraceError
from graphgrow.graph import (
    Argument,
    ByMode,
    Dtype,
    Graph,
    Kind,
    Node,
    Origin,
    Record,
    Ref,
    ScalarType,
    Structure,
    TensorType,
    Type,
)
from graphgrow.sizes import Dim, Size
from graphgrow.tracing.canonical import canonical
from graphgrow.tracing.draft import Draft, clean_input
from graphgrow.tracing.memory import Memory, written

DROPPED = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default",
}
IGNORED_ARGUMENTS = {"device", "layout", "pin_memory", "memory_format", "generator"}


@dataclass(frozen=True)
class Converted:
    """A graph and what its tensors are."""

    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    kinds: Mapping[str, Kind]


def convert(exported: ExportedProgram) -> Converted:
    """Read an exported program. Raises TraceError for what has no place in a graph."""
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in exported.graph_signature.output_specs):
        raise TraceError(
            found="an exported program that returns buffers or inputs which it changes",
            fix="give it as torch.export.export() makes it, before run_decompositions()",
        )
    draft = Draft()
    memory = Memory.of(draft, exported.graph_module)
    tensors: dict[str, torch.Tensor] = {}
    kinds: dict[str, Kind] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    placeholders = exported.graph.find_nodes(op="placeholder")
    users = [node for node in placeholders if specs[node.name].kind is InputKind.USER_INPUT]
    names = {node: clean_input(name) for node, name in zip(users, _input_names(exported, users), strict=True)}
    _name_symbols(draft, exported, names)
    for node in placeholders:
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(node.meta["val"], torch.Tensor):
                memory.values[node] = node.meta["val"] if isinstance(node.meta["val"], int | float | bool) else None
                continue
            name = draft.free(names[node])
            memory.start(node, draft.append(Node(name, "input", (), (), _type(draft, node.meta["val"]))))
    for node in placeholders:
        spec = specs[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            tensor = _tensor(exported, target)
            role = {InputKind.PARAMETER: "parameter", InputKind.BUFFER: "buffer"}.get(spec.kind, "constant")
            if role == "constant":
                target = f"constants.{len(kinds)}"
            name = draft.fresh(node.name.removeprefix("p_").removeprefix("b_").removeprefix("c_"))
            if node.users:
                type_ = _type(draft, node.meta["val"])
                scope = target.rpartition(".")[0] if role != "constant" else ""
                memory.start(node, draft.append(Node(name, "parameter", (target,), (), type_, scope)), held=True)
                if role == "constant" and _is_index_list(tensor):
                    draft.constants[name] = tuple(int(item) for item in tensor)
            tensors[target] = tensor
            persistent = role == "parameter" or spec.persistent is True
            kinds[target] = Kind(role, persistent, tensor.requires_grad)  # type: ignore[arg-type]
    _inline(memory, exported.graph_module)
    (output,) = exported.graph.find_nodes(op="output")
    flat = [memory.read(item) if isinstance(item, fx.Node) else item for item in output.args[0]]
    spec = exported.call_spec.out_spec
    if spec is None:
        raise TraceError(found="a model without an output")
    outputs = _structure(pytree.tree_unflatten(flat, spec))
    return Converted(Graph(tuple(draft.by_name.values()), outputs, dict(draft.origins)), tensors, kinds)


def _is_index_list(tensor: torch.Tensor) -> bool:
    known = not (tensor.is_meta or isinstance(tensor, FakeTensor))
    return known and tensor.ndim == 1 and 0 < tensor.numel() <= 16 and tensor.dtype == torch.int64


def _tensor(exported: ExportedProgram, target: str) -> torch.Tensor:
    found = exported.state_dict.get(target, exported.constants.get(target))
    if not isinstance(found, torch.Tensor):
        raise TraceError(found=f"{target}, which is no tensor but {type(found).__name__}")
    return found


def _input_names(exported: ExportedProgram, placeholders: Sequence[fx.Node]) -> list[str]:
    """The names the inputs were given by (the exporter writes them in lower case)."""
    given = exported.call_spec.in_spec
    keys: list[str] = list(given.child(1).context) if given is not None and given.child(0).num_leaves == 0 else []
    return keys if len(keys) == len(placeholders) else [str(node.target) for node in placeholders]


def _name_symbols(draft: Draft, exported: ExportedProgram, inputs: Mapping[fx.Node, str]) -> None:
    """Name the dynamic sizes for people: `batch` is a first dimension, `sequence` the second of a token input."""
    for node, input_name in inputs.items():
        tensor = node.meta["val"]
        if not isinstance(tensor, torch.Tensor):
            continue
        for dim, size in enumerate(tensor.shape):
            expression = size.node.expr if isinstance(size, torch.SymInt) else None
            if not isinstance(expression, sympy.Symbol) or expression in draft.symbols:
                continue
            wanted = ("batch", "sequence")[dim] if dim < 2 else f"size{dim}"
            if tensor.ndim == 4 and dim >= 2:
                wanted = ("height", "width")[dim - 2]
            used = set(draft.symbols.values())
            name, count = wanted, 2
            while name in used:
                name, count = f"{wanted}{count}", count + 1
            bounds = exported.range_constraints.get(expression)
            low = int(bounds.lower) if bounds is not None and bounds.lower > 2 else 1  # the exporter's least is two
            high = int(bounds.upper) if bounds is not None and bounds.upper.is_Integer else None
            draft.symbols[expression] = name
            draft.origins[name] = Origin(input_name, dim, low, high)


def size_of(draft: Draft, size: Any) -> Dim:
    """A size of torch's, as ours."""
    if isinstance(size, torch.SymInt):
        return _expression(draft, size.node.expr) if is_symbolic(size) else int(size)
    return int(size)


def _expression(draft: Draft, expression: Any) -> Dim:
    if expression.is_Integer:
        return int(expression)
    if isinstance(expression, sympy.Symbol):
        if expression not in draft.symbols:
            raise TraceError(
                found=f"a size that depends on the data ({expression})",
                fix="replace boolean indexing, nonzero or .item() by masking",
            )
        return sizes.symbol(draft.symbols[expression])
    parts = [_expression(draft, part) for part in expression.args] if not _is_power(expression) else []
    kind = type(expression).__name__
    if kind == "Add":
        return sizes.add(*parts)
    if kind == "Mul":
        return sizes.mul(*parts)
    if _is_power(expression):
        base, exponent = expression.args
        return sizes.mul(*[_expression(draft, base)] * int(exponent))
    names = {"FloorDiv": "//", "CleanDiv": "//", "Mod": "%", "PythonMod": "%", "Max": "max", "Min": "min"}
    if kind in names and len(parts) == 2:
        return sizes.apply(names[kind], *parts)
    if kind == "CeilDiv":
        return sizes.apply("//", sizes.add(parts[0], parts[1], -1), parts[1])
    raise TraceError(found=f"a size that is computed by {kind}: {expression}")


def _is_power(expression: Any) -> bool:
    if type(expression).__name__ not in ("Pow", "PowByNatural"):
        return False
    return bool(expression.args[1].is_Integer and expression.args[1] > 0)


_DTYPES = {value: str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}


def _type(draft: Draft, value: Any) -> Type:
    if isinstance(value, torch.Tensor):
        return TensorType(tuple(size_of(draft, size) for size in value.shape), _DTYPES[value.dtype])
    if isinstance(value, list | tuple):
        return tuple(_type(draft, item) for item in value)
    if isinstance(value, bool | torch.SymBool):
        return ScalarType("bool")
    if isinstance(value, float | torch.SymFloat):
        return ScalarType("float")
    return None


def _inline(memory: Memory, graph_module: fx.GraphModule) -> None:
    """Append the nodes of one (nested) graph whose placeholders already have values."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and not isinstance(_attribute(graph_module, str(node.target)), torch.Tensor):
            continue
        if node.op != "call_function" or str(node.target) in DROPPED:
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            _higher_order(memory, graph_module, node)
        elif isinstance(node.meta.get("val"), int | torch.SymInt) and not isinstance(node.meta["val"], bool):
            memory.values[node] = size_of(memory.draft, node.meta["val"])
        elif node not in memory.values:  # what a nested graph gave back already has its value
            _call(memory, node)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _higher_order(memory: Memory, graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Inline `wrap_with_set_grad_enabled` and `wrap_with_autocast`, and give their results to those who take them."""
    name = str(node.target)
    places = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
    if name not in places:
        raise TraceError(found=f"the higher-order operator {name}", where=_source(node), fix="trace a model without it")
    place = places[name]
    nested: Any = node.args[place]
    inner = _attribute(graph_module, str(nested.target))
    for placeholder, argument in zip(inner.graph.find_nodes(op="placeholder"), node.args[place + 1 :], strict=True):
        if isinstance(argument, fx.Node):
            memory.follow(placeholder, argument)
        else:
            memory.values[placeholder] = _argument(memory, argument)
    first, before = len(memory.draft.by_name), {place: memory.version[place] for place in memory.places.values()}
    _inline(memory, inner)
    (output,) = inner.graph.find_nodes(op="output")
    if name == "wrap_with_autocast" and node.args[2] is False:
        _protect(memory.draft, first)
    without_gradient = name == "wrap_with_set_grad_enabled" and node.args[0] is False
    if without_gradient and any(memory.version[place] != before[place] for place in before):
        found = "a tensor that is changed in place where gradients are off"
        raise TraceError(
            found=found, where=_source(node), fix="change it outside of torch.no_grad(), or copy it: clone()"
        )
    for user in node.users:
        result = output.args[0][user.args[1]]
        memory.follow(user, result, _detached(memory.draft, memory.read(result)) if without_gradient else None)


def _protect(draft: Draft, first: int) -> None:
    """Autocast was off here: an outer product written as a matmul becomes a multiplication, which autocast leaves in
    its own precision (rotary angles in half precision would be wrong beyond 256 positions)."""
    for name in list(draft.by_name)[first:]:
        node = draft.by_name[name]
        if node.op == "aten.matmul.default" and draft.tensor(node.args[0]).shape[-1] == 1:
            draft.by_name[name] = replace(node, op="aten.mul.Tensor")


def _detached(draft: Draft, item: Argument) -> Node | None:
    if not isinstance(item, Ref) or not draft.tensor(item).dtype.startswith(("float", "bfloat")):
        return None
    like = draft.by_name[item.name]
    return draft.by_name[draft.add("aten.detach.default", [item], like.type, like).name]


def _call(memory: Memory, node: fx.Node) -> None:
    op = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else _python_name(node)
    args = tuple(_argument(memory, argument) for argument in node.args)
    kwargs = tuple(
        (name, _argument(memory, argument)) for name, argument in node.kwargs.items() if name not in IGNORED_ARGUMENTS
    )
    type_ = _type(memory.draft, node.meta.get("val"))
    result = canonical(memory.draft, Node(node.name, op, args, kwargs, type_, _scope(node), _source(node)))
    target = written(node)
    if target is None or not isinstance(result, Ref) or memory.draft.by_name[result.name].op == op:  # a counter
        memory.record(node, result)
        return
    memory.write(target, result, _source(node))
    memory.follow(node, target)


def _python_name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"


def _argument(memory: Memory, argument: Any) -> Argument:
    if isinstance(argument, fx.Node):
        if argument not in memory.values:
            raise TraceError(found=f"a value that is not a tensor or a size: {argument}", where=_source(argument))
        return memory.read(argument)
    if isinstance(argument, list | tuple):
        return tuple(_argument(memory, item) for item in argument)
    if isinstance(argument, torch.dtype):
        return Dtype(_DTYPES[argument])
    if isinstance(argument, torch.SymInt):
        return size_of(memory.draft, argument)
    if isinstance(argument, torch.device | torch.layout | torch.memory_format):
        return None
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    raise TraceError(found=f"an argument of type {type(argument).__name__}", fix="trace with tensor inputs only")


def _scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed([entry[0] for entry in stack.values()]), "")
    return re.sub(r"@\d+", "", path)


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def _source(node: fx.Node) -> str:
    """`file.py:line in function` of the innermost frame that is not torch's own."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if f"{'/'}torch{'/'}" not in frame[0]] or frames
    return f"{own[-1][0].rpartition('/')[2]}:{own[-1][1]} in {own[-1][2]}" if own else ""


def _structure(value: Any) -> Structure:
    if value is None or isinstance(value, Ref):
        return value
    if isinstance(value, Mapping):
        return Record(tuple((str(key), _structure(item)) for key, item in value.items()))
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        if names:
            return Record(tuple((name, _structure(item)) for name, item in zip(names, value, strict=True)))
        return tuple(_structure(item) for item in value)
    if is_dataclass(value):
        items = [(item.name, getattr(value, item.name)) for item in fields(value)]
        return Record(tuple((name, _structure(item)) for name, item in items))
    if isinstance(value, int | float | bool | str | Size | ByMode):
        return None
    raise TraceError(found=f"an output of type {type(value).__name__}", fix="return tensors, tuples or dicts")

"""The graph of a program: an immutable list of typed nodes, the small face behind which torch.fx stays.

A `Graph` holds no tensors and no Python objects of torch: operators by name, sizes as `sizes.Dim`, data types by
name. It is written to and read from JSON (`files`), lowered to an `nn.Module` (`module`) and read by every analysis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

from graphgrow.sizes import Dim, Size


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and data type of a tensor: `TensorType((batch, 12, 64), "float32")`."""

    shape: tuple[Dim, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(size) for size in self.shape)}]"


@dataclass(frozen=True, slots=True)
class ScalarType:
    """A Python number that a node computes: `int`, `float` or `bool`."""

    kind: str

    def __str__(self) -> str:
        return self.kind


Type: TypeAlias = "TensorType | ScalarType | tuple[Type, ...] | None"


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another node, by its name."""

    name: str


# The data type of the program's weights: what `Program.to` changes. A type or cast that names a data type is fixed.
WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A data type argument: a fixed one (a softmax in float32), or `WEIGHTS` (a cast back to the weights' type)."""

    name: str


@dataclass(frozen=True, slots=True)
class Lowest:
    """The most negative number of the weights' data type (an attention mask's "minus infinity")."""


@dataclass(frozen=True, slots=True)
class ByMode:
    """An argument with one value in training mode and one in evaluation mode."""

    train: bool | int | float
    eval: bool | int | float


Argument: TypeAlias = "Ref | Dtype | Lowest | ByMode | Size | bool | int | float | str | tuple[Argument, ...] | None"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator application. `scope` is the module path it came from, `source` its `file:line in function`.

    Three operators are not ATen's: `input` (no arguments), `parameter` (its name as the one argument) and `getitem`.
    """

    name: str
    op: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    type: Type
    scope: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    @property
    def tensor(self) -> TensorType:
        """The node's type, when it is one tensor."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self.name} ({self.op}) is not a tensor but {self.type}")
        return self.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.tensor.shape

    def operands(self) -> Iterator[str]:
        """The names of the nodes this one reads, in argument order."""
        for argument in (*self.args, *(value for _, value in self.kwargs)):
            yield from refs(argument)

    def argument(self, index: int, name: str, default: Argument = None) -> Argument:
        """The argument at position `index`, or called `name`, or `default`."""
        return self.args[index] if index < len(self.args) else dict(self.kwargs).get(name, default)

    def map(self, change: Callable[[Argument], Argument]) -> Node:
        """The node with every leaf argument replaced by `change(argument)`."""
        return replace(
            self,
            args=tuple(_mapped(argument, change) for argument in self.args),
            kwargs=tuple((name, _mapped(argument, change)) for name, argument in self.kwargs),
        )

    def __str__(self) -> str:
        arguments = [_text(argument) for argument in self.args]
        arguments += [f"{name}={_text(argument)}" for name, argument in self.kwargs]
        return f"{self.name}: {self.type} = {self.op}({', '.join(arguments)})"


_Made = TypeVar("_Made", Node, Ref)


def made(kind: type[_Made], *columns: Sequence[object]) -> tuple[_Made, ...]:
    """Nodes or references from columns of their fields, one field of all of them at a time: faster than one by one."""
    found = tuple([object.__new__(kind) for _ in columns[0]])
    for item, column in zip(fields(kind), columns, strict=True):
        write: Callable[[_Made, object], None] = getattr(kind, item.name).__set__
        deque(map(write, found, column), maxlen=0)
    return found


def refs(argument: Argument) -> Iterator[str]:
    if isinstance(argument, Ref):
        yield argument.name
    elif isinstance(argument, tuple):
        for item in argument:
            yield from refs(item)


def _mapped(argument: Argument, change: Callable[[Argument], Argument]) -> Argument:
    if isinstance(argument, tuple):
        return tuple(_mapped(item, change) for item in argument)
    return change(argument)


def _text(argument: Argument) -> str:
    match argument:
        case Ref(name):
            return f"%{name}"
        case tuple():
            return f"[{', '.join(_text(item) for item in argument)}]"
        case Dtype(name):
            return name
        case ByMode(train, evaluation):
            return f"{train} in training, else {evaluation}"
        case _:
            return str(argument)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dynamic size is read: dimension `dim` of node `node`; it lies in [`low`, `high`] (None: no bound)."""

    node: str
    dim: int
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a parameter is to be trained: what an optimizer's learning rate, weight decay and eps are multiplied by."""

    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a named tensor is to the module: a parameter, a buffer (in the state dict when `persistent`), or a
    constant of the traced code. A buffer with a `pattern` is the mask of a weight, and keeps to it (`2:4@1`)."""

    role: Literal["parameter", "buffer", "constant"]
    persistent: bool = True
    trainable: bool = True
    pattern: str = ""
    tuning: Tuning = Tuning()


# How the outputs are packed: a node's value, None, a tuple, or a record.
Structure: TypeAlias = "Ref | tuple[Structure, ...] | Record | None"


@dataclass(frozen=True, slots=True)
class Record:
    """A dictionary-like output (a Hugging Face ModelOutput, a dict): its keys and values in order."""

    items: tuple[tuple[str, Structure], ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order (inputs and parameters first), how the outputs are packed, and the dynamic sizes."""

    nodes: tuple[Node, ...]
    outputs: Structure
    symbols: Mapping[str, Origin] = field(default_factory=dict[str, Origin])

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The place of every node in execution order."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.op == "input")

    @cached_property
    def parameters(self) -> Mapping[str, Node]:
        """The nodes that read parameters and buffers, by the tensor's name."""
        return {str(node.args[0]): node for node in self.nodes if node.op == "parameter"}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """For every node's name, the nodes that read it."""
        users: dict[str, dict[str, Node]] = {node.name: {} for node in self.nodes}
        for node in self.nodes:
            for name in node.operands():
                users[name][node.name] = node
        return {name: tuple(found.values()) for name, found in users.items()}

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The nodes that are outputs, in the order of the structure's leaves."""
        return tuple(leaves(self.outputs))

    def __str__(self) -> str:
        return "\n".join([*(str(node) for node in self.nodes), f"return {structure_text(self.outputs)}"])


def leaves(structure: Structure) -> Iterator[str]:
    """The names of the output nodes in a structure."""
    match structure:
        case Ref(name):
            yield name
        case Record(items):
            for _, value in items:
                yield from leaves(value)
        case tuple():
            for value in structure:
                yield from leaves(value)
        case None:
            return


def structure_text(structure: Structure) -> str:
    """How the outputs are packed, for people."""
    match structure:
        case Ref(name):
            return f"%{name}"
        case Record(items):
            return "{" + ", ".join(f"{key}: {structure_text(value)}" for key, value in items) + "}"
        case tuple():
            return "(" + ", ".join(structure_text(value) for value in structure) + ")"
        case None:
            return "None"

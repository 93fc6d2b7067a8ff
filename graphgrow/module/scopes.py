"""A graph as the calls of a module tree: consecutive nodes of one module path become one call of that module."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from graphgrow.graph import Node
from graphgrow.module.code import Code
from graphgrow.module.lowering import Lowering
from graphgrow.module.outputs import within
from graphgrow.module.tree import number_blocks, reach
from graphgrow.sizes import symbol

Method = Callable[..., Any]


@dataclass
class Run:
    """Consecutive nodes of the module at `path`."""

    path: str
    nodes: list[Node] = field(default_factory=list[Node])


@dataclass
class Scopes:
    """Writes a `forward` for every module of the tree that computes something."""

    lowering: Lowering
    root: nn.Module
    names: Mapping[str, tuple[str, ...]]  # of each tensor: its own and its further names
    hierarchical: bool
    calls: dict[str, list[Method]] = field(default_factory=dict[str, list[Method]])

    def __post_init__(self) -> None:
        graph = self.lowering.graph
        self.own = {node.scope for node in self.lowering.live}
        self.readers: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
        for node in self.lowering.live:
            for read in self.lowering.reads[node.name]:
                self.readers[read].append(node.name)
        self.results = set(graph.output_names)

    def write(self) -> None:
        """Give the root and all modules below their `forward`."""
        graph = self.lowering.graph
        code = Code(self.lowering, self.owner(""))
        for node in graph.inputs:
            code.placeholder(node.name)
        for name, origin in graph.symbols.items():
            if origin.low > 1 or origin.high is not None:
                code.call("within", within, code.size(symbol(name)), name, origin.low, origin.high)
        self.body(code, "", self.lowering.live)
        self.calls[""] = [code.function(self.root, code.structure(graph.outputs))]
        number_blocks(self.root)
        for path, methods in self.calls.items():
            _equip(reach(self.root, path), methods)

    def owner(self, path: str) -> Callable[[str], str | None]:
        """Under which name the module at `path`, or one below, has a tensor; None where none has."""
        prefix = f"{path}." if path else ""

        def owned(name: str) -> str | None:
            found = (known.removeprefix(prefix) for known in self.names[name] if known.startswith(prefix))
            return next(found, None)

        return owned

    def body(self, code: Code, path: str, nodes: Sequence[Node]) -> None:
        """The code for `nodes` in the module at `path`: its own ones, and calls for those of modules below."""
        for part in self.runs(path, nodes):
            if isinstance(part, Node):
                code.emit(part)
            else:
                self.call(code, path, part)

    def runs(self, path: str, nodes: Sequence[Node]) -> Iterable[Node | Run]:
        """Nodes of the module itself one by one, the others in runs. A child that computes nothing itself and does
        not run in one piece is a container: its children run in its place."""
        if not self.hierarchical:
            return nodes
        parts: list[Node | Run] = []
        for node in nodes:
            child = _child(path, node.scope)
            last = parts[-1] if parts else None
            if child is None:
                parts.append(node)
            elif isinstance(last, Run) and last.path == child:
                last.nodes.append(node)
            else:
                parts.append(Run(child, [node]))
        counts = Counter(part.path for part in parts if isinstance(part, Run))
        return [piece for part in parts for piece in self._pieces(part, counts)]

    def _pieces(self, part: Node | Run, counts: Mapping[str, int]) -> Iterable[Node | Run]:
        if isinstance(part, Run) and counts[part.path] > 1 and part.path not in self.own:
            return self.runs(part.path, part.nodes)
        return [part]

    def call(self, code: Code, path: str, run: Run) -> None:
        """One call of the module that the run belongs to, and its method."""
        inside = {node.name for node in run.nodes}
        owned = self.owner(run.path)
        graph = self.lowering.graph
        reads = dict.fromkeys(name for node in run.nodes for name in self.lowering.reads[node.name])
        given = [
            name for name in reads
            if name not in inside and (graph[name].op != "parameter" or owned(str(graph[name].args[0])) is None)
        ]  # fmt: skip
        results = [node.name for node in run.nodes if self.leaves(node.name, inside)]
        method = Code(self.lowering, owned)
        for name in given:
            method.placeholder(name)
        self.body(method, run.path, run.nodes)
        values = tuple(method.value(name) for name in results)
        module = reach(self.root, run.path)
        methods = self.calls.setdefault(run.path, [])
        methods.append(method.function(module, values[0] if len(values) == 1 else values))
        self._enter(code, path, run.path, given, results)

    def leaves(self, name: str, inside: set[str]) -> bool:
        """Whether a value made in a run is read outside it."""
        return name in self.results or any(reader not in inside for reader in self.readers[name])

    def _enter(self, code: Code, path: str, child: str, given: list[str], results: list[str]) -> None:
        """The call itself, in the caller's code."""
        target = child.removeprefix(f"{path}.") if path else child
        arguments: list[Any] = [code.value(name) for name in given]
        number = len(self.calls[child]) - 1
        keywords: dict[str, Any] = {"call": number} if number else {}
        made = code.fx.create_node("call_module", target, tuple(arguments), keywords, "made")
        if len(results) == 1:
            code.values[results[0]] = made
            return
        for index, name in enumerate(results):
            code.values[name] = code.call(name, operator.getitem, made, index)


def _child(path: str, scope: str) -> str | None:
    """The module just below `path` that `scope` lies in, or None for the module itself."""
    if scope == path:
        return None
    rest = scope.removeprefix(f"{path}.") if path else scope
    first = rest.partition(".")[0]
    return f"{path}.{first}" if path else first


def _equip(module: nn.Module, methods: list[Method]) -> None:
    """Make `methods` the module's forward: the one there is, or the one that the caller numbers."""
    forward = methods[0] if len(methods) == 1 else _numbered(tuple(methods))
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


def _numbered(methods: tuple[Method, ...]) -> Method:
    def forward(self: nn.Module, *args: Any, call: int = 0) -> Any:
        return methods[call](self, *args)

    return forward

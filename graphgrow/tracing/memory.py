"""Which captured values share memory: what an in-place operator changes, seen by every view of it.

An operator may look into its operand's memory or copy it, and some (`reshape`, `contiguous`) do the one or the other as
strides have it. The capture tells: its values share a storage or not. A value that has been changed by way of another
is taken anew from its parent when it is read next; what can't be taken anew is refused.
"""

# torch.fx and torch.export are untyped where this file speaks to them.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from graphgrow import sizes
from graphgrow.errors import TraceError
from graphgrow.graph import Argument, Node, Ref
from graphgrow.sizes import Size
from graphgrow.tracing.draft import Draft

# Whether they copy depends on the mode, or on the data type of the weights.
DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
CASTS = {"to", "type_as"}
BY_STRIDES = {"reshape", "reshape_as", "flatten", "ravel", "contiguous"}


@dataclass(frozen=True)
class _View:
    """How a value comes from its parent: by `take` (a node to apply again), by nothing, or in an unknown way."""

    parent: fx.Node
    take: Node | None = None
    same: bool = False


@dataclass
class Memory:
    """The values of captured nodes. Each write makes a new version of a memory; a value belongs to one version."""

    draft: Draft
    told: bool  # captured values share storages as the real ones do
    values: dict[fx.Node, Argument] = field(default_factory=dict[fx.Node, Argument])
    places: dict[fx.Node, Hashable] = field(default_factory=dict[fx.Node, Hashable])
    views: dict[fx.Node, _View] = field(default_factory=dict[fx.Node, _View])
    version: Counter[Hashable] = field(default_factory=Counter[Hashable])
    taken: dict[fx.Node, int] = field(default_factory=dict[fx.Node, int])  # the version a value is of
    held: set[Hashable] = field(default_factory=set[Hashable])  # the memory of parameters and buffers

    @classmethod
    def of(cls, draft: Draft, module: fx.GraphModule) -> Memory:
        """For a captured graph. One that was loaded from a file has lost what shares storage with what."""
        graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
        pairs = [(node, written(node)) for graph in graphs for node in graph.nodes]
        return cls(draft, all(_storage(node) == _storage(target) for node, target in pairs if target is not None))

    def start(self, node: fx.Node, value: Argument, held: bool = False) -> None:
        """A value from outside the graph."""
        self._put(node, value, _storage(node) or node)
        if held:
            self.held.add(self.places[node])

    def follow(self, node: fx.Node, parent: fx.Node, take: Node | None = None) -> None:
        """`node` is `parent` under another name, or `take` of it."""
        value = self.read(parent) if take is None else Ref(take.name)
        self._put(node, value, self.places.get(parent, node))
        self.views[node] = _View(parent, take, same=take is None)

    def record(self, node: fx.Node, value: Argument) -> None:
        """The value of an operator, and which operand's memory it is in."""
        source = _operand(node)
        if source is None or source not in self.places or not self._shares(node, source):
            self._put(node, value, _storage(node) or node)
            return
        self.views[node] = self._view(node, source, value)
        self._put(node, value, self.places[source])

    def read(self, node: fx.Node) -> Argument:
        """What a node stands for now, after the in-place operators so far."""
        place = self.places.get(node)
        if place is None or self.taken[node] == self.version[place]:
            return self.values[node]
        view = self.views.get(node)
        if view is None or not (view.same or view.take):
            raise TraceError(
                found=f"{node.name} ({node.target}), whose memory was changed in place by way of another tensor",
                fix="copy before changing: clone()",
            )
        value = self.read(view.parent)
        if view.take is not None:
            again = replace(view.take, name=self.draft.fresh(view.take.name), args=(value, *view.take.args[1:]))
            value = self.draft.append(again)
        self._put(node, value, place)
        return value

    def write(self, node: fx.Node, value: Ref, source: str) -> None:
        """From now on `node` is `value`; so are, accordingly, the tensors it is a view of and its other views."""
        place = self.places[node]
        if place in self.held:
            raise TraceError(
                found="a parameter or buffer that is changed in place",
                where=source,
                fix="keep the state outside the model, or pass it in and return it",
            )
        changed: dict[fx.Node, Ref] = {}
        at: fx.Node | None = node
        result: Ref | None = value
        while at is not None and result is not None:
            changed[at] = result
            view = self.views.get(at)
            result = self._into_parent(view, result) if view else None
            at = view.parent if view else None
        self.version[place] += 1
        for at, result in changed.items():
            self._put(at, result, place)

    def _put(self, node: fx.Node, value: Argument, place: Hashable) -> None:
        self.values[node], self.places[node], self.taken[node] = value, place, self.version[place]

    def _shares(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node's value is in the memory of its operand."""
        if _name(node) in DROPOUTS:
            return bool(node.args[1] == 0 or node.args[2] is False)
        if self.told:
            return _storage(node) == _storage(source)
        made: Any = node.args[0] if node.target is operator.getitem else node
        return any(item.alias_info is not None for item in made.target._schema.returns)

    def _view(self, node: fx.Node, source: fx.Node, value: Argument) -> _View:
        unsure = DROPOUTS | CASTS if self.told else DROPOUTS | CASTS | BY_STRIDES
        before = self.values[source]
        if _name(node) in unsure or not isinstance(value, Ref) or not isinstance(before, Ref):
            return _View(source)
        if value == before:
            return _View(source, same=True)
        made = self.draft.by_name[value.name]
        if made.op == "getitem":
            return _View(source, self._piece(made))
        if made.op == "aten.view_as_complex.default":  # which is made of a copy
            made = replace(made, args=self.draft.by_name[next(iter(made.operands()))].args[:1])
        return _View(source, made if [*made.operands()] == [before.name] else None)

    def _piece(self, node: Node) -> Node | None:
        """One part of a tensor that was divided, as a slice or a selection of it."""
        whole, index = node.args
        assert isinstance(whole, Ref) and isinstance(index, int)
        divided = self.draft.by_name[whole.name]
        tensor, *settings = divided.args
        match divided.op, settings:
            case "aten.unbind.int", []:
                return replace(node, op="aten.select.int", args=(tensor, 0, index))
            case "aten.unbind.int", [int(dim)]:
                return replace(node, op="aten.select.int", args=(tensor, dim % (len(node.shape) + 1), index))
            case "aten.split_with_sizes.default", [tuple(lengths), int(dim)]:
                ends = list(
                    accumulate((size for size in lengths if isinstance(size, int | Size)), sizes.add, initial=0)
                )
                return replace(node, op="aten.slice.Tensor", args=(tensor, dim, ends[index], ends[index + 1], 1))
            case _:
                return None

    def _into_parent(self, view: _View, result: Ref) -> Ref | None:
        """The parent after a view of it has become `result`; None where that is not known."""
        if view.same or view.take is None:
            return result if view.same else None
        take, args = view.take, (result,)
        match take.op:
            case "aten.slice.Tensor" | "aten.select.int":
                op = {"aten.slice.Tensor": "aten.slice_scatter.default"}.get(take.op, "aten.select_scatter.default")
                args = (self.read(view.parent), result, *take.args[1:])
            case "aten.reshape.default" | "aten.unsqueeze.default":
                op, args = "aten.reshape.default", (result, self.draft.tensor(self.values[view.parent]).shape)
            case "aten.permute.default":
                order = take.args[1] if isinstance(take.args[1], tuple) else ()
                op, args = "aten.permute.default", (result, tuple(order.index(dim) for dim in range(len(order))))
            case "aten.view_as_complex.default":
                op = "aten.view_as_real.default"
            case "aten.view_as_real.default":
                op = "aten.view_as_complex.default"
            case _:
                return None
        return self.draft.add(op, args, self.draft.tensor(self.values[view.parent]), take)


def written(node: fx.Node) -> fx.Node | None:
    """The operand that an in-place operator changes. Raises TraceError for one that is no `x.op_()`."""
    if not isinstance(node.target, OpOverload) or torch.Tag.inplace_view in node.target.tags:
        return None
    places = [index for index, argument in enumerate(node.target._schema.arguments) if argument.is_write]
    if not places:
        return None
    target = node.args[0] if places == [0] and node.target.namespace == "aten" else None
    if not isinstance(target, fx.Node):
        fix = "use its result instead of `out=`, or trace it in evaluation mode only: trace(..., mode='eval')"
        raise TraceError(found=f"{node.target}, which writes into an operand", fix=fix)
    return target


def _operand(node: fx.Node) -> fx.Node | None:
    """The tensor whose memory a node's value may be in."""
    first: Any = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(first, fx.Node):
        first = first.args[0]
    return first if isinstance(first, fx.Node) else None


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _storage(node: fx.Node) -> Hashable:
    """The storage of a captured value (of the first of several)."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return StorageWeakRef(first.untyped_storage()).cdata if isinstance(first, Tensor) else None

"""A Hugging Face folder of a grown program: the same class, with a configuration that expresses the new sizes.

Which fields of the configuration are sizes is not looked up: numbers of the old one that are sizes which the program's
journal has changed are candidates, and the class is built on the meta device until its tensors have the program's names
and shapes. Fields that no shape depends on (a number of heads, a norm's eps) are then settled by computing: the folder
appears only when the class, loaded from it strictly, gives the program's outputs.
"""

# transformers has types for few of its attributes, and is imported only where it is needed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, combinations, product
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphgrow.atomic import atomic_folder
from graphgrow.errors import CheckFailed, ExportError
from graphgrow.export.agreement import Agreement
from graphgrow.export.capture import prepared
from graphgrow.export.settle import difference
from graphgrow.export.stream import SUMS, Seen, Unfinished
from graphgrow.export.weights import Shard, export_safetensors, index, named, split
from graphgrow.lazy import Lazy, history
from graphgrow.program import Program
from graphgrow.rewrite import planned
from graphgrow.sizes import number
from graphgrow.tracing.huggingface import Folder, quiet
from graphgrow.verify.streamed import Witness

_MOST = 256  # configurations that are computed with
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "config.json", SUMS)

Path_ = tuple[str | int, ...]  # of a field: keys of dictionaries and places in lists
Shapes = Mapping[str, tuple[int, ...]]
Settled = tuple[dict[Path_, tuple[Any, Any]], dict[str, Any]]  # what has changed, by its place; the configuration


def export_huggingface(program: Program, path: str | Path, like: str | Path) -> dict[str, tuple[Any, Any]]:
    """Write a folder that `from_pretrained` of the class of the folder `like` loads strictly, with equal outputs (to
    within rounding). Gives what of the configuration has changed: old and new value by name. Tokenizer files and the
    like are copied. The folder appears complete or not at all.

    Raises ExportError where no configuration of the class expresses the program, with the first tensor or output in the
    way; FileError and TraceError for a folder `like` that holds no model.
    """
    if isinstance(program.tensors, Lazy):
        return stream_huggingface(program, path, like)[1]
    program = prepared(program, str(path))
    origin = Folder.read(Path(like))
    names = [f"output {index}" for index, _ in enumerate(program.graph.output_names)]
    agreement = Agreement(program, names, None)
    needed = sum(tensor.nbytes for tensor in program.tensors.values())
    target = Path(path)
    with atomic_folder(target, needed=needed) as folder:
        export_safetensors(program, folder)
        _copy_others(Path(like), folder)
        failures: list[str] = []
        for changes, settings in _candidates(program, origin):
            (folder / "config.json").write_text(written(settings))
            failure = _disagreement(Folder.read(folder), agreement)
            if not failure:
                return {".".join(map(str, place)): pair for place, pair in changes.items()}
            failures.append(failure)
        raise _inexpressible(origin, failures[-1], target)


def _inexpressible(origin: Folder, failure: str, target: Path) -> ExportError:
    return ExportError(
        found=f"no configuration of {origin.network.__name__} that computes this program: {failure}",
        where=str(target),
        fix="grow in ways that the class can express (widen-keys:scale=weights where it divides by the square root "
        "of the head size; keys under rotary positions by whole multiples), or export safetensors",
    )


def stream_huggingface(
    program: Program, path: str | Path, like: str | Path, *, seen: Seen = lambda count: None
) -> tuple[Program, dict[str, tuple[Any, Any]]]:
    """Write the folder of a program traced with `lazy=True` tensor by tensor; `seen` is told the bytes written. Gives
    the program with certificates that speak of the weights, which were read on the way, and what of the
    configuration has changed. The class is not run but traced: its graph must be the program's. A run that was
    interrupted goes on when it is started again.

    Raises ExportError, FileError, TraceError as `export_huggingface` does; CheckFailed or Refusal where the weights are
    not what the passes' proofs without them took for granted.
    """
    target, origin = Path(path), Folder.read(Path(like))
    if not isinstance(program.tensors, Lazy):
        raise ExportError(found="a program in memory", where=str(path), fix="trace the folder with lazy=True")
    tensors, witness = program.tensors, Witness(history(program))
    kept = {name: tensors[name] for name in _wanted(program)}
    shards = named("model", split(kept))
    metadata = {"format": "pt", "aliases": json.dumps(dict(program.aliases))}
    changes, settings = _settled(witness, origin, target)

    def load(name: str) -> Tensor:
        value = tensors.load(name)
        witness.see(name)
        return value

    with Unfinished.opened(target, _plan(program, tensors, origin, shards)) as folder:
        folder.shards(shards, metadata, load, seen)
        certificates = witness.certificates()
        _copy_others(origin.path, target)
        last = {"config.json": written(settings)}
        if len(shards) > 1:
            last["model.safetensors.index.json"] = index(shards, metadata)
        folder.finish(last)
    before = program.journal[: len(program.journal) - len(certificates)]
    told = {".".join(map(str, place)): pair for place, pair in changes.items()}
    return program.replace(journal=(*before, *certificates)), told


def _plan(program: Program, tensors: Lazy, origin: Folder, shards: Mapping[str, Shard]) -> dict[str, Any]:
    """What an interrupted run must have been writing for another one to go on with it."""
    return {
        "graphgrow": version("graphgrow"), "torch": torch.__version__, "program": program.digest,
        "passes": [certificate.spec for certificate in program.journal], "weights": tensors.origin,
        "configuration": hashlib.sha256((origin.path / "config.json").read_bytes()).hexdigest(),
        "files": {name: list(shapes) for name, shapes in shards.items()},
    }  # fmt: skip


def _settled(witness: Witness, origin: Folder, target: Path) -> Settled:
    """The configuration under which the class is the last program, and what of it has changed."""
    failures: list[str] = []
    for changes, settings in _candidates(witness.programs[-1], origin):
        try:
            failure = difference(witness, origin, settings)
        except Exception as error:  # noqa: BLE001  a class may refuse a configuration in any way
            failure = str(error).splitlines()[0]
        if not failure:
            return changes, settings
        failures.append(failure)
    raise _inexpressible(origin, failures[0], target)


def written(settings: Mapping[str, Any]) -> str:
    """A configuration as config.json has it."""
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _copy_others(source: Path, folder: Path) -> None:
    """The files beside weights and configuration: a tokenizer, a preprocessor."""
    skipped = {file for pattern in _WEIGHTS for file in source.glob(pattern)}
    for file in source.iterdir():
        if file.is_file() and file not in skipped and not file.name.startswith("."):
            shutil.copy2(file, folder / file.name)


# Configurations


@dataclass(frozen=True)
class _Field:
    """A number in a configuration, and what it may become."""

    path: Path_
    old: Any
    choices: tuple[Any, ...]
    likely: tuple[Any, ...]  # where no shape tells


def _candidates(program: Program, origin: Folder) -> Iterator[Settled]:
    """Configurations of the class whose tensors have the program's names and shapes, with what has changed. Raises
    ExportError where there are none."""
    settings: dict[str, Any] = {**origin.config.to_dict(), **json.loads((origin.path / "config.json").read_text())}
    search = _Search(origin, settings, _wanted(program))
    for changes in search.fitting(list(_fields(settings, program))):
        yield {path: (_at(settings, path), new) for path, new in changes.items()}, _with(settings, changes)


def _at(settings: Any, path: Path_) -> Any:
    for step in path:
        settings = settings[step]
    return settings


def _wanted(program: Program) -> Shapes:
    kept = {name: kind for name, kind in program.kinds.items() if kind.role != "constant" and kind.persistent}
    return {name: tuple(program.tensors[name].shape) for name in kept}


def _fields(settings: Mapping[str, Any], program: Program) -> Iterator[_Field]:
    """Numbers that passes may have changed, and lists of a number for each layer."""
    certificates = program.journal
    numbers = _closure((row.old, row.new) for c in certificates if c.proof for row in c.proof.numbers)
    growths = [growth for certificate in certificates for growth in certificate.growth]
    sizes = _closure((growth.old, growth.new) for growth in growths)
    depths = _closure((growth.old, growth.new) for growth in growths if growth.axis.startswith("layers"))
    ratios = sorted({new / old for old, news in sizes.items() for new in news})
    known, unchanged = {number(axis.size) for axis in program.axes.named}, _unchanged(program)
    for path, value in _leaves(settings):
        name = next(str(step) for step in reversed(path) if isinstance(step, str))
        choices: set[Any] = set()
        direct: set[Any] = set()
        if isinstance(value, bool) or name.endswith("token_id") or "version" in name:
            continue
        if isinstance(value, int) and value > 0:
            products = {value * a * b for a in ratios for b in (1, *ratios)} if value not in unchanged else set[Any]()
            direct = sizes.get(value) or {int(found) for found in products if found == int(found)}
            choices = direct | {value + new - old for old, news in depths.items() for new in news}
        elif value is None and ("size" in name or "dim" in name or name.startswith(("n_", "num_"))):
            choices = set(known)
        elif isinstance(value, float):
            choices = {new for old, news in numbers.items() if abs(old - value) <= 1e-6 * abs(value) for new in news}
            choices |= {value**ratio for ratio in ratios if "theta" in name or "base" in name}
        elif isinstance(value, tuple):
            items = cast(tuple[Any, ...], value)
            for new in depths.get(len(items), ()):
                for places in (planned(len(items), new, "interleave"), planned(len(items), new, "stack")):
                    choices.add(tuple(items[place.source] for place in places))
        if choices - {value}:
            likely = choices if not isinstance(value, int) or value in sizes or "head" in name else set[Any]()
            likely = likely & direct if isinstance(value, int) else likely
            yield _Field(path, value, tuple(sorted(choices - {value})), tuple(sorted(likely - {value})))


def _unchanged(program: Program) -> set[int]:
    """The sizes of the axes that no pass has changed."""
    grown = {growth.axis for certificate in program.journal for growth in certificate.growth}
    return {number(axis.size) for axis in program.axes.named if axis.name not in grown}


def _closure(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, set[Any]]:
    """What each old number has become, pass after pass."""
    found: dict[Any, set[Any]] = {}
    for old, new in pairs:
        for news in found.values():
            if old in news:
                news.add(new)
        found.setdefault(old, set()).add(new)
    return found


def _leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """All values with their places; lists of words whole, as tuples."""
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in cast(list[Any], value)):
        yield path, tuple(cast(list[str], value))
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            yield from _leaves(item, (*path, index))
    elif path:
        yield path, value


def _with(settings: Mapping[str, Any], changes: Mapping[Path_, Any]) -> dict[str, Any]:
    changed = deepcopy(dict(settings))
    for path, value in changes.items():
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = list(value) if isinstance(value, tuple) else value
    return changed


@dataclass
class _Search:
    """For changes of a configuration under which the class has the shapes that are wanted."""

    origin: Folder
    settings: Mapping[str, Any]
    wanted: Shapes
    known: dict[frozenset[tuple[Path_, Any]], Shapes] = field(
        default_factory=dict[frozenset[tuple[Path_, Any]], Shapes]
    )
    refused: dict[str, None] = field(default_factory=dict[str, None])

    def fitting(self, fields: Sequence[_Field]) -> Iterator[dict[Path_, Any]]:
        """What shapes depend on is changed step by step, one or two fields at a time, while more of them fit. Of what
        they do not depend on, numbers that passes have changed follow first, and sizes where that does not do."""
        before = self.shapes({})
        moved = {one.path: any(self.shapes({one.path: choice}) != before for choice in one.choices) for one in fields}
        shaping = [one for one in fields if moved[one.path]]
        found = self._climbed(shaping)
        silent = [one for one in fields if not moved[one.path]]
        silent += [self._open(one, found) for one in shaping]
        floats = _combinations([one for one in silent if isinstance(one.old, float)])
        for other in _combinations([one for one in silent if not isinstance(one.old, float)]):
            for numbers in reversed(floats):
                yield {**found, **other, **numbers}

    def _climbed(self, fields: Sequence[_Field]) -> dict[Path_, Any]:
        steps = [{one.path: choice} for one in fields for choice in (*one.choices, one.old)]
        found: dict[Path_, Any] = {}
        while self.fit(found) < len(self.wanted):
            for together in (1, 2, 3):  # a class may take some sizes only together with others
                tried = (
                    {**found, **dict(chain(*(step.items() for step in way)))} for way in combinations(steps, together)
                )
                best = max(tried, key=self.fit, default=found)
                if self.fit(best) > self.fit(found):
                    break
            else:
                raise self._refused(found)
            found = best
        return found

    def _open(self, one: _Field, found: Mapping[Path_, Any]) -> _Field:
        """A field on which shapes depend, with the choices between which they do not tell."""
        chosen = found.get(one.path, one.old)
        others = [
            c for c in (*one.choices, one.old) if c != chosen and self.fit({**found, one.path: c}) == len(self.wanted)
        ]
        return _Field(one.path, chosen, tuple(others), tuple(others))

    def fit(self, changes: Mapping[Path_, Any]) -> int:
        """How many tensors have the shapes that are wanted; fewer than none where the class refuses the changes, or has
        further tensors."""
        shapes = self.shapes(changes)
        return sum(self.wanted.get(name) == shape for name, shape in shapes.items()) - (
            len(shapes.keys() - self.wanted.keys()) if shapes else 1
        )

    def shapes(self, changes: Mapping[Path_, Any]) -> Shapes:
        """Names and shapes of the class's tensors; none where it refuses the configuration."""
        key = frozenset(changes.items())
        if key not in self.known:
            try:
                self.known[key] = _shapes(self.origin, _with(self.settings, changes))
            except Exception as error:  # noqa: BLE001  a class may refuse sizes in any way
                self.known[key] = {}
                self.refused[" ".join(str(error).split())[:200]] = None
        return self.known[key]

    def _refused(self, found: Mapping[Path_, Any]) -> ExportError:
        have = self.shapes(found)
        odd = next(name for name in sorted(self.wanted.keys() | have.keys()) if self.wanted.get(name) != have.get(name))
        shapes = f"{odd} is {self.wanted.get(odd, 'not there')}, in the class {have.get(odd, 'not there')}"
        refused = next(reversed(self.refused), "")
        also = f"; it refuses some sizes: {refused}" if refused else ""
        return ExportError(
            found=f"no configuration of {self.origin.network.__name__} with these shapes: {shapes}{also}",
            where=str(self.origin.path),
            fix="grow all layers alike, and heads to a size that the class allows; or export safetensors",
        )


def _combinations(fields: Sequence[_Field]) -> list[dict[Path_, Any]]:
    """The likely choices of all fields, those that change least first."""
    fields = sorted(fields, key=lambda one: len(one.likely))
    while prod(len(one.likely) + 1 for one in fields) > _MOST:
        fields.pop()
    ways = product(*([(one, choice) for choice in (*one.likely, one.old)] for one in fields))
    found = [{one.path: choice for one, choice in way if choice != one.old} for way in ways]
    return sorted(found, key=len)


def _shapes(origin: Folder, settings: Mapping[str, Any]) -> Shapes:
    with quiet(), torch.device("meta"):
        model: nn.Module = origin.network(type(origin.config).from_dict(deepcopy(dict(settings))))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}


# Computing


def _disagreement(folder: Folder, agreement: Agreement) -> str:
    """Why the class does not compute the program; empty when it does."""
    try:
        model = folder.build().eval()
        agreement.require(_runner(model), folder.network.__name__)
    except CheckFailed as error:
        return error.found
    except Exception as error:  # noqa: BLE001  a class may refuse a configuration in any way
        return str(error).splitlines()[0]
    return ""


def _runner(model: nn.Module) -> Callable[[Mapping[str, Tensor]], Sequence[Tensor]]:
    def run(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return [leaf for leaf in pytree.tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]

    return run

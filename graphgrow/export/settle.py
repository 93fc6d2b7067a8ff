"""The configuration of a program without weights: the class is built from a candidate on the meta device and traced,
and must be the same program. Its graph must compute the same values from tensors of the same names, number by number;
what the class computes when it is built (rotary frequencies) and constants of its code must be what the program has.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

from graphgrow.digest import fingerprint
from graphgrow.graph import Argument, Graph
from graphgrow.lazy import Lazy, Load
from graphgrow.program import Program
from graphgrow.prove.numbering import Numbering
from graphgrow.tracing import trace_settings
from graphgrow.tracing.huggingface import Folder
from graphgrow.verify.streamed import Witness

DIGITS = 9  # of numbers in graphs: a class computes 1/sqrt(size) anew where a pass multiplies the old one


def difference(witness: Witness, origin: Folder, settings: dict[str, Any]) -> str:
    """What the class with these settings does that the last program does not; empty when it is the same. Raises what
    building and tracing the class raise."""
    program = witness.programs[-1]
    for name, value in origin.computed(settings).items():
        if name in program.graph.parameters and not witness.follows(name, value):
            return f"its buffer {name} has other values"
    return _differs(program, trace_settings(origin, settings))


def _differs(program: Program, found: Program) -> str:
    """The first value of the class that the program does not have, as text."""
    assert isinstance(program.tensors, Lazy)
    numbering = Numbering()
    ours = numbering.graph(_rounded(program.graph), dict(_contents(program, program.tensors.load)), {})
    theirs = numbering.graph(_rounded(found.graph), dict(_contents(found, found.tensors.__getitem__)), {})
    pairs = zip(program.graph.output_names, found.graph.output_names, strict=True)
    if all(ours[a] == theirs[b] for a, b in pairs):
        return ""
    known = set(ours.values())
    odd = next((node for node in found.graph.nodes if theirs.get(node.name, min(known)) not in known), None)
    return f"it computes {odd}" if odd else "its outputs are others"


def _contents(program: Program, load: Load) -> Iterator[tuple[str, Hashable]]:
    """What tensors hold: what their name says, and constants their values (nothing known where there are none)."""
    for name, kind in program.kinds.items():
        if kind.role != "constant":
            yield name, name
        else:
            value = load(name)
            yield name, id(program) if value.is_meta else (value.dtype, value.shape, fingerprint(value))


def _rounded(graph: Graph) -> Graph:
    return replace(graph, nodes=tuple(node.map(_digits) for node in graph.nodes))


def _digits(argument: Argument) -> Argument:
    return float(f"{argument:.{DIGITS}g}") if isinstance(argument, float) else argument

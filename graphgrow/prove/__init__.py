"""Proofs on the graph at hand: abstract interpretation of tensors cut into old and new blocks."""

from graphgrow.prove.cells import Layout
from graphgrow.prove.engine import Assignment, Block, Derivation, Prover
from graphgrow.prove.facts import (
    ANY,
    CONSTANT,
    MEAN,
    POSITIVE,
    SAME,
    ZERO,
    fact,
    free,
    fresh,
    kind,
    multiple,
    scale,
    scaled,
    text,
)
from graphgrow.prove.rows import Number

__all__ = [
    "ANY", "CONSTANT", "MEAN", "POSITIVE", "SAME", "ZERO", "Assignment", "Block", "Derivation", "Layout", "Number",
    "Prover", "fact", "free", "fresh", "kind", "multiple", "scale", "scaled", "text",
]  # fmt: skip

"""Proofs on the graph at hand: abstract interpretation of tensors cut into old and new blocks."""

from graphgrow.prove.cells import ANY, SAME, ZERO, Layout
from graphgrow.prove.engine import Block, Derivation, Prover

__all__ = ["ANY", "SAME", "ZERO", "Block", "Derivation", "Layout", "Prover"]

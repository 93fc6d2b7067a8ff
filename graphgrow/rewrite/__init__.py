"""Rewriting programs: the Rewriter and what it is made of."""

from graphgrow.rewrite.depth import Place, planned
from graphgrow.rewrite.experts import Mixture, Region
from graphgrow.rewrite.parameterize import Parameterization
from graphgrow.rewrite.resize import APART, Fills, Init, literal, resize, resize_graph
from graphgrow.rewrite.rewriter import Data, Rewriter
from graphgrow.rewrite.units import Resizing

__all__ = [
    "APART", "Data", "Fills", "Init", "Mixture", "Parameterization", "Place", "Region", "Resizing", "Rewriter",
    "literal", "planned", "resize", "resize_graph",
]  # fmt: skip

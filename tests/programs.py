"""Traced programs of the zoo, each traced once per session."""

from functools import lru_cache

from graphgrow.program import Program
from graphgrow.trace import trace
from tests.zoo import ZOO


@lru_cache(maxsize=None)
def traced(name: str) -> Program:
    """The program of a model in the zoo."""
    model, inputs = ZOO[name].build()
    return trace(model, inputs)

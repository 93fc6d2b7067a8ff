"""What each kind of operator makes of facts: one row per kind, soundness argued beside it."""

from graphgrow.prove.rows import along, contractions, layout, lookups, norms, pointwise, reductions
from graphgrow.prove.rows.base import ROWS, Context, Number, Value
from graphgrow.prove.rows.layout import plain

__all__ = [
    "ROWS",
    "Context",
    "Number",
    "Value",
    "along",
    "contractions",
    "layout",
    "lookups",
    "norms",
    "plain",
    "pointwise",
    "reductions",
]

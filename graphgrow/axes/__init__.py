"""What every tensor dimension means: terms, inference, names."""

from graphgrow.axes.infer import Axes, infer
from graphgrow.axes.term import UNIT, Atom, Product, Sum, Term

__all__ = ["UNIT", "Atom", "Axes", "Product", "Sum", "Term", "infer"]

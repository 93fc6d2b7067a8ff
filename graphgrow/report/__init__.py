"""What programs cost, what differs between two of them, and tables of it for people and for programs."""

from graphgrow.report.cost import Cost, cost
from graphgrow.report.diff import Difference, difference

__all__ = ["Cost", "Difference", "cost", "difference"]

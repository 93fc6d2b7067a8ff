"""Training: optimizers through growth, and their groups from a program's recipe."""

from graphgrow.runtime.groups import parameter_groups
from graphgrow.runtime.optimizer import grow_optimizer

__all__ = ["grow_optimizer", "parameter_groups"]

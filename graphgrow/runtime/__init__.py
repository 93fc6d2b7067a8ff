"""Training through growth: what goes with the weights when a program grows."""

from graphgrow.runtime.optimizer import grow_optimizer

__all__ = ["grow_optimizer"]

"""What `trace("tests.factories:name")` finds."""

import torch
from torch import nn

MODEL = nn.Linear(3, 2)
NUMBER = 3


def plain() -> nn.Module:
    return nn.Linear(3, 2)


def with_example() -> tuple[nn.Module, torch.Tensor]:
    return nn.Linear(3, 2), torch.randn(4, 3)


def failing() -> nn.Module:
    raise ValueError("no data here")


def needs(width: int) -> nn.Module:
    return nn.Linear(width, 2)


def number() -> int:
    return 3

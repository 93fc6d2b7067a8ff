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


class Residual(nn.Module):
    """Two residual MLPs between an input and an output of fixed size; weights start alike at every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 5)
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(x)


def residual(width: int) -> tuple[nn.Module, torch.Tensor]:
    return Residual(width), torch.randn(16, 8)


def number() -> int:
    return 3

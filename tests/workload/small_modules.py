"""Modules that are small and have all that a graph of tasks is about."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Heads(nn.Module):
    """Attention of 2 heads of 4 over 6 tokens, by products and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(1, 6, 2, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(1, 6, 8))


class Gated(nn.Module):
    """A feed-forward layer of 8 with 24 hidden channels that others gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((8, 24), (8, 24), (24, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))

"""What `SnapKVPolicy` is compared with: any tokens of a prompt, or its two ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.runtime.policies.policy import Dropping, PolicyLayer


@dataclass(frozen=True)
class RandomKeep(Dropping):
    """Any tokens of the prompt, and its last ones: the control for `SnapKVPolicy`.

    Args:
        capacity: tokens that stay, the window's included.
        window: last tokens among them.
        seed: of the choice.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    window: int = 32
    seed: int = 0

    def kept(self, layer: PolicyLayer, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1000 + layer.index)
        shape = (layer.keys.shape[0], layer.heads, length - self.window)
        best = torch.rand(shape, generator=generator).topk(self.capacity - self.window, -1).indices.sort(-1).values
        recent = torch.arange(length - self.window, length, device=best.device).expand(*best.shape[:2], -1)
        return torch.cat((best, recent), -1)


@dataclass(frozen=True)
class KeepEnds(Dropping):
    """The first tokens of the prompt and its last ones: StreamingLLM's choice at `SnapKVPolicy`'s budget.

    Args:
        capacity: tokens that stay.
        sinks: first tokens among them.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    sinks: int = 4

    def kept(self, layer: PolicyLayer, length: int) -> Tensor:
        every = torch.arange(length, device=layer.keys.device)
        ends = torch.cat((every[: self.sinks], every[length - self.capacity + self.sinks :]))
        return ends.expand(layer.keys.shape[0], layer.heads, -1)

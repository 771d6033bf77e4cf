"""A training step of one layer over sequences, of several kinds: what remembering costs in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import nn

from hasten.nn.plain_attention import whole_attention
from hasten.nn.s5 import S5
from hasten.train.recurrent_ppo import GRUMemory

LayerKind: TypeAlias = Literal["S5", "S5 without its gated unit", "GRU", "GRU with resets", "attention"]


def layer_step(kind: LayerKind | str, length: int, seed: int, *, batch: int = 8) -> Callable[[], object]:
    """Forward and backward of one layer of width 256 on noise, 2 % of the steps resets where the kind knows them.

    Args:
        kind: of layer; attention has four heads of 64 and one sequence.
        length: steps of a sequence.
        seed: of weights and noise, by torch's own generator.
        batch: sequences.
    """
    torch.manual_seed(seed)
    width = 256
    x, resets = torch.randn(batch, length, width), torch.rand(batch, length) < 0.02
    if kind.startswith("S5"):
        s5 = S5(width, 128, gated="without" not in kind)
        return lambda: s5(x, None, resets)[0].sum().backward()
    if kind == "GRU":
        gru = nn.GRU(width, width, batch_first=True)
        return lambda: gru(x)[0].sum().backward()
    if kind == "GRU with resets":
        cell = GRUMemory(width)
        return lambda: cell(x, cell.new_state(batch), resets)[0].sum().backward()
    q, k, v = (torch.randn(1, 4, length, 64, requires_grad=True) for _ in range(3))
    return lambda: whole_attention(q, k, v, scale=0.125, causal=True).sum().backward()

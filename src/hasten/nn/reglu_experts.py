"""A mixture of ReLU-gated experts with a router of its own input, and the loss that balances them (SmallThinker)."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from hasten.nn.moe import balance_loss, by_expert, choose

__all__ = ["Activation", "Expert", "ReGLUExperts", "balance_loss", "route", "sparse_rows"]

Activation = Literal["relu", "silu"]


class Expert(nn.Module):
    """``down(act(gate(h)) * up(h))`` without biases.

    With ReLU most gates of a token are zero: of one token alone only the rows that are not are computed, exactly.

    Args:
        width: of input and output.
        inner: values between.
        activation: of the gate.

    Shape:
        h (..., width) to the same.
    """

    def __init__(self, width: int, inner: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        gate = self.gate(h)
        if self.activation == "silu":
            return self.down(nn.functional.silu(gate) * self.up(h))
        return self.down(torch.relu(gate) * self.up(h))


def sparse_rows(gate: Tensor, up: Tensor, down: Tensor, h: Tensor) -> Tensor:
    """One expert for one token, computing only neurons whose gate is positive.

    Args:
        gate, up, down: (inner, width) each; ``down`` transposed, so that a neuron is a row of all three.
        h: (width).

    Returns:
        (width), what the dense formula gives but for the order of sums.
    """
    opened = torch.relu(gate @ h)
    used = opened.nonzero()[:, 0]
    return (opened[used] * (up[used] @ h)) @ down[used]


def route(logits: Tensor, count: int, softmax: bool = False) -> tuple[Tensor, Tensor]:
    """The ``count`` best experts of each token and their weights, which sum to one.

    Args:
        logits: (tokens, experts).
        count: experts a token.
        softmax: weigh by softmax over the chosen ones, not by their sigmoids over their sum (the default).

    Returns:
        weights and numbers of experts, (tokens, count) both.
    """
    return choose(logits, count, score="softmax of chosen" if softmax else "sigmoid")


class ReGLUExperts(nn.Module):
    """Experts behind router logits that are given: the router may read another place of the network.

    Args:
        width, inner: of an expert.
        experts, count: how many there are, and how many a token uses.
        activation: of the gates.
        softmax: how the chosen ones are weighed, see `route`.

    Shape:
        h (..., width), logits (..., experts) to (..., width). In training mode ``logits`` and ``open_share``, the share
        of positive gates among used experts, stay with the layer.
    """

    def __init__(
        self, width: int, inner: int, experts: int, count: int, activation: Activation = "relu", softmax: bool = False
    ) -> None:
        super().__init__()
        if not 0 < count <= experts:
            raise ValueError(f"a token uses 1 to {experts} experts, not {count}")
        self.count, self.softmax = count, softmax
        self.primary_router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, inner, activation) for _ in range(experts))
        self.logits: Tensor | None = None
        self.open_share = 1.0

    def forward(self, h: Tensor, logits: Tensor) -> Tensor:
        flat, scores = h.reshape(-1, h.shape[-1]), logits.reshape(-1, logits.shape[-1])
        weights, chosen = route(scores, self.count, self.softmax)
        self.logits = scores if self.training else None
        if len(flat) == 1 and not self.training and cast("Expert", self.experts[0]).activation == "relu":
            total = torch.zeros_like(flat[0])
            for weight, number in zip(weights[0], chosen[0].tolist(), strict=True):
                expert = cast("Expert", self.experts[number])
                total = total + weight * sparse_rows(
                    expert.gate.weight, expert.up.weight, expert.down.weight.t(), flat[0]
                )
            return total.reshape(h.shape)
        opened = used = 0

        def run(number: int, rows: Tensor) -> Tensor:
            nonlocal opened, used
            expert = cast("Expert", self.experts[number])
            if self.training:
                with torch.no_grad():
                    gates = expert.gate(rows) > 0
                opened, used = opened + int(gates.sum()), used + gates.numel()
            return expert(rows)

        out = by_expert(flat, weights, chosen, len(self.experts), run)
        self.open_share = opened / max(1, used)
        return out.reshape(h.shape)

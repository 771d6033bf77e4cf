"""A mixture of ReLU-gated experts with a router of its own input, and the loss that balances them (SmallThinker)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, overload

import torch
from torch import Tensor, nn

from hasten.nn.block import Block, Factory, untouched
from hasten.nn.moe import Routing, balance_loss, by_expert, choose

__all__ = ["Activation", "Expert", "ReGLUExperts", "balance_loss", "route", "sparse_rows"]

Activation = Literal["relu", "silu"]


class Expert(Block):
    """``down(act(gate(h)) * up(h))`` without biases.

    With ReLU most gates of a token are zero: of one token alone only the rows that are not are computed, exactly.

    Args:
        width: of input and output.
        inner: values between.
        activation: of the gate.
        device, dtype: as torch's modules take them.

    Shape:
        h (..., width) to the same.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        activation: Activation = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        self.activation = activation
        self.up = nn.Linear(width, inner, bias=False, **made)
        self.gate = nn.Linear(width, inner, bias=False, **made)
        self.down = nn.Linear(inner, width, bias=False, **made)

    def forward(self, h: Tensor) -> Tensor:
        if self._alone(h):
            return sparse_rows(self.gate.weight, self.up.weight, self.down.weight.t(), h.reshape(-1)).reshape(h.shape)
        gate = self.gate(h)
        if self.activation == "silu":
            return self.down(nn.functional.silu(gate) * self.up(h))
        return self.down(torch.relu(gate) * self.up(h))

    if TYPE_CHECKING:
        __call__ = forward

    def _alone(self, h: Tensor) -> bool:
        """Whether there is one token alone, of which the rows in use are enough."""
        # Of a tensor that is traced no shape says how many rows are in use.
        if self.training or self.activation != "relu" or torch.compiler.is_compiling() or type(h) is not Tensor:
            return False
        return h.numel() == h.shape[-1] and all(untouched(part) for part in (self.gate, self.up, self.down))


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


class ReGLUExperts(Block):
    """Experts behind router logits that are given: the router may read another place of the network.

    Args:
        width, inner: of an expert.
        experts, count: how many there are, and how many a token uses.
        activation: of the gates.
        softmax: how the chosen ones are weighed, see `route`.
        device, dtype: as torch's modules take them.

    Shape:
        h (..., width), logits (..., experts) to (..., width); with ``return_routing`` a `Routing` too: the logits
        (tokens, experts), and the share of positive gates among used experts.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        experts: int,
        count: int,
        activation: Activation = "relu",
        softmax: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        if not 0 < count <= experts:
            raise ValueError(f"a token uses 1 to {experts} experts, not {count}")
        self.count, self.softmax = count, softmax
        self.primary_router = nn.Linear(width, experts, bias=False, **made)
        self.experts = nn.ModuleList(Expert(width, inner, activation, **made) for _ in range(experts))

    @overload
    def forward(self, h: Tensor, logits: Tensor) -> Tensor: ...
    @overload
    def forward(self, h: Tensor, logits: Tensor, *, return_routing: Literal[True]) -> tuple[Tensor, Routing]: ...
    def forward(self, h: Tensor, logits: Tensor, *, return_routing: bool = False) -> Tensor | tuple[Tensor, Routing]:
        flat, scores = h.reshape(-1, h.shape[-1]), logits.reshape(-1, logits.shape[-1])
        weights, chosen = route(scores, self.count, self.softmax)
        if flat.shape[0] == 1 and not self.training and not return_routing and not torch.compiler.is_compiling():
            total = torch.zeros_like(flat)
            for weight, number in zip(weights[0], chosen[0].tolist(), strict=True):
                total = total + weight * self.experts[number](flat)
            return total.reshape(h.shape)
        out = by_expert(flat, weights, chosen, len(self.experts), lambda i, rows: self.experts[i](rows))
        out = out.reshape(h.shape)
        return (out, Routing(scores, open_share=self._open_share(flat, chosen))) if return_routing else out

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def _open_share(self, flat: Tensor, chosen: Tensor) -> Tensor:
        opened, inner = flat.new_zeros((), dtype=torch.int64), 1
        for number, expert in enumerate(cast("list[Expert]", list(self.experts))):
            gates = expert.gate(flat[(chosen == number).any(-1)]) > 0
            opened, inner = opened + gates.sum(), gates.shape[-1]
        return opened.float() / (chosen.numel() * inner)

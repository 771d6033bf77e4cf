"""The MatMul-free linear GRU and the ternary gated MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.associative_scan import associative_scan
from hasten.kernels.gate import wide
from hasten.nn.block import Block, Factory, numbers_of
from hasten.nn.ternary import BitLinear


class MLGRU(Block):
    """A token mixer of gates and additions: a linear recurrence, element by element (arXiv 2406.02528, section 3.3.1).

        f = lb + (1 - lb) sigmoid(F x),  i = silu(I x) (1 - f),  h[t] = f[t] h[t-1] + i[t]

    F, I, G and O are `BitLinear`. The output is ``O(rmsnorm(G x) * silu(h))`` as in the released code, or
    ``O(sigmoid(G x) * h)`` as in the text.

    Args:
        width: of input, output and state.
        output: ``code`` or ``text``.
        linear: what makes a projection from (in, out) and ``device`` and ``dtype``; `BitLinear`, or for comparison a
            full-precision layer.
        device, dtype: as torch's modules take them.

    Shape:
        x (batch, length, width) to the same.
    """

    def __init__(
        self,
        width: int,
        *,
        output: Literal["code", "text"] = "code",
        linear: type[nn.Module] = BitLinear,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output not in ("code", "text"):
            raise ValueError(f"the output is of the code or the text, not {output!r}")
        self.width, self.output = width, output
        made: Factory = {"device": device, "dtype": dtype}
        self.f_proj, self.i_proj, self.g_proj, self.o_proj = (linear(width, width, **made) for _ in range(4))
        self.g_norm = nn.RMSNorm(width, eps=1e-6, **made) if output == "code" else None

    def new_state(self, batch: int) -> Tensor:
        """(batch, width), fp32 (fp64 of an fp64 block): all that it remembers."""
        like = numbers_of(self)
        return like.new_zeros(batch, self.width, dtype=wide(like.dtype))

    def forward(
        self, x: Tensor, state: Tensor | None = None, lower_bound: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Output (batch, length, width) and the last state (batch, width).

        Args:
            x: (batch, length, width).
            state: before the first step; zeros when None.
            lower_bound: (width), in [0, 1): the forget gates stay above it.
        """
        f = torch.sigmoid(self.f_proj(x))
        if lower_bound is not None:
            bound = lower_bound.to(f.dtype)
            f = bound + (1 - bound) * f
        h, last = associative_scan(f, F.silu(self.i_proj(x)) * (1 - f), state)
        g = self.g_proj(x)
        mixed = self.g_norm(g) * F.silu(h) if self.g_norm is not None else torch.sigmoid(g) * h
        return self.o_proj(mixed), last

    if TYPE_CHECKING:
        __call__ = forward


class TernaryGLU(Block):
    """A gated MLP of BitLinear layers: ``down(silu(a) * b)`` with [a, b] one projection (arXiv 2406.02528, 3.3.2).

    Args:
        width: of input and output.
        hidden: inner width; 8 width / 3 rounded up to a multiple of 256 when None.
        linear, device, dtype: as for `MLGRU`.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        linear: type[nn.Module] = BitLinear,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden = hidden or -(-8 * width // (3 * 256)) * 256
        self.gate_proj = linear(width, 2 * self.hidden, device=device, dtype=dtype)
        self.down_proj = linear(self.hidden, width, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gate_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(a) * b)

    if TYPE_CHECKING:
        __call__ = forward

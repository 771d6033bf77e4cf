"""The Mamba block: a gated selective state-space layer in place of attention and MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels.gate import wide
from hasten.kernels.selective_scan import Discretization, selective_scan
from hasten.nn.block import Block, Factory, numbers_of
from hasten.nn.states import state_kind


@dataclass
class MambaState:
    """What a block carries from one call to the next: constant in size, whatever came before.

    Args:
        conv: the last ``kernel`` inputs of the convolution as they came, oldest first (batch, inner, kernel).
        ssm: the state-space layer's state (batch, inner, states), fp32 (fp64 of an fp64 block).
    """

    conv: Tensor
    ssm: Tensor

    def move(self, conv: Tensor, ssm: Tensor) -> None:
        """On to later values: in place, unless gradients still need the old ones."""
        if torch.is_grad_enabled() and (conv.requires_grad or ssm.requires_grad):
            self.conv, self.ssm = conv, ssm
        else:
            self.conv.copy_(conv)
            self.ssm.copy_(ssm)

    @property
    def nbytes(self) -> int:
        return self.conv.nbytes + self.ssm.nbytes


state_kind(MambaState)


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None = None, segments: Tensor | None = None
) -> Tensor:
    """A depthwise convolution over time that sees only the present and the past.

    Args:
        x: (batch, length, channels).
        weight: (channels, 1, taps) or (channels, taps); its last tap is the present.
        bias: (channels).
        before: inputs before the first, oldest first (batch, channels, at least taps - 1); zeros when None.
        segments: (batch, length) int; tokens of another segment count as zeros. What came ``before`` belongs to
            segment 0.

    Returns:
        (batch, length, channels).
    """
    taps = weight.shape[-1]
    weight = weight.reshape(-1, taps)
    past = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
    if before is not None and taps > 1:
        past = before[:, :, -(taps - 1) :].transpose(1, 2).to(x.dtype)
    padded = torch.cat([past, x], 1)
    length = x.shape[1]
    if segments is not None:
        segments = F.pad(segments, (taps - 1, 0))
    y = x * weight[:, -1]
    for tap in range(taps - 1):
        seen = padded[:, tap : tap + length]
        if segments is not None:
            seen = seen * (segments[:, tap : tap + length] == segments[:, taps - 1 :])[..., None]
        y = torch.addcmul(y, seen, weight[:, tap])
    return y if bias is None else y + bias


class _CausalConv1d(nn.Conv1d):
    """`causal_convolution` by its own weight: x (batch, length, channels) to the same."""

    def forward(self, x: Tensor, before: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return causal_convolution(x, self.weight, self.bias, before, segments)


class Mamba(Block):
    """Selective state spaces (S6) behind a short causal convolution, gated (arXiv 2312.00752, section 3.4).

    The parameters have the names and shapes of the published checkpoints. A is real and diagonal, held as its
    logarithm and used in fp32 (fp64 for fp64).

    Args:
        width: of the input and output.
        states: N, numbers of state a channel.
        kernel: taps of the convolution.
        expand: inner channels over width.
        step_rank: rank of the step sizes' projection; width / 16, rounded up, when None.
        step_range, step_floor: the step sizes at the start are log-uniform in the range, at least the floor.
        discretization: ``euler`` (the released models) or ``zoh``.
        selective: which of ``"B"``, ``"C"`` and ``"delta"`` depend on the token; the others are learned constants,
            and with none of them the layer is a time-invariant S4D (real).
        device, dtype: as torch's modules take them.

    Shape:
        u (batch, length, width) to (batch, length, width).
    """

    no_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "B", "C")

    def __init__(
        self,
        width: int,
        *,
        states: int = 16,
        kernel: int = 4,
        expand: int = 2,
        step_rank: int | None = None,
        step_range: tuple[float, float] = (1e-3, 1e-1),
        step_floor: float = 1e-4,
        discretization: Discretization = "euler",
        selective: tuple[str, ...] = ("B", "C", "delta"),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(width, states, kernel, expand) < 1:
            raise ValueError("width, states, kernel and expand must be at least 1")
        if unknown := set(selective) - {"B", "C", "delta"}:
            raise ValueError(f"selective takes B, C and delta, not {', '.join(sorted(unknown))}")
        self.width, self.states, self.kernel, self.inner = width, states, kernel, expand * width
        self.step_rank = step_rank or math.ceil(width / 16)
        self.step_range, self.step_floor = step_range, step_floor
        self.discretization: Discretization = discretization
        self.selective = tuple(selective)
        made: Factory = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False, **made)
        self.conv1d = _CausalConv1d(self.inner, self.inner, kernel, groups=self.inner, padding=kernel - 1, **made)
        self._parts = {"delta": self.step_rank, "B": states, "C": states}
        projected = sum(size for part, size in self._parts.items() if part in selective)
        self.x_proj = nn.Linear(self.inner, projected, bias=False, **made) if projected else None
        self.dt_proj = nn.Linear(self.step_rank, self.inner, **made) if "delta" in selective else None
        self.dt_bias = None if "delta" in selective else nn.Parameter(torch.empty(self.inner, **made))
        self.B = None if "B" in selective else nn.Parameter(torch.empty(states, **made))
        self.C = None if "C" in selective else nn.Parameter(torch.empty(states, **made))
        self.A_log = nn.Parameter(torch.empty(self.inner, states, **made))
        self.D = nn.Parameter(torch.empty(self.inner, **made))
        self.out_proj = nn.Linear(self.inner, width, bias=False, **made)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published start: A = -1 .. -N in every channel, D = 1, log-uniform step sizes."""
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.out_proj):
            if layer is not None:
                layer.reset_parameters()
        self.A_log.copy_(torch.arange(1, self.states + 1, dtype=torch.float32).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        for constant in (self.B, self.C):
            if constant is not None:
                nn.init.normal_(constant)
        low, high = map(math.log, self.step_range)
        bias = self.dt_bias if self.dt_proj is None else self.dt_proj.bias
        assert bias is not None
        steps = torch.exp(torch.rand_like(bias, dtype=torch.float32) * (high - low) + low).clamp(min=self.step_floor)
        # The inverse of softplus: log(e^s - 1).
        bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        if self.dt_proj is not None:
            nn.init.uniform_(self.dt_proj.weight, -(self.step_rank**-0.5), self.step_rank**-0.5)

    def new_state(self, batch: int) -> MambaState:
        """The state before any token."""
        like = numbers_of(self)
        conv = like.new_zeros(batch, self.inner, self.kernel)
        return MambaState(conv, like.new_zeros(batch, self.inner, self.states, dtype=wide(like.dtype)))

    def forward(self, u: Tensor, state: MambaState | None = None, starts: Tensor | None = None) -> Tensor:
        """The block's output; ``state`` is read and moved on to the last token.

        Args:
            u: (batch, length, width).
            state: what came before; zeros when None.
            starts: (batch, length) bool, True where a new sequence begins: neither the convolution nor the state sees
                across. With padding on the left, True at each sequence's first token keeps the padding out.
        """
        x, z = self.in_proj(u).chunk(2, -1)
        segments = None if starts is None else starts.to(torch.int64).cumsum(1)
        before = None if state is None else state.conv
        mixed = F.silu(self.conv1d(x, before, segments))
        delta, B, C, bias = self._maps(mixed)
        y, last = selective_scan(
            mixed, delta, -torch.exp(self.A_log.to(wide(mixed.dtype))), B, C, self.D, z, bias, delta_softplus=True,
            initial=None if state is None else state.ssm, starts=starts, discretization=self.discretization,
        )  # fmt: skip
        if state is not None and u.shape[1]:
            state.move(self._last_inputs(x, state.conv, segments), last)
        return self.out_proj(y)

    if TYPE_CHECKING:
        __call__ = forward

    def step(self, u: Tensor, state: MambaState) -> Tensor:
        """One token a sequence, u (batch, width) to (batch, width), in time and memory that no position changes."""
        return self.forward(u[:, None], state)[:, 0]

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Step sizes before their softplus, B, C, and a bias of the step sizes that is not in them."""
        sizes = {part: size for part, size in self._parts.items() if part in self.selective}
        parts = {} if self.x_proj is None else dict(zip(sizes, self.x_proj(x).split([*sizes.values()], -1)))
        constant = {"B": self.B, "C": self.C}
        B, C = (parts[name] if fixed is None else fixed.expand(*x.shape[:2], -1) for name, fixed in constant.items())
        if self.dt_proj is not None:
            return self.dt_proj(parts["delta"]), B, C, None
        return torch.zeros_like(x), B, C, self.dt_bias

    def _last_inputs(self, x: Tensor, before: Tensor, segments: Tensor | None) -> Tensor:
        # Traced, a slice of the inputs alone would be for no fewer than so many of them.
        last = slice(None) if torch.compiler.is_compiling() else slice(-self.kernel, None)
        x = x[:, last].transpose(1, 2)
        if segments is not None:
            # Tokens of earlier sequences are zeros to the one that goes on; those before this call are segment 0.
            x = x * (segments[:, last] == segments[:, -1:])[:, None]
            before = before * (segments[:, -1] == 0)[:, None, None]
        return torch.cat([before.to(x.dtype), x], 2)[:, :, -self.kernel :].contiguous()

    def extra_repr(self) -> str:
        chosen = "" if len(self.selective) == 3 else f", selective={self.selective}"
        return f"{self.width}, states={self.states}, kernel={self.kernel}, inner={self.inner}{chosen}"

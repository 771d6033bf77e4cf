"""Numbers rounded as a chip will hold them, with gradients to train by: symmetric, uniform, to a threshold.

With k bits and a threshold t the step is t / (2^(k-1) - 1), and x becomes the nearest multiple of it within -t and t
(arXiv 2006.08357, equations 1 to 3). A threshold may lie below the largest number: the rest is then told apart more
finely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels.gate import no_tangents
from hasten.nn.block import PackedBlock

__all__ = ["SymmetricQuantizer", "fitted_threshold", "requantize", "requantizer", "round_through", "rounded_to"]

# Shares of the largest number that are tried as a threshold.
_SHARES = tuple(i / 20 for i in range(5, 21))
_LEAST = 1e-12  # where all numbers are 0 any step will do


def round_through(x: Tensor) -> Tensor:
    """Whole numbers, halves to even, with the gradient of what was rounded (straight-through, arXiv 1308.3432)."""
    no_tangents("rounding", x)
    return x + (x.round() - x).detach()


def levels(bits: int) -> int:
    """Codes on each side of 0."""
    return (1 << (bits - 1)) - 1


def rounded_to(x: Tensor, threshold: Tensor, bits: int) -> Tensor:
    """Multiples of the step within the threshold; no gradient passes beyond it.

    Args:
        x: any shape.
        threshold: above 0, of a shape that spreads over x's.
        bits: from 2.
    """
    threshold = threshold.to(x.dtype)
    step = threshold / levels(bits)
    return round_through(x.minimum(threshold).maximum(-threshold) / step) * step


@torch.no_grad()
def fitted_threshold(x: Tensor, bits: int, across: Sequence[int]) -> Tensor:
    """The threshold with the least squared error, among shares of the largest number.

    Args:
        x: numbers to fit to, at least one.
        bits: from 2.
        across: dimensions that share a threshold; the others have one each, and ``across`` is kept with size 1.
    """
    wide = x.detach().float()
    largest = wide.abs().amax(tuple(across), keepdim=True).clamp(min=_LEAST)
    found, least = largest, torch.full_like(largest, torch.inf)
    for share in _SHARES:
        threshold = share * largest
        error = (rounded_to(wide, threshold, bits) - wide).square().sum(tuple(across), keepdim=True)
        better = error < least
        found, least = torch.where(better, threshold, found), torch.where(better, error, least)
    return found


class SymmetricQuantizer(PackedBlock):
    """Rounds what passes to multiples of a step, as `rounded_to` does.

    Args:
        bits: 2 to 16.
        channels: thresholds along the first dimension (of a weight, its outputs); 0 for one of all numbers.
        device, dtype: of the thresholds, as torch's modules take them; they stay in it under ``.to(dtype)``.

    While ``observing`` is true it fits its thresholds to what passes. They start at 1.

    Shapes: any to the same; the first dimension is ``channels`` where there are some.

    Raises:
        HastenError: bits that it does not have.
    """

    threshold: Tensor

    def __init__(
        self,
        bits: int,
        channels: int = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 16:
            raise HastenError(f"a quantizer rounds to 2 to 16 bits, not {bits}")
        self.bits, self.channels, self.observing = bits, channels, False
        self.register_buffer("threshold", torch.ones(max(channels, 1), device=device, dtype=dtype))

    def _start(self) -> None:
        self.threshold.fill_(1.0)

    @property
    def step(self) -> Tensor:
        """(channels or 1,): between neighbours."""
        return self.threshold / levels(self.bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.observing and x.numel():
            across = range(1 if self.channels else 0, x.ndim)
            self.threshold.copy_(fitted_threshold(x, self.bits, across).flatten())
        threshold = self.threshold.reshape(-1, *[1] * (x.ndim - 1)) if self.channels else self.threshold
        return rounded_to(x, threshold, self.bits)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"bits={self.bits}, channels={self.channels}"


def requantizer(
    norm: nn.BatchNorm2d, weight_step: Tensor, input_step: Tensor, output_step: Tensor
) -> tuple[Tensor, Tensor]:
    """A scale and a bias for each channel that make of sums of products of codes the codes of the normalized answer.

    Args:
        norm: of the layer, with its running statistics.
        weight_step: (channels,) of the layer's weight.
        input_step, output_step: of the codes that come in and go out.
    """
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = (norm.running_var + norm.eps).rsqrt() * norm.weight
    return weight_step * input_step * gain / output_step, (norm.bias - norm.running_mean * gain) / output_step


def requantize(sums: Tensor, scale: Tensor, bias: Tensor, bits: int = 8, *, relu: bool = True) -> Tensor:
    """Codes of sums of products of codes: scaled, shifted, rounded, held within ``bits``.

    Args:
        sums: (maps, channels, height, width), whole numbers.
        scale, bias: of `requantizer`.
        bits: of the codes.
        relu: whether what is below 0 becomes 0.
    """
    codes = (sums * scale[:, None, None] + bias[:, None, None]).round()
    return codes.clamp(0 if relu else -levels(bits), levels(bits))

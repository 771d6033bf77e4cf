"""Codes of numbers in groups: int8 with a scale, int4 with a scale and mostly a minimum, both fp16."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.errors import HastenError

# The largest number of fp16, and the smallest above 0.
_MOST, _LEAST = 65504.0, 2.0**-24

# By bits of a code the largest weight that `check_range` lets through: of int8 what the largest scale reaches, of int4
# the largest minimum (a scale reaches further), of bf16 its largest number.
LARGEST = {16: torch.finfo(torch.bfloat16).max, 8: 127 * _MOST, 4: _MOST, 2: _MOST}


def check_range(weight: Tensor, bits: int) -> None:
    """Raises HastenError for a weight that codes of ``bits`` cannot hold: not finite, or beyond `LARGEST`."""
    if not weight.numel():
        return
    low, high = torch.aminmax(weight.detach().float())
    most = float(torch.maximum(-low, high))
    if not most < math.inf:
        raise HastenError("a weight is not finite, which no codes hold: mend the model, or leave this layer as it is")
    if most > LARGEST[bits]:
        raise HastenError(f"a weight is as large as {most:.3g}, {bits} bits reach {LARGEST[bits]:.3g}: take more")


def encode(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of groups along the last axis, scales and (at 4 bits) mins without that axis.

    Rounded to nearest; an all-equal group has scale 0 and codes 0. Two int4 codes share a byte: value j of a group
    is the low nibble of byte j, value j + half the group its high one. What scales of fp16 cannot reach is cut off at
    the largest code, a group with a value that is not finite reads as NaN, and no scale of a group of small numbers is
    rounded to 0: codes are then steps of 2^-24.
    """
    if bits == 8:
        scales = half_scales(values.abs().amax(-1) / 127)
        return torch.round(values / _divisor(scales)).clamp_(-127, 127).to(torch.int8), scales, None
    lowest, highest = values.amin(-1), values.amax(-1)
    mins = _half(lowest)
    scales = half_scales((highest - mins.float()) / 15)
    codes = torch.round((values - mins.float()[..., None]) / _divisor(scales)).clamp_(0, 15).to(torch.uint8)
    half = values.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4), scales, mins


def half_scales(scales: Tensor) -> Tensor:
    """Scales in fp16: no overflow, no positive one as 0, and NaN for what is not finite."""
    small = _half(scales)
    return torch.where((small == 0) & (scales > 0), small.new_full((), _LEAST), small)


def _half(numbers: Tensor) -> Tensor:
    """fp16, cut off at its largest number; NaN for what is not finite."""
    finite = torch.where(numbers.isfinite(), numbers, torch.nan)
    return finite.clamp(-_MOST, _MOST).to(torch.float16)


def decode(codes: Tensor, scales: Tensor, mins: Tensor | None) -> Tensor:
    """fp32 values of groups along the last axis; codes in uint8 are int4, and less 8 where they have no mins."""
    if codes.dtype is not torch.uint8:
        return codes.float() * scales.float()[..., None]
    wide = torch.cat((codes & 15, codes >> 4), -1).float()
    if mins is None:
        return (wide - 8) * scales.float()[..., None]
    return wide * scales.float()[..., None] + mins.float()[..., None]


def _divisor(scales: Tensor) -> Tensor:
    wide = scales.float()[..., None]
    return torch.where(wide == 0, torch.ones_like(wide), wide)

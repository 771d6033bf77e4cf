"""Codes of numbers in groups: int8 with a scale, int4 with a scale and a minimum, both fp16."""

from __future__ import annotations

import torch
from torch import Tensor


def encode(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of groups along the last axis, scales and (at 4 bits) mins without that axis.

    Rounded to nearest; an all-equal group has scale 0 and codes 0. Two int4 codes share a byte: value j of a group
    is the low nibble of byte j, value j + half the group its high one.
    """
    if bits == 8:
        scales = (values.abs().amax(-1) / 127).to(torch.float16)
        return torch.round(values / _divisor(scales)).clamp_(-127, 127).to(torch.int8), scales, None
    mins = values.amin(-1).to(torch.float16)
    scales = ((values.amax(-1) - mins.float()) / 15).to(torch.float16)
    codes = torch.round((values - mins.float()[..., None]) / _divisor(scales)).clamp_(0, 15).to(torch.uint8)
    half = values.shape[-1] // 2
    return codes[..., :half] | (codes[..., half:] << 4), scales, mins


def decode(codes: Tensor, scales: Tensor, mins: Tensor | None) -> Tensor:
    """fp32 values of groups along the last axis."""
    if mins is None:
        return codes.float() * scales.float()[..., None]
    wide = torch.cat((codes & 15, codes >> 4), -1).float()
    return wide * scales.float()[..., None] + mins.float()[..., None]


def _divisor(scales: Tensor) -> Tensor:
    wide = scales.float()[..., None]
    return torch.where(wide == 0, torch.ones_like(wide), wide)

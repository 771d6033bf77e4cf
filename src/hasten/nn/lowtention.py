"""Attention on a smaller, narrower copy of a feature map: LowFormer's block (arXiv 2409.03460)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory


def head_sizes(channels: int, ratio: float = 0.5, least: int = 30) -> tuple[int, int]:
    """Heads, and channels of each, for a map of so many channels: heads of about ``least`` or more.

    >>> [head_sizes(c) for c in (128, 160, 512)]
    [(2, 32), (2, 40), (8, 32)]
    """
    heads = max(1, int(ratio * channels / least))
    return heads, int(channels // heads * ratio)


class Lowtention(Block):
    """Self-attention over the positions of a feature map that a depthwise convolution made smaller, brought back to
    its size and channels by one transposed convolution.

    Args:
        channels: of the map.
        stride, kernel: of the depthwise convolution; the map is attended to at 1 / stride of its height and width.
        ratio: channels of all heads together, over ``channels``.
        fused: whether one dense transposed convolution projects the heads and brings them back to size; where not, a
            1x1 convolution projects and a depthwise transposed one brings back.
        device, dtype: as torch's modules take them.

    Shapes: (batch, channels, height, width) to the same.

    Raises:
        HastenError: a stride under 1, an even kernel, or no channel for a head.
    """

    def __init__(
        self,
        channels: int,
        stride: int = 2,
        kernel: int = 5,
        ratio: float = 0.5,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        self.heads, self.head_size = head_sizes(channels, ratio)
        if stride < 1 or kernel % 2 == 0 or self.head_size < 1:
            raise HastenError("attention on a smaller map takes a stride from 1, an odd kernel and room for a head")
        inner = self.heads * self.head_size
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False, **made),
            nn.BatchNorm2d(channels, **made),
        )
        self.qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False, **made)
        back: dict[str, Any] = {"kernel_size": 3, "stride": 1, "padding": 1}
        if stride > 1:
            back = {"kernel_size": 2 * stride, "stride": stride, "padding": stride // 2}
        # Strides that are odd leave a row and a column that the crop takes away.
        self.project: nn.Module
        if fused:
            self.project = nn.Identity()
            self.restore = nn.ConvTranspose2d(inner, channels, **back, **made)
        else:
            self.project = nn.Conv2d(inner, channels, 1, bias=False, **made)
            self.restore = nn.ConvTranspose2d(channels, channels, groups=channels, **back, **made)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        small = self.qkv(self.reduce(x))
        rows, columns = small.shape[2:]
        # Channels are the heads', and of each head those of its queries, keys and values.
        q, k, v = small.view(batch, self.heads, 3, self.head_size, rows * columns).transpose(3, 4).unbind(2)
        # Contiguous, or the processor's fused attention is not taken.
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        y = y.transpose(2, 3).reshape(batch, self.heads * self.head_size, rows, columns)
        made: Tensor = self.restore(self.project(y))[:, :, :height, :width]
        return made

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def fuse(self) -> None:
        """Makes the projection and the depthwise transposed convolution one dense one, in place.

        What is computed stays the same; nothing changes where it is fused already.
        """
        if isinstance(self.project, nn.Identity):
            return
        project: Any = self.project
        old = self.restore
        restore = nn.ConvTranspose2d(
            project.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding,  # type: ignore[arg-type]
            device=old.weight.device, dtype=old.weight.dtype,
        )  # fmt: skip
        restore.weight.copy_(project.weight[:, :, 0, 0].t()[:, :, None, None] * old.weight[:, 0])
        assert restore.bias is not None
        assert old.bias is not None
        restore.bias.copy_(old.bias)
        self.project, self.restore = nn.Identity(), restore.train(self.training)


class MapAttention(Block):
    """Self-attention over all positions of a feature map at its full size and width: what `Lowtention` is beside.

    Args:
        channels: of the map.
        head_size: channels of a head.
        device, dtype: as torch's modules take them.

    Shapes: (batch, channels, height, width) to the same.

    Raises:
        HastenError: heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        head_size: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels % head_size:
            raise HastenError(f"heads of {head_size} channels do not divide {channels}: choose another size")
        self.head_size = head_size
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False, device=device, dtype=dtype)
        self.project = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, rows, columns = x.shape
        made = self.qkv(x)
        channels = made.shape[1] // 3  # fewer than x has where heads were removed
        parts = made.view(batch, 3, channels // self.head_size, self.head_size, rows * columns)
        q, k, v = parts.transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return self.project(y.transpose(2, 3).reshape(batch, channels, rows, columns))

    if TYPE_CHECKING:
        __call__ = forward

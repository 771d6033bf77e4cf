"""A transformer layer on feature maps: attention over all positions, as hybrids with convolutions have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory


class MapTransformer(Block):
    """Pre-norm attention over all positions of a map and a feed-forward layer, each added to its input.

    A block that changes the shape first averages windows and brings the channels to its own by a 1x1 convolution.

    Args:
        inputs, outputs: channels.
        stride: of the windows that are averaged.
        head_size: channels of a head.
        relative: height and width of the map that a bias of each head is learned for, one number for each difference of
            two positions; maps of other sizes take it resized. 0 for no bias: the layer then knows no positions.
        ratio: inner width of the feed-forward layer over ``outputs``.
        device, dtype: as torch's modules take them.

    Shapes: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).

    Raises:
        HastenError: heads do not divide the channels.
    """

    no_decay = ("relative",)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        head_size: int = 32,
        relative: int = 0,
        ratio: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if outputs % head_size:
            raise HastenError(f"heads of {head_size} channels do not divide {outputs}: choose another width or size")
        made: Factory = {"device": device, "dtype": dtype}
        self.heads = outputs // head_size
        change: list[nn.Module] = []
        if stride > 1:
            change.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if inputs != outputs or stride > 1:
            change.append(nn.Conv2d(inputs, outputs, 1, **made))
        self.change = nn.Sequential(*change)
        self.norm = nn.LayerNorm(outputs, **made)
        self.qkv = nn.Linear(outputs, 3 * outputs, **made)
        self.project = nn.Linear(outputs, outputs, **made)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(outputs, **made), nn.Linear(outputs, ratio * outputs, **made), nn.GELU(),
            nn.Linear(ratio * outputs, outputs, **made),
        )  # fmt: skip
        side = 2 * relative - 1
        self.relative = nn.Parameter(torch.zeros(self.heads, side, side, **made)) if relative else None

    @torch.no_grad()
    def _start(self) -> None:
        if self.relative is not None:
            nn.init.zeros_(self.relative)

    def _bias(self, rows: int, columns: int) -> Tensor | None:
        """What is added to the scores of a map of this size, (heads, positions, positions)."""
        if self.relative is None:
            return None
        table: Tensor = self.relative
        sides = (2 * rows - 1, 2 * columns - 1)
        if table.shape[1:] != sides:
            table = F.interpolate(table[None], sides, mode="bilinear", align_corners=True)[0]
        down, right = (torch.arange(n, device=table.device) for n in (rows, columns))
        vertical = (down[:, None] - down + rows - 1)[:, None, :, None]
        horizontal = (right[:, None] - right + columns - 1)[None, :, None, :]
        return table[:, vertical, horizontal].reshape(self.heads, rows * columns, rows * columns)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)
        batch, channels, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        parts = self.qkv(self.norm(tokens)).view(batch, rows * columns, 3, self.heads, channels // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(rows, columns))
        tokens = tokens + self.project(y.transpose(1, 2).reshape(batch, rows * columns, channels))
        tokens = tokens + self.feed_forward(tokens)
        return tokens.transpose(1, 2).reshape(batch, channels, rows, columns)

    if TYPE_CHECKING:
        __call__ = forward

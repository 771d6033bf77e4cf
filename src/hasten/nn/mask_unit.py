"""Attention inside mask units, with pooled queries: the blocks of Hiera (arXiv 2306.00989), and the order they need.

Tokens of a map stand in an order in which every mask unit, and every window of 2 x 2 that a later block pools, is a
leading axis: attention inside units and pooling are then reshapes, and the map is ordered once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory


def check_units(side: int, unit: int, pools: int) -> None:
    """That a map divides into mask units, and a unit into the windows that are pooled.

    Args:
        side: tokens of a map's height or width.
        unit: tokens of a mask unit's side.
        pools: times that 2 x 2 tokens become one.

    Raises:
        HastenError: it does not.
    """
    if unit < 1 or pools < 0 or unit % 2**pools or side % unit:
        raise HastenError(
            f"a map of {side} x {side} tokens does not divide into mask units of {unit} x {unit} that are halved"
            f" {pools} times: give images whose side is a multiple of the unit's pixels"
        )


def unroll(tokens: Tensor, side: int, unit: int, pools: int) -> Tensor:
    """Tokens of a map row by row (batch, side^2, width), in the order that units and pooling need.

    Axes from the first: 4 for each pool, what is left of a unit, units.

    Args:
        tokens, side, unit, pools: as of `check_units`.

    Raises:
        HastenError: the map does not divide into units.
    """
    check_units(side, unit, pools)
    units, left = side // unit, unit // 2**pools
    axis = [units, left, *[2] * pools]  # of rows and of columns, the coarsest first
    count = len(axis)
    x = tokens.reshape(-1, *axis, *axis, tokens.shape[-1])
    pairs = [(1 + i, 1 + count + i) for i in reversed(range(2, count))] + [(2, 2 + count), (1, 1 + count)]
    order = [0, *(a for pair in pairs for a in pair), 1 + 2 * count]
    return x.permute(order).reshape(-1, side * side, tokens.shape[-1])


def reroll(tokens: Tensor, side: int, unit: int, pools: int) -> Tensor:
    """`unroll` undone: tokens (batch, side^2, width) row by row.

    After a pool the map's side and the unit's are half as long, and one pool fewer is left.

    Raises:
        HastenError: the map does not divide into units.
    """
    check_units(side, unit, pools)
    units, left = side // unit, unit // 2**pools
    axis = [*[2] * pools, left, units]  # the finest first, as they stand
    count = len(axis)
    x = tokens.reshape(-1, *(n for n in axis for _ in range(2)), tokens.shape[-1])
    rows = [1 + 2 * i for i in reversed(range(count))]
    order = [0, *rows, *(r + 1 for r in rows), 1 + 2 * count]
    return x.permute(order).reshape(-1, side * side, tokens.shape[-1])


def pooled(tokens: Tensor) -> Tensor:
    """The largest of every window of 2 x 2: unrolled tokens (batch, count, width) to (batch, count / 4, width)."""
    return tokens.unflatten(1, (4, -1)).amax(1)


class MaskUnitAttention(Block):
    """Softmax attention inside each mask unit, or over all tokens; queries may be pooled before, keys never are.

    Args:
        inputs, outputs: width of a token before and after.
        heads: of attention.
        unit: tokens of a mask unit, all that are read; 0 for one unit of all tokens.
        pool: whether the queries of each window of 2 x 2 become their maximum.
        device, dtype: as torch's modules take them.

    Shapes: (batch, tokens, inputs), unrolled, to (batch, tokens, outputs), or a quarter of the tokens where pooled.

    Raises:
        HastenError: heads do not divide the width, or a unit that cannot be pooled.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: int = 1,
        unit: int = 0,
        pool: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or outputs % heads:
            raise HastenError(f"{heads} heads do not divide a width of {outputs}: choose another number")
        if unit < 0 or (pool and unit % 4):
            raise HastenError(f"mask units of {unit} tokens are not pooled 2 x 2: give a multiple of 4, or 0 for all")
        self.heads, self.unit, self.pool, self.width = heads, unit, pool, outputs
        self.qkv = nn.Linear(inputs, 3 * outputs, device=device, dtype=dtype)
        self.project = nn.Linear(outputs, outputs, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        unit = self.unit or count
        units = count // unit
        # A unit's tokens are the leading axis, the units the trailing one.
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unflatten(1, (unit, units))
        q, k, v = parts.permute(3, 0, 2, 4, 1, 5)
        if self.pool:
            q = q.unflatten(3, (4, -1)).amax(3)
        # Four axes: the processor's fused attention takes no more.
        y = F.scaled_dot_product_attention(*(part.flatten(0, 1).contiguous() for part in (q, k, v)))
        y = y.unflatten(0, (-1, units)).permute(0, 3, 1, 2, 4)
        made: Tensor = self.project(y.reshape(-1, q.shape[3] * units, self.width))
        return made

    if TYPE_CHECKING:
        __call__ = forward


class MaskUnitBlock(Block):
    """A layer of Hiera: attention inside mask units and a feed-forward, each after a norm and added to its input.

    Where the width changes or tokens are pooled, what is added is a projection of the normed input, pooled alike.

    Args:
        inputs, outputs, heads, unit, pool: of `MaskUnitAttention`.
        ratio: inner width of the feed-forward over ``outputs``.
        device, dtype: as torch's modules take them.

    Shapes: as of `MaskUnitAttention`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: int = 1,
        unit: int = 0,
        pool: bool = False,
        ratio: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        self.pool = pool
        self.norm = nn.LayerNorm(inputs, eps=1e-6, **made)
        self.attention = MaskUnitAttention(inputs, outputs, heads, unit, pool, **made)
        self.change = nn.Linear(inputs, outputs, **made) if pool or inputs != outputs else None
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(outputs, eps=1e-6, **made), nn.Linear(outputs, ratio * outputs, **made), nn.GELU(),
            nn.Linear(ratio * outputs, outputs, **made),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.change is not None:
            x = self.change(y)
            if self.pool:
                x = pooled(x)
        x = x + self.attention(y)
        return x + self.feed_forward(x)

    if TYPE_CHECKING:
        __call__ = forward

"""Blocks of networks that take noise from a map: convolutions that know the time, attention that reads a text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory


def sinusoids(times: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of times at rates from 1 down to 1 / ``longest``.

    Args:
        times: (batch,), any numbers.
        width: even.

    Returns:
        (batch, width), fp32: all cosines first.
    """
    rates = torch.exp(
        -math.log(longest) * torch.arange(width // 2, device=times.device, dtype=torch.float32) / (width // 2)
    )
    angles = times.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), 1)


class TimedConv(Block):
    """Twice a group norm, SiLU and a 3x3 convolution, added to the input; the time scales and shifts the second norm.

    Args:
        inputs, outputs: channels; where they differ a 1x1 convolution brings the input to the outputs.
        time: width of the time's embedding.
        groups: of the norms, at most; as many as divide the channels.
        device, dtype: as torch's modules take them.

    Shapes: (batch, inputs, height, width) and (batch, time) to (batch, outputs, height, width).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time: int,
        groups: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        self.first_norm = nn.GroupNorm(math.gcd(groups, inputs), inputs, **made)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, **made)
        self.time = nn.Linear(time, 2 * outputs, **made)
        self.second_norm = nn.GroupNorm(math.gcd(groups, outputs), outputs, **made)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, **made)
        self.skip = nn.Conv2d(inputs, outputs, 1, **made) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        y = self.second(F.silu(self.second_norm(y) * (1 + scale) + shift))
        added: Tensor = self.skip(x) + y
        return added

    if TYPE_CHECKING:
        __call__ = forward


class _Attention(Block):
    """Softmax attention of tokens to others, queries and keys brought to length by an RMS norm of each head."""

    def __init__(self, width: int, read: int, head_size: int, made: Factory) -> None:
        super().__init__()
        self.head_size = head_size
        self.query = nn.Linear(width, width, bias=False, **made)
        self.key_value = nn.Linear(read, 2 * width, bias=False, **made)
        # Without it the scores of large maps grow while a network trains, until softmax is a step.
        self.query_norm, self.key_norm = nn.RMSNorm(head_size, 1e-6, **made), nn.RMSNorm(head_size, 1e-6, **made)
        self.project = nn.Linear(width, width, **made)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.query(x).unflatten(2, (-1, self.head_size)).transpose(1, 2)
        k, v = self.key_value(read).unflatten(2, (2, -1, self.head_size)).permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q), self.key_norm(k)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        made: Tensor = self.project(y.transpose(1, 2).flatten(2))
        return made


class MapCrossTransformer(Block):
    """Attention over all positions of a map, attention to a text, and a feed-forward layer, each added to its input.

    Queries come from the map, keys and values of the second attention from the text. No text is a text of zeros: its
    values are 0, and what is added is the bias of that attention's last layer.

    Args:
        channels: of the map.
        text: width of the text's tokens; 0 for no text.
        head_size: channels of a head.
        ratio: inner width of the feed-forward layer over ``channels``.
        device, dtype: as torch's modules take them.

    Shapes: (batch, channels, height, width), and the text (batch, tokens, text) with a mask (batch, tokens) that is
        true where there is a token, to a map like the first.

    Raises:
        HastenError: heads do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        text: int = 0,
        head_size: int = 32,
        ratio: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels % head_size:
            raise HastenError(f"heads of {head_size} channels do not divide {channels}: choose another width or size")
        made: Factory = {"device": device, "dtype": dtype}
        self.self_norm = nn.LayerNorm(channels, **made)
        self.self_attention = _Attention(channels, channels, head_size, made)
        self.text = text
        self.text_norm = nn.LayerNorm(channels, **made) if text else None
        self.text_attention = _Attention(channels, text, head_size, made) if text else None
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels, **made), nn.Linear(channels, ratio * channels, **made), nn.GELU(),
            nn.Linear(ratio * channels, channels, **made),
        )  # fmt: skip

    def forward(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.self_norm(tokens)
        tokens = tokens + self.self_attention(normed, normed)
        if self.text_norm is not None and self.text_attention is not None:
            if text is None:
                text, mask = x.new_zeros(len(x), 1, self.text), None
            tokens = tokens + self.text_attention(self.text_norm(tokens), text, mask)
        tokens = tokens + self.feed_forward(tokens)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])

    if TYPE_CHECKING:
        __call__ = forward

"""Encoders of thin layers: each narrows its input, attends and works there, and widens again.

The layer is MobileBERT's (arXiv 2004.02984, section 3.1 and figure 1c): a bottleneck on either side, queries and keys
from the narrowed input and values from the wide one, then several feed-forward networks in turn. AutoDistill
(arXiv 2201.08539) searches its sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.nn.block import Block


class Observed(NamedTuple):
    """What a network did with a batch: logits (batch, length, classes), features behind the embedding and behind each
    layer (batch, length, width), and each layer's attention (batch, heads, length, length), whose rows add up to 1."""

    logits: Tensor
    features: Sequence[Tensor]
    maps: Sequence[Tensor]


@dataclass(frozen=True)
class BottleneckConfig:
    """Sizes of an encoder.

    Args:
        vocabulary: ids that it is given.
        classes: that it answers with.
        length: the longest text.
        layers: how many.
        width: between layers.
        bottleneck: within them.
        heads: of attention, within the bottleneck.
        feed_forwards: one behind the other in each layer.
        inner: width of each of them.

    Raises:
        HastenError: a size below 1, or a bottleneck that the heads do not divide.
    """

    vocabulary: int
    classes: int
    length: int
    layers: int = 4
    width: int = 128
    bottleneck: int = 64
    heads: int = 4
    feed_forwards: int = 2
    inner: int = 128

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise HastenError("an encoder has sizes of at least 1")
        if self.bottleneck % self.heads:
            raise HastenError(f"{self.heads} heads do not divide a bottleneck of {self.bottleneck}")


class BottleneckLayer(Block):
    """(batch, length, width) to the same, and the attention (batch, heads, length, length)."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        width, narrow = config.width, config.bottleneck
        self.heads = config.heads
        self.narrow, self.narrow_norm = nn.Linear(width, narrow), nn.LayerNorm(narrow)
        self.query, self.key = nn.Linear(narrow, narrow), nn.Linear(narrow, narrow)
        self.value, self.output = nn.Linear(width, narrow), nn.Linear(narrow, narrow)
        self.attention_norm = nn.LayerNorm(narrow)
        self.rising = nn.ModuleList(nn.Linear(narrow, config.inner) for _ in range(config.feed_forwards))
        self.falling = nn.ModuleList(nn.Linear(config.inner, narrow) for _ in range(config.feed_forwards))
        self.norms = nn.ModuleList(nn.LayerNorm(narrow) for _ in range(config.feed_forwards))
        self.wide, self.wide_norm = nn.Linear(narrow, width), nn.LayerNorm(width)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the attention."""
        thin = self.narrow_norm(self.narrow(x))
        query, key, value = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (self.query(thin), self.key(thin), self.value(x))
        )
        attention = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1)
        mixed = (attention @ value).transpose(1, 2).flatten(2)
        thin = self.attention_norm(thin + self.output(mixed))
        for rising, falling, norm in zip(self.rising, self.falling, self.norms, strict=True):
            thin = norm(thin + falling(F.relu(rising(thin))))
        return self.wide_norm(x + self.wide(thin)), attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    if TYPE_CHECKING:
        __call__ = forward


class TokenEmbedding(Block):
    """Ids (batch, length), of any dtype, to states (batch, length, width): of the token and of its place."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.places = nn.Embedding(config.length, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.norm(self.tokens(ids.long()) + self.places(places))

    if TYPE_CHECKING:
        __call__ = forward


class BottleneckEncoder(Block):
    """Ids (batch, length) to logits (batch, length, classes), each from all tokens around it."""

    def __init__(self, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.layers = nn.ModuleList(BottleneckLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.classes)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    if TYPE_CHECKING:
        __call__ = forward

    def observe(self, ids: Tensor, until: int | None = None, *, apart: bool = False) -> Observed:
        """What it does on the way.

        Args:
            ids: (batch, length).
            until: layers to run, of which the head then reads the last; None: all.
            apart: whether a layer is given its input without the graph behind it, so that what is asked of its output
                trains that layer alone (the first one with the embedding).
        """
        features, maps = [self.embedding(ids)], []
        for index, layer in enumerate(self.layers[:until]):
            assert isinstance(layer, BottleneckLayer)
            made, attention = layer.attend(features[-1].detach() if apart and index else features[-1])
            features.append(made)
            maps.append(attention)
        return Observed(self.head(features[-1]), features, maps)

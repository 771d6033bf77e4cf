"""A decoder with BlockFFN layers, with plain or multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hasten.models.language.routed import RoutedLM, through
from hasten.models.registry import published
from hasten.nn.attention import LatentAttention, LayerCache, Rotary, attend
from hasten.nn.block import numbers_of
from hasten.nn.blockffn import BlockFFN, TopKFFN
from hasten.nn.moe import Routing

# Width, layers, heads, experts, inner values of one (arXiv 2507.08771, table 1).
PUBLISHED = {
    "blockffn-0.1b": (768, 16, 6, 48, 64),
    "blockffn-0.5b": (1280, 27, 10, 40, 128),
    "blockffn-0.8b": (1536, 32, 12, 48, 128),
    "blockffn-1.2b": (1792, 35, 14, 56, 128),
}


@dataclass(frozen=True)
class BlockFFNConfig:
    """Sizes.

    Args:
        width, layers, heads, vocabulary: of the decoder.
        experts, each: of the feed-forward.
        feed_forward: ``block``, ``top-k`` (softmax router, ``count`` experts a token) or ``dense``.
        count: of ``top-k``.
        latent: multi-head latent attention with the paper's ranks (768 and 256) in place of plain attention.
        theta: base of the rotary positions.
        scaled: MiniCPM's scaling of the published models: embeddings times 12, residual branches times
            1.4 / sqrt(layers).
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    vocabulary: int = 96
    experts: int = 32
    each: int = 12
    feed_forward: Literal["block", "top-k", "dense"] = "block"
    count: int = 6
    latent: bool = False
    theta: float = 10000.0
    scaled: bool = False


class _PlainAttention(nn.Module):
    """Causal attention with rotary positions and one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, theta: float) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.rotary = Rotary(self.size, theta)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def new_cache(self, batch: int, length: int = 0) -> LayerCache:
        like, shape = numbers_of(self), (batch, self.heads, length, self.size)
        return LayerCache(like.new_zeros(shape), like.new_zeros(shape), None, length)

    def forward(self, x: Tensor, cache: LayerCache | None) -> Tensor:
        batch, length, _ = x.shape
        begin = cache.seen if cache is not None else 0
        q, k, v = (t.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = (
            self.rotary.turn(t, torch.arange(begin, begin + length, device=x.device, dtype=torch.float32))
            for t in (q, k)
        )
        if cache is not None:
            k, v, _ = cache.extend(k, v)
        mask = None
        if begin and length > 1:
            mask = torch.ones(length, begin + length, dtype=torch.bool, device=x.device).tril(begin)
        y = attend(q, k, v, mask=mask, causal=not begin)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.heads * self.size))


def _attention(c: BlockFFNConfig) -> LatentAttention | _PlainAttention:
    if not c.latent:
        return _PlainAttention(c.width, c.heads, c.theta)
    return LatentAttention(
        c.width, heads=c.heads, plain=128, rotated=64, value=128, query_rank=768, latent=256,
        rotary=Rotary(64, c.theta), eps=1e-5, expanded=True,
    )  # fmt: skip


class _Layer(nn.Module):
    def __init__(self, config: BlockFFNConfig) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = (nn.RMSNorm(config.width, eps=1e-5) for _ in range(2))
        self.attn = _attention(config)
        self.ffn: nn.Module
        if config.feed_forward == "block":
            self.ffn = BlockFFN(config.width, config.experts, config.each)
        elif config.feed_forward == "top-k":
            self.ffn = TopKFFN(config.width, config.experts, config.each, config.count)
        else:
            hidden = config.experts * config.each
            self.ffn = nn.Sequential(
                nn.Linear(config.width, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, config.width, bias=False)
            )
        self.branch = 1.4 / config.layers**0.5 if config.scaled else 1.0

    def forward(self, x: Tensor, cache: LayerCache | None, *, return_routing: bool = False) -> Any:
        """x (batch, length, width) to the same; with ``return_routing`` the `Routing` too, None without experts."""
        x = x + self.branch * self.attn(self.attn_norm(x), cache)
        routing = None
        if return_routing and isinstance(self.ffn, BlockFFN | TopKFFN):
            y, routing = self.ffn(self.ffn_norm(x), return_routing=True)
        else:
            y = self.ffn(self.ffn_norm(x))
        x = x + self.branch * y
        return (x, routing) if return_routing else x


@published(PUBLISHED)
class BlockFFNLM(RoutedLM):
    """A causal language model with BlockFFN feed-forward layers (arXiv 2507.08771).

    Args:
        config: sizes.

    Shape:
        ids (batch, length) int64 to logits (batch, length, vocabulary); of a `Routing` (batch, length, experts).
    """

    def __init__(self, config: BlockFFNConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"{config.heads} heads do not divide a width of {config.width}")
        self.config, self.vocabulary = config, config.vocabulary
        self.embeddings = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self._start()

    def _start(self) -> None:
        nn.init.normal_(self.embeddings.weight, std=0.1 if self.config.scaled else 1.0)

    @classmethod
    def named(cls, name: str) -> BlockFFNLM:
        """A published size, with weights at their start."""
        width, layers, heads, experts, each = PUBLISHED[name]
        return cls(BlockFFNConfig(width, layers, heads, 122753, experts, each, latent=True, scaled=True))

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    def state_at(self, batch: int, length: int) -> list[LayerCache]:
        return [layer.attn.new_cache(batch, length) for layer in self._layers]

    def cut(self, state: list[LayerCache], length: int) -> None:
        """Forgets all but the first ``length`` positions: what a rejected draft leaves."""
        for cache in state:
            cache.cut(length)

    def hidden(self, ids: Tensor, state: list[LayerCache] | None, routings: list[Routing] | None) -> Tensor:
        x = self.embeddings(ids)
        return self.norm(through(self.layers, 12 * x if self.config.scaled else x, state, routings))

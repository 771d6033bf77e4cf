"""The Kolmogorov-Arnold Transformer: a vision transformer with rational activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.nn.block import Block, undecayed
from hasten.nn.naive_rational import NaiveRational
from hasten.nn.rational import GroupRationalMLP, Start

# Width, layers, heads (arXiv 2409.10594, table 2).
PUBLISHED = {"kat-tiny": (192, 12, 3), "kat-small": (384, 12, 6), "kat-base": (768, 12, 12)}
# The same sizes' names in timm's way of writing, as the released checkpoints and training scripts have them.
TIMM = {f"{name.replace('-', '_')}{start}_patch16_224": name for name in PUBLISHED for start in ("", "_swish")}


@dataclass(frozen=True)
class KATConfig:
    """Sizes of a vision transformer.

    Args:
        image, patch: side of the square image and of its patches, in pixels.
        channels: of the image.
        classes: logits.
        width, layers, heads: of the transformer.
        ratio: inner width of the feed-forward over width.
        feed_forward: ``rational`` (GR-KAN) or ``mlp`` (two layers with a GELU between: a plain ViT).
        groups, start: of the rational activations.
        attention_start: ``mimetic`` (products near multiples of the identity) or ``normal``.
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    classes: int = 1000
    width: int = 192
    layers: int = 12
    heads: int = 3
    ratio: int = 4
    feed_forward: Literal["rational", "mlp"] = "rational"
    groups: int = 8
    start: Start = "swish"
    attention_start: Literal["mimetic", "normal"] = "mimetic"


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @torch.no_grad()
    def mimetic(self) -> None:
        """Q K^T near 0.7 Z + 0.7 I and V W_o near 0.4 Z - 0.4 I, Z random of variance 1 / width (arXiv 2305.09828)."""
        width = self.proj.in_features
        size = width // self.heads

        def factors(random: float, identity: float, rank: int) -> tuple[Tensor, Tensor]:
            target = random * torch.randn(width, width) / math.sqrt(width) + identity * torch.eye(width)
            left, scale, right = torch.linalg.svd(target)
            root = scale[:rank].sqrt()
            return left[:, :rank] * root, right[:rank].T * root

        query, key, value = self.qkv.weight.chunk(3)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            q, k = factors(0.7, 0.7, size)
            query[part], key[part] = q.T, k.T
        v, o = factors(0.4, -0.4, width)
        value.copy_(v.T)
        self.proj.weight.copy_(o)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        made = self.qkv(x)
        width = made.shape[-1] // 3  # less than that of x where heads were removed
        q, k, v = made.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class _Block(nn.Module):
    def __init__(self, config: KATConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.ratio * config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp: nn.Module
        if config.feed_forward == "rational":
            self.mlp = GroupRationalMLP(width, hidden, groups=config.groups, start=config.start)
        else:
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@published((*PUBLISHED, *TIMM))
class KAT(Block):
    """A vision transformer whose feed-forward layers are GR-KAN (arXiv 2409.10594; FlashKAT, arXiv 2505.13813).

    It has what code for timm's models asks of one: `num_classes`, `num_features`, `forward_features`, `forward_head`,
    `get_classifier`, `reset_classifier` and `no_weight_decay`.

    Args:
        config: sizes; no ``classes`` leaves the head out.

    Shape:
        images (batch, channels, image, image) to logits (batch, classes), or to features (batch, width) without a head.

    Raises:
        ValueError: patches that do not divide the image, or heads that do not divide the width.
    """

    def __init__(self, config: KATConfig) -> None:
        super().__init__()
        if config.image % config.patch or config.width % config.heads:
            raise ValueError("the patch must divide the image, and the heads the width")
        self.config = config
        self.patch_embed = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, (config.image // config.patch) ** 2 + 1, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head: nn.Module = self._new_head()
        self._start()

    def _new_head(self) -> nn.Module:
        """On the device and in the dtype of the rest."""
        if not self.config.classes:
            return nn.Identity()
        like = self.norm.weight
        return nn.Linear(self.config.width, self.config.classes, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def _start_head(self) -> None:
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def _start(self) -> None:
        nn.init.zeros_(self.cls_token)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self._start_head()
        for block in cast("list[_Block]", list(self.blocks)):
            if self.config.attention_start == "mimetic" and not self.pos_embed.is_meta:
                block.attn.mimetic()

    @classmethod
    def named(
        cls,
        name: str,
        feed_forward: Literal["rational", "mlp"] = "rational",
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
    ) -> KAT:
        """A published size, by its own name or timm's, with weights at their start.

        Args:
            name: such as ``kat-tiny`` or ``kat_tiny_patch16_224``.
            feed_forward: as of `KATConfig`.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.
            img_size: its side, in pixels.

        Raises:
            HastenError: a size that no model has.
        """
        width, layers, heads = PUBLISHED[TIMM.get(name, name)]
        if num_classes < 0 or in_chans < 1 or img_size < 16 or img_size % 16:
            raise HastenError(
                f"{name} takes num_classes from 0, in_chans from 1 and an img_size of a multiple of 16, not "
                f"{num_classes}, {in_chans} and {img_size}"
            )
        return cls(
            KATConfig(
                image=img_size, channels=in_chans, classes=num_classes, width=width, layers=layers, heads=heads,
                feed_forward=feed_forward,
            )
        )  # fmt: skip

    @property
    def num_classes(self) -> int:
        """Logits; 0 where it gives features."""
        return self.config.classes

    @property
    def num_features(self) -> int:
        """Width of the features that a head reads."""
        return self.config.width

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that training shall not shrink: positions, class token, rational coefficients."""
        return undecayed(self) | {"pos_embed", "cls_token"}

    def get_classifier(self) -> nn.Module:
        """The head; an identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head in the old one's place; none for 0 classes.

        Args:
            num_classes: logits.
            global_pool: as timm's callers give it; the head reads the class token.

        Raises:
            HastenError: fewer than 0 classes, or another pooling.
        """
        if num_classes < 0 or global_pool not in (None, "", "token"):
            raise HastenError(
                "a KAT has num_classes from 0 on and reads the class token: got"
                f" {num_classes} and global_pool={global_pool!r}"
            )
        self.config = replace(self.config, classes=num_classes)
        self.head = self._new_head().train(self.training)
        self._start_head()

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Images of the size that it takes."""
        weight = self.patch_embed.weight
        return torch.zeros(batch, self.config.channels, self.config.image, self.config.image, dtype=weight.dtype)

    def replace_activations(self, make: Callable[[nn.Module], nn.Module]) -> None:
        """Puts ``make(activation)`` in the place of every rational activation."""
        for block in cast("list[_Block]", list(self.blocks)):
            if isinstance(block.mlp, GroupRationalMLP):
                block.mlp.first = make(block.mlp.first)  # type: ignore[assignment]
                block.mlp.second = make(block.mlp.second)  # type: ignore[assignment]

    def forward_features(self, images: Tensor) -> Tensor:
        """Normed states of all tokens, the class token first: (batch, 1 + patches, width)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of what `forward_features` gave; with ``pre_logits`` what the head would read."""
        pooled = features[:, 0]
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    if TYPE_CHECKING:
        __call__ = forward


ACTIVATIONS = ("GELU", "shared additions", "block sums")


def with_activation(arm: str, config: KATConfig) -> KAT:
    """A transformer of these sizes with one of `ACTIVATIONS` in its feed-forward layers, whatever its config says.

    Args:
        arm: ``GELU``, a plain vision transformer; or rational functions whose gradients are summed by ``shared
            additions``, one to each address after another as in KAT, or by ``block sums`` as in FlashKAT.
        config: of the transformer.
    """
    model = KAT(replace(config, feed_forward="mlp" if arm == "GELU" else "rational"))
    if arm == "shared additions":
        model.replace_activations(NaiveRational)  # type: ignore[arg-type]
    return model

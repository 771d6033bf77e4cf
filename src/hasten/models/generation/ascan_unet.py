"""AsCAN as a U-Net that takes noise from images or latents, told of time, class and text (arXiv 2411.04967)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.vision.ascan import StageLayout
from hasten.nn.block import Block
from hasten.nn.denoising_blocks import MapCrossTransformer, TimedConv, sinusoids

_SMALL = StageLayout(("CC", "CT", "TT"))


@dataclass(frozen=True)
class AsCANUNetConfig:
    """Sizes: by default a small network for maps of 16 x 16.

    Args:
        layout: what each block of the way down is, the largest map first: C for `TimedConv`, T for
            `MapCrossTransformer`. The way up is its mirror.
        middle: the blocks between both.
        widths: channels of each stage.
        channels: of the input and the output.
        text: width of a text's tokens; 0 for no text.
        classes: that an image may be asked of; 0 for none.
        head_size: channels of a head of attention.

    Raises:
        HastenError: another number of widths than of stages, a count below 0, or a middle of other letters.
    """

    layout: StageLayout = _SMALL
    middle: str = "T"
    widths: tuple[int, ...] = (16, 32, 64)
    channels: int = 1
    text: int = 0
    classes: int = 0
    head_size: int = 16

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.layout.stages):
            raise HastenError(f"{self.layout} has {len(self.layout.stages)} stages: give a width for each")
        if min(self.text, self.classes) < 0:
            raise HastenError("text and classes are counted from 0")
        StageLayout((self.middle,))

    @property
    def up(self) -> StageLayout:
        """What each block of the way up is, the smallest map first."""
        return self.layout.reversed()


class UNetOutput(NamedTuple):
    """What a network makes of a noisy map: ``sample``, of its shape."""

    sample: Tensor


class _Merged(nn.Module):
    """A transformer layer on a map and what the way down kept for it."""

    def __init__(self, inputs: int, block: MapCrossTransformer, channels: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(inputs, channels, 1)
        self.block = block

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        y: Tensor = self.block(self.merge(x), text, mask)
        return y


class AsCANUNet(Block):
    """A U-Net whose way down is a layout of convolutions and transformer layers, and whose way up is its mirror.

    Each block of the way up reads its mirror's result too. It is called as diffusers' ``UNet2DConditionModel``, by the
    same names in the same places; arguments that are for parts it does not have must be None.

    Args:
        config: sizes and layout.

    >>> net = AsCANUNet(AsCANUNetConfig(text=8))
    >>> net(torch.zeros(2, 1, 16, 16), 7, torch.zeros(2, 3, 8)).sample.shape
    torch.Size([2, 1, 16, 16])
    """

    def __init__(self, config: AsCANUNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AsCANUNetConfig()
        first, last = config.widths[0], config.widths[-1]
        self.time_width = 4 * first
        self.time = nn.Sequential(
            nn.Linear(2 * first, self.time_width), nn.SiLU(), nn.Linear(self.time_width, self.time_width)
        )
        # One class more than there are stands for none.
        self.label = nn.Embedding(config.classes + 1, self.time_width) if config.classes else None
        self.enter = nn.Conv2d(config.channels, first, 3, padding=1)
        stages = list(zip(config.layout.stages, config.widths, strict=True))
        self.down = nn.ModuleList(nn.ModuleList(self._block(kind, w) for kind in word) for word, w in stages)
        pairs = list(zip(config.widths, config.widths[1:], strict=False))
        self.smaller = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.middle = nn.ModuleList(self._block(kind, last) for kind in config.middle)
        self.up = nn.ModuleList(
            nn.ModuleList(self._block(kind, w, 2 * w) for kind in word)
            for word, w in zip(config.up.stages, config.widths[::-1], strict=True)
        )
        self.larger = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairs[::-1])
        self.leave_norm = nn.GroupNorm(math.gcd(32, first), first)
        self.leave = nn.Conv2d(first, config.channels, 3, padding=1)
        self._start()

    def _block(self, kind: str, width: int, inputs: int | None = None) -> nn.Module:
        if kind == "C":
            return TimedConv(inputs or width, width, self.time_width)
        block = MapCrossTransformer(width, self.config.text, self.config.head_size)
        return block if inputs is None else _Merged(inputs, block, width)

    @torch.no_grad()
    def _start(self) -> None:
        nn.init.normal_(self.leave.weight, std=0.01)  # it begins near a guess of nothing, whose loss is the data's own
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput:
        """Takes noise from maps.

        Args:
            sample: (batch, channels, height, width), sides that the stages halve without rest.
            timestep: of all, or (batch,).
            encoder_hidden_states: (batch, tokens, text); no text, or tokens of zeros, when None.
            class_labels: (batch,), the number of classes standing for none; none when None.
            timestep_cond, attention_mask, cross_attention_kwargs, added_cond_kwargs, down_block_additional_residuals,
                mid_block_additional_residual, down_intrablock_additional_residuals: None, as pipelines call a network
                that has no use for them.
            encoder_attention_mask: (batch, tokens), true or 1 where there is a token.
            return_dict: as pipelines give it; the answer is a tuple of one either way, and ``sample`` is its name.

        Raises:
            HastenError: a value for what this network has no use for.
        """
        unused = {
            "timestep_cond": timestep_cond,
            "attention_mask": attention_mask,
            "cross_attention_kwargs": cross_attention_kwargs,
            "added_cond_kwargs": added_cond_kwargs,
            "down_block_additional_residuals": down_block_additional_residuals,
            "mid_block_additional_residual": mid_block_additional_residual,
            "down_intrablock_additional_residuals": down_intrablock_additional_residuals,
        }
        if given := [name for name, value in unused.items() if value is not None]:
            raise HastenError(f"AsCAN's U-Net has no use for {', '.join(given)}: leave it out, or give None")
        batch = sample.shape[0]
        times = torch.as_tensor(timestep, device=sample.device).expand(batch)
        time = self.time(sinusoids(times, 2 * self.config.widths[0]).to(sample.dtype))
        if self.label is not None:
            if class_labels is None:
                class_labels = torch.full((batch,), self.config.classes, device=sample.device)
            time = time + self.label(class_labels)
        text = encoder_hidden_states
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()

        def run(block: nn.Module, x: Tensor) -> Tensor:
            y: Tensor = block(x, time) if isinstance(block, TimedConv) else block(x, text, mask)
            return y

        x: Tensor = self.enter(sample)
        kept: list[Tensor] = []
        for i, stage in enumerate(self.down):
            if i:
                x = self.smaller[i - 1](x)
            for block in stage:  # type: ignore[attr-defined]
                x = run(block, x)
                kept.append(x)
        for block in self.middle:
            x = run(block, x)
        for i, stage in enumerate(self.up):
            if i:
                x = self.larger[i - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            for block in stage:  # type: ignore[attr-defined]
                x = run(block, torch.cat((x, kept.pop()), 1))
        return UNetOutput(self.leave(F.silu(self.leave_norm(x))))

    if TYPE_CHECKING:
        __call__ = forward

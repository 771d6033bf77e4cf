"""Blocks of convolutional networks: inverted bottlenecks, fused and not, and squeeze-and-excite.

Every convolution stands right before its batch normalization in an ``nn.Sequential``, so that
`hasten.cost.preserving.fold_normalization` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish, "gelu": nn.GELU, "silu": nn.SiLU}


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``value``, not under 0.9 of it (MobileNet's rounding)."""
    made = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return made + divisor if made < 0.9 * value else made


def activation(name: str) -> nn.Module:
    """``relu``, ``relu6``, ``h_swish``, ``gelu`` or ``silu``.

    Raises:
        HastenError: another name.
    """
    if name not in _ACTIVATIONS:
        raise HastenError(f"no activation is called {name!r}: choose {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    bias: bool = False,
    normed: bool = True,
    act: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """A convolution, then batch normalization and an activation where asked for.

    Args:
        inputs, outputs, kernel, stride, groups, bias: of the convolution; it is padded by half its kernel.
        normed: whether with batch normalization.
        act: of `activation`; None for none.
        device, dtype: as torch's modules take them.
    """
    made: Factory = {"device": device, "dtype": dtype}
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias, **made)
    layers: list[nn.Module] = [conv]
    if normed:
        layers.append(nn.BatchNorm2d(outputs, **made))
    if act is not None:
        layers.append(activation(act))
    return nn.Sequential(*layers)


class SqueezeExcite(Block):
    """Channels scaled by what their means say: a hidden layer, and a hard sigmoid.

    Args:
        channels: of the input.
        device, dtype: as torch's modules take them.
        hidden: units of the hidden layer; a quarter of the channels when None.
    """

    def __init__(
        self,
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        hidden = make_divisible(channels // 4) if hidden is None else hidden
        self.reduce = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.expand = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        hidden = make_divisible(channels // 4)
        means = x.mean((2, 3), keepdim=True)
        if channels == self.reduce.in_channels:
            y: Tensor = x * F.hardsigmoid(self.expand(F.relu(self.reduce(means))))
            return y
        # Fewer channels than it was made for: the first of them, and the first hidden units.
        inner = F.relu(F.conv2d(means, self.reduce.weight[:hidden, :channels], self.reduce.bias[:hidden]))  # type: ignore[index]
        scale = F.conv2d(inner, self.expand.weight[:channels, :hidden], self.expand.bias[:channels])  # type: ignore[index]
        return x * F.hardsigmoid(scale)

    if TYPE_CHECKING:
        __call__ = forward


class MBConv(Block):
    """An inverted bottleneck: 1x1 up to ``middle`` channels, depthwise, squeeze-and-excite, 1x1 down.

    Args:
        inputs, outputs, middle: channels; where ``middle`` equals ``inputs`` and ``expand`` is False the first is
            left out.
        kernel, stride: of the depthwise convolution.
        act: of `activation`.
        se: whether with squeeze-and-excite.
        device, dtype: as torch's modules take them.
        normed: whether the first two convolutions are normalized.
        bias: whether these have a bias; where None, those that are not normalized.

    Shapes: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        middle: int,
        kernel: int,
        stride: int,
        act: str,
        se: bool,
        expand: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        normed: bool = True,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        bias = not normed if bias is None else bias
        self.expand = nn.Sequential()
        if expand:
            self.expand = conv_norm(inputs, middle, 1, bias=bias, normed=normed, act=act, **made)
        self.depthwise = conv_norm(
            middle, middle, kernel, stride, groups=middle, bias=bias, normed=normed, act=act, **made
        )
        self.se = SqueezeExcite(middle, **made) if se else nn.Identity()
        self.project = conv_norm(middle, outputs, 1, **made)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y

    if TYPE_CHECKING:
        __call__ = forward


class FusedMBConv(Block):
    """An inverted bottleneck whose first two convolutions are one dense one: up to ``middle`` channels, 1x1 down.

    Args:
        inputs, outputs, middle: channels.
        kernel, stride: of the dense convolution.
        act: of `activation`.
        squeezed: hidden units of squeeze-and-excite on the middle channels; 0 for none.
        bias: whether the first convolution has a bias.
        pooled_skip: whether a block that changes the shape adds its input, averaged over windows of the stride and
            brought to the outputs by a 1x1 convolution; the block then adds its input always.
        device, dtype: as torch's modules take them.

    Shapes: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        middle: int,
        kernel: int = 3,
        stride: int = 1,
        act: str = "h_swish",
        squeezed: int = 0,
        bias: bool = False,
        pooled_skip: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        self.expand = conv_norm(inputs, middle, kernel, stride, bias=bias, act=act, **made)
        self.se = SqueezeExcite(middle, hidden=squeezed, **made) if squeezed else nn.Identity()
        self.project = conv_norm(middle, outputs, 1, **made)
        self.residual = pooled_skip or (stride == 1 and inputs == outputs)
        skip: list[nn.Module] = []
        if pooled_skip and stride > 1:
            # Windows over the edge count what is there, so that odd sizes are halved as a convolution halves them.
            skip.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if pooled_skip and inputs != outputs:
            skip.append(nn.Conv2d(inputs, outputs, 1, bias=False, **made))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.se(self.expand(x)))
        return self.skip(x) + y if self.residual else y

    if TYPE_CHECKING:
        __call__ = forward

"""Blocks of which parts work by themselves: Once-for-All's elastic inverted bottleneck (arXiv 1908.09791, section 3).

`hasten.nn.MBConv` is the ordinary block that a part is extracted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block, Factory
from hasten.nn.convolutional import MBConv, SqueezeExcite, make_divisible


def _normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalization by the first channels of a layer that has more."""
    n = x.shape[1]
    if n == norm.num_features:
        y: Tensor = norm(x)
        return y
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return F.batch_norm(
        x, norm.running_mean[:n], norm.running_var[:n], norm.weight[:n], norm.bias[:n], norm.training,
        norm.momentum or 0.0, norm.eps,
    )  # fmt: skip


class ElasticMBConv(Block):
    """An inverted bottleneck whose kernel and width are chosen at each call.

    A smaller kernel is a learned matrix times the centre of the next larger one, shared by all channels; a smaller
    width takes the first channels.

    Args:
        inputs, outputs: channels.
        kernels: odd sizes that may be chosen, the largest is stored.
        expands: ratios of middle channels to inputs that may be chosen.
        stride, act, se, device, dtype: as in `MBConv`.

    Raises:
        HastenError: no kernel or ratio, or an even kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernels: Sequence[int],
        expands: Sequence[int],
        stride: int,
        act: str,
        se: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        if not kernels or not expands or any(k % 2 == 0 or k < 1 for k in kernels):
            raise HastenError("an elastic block needs odd kernels and expansions to choose from")
        self.inputs, self.outputs, self.stride, self.act = inputs, outputs, stride, act
        self.kernels, self.expands = tuple(sorted(kernels)), tuple(sorted(expands))
        middle = self.middle(self.expands[-1])
        self.block = MBConv(inputs, outputs, middle, self.kernels[-1], stride, act, se, **made)
        self.transforms = nn.ParameterDict(
            {
                f"{large}to{small}": nn.Parameter(torch.eye(small * small, **made))
                for small, large in zip(self.kernels[:-1], self.kernels[1:], strict=True)
            }
        )

    def _start(self) -> None:
        for matrix in self.transforms.values():
            nn.init.eye_(matrix)

    def middle(self, expand: int) -> int:
        """Middle channels of a ratio."""
        return make_divisible(round(self.inputs * expand))

    def kernel(self, size: int, channels: int) -> Tensor:
        """Depthwise weights (channels, 1, size, size): the chain of centres and matrices from the largest."""
        weight: Tensor = self.block.depthwise[0].weight[:channels]  # type: ignore[index]
        at = self.kernels[-1]
        for small in reversed(self.kernels[:-1]):
            if at <= size:
                break
            edge = (at - small) // 2
            centre = weight[:, :, edge : edge + small, edge : edge + small].reshape(channels, 1, -1)
            weight = F.linear(centre, self.transforms[f"{at}to{small}"]).reshape(channels, 1, small, small)
            at = small
        return weight

    def forward(self, x: Tensor, kernel: int, expand: int) -> Tensor:
        block, middle = self.block, self.middle(expand)
        y = F.conv2d(x, block.expand[0].weight[:middle])  # type: ignore[index]
        y = block.expand[2](_normed(block.expand[1], y))  # type: ignore[arg-type]
        y = F.conv2d(y, self.kernel(kernel, middle), stride=self.stride, padding=kernel // 2, groups=middle)
        y = block.se(block.depthwise[2](_normed(block.depthwise[1], y)))  # type: ignore[arg-type]
        y = block.project[1](F.conv2d(y, block.project[0].weight[:, :middle]))  # type: ignore[index]
        return x + y if block.residual else y

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def extract(self, kernel: int, expand: int) -> MBConv:
        """The ordinary block of a kernel and a ratio, with its own copy of the weights and statistics."""
        block, middle = self.block, self.middle(expand)
        se = isinstance(block.se, SqueezeExcite)
        made = MBConv(self.inputs, self.outputs, middle, kernel, self.stride, self.act, se)
        made.expand[0].weight.copy_(block.expand[0].weight[:middle])  # type: ignore[index, operator]
        _copy_norm(made.expand[1], block.expand[1])
        made.depthwise[0].weight.copy_(self.kernel(kernel, middle))  # type: ignore[operator]
        _copy_norm(made.depthwise[1], block.depthwise[1])
        if se:
            hidden = make_divisible(middle // 4)
            for name, rows, columns in (("reduce", hidden, middle), ("expand", middle, hidden)):
                target, source = getattr(made.se, name), getattr(block.se, name)
                target.weight.copy_(source.weight[:rows, :columns])
                target.bias.copy_(source.bias[:rows])
        made.project[0].weight.copy_(block.project[0].weight[:, :middle])  # type: ignore[index, operator]
        _copy_norm(made.project[1], block.project[1])
        return made.train(self.training)

    @torch.no_grad()
    def sort_channels(self, kept: Sequence[int] = ()) -> None:
        """Puts the most important middle channels first; what the block computes at its full width stays the same.

        Importance is the sum of magnitudes of a channel's column in the last 1x1 (section 3.3); hidden units of
        squeeze-and-excite are put in the order of theirs.

        Args:
            kept: ratios already trained: their channels stay in front of the others, sorted among themselves.
        """
        block = self.block
        importance = block.project[0].weight.abs().sum((0, 2, 3))  # type: ignore[operator]
        width = len(importance)
        edges = [0, *sorted(self.middle(e) for e in kept), width]
        order = torch.cat(
            [a + importance[a:b].argsort(descending=True, stable=True) for a, b in pairwise(edges) if b > a]
        )
        _permute(block.expand[0].weight, order)
        _permute_norm(block.expand[1], order)
        _permute(block.depthwise[0].weight, order)
        _permute_norm(block.depthwise[1], order)
        _permute(block.project[0].weight, order, 1)
        if isinstance(block.se, SqueezeExcite):
            _permute(block.se.reduce.weight, order, 1)
            _permute(block.se.expand.weight, order)
            _permute(block.se.expand.bias, order)
            units = block.se.expand.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
            _permute(block.se.expand.weight, units, 1)
            _permute(block.se.reduce.weight, units)
            _permute(block.se.reduce.bias, units)


def _permute(tensor: Any, order: Tensor, dim: int = 0) -> None:
    tensor.copy_(tensor.index_select(dim, order))


def _permute_norm(norm: Any, order: Tensor) -> None:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        _permute(tensor, order)


def _copy_norm(target: Any, source: Any) -> None:
    n = target.num_features
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).copy_(getattr(source, name)[:n])
    target.momentum, target.eps = source.momentum, source.eps

"""Terminator: an image classifier without residuals, by kernels that slow networks make (arXiv 2401.17948)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.nn.block import Block
from hasten.nn.hyper_kernels import ContextKernel, HyperKernel, RecursiveGate, SlowFastBlock, slow_loss

# Of the norms of slow networks and recursive gates beside those of all other weights (cfg and loss of the repository).
_WEAK = 1e-6


@dataclass(frozen=True)
class TerminatorConfig:
    """What a Terminator is made of; the defaults are the published ones for CIFAR-10.

    Args:
        size: height and width of the images.
        channels, classes: of images and of the output.
        factors: channels out of each block for one in.
        layers: of each block's slow network of the global kernel.
        dropout: chance of a channel behind each block.
        earlier: for each block numbers of the blocks whose outputs it reads beside its input, the nearest first.
        hidden, sizes, groups: of `SlowFastBlock`.

    Raises:
        HastenError: lists of different lengths, or a block that reads what is not there yet.
    """

    size: int = 32
    channels: int = 3
    classes: int = 10
    factors: tuple[int, ...] = (4, 3, 2, 2, 2)
    layers: tuple[int, ...] = (3, 2, 2, 2, 2)
    dropout: tuple[float, ...] = (0.0, 0.05, 0.05, 0.05, 0.05)
    earlier: tuple[tuple[int, ...], ...] = ((), (), (0,), (1,), (2, 1))
    hidden: tuple[int, int, int, int, int] = (64, 32, 32, 16, 64)
    sizes: tuple[int, int, int, int] = (3, 9, 5, 7)
    groups: int = 12

    def __post_init__(self) -> None:
        count = len(self.factors)
        if not count or any(len(given) != count for given in (self.layers, self.dropout, self.earlier)):
            raise HastenError("a Terminator takes factors, layers, dropout and earlier blocks for each of its blocks")
        if any(not 0 <= j < i - 1 for i, read in enumerate(self.earlier) for j in read):
            raise HastenError(f"a block reads blocks before the one in front of it: got {self.earlier}")

    @property
    def widths(self) -> list[int]:
        """Channels in front of each block, and behind the last."""
        return [self.channels * math.prod(self.factors[:i]) for i in range(len(self.factors) + 1)]


PUBLISHED = {
    "terminator-cifar10": TerminatorConfig(),
    "terminator-cifar100": TerminatorConfig(classes=100),
}


@published(PUBLISHED)
class Terminator(Block):
    """Blocks of slow and fast networks, the mean over positions, a linear layer.

    Answers depend on the other images of the batch, in evaluation mode too, as published: `batch_dependent`.
    `hasten.nn.hyper_kernels.freeze_batch_statistics` keeps those of one batch.

    Args:
        config: sizes.

    Shapes: (batch, channels, size, size) to (batch, classes).

    Raises:
        HastenError: an image of another size; widths that the groups do not divide.

    >>> net = Terminator(TerminatorConfig(8, 1, 10, (12, 1), (1, 1), (0, 0), ((), ()), (4, 4, 4, 4, 4)))
    >>> tuple(net(torch.randn(2, 1, 8, 8)).shape)
    (2, 10)
    """

    batch_dependent = True

    def __init__(self, config: TerminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.blocks = nn.ModuleList(
            SlowFastBlock(
                widths[i], config.size, factor, earlier=len(config.earlier[i]), layers=config.layers[i],
                dropout=config.dropout[i], hidden=config.hidden, sizes=config.sizes, groups=config.groups,
            )
            for i, factor in enumerate(config.factors)
        )  # fmt: skip
        self.head = nn.Linear(widths[-1], config.classes)

    @classmethod
    def named(cls, name: str, *, num_classes: int | None = None, in_chans: int = 3) -> Terminator:
        """A published size with weights at their start.

        Args:
            name: such as ``terminator-cifar10``.
            num_classes: logits, from 1; those of the data set that it was published for when None.
            in_chans: channels of the image.

        Raises:
            HastenError: a number below 1, or channels that the groups do not divide.
        """
        config = PUBLISHED[name]
        classes = config.classes if num_classes is None else num_classes
        if in_chans < 1 or classes < 1:
            raise HastenError(f"{name} takes in_chans and num_classes from 1, not {in_chans} and {classes}")
        return cls(replace(config, classes=classes, channels=in_chans))

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Images (batch, channels, size, size) of zeros, in the format of the weights."""
        config = self.config
        return torch.zeros(batch, config.channels, config.size, config.size, dtype=self.head.weight.dtype)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """The output of each block: (batch, widths[i + 1], size, size)."""
        seen: list[Tensor] = []
        x = images
        for block, read in zip(self.blocks, self.config.earlier):
            x = block(x, *(seen[i] for i in read))
            seen.append(x)
            yield x

    def forward(self, images: Tensor) -> Tensor:
        *_, last = self.features(images)
        logits: Tensor = self.head(last.mean((-2, -1)))
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    def loss(
        self, images: Tensor, labels: Tensor, *, slow: float = 1.0, norms: float = 5e-5, smoothing: float = 0.09
    ) -> Tensor:
        """The published loss: cross entropy, and with their weights `slow_loss` and `norms`.

        Defaults are those for CIFAR-10. For CIFAR-100 ``norms`` is 4e-5; `hasten.train.kar.Kar3` says what else is.

        Args:
            images: (batch, channels, size, size).
            labels: (batch,), int64.
            slow: weight of `slow_loss`; with 0 it is not computed.
            norms: weight of `norms`; with 0 they are not computed.
            smoothing: share of each label that all classes get alike.
        """
        loss = F.cross_entropy(self(images), labels, label_smoothing=smoothing)
        if norms:
            loss = loss + norms * self.norms()
        return loss + slow * self.slow_loss() if slow else loss

    def slow_loss(self) -> Tensor:
        """`hasten.nn.hyper_kernels.slow_loss` of its blocks."""
        return slow_loss([block.kernel() for block in self.blocks])  # type: ignore[operator]

    def norms(self) -> Tensor:
        """The L2 norms of its weights, summed.

        Those of maps that slow networks make, and of the recursive gates, count a millionth; slow networks of channels,
        biases in either, and the last layer not at all.
        """
        weak = [layer for part in self.modules() for layer in _weakly_bound(part)]
        spared = {id(layer) for layer in weak}
        bound: list[Tensor] = []
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d) and id(layer) not in spared:
                    bound += layer.parameters()
            bound += (branch.bias for branch in block.local)  # type: ignore[union-attr]
        strong = torch.stack([t.norm() for t in bound]).sum()
        return strong + _WEAK * torch.stack([layer.weight.norm() for layer in weak]).sum()


def _weakly_bound(part: nn.Module) -> list[Any]:
    """Layers of a slow network of maps, or of a recursive gate, without those of a network within."""
    if isinstance(part, HyperKernel) and part.axes == 2:
        return [part.output, *part.sines, *part.mixes]
    if isinstance(part, ContextKernel):
        return [part.reduce, part.mix, *part.bends]
    if isinstance(part, RecursiveGate):
        return [part.key, part.value, part.query, part.output]
    return []

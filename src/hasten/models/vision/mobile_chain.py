"""A chain of mobile blocks, one of nine at each of 22 places: FBNet's space (arXiv 1812.03443, tables 1 and 2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block
from hasten.nn.convolutional import make_divisible

OPERATIONS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
# Kernel, expansion and groups of the blocks; a skip has none.
_BLOCKS = tuple((kernel, expand, groups) for kernel in (3, 5) for expand, groups in ((1, 1), (1, 2), (3, 1), (6, 1)))
SKIP = len(_BLOCKS)

Chain = tuple[int, ...]


@dataclass(frozen=True)
class ChainConfig:
    """The space: by default FBNet's, at half its width.

    Args:
        widths, depths, strides: of each stage; the stride is that of its first block.
        multiplier: of all widths.
        stem, last: channels before the blocks and after them.
        resolution: height and width of the input.
        channels, classes: of images and of the output.
    """

    widths: tuple[int, ...] = (16, 24, 32, 64, 112, 184, 352)
    depths: tuple[int, ...] = (1, 4, 4, 4, 4, 4, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    multiplier: float = 0.5
    stem: int = 16
    last: int = 1984
    resolution: int = 64
    channels: int = 3
    classes: int = 100

    def __post_init__(self) -> None:
        if not self.widths or {len(self.depths), len(self.strides)} != {len(self.widths)}:
            raise HastenError("widths, depths and strides of a chain are of equal length, one a stage")
        if min(*self.widths, *self.depths, *self.strides, self.resolution) < 1 or self.multiplier <= 0:
            raise HastenError("every size of a chain must be at least 1")

    def scaled(self, width: int) -> int:
        return make_divisible(width * self.multiplier)

    @property
    def places(self) -> int:
        """Blocks of a network."""
        return sum(self.depths)

    @property
    def features(self) -> int:
        """Length of `encode`'s result: 132 for FBNet."""
        return 6 * self.places

    def check(self, chain: Sequence[int]) -> Chain:
        """The chain, as a tuple.

        Raises:
            HastenError: it has not `places` operations, or one that does not exist.
        """
        made = tuple(int(o) for o in chain)
        if len(made) != self.places or any(not 0 <= o <= SKIP for o in made):
            raise HastenError(f"a chain is {self.places} numbers from 0 to {SKIP}: got {list(chain)}")
        return made

    def sample(self, rng: random.Random) -> Chain:
        """A chain drawn evenly, place by place."""
        return tuple(rng.randrange(SKIP + 1) for _ in range(self.places))

    def sample_varied(self, rng: random.Random) -> Chain:
        """A chain whose places are drawn by weights of its own, so that chains differ in size far more than those of
        `sample`: many draws by the same weights come out alike, and noise hides the rest."""
        weights = [rng.random() ** 3 for _ in range(SKIP + 1)]
        return tuple(rng.choices(range(SKIP + 1), weights, k=self.places))

    def encode(self, chain: Sequence[int]) -> list[float]:
        """Six numbers a place, as HELP has them (arXiv 2106.08630): kernel 3, kernel 5, one-hot of the four expansions
        and groups; zeros for a skip."""
        row: list[float] = []
        for o in self.check(chain):
            bits = [0.0] * 6
            if o != SKIP:
                bits[o // 4] = bits[2 + o % 4] = 1.0
            row += bits
        return row

    def codes(self, chains: Sequence[Sequence[int]]) -> Tensor:
        """Codes (count, features)."""
        return torch.tensor([self.encode(c) for c in chains]).reshape(len(chains), self.features)

    def build(self, chain: Sequence[int]) -> tuple[nn.Module, Tensor]:
        """A network with random weights, for inference, and one image."""
        image = torch.randn(1, self.channels, self.resolution, self.resolution)
        return MobileChain(self, chain).eval(), image

    def parts(self, chain: Sequence[int]) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key, the part, and the shape of its input for one image."""
        layout = self.layout()
        size, inputs = self.resolution, layout[0][0]
        last, outputs = self.scaled(self.last), layout[-1][1]
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            ("stem", partial(_stem, self.channels, inputs), (self.channels, size, size))
        ]
        for operation, (i, o, stride, size) in zip(self.check(chain), layout, strict=True):
            if operation != SKIP or stride != 1 or i != o:
                make = partial(ChainBlock, i, o, operation, stride)
                found.append(((i, o, operation, stride, size), make, (i, size, size)))
        size = (layout[-1][3] + layout[-1][2] - 1) // layout[-1][2]
        found.append(("final", partial(_Final, outputs, last, self.classes), (outputs, size, size)))
        return found

    def counts(self, chain: Sequence[int]) -> list[float]:
        """How often a network has each operation: a coarse description, (9,)."""
        made = self.check(chain)
        return [float(made.count(o)) for o in range(SKIP + 1)]

    def graphs(self, chains: Sequence[Sequence[int]]) -> Tensor:
        """Networks as graphs, (count, places + 3, 12 + places + 3): a chain of operations between an input and an
        output node, and a last node that hears all; features, then the nodes that each node hears."""
        nodes = self.places + 3
        labels = torch.zeros(len(chains), nodes, SKIP + 4)
        for i, chain in enumerate(chains):
            for j, operation in enumerate((SKIP + 1, *self.check(chain), SKIP + 2, SKIP + 3)):
                labels[i, j, operation] = 1
        heard = torch.eye(nodes) + torch.diag(torch.ones(nodes - 1), -1)
        heard[-1] = 1
        return torch.cat([labels, heard.expand(len(chains), nodes, nodes)], -1)

    def layout(self) -> list[tuple[int, int, int, int]]:
        """Input channels, output channels, stride and height of the input of every place."""
        rows = []
        inputs = self.scaled(self.stem)
        size = (self.resolution + 1) // 2
        for width, depth, stride in zip(self.widths, self.depths, self.strides, strict=True):
            for j in range(depth):
                step = stride if j == 0 else 1
                rows.append((inputs, self.scaled(width), step, size))
                inputs = self.scaled(width)
                size = (size + step - 1) // step
        return rows


class ChainBlock(Block):
    """An inverted bottleneck with groups: 1x1 up, depthwise, 1x1 down, and the input added where shapes agree.

    Args:
        inputs, outputs: channels.
        operation: index into `OPERATIONS`; a skip is nothing, or a 1x1 convolution where the shape changes.
        stride: of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, operation: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and inputs == outputs
        self.residual = same and operation != SKIP
        self.shuffled = 1
        if operation == SKIP:
            change = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            self.first, self.second = nn.Sequential(*([] if same else change)), nn.Sequential()
            return
        kernel, expand, groups = _BLOCKS[operation]
        middle = inputs * expand
        self.shuffled = groups
        self.first = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=groups, bias=False), nn.BatchNorm2d(middle), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.shuffled > 1:
            n, c, h, w = y.shape
            y = y.view(n, self.shuffled, c // self.shuffled, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.second(y)
        return x + y if self.residual else y

    if TYPE_CHECKING:
        __call__ = forward


class MobileChain(Block):
    """A network of the space.

    Args:
        config: of the space.
        chain: indices into `OPERATIONS`, one a place.

    Shapes: (batch, channels, resolution, resolution) to (batch, classes).

    >>> config = ChainConfig()
    >>> net = MobileChain(config, (8,) * config.places)
    >>> tuple(net(torch.zeros(2, 3, 64, 64)).shape)
    (2, 100)
    """

    def __init__(self, config: ChainConfig, chain: Sequence[int]) -> None:
        super().__init__()
        chain = config.check(chain)
        self.config, self.chain = config, chain
        layout = config.layout()
        self.stem = _stem(config.channels, layout[0][0])
        self.blocks = nn.Sequential(
            *(ChainBlock(i, o, operation, stride) for operation, (i, o, stride, _) in zip(chain, layout, strict=True))
        )
        self.final = _Final(layout[-1][1], config.scaled(config.last), config.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.final(self.blocks(self.stem(images)))
        return logits

    if TYPE_CHECKING:
        __call__ = forward


def _stem(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _Final(nn.Module):
    """A last 1x1 convolution, the mean over the picture, the classifier."""

    def __init__(self, inputs: int, last: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return logits


def chain_macs(config: ChainConfig, chain: Sequence[int]) -> int:
    """Multiply-accumulates of a network's convolutions and classifier, for one image."""
    layout = config.layout()
    half, last = layout[0][3], config.scaled(config.last)
    total = config.channels * layout[0][0] * 9 * half**2
    size = half
    for operation, (inputs, outputs, stride, size) in zip(config.check(chain), layout, strict=True):
        out = (size + stride - 1) // stride
        if operation == SKIP:
            total += 0 if stride == 1 and inputs == outputs else inputs * outputs * out**2
            continue
        kernel, expand, groups = _BLOCKS[operation]
        middle = inputs * expand
        total += inputs * middle // groups * size**2 + middle * kernel**2 * out**2 + middle * outputs // groups * out**2
    out = (size + layout[-1][2] - 1) // layout[-1][2]
    return total + layout[-1][1] * last * out**2 + last * config.classes

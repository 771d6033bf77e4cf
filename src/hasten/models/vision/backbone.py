"""What every network for images has that follows timm's conventions: maps of each stage, a head, a last layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hasten.cost import estimate
from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.kernels import deform_conv
from hasten.nn.block import Block
from hasten.workload import trace

_DEFORMABLE = deform_conv.OPERATOR
# Pixels along each side of the images that most published sizes are for.
_IMAGE = 224

C = TypeVar("C")
T = TypeVar("T")


def published_size(name: str, sizes: Mapping[str, T], spellings: Mapping[str, str], in_chans: int) -> T:
    """What a published network's name stands for.

    Args:
        name: its own, or another spelling of it.
        sizes: by the own names.
        spellings: other spelling -> own name.
        in_chans: channels of the images that it is made for.

    Raises:
        HastenError: no channels.
    """
    if in_chans < 1:
        raise HastenError(f"{name} takes in_chans from 1, not {in_chans}")
    return sizes[spellings.get(name, name)]


@dataclass(frozen=True)
class Level:
    """A feature map that a stage gives.

    Args:
        channels: of the map.
        reduction: pixels of the image, in height and in width, for one of the map.
    """

    channels: int
    reduction: int


class FeatureInfo(list[dict[str, int | str]]):
    """Of each level its channels, reduction and module, and timm's functions that ask for them.

    >>> info = FeatureInfo([{"num_chs": 8, "reduction": 2, "module": "stages.0"}])
    >>> info.channels(), info.reduction(0)
    ([8], 2)
    """

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Of the level ``idx``; of several, or of all when None, a list."""
        return self._of("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Pixels of the image for one of the map, of the level ``idx``; of several, or of all when None, a list."""
        return self._of("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Of the level ``idx``; of several, or of all when None, a list."""
        return self._of("module", idx)

    def _of(self, key: str, idx: int | Sequence[int] | None) -> Any:
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (range(len(self)) if idx is None else idx)]


class Backbone(Block, ABC):
    """A stem, stages that each give a feature map, and a head that ends in a linear layer.

    It has what code for timm's models asks of one: `num_classes`, `num_features`, `forward_features`, `forward_head`,
    `get_classifier`, `reset_classifier` and `feature_info`; `features_only` gives the maps of its stages.

    Subclasses make ``stem``, ``stages``, ``head`` (to what the last layer reads) and ``classifier``.

    Shapes: (batch, channels, height, width) to (batch, classes); without classes to (batch, `num_features`).
    """

    stem: nn.Module
    stages: nn.ModuleList
    head: nn.Module
    classifier: nn.Module

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, ...]:
        """What each stage gives, the largest map first."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Numbers that the classifier reads."""

    @property
    def num_classes(self) -> int:
        """Logits; 0 where it gives features."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    @property
    def feature_info(self) -> FeatureInfo:
        """Of each level its channels, reduction and module, in timm's words."""
        return FeatureInfo(
            {"num_chs": level.channels, "reduction": level.reduction, "module": f"stages.{i}"}
            for i, level in enumerate(self.levels)
        )

    @property
    def example_side(self) -> int:
        """Height and width in pixels of the images that its published sizes are for."""
        return _IMAGE

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Images (batch, channels, `example_side`, `example_side`) of zeros, in the format of the weights."""
        first = next(m for m in self.modules() if isinstance(m, nn.Conv2d))
        side = self.example_side
        return torch.zeros(batch, first.in_channels, side, side, dtype=first.weight.dtype)

    def new_classifier(self, classes: int) -> nn.Module:
        """A last layer of so many classes; an identity for 0.

        Raises:
            HastenError: fewer than 0.
        """
        if classes < 0:
            raise HastenError(f"a network has num_classes from 0 on: got {classes}")
        return nn.Linear(self.num_features, classes) if classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer; an identity where there is none."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new last layer in the old one's place, none for 0 classes, on the device and in the dtype of the rest.

        Args:
            num_classes: logits.
            global_pool: as timm's callers give it; the head pools as it does.

        Raises:
            HastenError: fewer than 0 classes, or another pooling.
        """
        if global_pool:
            raise HastenError(f"{type(self).__name__} pools as it was made to: leave global_pool={global_pool!r} out")
        like = next(self.parameters())
        self.classifier = self.new_classifier(num_classes).to(like.device, like.dtype).train(self.training)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map: (batch, channels, height / reduction, width / reduction)."""
        x: Tensor = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of what `forward_features` gave; with ``pre_logits`` what the classifier would read."""
        x: Tensor = self.head(features)
        return x if pre_logits else self.classifier(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    if TYPE_CHECKING:
        __call__ = forward

    def features_only(self, out_indices: Sequence[int] | None = None) -> FeatureMaps:
        """The maps of its stages alone, what a head for detection or segmentation reads; it shares the weights.

        Args:
            out_indices: which stages'; all when None.
        """
        return FeatureMaps(self, out_indices)


class FeatureMaps(Block):
    """The feature maps of a backbone's stages, without its head and without the stages that none of them needs.

    Args:
        backbone: whose stages it shares.
        out_indices: which, from the end where negative; all when None.

    Shapes: (batch, channels, height, width) to a map (batch, channels, height / reduction, width / reduction) a level.

    Raises:
        HastenError: no stage, or one that the backbone has not.
    """

    def __init__(self, backbone: Backbone, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        count = len(backbone.stages)
        asked: Sequence[int] = range(count) if out_indices is None else out_indices
        asked = [asked] if isinstance(asked, int) else asked
        if not asked or any(not -count <= i < count for i in asked):
            raise HastenError(f"out_indices are among {count} stages, from 0 to {count - 1}: got {list(asked)}")
        self.indices = tuple(sorted({i % count for i in asked}))
        self.stem = backbone.stem
        self.stages = nn.ModuleList(list(backbone.stages)[: self.indices[-1] + 1])
        self.feature_info = FeatureInfo(backbone.feature_info[i] for i in self.indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x: Tensor = self.stem(images)
        found: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.indices:
                found.append(x)
        return tuple(found)

    if TYPE_CHECKING:
        __call__ = forward


_MATRIX_PRODUCTS = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
)  # fmt: skip


class _Products(TorchFunctionMode):
    """Counts multiply-accumulates of what is called under it: far quicker than a mode that sees every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (F.conv1d, F.conv2d, F.linear, _DEFORMABLE):
            weight = args[2 if func is _DEFORMABLE else 1]
            # Each output of each position is a row of the weight.
            self.count += made.numel() // max(1, len(weight)) * weight.numel()
        elif func is F.conv_transpose2d:
            x, weight = args[:2]
            self.count += x.numel() // max(1, len(weight)) * weight.numel()
        elif func is F.scaled_dot_product_attention:
            q, k = args[:2]
            self.count += q.numel() * k.shape[-2] + made.numel() * k.shape[-2]
        elif func in _MATRIX_PRODUCTS:
            left = args[1 if func is Tensor.__rmatmul__ else 0] if args else kwargs["input"]
            self.count += made.numel() * left.shape[-1]
        return made


def multiply_accumulates(network: nn.Module, image: Sequence[int], *others: Any) -> int:
    """Multiply-accumulates of a network for one image: convolutions, linear layers, attention and products of matrices.

    Args:
        network: made on the meta device, or anywhere.
        image: channels, height and width.
        others: that the network is given behind the image, such as a time.
    """
    like = next(network.parameters())
    with evaluating(network), torch.no_grad(), _Products() as counter:
        network(torch.zeros(1, *image, device=like.device, dtype=like.dtype), *others)
    return counter.count


def equal_products(
    choices: Iterable[C],
    build: Callable[[C], nn.Module],
    image: Sequence[int],
    wanted: float,
    *others: Any,
    close: float = 0.05,
) -> C:
    """Of sizes that a network could have, the first with as many multiply-accumulates as wanted.

    Args:
        choices: of sizes, those that are liked best first.
        build: makes a network of one; it is made on the meta device.
        image, others: of `multiply_accumulates`.
        wanted: multiply-accumulates.
        close: share of them by which a choice may miss them; where none is as close, it is the nearest that is taken.

    Raises:
        HastenError: no choice.

    >>> equal_products(range(8, 20, 4), lambda n: nn.Conv2d(3, n, 1), (3, 10, 10), 3500)
    12
    """
    nearest: tuple[float, C] | None = None
    for choice in choices:
        with torch.device("meta"):
            off = abs(multiply_accumulates(build(choice), image, *others) / wanted - 1)
        if nearest is None or off < nearest[0]:
            nearest = (off, choice)
        if off <= close:
            break
    if nearest is None:
        raise HastenError("there are no sizes to choose from")
    return nearest[1]


def published_figures(network: nn.Module, image: Sequence[int]) -> tuple[int, float]:
    """A network's size as papers give it: parameters, and millions of multiply-accumulates to a hundredth.

    Args:
        network, image: of `multiply_accumulates`.
    """
    return sum(p.numel() for p in network.parameters()), round(multiply_accumulates(network, image) / 1e6, 2)


def modelled_seconds(network: nn.Module, image: Sequence[int], device: str, batch: int = 1) -> float:
    """Seconds of a call by the analytic model.

    Args:
        network: on the meta device.
        image: channels, height and width.
        device: of the catalogue, or a file.
        batch: images of the call.
    """
    return estimate(trace(network, torch.zeros(batch, *image, device="meta")), load_device(device)).latency

"""CenterNet: objects as points (arXiv 1904.07850), and CoDeNet, one with deformable convolutions (2006.08357).

Detection without boxes to begin with and without suppression at the end: a heat map a class says where objects have
their centres, two maps how broad and high they are, two how far a centre lies from its place's corner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import FeatureMaps
from hasten.models.vision.shufflenet import PUBLISHED, ShuffleNetConfig, ShuffleNetV2
from hasten.nn.block import Block
from hasten.nn.convolutional import conv_norm
from hasten.nn.deformable import operator as operator_of
from hasten.tasks.detection import Objects

_SHARE = 0.01  # of places that the heat map takes for centres at first
_LEAST_OVERLAP = 0.7  # of the boxes around an object with their corners off by its Gaussian's radius
_SIZE_WEIGHT = 0.1


class CentreMaps(NamedTuple):
    """What is said of every place of the map, before decoding.

    Args:
        heat: (batch, classes, height, width), logits of an object's centre.
        sizes: (batch, 2, height, width): breadth and height, in places.
        shifts: (batch, 2, height, width): across and down from the place's corner to the centre, in places.
    """

    heat: Tensor
    sizes: Tensor
    shifts: Tensor


class CenterNet(Block):
    """A decoder that doubles one small map several times, and three heads.

    Each step of the decoder is [operator, batch normalization, ReLU, nearest neighbours x 2], each head [operator,
    batch normalization, ReLU, 1x1 convolution].

    Args:
        maps: of a backbone, ``backbone.features_only(...)``, of which the smallest is read; it shares the weights.
        classes: of objects.
        widths: channels of the decoder's steps.
        head: channels inside a head.
        operator: makes the operator of so many inputs and outputs, such as `hasten.nn.deformable.operator` gives;
            squares, depthwise, when None.

    Shapes: images (batch, channels, height, width) to `CentreMaps`, 2^len(widths) times the size of the small map.

    Raises:
        HastenError: no class, or a decoder of no step or of more than the backbone reduces.
    """

    def __init__(
        self,
        maps: FeatureMaps,
        classes: int,
        widths: Sequence[int] = (512, 256, 128),
        head: int = 128,
        operator: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        operator = operator or operator_of("square-depthwise")
        info = maps.feature_info[-1]
        self.stride = int(info["reduction"]) >> len(widths)
        if classes < 1 or not widths or self.stride < 1:
            raise HastenError(
                f"a detector has a class or more and 1 to {int(info['reduction']).bit_length() - 1} steps up: got "
                f"{classes} and {len(widths)}"
            )
        self.maps = maps
        steps: list[nn.Module] = []
        inputs = int(info["num_chs"])
        for width in widths:
            steps += [operator(inputs, width), nn.BatchNorm2d(width), nn.ReLU(), nn.Upsample(scale_factor=2)]
            inputs = width
        self.decoder = nn.Sequential(*steps)
        self.heat, self.sizes, self.shifts = (
            nn.Sequential(operator(inputs, head), nn.BatchNorm2d(head), nn.ReLU(), nn.Conv2d(head, outputs, 1))
            for outputs in (classes, 2, 2)
        )
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        # Nearly no place is a centre: the first steps would be spent on that alone.
        nn.init.constant_(self.heat[-1].bias, -math.log((1 - _SHARE) / _SHARE))  # type: ignore[arg-type]
        for part in (self.sizes, self.shifts):
            nn.init.normal_(part[-1].weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(part[-1].bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> CentreMaps:
        x = self.decoder(self.maps(images)[-1])
        return CentreMaps(self.heat(x), self.sizes(x), self.shifts(x))

    if TYPE_CHECKING:
        __call__ = forward

    def loss(self, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Focal loss of the heat map, a tenth of the absolute error of sizes, and that of shifts.

        Args:
            images: (batch, channels, height, width).
            boxes: of each image (objects, 4): left, top, right and bottom in pixels, centres on the image.
            labels: of each image (objects,), classes.
        """
        found = self(images)
        wanted = torch.zeros_like(found.heat)
        errors = []
        for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            places = box / self.stride
            centres, sizes = (places[:, :2] + places[:, 2:]) / 2, places[:, 2:] - places[:, :2]
            across, down = corners = centres.long().unbind(1)
            draw_centres(wanted[i], corners, gaussian_radius(sizes), label)
            errors.append(
                _SIZE_WEIGHT * (found.sizes[i, :, down, across].T - sizes).abs()
                + (found.shifts[i, :, down, across].T - (centres - centres.floor())).abs()
            )
        regression = torch.cat(errors) if errors else found.sizes.new_zeros(0, 2)
        return centre_focal_loss(found.heat, wanted) + regression.sum() / max(1, regression.numel())

    @torch.no_grad()
    def detect(self, images: Tensor, most: int = 100) -> list[Objects]:
        """What is on each image: at most so many objects, the surest first."""
        return decode_centres(self(images), self.stride, most)

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Images (batch, channels, 512, 512) of zeros, in the format of the weights."""
        first = next(p for p in self.parameters() if p.ndim == 4)
        return torch.zeros(batch, first.shape[1], 512, 512, dtype=first.dtype)


def gaussian_radius(sizes: Tensor, overlap: float = _LEAST_OVERLAP) -> Tensor:
    """How far both corners of boxes may be off for the boxes to overlap by ``overlap`` at least, (objects,).

    The smallest of three cases (arXiv 1808.01244, section 3.2): both corners off to one side, inwards, or outwards.

    Args:
        sizes: (objects, 2), breadth and height.
        overlap: intersection over union.
    """
    breadth, height = sizes.unbind(-1)
    around, area = breadth + height, breadth * height
    aside = (around - (around.square() - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inwards = (around - (around.square() - 4 * area * (1 - overlap)).sqrt()) / 4
    outwards = (-around + (around.square() + 4 * area * (1 - overlap) / overlap).sqrt()) / 4
    return torch.minimum(aside, torch.minimum(inwards, outwards))


@torch.no_grad()
def draw_centres(heat: Tensor, corners: Sequence[Tensor], radii: Tensor, labels: Tensor) -> None:
    """Adds a Gaussian for each object to a heat map: 1 at its centre's place, the larger value where two meet.

    Args:
        heat: (classes, height, width), changed.
        corners: columns and rows of centres' places, (objects,) each.
        radii: (objects,) in places, whole ones of which a Gaussian reaches.
        labels: (objects,).
    """
    height, width = heat.shape[1:]
    rows, columns = torch.arange(height, device=heat.device), torch.arange(width, device=heat.device)
    for across, down, radius, label in zip(*corners, radii.clamp(min=0).floor(), labels, strict=True):
        y, x = (rows - down).abs(), (columns - across).abs()
        deviation = (2 * radius + 1) / 6
        value = torch.exp(-(y.square()[:, None] + x.square()) / (2 * deviation.square()))
        near = (y[:, None] <= radius) & (x <= radius)
        heat[label] = torch.maximum(heat[label], value * near)


def centre_focal_loss(logits: Tensor, wanted: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Minus log likelihood of centres, weighted by how wrong it is; less at places near a centre (arXiv 1904.07850).

    Args:
        logits, wanted: (batch, classes, height, width); centres are where ``wanted`` is 1.
        alpha: power of how wrong a place is.
        beta: power of how far a place is from a centre.
    """
    chance, centre = logits.sigmoid(), wanted == 1
    there = (1 - chance) ** alpha * F.logsigmoid(logits)
    away = (1 - wanted) ** beta * chance**alpha * F.logsigmoid(-logits)
    return -torch.where(centre, there, away).sum() / centre.sum().clamp(min=1)


def decode_centres(maps: CentreMaps, stride: int, most: int = 100) -> list[Objects]:
    """Objects at places that no neighbour of the eight exceeds, the surest first.

    Args:
        maps: of a batch.
        stride: pixels of the image for a place.
        most: objects of an image.
    """
    heat = maps.heat.sigmoid()
    peaks = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    _, _, height, width = heat.shape
    found = []
    for i, flat in enumerate(peaks.flatten(1)):
        scores, at = flat.topk(min(most, len(flat)))
        labels, places = at // (height * width), at % (height * width)
        down, across = places // width, places % width
        centres = torch.stack((across, down), 1) + maps.shifts[i, :, down, across].T
        half = maps.sizes[i, :, down, across].T / 2
        found.append(Objects(stride * torch.cat((centres - half, centres + half), 1), labels, scores))
    return found


# Name -> encoder, channels of the decoder's steps and of a head, classes. The first two are those of the published
# training code, the others the smaller ones that were deployed, as nearly as the paper tells (its tables 3 and 4).
_CODENETS = {
    "codenet-voc": ("shufflenet-v2-1.0", (512, 256, 128), 128, 20),
    "codenet-coco": ("shufflenet-v2-1.0", (512, 256, 128), 128, 80),
    "codenet-1x-voc": ("shufflenet-v2-1.0", (256, 128, 64), 64, 20),
    "codenet-2x-voc": ("shufflenet-v2-2.0", (256, 128, 64), 64, 20),
}


@published(_CODENETS)
def codenet(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    operator: str = "square-depthwise",
    pooled: bool = True,
) -> CenterNet:
    """A CoDeNet with weights at their start.

    Args:
        name: ``codenet-voc``, ``codenet-coco``, ``codenet-1x-voc`` or ``codenet-2x-voc``.
        num_classes: of objects; the data set's when None.
        in_chans: channels of the image.
        operator: of `hasten.nn.deformable.OPERATORS`.
        pooled: of `hasten.models.vision.shufflenet.ShuffleNetConfig`.

    Raises:
        HastenError: no such operator.
    """
    encoder, widths, head, classes = _CODENETS[name]
    config = dataclasses.replace(PUBLISHED[encoder], channels=in_chans, classes=0, pooled=pooled)
    maps = ShuffleNetV2(config).features_only((-1,))
    return CenterNet(maps, classes if num_classes is None else num_classes, widths, head, operator_of(operator))


def mini_centernet(operator: Callable[[int, int], nn.Module], channels: int = 1, classes: int = 10) -> CenterNet:
    """A detector on a small ShuffleNetV2, for images of some 128 x 128: decoder of 64, 48 and 32 channels.

    Args:
        operator: of `CenterNet`.
        channels, classes: of images, and of objects.
    """
    config = ShuffleNetConfig((24, 48, 96), 128, (2, 2, 2), 16, channels=channels, classes=0)
    return CenterNet(ShuffleNetV2(config).features_only((-1,)), classes, (64, 48, 32), 32, operator)


class SizingNetwork(Block):
    """A small network that names one object and tells its size: two convolutions that halve the map, two operators with
    batch normalization and ReLU, the maximum over all places, and a linear head for each question.

    Args:
        operator: makes the operator of so many inputs and outputs.
        channels, classes: of images, and of objects.

    Shapes: images (batch, channels, height, width) to logits (batch, classes) and heights and breadths (batch, 2).
    """

    def __init__(self, operator: Callable[[int, int], nn.Module], channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_norm(channels, 16, 3, 2, act="relu"), *conv_norm(16, 24, 3, 2, act="relu"),
            operator(24, 48), nn.BatchNorm2d(48), nn.ReLU(), operator(48, 48), nn.BatchNorm2d(48), nn.ReLU(),
        )  # fmt: skip
        self.name, self.size = nn.Linear(48, classes), nn.Linear(48, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.features(images).amax((2, 3))
        return self.name(found), self.size(found)

    if TYPE_CHECKING:
        __call__ = forward

"""Heads on the feature maps of a backbone: a pyramid, segmentation and detection, as backbones are compared by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.vision.backbone import FeatureMaps
from hasten.nn.block import Block


class FeaturePyramid(Block):
    """Maps of several sizes at one width, each told of what the smaller ones found (FPN, arXiv 1612.03144).

    Args:
        channels: of each map, the largest first.
        width: of every map that comes out.

    Shapes: maps (batch, channels, height, width), each about half the size of the one before, to maps (batch, width,
        height, width) of the same sizes.

    Raises:
        HastenError: no map.
    """

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        if not channels:
            raise HastenError("a pyramid is made of one map at least: give the channels of each")
        self.across = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        found = [across(m) for across, m in zip(self.across, maps, strict=True)]
        for i in range(len(found) - 1, 0, -1):
            found[i - 1] = found[i - 1] + F.interpolate(found[i], found[i - 1].shape[2:], mode="nearest")
        return tuple(smooth(m) for smooth, m in zip(self.smooth, found, strict=True))

    if TYPE_CHECKING:
        __call__ = forward


def _channels(maps: FeatureMaps) -> list[int]:
    return [int(info["num_chs"]) for info in maps.feature_info]


class SemanticFPN(Block):
    """A class of every pixel: a pyramid whose maps are brought to the largest one's size and added (arXiv 1901.02446).

    Args:
        maps: of a backbone, ``backbone.features_only(...)``; it shares the weights.
        classes: of pixels.
        width: of the pyramid.

    Shapes: images (batch, channels, height, width) to logits (batch, classes, height, width).
    """

    def __init__(self, maps: FeatureMaps, classes: int, width: int = 128) -> None:
        super().__init__()
        self.maps = maps
        self.pyramid = FeaturePyramid(_channels(maps), width)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(math.gcd(32, width), width), nn.ReLU()
            )
            for _ in self.maps.indices
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.pyramid(*self.maps(images))
        size = found[0].shape[2:]
        total = torch.stack([
            F.interpolate(refine(m), size, mode="bilinear", align_corners=False)
            for refine, m in zip(self.refine, found, strict=True)
        ]).sum(0)  # fmt: skip
        return F.interpolate(self.classifier(total), images.shape[2:], mode="bilinear", align_corners=False)

    if TYPE_CHECKING:
        __call__ = forward


class Detections(NamedTuple):
    """What a detector says of every place of its maps, the largest map's first.

    Args:
        logits: (batch, places, classes), of what has its centre near there; a sigmoid's, each by itself.
        boxes: (batch, places, 4): left, top, right and bottom in pixels of the image.
        centres: (places, 2): across and down, in pixels.
        steps: (places,): pixels from one place of its map to the next.
    """

    logits: Tensor
    boxes: Tensor
    centres: Tensor
    steps: Tensor


class PyramidDetector(Block):
    """Objects by their boxes: two towers on every map of a pyramid, one for classes and one for the four distances
    from a place to the sides of the box it is in (RetinaNet's towers, arXiv 1708.02002, without anchors, 1904.01355).

    Args:
        maps: of a backbone, ``backbone.features_only(...)``; it shares the weights.
        classes: of objects.
        width: of the pyramid and the towers.
        depth: convolutions of a tower, shared by all maps.

    Shapes: images (batch, channels, height, width) to `Detections`.
    """

    def __init__(self, maps: FeatureMaps, classes: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.maps = maps
        self.strides = tuple(int(info["reduction"]) for info in maps.feature_info)
        self.pyramid = FeaturePyramid(_channels(maps), width)
        self.classes, self.sides = (self._tower(width, depth, outputs) for outputs in (classes, 4))
        self._start()

    def _tower(self, width: int, depth: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(math.gcd(32, width), width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))

    @torch.no_grad()
    def _start(self) -> None:
        # Nearly every place has no object: a guess of one in a hundred, or the first steps are spent on that alone.
        nn.init.constant_(self.classes[-1].bias, -math.log(99))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Detections:
        logits, boxes, centres, steps = [], [], [], []
        for stride, found in zip(self.strides, self.pyramid(*self.maps(images)), strict=True):
            rows, columns = found.shape[2:]
            down, across = torch.meshgrid(
                torch.arange(rows, device=found.device), torch.arange(columns, device=found.device), indexing="ij"
            )
            places = torch.stack((across, down), -1).reshape(-1, 2).to(found.dtype) * stride + stride / 2
            # Distances are positive, in steps of the map, so that all maps answer numbers of one size.
            sides = stride * F.softplus(self.sides(found).flatten(2).transpose(1, 2))
            boxes.append(torch.cat((places - sides[..., :2], places + sides[..., 2:]), -1))
            logits.append(self.classes(found).flatten(2).transpose(1, 2))
            centres.append(places)
            steps.append(places.new_full((len(places),), stride))
        return Detections(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(centres), torch.cat(steps))

    if TYPE_CHECKING:
        __call__ = forward

    def loss(self, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Focal loss of classes, and generalized intersection over union of boxes (arXiv 1902.09630).

        A place has the smallest box that it is in the middle of: within 1.5 steps of its centre, on the map for whose
        step the box is neither small nor large.

        Args:
            images: (batch, channels, height, width).
            boxes: of each image (objects, 4), as `Detections` has them.
            labels: of each image (objects,), classes.
        """
        found = self(images)
        total = found.logits.new_zeros(())
        matched = 0
        for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            which, inside = _assigned(found, box)
            wanted = torch.zeros_like(found.logits[i])
            wanted[inside, label[which[inside]]] = 1
            total = total + _focal(found.logits[i], wanted)
            if bool(inside.any()):
                total = total + (1 - _overlap(found.boxes[i][inside], box[which[inside]])).sum()
            matched += int(inside.sum())
        return total / max(1, matched)


def _assigned(found: Detections, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Of every place the box it stands for, and whether there is one."""
    centres, step = found.centres, found.steps
    if not len(boxes):
        return torch.zeros_like(step, dtype=torch.long), torch.zeros_like(step, dtype=torch.bool)
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1)
    near = ((centres[:, None] - middle).abs().amax(2) < 1.5 * step[:, None]) & (
        (centres[:, None] >= boxes[:, :2]) & (centres[:, None] <= boxes[:, 2:])
    ).all(2)
    # Boxes of up to eight steps of a map are its own; the smallest and the largest map have what is beyond.
    least = torch.where(step == step.min(), 0.0, 4.0 * step)
    most = torch.where(step == step.max(), math.inf, 8.0 * step)
    fits = near & (size >= least[:, None]) & (size < most[:, None])
    area = torch.where(fits, size, math.inf)
    return area.argmin(1), fits.any(1)


def _focal(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    chance = logits.sigmoid()
    right = chance * wanted + (1 - chance) * (1 - wanted)
    weight = (alpha * wanted + (1 - alpha) * (1 - wanted)) * (1 - right) ** gamma
    return (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Generalized intersection over union of boxes (count, 4): from -1 for far apart to 1 for the same."""
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b))
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    either = area_a + area_b - both
    return both / either.clamp(min=1e-6) - (hull - either) / hull.clamp(min=1e-6)

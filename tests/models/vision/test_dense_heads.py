"""Heads for segmentation and detection take any backbone's feature maps, and learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models import FeaturePyramid, LowFormer, LowFormerConfig, PyramidDetector, ResNet, SemanticFPN
from hasten.models.vision.dense_heads import _overlap


def lowformer() -> LowFormer:
    torch.manual_seed(0)
    return LowFormer(LowFormerConfig((4, 8, 8, 16, 16), (0, 1, 1, 1, 1), (8, 8), channels=1, classes=10))


def scenes(count: int = 4) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Squares (class 0) and frames (class 1) of 16 pixels on 32 x 32."""
    images, boxes = torch.zeros(count, 1, 32, 32), []
    for i in range(count):
        x, y = 4 * (i % 4), 2 * i
        images[i, 0, y : y + 16, x : x + 16] = 1
        if i % 2:
            images[i, 0, y + 4 : y + 12, x + 4 : x + 12] = 0
        boxes.append(torch.tensor([[x, y, x + 16.0, y + 16.0]]))
    return images, boxes, [torch.tensor([i % 2]) for i in range(count)]


def test_every_map_hears_of_the_smaller_ones() -> None:
    pyramid = FeaturePyramid((4, 8), 6)
    maps = torch.randn(1, 4, 9, 9), torch.randn(1, 8, 5, 5)
    large, small = pyramid(*maps)
    assert [tuple(m.shape) for m in (large, small)] == [(1, 6, 9, 9), (1, 6, 5, 5)]
    other = pyramid(maps[0], -maps[1])
    assert not torch.allclose(other[0], large)
    with pytest.raises(HastenError, match="one map at least"):
        FeaturePyramid(())


@pytest.mark.parametrize("side", [32, 41])
def test_pixels_are_classified_at_the_image_s_size(side: int) -> None:
    head = SemanticFPN(lowformer().features_only((1, 2, 3, 4)), 5, 8)
    assert head(torch.randn(2, 1, side, side)).shape == (2, 5, side, side)


def test_segmentation_learns() -> None:
    torch.manual_seed(0)
    head = SemanticFPN(ResNet(10, 1, (1, 1), 8).features_only(), 2, 8)
    images, _, _ = scenes()
    target = (images[:, 0] > 0.5).long()
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(images), target)
        loss.backward()
        optimizer.step()
    assert float((head(images).argmax(1) == target).float().mean()) > 0.95


def test_detection_learns_where_and_what() -> None:
    torch.manual_seed(0)
    detector = PyramidDetector(ResNet(10, 1, (1, 1, 1), 8).features_only((1, 2)), 2, 16, 1)
    images, boxes, labels = scenes()
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = detector.loss(images, boxes, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    found = detector(images)
    assert found.logits.shape == (4, 16 * 16 + 8 * 8, 2)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        place, kind = divmod(int(found.logits[i].argmax()), 2)
        assert kind == int(label)
        assert float(_overlap(found.boxes[i, place : place + 1], box)) > 0.6


def test_an_image_of_nothing_has_a_loss() -> None:
    detector = PyramidDetector(lowformer().features_only((2, 3)), 2, 8, 1)
    loss = detector.loss(torch.zeros(2, 1, 32, 32), [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2)
    assert loss.isfinite()


def test_overlap_is_that_of_areas() -> None:
    one = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert float(_overlap(one, one)) == pytest.approx(1)
    assert float(_overlap(one, one + 1)) == pytest.approx(1 / 7 - 2 / 9)

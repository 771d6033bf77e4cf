"""Digits on canvases: boxes are where pixels are, sizes vary apart, and detectors are asked by their own loss."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.detection import box_overlaps
from hasten.tasks.digit_scenes import DigitScenes, SizedDigits, scene, side_by_side


def test_a_digit_fills_its_box_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(50):
        canvas, (boxes, labels, scores) = scene(torch.full((3, 8, 8), 16.0), torch.tensor([4, 5, 6]), 1, 32, generator)
        left, top, right, bottom = boxes[0].int().tolist()
        assert canvas[0, top:bottom, left:right].min() > 0.999
        assert float(canvas.sum()) == pytest.approx((right - left) * (bottom - top), rel=1e-4)
        assert 8 <= bottom - top <= 24
        assert 4 <= int(labels[0]) <= 6
        assert scores is None
        ratios.append((right - left) / (bottom - top))
    assert min(ratios) < 0.85
    assert max(ratios) > 1.15


def test_digits_of_a_scene_hardly_overlap() -> None:
    pytest.importorskip("sklearn")
    task = DigitScenes((20, 4, 4), digits=(2, 5))
    for objects in task.parts["training"][1]:
        assert 1 <= len(objects.labels) <= 5
        overlaps = box_overlaps(objects.boxes, objects.boxes).fill_diagonal_(0)
        assert overlaps.max() <= 0.1
    assert max(len(o.labels) for o in task.parts["training"][1]) > 2
    batch = next(task.batches("training", 2))
    with pytest.raises(HastenError, match="this model has none"):
        task.loss(lambda images: images, batch)
    assert task.evaluate(lambda images: task.right(task.take("test", 0, 4)), "test") == 1


def test_sizes_are_shares_of_the_canvas() -> None:
    pytest.importorskip("sklearn")
    task = SizedDigits((30, 5, 5))
    labels, sizes = task.take("training", 0, 30).targets
    assert labels.shape == (30,)
    assert sizes.shape == (30, 2)
    assert 8 / 32 <= sizes[:, 0].min() <= sizes[:, 0].max() <= 24 / 32
    batch = task.take("test", 0, 5)
    assert task.size_error(lambda x: task.right(batch)) == 0
    assert float(task.loss(lambda x: task.right(batch), batch)) < 1e-6
    for wrong in ({"side": 16}, {"counts": (1, 2)}):
        with pytest.raises(HastenError, match="at least 24 pixels"):
            SizedDigits(**wrong)
    with pytest.raises(HastenError, match="at least one digit"):
        DigitScenes(digits=(3, 2))


def test_canvases_stand_side_by_side() -> None:
    canvases = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)
    assert side_by_side(canvases, 2)[0, 0, ::2, ::2].tolist() == [[0, 1], [2, 0]]
    assert side_by_side(canvases, 2).shape == (1, 1, 4, 4)

"""How good detections are: overlaps of boxes, and average precision (PASCAL VOC's from 2010 on, COCO's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.errors import HastenError

COCO_OVERLAPS = tuple(0.5 + 0.05 * i for i in range(10))
"""Overlaps that COCO's AP is a mean over."""


class Objects(NamedTuple):
    """What is on one image, or what a detector says is.

    Args:
        boxes: (objects, 4): left, top, right and bottom in pixels.
        labels: (objects,), classes from 0.
        scores: (objects,), the surer the higher; None where somebody knows.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None


def box_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (a, 4) with boxes (b, 4): (a, b), 0 to 1."""
    low = torch.maximum(one[:, None, :2], other[:, :2])
    high = torch.minimum(one[:, None, 2:], other[:, 2:])
    both = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (one, other)]
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=1e-9)


def average_precision(found: Sequence[Objects], wanted: Sequence[Objects], overlap: float = 0.5) -> float:
    """Mean over classes of the area under precision by recall; 0 to 1.

    Of an image's detections the surest come first. Each takes the box of its class that it overlaps most among those
    that none has taken, and is right if that is by ``overlap`` at least. Precision at a recall is the best at it or
    beyond.

    Args:
        found, wanted: of the same images in the same order; ``found`` has scores.
        overlap: from which a box is found, above 0.

    Raises:
        HastenError: other images, no scores, or no object at all.
    """
    if len(found) != len(wanted) or any(f.scores is None for f in found):
        raise HastenError(f"detections of {len(found)} images for {len(wanted)}: give one of each, with scores")
    classes = sorted({int(c) for w in wanted for c in w.labels})
    if not classes:
        raise HastenError("there is no object on any image: nothing can be found")
    return sum(_of_class(found, wanted, c, overlap) for c in classes) / len(classes)


def _of_class(found: Sequence[Objects], wanted: Sequence[Objects], label: int, overlap: float) -> float:
    scores, right = [], []
    number = 0
    for said, truth in zip(found, wanted, strict=True):
        assert said.scores is not None
        mine = said.labels == label
        boxes = truth.boxes[truth.labels == label]
        number += len(boxes)
        order = said.scores[mine].argsort(descending=True, stable=True)
        overlaps = box_overlaps(said.boxes[mine][order], boxes)
        left = torch.ones(len(boxes), dtype=torch.bool)
        for row in overlaps:
            free = row.where(left, -1.0) if len(boxes) else row
            best = int(free.argmax()) if len(boxes) else -1
            hit = best >= 0 and float(free[best]) >= overlap
            if hit:
                left[best] = False
            right.append(hit)
        scores.append(said.scores[mine][order])
    surest = torch.cat(scores).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[surest].cumsum(0)
    if not len(hits):
        return 0.0
    recall, precision = hits / number, hits / torch.arange(1, len(hits) + 1)
    reached = precision.flip(0).cummax(0).values.flip(0)
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((steps * reached).sum())

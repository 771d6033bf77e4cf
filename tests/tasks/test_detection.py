"""Average precision by hand-counted cases."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.detection import Objects, average_precision, box_overlaps

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def test_overlaps_are_of_areas() -> None:
    others = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    assert box_overlaps(BOX, others)[0].tolist() == pytest.approx([1, 1 / 3, 0])
    assert box_overlaps(BOX, torch.zeros(0, 4)).shape == (1, 0)


def said(*found: tuple[float, int, float]) -> Objects:
    """Boxes moved to the right by so much, their labels and scores."""
    moved = torch.cat([BOX + torch.tensor([m, 0, m, 0]) for m, _, _ in found]) if found else torch.zeros(0, 4)
    labels = torch.tensor([label for _, label, _ in found], dtype=torch.int64)
    return Objects(moved, labels, torch.tensor([score for _, _, score in found]))


def test_each_box_is_found_once_and_the_surest_counts_first() -> None:
    truth = [Objects(BOX, torch.tensor([0]))]
    assert average_precision([said((0, 0, 0.9))], truth) == 1
    assert average_precision([said((0, 0, 0.9), (1, 0, 0.8))], truth) == 1  # the second is wrong, and late
    assert average_precision([said((0, 0, 0.8), (9, 0, 0.9))], truth) == pytest.approx(0.5)
    assert average_precision([said((0, 1, 0.9))], truth) == 0
    assert average_precision([said()], truth) == 0
    assert average_precision([said((4, 0, 0.9))], truth) == 0  # overlaps by 3/7
    assert average_precision([said((4, 0, 0.9))], truth, 0.4) == 1


def test_classes_are_averaged_and_images_are_one() -> None:
    two = Objects(torch.cat((BOX, BOX + 50)), torch.tensor([0, 1]))
    one = Objects(BOX, torch.tensor([0]))
    found = [said((0, 0, 0.5)), said((20, 0, 0.9), (0, 0, 0.7))]
    # Of class 0: wrong, right, right of two; precision at any recall is 2/3. Of class 1 nothing is found.
    assert average_precision(found, [two, one]) == pytest.approx((2 / 3 + 0) / 2)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(HastenError, match="give one of each, with scores"):
        average_precision([], [Objects(BOX, torch.tensor([0]))])
    with pytest.raises(HastenError, match="give one of each, with scores"):
        average_precision([Objects(BOX, torch.tensor([0]))], [Objects(BOX, torch.tensor([0]))])
    with pytest.raises(HastenError, match="no object on any image"):
        average_precision([said()], [Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))])

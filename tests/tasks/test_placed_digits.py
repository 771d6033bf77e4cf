"""Pictures on canvases: whole, within the edges, of every size, and none of a split in another."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.placed_digits import PlacedDigits, placed


def test_a_picture_is_whole_and_anywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    canvases, which = placed(torch.ones(3, 4, 4), 300, 16, (4, 6), generator)
    assert canvases.shape == (300, 1, 16, 16)
    assert set(which.tolist()) == {0, 1, 2}
    sizes = {int(c.sum()) for c in canvases}
    assert sizes == {16, 25, 36}
    shown = canvases.amax((0, 1))
    assert shown.all()  # every pixel, the corners too


def test_sizes_are_told() -> None:
    pytest.importorskip("sklearn")
    task = PlacedDigits((20, 10, 10), 16)
    assert task.parts["training"][0].shape == (20, 1, 16, 16)
    assert float(task.parts["training"][0].mean()) == pytest.approx(0, abs=1e-5)
    for wrong in ({"side": 8}, {"counts": (1, 2)}):
        with pytest.raises(HastenError, match="at least 16 pixels"):
            PlacedDigits(**wrong)


def test_canvases_of_64_pixels_show_larger_digits() -> None:
    pytest.importorskip("sklearn")
    task = PlacedDigits((60, 10, 20), 64)
    for split, count in (("training", 60), ("validation", 10), ("test", 20)):
        pictures, labels = task.parts[split]
        assert (pictures.shape, labels.shape) == ((count, 1, 64, 64), (count,))
    pictures = task.parts["training"][0][:, 0]
    shown = pictures > pictures.min()
    heights, widths = (shown.any(axis).sum(1) for axis in (2, 1))
    assert 16 < int(heights.max()) <= 48  # at most three quarters of the side
    assert 1 <= int(heights.min()) <= int(heights.max()) - 10
    assert 1 <= int(widths.min()) <= int(widths.max()) <= 48
    assert PlacedDigits((4, 2, 2)).parts["training"][0].shape == (4, 1, 32, 32)


@pytest.mark.parametrize("side", [32, 64])
def test_permuted_pixels_stand_in_one_order(side: int) -> None:
    pytest.importorskip("sklearn")
    plain, permuted = (PlacedDigits((30, 10, 10), side, permuted=p) for p in (False, True))
    orders = []
    for split in ("training", "validation", "test"):
        (one, labels), (other, same) = plain.parts[split], permuted.parts[split]
        assert torch.equal(labels, same)
        assert other.shape == one.shape
        assert not torch.equal(other, one)
        assert torch.equal(other.flatten(1).sort(1).values, one.flatten(1).sort(1).values)
        orders.append((one.flatten(1), other.flatten(1)))
    # One order for all: the pixels of a place, over all canvases of all splits, have moved together.
    before, after = (torch.cat(rows, 0).T.contiguous() for rows in zip(*orders, strict=True))
    assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))

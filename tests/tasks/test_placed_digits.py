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

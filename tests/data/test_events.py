"""Pictures as events in time."""

from __future__ import annotations

import pytest
import torch

from hasten.data.events import poisson_events, scan_events
from hasten.errors import HastenError


def test_pixels_have_events_as_often_as_they_are_bright() -> None:
    pictures = torch.linspace(0, 1, 16).reshape(1, 4, 4).expand(400, 4, 4)
    found = poisson_events(pictures, 50, 0.5, seed=1)
    assert found.shape == (400, 50, 16)
    torch.testing.assert_close(found.mean((0, 1)), 0.5 * pictures[0].flatten(), rtol=0, atol=0.015)
    assert torch.equal(found, poisson_events(pictures, 50, 0.5, seed=1))
    assert not torch.equal(found, poisson_events(pictures, 50, 0.5, seed=2))
    with pytest.raises(HastenError, match="probabilities"):
        poisson_events(pictures * 2)


def test_a_scan_tells_how_bright_a_row_is_where_it_has_come_to() -> None:
    row = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.3]]])
    found = scan_events(row, 9, (0.2, 0.6))
    assert found.shape == (1, 9, 4)
    # 0 .25 .5 .75 1 .75 .5 .25 0, and behind the middle 0 .075 .15 .225 .3.
    wanted = ([1, 2, 3, 4, 5, 6, 7], [3, 4, 5], [7, 8], [])
    assert [channel.nonzero().flatten().tolist() for channel in found[0].T] == list(wanted)


def test_what_is_no_picture_or_takes_no_steps_is_refused_in_a_line() -> None:
    for pictures, steps in ((torch.rand(4, 4), 8), (torch.rand(2, 4, 0), 8), (torch.rand(2, 4, 4), 0)):
        with pytest.raises(HastenError, match=r"give .batch, height, width., and steps"):
            scan_events(pictures, steps)
    with pytest.raises(HastenError, match="from 0"):
        poisson_events(torch.rand(2, 4), -1)
    assert scan_events(torch.rand(0, 4, 4)).shape == (0, 48, 16)

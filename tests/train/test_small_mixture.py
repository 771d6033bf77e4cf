"""The small mixture of experts: the same for a seed, and better than chance in each of its forms."""

from __future__ import annotations

import math

import pytest

from hasten.train.small_mixture import train_mixture


@pytest.mark.parametrize(("early", "activation", "mixed"), [(True, "relu", True), (False, "silu", False)])
def test_it_learns_and_is_the_same_again(early: bool, activation: str, mixed: bool) -> None:
    loss, opened = train_mixture(early, activation, mixed, 6, 0, length=32, width=32)  # type: ignore[arg-type]
    assert (loss, opened) == train_mixture(early, activation, mixed, 6, 0, length=32, width=32)  # type: ignore[arg-type]
    assert loss < math.log(96)
    assert 0 < opened < 1

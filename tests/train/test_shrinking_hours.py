"""Hours of the published schedule."""

from __future__ import annotations

import pytest

from hasten.hardware import load_device
from hasten.models.vision.once_for_all import OFAConfig
from hasten.train.shrinking_hours import PUBLISHED, cheaper_from, schedule_hours


def test_hours_grow_with_the_schedule() -> None:
    hours = schedule_hours(load_device("v100"))
    assert list(hours) == ["largest", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert hours["width 2"] > hours["kernel"] > hours["width 1"] > 0
    assert sum(epochs for epochs, _ in PUBLISHED) == 605


def test_hours_are_in_proportion_to_images() -> None:
    config = OFAConfig(
        widths=(8,), strides=(1,), activations=("relu",), se=(False,), resolutions=(16, 20), channels=1, classes=10,
        final=32, last=32,
    )  # fmt: skip
    whole, half = (sum(schedule_hours(load_device("v100"), config, images=n).values()) for n in (1000, 500))
    assert half == pytest.approx(whole / 2)


def test_what_is_paid_once_is_cheaper_from_some_device_on() -> None:
    assert cheaper_from(1200, 40_000) == 1
    assert cheaper_from(1200, 500) == 3
    assert 500 * cheaper_from(1200, 500) > 1200

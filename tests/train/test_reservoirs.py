"""Digits as two kinds of events, and what reservoirs make of them."""

from __future__ import annotations

import shutil

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar
from hasten.nn import Reservoir
from hasten.train.reservoirs import (
    analog_gap,
    counts,
    digit_events,
    digit_features,
    digit_reservoir,
    readout_accuracy,
    word_events,
    zero_shot,
)


def test_both_kinds_are_of_the_same_digits() -> None:
    data = digit_events(200)
    assert data.noise.shape == (200, 50, 64)
    assert data.scan.shape == (200, 48, 32)
    assert int(data.training.sum()) == 140
    rates = data.noise.mean(1)
    assert float(torch.corrcoef(torch.stack((rates.flatten(), data.pictures.flatten())))[0, 1]) > 0.9
    with pytest.raises(HastenError, match="1797 digits"):
        digit_events(5000)


def test_a_readout_of_a_reservoir_knows_digits_and_noise_of_reads_costs_little() -> None:
    data = digit_events(500)
    features = counts(digit_reservoir(False, size=80), data.noise)
    assert readout_accuracy(features, data.labels, data.training) > 0.75
    noisy, exact = analog_gap(data, Crossbar(input_bits=0, read_noise=0.05), 0, size=80)
    assert exact > 0.75
    assert abs(noisy - exact) < 0.1


def test_unseen_digits_are_found_by_what_other_digits_chose() -> None:
    kinds = digit_features(digit_events(500), 0, (0.04, 0.1), 60)
    assert len(kinds) == 2
    assert not torch.equal(kinds[0].second, kinds[1].second)
    offered = (None, 0.2, 1.0)
    found = zero_shot(kinds, pairs=[(0, 1), (4, 6), (3, 7)], temperatures=offered, steps=(40, 120))
    assert len(found.temperatures) == 3
    assert set(found.temperatures) <= set(offered)
    assert float(found.unseen.mean()) > 0.6
    assert float(found.seen.mean()) > 0.25


def test_spoken_digits_are_told_apart_by_a_reservoir() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng (a Debian package) is not installed")
    events, labels, training = word_events(6)
    assert events.shape == (66, 129, 64)
    features = counts(Reservoir(64, 60, threshold=5.3, decay=0.97), events)
    assert readout_accuracy(features, labels, training) > 2 / 11

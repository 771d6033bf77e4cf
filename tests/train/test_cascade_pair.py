"""Two detectors of a digit: both learn, the larger more; and their stream has the share that was asked for."""

from __future__ import annotations

import pytest
import torch

from hasten.cost.flows.measured_cascade import scores
from hasten.errors import HastenError
from hasten.processes import one_thread
from hasten.train.cascade_pair import detection_signals, detectors, trained_detectors


def _ranked(values: torch.Tensor, relevant: torch.Tensor) -> float:
    """How often a relevant signal scores above an irrelevant one."""
    return float((values[relevant][:, None] > values[~relevant][None]).double().mean())


def test_the_larger_detector_ranks_better_and_both_better_than_before() -> None:
    signals = detection_signals((2000, 1000, 1000))
    with one_thread():
        trained, plain = trained_detectors(signals, steps=80), detectors()
        found = {n: _ranked(scores(m, signals.held), signals.held_relevant) for n, m in trained.items()}
        before = {n: _ranked(scores(m, signals.held), signals.held_relevant) for n, m in plain.items()}
    assert found["large"] > found["small"] > max(before.values())
    assert not any(m.training for m in trained.values())
    assert signals.held_relevant.double().mean() == pytest.approx(0.1)


def test_a_stream_has_the_share_of_relevant_signals() -> None:
    signals = detection_signals((10, 10, 1000))
    inputs, relevant = signals.mixed(0.02)
    assert inputs.shape == (len(relevant), 1, 40)
    assert int((~relevant).sum()) == 900
    assert relevant.double().mean() == pytest.approx(0.02, abs=1e-3)
    assert not torch.equal(relevant, signals.mixed(0.02, seed=1)[1])
    with pytest.raises(HastenError, match="smaller share"):
        signals.mixed(0.5)

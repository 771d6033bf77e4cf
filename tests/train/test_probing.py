"""A linear readout of features that are there."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.train.probing import linear_probe, probe_accuracy


def test_it_tells_apart_what_a_plane_divides_on_any_scale() -> None:
    torch.manual_seed(0)
    features = torch.randn(300, 8)
    labels = (features[:, :3] @ torch.tensor([1.0, -2.0, 0.5]) > 0).long()
    training = torch.arange(300) < 200
    features = features * torch.logspace(-3, 3, 8) + 5
    before = torch.get_rng_state()
    probe = linear_probe(features, labels, training)
    assert torch.equal(torch.get_rng_state(), before)
    assert probe_accuracy(probe, features[~training], labels[~training]) > 0.93
    constant = linear_probe(torch.ones(300, 2), labels, training, steps=5)
    assert constant(torch.ones(3, 2)).isfinite().all()


def test_one_sample_is_enough_and_none_is_not() -> None:
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    assert linear_probe(features, labels, labels.cumsum(0) > 1, steps=2)(features).isfinite().all()
    assert linear_probe(features, labels, torch.arange(4) < 1, steps=2)(features).isfinite().all()
    with pytest.raises(HastenError, match="at least one"):
        linear_probe(features, labels, torch.arange(4) < 0, steps=2)

"""The inquisitor: responses of real networks, what it expects, and each value's share; NetScore."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.search.networks.inquisitor import Inquisitor, probe_responses
from hasten.search.networks.net_score import net_score


def network(depth: int, gain: float) -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.ReLU()]
    for _ in range(depth):
        parts += [nn.Conv2d(4, 4, 1), nn.ReLU()]
    made = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for p in made.parameters():
        p.data *= gain
    return made


def test_responses_are_of_one_length_and_tell_networks_apart() -> None:
    images, labels = torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))
    rows = [probe_responses(network(depth, gain), images, labels) for depth in (1, 5) for gain in (0.5, 2.0)]
    assert {len(row) for row in rows} == {14}
    assert np.isfinite(rows).all()
    assert rows[0][9] < rows[1][9]  # the last layers' deviation grows with the weights
    assert np.isfinite(probe_responses(network(5, 1e30), images, labels)).all()
    probed = network(1, 1.0)
    assert probe_responses(probed, images, labels) == probe_responses(probed, images, labels)
    assert all(p.grad is None for p in probed.parameters())
    assert not any(m._forward_hooks for m in probed.modules())


def test_it_expects_what_genes_and_responses_say() -> None:
    rng = random.Random(0)
    sizes = (3, 4)
    points = [(rng.randrange(3), rng.randrange(4)) for _ in range(60)]
    responses = [[rng.gauss(0, 1)] for _ in points]
    scores = [2.0 * (p[0] == 1) + p[1] + 3 * r[0] for p, r in zip(points, responses, strict=True)]
    judge = Inquisitor(sizes).fit(points[:40], responses[:40], scores[:40])
    mean, spread = judge.predict(points[40:], responses[40:])
    assert np.corrcoef(mean, scores[40:])[0, 1] > 0.98
    assert (spread > 0).all()
    blind = Inquisitor(sizes).fit(points[:40], [[]] * 40, scores[:40])
    assert np.corrcoef(blind.predict(points[40:], [[]] * 20)[0], scores[40:])[0, 1] < 0.9
    credit = judge.credit([(1, 3), (0, 0)])
    assert credit[0, 0] > 1
    assert credit[1, 0] < 0
    assert credit[0, 1] == pytest.approx(1.5, abs=0.4)


def test_what_it_cannot_learn_from_is_refused() -> None:
    with pytest.raises(HastenError, match="has learned nothing"):
        Inquisitor((2,)).credit([(0,)])
    with pytest.raises(HastenError, match="at least two networks"):
        Inquisitor((2,)).fit([(0,)], [[]], [1.0])


def test_net_score_in_decibels() -> None:
    assert net_score(0.8, 2e6, 1e6) - net_score(0.8, 4e6, 1e6) == pytest.approx(3.01, abs=5e-3)
    assert net_score(0.8, 2e6, 1e6) - net_score(0.8, 2e6, 2e6) == pytest.approx(3.01, abs=5e-3)
    assert net_score(0.81, 2e6, 1e6) - net_score(0.8, 2e6, 1e6) == pytest.approx(0.216, abs=5e-4)
    with pytest.raises(HastenError, match="above 0"):
        net_score(0.0, 1e6, 1e6)

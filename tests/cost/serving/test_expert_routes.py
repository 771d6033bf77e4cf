"""Made-up routes: lasting, skewed, the same for the same seed."""

from __future__ import annotations

import itertools

from hasten.cost.serving.expert_routes import lasting_routes, share_held


def test_choices_last_and_are_without_repeats() -> None:
    routes = {(step, layer): chosen for step, layer, chosen in lasting_routes(32, 4, 3, 200, 0)}
    assert len(routes) == 600
    assert all(len(set(chosen)) == 4 for chosen in routes.values())
    stayed = [
        len({*routes[a, layer]} & {*routes[b, layer]}) / 4
        for layer in range(3)
        for a, b in itertools.pairwise(range(200))
    ]
    assert 0.6 < sum(stayed) / len(stayed) < 0.75
    assert [*lasting_routes(32, 4, 3, 5, 1)] == [*lasting_routes(32, 4, 3, 5, 1)]


def test_more_room_finds_more() -> None:
    shares = [share_held(32, 4, 3, capacity, 100, 0) for capacity in (12, 48, 96)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.95
    assert 0.5 < shares[0] < 0.9

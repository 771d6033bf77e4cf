"""What HELP's checks hold apart, and what they refuse to compare."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from hasten.errors import HastenError
from hasten.papers import paper
from hasten.papers.checks import help as card
from hasten.search.networks.architecture_space import open_space


def test_every_piece_is_there() -> None:
    assert paper("help").status == "checked"
    assert set(paper("help").checked) == {"H1", "H2", "H3", "H4", "H6"}


def test_devices_are_held_apart() -> None:
    regimes, devices = card._regimes(), card._devices()
    names = {role: {r.name for r in regimes[role]} | {d.name for d in devices[role]} for role in regimes}
    for one, other in itertools.combinations(names.values(), 2):
        assert not one & other
    known = [*regimes["train"], *regimes["valid"]]
    for regime in regimes["test"]:
        assert regime.dtype not in {r.dtype for r in known} or regime.isa not in {r.isa for r in known}
    assert len(names["train"]) >= 9


@pytest.mark.parametrize("name", ["chain", "cell"])
def test_networks_are_described(name: str) -> None:
    space = open_space(name)
    archs = [space.config.sample(card.random.Random(i)) for i in range(3)]
    assert len(space.codes(archs)) == len({len(space.counts(a)) for a in archs}) + 2 == len(space.graphs(archs)) == 3
    nodes = space.graphs(archs).shape[1]
    assert space.graphs(archs).shape[2] == nodes + space.graph_labels
    assert space.products(archs[0]) > 0


def test_too_few_measurements_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.cost.latency import regimes as device_regimes

    def slow(build: Any, archs: Any, regimes: Any, **rest: Any) -> device_regimes.MeasuredRegimes:
        halves = {r.name: np.full((len(archs), 2), np.nan) for r in regimes}
        for row in halves.values():
            row[:5] = 1e-3 * (1 + np.arange(5))[:, None]
        return device_regimes.MeasuredRegimes(tuple(archs), tuple(regimes), halves, 1.0)

    monkeypatch.setattr(device_regimes, "measure_regimes", slow)
    card._pool.cache_clear()
    with pytest.raises(HastenError, match="measured too little"):
        card._pool("cell", 0, 10.0, lambda message, share: None)


def test_what_a_predictor_alone_needs() -> None:
    curve = {"HELP": {10: 0.9}, "MLP": {10: 0.5, 50: 0.91, 100: 0.95}, "GNN": {10: 0.2, 50: 0.3}}
    assert card._needed(curve) == {"MLP": 50, "GNN": None}

"""The space of a trained once-for-all network: as many points as sub-networks, scored on real images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten import spaces
from hasten.data import assets
from hasten.errors import HastenError
from hasten.models.vision.once_for_all import OFAConfig, OnceForAll, from_params
from hasten.processes import torch_threads
from hasten.search import Infeasible, Study
from hasten.spaces import once_for_all as once_for_all_module
from hasten.spaces.once_for_all import (
    SMALL,
    Corners,
    by_kind,
    corner_means,
    images,
    part_accuracies,
    problem,
    space,
    trained_corners,
    trainings,
)
from hasten.train.shrinking import SHRINKING, corners

TINY = OFAConfig(
    widths=(8,), strides=(2,), activations=("relu",), se=(False,), depths=(1, 2), resolutions=(12, 16), stem=8,
    final=16, last=16, channels=1, classes=10, dropout=0.0,
)  # fmt: skip


@pytest.fixture
def supernet(tmp_path: Path) -> Path:
    if not assets.asset("fashion-mnist").cached:
        pytest.skip("needs `hasten assets get fashion-mnist`")
    torch.manual_seed(0)
    OnceForAll(TINY).save(tmp_path / "net")
    return tmp_path / "net"


def test_it_is_known_by_name() -> None:
    assert "once-for-all" in spaces.names()
    assert "Fashion-MNIST" in spaces.describe("once-for-all")


@pytest.mark.parametrize("config", [TINY, SMALL, OFAConfig()])
def test_it_has_a_point_for_each_sub_network(config: OFAConfig) -> None:
    assert space(config).size == config.count * len(config.resolutions)


def test_points_are_different_sub_networks() -> None:
    chosen = space(TINY)
    assert len({from_params(TINY, p) for p in chosen.enumerate()}) == chosen.size
    large, rng = space(SMALL), random.Random(0)
    for _ in range(50):
        arch = from_params(SMALL, large.sample(rng))
        assert SMALL.decode(SMALL.encode(arch)) == arch


def test_a_saved_network_is_searched(supernet: Path) -> None:
    made = problem(supernet, "pi5", count=100)
    result = Study().run(made, sampler="random", trials=4)
    assert len(result.trials) == 4
    for trial in result.trials:
        assert 0 <= trial.values["accuracy"] <= 1
        assert 0 < trial.values["latency"] < 1
        assert trial.details["macs"] > 0
    assert made.identity["device"] == "pi5"
    # Another network is another identity, the same one the same.
    assert problem(supernet, "pi5", count=100).fingerprint == made.fingerprint
    torch.manual_seed(1)
    OnceForAll(TINY).save(supernet)
    assert problem(supernet, "pi5", count=100).fingerprint != made.fingerprint


def test_latency_is_measured_on_one_thread(supernet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def table(config: Any) -> Any:
        def seconds(arch: Any) -> float:
            threads.append(torch.get_num_threads())
            return 1.0

        return seconds

    monkeypatch.setattr(once_for_all_module, "measured", table)
    made = problem(supernet, limit=0.5, count=100)
    with torch_threads(2), pytest.raises(Infeasible, match="over the limit"):
        made.evaluate(made.space.sample(0))
    assert threads == [1]
    assert made.identity["device"] == "measured here, one thread"


def test_where_there_is_none_one_is_trained(supernet: Path, tmp_path: Path) -> None:
    made = problem(tmp_path / "new", "pi5", seconds=1.0, count=100)
    assert OnceForAll.load(tmp_path / "new").config == SMALL
    assert made.space == space(SMALL)


def test_an_unknown_device_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="nowhere"):
        problem(tmp_path / "none", "nowhere")
    assert not (tmp_path / "none").exists()


def test_corners_are_trained_together_or_alone() -> None:
    data = images("digits")
    assert data.training.shape == (300, 1, 8, 8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers as small as these are slower on several
    try:
        together = trained_corners(SHRINKING, slice(2), 0.02, 0, 50, "digits")
        assert together.state is not None
        again = part_accuracies(together.state, corners(SMALL)[:1], "digits")
        alone = trained_corners(None, slice(7, 8), 0.02, 0, 50, "digits")
    finally:
        torch.set_num_threads(threads)
    assert again == pytest.approx(together.accuracies[:1])
    assert (len(together.accuracies), len(alone.accuracies)) == (2, 1)
    assert alone.state is None
    assert all(0 <= a <= 100 for a in (*together.accuracies, *alone.accuracies))


def test_sub_networks_are_drawn_once_each() -> None:
    drawn = TINY.different(random.Random(0), 20)
    assert len(set(drawn)) == len(drawn) == 20
    assert drawn[:5] == TINY.different(random.Random(0), 5)


def test_trainings_have_equal_time_and_are_averaged_by_kind() -> None:
    arms = trainings(8.0, [0, 1], 100, "digits")
    assert list(arms) == [f"{kind} {s}" for s in (0, 1) for kind in ("shrinking", "joint", "small", "large")]
    assert {seconds for _, _, seconds, *_ in arms.values()} == {8.0}
    assert [seed for *_, seed, _, _ in arms.values()] == [0] * 4 + [1] * 4
    corners_of = {n: len(range(8)[which]) for n, (_, which, *_) in arms.items()}
    assert corners_of["shrinking 0"] == 8
    assert corners_of["small 0"] + corners_of["large 0"] == 8
    found = {name: Corners([float(name[-1])] * count, None) for name, count in corners_of.items()}
    means = corner_means(by_kind(found, [0, 1]))
    assert set(means) == {"shrinking", "joint", "small", "large", "alone"}
    assert means["alone"] == means["shrinking"] == [0.5] * 8

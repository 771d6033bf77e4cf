"""Every registered space of networks keeps the whole contract."""

from __future__ import annotations

import functools
import json
import pickle
import random
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.cost.latency.meta_settings import EPISODES, LEARNERS, MetaSettings, quick_settings
from hasten.cost.latency.modelled import EstimatedDevice
from hasten.cost.latency.regimes import Regime
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.vision.ascan import AsCANConfig, StageLayout
from hasten.models.vision.cell_network import CellConfig
from hasten.models.vision.darts import DartsConfig
from hasten.models.vision.hiera import HieraConfig
from hasten.models.vision.mobile_chain import ChainConfig
from hasten.models.vision.once_for_all import OFAConfig
from hasten.models.vision.proxyless import ProxylessConfig
from hasten.models.vision.pyramid_tree import PyramidTreeConfig
from hasten.search.networks import architecture_space as registry
from hasten.search.networks.architecture_space import (
    ArchitectureSpace,
    architecture_space,
    architecture_spaces,
    latency_predictor,
    measured_latencies,
    modelled_latencies,
    open_space,
)
from hasten.search.networks.latency_baselines import all_baselines
from hasten.search.networks.members.hiera import HieraChoices
from hasten.search.networks.specialize import AccuracyPredictor, LatencyTable, estimated, evolve
from hasten.workload import trace
from hasten.workload.einsum import Op

# Small enough for a test; a space that is not here is tested as it comes.
SMALL: dict[str, dict[str, Any]] = {
    "once-for-all": {
        "config": OFAConfig(
            widths=(8, 16), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), depths=(1, 2, 3),
            resolutions=(12, 16, 20), stem=8, final=32, last=32, channels=1, classes=5,
        )
    },
    "cell": {"config": CellConfig(width=4, repeats=2, resolution=8)},
    "proxyless": {
        "config": ProxylessConfig(
            (8, 12), (3, 2), (2, 1), stem=8, first=6, last=16, resolution=8, channels=1, classes=5
        )
    },
    "tree": {"config": PyramidTreeConfig((1, 1), first=4, growth=2, stem=4, resolution=8, channels=1, classes=5)},
    "darts": {"config": DartsConfig(4, 3, resolution=8, channels=1, classes=5)},
    "chain": {"config": ChainConfig(multiplier=0.25, resolution=32, last=64)},
    "hiera": {
        "config": HieraConfig(
            (16, 16, 16), (1, 1, 1), (1, 1, 1), (False, True, True), (True, True, False), (2, 2, 2), 4, 3, 2, 16, 1, 5
        ),
        "choices": HieraChoices(((16, 32),) * 3, ((1, 2),) * 3, heads=(8, 16)),
    },
    "plain": {
        "blocks": 2, "depth": 3, "dense": 2, "filters": (4, 6, 8), "units": (8, 12), "image": 8, "channels": 1,
        "classes": 5,
    },
    "dense": {"blocks": 2, "depth": 3, "sizes": (2, 3, 4), "image": 8, "channels": 1, "classes": 5},
    "ascan": {
        "config": AsCANConfig(
            StageLayout(("CC", "CCC", "CC")), (8, 8, 8), 8, head_size=8, image=16, channels=1, classes=5
        )
    },
}  # fmt: skip
each = pytest.mark.parametrize("name", list(architecture_spaces()))


def opened(name: str) -> ArchitectureSpace[Any]:
    return open_space(name, **SMALL.get(name, {}))


@functools.cache
def products(name: str) -> Callable[[Any], int]:
    """Of a space, each network's counted once."""
    return functools.cache(opened(name).products)


def drawn(space: ArchitectureSpace[Any], count: int, seed: int = 0) -> list[Any]:
    rng = random.Random(seed)
    return list(dict.fromkeys(space.sample(rng) for _ in range(count)))


def test_spaces_are_found() -> None:
    known = {"once-for-all", "cell", "chain", "ascan", "proxyless", "darts", "hiera", "plain", "dense", "tree"}
    assert known <= set(architecture_spaces())
    assert all(kind.name == name for name, kind in architecture_spaces().items())
    with pytest.raises(HastenError, match="no space of networks is called 'tpu': choose"):
        open_space("tpu")


def test_a_space_of_one_s_own_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KNOWN", {})
    kind: Any = architecture_space("mine")(type("Mine", (ArchitectureSpace,), {}))
    assert kind.name == "mine"
    with pytest.raises(HastenError, match="two spaces of networks are called 'mine'"):
        architecture_space("mine")(type("Other", (ArchitectureSpace,), {}))


@each
def test_all_that_is_drawn_is_valid(name: str) -> None:
    space, rng = opened(name), random.Random(1)
    archs = drawn(space, 20)
    made = [space.mutate(a, rng, c) for a in archs for c in (0.0, 0.1, 1.0)]
    made += [space.cross(a, b, rng) for a, b in zip(archs, reversed(archs), strict=True)]
    made += [space.smallest(), *(space.near_smallest(rng) for _ in range(5))]
    for arch in (*archs, *made):
        assert isinstance(arch, Hashable)
        assert space.valid(arch), space.why_invalid(arch)
    assert any(m not in archs for m in made)
    # Parents that agree have no other child.
    assert space.cross(archs[0], archs[0], rng) == archs[0]


@each
def test_what_is_no_network_is_refused_with_a_reason(name: str) -> None:
    space = opened(name)
    for wrong in ((), (99,) * 6, None):
        assert not space.valid(wrong)
        assert space.why_invalid(wrong)
    for data in ([], [10**6], "arch", {"a": 1}, [True]):
        with pytest.raises(HastenError):
            space.from_json(data)


@each
def test_seeds_reproduce(name: str) -> None:
    space = opened(name)
    assert drawn(space, 10, seed=3) == drawn(opened(name), 10, seed=3) != drawn(space, 10, seed=4)
    one, other = (
        [space.mutate(space.smallest(), rng), space.cross(*drawn(space, 9)[:2], rng), space.near_smallest(rng)]
        for rng in (random.Random(5), random.Random(5))
    )
    assert one == other


@each
def test_json_and_numbers_come_back(name: str) -> None:
    space = opened(name)
    for arch in drawn(space, 10):
        assert space.from_json(json.loads(json.dumps(space.to_json(arch)))) == arch
        assert space.from_numbers(space.numbers(arch)) == arch
    assert pickle.loads(pickle.dumps(space)).smallest() == space.smallest()


@each
def test_points_of_samplers_are_its_networks(name: str) -> None:
    space = opened(name)
    points = space.space()
    for arch in (*drawn(space, 10), space.smallest()):
        params = space.to_params(arch)
        assert points.validate(params) == params
        assert space.from_params(params) == arch
    for seed in range(10):
        point = points.sample(seed)
        assert space.valid(space.from_params(point))
        assert space.to_params(space.from_params(point)) == point


@each
def test_it_is_made_for_images(name: str) -> None:
    space = architecture_spaces()[name].for_images(1, 16, 10)
    assert space.about
    arch = space.smallest()
    network, image = space.example(arch)
    assert image.shape[1] == 1
    assert network(image).shape == (1, 10)
    assert space.products(arch) < 10e6


@each
def test_codes_tell_networks_apart(name: str) -> None:
    space = opened(name)
    archs = drawn(space, 40)
    codes = space.codes(archs)
    assert codes.shape == (len(archs), space.features)
    assert len({tuple(row) for row in codes.tolist()}) == len(archs)
    assert len({len(space.counts(a)) for a in archs}) == 1
    if space.graph_labels:
        graphs = space.graphs(archs)
        assert graphs.shape[2] == graphs.shape[1] + space.graph_labels
        assert len({tuple(g.flatten().tolist()) for g in graphs}) == len(archs)
    else:
        assert not space.prefers_graphs
        with pytest.raises(HastenError, match="not described as graphs"):
            space.graphs(archs)


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_parameters_and_products_are_those_of_the_network(name: str) -> None:
    space = opened(name)
    for arch in (*drawn(space, 5), space.smallest()):
        network, image = space.example(arch)
        assert not network.training
        assert tuple(image.shape) == (1, *space.input_shape(arch))
        assert network(image).ndim == 2
        assert space.parameters(arch) == sum(p.numel() for p in network.parameters())
        assert space.products(arch) == traced_products(network, image)
        assert ArchitectureSpace.products(space, arch) == space.products(arch)


def traced_products(network: nn.Module, image: Tensor) -> int:
    cascade = trace(network, image).phases[0].cascade
    return sum(e.points for e in cascade if e.op in (Op.CONV, Op.MATMUL))


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_parts_cover_the_network(name: str) -> None:
    """Weights and products of the parts are those of the whole, and parts of one key are the same."""
    space = opened(name)
    seen: dict[Hashable, tuple[int, int]] = {}
    for arch in (*drawn(space, 5), space.smallest()):
        total = [0, 0]
        for key, make, shape in space.parts(arch):
            part = make().eval()
            row = (sum(p.numel() for p in part.parameters()), traced_products(part, torch.zeros(1, *shape)))
            assert seen.setdefault(key, row) == row
            total = [t + r for t, r in zip(total, row, strict=True)]
        assert total == [space.parameters(arch), space.products(arch)]


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_tables_of_latency_take_it(name: str) -> None:
    space = opened(name)
    archs = drawn(space, 3)
    device = load_device("pi5")
    modelled = modelled_latencies(space, archs, [EstimatedDevice(device)]).device("pi5-b1-eager")
    table = LatencyTable(space, lambda parts: [float(sum(p.numel() for p in part.parameters())) for part, _ in parts])
    assert [table(a) for a in archs] == [space.parameters(a) for a in archs]
    # Without caches a part finds nothing of the last: never faster than the tables' estimate.
    assert all(estimated(space, device)(a) >= m * (1 - 1e-9) for a, m in zip(archs, modelled, strict=True))
    measured = measured_latencies(space, archs, [Regime()], rounds=2, runs=1)
    assert measured.archs == tuple(space.numbers(a) for a in archs)
    assert (measured.tables.device(Regime().name) > 0).all()


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_predictors_take_it(name: str) -> None:
    space = opened(name)
    archs = drawn(space, 20)
    truth = {a: 1e-6 * (1 + products(name)(a)) for a in archs}
    settings = MetaSettings(hidden=8, episodes=2, devices=1, query=5, every=2, samples=1)
    made = latency_predictor(space, archs[:10], settings).fit({"d": truth})
    scores = made.adapt({a: truth[a] for a in archs[:10]}).scores(archs[10:])
    assert scores.shape == (len(archs) - 10,)
    assert np.isfinite(scores).all()
    accuracy = AccuracyPredictor(space, hidden=16).fit(archs, [float(i) for i in range(len(archs))], steps=5)
    assert len(accuracy.predict(archs)) == len(archs)


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_evolution_takes_it(name: str) -> None:
    space = opened(name)
    count = products(name)
    limit = float(sorted(count(a) for a in drawn(space, 30))[10])

    def score(archs: Any) -> list[float]:
        return [float(space.parameters(a)) for a in archs]

    found = evolve(space, score, count, limit, population=12, generations=3)
    assert space.valid(found.arch)
    assert found.latency == count(found.arch) <= limit
    assert found.score == max(found.history) == space.parameters(found.arch)
    again = evolve(space, score, count, limit, population=12, generations=3)
    assert again == found


@pytest.mark.slow_except("cell", "plain", "tree")
@each
def test_baselines_take_it(name: str) -> None:
    space = opened(name)
    archs = drawn(space, 16)
    keys = {a: space.numbers(a) for a in archs}
    assert len(set(keys.values())) == len(archs)
    known = [{a: 1.0 + (i + 1) * products(name)(a) for a in archs} for i in range(2)]
    measured, asked = {a: known[0][a] for a in archs[:8]}, archs[8:]
    found = all_baselines(space, measured, asked, known, steps=5)
    assert ("GNN" in found) == bool(space.graph_labels)
    assert {"MLP", "layer-wise sum", "FLOPs", "best proxy", "mean device + ridge"} <= set(found)
    assert all(row.shape == (len(asked),) for row in found.values())
    # Here latency is a line through products, so that those who count them know it.
    assert np.allclose(found["FLOPs"], [known[0][a] for a in asked])


def test_quick_settings_are_of_three_learners() -> None:
    made = [quick_settings(learner, EPISODES["vectors"]) for learner in LEARNERS]
    assert [m.modulate for m in made] == [True, False, False]
    assert [m.learn_rates for m in made] == [True, True, False]
    assert (made[0].warm, made[0].episodes) == (6000, 150)
    assert made[1].episodes == made[2].episodes == 1800
    with pytest.raises(HastenError, match="no learner 'SGD'"):
        quick_settings("SGD", 1)

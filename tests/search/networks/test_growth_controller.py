"""The controller of growth: masks, chances, and that it learns what it is paid for; the search around it."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from hasten.cost.preserving import difference
from hasten.errors import HastenError
from hasten.models.vision.plain import PlainLayers
from hasten.search.networks.architecture_space import open_space
from hasten.search.networks.growing_space import Grown
from hasten.search.networks.growth_controller import (
    LONGEST,
    Deepen,
    GrowthController,
    GrowthTraining,
    Widen,
    _Decoder,
    stretched,
)
from hasten.search.networks.members.dense import DenseSpace
from hasten.search.networks.members.plain import PlainSpace
from hasten.search.networks.searches.growing import GrowthSearch
from hasten.search.networks.searching import NetworkTrials
from hasten.tasks.images import Digits

PLAIN = PlainSpace(2, 3, 2, (4, 6, 8), (1, 3, 5), (8, 12), 8, 1, 10)
DENSE = DenseSpace(2, 3, (2, 3, 4), 8, 1, 10)


def drawn(space: Any, count: int) -> list[Any]:
    rng = random.Random(0)
    found = [space.sample(rng) for _ in range(count)]
    return [a for a in found if any(space.layers(a)) and any(space.widenable(a))]


@pytest.mark.parametrize("space", [PLAIN, DENSE])
def test_chances_are_those_of_the_draw_and_masks_hold(space: Any) -> None:
    archs, generator = drawn(space, 12), torch.Generator().manual_seed(0)
    controller = GrowthController(space, seed=1)
    for decisions in (controller.widen(archs, generator), controller.deepen(archs, generator)):
        chances, spread = controller.log_chances(archs, [d.action for d in decisions])
        torch.testing.assert_close(chances, torch.tensor([d.log_chance for d in decisions]), rtol=1e-5, atol=1e-6)
        assert torch.isfinite(spread).all()
        # Alone or among others, a network is the same.
        alone = [
            float(controller.log_chances([a], [d.action])[0].detach()) for a, d in zip(archs, decisions, strict=True)
        ]
        torch.testing.assert_close(torch.tensor(alone), chances.detach(), rtol=1e-4, atol=1e-5)
    for arch, decision in zip(archs, controller.widen(archs, generator), strict=True):
        assert isinstance(decision.action, Widen)
        assert not any(w and not able for w, able in zip(decision.action.which, space.widenable(arch), strict=True))
    decoder = _Decoder(controller, archs)
    rooms = torch.tensor([space.layers(a) for a in archs])
    blocks = decoder.blocks().exp()
    assert (blocks[rooms == 0] == 0).all()
    layers = decoder.layers(blocks.argmax(1)).exp()
    room = rooms.gather(1, blocks.argmax(1)[:, None])
    assert (layers[torch.arange(layers.shape[1])[None] >= room] == 0).all()
    torch.testing.assert_close(layers.sum(1), torch.ones(len(archs)))


def test_a_kernel_that_is_not_there_has_no_chance() -> None:
    controller = GrowthController(PLAIN)
    arch = PLAIN.smallest()
    dense, _ = controller.log_chances([arch], [Deepen(2, 0, 0)])
    decoder = _Decoder(controller, [arch])
    block = decoder.blocks()[0, 2] + decoder.layers(torch.tensor([2]))[0, 0]
    assert float(dense.detach()) == pytest.approx(float(block.detach()), rel=1e-5)
    assert float(controller.log_chances([arch], [Deepen(0, 0, 3)])[0].detach()) < 0


def test_it_learns_what_it_is_paid_for() -> None:
    space = PlainSpace(2, 3, 2, (4, 6), (3,), (8, 12), 8, 1, 10)
    controller, generator = GrowthController(space, seed=0), torch.Generator().manual_seed(0)
    training, arch = GrowthTraining(controller), space.smallest()
    most = sum(space.widenable(arch))
    means = []
    for _ in range(100):
        decisions = controller.widen([arch] * 10, generator)
        counts = [float(sum(d.action.which)) for d in decisions if isinstance(d.action, Widen)]
        training.update([[d] for d in decisions], counts)
        means.append(sum(counts) / len(counts) / most)
    assert sum(means[:5]) / 5 < 0.7
    assert sum(means[-5:]) / 5 > 0.9


def test_rewards_stretch_and_the_baseline_moves_first() -> None:
    assert stretched(0.95) - stretched(0.94) > 10 * (stretched(0.55) - stretched(0.54))
    assert stretched(1.0) < 1e4
    controller = GrowthController(PLAIN)
    training = GrowthTraining(controller)
    (decision,) = controller.deepen([PLAIN.smallest()], torch.Generator())
    training.update([[decision]], [2.0])
    # The authors' step: nearly the mean of the rewards that it is subtracted from.
    assert training.baseline == pytest.approx(1.9)
    training.update([[decision]], [2.0])
    assert training.baseline == pytest.approx(1.995)
    with pytest.raises(HastenError, match="a baseline that follows by 0 to 1"):
        GrowthTraining(controller, follow=1.5)


def test_what_is_drawn_is_drawn_as_often_as_its_chance_says() -> None:
    """Each draw is counted, so that chances are held to what the sampler does and not to themselves."""
    arch, controller = PLAIN.smallest(), GrowthController(PLAIN, seed=3)
    with torch.no_grad():
        for layer in (controller.wider, controller.choices):
            for part in layer.modules():
                if isinstance(part, nn.Linear):
                    part.weight.mul_(20)
    rooms = PLAIN.layers(arch)
    deeper = [
        Deepen(block, layer, kernel)
        for block, room in enumerate(rooms)
        for layer in range(room)
        for kernel in (PLAIN.kernels if PLAIN.has_kernel(arch, block) else (0,))
    ]
    able = PLAIN.widenable(arch)
    wider = [Widen(which) for which in itertools.product(*((False, True) if a else (False,) for a in able))]
    draws, generator = 4000, torch.Generator().manual_seed(0)
    for actions, decide in ((deeper, controller.deepen), (wider, controller.widen)):
        chances = controller.log_chances([arch] * len(actions), actions)[0].detach().exp()
        assert float(chances.sum()) == pytest.approx(1, abs=1e-5)
        assert float(chances.max()) > 2 / len(actions)  # else every sampler would do
        counted = Counter(d.action for d in decide([arch] * draws, generator))
        for action, chance in zip(actions, chances.tolist(), strict=True):
            assert abs(counted[action] - draws * chance) <= 4 * math.sqrt(draws * chance * (1 - chance)) + 1
        assert sum(counted.values()) == sum(counted[a] for a in actions)


def test_moves_and_noise_are_those_of_each_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for space, moves, noises in ((PLAIN, (4, 5), (1e-2, 1e-3)), (DENSE, (10, 5), (1e-2, 1e-2))):
        heard: dict[str, set[float]] = {"widened": set(), "deepened": set()}
        for name, told in heard.items():
            real = getattr(type(space), name)

            def spied(*args: Any, noise: float, real: Any = real, told: Any = told, **named: Any) -> Any:
                told.add(noise)
                return real(*args, noise=noise, **named)

            monkeypatch.setattr(type(space), name, spied)
        trials: Any = NetworkTrials(Digits((64, 32, 32)), space, space.products, trainings=5, steps=1, batch=16)
        search: Any = GrowthSearch(trials, networks=1)
        search.episode()
        assert (search.widenings, search.deepenings) == moves
        assert (heard["widened"], heard["deepened"]) == ({noises[0]}, {noises[1]})


def test_a_known_network_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: Any = NetworkTrials(Digits((64, 32, 32)), PLAIN, PLAIN.products, trainings=5, steps=1, batch=16)
    search: Any = GrowthSearch(trials, networks=1)
    start = search.start()
    assert trials.trained == 1
    arch = PLAIN.sample(random.Random(4))
    grown = Grown(arch, PLAIN.build(arch))
    assert arch != start.arch
    first = search.score(grown)
    assert trials.trained == 2
    assert search.score(grown) == first
    assert trials.trained == 2


@pytest.mark.parametrize(("learned", "calls"), [(True, 1), (False, 3)])
def test_what_is_new_is_calibrated(learned: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the training where a controller decides, and after each of chance's moves too, as the authors do."""
    trials: Any = NetworkTrials(Digits((64, 32, 32)), PLAIN, PLAIN.products, trainings=5, steps=1, batch=16)
    search: Any = GrowthSearch(trials, learned=learned, networks=1, widenings=0, deepenings=2)
    search.start()
    seen: list[nn.Module] = []
    monkeypatch.setattr(search, "_calibrate", seen.append)
    search.episode()
    assert len(seen) == calls


def test_defaults_are_the_papers() -> None:
    plain, dense = PlainSpace(), DenseSpace()
    assert (len(plain.filters), len(plain.units), plain.kernels, plain.depth) == (13, 11, (1, 3, 5), 10)
    assert (dense.sizes, dense.depth, dense.blocks) == (tuple(range(4, 49, 2)), 20, 3)
    controller = GrowthController(plain)
    assert (controller.layers.embedding_dim, controller.encoder.hidden_size) == (16, 50)
    assert (controller.decoder.hidden_size, controller.blocks, controller.choices[1].out_features) == (100, 5, 10)


def test_what_cannot_be_read_or_grown_is_refused() -> None:
    full = PlainLayers((((1, 4),) * 3,) * 2, (8, 8))
    with pytest.raises(HastenError, match="is full"):
        GrowthController(PLAIN).deepen([full], torch.Generator())
    long = PlainSpace(4, 20, 1, (4,), (3,), (8,), 8, 1, 10)
    arch = PlainLayers((((3, 4),) * 15,) * 4, (8,))
    with pytest.raises(HastenError, match=f"reads {LONGEST} layers"):
        GrowthController(long).widening([arch])
    trials: Any = NetworkTrials(Digits((64, 32, 32)), open_space("cell"), lambda arch: 1.0, trainings=1)
    with pytest.raises(HastenError, match="do not grow into each other"):
        GrowthSearch(trials)


@pytest.mark.parametrize(("space", "learned"), [(PLAIN, True), (DENSE, True), (PLAIN, False)])
def test_what_it_grows_computes_what_it_grew_from(space: Any, learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.search.networks.searches.growing.WIDER_NOISE", 0.0)
    monkeypatch.setattr(type(space), "deepening_noise", 0.0)
    trials: Any = NetworkTrials(Digits((64, 32, 32)), space, space.products, trainings=5, steps=2, batch=16)
    search: Any = GrowthSearch(trials, learned=learned, networks=2, widenings=2, deepenings=2)
    seen = []
    score = trials.score

    def spied(arch: Any, network: Any = None, steps: int | None = None) -> float:
        if network is not None:
            assert [tuple(p.shape) for p in network.parameters()] == [
                tuple(p.shape) for p in space.build(arch).parameters()
            ]
            seen.append(difference(search._start.network if search._start else network, network, (search._examples,)))
        return float(score(arch, network, steps))

    monkeypatch.setattr(trials, "score", spied)
    search.episode()
    assert len(seen) == 3
    assert max(seen) < 1e-4
    assert len(search.means) == 1
    # The second stage grows from the best network.
    trials.trained = 4
    best = trials.best[1]
    assert search.start().arch == best

"""The search for a student: it is of the device, remembers what it tried, and finds fronts better than chance."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.search import Study
from hasten.search.networks.autodistill import AutoDistill, Quality, front_volume, quality
from hasten.search.networks.students import EncoderSpace
from hasten.search.problem import Trial
from hasten.tasks.masked_text import MaskedText
from hasten.train.distilling import UNTAUGHT, lessons

TASK = MaskedText("the quick brown fox jumps over a lazy dog, and back. " * 60, 12)
SPACE = EncoderSpace(TASK.vocabulary, TASK.classes, 12, (1, 2), (16, 32), (8, 16), (1, 2), (1, 2), (16, 24))


@pytest.fixture
def search() -> AutoDistill[Any]:
    torch.manual_seed(0)
    teacher = SPACE.build(SPACE.largest())
    given = lessons(teacher, TASK.batches("training", 4, 0), 4)
    held = list(itertools.islice(TASK.batches("validation", 16, 0), 2))
    return AutoDistill(SPACE, given, held, lambda arch: 1e-6 * SPACE.products(arch), flash=3)


def test_quality_counts_what_is_asked() -> None:
    batch = next(TASK.batches("test", 8, 0))
    assert quality(lambda ids: TASK.right(batch), [batch]).accuracy == 1
    flat = quality(lambda ids: torch.zeros(*ids.shape, TASK.classes), [batch, batch])
    assert flat.nats == pytest.approx(math.log(TASK.classes), abs=1e-5)
    with pytest.raises(HastenError, match="ask for nothing"):
        quality(lambda ids: ids, [batch._replace(targets=torch.full_like(batch.targets, -100))])


def test_a_student_is_distilled_once_and_the_same_again(search: AutoDistill[Any]) -> None:
    arch = SPACE.smallest()
    first = search.flash_quality(arch)
    assert search.flashed == {arch: first}
    state = torch.get_rng_state()
    assert search.train(arch, 3)[1] == first
    assert torch.equal(torch.get_rng_state(), state)
    assert search.train(arch, 3, UNTAUGHT)[1] != first


def test_a_search_weighs_accuracy_against_latency(search: AutoDistill[Any]) -> None:
    found = search.run(12, sampler="gp", seed=1)
    assert len(found.trials) == 12 == len(search.flashed)
    for trial in found.trials:
        arch = search.arch(trial)
        found_ = search.flashed[arch]
        assert trial.values == {"likelihood": math.exp(-found_.nats), "latency": 1e-6 * SPACE.products(arch)}
        assert (trial.details["accuracy"], trial.details["nats"]) == found_
        assert trial.details["layers"] == arch.layers
        assert trial.details["parameters"] == SPACE.parameters(arch)
    front = found.pareto()
    assert min(found.trials, key=lambda t: t.values["latency"]).number in {t.number for t in front}
    finished = search.finish(front[:2], steps=6)
    assert [f.quality for f in finished] == [quality(f.network, search.held) for f in finished]
    assert finished == sorted(finished, key=lambda one: -one.quality.accuracy)


def test_a_student_that_takes_too_long_is_not_distilled(search: AutoDistill[Any]) -> None:
    limit = search.latency(SPACE.smallest()) * 1.5
    found = search.run(8, sampler="random", limit=limit, first=[SPACE.to_params(SPACE.smallest())])
    assert {search.latency(search.arch(t)) <= limit for t in found.trials if t.feasible} == {True}
    assert any("are more than" in t.reason for t in found.trials)
    assert all(search.latency(arch) <= limit for arch in search.flashed)


def test_a_study_goes_on_with_its_own_search_alone(search: AutoDistill[Any], tmp_path: Any) -> None:
    study = Study(tmp_path / "found.db")
    search.run(3, sampler="random", study=study)
    assert len(search.run(5, sampler="random", study=study).trials) == 5
    search.flash = 4
    with pytest.raises(HastenError, match="belongs to another problem"):
        search.run(6, sampler="random", study=study)


def trial(likelihood: float, latency: float) -> Trial:
    return Trial(0, {}, {"likelihood": likelihood, "latency": latency})


def test_volumes_are_shares_of_the_corner() -> None:
    assert front_volume([trial(0.5, 1.0)], (1.0, 2.0)) == pytest.approx(0.25)
    assert front_volume([trial(0.5, 1.0), trial(0.25, 0.5)], (1.0, 2.0)) == pytest.approx(0.25 + 0.0625)
    assert front_volume([], (1.0, 2.0)) == front_volume([trial(0.9, 3.0)], (1.0, 2.0)) == 0


@pytest.mark.slow
def test_bayesian_search_finds_more_than_chance_on_a_known_curve() -> None:
    """Likelihood rises with the log of the products, but for heads and depth in excess: a function known everywhere."""
    space = EncoderSpace(31, 30, 12)
    volumes = {"gp": 0.0, "random": 0.0}
    for name, seed in itertools.product(volumes, range(2)):
        search = AutoDistill(space, [None], [None], lambda a: 1e-9 * space.products(a))  # type: ignore[list-item]

        def known(arch: Any) -> Quality:
            excess = 0.05 * (arch.heads - 2) ** 2 + 0.1 * max(0, arch.layers - 3) + 0.05 * (arch.feed_forwards - 1)
            return Quality(0.0, -math.log(max(1e-3, 0.1 * math.log10(space.products(arch)) - excess)))

        search.flash_quality = known  # type: ignore[method-assign]
        found = search.run(16, sampler=name, seed=seed)
        volumes[name] += front_volume(found.trials, (1.0, search.latency(space.largest())))
    assert volumes["gp"] > volumes["random"]


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(HastenError, match="has lessons, batches to judge by"):
        AutoDistill(SPACE, [], [], lambda arch: 1.0)

"""Thresholds and error matrices: published ones, exact rates, ties, skill that is none."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.cost.flows.sorting import EmpiricalScores, decay, score_model, sort_out
from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import GaussianScores, flow_graph

STAGES = flow_graph("cms-run5").nodes
L1T, HLT = STAGES["Intermediate"].classifier, STAGES["Global"].classifier
RELEVANT = 40e6 / 5330


def test_decays_are_those_that_the_paper_finds() -> None:
    found = {t.name: decay(t) for t in L1T.triggers}
    published = {"jet": 0.00219, "muon": 0.0417, "e/gamma": 0.0253, "tau": 0.0158}
    assert found == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_first_level_trigger_rejects_what_the_paper_says(seed: int) -> None:
    found = sort_out(score_model(L1T, seed), (40e6 - RELEVANT, RELEVANT), 53.3)
    assert found.matrix[0, 0] == pytest.approx(0.9813, abs=2e-4)
    assert found.matrix[0, 1] == pytest.approx(0.51, abs=0.03)
    tracked = sort_out(score_model(L1T, seed), (40e6 - RELEVANT, RELEVANT), 53.3, 0.4)
    assert tracked.rejected[1] == pytest.approx(0.013, abs=0.003)


def test_the_high_level_trigger_rejects_what_the_paper_says() -> None:
    found = sort_out(score_model(HLT, 0), (747_859, 3_494), 100)
    assert 0.795 <= found.passed[1] <= 0.815
    assert 0.0060 <= found.passed[0] <= 0.0065


@pytest.mark.parametrize("reduction", [1, 1.5, 10, 500])
def test_one_event_in_so_many_passes_and_columns_sum_to_one(reduction: float) -> None:
    generator = np.random.default_rng(0)
    tied = EmpiricalScores(generator.integers(0, 5, 1000), generator.integers(1, 7, 300))
    models = [score_model(GaussianScores(kind="gaussian", skill=2, deviation=0.5)), score_model(HLT, 0), tied]
    for model in models:
        for boost in (0.0, 0.4):
            found = sort_out(model, (95.0, 5.0), reduction, boost)
            assert 95 * found.passed[0] + 5 * found.passed[1] == pytest.approx(100 / reduction, rel=1e-9)
            assert found.matrix.sum(0) == pytest.approx([1, 1], abs=1e-12)
            assert (found.matrix >= 0).all()


def test_without_skill_both_kinds_pass_alike() -> None:
    found = sort_out(score_model(GaussianScores(kind="gaussian", skill=0)), (90.0, 10.0), 8)
    assert found.passed == pytest.approx([1 / 8, 1 / 8], rel=1e-12)
    same = np.random.default_rng(0).normal(size=500)
    assert sort_out(EmpiricalScores(same, same), (90.0, 10.0), 8).passed == pytest.approx([1 / 8, 1 / 8])


def test_of_events_that_score_alike_a_share_passes() -> None:
    found = sort_out(EmpiricalScores([0, 0, 0, 0], [0, 1]), (4.0, 2.0), 3)  # two of six pass, one of them by its score
    assert found.threshold == 0
    assert found.passed == pytest.approx([0.2, 0.6])


def test_more_skill_rejects_fewer_relevant_events() -> None:
    shares = [
        sort_out(score_model(GaussianScores(kind="gaussian", skill=s)), (90.0, 10.0), 10).passed[1] for s in range(5)
    ]
    assert shares == sorted(shares)
    assert shares[4] > 0.9


def test_impossible_questions_are_told() -> None:
    model = EmpiricalScores([0], [1])
    for args, told in ((((1, 1), 0.5), "from 1"), (((0, 0), 2), "without events"), (((1, 1), float("nan")), "from 1")):
        with pytest.raises(HastenError, match=told):
            sort_out(model, *args)
    for irrelevant, relevant in (([], [1]), ([0], [float("nan")])):
        with pytest.raises(HastenError, match="finite numbers"):
            EmpiricalScores(irrelevant, relevant)

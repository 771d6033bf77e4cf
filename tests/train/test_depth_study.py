"""Networks of a study train alike and are told apart by their determination."""

from __future__ import annotations

import pytest

from hasten.train.depth_study import DeepAndShallow, StudyRun, StudySize, determination_bin, study_run


def test_a_ratio_falls_in_a_bin_of_the_paper() -> None:
    found = [determination_bin(v) for v in (0.0, 0.99, 1.0, 2.99, 3.0, 9.99, 10.0)]
    assert found == ["0 to 1", "0 to 1", "1 to 3", "1 to 3", "3 to 10", "3 to 10", "from 10"]
    sizes = (StudySize(4, 4), StudySize(8, 8), StudySize(16, 8))
    assert [determination_bin(s.determination) for s in sizes] == ["3 to 10", "1 to 3", "0 to 1"]


def test_training_lowers_the_loss_and_a_shallow_network_is_its_own_conversion() -> None:
    size = StudySize(2, 2)
    before, after = study_run(size, 1, 0, 0), study_run(size, 1, 40, 0)
    assert after.training < before.training
    assert after.accuracy == after.converted
    assert study_run(size, 1, 40, 0) == after
    deep = study_run(size, None, 40, 0)
    assert deep.gap > 0
    mean = DeepAndShallow.mean([DeepAndShallow(deep, after), DeepAndShallow(after, after)])
    assert mean.shallow == pytest.approx(after)
    assert mean.deep.training == pytest.approx((deep.training + after.training) / 2)
    assert StudyRun.mean([after]) == pytest.approx(after)

"""Allocation as a problem: the best under a cost limit is the envelope's, whoever searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten import spaces
from hasten.cost.serving.recorded_trials import Answer, Record, RecordedQuestion, points, write_records
from hasten.cost.serving.scaling import QWEN3, best_within
from hasten.errors import HastenError
from hasten.search import Study
from hasten.spaces.test_time import problem
from hasten.workload.decoder import DecoderSizes


def record(decoder: DecoderSizes, method: str, budget: int, right: int, prompt: int = 100) -> Record:
    """Eight answers to two questions, the first ``right`` of them right."""
    answers = tuple(Answer(500 + 400 * i, i < right) for i in range(8))
    return Record(decoder, method, budget, (RecordedQuestion(prompt, answers), RecordedQuestion(prompt, answers[::-1])))


RECORDS = [
    record(QWEN3[0], "dense", 0, 2), record(QWEN3[4], "dense", 0, 5),
    record(QWEN3[0], "block top-k", 512, 1), record(QWEN3[4], "block top-k", 512, 4),
]  # fmt: skip


def test_it_is_known_by_name() -> None:
    assert "test-time" in spaces.names()
    assert "budget" in spaces.describe("test-time")


@pytest.mark.parametrize("limit", [10.0, 100.0, 1000.0, 1e9])
def test_the_best_under_a_limit_is_the_envelope_s(limit: float) -> None:
    found = Study().run(problem(RECORDS, limit=limit), sampler="exhaustive", trials=None)
    feasible = [t for t in found.trials if t.feasible]
    caps = sorted({a.tokens for r in RECORDS for q in r.questions for a in q.answers})
    expected = best_within(points(RECORDS, caps), limit * 1e12)
    if expected is None:
        assert not feasible
        return
    best = max(feasible, key=lambda t: (t.values["accuracy"], -t.values["cost"]))
    assert best.values["accuracy"] == pytest.approx(expected.accuracy)
    assert best.values["cost"] == pytest.approx(expected.cost / 1e12)
    assert best.params["model"] == expected.settings["model"]


def test_a_file_a_device_and_what_is_said(tmp_path: Path) -> None:
    """A long shared prompt with short answers: the problem says that dense attention is the cheaper one."""
    both = (("dense", 0), ("top-k", 2048))
    write_records(tmp_path / "trials.jsonl", [record(QWEN3[4], m, b, 4, 60_000) for m, b in both])
    small, large = (problem(tmp_path / "trials.jsonl", device=d) for d in ("v100", "h100"))
    point = {"model": "Qwen3-14B", "attention": "top-k 2048", "trials": 1, "tokens": 500}
    assert small.evaluate(point)["cost"] < large.evaluate(point)["cost"], "memory is dearer on an H100"
    assert not small.evaluate(point)["dense_is_cheaper"]
    short = [Record(QWEN3[4], m, b, (RecordedQuestion(60_000, (Answer(50, True),) * 64),)) for m, b in both]
    many = problem(short).evaluate({**point, "trials": 64, "tokens": 50})
    assert many["dense_is_cheaper"]


def test_what_was_not_recorded() -> None:
    with pytest.raises(HastenError, match="at least one record"):
        problem([])
    with pytest.raises(HastenError, match="one model and one attention"):
        problem([RECORDS[0], RECORDS[0]])
    with pytest.raises(HastenError, match="cannot read trials"):
        problem("/nowhere.jsonl")

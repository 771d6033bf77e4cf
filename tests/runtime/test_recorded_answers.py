"""Recorded answers: prompts, records and the file that spaces read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.cost.serving.recorded_trials import read_records
from hasten.runtime.recorded_answers import ASKED, PROMPT, answers, policy_of, record, train_follower


@pytest.mark.parametrize(
    ("method", "budget"),
    [("top-k", 16), ("block top-k", 16), ("local", 16), ("block top-k", 64), ("strided blocks", 16), ("random", 32)],
)
def test_a_policy_reads_as_many_keys_as_its_budget(method: str, budget: int) -> None:
    policy = policy_of(method, budget)
    assert policy is not None
    assert policy.budget(1000) == budget
    assert policy_of("dense", 0) is None


def test_what_an_untrained_model_answers() -> None:
    weights = train_follower(32, 2, 0, batch=4)
    dense, local = answers(weights, 32, [("dense", 0), ("local", 16)], 3, 2, 0)
    assert (dense.method, dense.budget, dense.dense_layers) == ("dense", 0, 0)
    assert (local.method, local.budget, local.dense_layers) == ("local", 16, 1)
    assert dense.decoder.parameters == sum(t.numel() for t in weights.values())
    assert len(dense.questions) == 3 * len(ASKED)
    for question in dense.questions:
        assert question.prompt == PROMPT
        assert len(question.answers) == 2
    # Who got 15 steps right got 4 right.
    rights = [sum(a.right for q in dense.questions[i * 3 : i * 3 + 3] for a in q.answers) for i in range(len(ASKED))]
    assert rights == sorted(rights, reverse=True)
    assert answers(weights, 32, [("dense", 0)], 3, 2, 0)[0] == dense, "the same seed gives the same answers"


def test_a_recorded_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # no processes for two steps
    record(tmp_path / "t.jsonl", steps=2, questions=2, trials=1, widths=(32,), methods=[("dense", 0), ("top-k", 16)])
    found = read_records(tmp_path / "t.jsonl")
    assert [(r.decoder.name, r.method, len(r.questions)) for r in found] == [("32", "dense", 2), ("32", "top-k", 2)]

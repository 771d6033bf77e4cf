"""Recorded answers: coverage and cost by hand, caps, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.cost.serving.recorded_trials import (
    Answer,
    Record,
    RecordedQuestion,
    points,
    powers_of_two,
    read_records,
    write_records,
)
from hasten.cost.serving.scaling import QWEN3, block_top_k, cost_of, dense, top_k
from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes

SMALL = DecoderSizes("small", layers=4, heads=4, kv_heads=2, head_dim=16, parameters=1e6)
QUESTIONS = (
    RecordedQuestion(10, (Answer(20, True), Answer(40, False), Answer(30, True), Answer(30, False))),
    RecordedQuestion(50, (Answer(10, False), Answer(60, True), Answer(10, False), Answer(20, False))),
)
RECORD = Record(SMALL, "dense", 0, QUESTIONS)


def test_accuracy_and_cost_by_hand() -> None:
    one = RECORD.spend(1)
    assert one.accuracy == pytest.approx((2 / 4 + 1 / 4) / 2)
    expected = (dense(SMALL, 10, 30).equivalent() + dense(SMALL, 50, 25).equivalent()) / 2
    assert one.cost == pytest.approx(expected)
    assert one.settings["tokens"] == pytest.approx((30 + 25) / 2)
    two = RECORD.spend(2)
    assert two.accuracy == pytest.approx((1 - 1 / 6 + 1 - 3 / 6) / 2)
    assert RECORD.spend(4).accuracy == 1


def test_a_cap_fails_what_is_longer() -> None:
    short = RECORD.spend(1, 25)
    assert short.accuracy == pytest.approx((1 / 4 + 0) / 2)
    assert short.settings["tokens"] == pytest.approx(((20 + 25 * 3) / 4 + (10 + 25 + 10 + 20) / 4) / 2)
    assert short.cost < RECORD.spend(1).cost
    assert RECORD.spend(1, 1000).accuracy == RECORD.spend(1).accuracy


@given(st.integers(1, 4), st.integers(1, 80), st.floats(0, 1e3))
def test_more_of_anything_costs_more_and_fails_no_more(trials: int, cap: int, intensity: float) -> None:
    base = RECORD.spend(trials, cap, intensity)
    longer = RECORD.spend(trials, cap + 1, intensity)
    assert longer.cost >= base.cost
    assert longer.accuracy >= base.accuracy
    if trials < 4:
        more = RECORD.spend(trials + 1, cap, intensity)
        assert more.cost > base.cost
        assert more.accuracy >= base.accuracy - 1e-12


def test_layers_that_stay_dense_are_charged() -> None:
    half = cost_of("block top-k", SMALL, 30, 200, 32, 3, block=8, dense_layers=2)
    whole, none = dense(SMALL, 30, 200, 3), block_top_k(SMALL, 30, 200, 32, 3, block=8)
    assert half.bytes == pytest.approx((whole.bytes + none.bytes) / 2)
    assert half.flops == pytest.approx((whole.flops + none.flops) / 2)
    assert cost_of("block top-k", SMALL, 30, 200, 32, 3, block=8, dense_layers=4) == whole
    # A window searches for nothing; smaller blocks are more to search.
    assert cost_of("local", SMALL, 30, 200, 32, 3) == top_k(SMALL, 30, 200, 32, 3)
    fine, coarse = (cost_of("block top-k", SMALL, 30, 200, 32, 3, block=b).bytes for b in (4, 16))
    assert fine > coarse


def test_every_way_to_spend() -> None:
    found = points([RECORD], (None, 25))
    assert [(p.settings["trials"], p.settings["longest"]) for p in found] == [
        (1, 60), (1, 25), (2, 60), (2, 25), (4, 60), (4, 25),
    ]  # fmt: skip
    assert powers_of_two(1) == [1]
    assert powers_of_two(9) == [1, 2, 4, 8]


def test_written_and_read_again(tmp_path: Path) -> None:
    even = (*QUESTIONS, RecordedQuestion(7, (Answer(9, True), Answer(9, False), Answer(9, True), Answer(9, True))))
    sparse = Record(SMALL, "block top-k", 32, even, 8, 1)
    write_records(tmp_path / "trials.jsonl", [RECORD, sparse])
    assert read_records(tmp_path / "trials.jsonl") == [RECORD, sparse]


def test_traces_as_published(tmp_path: Path) -> None:
    """One line a trial, with texts: query, choice, prediction, score."""
    lines = [
        {"query": "one and one", "choice": "2", "prediction": "it is 2", "score": 1.0},
        {"query": "one and one", "choice": "2", "prediction": "it is 3 or 4", "score": 0.0},
        {"query": "two and two and two", "choice": "6", "prediction": ["6", "so six"], "score": [1, True]},
    ]
    path = tmp_path / "aime.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (record,) = read_records(path, model="Qwen3-8B", count=lambda text: len(text.split()))
    assert record.decoder == QWEN3[3]
    assert record.questions == (
        RecordedQuestion(3, (Answer(3, True), Answer(5, False))),
        RecordedQuestion(5, (Answer(1, True), Answer(2, True))),
    )


def test_sizes_as_earlier_files_have_them(tmp_path: Path) -> None:
    model = {"name": "mine", "parameters": 1e6, "layers": 2, "query_heads": 4, "kv_heads": 2}
    (tmp_path / "old.jsonl").write_text(json.dumps({"model": model, "score": 1, "tokens": 3, "prompt_tokens": 2}))
    (record,) = read_records(tmp_path / "old.jsonl")
    assert record.decoder == DecoderSizes("mine", layers=2, heads=4, kv_heads=2, head_dim=128, parameters=1e6)
    write_records(tmp_path / "new.jsonl", [record])
    assert read_records(tmp_path / "new.jsonl") == [record]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ("[1]", "line 1"),
        ('{"score": 1}', "unknown model None"),
        ('{"model": {"name": "x"}, "score": 1}', "line 1"),
        ('{"model": {"name": "x", "layers": 0, "heads": 2, "hidden": 4}, "score": 1}', "line 1: x has no layers"),
        ('{"model": "Qwen3-8B", "tokens": 4, "prompt_tokens": 2}', "score is missing"),
        ('{"model": "Qwen3-8B", "score": 1, "prompt_tokens": 2}', "tokens is missing"),
        ('{"model": "Qwen3-8B", "score": [1, 0], "tokens": [4], "prompt_tokens": 2}', "2 scores for 1 answers"),
        ('{"model": "Qwen3-8B", "method": "magic", "score": 1, "tokens": 4, "prompt_tokens": 2}', "unknown attention"),
        ("", "holds no trials"),
    ],
)
def test_files_that_are_none(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(line)
    with pytest.raises(HastenError, match=message):
        read_records(path)


def test_what_was_not_recorded() -> None:
    with pytest.raises(HastenError, match="of 4 recorded"):
        RECORD.spend(5)
    with pytest.raises(HastenError, match="at least one question"):
        Record(SMALL, "dense", 0, ())
    with pytest.raises(HastenError, match="cannot read trials"):
        read_records("/nowhere/at/all.jsonl")

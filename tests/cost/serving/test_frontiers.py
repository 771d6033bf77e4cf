"""The law's gain and sparse attention's are two: by hand, where one is nothing, and against their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasten.cost.serving.frontiers import by_the_law, compared, spent
from hasten.cost.serving.recorded_trials import Answer, Record, RecordedQuestion
from hasten.cost.serving.scaling import B200_INTENSITY, QWEN3, envelope
from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes

SMALL, LARGE = replace(QWEN3[0], name="0.6"), replace(QWEN3[4], name="14")
LONG = (16384,)


def questions(*right: int, tokens: int = 16384, trials: int = 16) -> tuple[RecordedQuestion, ...]:
    """Questions with so many right ones of their answers."""
    return tuple(RecordedQuestion(200, tuple(Answer(tokens, i < r) for i in range(trials))) for r in right)


def test_the_law_gains_nothing_with_one_model_and_equal_answers() -> None:
    """There is nothing to choose but the number of trials, which FLOPs and all costs order alike."""
    asked = questions(4, 8, 12)
    law = by_the_law(
        [Record(LARGE, "dense", 0, asked), Record(LARGE, "block top-k", 1024, asked, 16, 1)],
        "block top-k", LONG, B200_INTENSITY,
    )  # fmt: skip
    assert law.gain == 1
    assert 4 < law.sparse < 6, "what block top-k gives is said apart"
    assert law.cases == law.no_larger == 5
    assert law.smaller == 0
    assert not law.larger_models_first


def test_the_law_s_own_gain_is_seen_without_sparse_attention() -> None:
    """A small model needs four times the tokens for the same answers: few FLOPs, and as much cache as a large one."""
    few, many = questions(12, 12), questions(12, 12, tokens=65536)
    records = [
        Record(SMALL, "dense", 0, many), Record(LARGE, "dense", 0, few),
        Record(SMALL, "block top-k", 1024, many), Record(LARGE, "block top-k", 1024, few),
    ]  # fmt: skip
    law = by_the_law(records, "block top-k", (None,), B200_INTENSITY)
    by_flops = envelope(spent(records, "dense", (None,), 0.0))
    in_full = {
        (p.settings["model"], p.settings["trials"]): p.cost for p in spent(records, "dense", (None,), B200_INTENSITY)
    }
    chosen = [p for p in by_flops if p.settings["model"] == "0.6"]
    assert chosen, "FLOPs alone choose the small model somewhere"
    most = max(in_full["0.6", p.settings["trials"]] / in_full["14", p.settings["trials"]] for p in chosen)
    assert law.gain == pytest.approx(most)
    assert law.gain > 5
    assert law.larger_models_first
    # Where memory is free the two ways of choosing are one.
    free = by_the_law(records, "block top-k", (None,), 1e-9)
    assert free.gain == pytest.approx(1)
    assert free.smaller == 0


def test_sizes_are_compared_by_parameters_and_not_by_name() -> None:
    few, many = questions(12), questions(12, tokens=65536)
    renamed = [Record(replace(SMALL, name="9"), "dense", 0, many), Record(replace(LARGE, name="b"), "dense", 0, few)]
    records = [*renamed, Record(replace(LARGE, name="b"), "top-k", 1024, few)]
    assert by_the_law(records, "top-k", (None,), B200_INTENSITY).larger_models_first


def test_beside_dense_at_equal_cost() -> None:
    tiny = DecoderSizes("tiny", layers=2, heads=4, kv_heads=2, head_dim=16, parameters=1e6)
    right, wrong = questions(16, tokens=4000), questions(0, tokens=4000)
    same = [Record(tiny, "dense", 0, right), Record(tiny, "top-k", 64, right), Record(tiny, "local", 64, wrong)]
    found = compared(same, "top-k", (None,), B200_INTENSITY)
    assert (found.least, found.most, found.best, found.own) == (0, 0, 1, 1)
    assert found.ratio < 0.2
    failed = compared(same, "local", (None,), B200_INTENSITY)
    assert (failed.own, failed.ratio) == (0, float("inf"))
    assert failed.least == -1
    # Where a byte costs nothing there is less to save.
    assert compared(same, "top-k", (None,), 0.0).ratio > found.ratio


def test_what_was_not_recorded_is_said() -> None:
    with pytest.raises(HastenError, match="no answers were recorded with local"):
        spent([Record(SMALL, "dense", 0, questions(1))], "local", LONG, 1.0)

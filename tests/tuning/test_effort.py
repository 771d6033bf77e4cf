"""How much is measured in the time there is, what predictions share, and what counts as fast."""

from __future__ import annotations

import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.methods import Context
from hasten.search.study import Study
from hasten.tuning import reference as references
from hasten.tuning.measure import timed
from hasten.tuning.outcome import Combination, Figures, Prediction, seconds_of
from hasten.tuning.predict import choices, composed, predict
from hasten.tuning.prepare import READ, WHOLE, Deadline, Effort, Prepared, prepare, within
from hasten.tuning.settings import Settings, Silent
from hasten.tuning.tune import load, save, tune

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))
SETTINGS = Settings(prompt=64, new_tokens=8, text=TEXT, text_name="birds", floor=0.5, seconds=None, trials=2, runs=1)


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare(folder, SETTINGS)


def test_a_slow_model_is_read_at_fewer_positions_and_asked_nothing(prepared: Prepared) -> None:
    whole = prepared.effort
    fast = within(prepared, 600.0, prefill=0.01, decode=0.01)
    assert fast.effort == whole
    assert fast.notes == prepared.notes
    slow = within(prepared, 30.0, prefill=1.0, decode=1.0)
    assert slow.effort.segments * slow.effort.scored < whole.segments * whole.scored
    assert not slow.effort.questions
    assert "quality is perplexity on" in slow.notes[-1]
    slower = within(prepared, 30.0, prefill=30.0, decode=30.0)
    assert (slower.effort.runs, slower.effort.warmup) == (1, 0)
    assert slower.effort.segments == 1
    assert slower.effort.scored >= 64
    assert slower.effort.judged == 64
    assert within(prepared, None, prefill=30.0, decode=30.0).effort == whole


def test_laying_weights_out_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large packed model it takes seconds, which would stand in the unchanged model's first prompt."""
    ready = prepare(folder, SETTINGS)
    monkeypatch.setattr("hasten.runtime.step.lay_in_tiles", lambda network: pytest.fail("weights are laid out late"))
    assert timed(ready, ready.base, runs=1, warmup=0).tokens


def test_what_an_earlier_run_read_is_read_again(prepared: Prepared) -> None:
    short = Effort(10, 20, 1, questions=False, judged=64)
    assert prepared.effort.of_quality(short.quality).quality == short.quality
    assert prepared.effort.of_quality(WHOLE) == prepared.effort
    again = within(prepared, 30.0, prefill=1.0, decode=1.0, kept=short.quality)
    assert again.effort.reading == short.reading
    assert within(prepared, None, prefill=1.0, decode=1.0, kept=short.quality).effort.quality == short.quality
    assert within(prepared, 30.0, prefill=1.0, decode=1.0, kept=WHOLE).effort.reading == prepared.effort.reading
    assert READ not in prepared.identity
    assert again.identity[READ] == short.quality


def test_a_study_of_short_readings_goes_on_with_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, device = tmp_path / "study.db", load_device("cpu2")
    real = within

    def slow(prepared: Prepared, seconds: float | None, prefill: float, decode: float, kept: str = "") -> Prepared:
        return real(prepared, seconds if kept else 30.0, prefill if kept else 1.0, decode if kept else 1.0, kept)

    monkeypatch.setattr("hasten.tuning.tune.within", slow)
    first = tune(folder, replace(SETTINGS, trials=1), study=study, device=device)
    assert any("the budget is short" in note for note in first.notes)
    told = Study(study).description()
    assert READ in told
    again = tune(folder, SETTINGS, study=study, device=device)
    assert Study(study).description() == told
    assert sum(c.measured is not None for c in again.combinations) == 2


def test_predictions_stop_at_the_deadline_with_each_method_alone(prepared: Prepared) -> None:
    workload, device = prepared.base.workload(64, 8), load_device("cpu2")
    context = Context(prepared.base, prepared.tokens, prepared.ids, tuple(range(8)), 8)
    found = choices(context)
    over = predict(prepared, device, workload, found, deadline=Deadline(time.monotonic() - 1))
    alone = {label for labels in found.options.values() for label, method in labels.items() if method is not None}
    assert set(over.combinations) == alone
    whole = predict(prepared, device, workload, found)
    assert len(whole.combinations) == whole.considered == over.considered
    assert {t: c.predicted for t, c in whole.combinations.items() if t in alone} == {
        t: c.predicted for t, c in over.combinations.items()
    }


def test_methods_are_promising_by_what_each_gives_alone() -> None:
    before = Prediction(prefill=2.0, decode=4.0, memory=8.0)
    half, third = Prediction(prefill=1.0, decode=4.0, memory=8.0), Prediction(prefill=2.0, decode=2.0, memory=4.0)
    assert composed(before, [half, third]) == Prediction(prefill=1.0, decode=2.0, memory=4.0)


def figures(prefill: float, decode: float) -> Figures:
    return Figures(
        prefill=prefill, decode=decode, decode_low=decode, decode_high=decode, prefill_rate=1, decode_rate=1, memory=1,
        perplexity=2.0,
    )  # fmt: skip


def one(title: str, prefill: float, decode: float) -> Combination:
    predicted = Prediction(prefill=prefill, decode=decode, memory=1)
    return Combination(
        title=title, methods=[], predicted=predicted, measured=figures(prefill, decode), within_floor=True
    )


def test_what_counts_as_fast_is_chosen(folder: Path, tmp_path: Path) -> None:
    found = tune(folder, replace(SETTINGS, wanted="first-token", reference="none"), device=load_device("cpu2"))
    assert found.wanted == "first-token"
    assert found.reference is None
    quick, steady, even = one("quick", 1, 9), one("steady", 9, 1), one("even", 3, 3)
    result = found.model_copy(update={"baseline": one("unchanged", 5, 5), "combinations": [quick, steady, even]})
    best = {wanted: c.title for wanted, c in result.best_of_each.items()}
    assert best == {"total": "even", "decode": "steady", "first-token": "quick"}
    assert result.best == quick
    several = result.model_copy(update={"batch": 8, "wanted": "throughput"})
    assert several.best_of_each["throughput"] == several.best == even
    assert several.throughput(figures(1, 3)) == pytest.approx(8 * 8 / 4)
    assert seconds_of(figures(1, 3), "total") == 4
    save(result, tmp_path / "tuned.json")
    assert '"wanted": "first-token"' in (tmp_path / "tuned.json").read_text()
    assert load(tmp_path / "tuned.json").config.num_hidden_layers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wanted": "speed"}, "one of total, decode, first-token, throughput"),
        ({"wanted": "throughput"}, "a batch of 2 or more"),
        ({"reference": "vllm"}, "one of transformers, llama.cpp, none"),
        ({"device": "tpu"}, "cpu or cuda"),
    ],
)
def test_what_nobody_knows_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HastenError, match=says):
        Settings(**changes)


def test_transformers_is_measured_where_the_budget_allows_for_it(prepared: Prepared) -> None:
    assert references.chosen(prepared, 1.0, 1.0, Deadline()) == ("transformers", "")
    assert references.chosen(prepared, 1.0, 1.0, Deadline.after(60.0))[0] == "transformers"
    which, note = references.chosen(prepared, 1.0, 2.0, Deadline.after(20.0))
    assert which == "none"
    assert "about 9 s of the budget" in note
    asked = replace(prepared, settings=replace(SETTINGS, reference="transformers"))
    assert references.chosen(asked, 1.0, 2.0, Deadline.after(1.0)) == ("transformers", "")
    assert references.reference(prepared, "none", Silent(), Deadline()) == (None, "")


def test_llama_cpp_reads_the_models_own_file(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Llama:
        def __init__(self, source: str, **options: Any) -> None:
            if "broken" in source:
                raise ValueError("no such architecture")
            self.options = options

        def reset(self) -> None:
            calls.clear()

        def eval(self, ids: list[int]) -> None:
            time.sleep(1e-4)
            calls.append(len(ids))

        def sample(self, temp: float) -> int:
            return 1

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HastenError, match=r"llama\.cpp is not installed"):
        references.check_reference(replace(SETTINGS, reference="llama.cpp"))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=Llama, __spec__=object()))
    with pytest.raises(HastenError, match="one sequence"):
        references.check_reference(replace(SETTINGS, reference="llama.cpp", batch=2))
    with pytest.raises(HastenError, match="reads GGUF files"):
        references.reference(prepared, "llama.cpp", Silent(), Deadline())
    for name in ("model.gguf", "broken.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    of_file = replace(prepared, loaded=replace(prepared.loaded, source=str(tmp_path / "model.gguf")))
    found, name = references.reference(of_file, "llama.cpp", Silent(), Deadline())
    assert found is not None
    assert name == "llama.cpp on the same file"
    assert calls == [64, *[1] * 8]
    assert found.decode_rate == pytest.approx(8 / found.decode)
    broken = replace(prepared, loaded=replace(prepared.loaded, source=str(tmp_path / "broken.gguf")))
    with pytest.raises(HastenError, match=r"cannot read .*no such architecture"):
        references.reference(broken, "llama.cpp", Silent(), Deadline())

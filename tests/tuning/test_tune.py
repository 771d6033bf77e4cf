"""Tuning a tiny model from a folder, for real: every step that the big one takes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.hardware import Device, load_device
from hasten.methods import CacheFormat, Method, SlidingWindow, WeightOnly, apply_all, from_dict
from hasten.methods.method import _REGISTRY
from hasten.models import load_network
from hasten.runtime import LanguageModel
from hasten.runtime.quality import Perplexity
from hasten.tuning import measure
from hasten.tuning import tune as tuning
from hasten.tuning.outcome import Combination, Figures, Prediction, TuneResult
from hasten.tuning.prepare import reading_of
from hasten.tuning.tune import Settings, Silent, corrected, load, save, tune

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))
SETTINGS = Settings(prompt=64, new_tokens=8, text=TEXT, text_name="birds", floor=0.5, seconds=None, trials=4, runs=1)


@pytest.fixture(scope="module", autouse=True)
def _methods_of_hasten_alone() -> Iterator[None]:
    """Other tests define methods of their own, and `tune` tries whatever is defined."""
    known = dict(_REGISTRY)
    for name, kind in known.items():
        if not kind.__module__.startswith("hasten."):
            del _REGISTRY[name]
    yield
    _REGISTRY.update(known)


@pytest.fixture(scope="module")
def device() -> Device:
    return load_device("cpu2")


class Listener(Silent):
    def __init__(self, interrupt_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.interrupt_after = interrupt_after

    def measured(self, combination: Combination) -> None:
        self.seen.append(combination.title)
        # The baseline comes first.
        if self.interrupt_after is not None and len(self.seen) == 1 + self.interrupt_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def result(folder: Path, device: Device) -> TuneResult:
    return tune(folder, SETTINGS, device=device, command=["hasten", "tune", "a folder"])


def test_every_combination_is_predicted_and_the_best_measured(result: TuneResult) -> None:
    kinds = [{d["method"] for d in c.methods} for c in result.combinations]
    assert all(len(k) == len(c.methods) for k, c in zip(kinds, result.combinations, strict=True))
    assert all(c.predicted.prefill > 0 and c.predicted.decode > 0 for c in result.combinations)
    # 7 weight formats, 2 caches, a layer to drop, drafts: each or none, less the unchanged model.
    assert len(result.combinations) == 8 * 3 * 2 * 2 - 1
    seen = [c for c in result.combinations if c.measured]
    assert len(seen) == 4
    assert sum(len(c.methods) == 1 for c in seen) >= 2
    assert result.stopped == "trials"
    assert "window 256+4" in result.skipped
    assert result.command == "hasten tune 'a folder'"


def test_methods_that_are_not_tried_say_why(result: TuneResult) -> None:
    for name in ("sparse-window", "lambda-window", "sparse-low-bit"):
        assert result.skipped[name]


def test_a_method_of_the_user_is_tried_but_not_with_what_it_conflicts_with(folder: Path, device: Device) -> None:
    @dataclass(frozen=True)
    class Own(Method):
        name: ClassVar[str] = "own"
        kind: ClassVar[str] = "own kind"
        conflicts: ClassVar[tuple[str, ...]] = ("cache-format", "drop-layers", "prompt-lookup")

        title = "own"

        def why_not(self, model: Any) -> str | None:
            return None

        def apply(self, model: Any) -> Any:
            return CacheFormat("bf16").apply(model)

        def rewrite(self, workload: Any) -> Any:
            return CacheFormat("bf16").rewrite(workload)

        @classmethod
        def variants(cls, model: Any) -> Sequence[Own]:
            return [cls()]

    try:
        found = tune(folder, Settings(**{**vars(SETTINGS), "trials": 1}), device=device)
    finally:
        del _REGISTRY["own"]
    mine = [{m["method"] for m in c.methods} for c in found.combinations if "own" in c.title]
    # Alone, and with each of 7 weight formats.
    assert len(mine) == 8
    assert all(kinds <= {"own", "weight-only"} for kinds in mine)


def test_figures_are_of_real_runs(result: TuneResult) -> None:
    before = result.baseline.measured
    assert before is not None
    assert before.agreement == 1
    assert before.perplexity is not None
    for figures in (result.reference, before, *(c.measured for c in result.combinations if c.measured)):
        assert figures.prefill_rate == pytest.approx(64 / figures.prefill)
        assert figures.decode_rate == pytest.approx(8 / figures.decode)
        assert figures.decode_low <= figures.decode <= figures.decode_high
        assert figures.memory > 0
    for one in result.combinations:
        if one.measured:
            assert one.measured.perplexity is not None
            assert one.within_floor is (one.measured.perplexity <= 1.5 * before.perplexity)


def test_pareto_points_are_those_that_nothing_measured_beats(result: TuneResult) -> None:
    everything = [c for c in (result.baseline, *result.combinations) if c.measured]
    points = {c.title: (c.measured.latency, c.measured.perplexity, c.measured.memory) for c in everything if c.measured}
    for one in everything:
        mine = points[one.title]
        beaten = any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine  # type: ignore[operator]
            for other in points.values()
        )
        assert one.pareto is not beaten
    assert not any(c.pareto for c in result.combinations if not c.measured)


def test_a_result_is_plain_data(result: TuneResult) -> None:
    assert TuneResult.model_validate_json(result.model_dump_json()) == result
    assert result.kernels["unchanged"]
    assert {k.phase for k in result.kernels["unchanged"]} == {"prefill", "decode"}


def test_what_is_saved_is_what_is_loaded(result: TuneResult, folder: Path, tmp_path: Path) -> None:
    fast = max(result.combinations, key=lambda c: len(c.methods) if c.measured else 0)
    chosen = result.model_copy(update={"combinations": [fast.model_copy(update={"within_floor": True})]})
    assert chosen.combinations[0].measured is not None
    quick = chosen.combinations[0].measured.model_copy(update={"prefill": 0.0, "decode": 1e-9})
    chosen.combinations[0].measured = quick
    save(chosen, tmp_path / "tuned.json")
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.json"]
    model = load(tmp_path / "tuned.json")
    assert isinstance(model, LanguageModel)
    twin = apply_all(LanguageModel(load_network(folder).network), [from_dict(d) for d in fast.methods])
    ids = model.tokenizer("The river", return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert made.shape == (1, ids.shape[1] + 12)
    assert torch.equal(made, twin.generate(ids, max_new_tokens=12, do_sample=False))


def test_a_floor_that_nothing_keeps_leaves_no_file(result: TuneResult, tmp_path: Path) -> None:
    strict = result.model_copy(
        update={"combinations": [c.model_copy(update={"within_floor": False}) for c in result.combinations]}
    )
    assert not strict.met
    with pytest.raises(HastenError, match="loosen"):
        save(strict, tmp_path / "tuned.json")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_what_was_measured_and_the_same_call_goes_on(folder: Path, device: Device, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    stopped = tune(folder, SETTINGS, study=study, device=device, reporter=(first := Listener(interrupt_after=2)))
    assert stopped.stopped == "interrupted"
    kept = {c.title: c.measured for c in stopped.combinations if c.measured}
    assert set(kept) == set(first.seen[1:])
    assert len(kept) == 2
    after = tune(folder, SETTINGS, study=study, device=device, reporter=(second := Listener()))
    assert len(second.seen) == 1 + 2
    assert any("2 of the measurements are of an earlier run" in note for note in after.notes)
    assert not any("earlier" in note for note in stopped.notes)
    assert after.stopped == "trials"
    measured = {c.title: c.measured for c in after.combinations if c.measured}
    assert len(measured) == 4
    assert {t: measured[t] for t in kept} == kept
    third = Listener()
    tune(folder, SETTINGS, study=study, device=device, reporter=third)
    assert third.seen == ["unchanged"]
    with pytest.raises(HastenError, match="another problem"):
        tune(folder, Settings(**{**vars(SETTINGS), "prompt": 48}), study=study, device=device)


def test_a_combination_that_breaks_fails_alone(
    folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = measure.perplexity

    def fragile(model: LanguageModel, *args: Any, **kwargs: Any) -> Perplexity:
        if model.cache.dtype == "int4":
            return Perplexity(math.inf, math.inf, 1)
        if model.cache.dtype == "int8":
            raise HastenError("the cache is full: shorten the prompt")
        return real(model, *args, **kwargs)

    monkeypatch.setattr(measure, "perplexity", fragile)
    settings = Settings(**{**vars(SETTINGS), "trials": 26, "runs": 1})
    found = tune(folder, settings, device=device)
    failed = {c.title: c.failure for c in found.combinations if c.failure}
    # Alone, once each; nothing that they are part of is tried.
    assert failed == {
        "int4 cache": "its output is not finite",
        "int8 cache": "the cache is full: shorten the prompt",
    }
    assert sum(c.measured is not None for c in found.combinations) == 24
    before = found.baseline.measured
    alone = [c for c in found.combinations if len(c.methods) == 1 and c.methods[0]["method"] == "weight-only"]
    assert len(alone) == 7
    assert all(c.measured and before and c.measured.memory < before.memory for c in alone)
    assert TuneResult.model_validate_json(found.model_dump_json()) == found


def described(**changes: Any) -> dict[str, Any]:
    figures = Figures(
        prefill=1, decode=1, decode_low=1, decode_high=1, prefill_rate=1, decode_rate=1, memory=1, perplexity=2
    )
    return {
        "format": "hasten-tuned", "version": 1, "hasten": "0.1.0", "source": "nowhere", "fingerprint": "f",
        "methods": [], "prompt": 1, "new_tokens": 1, "batch": 1, "measured": figures.model_dump(), **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a tuned model"),
        ("\x00\xff", "not a tuned model"),
        ("[1, 2]", "not a tuned model"),
        (json.dumps({"model": "gpt"}), "not a tuned model"),
        (json.dumps(described())[:-20], "not a tuned model"),
        (json.dumps(described(code="import os")), "code"),
        (json.dumps(described(format="other")), "tune again"),
        (json.dumps(described(version=2)), "tune again"),
        (json.dumps(described(methods=[{"method": "os.system"}])), "unknown method"),
        (json.dumps(described(methods=[{"method": ["weight-only"]}])), "unknown method"),
        (json.dumps(described(methods=[{"method": "weight-only", "bits": "4"}])), "bits is of type int"),
        (json.dumps(described(methods=[{"method": "weight-only", "bits": 5}])), "bits"),
        (json.dumps(described(methods=[{"method": "drop-layers", "layers": ["a"]}])), "numbers of the layers"),
        (json.dumps(described(methods=[{"method": "drop-layers", "layers": [0, 0]}])), "names a layer twice"),
        (json.dumps(described(methods=[{"method": "drop-layers", "layers": [True]}])), "numbers of the layers"),
        (json.dumps(described(methods=[{"method": "drop-layers", "layers": [10**12]}])), "layers is 1000000000000"),
        (json.dumps(described(methods=[{"method": "sliding-window", "window": 10**12}])), "window is 1000000000000"),
        (json.dumps(described(methods=[{"method": "sliding-window", "sinks": 2**31}])), "sinks is 2147483648"),
        (json.dumps(described(methods=[{"method": "prompt-lookup", "accepted": float("inf")}])), "accepted is inf"),
        (json.dumps(described(source="a" * 5000)), "too long"),
        (json.dumps(described())[:-1] + ', "x": ' + "[" * 10_000, "not a tuned model"),
        (json.dumps(described(methods=[{"method": "prompt-lookup", "draft": 2.5}])), "draft is of type int"),
        (json.dumps(described(methods=[{"method": "prompt-lookup", "accepted": -1}])), "drafted tokens"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_in_a_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(content, "latin-1")
    with pytest.raises(HastenError, match=says) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_another_model_is_not_taken_for_the_tuned_one(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    with pytest.raises(HastenError, match="cannot read"):
        load(path)
    path.write_text(json.dumps(described(source=str(folder))))
    with pytest.raises(HastenError, match="not the model"):
        load(path)
    path.write_text(json.dumps(described(source=str(tmp_path / "gone.gguf"))))
    with pytest.raises(HastenError):
        load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seconds": float("nan")}, "budget must be positive"),
        ({"seconds": float("inf")}, "budget must be positive"),
        ({"floor": float("nan")}, "quality floor"),
        ({"prompt": 0}, "prompt must be at least 1"),
        ({"new_tokens": 0}, "new-tokens must be at least 1"),
        ({"floor": -0.1}, "floor"),
        ({"seconds": 0}, "budget"),
        ({"trials": 0}, "budget"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HastenError, match=says):
        Settings(**changes)


def test_what_cannot_run_is_refused_before_anything_is_measured(folder: Path, device: Device) -> None:
    with pytest.raises(HastenError, match="the text has 24 tokens"):
        tune(folder, Settings(**{**vars(SETTINGS), "text": "A text that is too short"}), device=device)
    with pytest.raises(HastenError, match="512 positions"):
        tune(folder, Settings(**{**vars(SETTINGS), "prompt": 600}), device=device)


def combination(predicted: tuple[float, float], measured: tuple[float, float] | None = None) -> Combination:
    figures = None
    if measured:
        prefill, decode = measured
        figures = Figures(
            prefill=prefill, decode=decode, decode_low=decode, decode_high=decode,
            prefill_rate=1, decode_rate=1, memory=1,
        )  # fmt: skip
    prediction = Prediction(prefill=predicted[0], decode=predicted[1], memory=1)
    return Combination(title="", methods=[], predicted=prediction, measured=figures)


def test_predictions_are_corrected_by_what_was_seen() -> None:
    baseline = combination((1.0, 2.0), (2.0, 2.0))
    both = combination((0.5, 1.0))
    assert corrected(both, [], baseline) == pytest.approx(0.5 * 2 + 1.0)
    as_said = combination((1.0, 1.0), (2.0, 1.0))
    assert corrected(both, [as_said], baseline) == pytest.approx(0.5 * 2 + 1.0)
    slower = combination((1.0, 1.0), (2.0, 1.5))
    assert corrected(both, [as_said, slower], baseline) == pytest.approx(0.5 * 2 + 1.5)
    absurd = combination((1.0, 1.0), (2.0, 1000.0))
    assert corrected(both, [absurd], baseline) == pytest.approx(0.5 * 2 + 2.0)


def test_what_lies_below_the_best_is_measured_too() -> None:
    three = [WeightOnly(bits=8), CacheFormat("int8"), SlidingWindow(16, 4)]
    titles = [" + ".join(m.title for m in three[:n]) for n in (1, 2, 3)]
    methods = {title: three[: n + 1] for n, title in enumerate(titles)}

    def one(n: int, seconds: float | None) -> Combination:
        made = combination((1, 1), seconds and (seconds, seconds))  # type: ignore[arg-type]
        return made.model_copy(update={"methods": [{"n": i} for i in range(n)], "within_floor": True})

    slow, unknown, fast = one(1, 2.0), one(2, None), one(3, 1.0)
    assert measure.rungs(methods, dict(zip(titles, (slow, unknown, fast), strict=True)), 10) == [titles[1]]
    assert measure.rungs(methods, dict(zip(titles, (one(1, None), unknown, fast), strict=True)), 10) == titles[:2]
    assert measure.rungs(methods, dict(zip(titles, (slow, one(2, 0.5), fast), strict=True)), 10) == []
    assert measure.rungs(methods, dict(zip(titles, (one(1, None), unknown, one(3, None)), strict=True)), 10) == []
    everything = dict(zip(titles, (one(1, None), unknown, fast), strict=True))
    assert measure.rungs(methods, everything, unchanged=2) == [], "the unchanged model is as fast: nothing to explain"
    broken = unknown.model_copy(update={"failure": "no room"})
    assert measure.rungs(methods, dict(zip(titles, (slow, broken, fast), strict=True)), 10) == []


def test_rungs_lead_from_the_unchanged_model_to_the_best(result: TuneResult) -> None:
    best = result.best
    assert best is not None
    longest = max((c for c in result.combinations if c.measured), key=lambda c: len(c.methods))
    quick = longest.model_copy(update={"within_floor": True, "measured": combination((1, 1), (1e-9, 1e-9)).measured})
    others = [c for c in result.combinations if c != longest]
    rungs = result.model_copy(update={"combinations": [quick, *others]}).rungs
    assert rungs[0] == result.baseline
    assert rungs[-1] == quick
    assert all(r.methods == quick.methods[: len(r.methods)] and r.measured for r in rungs)
    assert [len(r.methods) for r in rungs] == sorted({len(r.methods) for r in rungs})


@given(prompt=st.integers(1, 100_000), positions=st.integers(2, 200_000))
def test_quality_is_read_within_the_positions(prompt: int, positions: int) -> None:
    reading = reading_of(prompt, positions)
    assert reading["context"] + reading["scored"] <= positions
    assert min(reading.values()) >= 1
    assert reading["segments"] * reading["scored"] <= 1536


def test_a_probe_that_does_not_fit_is_made_again(folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def kept(refresh: bool = False, **others: Any) -> Device:
        asked.append(refresh)
        return device

    again: list[Device] = []
    monkeypatch.setattr(tuning, "probe", kept)
    monkeypatch.setattr(tuning, "remember", again.append)
    monkeypatch.setattr(tuning, "_FAR", math.inf)
    settings = Settings(**{**vars(SETTINGS), "trials": 1})
    fits = tune(folder, settings)
    assert asked == [False]
    assert not fits.notes
    monkeypatch.setattr(tuning, "_FAR", 1.0)
    busy = tune(folder, settings)
    assert asked == [False, False, True]
    assert any("busy" in note for note in busy.notes)
    assert not again  # the second fits as well as the first
    fits_worse = iter([2.0, 2.0, 3.0, 3.0])
    monkeypatch.setattr(tuning, "_misfit", lambda baseline: next(fits_worse))
    tune(folder, settings)
    assert again == [device]


@pytest.mark.parametrize("how", ["together", "apart", "told"])
def test_a_tuned_model_finds_its_model_where_it_is_now(
    how: str, folder: Path, result: TuneResult, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    shutil.copytree(folder, old / "models" / "tiny")
    (old / "out").mkdir()
    one = next(c for c in result.combinations if c.measured)
    chosen = {"combinations": [one.model_copy(update={"within_floor": True})]}
    source = str((old / "models" / "tiny").resolve())
    save(result.model_copy(update={**chosen, "source": source}), old / "out" / "tuned.json")
    if how == "together":
        old.rename(new)
        assert load(new / "out" / "tuned.json").name == "tiny"
        return
    (old / "models").rename(new)
    with pytest.raises(HastenError, match=r"is no longer .* say where it is"):
        load(old / "out" / "tuned.json")
    if how == "told":
        assert load(old / "out" / "tuned.json", model=new / "tiny").name == "tiny"
        (new / "tiny" / "config.json").write_text((new / "tiny" / "config.json").read_text() + "\n")
        with pytest.raises(HastenError, match="is not the model that"):
            load(old / "out" / "tuned.json", model=new / "tiny")


def test_an_interrupt_before_the_first_combination_keeps_what_was_measured(
    folder: Path, device: Device, tmp_path: Path
) -> None:
    class Early(Listener):
        def stage(self, text: str) -> None:
            if text == "loading the model":
                assert study.stat().st_size  # from the first second
            if text == "predicting every combination":
                raise KeyboardInterrupt

    study = tmp_path / "study.db"
    listener = Early()
    found = tune(folder, SETTINGS, study=study, device=device, reporter=listener)
    assert listener.seen == ["unchanged"]
    assert (found.stopped, found.combinations) == ("interrupted", [])
    assert found.baseline.measured is not None
    assert found.notes[-1] == "interrupted before any combination was measured"
    again = tune(folder, replace(SETTINGS, trials=1), study=study, device=device)
    assert again.stopped == "trials"

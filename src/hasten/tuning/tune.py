"""Making a model fast on this machine: predict every combination of methods, measure the best ones."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import named_path
from hasten.hardware import Device, probe, remember
from hasten.hardware.gpu_probing import probe_gpu
from hasten.methods import Context
from hasten.models.loading.network import DEFAULT_MODEL
from hasten.runtime.network import names_network
from hasten.search import Study
from hasten.tuning.call_costs import with_call_costs
from hasten.tuning.measure import Measured, Unchanged, measure, timed, unchanged, unchanged_network
from hasten.tuning.network import prepare_network
from hasten.tuning.outcome import Combination, TuneResult
from hasten.tuning.predict import Choices, choices, corrected, estimated, predict, prediction
from hasten.tuning.prepare import READ, WHOLE, Deadline, Prepared, prepare, within
from hasten.tuning.reference import check_reference
from hasten.tuning.result import TunedModel, result, save
from hasten.tuning.result import load as load_language_model
from hasten.tuning.saved_network import is_tuned_network, load_tuned_network
from hasten.tuning.settings import Reporter, Settings, Silent

__all__ = ["Reporter", "Settings", "Silent", "TunedModel", "corrected", "load", "save", "tune"]

# By how many times a prediction may miss the unchanged model before the probe is doubted.
_FAR = 2.0
# Share of the time that is left which a new probe may take, and the seconds that it takes.
_PROBING, _PROBE_SECONDS = 0.25, 20.0
# Share of the time that is left which predictions may take.
_PREDICTING = 0.15


def tune(
    source: str | Path = DEFAULT_MODEL,
    settings: Settings | None = None,
    *,
    study: str | Path | None = None,
    device: Device | None = None,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
) -> TuneResult:
    """Finds how to run a model fast here without losing quality.

    Measures the unchanged model in hasten's loop, beside transformers' own decoding where there is time, predicts
    combinations of methods through the cost model, then measures combinations for real, best predicted first, until
    the budget is used up or Ctrl-C. With ``study`` everything measured is kept, and the same call goes on from it.
    After Ctrl-C the result has what was measured; before the unchanged model was, there is none, and the interrupt is
    raised.

    Any other network than a language model is measured as it is, and judged by how far its answers move, or by the
    user's own function (`Settings.quality`).

    Args:
        source: what `hasten.models.load_network` takes, or a network: ``file.py:build`` (a function that returns a
            module and its inputs: the file is run), a published name or one of timm's.
        settings: the workload, the floor, the budget.
        study: an SQLite file that keeps what was measured.
        device: what predictions are for; this machine, probed, when None.
        reporter: told how it goes.
        command: what the user typed, for the report.

    Raises:
        HastenError: the model cannot be loaded, a text too short, a study of something else, a reference that is not
            there.
    """
    settings, reporter = settings or Settings(), reporter or Silent()
    if names_network(str(source)):
        return _tune_network(source, settings, study, device, reporter, command)
    if settings.quality:
        raise HastenError("--quality goes with a network that is no language model: that is judged by perplexity")
    check_reference(settings)
    kept = ""
    if study is not None:
        Study(study).begin()  # before minutes go into measuring the unchanged model
        if told := Study(study).description():
            kept = told.get(READ, WHOLE)
    started, began = datetime.datetime.now(datetime.UTC), time.perf_counter()
    reporter.stage("loading the model")
    prepared = prepare(source, settings, progress=reporter.stage)
    reporter.stage("probing this machine")
    target = device or _probed(settings, reporter)
    deadline = Deadline.after(settings.seconds)
    reporter.stage("timing the unchanged model")
    first = timed(prepared, prepared.base, runs=1, warmup=0)
    speed = first.speed.phases
    prepared = within(prepared, deadline.left, speed["prefill"].median, speed["decode"].median, kept)
    before = unchanged(prepared, target, reporter, deadline, first)
    notes: list[str] = []
    if device is None and settings.device == "cpu" and _misfit(before.combination) >= _FAR:
        if deadline.left is not None and deadline.left * _PROBING < _PROBE_SECONDS:
            notes.append(
                f"predictions are more than {_FAR:g} times off, and the budget is too short to probe this machine again"
            )
        else:
            target, before, notes = _probed_again(prepared, target, before, reporter)
    found, measured, considered = Choices({}, {}), Measured({}, "interrupted"), 0
    try:
        reporter.stage("listing methods")
        context = Context(
            prepared.base, prepared.tokens, prepared.ids, before.expected, settings.new_tokens, prepared.effort.judged
        )
        found = choices(context)
        reporter.stage("predicting every combination")
        plan = predict(
            prepared, target, before.workload, found, deadline=deadline.part(_PREDICTING), progress=reporter.advance
        )
        considered = plan.considered
        if len(plan.combinations) < considered:
            notes.append(
                f"predicted {len(plan.combinations)} of {considered} combinations, the most promising ones: the "
                "budget has no time for more"
            )
        measured = measure(prepared, before, found, plan, study, reporter, deadline)
    except KeyboardInterrupt:
        notes.append("interrupted before any combination was measured")
    return result(
        prepared, target, before, found, measured,
        started=started, seconds=time.perf_counter() - began, command=command, notes=notes,
        considered=considered,
    )  # fmt: skip


def _tune_network(
    source: str | Path,
    settings: Settings,
    study: str | Path | None,
    device: Device | None,
    reporter: Reporter,
    command: Sequence[str],
) -> TuneResult:
    """`tune`, of a network that is no language model."""
    if study is not None:
        Study(study).begin()
    started, began = datetime.datetime.now(datetime.UTC), time.perf_counter()
    prepared = prepare_network(source, settings, progress=reporter.stage)
    reporter.stage("probing this machine")
    target = device or with_call_costs(_probed(settings, reporter), reporter.stage)
    deadline = Deadline.after(settings.seconds)
    reporter.stage("measuring the unchanged network")
    before = unchanged_network(prepared, target, reporter)
    notes: list[str] = []
    found, measured, considered = Choices({}, {}), Measured({}, "interrupted"), 0
    try:
        reporter.stage("listing methods")
        found = choices(Context(prepared.base, (), None, (), 0, seconds=deadline.left))
        reporter.stage("predicting every combination")
        plan = predict(
            prepared, target, before.workload, found, deadline=deadline.part(_PREDICTING), progress=reporter.advance
        )
        considered = plan.considered
        measured = measure(prepared, before, found, plan, study, reporter, deadline)
    except KeyboardInterrupt:
        notes.append("interrupted before any combination was measured")
    return result(
        prepared, target, before, found, measured,
        started=started, seconds=time.perf_counter() - began, command=command, notes=notes, considered=considered,
    )  # fmt: skip


def load(
    path: str | Path,
    *,
    model: str | Path | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Any:
    """What ``tuned.json`` describes: a `LanguageModel` ready to generate, or any other network as a module to call.

    Args:
        path: the file.
        model: where its model is now, as `tune` takes it. When None, where it was, or where it is if it was moved
            together with the file. It must be the very model all the same. Where it is ``file.py:build``, which is
            code, it must be given: a ``tuned.json`` runs none by itself.
        progress: told what is being loaded.

    Raises:
        HastenError: the file is missing or not a tuned model, or its model is gone or another one.
    """
    place = named_path(path, "the tuned model")
    if place.is_file() and is_tuned_network(place):
        return load_tuned_network(place, model=model, progress=progress)
    return load_language_model(place, model=model, progress=progress)


def _probed(settings: Settings, reporter: Reporter) -> Device:
    """What predictions are for where nobody said: this machine's processor or its GPU."""
    if settings.device == "cuda":
        return probe_gpu()
    return probe(progress=lambda message, share: reporter.advance(share, 1))


def _probed_again(
    prepared: Prepared, device: Device, before: Unchanged, reporter: Reporter
) -> tuple[Device, Unchanged, list[str]]:
    """The device as a new probe finds it, where that fits better, with the unchanged model's prediction for it.

    A probe is kept between runs: one that was made while the machine was busy would spoil them all.
    """
    reporter.stage("probing this machine again: the kept figures do not fit what it does now")
    misfit = _misfit(before.combination)
    fresh = probe(refresh=True, progress=lambda message, share: reporter.advance(share, 1))
    said = prediction(estimated(prepared, fresh, before.workload), before.workload)
    again = replace(before, combination=before.combination.model_copy(update={"predicted": said}))
    if _misfit(again.combination) > misfit:
        remember(device)  # the next run starts from the same predictions
    else:
        device, before = fresh, again
    busy = _misfit(before.combination) >= _FAR
    notes = [f"predictions are more than {_FAR:g} times off: this machine is busy with other work"] if busy else []
    return device, before, notes


def _misfit(baseline: Combination) -> float:
    """How many times longer or shorter than predicted the unchanged model took, in the phase that is further off."""
    assert baseline.measured is not None
    measured, predicted = baseline.measured, baseline.predicted
    ratios = (measured.prefill / predicted.prefill, measured.decode / predicted.decode)
    return max(max(r, 1 / r) for r in ratios)

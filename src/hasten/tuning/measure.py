"""Making a language model fast on this machine: predict every combination of methods, measure the best ones."""

from __future__ import annotations

import copy
import datetime
import hashlib
import itertools
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from hasten import __version__
from hasten.cost import Estimate, estimate
from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.hardware import Device, probe, remember
from hasten.methods import (
    Context,
    Method,
    apply_all,
    clash,
    from_dict,
    ordered,
    registry,
    rewrite_all,
    unwritable,
)
from hasten.models.loading.network import DEFAULT_MODEL, Loaded, load_network
from hasten.runtime import LanguageModel
from hasten.runtime.quality import agreement, needle, perplexity, recall
from hasten.runtime.quality import choice as questions_right
from hasten.search.problem import Infeasible, Objective, Problem, Trial
from hasten.search.space import Params, Space, categorical
from hasten.search.study import Study, check_file
from hasten.tasks.questions import facts
from hasten.tuning.outcome import Combination, Figures, Kernel, Prediction, Roof, TuneResult
from hasten.workload import Workload

_FORMAT = "hasten-tuned"
_NONE = "unchanged"
# By how many times a prediction may miss the unchanged model before the probe is doubted.
_FAR = 2.0
# Predictions within this factor of each other count as equal.
_STEP = 1.25
# How much slower than predicted a combination counts for each of its methods that only ever was in ones that failed.
_DOUBT = 3.0
# Tokens of a prompt below which there is no room to hide anything in.
_LEAST_RECALL = 128


class Reporter(Protocol):
    """Who is told how a run goes."""

    def stage(self, text: str) -> None:
        """A new part of the run begins."""

    def advance(self, done: float, total: float) -> None:
        """So much of the part is done."""

    def measured(self, combination: Combination) -> None:
        """A combination has its figures."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, text: str) -> None: ...

    def advance(self, done: float, total: float) -> None: ...

    def measured(self, combination: Combination) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Args:
        prompt, new_tokens, batch: the workload to make fast.
        text: English text that quality is measured on and prompts are taken from.
        text_name: where the text is from.
        floor: perplexity may be worse than the unchanged model's by this share.
        seconds: budget of measuring; None without.
        trials: combinations to measure at most; None without.
        runs: timed repetitions of each.
    """

    prompt: int = 512
    new_tokens: int = 64
    batch: int = 1
    text: str = ""
    text_name: str = "pydoc_data.topics"
    floor: float = 0.03
    seconds: float | None = 180.0
    trials: int | None = None
    runs: int = 3

    def __post_init__(self) -> None:
        for name in ("prompt", "new_tokens", "batch", "runs"):
            if getattr(self, name) < 1:
                raise HastenError(f"{name.replace('_', '-')} must be at least 1")
        if not 0 <= self.floor < 100:
            raise HastenError("the quality floor is a share such as 0.03, not negative")
        if (self.seconds is not None and self.seconds <= 0) or (self.trials is not None and self.trials < 1):
            raise HastenError("the budget must be positive: give seconds above 0, or at least one trial")


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

    Measures transformers' own fp32 decoding and the unchanged model in hasten's loop, predicts every combination of
    methods through the cost model, then measures combinations for real, best predicted first, until the budget is
    used up or Ctrl-C. With ``study`` everything measured is kept, and the same call goes on from it.

    Args:
        source: what `hasten.models.load_network` takes.
        settings: the workload, the floor, the budget.
        study: an SQLite file that keeps what was measured.
        device: what predictions are for; this machine, probed, when None.
        reporter: told how it goes.
        command: what the user typed, for the report.

    Raises:
        HastenError: the model cannot be loaded, a text too short, a study of something else.
    """
    if study is not None:
        check_file(Path(study))  # before minutes go into measuring the unchanged model
    return Run(source, settings or Settings(), study, device, reporter or Silent(), command).run()


@dataclass
class _Option:
    """A point of the space: one choice for each kind of method."""

    key: str
    method: Method | None


@dataclass
class Run:
    """One tuning, step by step; `tune` goes through all of them."""

    source: str | Path
    settings: Settings
    study: str | Path | None
    device: Device | None
    reporter: Reporter
    command: Sequence[str]
    loaded: Loaded = field(init=False)
    base: LanguageModel = field(init=False)
    ids: torch.Tensor = field(init=False)
    expected: list[int] = field(init=False)
    tokens: list[int] = field(init=False)
    reading: dict[str, int] = field(init=False)
    workload: Workload = field(init=False)
    methods: dict[str, list[Method]] = field(init=False)
    points: dict[str, Params] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def run(self) -> TuneResult:
        """All steps."""
        started, began = datetime.datetime.now(datetime.UTC), time.perf_counter()
        self.prepare()
        self.reporter.stage("probing this machine")
        probed = self.device is None
        if self.device is None:
            self.device = probe(progress=lambda message, share: self.reporter.advance(share, 1))
        reference = self._reference()
        baseline = self.unchanged()
        if probed and _misfit(baseline) >= _FAR:
            # A probe is kept between runs: one that was made while the machine was busy would spoil them all.
            self.reporter.stage("probing this machine again: the kept figures do not fit what it does now")
            before, predicted, misfit = self.device, baseline.predicted, _misfit(baseline)
            self.device = probe(refresh=True, progress=lambda message, share: self.reporter.advance(share, 1))
            baseline.predicted = prediction(self.estimated(self.workload), self.workload)
            if _misfit(baseline) > misfit:
                self.device, baseline.predicted = before, predicted
                remember(before)  # the next run starts from the same predictions
            if _misfit(baseline) >= _FAR:
                self.notes.append(f"predictions are more than {_FAR:g} times off: this machine is busy with other work")
        options, skipped = self.options()
        candidates = self._predict(options, baseline)
        stopped = self._measure(candidates, baseline, options)
        everything = [baseline, *candidates.values()]
        _mark_pareto(everything)
        return self._result(started, time.perf_counter() - began, stopped, reference, baseline, candidates, skipped)

    # -- the model, its reference and its baseline -------------------------------------------------

    def prepare(self) -> None:
        """Loads the model and the text that it is judged by."""
        self.reporter.stage("loading the model")
        self.loaded = load_network(self.source, progress=self.reporter.stage)
        s = self.settings
        self.base = LanguageModel(self.loaded.network, name=self.loaded.name)
        self.base.check_fits(s.prompt + s.new_tokens + 1)
        text = s.text
        if not text:
            from hasten.data.text import default_text

            text = default_text()
        self.tokens = self.loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        self.reading = _reading(s.prompt, int(self.base.config.max_position_embeddings))
        need = s.prompt * s.batch
        least = max(need, self.reading["context"] + self.reading["scored"] + 1)
        if len(self.tokens) < least:
            raise HastenError(
                f"the text has {len(self.tokens)} tokens, prompts and quality need {least}: give a longer text file"
            )
        self.ids = torch.tensor(self.tokens[:need]).reshape(s.batch, s.prompt)
        if self.base.why_not_compiled:
            self.notes.append(f"steps run in plain torch, slower: {self.base.why_not_compiled}")

    def _reference(self) -> Figures:
        """transformers' own generate, fp32, greedy."""
        self.reporter.stage("measuring transformers in fp32")
        s, network = self.settings, self.base.network
        mask = torch.ones_like(self.ids)

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            with torch.inference_mode():
                network.generate(
                    self.ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False
                )
            return time.perf_counter() - begin

        seconds(2)
        first, whole = [], []
        for run in range(2):
            first.append(seconds(1))
            whole.append(seconds(s.new_tokens + 1))
            self.reporter.advance(run + 1, 2)
        prefill = min(first)
        decodes = sorted(w - prefill for w in whole)
        held = self.base.new_cache(s.batch, s.prompt + s.new_tokens + 1).nbytes
        return self._figures(prefill, decodes, float(self.base.weight_bytes + held))

    def _figures(self, prefill: float, decodes: list[float], memory: float) -> Figures:
        s = self.settings
        decode = decodes[len(decodes) // 2] if len(decodes) > 2 else decodes[0]
        return Figures(
            prefill=prefill,
            decode=decode,
            decode_low=min(decodes),
            decode_high=max(decodes),
            prefill_rate=s.batch * s.prompt / prefill,
            decode_rate=s.batch * s.new_tokens / decode,
            memory=memory,
        )

    def unchanged(self) -> Combination:
        """The model without any method: traced, predicted, measured."""
        self.reporter.stage("measuring the unchanged model")
        workload = self.base.workload(self.settings.prompt, self.settings.new_tokens, self.settings.batch)
        self.workload = workload
        self.expected = self.base.generate(
            self.ids, max_new_tokens=self.settings.new_tokens, min_new_tokens=self.settings.new_tokens, do_sample=False
        )[0, self.settings.prompt :].tolist()
        baseline = Combination(title=_NONE, methods=[], predicted=prediction(self.estimated(workload), workload))
        baseline.measured = self._figures_of(self.base)
        baseline.within_floor = True
        self.reporter.measured(baseline)
        return baseline

    def _figures_of(self, model: LanguageModel, limit: float | None = None) -> Figures:
        s = self.settings
        timed = model.measure(s.prompt, s.new_tokens, s.batch, runs=s.runs, ids=self.ids)
        decode = timed.phases["decode"]
        figures = Figures(
            prefill=timed.phases["prefill"].median,
            decode=decode.median,
            decode_low=decode.low,
            decode_high=decode.high,
            prefill_rate=timed.extra["prefill_tokens_per_second"],
            decode_rate=timed.extra["decode_tokens_per_second"],
            memory=timed.peak_memory,
        )
        quality = perplexity(model, self.tokens, **self.reading, progress=lambda share: self.reporter.advance(share, 1))
        figures.perplexity, figures.perplexity_error = quality.value, quality.error
        new = model.generate(self.ids, max_new_tokens=s.new_tokens, min_new_tokens=s.new_tokens, do_sample=False)
        figures.agreement = agreement(new[0, s.prompt :].tolist(), self.expected)
        # What perplexity rules out already is not asked more: its time goes to the next one.
        if s.prompt >= _LEAST_RECALL and (limit is None or quality.value <= limit):
            tokenizer, filler = self.loaded.tokenizer, self.tokens[s.prompt // 2 :]
            length = min(s.prompt, len(filler))
            found = needle(model, tokenizer, filler, length=length, depths=(0.2, 0.5, 0.8))
            figures.needle = sum(found.values()) / len(found)
            figures.recall = recall(model, tokenizer, filler, length=length, pairs=8, asked=4)
            figures.choice = questions_right(model, tokenizer, facts()[:16])
        return figures

    # -- what there is to choose --------------------------------------------------------------------

    def options(self) -> tuple[dict[str, list[_Option]], dict[str, str]]:
        """Kind of method -> choices that apply to this model, and what was left out -> why."""
        self.reporter.stage("listing methods")
        options: dict[str, list[_Option]] = {}
        skipped: dict[str, str] = {}
        model = self.base

        def offer(kind: str, methods: Sequence[Method]) -> None:
            usable = []
            for method in methods:
                reason = model_reason(method)
                if reason:
                    skipped[method.title] = reason
                else:
                    usable.append(_Option(method.title, method))
            if usable:
                options[kind] = [_Option(_NONE, None), *usable]

        context = Context(model, self.tokens, self.ids, self.expected, self.settings.new_tokens)

        def model_reason(method: Method) -> str | None:
            return unwritable(method) or method.why_not_tried(context) or method.why_not(model)

        # Every method that is defined, the user's own too; some settings need this run's text.
        offered: dict[str, list[Method]] = {kind: [] for kind in ("weights", "cache", "window", "depth", "drafts")}
        for known in registry().values():
            found = known.candidates(context)
            if not found and known.untried:
                skipped[known.name] = known.untried
            offered.setdefault(known.kind, []).extend(found)
        for kind, methods in offered.items():
            offer(kind, methods)
        return options, skipped

    def estimated(self, workload: Workload) -> Estimate:
        """What the cost model says of a workload on the device."""
        assert self.device is not None
        compiled = self.base.why_not_compiled is None
        return estimate(
            workload, self.device, schedule={"prefill": "eager", "decode": "fused" if compiled else "eager"}
        )

    def _predict(self, options: dict[str, list[_Option]], baseline: Combination) -> dict[str, Combination]:
        self.reporter.stage("predicting every combination")
        found: dict[str, Combination] = {}
        self.methods, self.points = {}, {}
        every = list(itertools.product(*options.values()))
        rewritten: dict[tuple[Method, ...], Workload] = {(): self.workload}

        def described(methods: tuple[Method, ...]) -> Workload:
            # Combinations share their first methods: each is rewritten once.
            if methods not in rewritten:
                rewritten[methods] = methods[-1].rewrite(described(methods[:-1]))
            return rewritten[methods]

        for done, choice in enumerate(every):
            together = [o.method for o in choice if o.method is not None]
            methods = [] if clash(together) else ordered(together)
            if methods:
                title = " + ".join(m.title for m in methods)
                workload = described(tuple(methods))
                found[title] = Combination(
                    title=title,
                    methods=[m.to_dict() for m in methods],
                    predicted=prediction(self.estimated(workload), workload),
                )
                self.methods[title] = methods
                self.points[title] = {kind: o.key for kind, o in zip(options, choice, strict=True)}
            self.reporter.advance(done + 1, len(every))
        return found

    # -- measuring ----------------------------------------------------------------------------------

    def _measure(
        self, candidates: dict[str, Combination], baseline: Combination, options: dict[str, list[_Option]]
    ) -> str:
        if not candidates:
            return "exhausted"
        self.reporter.stage("measuring the promising ones, best predicted first")
        titles = {_point_key(p): title for title, p in self.points.items()}
        space = Space([categorical(kind, [o.key for o in choices]) for kind, choices in options.items()])
        assert baseline.measured is not None
        assert baseline.measured.perplexity is not None
        limit = baseline.measured.perplexity * (1 + self.settings.floor)

        def evaluate(params: Params) -> Mapping[str, Any]:
            title = titles[_point_key(params)]
            try:
                figures = self.tried(self.methods[title], limit)
            except HastenError as error:
                raise Infeasible(str(error)) from None
            assert figures.perplexity is not None
            if not math.isfinite(figures.perplexity):
                raise Infeasible("its output is not finite")
            return {
                "latency": figures.latency,
                "perplexity": figures.perplexity,
                "memory": figures.memory,
                "quality": figures.perplexity - limit,
                "figures": json.loads(figures.model_dump_json()),
            }

        broken: set[Method] = set()
        suspects: set[Method] = set()
        seen: dict[Method, Combination] = {}
        now: list[str] = []

        def alone(params: Params) -> float | None:
            title = titles.get(_point_key(params))
            if title is None or len(self.methods[title]) > 1:
                return None
            return _gentle_first(candidates[title].predicted, baseline.predicted)

        def together(params: Params) -> float | None:
            title = titles.get(_point_key(params))
            if title is None or broken.intersection(self.methods[title]):
                return None
            doubts = len(suspects.intersection(self.methods[title]))
            known = [seen[m] for m in self.methods[title] if m in seen]
            return corrected(candidates[title], known, baseline) * _DOUBT**doubts

        def told(trial: Trial, done: int, planned: int | None) -> None:
            combination = candidates[titles[_point_key(trial.params)]]
            self._adopt(combination, trial, limit)
            now.append(combination.title)
            self.reporter.measured(combination)

        problem = Problem(
            name="tune",
            space=space,
            objectives=(Objective("latency", unit="s"), Objective("perplexity"), Objective("memory", unit="B")),
            evaluate=evaluate,
            constraints=("quality",),
            identity=self.identity(),
        )
        s = self.settings
        kept = Study(self.study)
        # Each method alone first, in half of the budget: what it gives by itself corrects the predictions of what
        # it is part of, and one that is below the floor by itself need not be tried with others.
        first = sum(len(m) == 1 for m in self.methods.values())
        trials = first if s.trials is None else min(first, s.trials // 2)
        half = None if s.seconds is None else s.seconds / 2
        result = kept.run(problem, trials=trials, seconds=half, order=alone, progress=told)
        self._adopt_all(result.trials, titles, candidates, limit)
        if not result.interrupted:
            for title, methods in self.methods.items():
                if len(methods) == 1 and candidates[title].measured:
                    seen[methods[0]] = candidates[title]
                if len(methods) == 1 and (candidates[title].within_floor is False or candidates[title].failure):
                    broken.add(methods[0])
            while True:
                # One at a time: each that fails tells which methods to leave for the end.
                following = len(result.trials) + 1
                target = following if s.trials is None else min(following, s.trials)
                before = len(result.trials)
                result = kept.run(problem, trials=target, seconds=s.seconds, order=together, progress=told)
                self._adopt_all(result.trials, titles, candidates, limit)
                suspects.update(self._suspects(candidates))
                if result.stopped != "trials" or len(result.trials) == before:
                    break
        stopped = result.stopped
        if stopped != "interrupted":
            # What each method of the best gave is only known once it was measured with one less at a time. These few
            # come after the time is up; a limit on trials holds for them too.
            while missing := self._rungs(candidates, _measured_latency(baseline)):
                before = len(result.trials)
                target = before + len(missing) if s.trials is None else min(before + len(missing), s.trials)

                def rung(params: Params, missing: list[str] = missing) -> float | None:
                    title = titles.get(_point_key(params))
                    return missing.index(title) if title in missing else None

                result = kept.run(problem, trials=target, order=rung, progress=told)
                self._adopt_all(result.trials, titles, candidates, limit)
                if result.stopped == "interrupted" or len(result.trials) == before:
                    break
        if earlier := len(result.trials) - len(now):
            self.notes.append(
                f"{earlier} of the measurements are of an earlier run of this study, the unchanged model's and "
                "transformers' are of this one: a machine busier in one of the two bends their ratios"
            )
        if broken:
            names = ", ".join(sorted(m.title for m in broken))
            self.notes.append(f"below the quality floor by themselves, so tried in no combination: {names}")
        return "interrupted" if result.stopped == "interrupted" else stopped

    def _rungs(self, candidates: dict[str, Combination], unchanged: float) -> list[str]:
        """Titles of what lies between the unchanged model and the best so far, and was not tried; none where that is no
        faster than ``unchanged`` seconds."""
        good = [t for t, c in candidates.items() if c.measured and c.within_floor]
        if not good:
            return []
        title = min(good, key=lambda t: _measured_latency(candidates[t]))
        if _measured_latency(candidates[title]) >= unchanged:
            return []
        best = self.methods[title]
        steps = [" + ".join(m.title for m in best[:n]) for n in range(1, len(best))]
        return [t for t in steps if not candidates[t].measured and not candidates[t].failure]

    def _suspects(self, candidates: dict[str, Combination]) -> set[Method]:
        """Methods of combinations that failed, less those that are part of one that did not."""
        good: set[Method] = set()
        bad: set[Method] = set()
        for title, combination in candidates.items():
            if combination.measured and combination.within_floor:
                good.update(self.methods[title])
            elif combination.failure or combination.within_floor is False:
                bad.update(self.methods[title])
        return bad - good

    def _adopt_all(
        self, trials: Sequence[Trial], titles: dict[str, str], candidates: dict[str, Combination], limit: float
    ) -> None:
        for trial in trials:
            title = titles.get(_point_key(trial.params))
            if title is not None:
                self._adopt(candidates[title], trial, limit)

    def _adopt(self, combination: Combination, trial: Trial, limit: float) -> None:
        if trial.reason:
            combination.failure = trial.reason
            return
        combination.measured = Figures.model_validate(trial.details["figures"])
        assert combination.measured.perplexity is not None
        combination.within_floor = combination.measured.perplexity <= limit

    def tried(self, methods: Sequence[Method], limit: float) -> Figures:
        """Figures of the model with some methods, measured here; beyond ``limit`` of perplexity no more is asked."""
        model = apply_all(LanguageModel(_twin(self.loaded.network), name=self.loaded.name), methods)
        return self._figures_of(model, limit)

    def identity(self) -> dict[str, str]:
        """What a study must be of to be gone on with."""
        s = self.settings
        text = hashlib.sha256(json.dumps(self.tokens[:65536]).encode()).hexdigest()[:16]
        return {
            "model": self.loaded.fingerprint,
            "workload": f"prompt {s.prompt}, new tokens {s.new_tokens}, batch {s.batch}",
            "quality text": text,
            "quality floor": repr(s.floor),
            "threads": str(torch.get_num_threads()),
        }

    # -- the result ---------------------------------------------------------------------------------

    def _result(
        self,
        started: datetime.datetime,
        seconds: float,
        stopped: str,
        reference: Figures,
        baseline: Combination,
        candidates: dict[str, Combination],
        skipped: dict[str, str],
    ) -> TuneResult:
        device, s = self.device, self.settings
        assert device is not None
        result = TuneResult(
            model=self.loaded.name,
            source=self.loaded.source,
            fingerprint=self.loaded.fingerprint,
            prompt=s.prompt,
            new_tokens=s.new_tokens,
            batch=s.batch,
            text=s.text_name,
            floor=s.floor,
            device=device.title,
            identity=dict(device.identity),
            roof=Roof(
                compute={
                    f"{unit.name} {dtype}": float(peak) for unit in device.compute for dtype, peak in unit.peak.items()
                },
                memory={level.name: float(level.bandwidth) for level in device.memory},
            ),
            versions=_versions(),
            command=shlex.join(self.command),
            started=started.isoformat(timespec="seconds"),
            seconds=seconds,
            stopped=stopped,
            reference=reference,
            baseline=baseline,
            combinations=sorted(candidates.values(), key=lambda c: c.predicted.latency),
            skipped=skipped,
            kernels={},
            notes=self.notes,
        )
        result.kernels["unchanged"] = _kernels(self.estimated(self.workload))
        best = result.best
        if best is not None and best.methods:
            methods = [from_dict(m) for m in best.methods]
            result.kernels["best"] = _kernels(self.estimated(rewrite_all(self.workload, methods)))
        if not result.met:
            result.notes.append(
                f"no measured combination keeps perplexity within {s.floor:.1%}: loosen the floor or raise the budget"
            )
        return result


def _misfit(baseline: Combination) -> float:
    """How many times longer or shorter than predicted the unchanged model took, in the phase that is further off."""
    assert baseline.measured is not None
    measured, predicted = baseline.measured, baseline.predicted
    ratios = (measured.prefill / predicted.prefill, measured.decode / predicted.decode)
    return max(max(r, 1 / r) for r in ratios)


def corrected(combination: Combination, alone: Sequence[Combination], baseline: Combination) -> float:
    """Predicted latency in seconds, corrected by what was measured.

    Each phase is scaled as the baseline's measurement is to its prediction, and again by how each method alone came
    out against its own prediction. Single measurements are noisy: no method counts for more than a factor of two.
    """
    if baseline.measured is None:
        return combination.predicted.latency
    total = 0.0
    for phase in ("prefill", "decode"):
        ratio = getattr(baseline.measured, phase) / getattr(baseline.predicted, phase)
        scale = ratio
        for one in alone:
            own = getattr(one.measured, phase) / getattr(one.predicted, phase)
            scale *= min(2.0, max(0.5, own / ratio))
        total += getattr(combination.predicted, phase) * scale
    return total


def _reading(prompt: int, positions: int) -> dict[str, int]:
    """How `perplexity` reads: about 1500 scored tokens at the positions that the workload's prompt has."""
    segments = min(6, max(2, 3072 // prompt))
    scored = min(1536 // segments, positions // 2)
    context = min(max(256, prompt - scored), positions - scored)
    return {"context": context, "scored": scored, "segments": segments}


def _gentle_first(predicted: Prediction, unchanged: Prediction) -> float:
    """Predicted latency in steps as coarse as predictions are; within a step, what keeps more bits of the model first.

    With little time, one that is as fast and likelier to keep the quality is measured before the smallest.
    """
    step = math.floor(math.log(predicted.latency) / math.log(_STEP))
    return step + 0.9 * max(0.0, 1 - predicted.memory / unchanged.memory)


def _measured_latency(combination: Combination) -> float:
    assert combination.measured is not None
    return combination.measured.latency


def _point_key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(sorted(params.items())))


def _twin(network: Any) -> Any:
    """A copy of the modules over the same tensors: methods replace modules, never weights in place."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(t): t for t in tensors})


def prediction(cost: Estimate, workload: Workload) -> Prediction:
    """Seconds of both phases, and bytes of weights and cache."""
    memory = float(workload.weight_bytes + workload.state_bytes)
    return Prediction(prefill=cost.phase("prefill").latency, decode=cost.phase("decode").latency, memory=memory)


def _kernels(cost: Estimate) -> list[Kernel]:
    return [
        Kernel(
            phase=phase.name,
            name=kernel.source or kernel.name,
            module=kernel.module,
            latency=kernel.latency,
            flops=float(kernel.flops),
            bytes=float(list(kernel.bytes.values())[-1] if kernel.bytes else 0.0),
            bound=kernel.bound,
        )
        for phase in cost.phases
        for kernel in phase.einsums
    ]


def _mark_pareto(combinations: Sequence[Combination]) -> None:
    """Marks what no other measured combination beats in latency, perplexity and memory at once."""
    measured = [c for c in combinations if c.measured and c.measured.perplexity is not None]

    def figures(c: Combination) -> tuple[float, float, float]:
        assert c.measured is not None
        assert c.measured.perplexity is not None
        return c.measured.latency, c.measured.perplexity, c.measured.memory

    for c in measured:
        mine = figures(c)
        c.pareto = not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in map(figures, measured)
        )


def _versions() -> dict[str, str]:
    import numpy
    import optuna
    import transformers

    from hasten.kernels import compiled_isa

    return {
        "hasten": __version__,
        "kernels": compiled_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "executable": Path(sys.executable).name,
    }


# -- the tuned model as a file --------------------------------------------------------------------------


class TunedModel(BaseModel):
    """What ``tuned.json`` holds."""

    model_config = ConfigDict(extra="forbid")
    format: str = _FORMAT
    version: int = 1
    hasten: str
    source: str
    fingerprint: str
    methods: list[dict[str, Any]]
    prompt: int
    new_tokens: int
    batch: int
    measured: Figures


def save(result: TuneResult, path: str | Path) -> None:
    """Writes the best combination of a run, aside first, then in place.

    Raises:
        HastenError: nothing measured is within the floor, or the file cannot be written.
    """
    best = result.best
    if not result.met or best is None or best.measured is None:
        raise HastenError("nothing that was measured keeps the quality floor: loosen it or raise the budget")
    tuned = TunedModel(
        hasten=__version__,
        source=result.source,
        fingerprint=result.fingerprint,
        methods=best.methods,
        prompt=result.prompt,
        new_tokens=result.new_tokens,
        batch=result.batch,
        measured=best.measured,
    )
    write_aside(Path(path), tuned.model_dump_json(indent=1) + "\n")


def load(path: str | Path, *, progress: Callable[[str], None] = lambda message: None) -> LanguageModel:
    """The model that ``tuned.json`` describes, ready to generate.

    Raises:
        HastenError: the file is missing or not a tuned model, or its model is gone or another one.
    """
    path = Path(path)
    try:
        tuned = TunedModel.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HastenError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(f"{path} is not a tuned model of hasten ({where}: {first['msg']})") from None
    if tuned.format != _FORMAT or tuned.version != 1:
        raise HastenError(f"{path} is not a tuned model that this hasten reads: tune again")
    methods = [from_dict(m) for m in tuned.methods]
    loaded = load_network(tuned.source, progress=progress)
    if loaded.fingerprint != tuned.fingerprint:
        raise HastenError(f"{tuned.source} is not the model that {path} was tuned for: tune again")
    model = LanguageModel(loaded.network, loaded.tokenizer, name=loaded.name)
    tuned_model = apply_all(model, methods)
    assert isinstance(tuned_model, LanguageModel)
    return tuned_model

"""The third step of tuning: the unchanged model and combinations of methods, run for real."""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hasten.cost import Measurement
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.methods import Method, apply_all
from hasten.runtime import LanguageModel
from hasten.runtime.network import Network
from hasten.runtime.quality import agreement, needle, perplexity, recall
from hasten.runtime.quality import choice as questions_right
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Objective, Problem, Trial
from hasten.search.study import Study
from hasten.tasks.questions import facts
from hasten.tuning.finals import Again, Finalists, timed_again
from hasten.tuning.network import PreparedNetwork, changed_figures, network_figures
from hasten.tuning.outcome import Combination, Figures, Wanted, seconds_of
from hasten.tuning.predict import (
    NONE,
    Choices,
    Predictions,
    corrected,
    estimated,
    gentle_first,
    predicted,
    prediction,
)
from hasten.tuning.prepare import Deadline, Prepared
from hasten.tuning.reference import chosen, reference
from hasten.tuning.settings import Reporter
from hasten.workload import Workload

# How much slower than predicted a combination counts for each of its methods that only ever was in ones that failed.
_DOUBT = 3.0
# Tokens of a prompt below which there is no room to hide anything in.
_LEAST_RECALL = 128
# By how much a measurement may be expected to end after the deadline, and begin all the same.
_OVER = 1.25
# Shares of the budget: by when programs of whole models, methods alone, combinations, and what lies between the
# unchanged model and the best have been tried. The fastest networks are timed again in what is left.
_WHOLE, _ALONE, _TOGETHER, _BETWEEN = 0.8, 0.5, 0.85, 0.92
# Seconds that this takes at most, and the share of the budget that is kept for it; what of this it is told to take.
_AGAIN, _KEPT, _OF_LEFT = 5.0, 0.1, 0.9
# A combination's place by its title, the lowest first; None leaves it out.
_Order = Callable[[str], float | None]


@dataclass(frozen=True)
class Unchanged:
    """The model without any method.

    Args:
        reference: what it is measured beside; None without.
        workload: what it computes.
        expected: the tokens that it makes of the first prompt.
        combination: as predicted and measured.
        reference_name: what it is measured beside, for people.
        quality_seconds: that measuring its quality took.
        notes: what the report should say.
    """

    reference: Figures | None
    workload: Workload
    expected: tuple[int, ...]
    combination: Combination
    reference_name: str = ""
    quality_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def limit(self, floor: float) -> float:
        """The highest perplexity, or other loss, within a quality floor."""
        assert self.combination.measured is not None
        return self.combination.measured.limit(floor)


@dataclass(frozen=True)
class Measured:
    """What became of each combination.

    Args:
        combinations: by title; those that were tried have figures, or why they failed.
        stopped: what ended it: ``trials``, ``seconds``, ``exhausted`` or ``interrupted``.
        notes: what the report should say.
    """

    combinations: Mapping[str, Combination]
    stopped: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timed:
    """A model's timed repetitions.

    Args:
        speed: seconds of both phases, and memory.
        tokens: that it made of the first prompt.
    """

    speed: Measurement
    tokens: tuple[int, ...]


def timed(
    prepared: Prepared,
    model: LanguageModel,
    *,
    runs: int,
    warmup: int = 1,
    deadline: Deadline = Deadline(),  # noqa: B008
) -> Timed:
    """Times a model on the workload.

    Args:
        prepared: the workload.
        model: changed or not.
        runs, warmup: repetitions that count, and those before them.
        deadline: looked at between repetitions.

    Raises:
        TimeIsUp: the deadline has passed.
    """
    s = prepared.settings
    made: list[torch.Tensor] = []
    speed = model.measure(
        s.prompt, s.new_tokens, s.batch, runs=runs, ids=prepared.ids, before_run=deadline.check, warmup=warmup,
        made=made.append,
    )  # fmt: skip
    return Timed(speed, tuple(made[-1][0, s.prompt : s.prompt + s.new_tokens].tolist()))


def unchanged(
    prepared: Prepared,
    device: Device,
    reporter: Reporter,
    deadline: Deadline = Deadline(),  # noqa: B008
    first: Timed | None = None,
) -> Unchanged:
    """The model without any method: traced, predicted, measured, beside what it is compared with.

    Args:
        prepared: the model, and how much is measured.
        device: what predictions are for.
        reporter: told how it goes.
        deadline: of all measuring: what it is compared with is measured where there is time for it.
        first: a repetition that was timed already: the warm-up, or the figure where that is all there is time for.
    """
    reporter.stage("measuring the unchanged model")
    s, effort, base = prepared.settings, prepared.effort, prepared.base
    workload = base.workload(s.prompt, s.new_tokens, s.batch)
    if first is None or effort.warmup:
        first = timed(prepared, base, runs=effort.runs, warmup=effort.warmup if first is None else 0)
    begun = time.monotonic()
    found = Combination(
        title=NONE,
        methods=[],
        predicted=prediction(estimated(prepared, device, workload), workload),
        measured=figures(prepared, base, first.tokens, seen=first, progress=reporter.advance),
        within_floor=True,
    )
    seconds = time.monotonic() - begun
    reporter.measured(found)
    speed = first.speed.phases
    which, note = chosen(prepared, speed["prefill"].median, speed["decode"].median, deadline)
    peer, name = reference(prepared, which, reporter, deadline)
    return Unchanged(peer, workload, first.tokens, found, name, seconds, (note,) if note else ())


def unchanged_network(prepared: PreparedNetwork, device: Device, reporter: Reporter) -> Unchanged:
    """A network without any method: traced, predicted, measured.

    Args:
        prepared: the network, and how much is measured.
        device: what predictions are for.
        reporter: told how it goes.
    """
    workload = prepared.base.workload()
    begun = time.monotonic()
    seen = network_figures(prepared, prepared.base, progress=reporter.advance)
    seconds = 0.0
    if prepared.score is not None:  # else what judging takes is known from the time of a call
        seconds = max(0.0, time.monotonic() - begun - prepared.effort.seconds_of(seen.forward))
    found = Combination(
        title=NONE,
        methods=[],
        predicted=predicted(prepared, device, (), workload),
        measured=seen,
        within_floor=True,
    )
    reporter.measured(found)
    return Unchanged(None, workload, (), found, "", seconds)


def figures(
    prepared: Prepared,
    model: LanguageModel,
    expected: Sequence[int],
    *,
    runs: int | None = None,
    seen: Timed | None = None,
    limit: float | None = None,
    deadline: Deadline = Deadline(),  # noqa: B008
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Figures:
    """Speed, memory and quality of a model, measured here.

    Args:
        prepared: the workload and the text.
        model: changed or not.
        expected: the unchanged model's tokens for the first prompt.
        runs: timed repetitions; as many as the effort says when None.
        seen: the timed repetitions, where they were made already.
        limit: perplexity beyond which no more is asked; None for none.
        deadline: looked at between repetitions and between questions.
        progress: told how much is done.

    Raises:
        TimeIsUp: the deadline has passed.
    """
    s, tokens, effort = prepared.settings, prepared.tokens, prepared.effort

    def advance(share: float) -> None:
        deadline.check()
        progress(share, 1)

    if seen is None:
        seen = timed(prepared, model, runs=runs or effort.runs, warmup=effort.warmup, deadline=deadline)
    speed, decode = seen.speed, seen.speed.phases["decode"]
    quality = perplexity(model, tokens, **effort.reading, progress=advance)
    asked: dict[str, float] = {}
    # What perplexity rules out already is not asked more: its time goes to the next one.
    if effort.questions and s.prompt >= _LEAST_RECALL and (limit is None or quality.value <= limit):
        tokenizer, filler = prepared.loaded.tokenizer, tokens[s.prompt // 2 :]
        length = min(s.prompt, len(filler))

        def check(share: float) -> None:
            deadline.check()

        found = needle(model, tokenizer, filler, length=length, depths=(0.2, 0.5, 0.8), progress=check)
        asked["needle"] = sum(found.values()) / len(found)
        asked["recall"] = recall(model, tokenizer, filler, length=length, pairs=8, asked=4, progress=check)
        asked["choice"] = questions_right(model, tokenizer, facts()[:16], progress=check)
    return Figures(
        prefill=speed.phases["prefill"].median,
        decode=decode.median,
        decode_low=decode.low,
        decode_high=decode.high,
        prefill_rate=speed.extra["prefill_tokens_per_second"],
        decode_rate=speed.extra["decode_tokens_per_second"],
        memory=speed.peak_memory,
        perplexity=quality.value,
        perplexity_error=quality.error,
        agreement=agreement(seen.tokens, expected),
        **asked,
    )


def tried(
    prepared: Prepared | PreparedNetwork,
    methods: Sequence[Method],
    before: Unchanged,
    *,
    deadline: Deadline = Deadline(),  # noqa: B008
    progress: Callable[[float, float], None] = lambda done, total: None,
    made: Callable[[Network], None] = lambda network: None,
) -> Figures:
    """Figures of the model with some methods.

    Args:
        prepared: what is measured.
        methods: that it gets.
        before: the unchanged model.
        deadline: looked at between the parts.
        progress: told how much is done.
        made: told the changed network, before it is measured; not of a language model.

    Raises:
        Infeasible: they do not apply together, or its output is not a number.
        TimeIsUp: the deadline has passed.
    """
    s = prepared.settings
    if isinstance(prepared, PreparedNetwork):
        return changed_figures(prepared, methods, deadline=deadline, progress=progress, made=made)
    try:
        model = apply_all(
            LanguageModel(_twin(prepared.base.network), cache=prepared.base.cache, name=prepared.base.name), methods
        )
        found = figures(
            prepared, model, before.expected, limit=before.limit(s.floor), deadline=deadline, progress=progress,
        )  # fmt: skip
    except HastenError as error:
        raise Infeasible(str(error)) from None
    assert found.perplexity is not None
    if not math.isfinite(found.perplexity):
        raise Infeasible("its output is not finite")
    return found


def _twin(network: Any) -> Any:
    """A copy of the modules over the same tensors: methods replace modules, never weights in place."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(t): t for t in tensors})


def values(found: Figures, limit: float) -> dict[str, float]:
    """Objectives and the constraint of a study, out of figures."""
    assert found.loss is not None
    return {
        "latency": found.latency,
        "loss" if found.perplexity is None else "perplexity": found.loss,
        "memory": found.memory,
        "quality": found.loss - limit,
    }


UNITS: Mapping[str, str] = {
    f"figures.{name}": unit
    for unit, names in {
        "s": ("prefill", "decode", "decode_low", "decode_high", "forward", "forward_low", "forward_high"),
        "token/s": ("prefill_rate", "decode_rate"),
        "B": ("memory",),
    }.items()
    for name in names
}
"""Of what else is kept of a combination."""


def objectives(loss: str = "perplexity") -> tuple[Objective, ...]:
    """What a study of combinations minimizes; ``loss`` names what quality is judged by."""
    return Objective("latency", unit="s"), Objective(loss), Objective("memory", unit="B")


def measure(
    prepared: Prepared | PreparedNetwork,
    before: Unchanged,
    found: Choices,
    plan: Predictions,
    study: str | Path | None,
    reporter: Reporter,
    deadline: Deadline = Deadline(),  # noqa: B008
) -> Measured:
    """Measures combinations, best predicted first, until the budget is used up or Ctrl-C.

    Each method alone first, in half of the time: what it gives by itself corrects the predictions of what it is part
    of, and one that is below the floor by itself is tried with no other. Of these, programs of the whole model come
    first (`Method.whole`), what is made soonest before the rest. Then combinations. In the end what lies between the
    unchanged model and the best, one method less at a time; and the fastest networks are timed again in turn.

    Args:
        prepared: the workload, the text and the budget's trials.
        before: the unchanged model.
        found: what there is to choose.
        plan: predictions.
        study: an SQLite file that keeps what was measured; None for memory alone.
        reporter: told of each.
        deadline: when all measuring ends.
    """
    if not plan.combinations:
        return Measured({}, "exhausted")
    reporter.stage("measuring the promising ones, best predicted first")
    return _Measuring(prepared, before, found, plan, study, reporter, deadline).measured()


class _Measuring:
    """What is known of each combination while they are measured, and the passes over them.

    Args:
        prepared, before, found, plan, study, reporter, deadline: of `measure`.
    """

    def __init__(
        self, prepared: Prepared | PreparedNetwork, before: Unchanged, found: Choices, plan: Predictions,
        study: str | Path | None, reporter: Reporter, deadline: Deadline,
    ) -> None:  # fmt: skip
        self.prepared, self.before, self.plan, self.reporter = prepared, before, plan, reporter
        self.wanted, self.trials_asked = prepared.settings.wanted, prepared.settings.trials
        self.limit = before.limit(prepared.settings.floor)
        self.titles = {_point_key(p): title for title, p in plan.points.items()}
        self.combinations = dict(plan.combinations)
        self.singles = {title: methods[0] for title, methods in plan.methods.items() if len(methods) == 1}
        self.finalists = Finalists()
        self.end = self.deadline = deadline  # of all measuring, and of trying combinations
        if deadline.left is not None and isinstance(prepared, PreparedNetwork):
            self.deadline = deadline.earlier(min(_AGAIN, _KEPT * deadline.left))
        self.seconds = deadline.left
        self.paces: list[float] = []  # how many times longer than was said making took
        self.too_long: set[str] = set()
        self.broken: set[Method] = set()
        self.trials: list[Trial] = []  # all that the study holds
        self.new = 0  # of these, those of this run
        self.kept = Study(study)
        self.problem = Problem(
            name="tune",
            space=found.space,
            objectives=objectives("loss" if isinstance(prepared, PreparedNetwork) else "perplexity"),
            evaluate=self._evaluate,
            constraints=("quality",),
            identity=prepared.identity,
            units=UNITS,
        )

    def measured(self) -> Measured:
        """What became of each combination; after Ctrl-C of those that were measured until then."""
        try:
            stopped = self._passes()
        except KeyboardInterrupt:  # between two tries, or while the study was opened or closed
            stopped = "interrupted"
        if stopped in ("trials", "exhausted") and any(self.combinations[t].measured is None for t in self.too_long):
            stopped = "seconds"
        notes = []
        if stopped != "interrupted" and (again := _again(self.finalists, self.end, self.reporter)):
            for title, seen_again in again.items():
                self.combinations[title] = _timed_again(self.combinations[title], seen_again)
            calls = min(one.calls for one in again.values())
            notes.append(
                f"the {len(again)} fastest were timed again in turn, {calls} calls each: their seconds are these"
            )
        if stopped == "seconds" and len(self.trials) < len(self.plan.combinations):
            considered = max(self.plan.considered, len(self.plan.combinations))
            notes.append(
                f"the budget ended after {len(self.trials)} of {considered} combinations: "
                "a larger --budget measures more"
            )
        if (earlier := len(self.trials) - self.new) > 0:
            notes.append(
                f"{earlier} of the measurements are of an earlier run of this study, the unchanged model's and "
                "transformers' are of this one: a machine busier in one of the two bends their ratios"
            )
        if self.broken:
            names = ", ".join(sorted(m.title for m in self.broken))
            notes.append(f"below the quality floor by themselves, so tried in no combination: {names}")
        return Measured(self.combinations, stopped, tuple(notes))

    # -- the passes ------------------------------------------------------------------------------

    def _passes(self) -> str:
        """Each method alone, combinations, and what lies between; why they ended."""
        for share, order in ((_WHOLE, self._whole_first), (_ALONE, self._alone)):
            stopped = self._one_at_a_time(share, order, self._most_alone())
            if stopped == "interrupted":
                break
        self.broken = {m for title, m in self.singles.items() if _failed(self.combinations[title])}
        if stopped == "interrupted":
            return stopped
        # Each that fails tells which methods to leave for the end.
        stopped = self._one_at_a_time(_TOGETHER, self._together)
        if stopped == "interrupted" or self._between() == "interrupted":
            return "interrupted"
        return stopped

    def _most_alone(self) -> int:
        asked = self.trials_asked
        return len(self.singles) if asked is None else min(len(self.singles), asked // 2)

    def _one_at_a_time(self, share: float, make_order: Callable[[], _Order], most: float = math.inf) -> str:
        """Tries combinations up to a number: what takes longer than is left is passed over, shorter ones still have
        their turn."""
        while True:
            before = len(self.trials)
            stopped = self._run(int(min(before + 1, most)), share, make_order())
            if stopped != "trials" or len(self.trials) in (before, most):
                return stopped

    def _between(self) -> str:
        """What each method of the best gave is only known once it was measured with one less at a time."""
        stopped = "exhausted"
        while missing := self._rungs():
            before = len(self.trials)
            stopped = self._run(before + len(missing), _BETWEEN, _listed(missing))
            if stopped in ("interrupted", "seconds") or len(self.trials) == before:
                break
        return stopped

    def _rungs(self) -> list[str]:
        unchanged = latency(self.before.combination, self.wanted)
        return rungs(self.plan.methods, self.combinations, unchanged, self.wanted)

    # -- in which order --------------------------------------------------------------------------

    def _gentle(self, title: str) -> float:
        return gentle_first(self.combinations[title].predicted, self.before.combination.predicted, self.wanted)

    def _whole_first(self) -> _Order:
        """Programs of the whole model, those that are made in about the same time as `gentle_first` has them."""
        whole = [title for title, method in self.singles.items() if method.whole]
        return _listed(sorted(whole, key=lambda t: (math.ceil(math.log2(max(1.0, self._making(t)))), self._gentle(t))))

    def _alone(self) -> _Order:
        return lambda title: self._gentle(title) if title in self.singles else None

    def _together(self) -> _Order:
        """By predictions that are corrected by what each method gave alone; suspects of a failure last."""
        seen = {m: c for title, m in self.singles.items() if (c := self.combinations[title]).measured}
        suspects = _suspects(self.plan.methods, self.combinations)

        def order(title: str) -> float | None:
            methods = self.plan.methods[title]
            if self.broken.intersection(methods):
                return None
            known = [seen[m] for m in methods if m in seen]
            once = corrected(self.combinations[title], known, self.before.combination, self.wanted)
            return once * _DOUBT ** len(suspects.intersection(methods))

        return order

    # -- a try -----------------------------------------------------------------------------------

    def _run(self, trials: int, share: float, order: _Order) -> str:
        """Tries combinations up to a number and a share of the time; ``order`` scores them, None leaves one out."""

        def score(params: Params) -> float | None:
            title = self.titles.get(_point_key(params))
            if title is None:
                return None
            if self.deadline.left is not None and self._expected(title) > _OVER * self.deadline.left:
                if self.combinations[title].measured is None:
                    self.too_long.add(title)
                return None
            return order(title)

        most = trials if self.trials_asked is None else min(trials, self.trials_asked)
        # Where the unchanged model took the whole budget, only what is stored is taken.
        part = None if self.seconds is None else max(self.seconds * share, 1e-6)
        result = self.kept.run(self.problem, trials=most, seconds=part, order=score, progress=self._told)
        for trial in result.trials:
            self._adopt(trial)
        self.trials = list(result.trials)
        over = result.stopped == "interrupted" and self.deadline.left == 0
        return "seconds" if over else result.stopped

    def _evaluate(self, params: Params) -> Mapping[str, Any]:
        title = self.titles[_point_key(params)]
        said, begun = self._said_of(title), time.monotonic()
        networks: list[Network] = []

        def made(network: Network) -> None:
            networks.append(network)
            if said:
                self.paces.append((time.monotonic() - begun) / said)

        seen = tried(
            self.prepared, self.plan.methods[title], self.before, deadline=self.deadline,
            progress=self.reporter.advance, made=made,
        )  # fmt: skip
        if networks and seen.loss is not None and seen.loss <= self.limit:
            self.finalists.offer(title, seen.forward_low, networks[0])
        return {**values(seen, self.limit), "figures": json.loads(seen.model_dump_json())}

    def _adopt(self, trial: Trial) -> None:
        title = self.titles.get(_point_key(trial.params))
        if title is not None:
            self.combinations[title] = _with(self.combinations[title], trial, self.limit)

    def _told(self, trial: Trial, done: int, planned: int | None) -> None:
        self._adopt(trial)
        self.new += 1
        self.reporter.measured(self.combinations[self.titles[_point_key(trial.params)]])

    def _said_of(self, title: str) -> float:
        """Seconds to make a combination, as its methods say."""
        return sum(m.seconds_to_apply(self.prepared.base) for m in self.plan.methods[title])

    def _making(self, title: str) -> float:
        """The same, by what others took."""
        return self._said_of(title) * (statistics.median(self.paces) if self.paces else 1.0)

    def _expected(self, title: str) -> float:
        """Seconds of a combination's speed and quality, by its prediction and what was measured."""
        methods = self.plan.methods[title]
        known = [c for t, m in self.singles.items() if m in methods and (c := self.combinations[t]).measured]
        once = corrected(self.combinations[title], known, self.before.combination)
        return self._making(title) + self.prepared.effort.seconds_of(once) + self.before.quality_seconds


def _listed(titles: Sequence[str]) -> _Order:
    places = {title: place for place, title in enumerate(titles)}
    return places.get


def _with(combination: Combination, trial: Trial, limit: float) -> Combination:
    """A combination with what a trial found."""
    if trial.reason:
        return combination.model_copy(update={"failure": trial.reason})
    found = Figures.model_validate(trial.details["figures"])
    assert found.loss is not None
    return combination.model_copy(update={"measured": found, "within_floor": found.loss <= limit})


def _again(finalists: Finalists, deadline: Deadline, reporter: Reporter) -> dict[str, Again]:
    """The fastest networks timed again in turn; nothing where one fails or Ctrl-C comes: the first figures stand."""
    networks = finalists.networks
    if len(networks) < 2:
        return {}
    reporter.stage("timing the fastest again, in turn")
    left = deadline.left
    try:
        return timed_again(networks, _AGAIN if left is None else min(_AGAIN, _OF_LEFT * left))
    except (HastenError, KeyboardInterrupt):
        return {}


def _timed_again(combination: Combination, again: Again) -> Combination:
    """A combination with the seconds of another measurement."""
    assert combination.measured is not None
    seconds = {"forward": again.median, "forward_low": again.low, "forward_high": again.high}
    return combination.model_copy(update={"measured": combination.measured.model_copy(update=seconds)})


def _failed(combination: Combination) -> bool:
    return combination.within_floor is False or bool(combination.failure)


def rungs(
    methods: Mapping[str, Sequence[Method]],
    combinations: Mapping[str, Combination],
    unchanged: float,
    wanted: Wanted = "total",
) -> list[str]:
    """Titles of what lies between the unchanged model and the best so far, and was not tried; none where that is no
    faster than ``unchanged`` seconds."""
    good = [t for t, c in combinations.items() if c.measured and c.within_floor]
    if not good:
        return []
    title = min(good, key=lambda t: latency(combinations[t], wanted))
    if latency(combinations[title], wanted) >= unchanged:
        return []
    best = list(methods[title])
    known = {tuple(m): t for t, m in methods.items()}
    steps = [known[part] for n in range(1, len(best)) if (part := tuple(best[:n])) in known]
    return [t for t in steps if not combinations[t].measured and not combinations[t].failure]


def _suspects(methods: Mapping[str, Sequence[Method]], combinations: Mapping[str, Combination]) -> set[Method]:
    """Methods of combinations that failed, less those that are part of one that did not."""
    good: set[Method] = set()
    bad: set[Method] = set()
    for title, combination in combinations.items():
        if combination.measured and combination.within_floor:
            good.update(methods[title])
        elif _failed(combination):
            bad.update(methods[title])
    return bad - good


def latency(combination: Combination, wanted: Wanted = "total") -> float:
    """Measured seconds of what is wanted."""
    assert combination.measured is not None
    return seconds_of(combination.measured, wanted)


def _point_key(params: Mapping[str, Any]) -> str:
    return json.dumps(dict(sorted(params.items())))

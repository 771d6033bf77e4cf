"""One run of a study: asks the sampler, hands points to workers, writes down every score."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.problem import Problem, Trial
from hasten.search.samplers import checked_sampler, make_sampler
from hasten.search.study_file import storage_errors
from hasten.search.study_result import Stopped, StudyResult
from hasten.search.trial_records import (
    BROKEN_OFF,
    ELAPSED,
    MARK,
    REASON,
    REPEAT,
    SAMPLER,
    SECONDS,
    attributes,
    plain,
    read_chosen,
    read_trials,
    tell_infeasible,
    tells_infeasible,
)
from hasten.search.workers import Evaluation, Workers, evaluate

Order = Callable[[Params], float | None]
Progress = Callable[[Trial, int, int | None], None]

# A point whose worker dies this often is given up.
_HANDED_OUT = 3
_ORDER_LIMIT = 1_000_000
_REPEATS_BEFORE_UNSEEN = 5
_REPEATS_BEFORE_STOP = 200


class StudyLoop:
    """One run of a study."""

    def __init__(
        self,
        study: Any,
        problem: Problem,
        path: Path | None,
        sampler: str | Any,
        order: Order | None,
        seed: int | None,
    ) -> None:
        self.study, self.problem, self.space, self.path = study, problem, problem.space, path
        with self._errors():
            self._fail_running()
            everything = study.get_trials(deepcopy=False)
            started = len(everything)
            self.trials = read_trials(study, problem)
            self.tells_infeasible = tells_infeasible(study)
        # With several workers the seconds of the trials add up to more than went by.
        elapsed = [t.user_attrs[ELAPSED] for t in everything if ELAPSED in t.user_attrs]
        self.begun = time.monotonic() - max(elapsed, default=sum(t.seconds for t in self.trials))
        # A resumed run with the first one's seed would draw the first one's points again.
        self.seed = None if seed is None else seed + started
        study.sampler = (
            make_sampler(sampler, self.space, self.seed) if isinstance(sampler, str) else checked_sampler(sampler)
        )
        # A sampler that has no point left says so by Optuna's `Study.stop`, which knows `Study.optimize` alone.
        self.ended = False
        study.stop = self._end
        self.done = {self.space.key(t.params): t for t in self.trials}
        self.queue = self._ordered(order) if order else None
        self.rng = random.Random(self.seed)
        self.name = sampler if isinstance(sampler, str) else type(sampler).__name__
        # Points that a worker is at: key -> the trial, the point, how often it was handed out.
        self.running: dict[str, tuple[Any, Params, int]] = {}

    def _end(self) -> None:
        self.ended = True

    def run(
        self,
        trials: int | None,
        seconds: float | None,
        first: Sequence[Params],
        progress: Progress | None,
        team: Workers | None = None,
    ) -> StudyResult:
        repeats = 0
        stopped: Stopped | None = None
        try:
            with self._errors():
                self._enqueue(first)
            over: Stopped | None = None
            while True:
                known = len(self.done) + len(self.running)
                if trials is not None and known >= trials:
                    over = over or "trials"
                elif seconds is not None and time.monotonic() - self.begun >= seconds:
                    over = over or "seconds"
                elif self.ended or known >= self.space.size or (self.queue is not None and not self._feed_queue()):
                    over = over or "exhausted"
                elif repeats >= _REPEATS_BEFORE_STOP:
                    over = over or "repeating"
                if over is not None and not self.running:
                    stopped = over
                    break
                finished: list[Trial] = []
                if over is None and (team is None or len(self.running) < team.size):
                    if repeats and repeats % _REPEATS_BEFORE_UNSEEN == 0:
                        self._enqueue_unseen()
                    asked = self._ask()
                    repeats = repeats + 1 if asked is None else 0
                    if asked is None:
                        continue
                    if team is None:
                        finished.append(self._finish(asked, evaluate(self.problem, asked[1])))
                    else:
                        self.running[asked[2]] = (asked[0], asked[1], 1)
                        team.submit(asked[2], asked[1])
                        continue
                else:
                    assert team is not None
                    received = team.wait()
                    received.sort(key=lambda r: r[1] is not None and r[1].error is not None)  # scores before errors
                    with _undisturbed():
                        for key, result in received:
                            if (tried := self._received(team, key, result)) is not None:
                                finished.append(tried)
                for done, tried in enumerate(finished, len(self.done) - len(finished) + 1):
                    if progress:
                        planned = [n for n in (trials, self.space.size) if n is not None and n != math.inf]
                        progress(tried, done, int(min(planned)) if planned else None)
                # With room again there may be points to try, whatever was over for the lack of it.
                if finished and over in ("exhausted", "repeating"):
                    over, repeats = None, 0
        except KeyboardInterrupt:
            stopped = "interrupted"
            if team is not None and self.running:
                with _undisturbed():
                    self._gather(team)
        finally:
            if stopped in ("interrupted", None):  # anything may have been under way
                with self._errors(), _undisturbed():
                    self._fail_running()
        with self._errors():
            chosen = read_chosen(self.study)
        # Workers finish in another order than the points were chosen, and the storage gives them back, in.
        trials_tried = sorted(self.trials, key=lambda t: t.number)
        return StudyResult(self.problem.objectives, trials_tried, stopped, chosen)

    def _ask(self) -> tuple[Any, Params, str] | None:
        """A point to score: its trial, itself, its key. None when it is known, or being scored, already."""
        with self._errors(), _silent():
            trial = self.study.ask()
            params = self.space.suggest(trial)
        key = self.space.key(params)
        if key in self.done:
            self._repeat(trial, self.done[key])
        elif key in self.running:
            self._repeat(trial, Trial(self.running[key][0].number, params, {}, reason="another worker is at it"))
        else:
            return trial, params, key
        return None

    def _finish(self, asked: tuple[Any, Params, str], result: Evaluation) -> Trial:
        """Stores what became of a point."""
        trial, params, key = asked
        if result.error is not None:
            raise result.error
        details = plain(result.details)
        tried = Trial(
            trial.number, params, result.values, result.limits, details, result.seconds, result.reason, self.name,
            result.distance,
        )  # fmt: skip
        with self._errors(), _undisturbed():
            self._tell(trial, tried)
            self.done[key] = tried
            self.trials.append(tried)
        return tried

    def _received(self, team: Workers, key: str, result: Evaluation | None) -> Trial | None:
        """What a worker sent; None for one that died: its point is handed out again, three times at most."""
        trial, params, times = self.running[key]
        if result is None and times < _HANDED_OUT:
            self.running[key] = (trial, params, times + 1)
            team.submit(key, params)
            return None
        del self.running[key]
        if result is None:
            result = Evaluation(reason=f"its worker died, {times} times", distance=1.0)
        return self._finish((trial, params, key), result)

    def _gather(self, team: Workers) -> None:
        """Stores what workers have finished by now, before they are ended."""
        with suppress(Exception):  # Ctrl-C may have come in the middle of a message: what is not here is done again
            for key, result in team.wait(0):
                if result is not None and result.error is None:
                    self._received(team, key, result)

    def _tell(self, trial: Any, tried: Trial) -> None:
        for name, detail in attributes(self.problem, tried.details).items():
            trial.set_user_attr(name, detail)
        for name, value in tried.params.items():
            if self.space.parameters[name].ordered:  # of which the trial itself has the place alone
                trial.set_user_attr(f"{MARK}param.{name}", value)
        trial.set_user_attr(SECONDS, tried.seconds)
        trial.set_user_attr(ELAPSED, time.monotonic() - self.begun)
        trial.set_user_attr(SAMPLER, tried.sampler or self.name)
        objectives = self.problem.objectives
        if tried.reason:
            trial.set_user_attr(REASON, tried.reason)
            if not self.tells_infeasible or not tried.distance:
                self.study.tell(trial, state=TrialState.FAIL)
                return
        if self.tells_infeasible:
            tell_infeasible(self.study, trial, tried)
        # Of a point that cannot be had nothing is known: its constraints are not broken, its values no good.
        for name in self.problem.constraints:
            trial.set_constraint(self.problem.title(name), 0.0 if tried.reason else tried.constraints[name])
        with _silent():
            self.study.tell(trial, [o.sign * math.inf if tried.reason else tried.values[o.name] for o in objectives])

    def _repeat(self, trial: Any, known: Trial) -> None:
        """The sampler chose a point again: it learns the known scores, and nothing is run."""
        with self._errors():
            trial.set_user_attr(REPEAT, known.number)
            self._tell(
                trial,
                Trial(
                    trial.number, known.params, known.values, known.constraints, reason=known.reason,
                    distance=known.distance,
                ),
            )  # fmt: skip

    def _enqueue(self, points: Sequence[Params]) -> None:
        """Puts points in front: those asked for, and those that a broken-off run was at."""
        waiting = set()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            with suppress(HastenError):  # of a point of which some parameters are fixed, the sampler chooses the rest
                waiting.add(self.space.key(self.space.from_trial(trial.system_attrs.get("fixed_params", {}))))
        again = [
            self.space.from_trial(trial.params)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if trial.user_attrs.get(BROKEN_OFF) and trial.params
        ]
        for point in [*again, *points]:
            try:
                params = self.space.validate(point)
            except HastenError:
                if point in again:
                    continue  # killed before all its parameters were chosen
                raise
            key = self.space.key(params)
            if key not in self.done and key not in waiting:
                waiting.add(key)
                self.study.enqueue_trial(self.space.to_trial(params))

    def _ordered(self, order: Order) -> Iterator[Params]:
        """The space's points that are not left out, best prior score first, ties in the space's order."""
        if self.space.size > _ORDER_LIMIT:
            raise HastenError(
                f"the space has more than {_ORDER_LIMIT:,} points, too many to put in order:"
                " leave out the order, or make the space smaller"
            )
        scored = [(order(point), index, point) for index, point in enumerate(self.space.enumerate())]
        kept = [(math.inf if math.isnan(s) else s, index, point) for s, index, point in scored if s is not None]
        return (point for _, _, point in sorted(kept, key=lambda entry: entry[:2]))

    def _feed_queue(self) -> bool:
        """Puts the next point of the order before the sampler. False when there is none."""
        assert self.queue is not None
        with self._errors():
            if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return True
            for point in self.queue:
                if self.space.key(point) not in self.done:
                    self.study.enqueue_trial(self.space.to_trial(point))
                    return True
        return False

    def _enqueue_unseen(self) -> None:
        """A sampler that keeps repeating itself is given a random point that it does not know."""
        known = self.done.keys() | self.running.keys()
        points = (self.space.sample(self.rng) for _ in range(200))
        unseen = next((p for p in points if self.space.key(p) not in known), None)
        if unseen is None and self.space.size <= _ORDER_LIMIT:
            unseen = next((p for p in self.space.enumerate() if self.space.key(p) not in known), None)
        if unseen is not None:
            with self._errors():
                self.study.enqueue_trial(self.space.to_trial(unseen))

    def _fail_running(self) -> None:
        """Marks what is still running as broken off; this run holds the lock, so nobody is running it."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study._storage.set_trial_user_attr(trial._trial_id, BROKEN_OFF, True)
            self.study.tell(trial.number, state=TrialState.FAIL)

    def _errors(self) -> Any:
        return storage_errors(self.path)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what Optuna's samplers say of values that are not finite, and of constraints that they do not use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Clip non-finite values")
        warnings.filterwarnings("ignore", "Constraints have been set")
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, so that a score in hand is written down."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])

"""The study loop: asks a sampler, scores the point, and keeps every result in an Optuna storage.

The storage is plain Optuna on SQLite, so its dashboard opens it. What hasten adds: a study belongs to one
problem, only one run works on a file at a time, no point is scored twice, and what a killed run left
half done is done again by the next.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hasten.errors import HastenError
from hasten.files import named_path
from hasten.search.problem import Objective, Problem, Trial, pareto
from hasten.search.samplers import make_sampler
from hasten.search.space import Params
from hasten.search.workers import Evaluation, Processes, Workers, evaluate

Order = Callable[[Params], float | None]
Progress = Callable[[Trial, int, int | None], None]
Stopped = Literal["trials", "seconds", "exhausted", "repeating", "interrupted", "read"]

# Attributes of hasten in Optuna's tables; a user's details stand beside them without the prefix.
_MARK = "hasten:"
_FINGERPRINT, _DESCRIPTION = _MARK + "fingerprint", _MARK + "problem"
_SECONDS, _REASON, _REPEAT, _BROKEN_OFF = (_MARK + n for n in ("seconds", "reason", "repeat_of", "broken_off"))
_SAMPLER, _ELAPSED = _MARK + "sampler", _MARK + "elapsed"
# A point whose worker dies this often is given up.
_HANDED_OUT = 3

_ORDER_LIMIT = 1_000_000
_REPEATS_BEFORE_UNSEEN = 5
_REPEATS_BEFORE_STOP = 200


@dataclass(frozen=True)
class StudyResult:
    """What a study holds.

    Args:
        objectives: of the problem.
        trials: the points tried, each once, in order.
        stopped: why the run ended: its budget of ``trials`` or ``seconds``, the space ``exhausted``, the
            sampler only ``repeating`` itself, ``interrupted`` by Ctrl-C; ``read`` when it was only read.
        chosen: sampler -> numbers of the different trials it chose, in order. One that another had chosen before
            is among them: it was not scored again, but its sampler did find it.
    """

    objectives: tuple[Objective, ...]
    trials: list[Trial] = field(default_factory=list)
    stopped: Stopped = "read"
    chosen: dict[str, list[int]] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        return self.stopped == "interrupted"

    def pareto(self) -> list[Trial]:
        """The feasible trials that none dominates."""
        return pareto(self.trials, self.objectives)

    def best(self, objective: str | None = None) -> Trial:
        """The feasible trial with the best value of ``objective`` (the first one by default).

        Raises:
            HastenError: no trial is feasible, or there is no such objective.
        """
        named = {o.name: o for o in self.objectives}
        if objective is not None and objective not in named:
            raise HastenError(f"there is no objective {objective!r}: choose from {', '.join(named)}")
        chosen = named[objective] if objective else self.objectives[0]
        feasible = [t for t in self.trials if t.feasible]
        if not feasible:
            raise HastenError("no trial satisfies the constraints: loosen them, or raise the budget")
        return min(feasible, key=lambda t: chosen.sign * t.values[chosen.name])


class Study:
    """Where results are kept between runs.

    Args:
        path: an SQLite file, made when missing; None keeps results in memory.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._memory: Any = None

    def run(
        self,
        problem: Problem,
        *,
        sampler: str | Any = "tpe",
        trials: int | None = None,
        seconds: float | None = None,
        order: Order | None = None,
        first: Sequence[Params] = (),
        progress: Progress | None = None,
        seed: int | None = 0,
        workers: int | Workers = 1,
    ) -> StudyResult:
        """Tries points of ``problem`` until the budget is used up, going on where an earlier run stopped.

        Args:
            sampler: a name (see `hasten.search.samplers`), or an Optuna sampler.
            trials: how many different points the study shall have in the end, earlier runs included.
            seconds: how long to try points, earlier runs included; looked at between trials.
            order: a prior score of a point, smaller is better: the whole space is tried in that order
                instead of the sampler's; None as a score leaves a point out.
            first: points to try before all others.
            progress: called after each trial with it, the number of trials so far and the number planned.
            seed: of the sampler.
            workers: processes that score points at the same time; 1 scores them here. Or `Workers` made for the
                problem, such as those on other machines (`hasten.search.workers`), which are closed at the end.

        Returns:
            Everything the study holds. After Ctrl-C too, with ``interrupted`` set.

        Raises:
            HastenError: no budget for an infinite space; a file that is not a study, belongs to another
                problem, is in use by another run or cannot be written.
        """
        from optuna import logging

        if trials is None and seconds is None and order is None and problem.space.size == math.inf:
            raise HastenError("the space is infinite: give a budget of trials or seconds")
        if seconds is not None and not 0 < seconds < math.inf:
            raise HastenError(f"the budget is {seconds} seconds: give a number above 0")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with _only_run(self.path), self._open(problem) as optuna_study:
                loop = _Loop(optuna_study, problem, self.path, sampler, order, seed)
                if workers == 1:
                    return loop.run(trials, seconds, first, progress)
                with Processes(problem, workers) if isinstance(workers, int) else workers as team:
                    return loop.run(trials, seconds, first, progress, team)
        finally:
            logging.set_verbosity(verbosity)

    def read(self, problem: Problem) -> StudyResult:
        """What the study holds, without running anything.

        Raises:
            HastenError: the file is missing, not a study, or of another problem.
        """
        from optuna import logging

        if self.path is not None and not self.path.exists():
            raise HastenError(f"there is no study file {self.path}: check the path")
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with self._open(problem) as optuna_study, _storage_errors(self.path):
                return StudyResult(
                    problem.objectives, _read_trials(optuna_study, problem), chosen=_read_chosen(optuna_study)
                )
        finally:
            logging.set_verbosity(verbosity)

    @contextmanager
    def _open(self, problem: Problem) -> Iterator[Any]:
        """The Optuna study of ``problem`` in this storage."""
        import optuna

        storage: Any
        if self.path is None:
            storage = self._memory = self._memory or optuna.storages.InMemoryStorage()
        else:
            check_file(self.path)
            with _storage_errors(self.path):
                storage = _sqlite_storage(self.path)
        try:
            with _storage_errors(self.path), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names = optuna.get_all_study_names(storage)
                if names and problem.name not in names:
                    raise HastenError(
                        f"{self.path or 'the study'} belongs to another problem"
                        f" ({names[0]}, not {problem.name}): give another study file"
                    )
                study = optuna.create_study(
                    storage=storage,
                    study_name=problem.name,
                    directions=[o.direction for o in problem.objectives],
                    load_if_exists=True,
                )
                self._claim(study, problem)
            yield study
        finally:
            if self.path is not None:
                storage.remove_session()
                storage.engine.dispose()

    def _claim(self, study: Any, problem: Problem) -> None:
        """Checks that ``study`` is of ``problem``, and says so in a new one."""
        known = study.user_attrs.get(_FINGERPRINT)
        if known is None:
            if study.get_trials(deepcopy=False):
                raise HastenError(
                    f"{self.path or 'the study'} was not made by hasten and has trials already: give another study file"
                )
            study.set_metric_names([o.name for o in problem.objectives])
            study.set_user_attr(_DESCRIPTION, problem.description)
            study.set_user_attr(_FINGERPRINT, problem.fingerprint)  # last: a kill before it leaves an unclaimed study
        elif known != problem.fingerprint:
            before, now = study.user_attrs.get(_DESCRIPTION, {}), problem.description
            differ = [k for k in {**before, **now} if before.get(k) != now.get(k)]
            what = ", ".join(
                f"{k} was {before[k]}, is {now[k]}"
                if k in before and k in now and len(before[k]) + len(now[k]) < 120
                else f"another {k}"
                for k in differ
            )
            raise HastenError(
                f"{self.path or 'the study'} belongs to another problem ({what}): give another study file"
            )


class _Loop:
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
            self.trials = _read_trials(study, problem)
        # With several workers the seconds of the trials add up to more than went by.
        elapsed = [t.user_attrs[_ELAPSED] for t in everything if _ELAPSED in t.user_attrs]
        self.begun = time.monotonic() - max(elapsed, default=sum(t.seconds for t in self.trials))
        # A resumed run with the first one's seed would draw the first one's points again.
        self.seed = None if seed is None else seed + started
        study.sampler = make_sampler(sampler, self.space, self.seed) if isinstance(sampler, str) else sampler
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
            chosen = _read_chosen(self.study)
        # Workers finish in another order than the points were chosen, and the storage gives them back, in.
        trials_tried = sorted(self.trials, key=lambda t: t.number)
        return StudyResult(self.problem.objectives, trials_tried, stopped, chosen)

    def _ask(self) -> tuple[Any, Params, str] | None:
        """A point to score: its trial, itself, its key. None when it is known, or being scored, already."""
        with self._errors():
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
        details = _plain(result.details)
        tried = Trial(
            trial.number, params, result.values, result.limits, details, result.seconds, result.reason, self.name
        )
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
            result = Evaluation(reason=f"its worker died, {times} times")
        return self._finish((trial, params, key), result)

    def _gather(self, team: Workers) -> None:
        """Stores what workers have finished by now, before they are ended."""
        with suppress(Exception):  # Ctrl-C may have come in the middle of a message: what is not here is done again
            for key, result in team.wait(0):
                if result is not None and result.error is None:
                    self._received(team, key, result)

    def _tell(self, trial: Any, tried: Trial) -> None:
        from optuna.trial import TrialState

        for name, detail in tried.details.items():
            trial.set_user_attr(name, detail)
        trial.set_user_attr(_SECONDS, tried.seconds)
        trial.set_user_attr(_ELAPSED, time.monotonic() - self.begun)
        trial.set_user_attr(_SAMPLER, tried.sampler or self.name)
        if tried.reason:
            trial.set_user_attr(_REASON, tried.reason)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        for name, limit in tried.constraints.items():
            trial.set_constraint(name, limit)
        self.study.tell(trial, [tried.values[o.name] for o in self.problem.objectives])

    def _repeat(self, trial: Any, known: Trial) -> None:
        """The sampler chose a point again: it learns the known scores, and nothing is run."""
        with self._errors():
            trial.set_user_attr(_REPEAT, known.number)
            self._tell(trial, Trial(trial.number, known.params, known.values, known.constraints, reason=known.reason))

    def _enqueue(self, points: Sequence[Params]) -> None:
        """Puts points in front: those asked for, and those that a broken-off run was at."""
        from optuna.trial import TrialState

        waiting = set()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            with suppress(HastenError):  # of a point of which some parameters are fixed, the sampler chooses the rest
                waiting.add(self.space.key(trial.system_attrs.get("fixed_params", {})))
        again = [
            trial.params
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if trial.user_attrs.get(_BROKEN_OFF) and trial.params
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
                self.study.enqueue_trial(params)

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
        from optuna.trial import TrialState

        assert self.queue is not None
        with self._errors():
            if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return True
            for point in self.queue:
                if self.space.key(point) not in self.done:
                    self.study.enqueue_trial(point)
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
                self.study.enqueue_trial(unseen)

    def _fail_running(self) -> None:
        """Marks what is still running as broken off; this run holds the lock, so nobody is running it."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study._storage.set_trial_user_attr(trial._trial_id, _BROKEN_OFF, True)
            self.study.tell(trial.number, state=TrialState.FAIL)

    def _errors(self) -> Any:
        return _storage_errors(self.path)


def _read_trials(study: Any, problem: Problem) -> list[Trial]:
    """The different points that the study has tried, in order."""
    from optuna.trial import TrialState

    found: list[Trial] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        attributes = trial.user_attrs
        if _REPEAT in attributes or (trial.state == TrialState.FAIL and _REASON not in attributes):
            continue
        values = dict(zip((o.name for o in problem.objectives), trial.values or ()))
        found.append(
            Trial(
                trial.number,
                problem.space.validate(trial.params),
                values,
                {name: trial.constraints[name] for name in problem.constraints if name in trial.constraints},
                {k: v for k, v in attributes.items() if not k.startswith(_MARK)},
                attributes.get(_SECONDS, 0.0),
                attributes.get(_REASON, ""),
                attributes.get(_SAMPLER, ""),
            )
        )
    return found


def _read_chosen(study: Any) -> dict[str, list[int]]:
    """Who chose which of the points tried, each once, in order."""
    chosen: dict[str, dict[int, None]] = {}
    for trial in study.get_trials(deepcopy=False):
        if _SAMPLER in trial.user_attrs and trial.state.is_finished():
            numbers = chosen.setdefault(trial.user_attrs[_SAMPLER], {})
            numbers[trial.user_attrs.get(_REPEAT, trial.number)] = None
    return {name: list(numbers) for name, numbers in chosen.items()}


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


def _plain(details: dict[str, Any]) -> dict[str, Any]:
    """Details as the storage will give them back."""

    def number(value: Any) -> Any:
        if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not plain data")

    try:
        plain: dict[str, Any] = json.loads(json.dumps({str(k): v for k, v in details.items()}, default=number))
    except (TypeError, ValueError) as error:
        raise HastenError(f"evaluate returned details that cannot be stored: {error}") from None
    return plain


def _sqlite_storage(path: Path) -> Any:
    """Optuna's storage on the file, whatever characters its path has."""
    import optuna
    from sqlalchemy.pool import QueuePool

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=30, check_same_thread=False)

    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def check_file(path: Path) -> None:
    """Looks at a study file before anything is written to it: that it is whole, and that no trial in it is lost.

    Raises:
        HastenError: ``path`` is neither a study file nor can it become one; the file is left as it is.
    """
    no_study = f"{path} is not a study file: give another path, or move it away"
    path = named_path(path, "the study file")
    if path.is_dir() or not path.parent.is_dir():
        raise HastenError(f"cannot make the study file {path}: give a path in an existing folder")
    try:
        if path.exists() and not path.is_file():
            raise HastenError(no_study)
        if not path.exists() or path.stat().st_size == 0:
            return
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise HastenError(f"cannot read the study file {path}: {error.strerror}") from None
    if not head.startswith(b"SQLite format 3\0"):
        raise HastenError(no_study)
    try:
        connection = sqlite3.connect(path, timeout=30)
        try:
            what = _damage(connection, path, head)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
            raise _explained(path, error) from None
        what = str(error)
    if what == "another":
        raise HastenError(no_study)
    if what:
        raise HastenError(f"the study file {path} is damaged ({what}): move it away and start again")


def _damage(connection: sqlite3.Connection, path: Path, head: bytes) -> str:
    """What is wrong with a file that SQLite opens; "another" for a database that is no study, "" for nothing."""
    pages = int.from_bytes(head[28:32], "big")
    size = int.from_bytes(head[16:18], "big")
    size = 1 << 16 if size == 1 else size
    connection.execute("BEGIN IMMEDIATE")  # what a killed run left half written is taken back first
    try:
        if head[24:28] == head[92:96] and path.stat().st_size < pages * size:
            return "it is cut short"
        if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            return "SQLite finds it inconsistent"
        return _lost(connection)
    finally:
        connection.rollback()


def _lost(connection: sqlite3.Connection) -> str:
    """What of Optuna's tables is missing or does not agree; "another" when there are others alone."""
    from optuna.storages._rdb.models import BaseModel

    expected = {name: {c.name for c in t.columns} for name, t in BaseModel.metadata.tables.items()}
    found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not found:
        return ""
    if not found & {*expected, "alembic_version"}:
        return "another"
    for name in sorted(found & set(expected)):
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
        if lacking := expected[name] - columns:
            return f"its table {name} has no {min(lacking)}"
    # A run that was killed while it made the file leaves some tables, all empty, and the next one makes the rest.
    kept = [name for name in expected if name in found and name != "version_info"]
    if not any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in kept):
        return ""
    for name in sorted({*expected, "alembic_version"} - found):
        return f"its table {name} is missing"
    for name in ("version_info", "alembic_version"):
        if not connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone():
            return f"its table {name} is empty"
    for told, query in _LOSSES:
        if connection.execute(query).fetchone():
            return told
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    return f"its table {orphan[0]} has lines of what is gone" if orphan else ""


_LOSSES = (
    (
        "a study without directions",
        "SELECT 1 FROM studies s WHERE NOT EXISTS (SELECT 1 FROM study_directions d WHERE d.study_id = s.study_id)",
    ),
    (
        "trials are missing",
        "SELECT 1 FROM trials GROUP BY study_id HAVING COUNT(*) != MAX(number) + 1",
    ),
    (
        "finished trials have no values",
        "SELECT 1 FROM trials t WHERE t.state = 'COMPLETE' AND"
        " (SELECT COUNT(*) FROM trial_values v WHERE v.trial_id = t.trial_id) !="
        " (SELECT COUNT(*) FROM study_directions d WHERE d.study_id = t.study_id)",
    ),
)
"""What a file has lost, and a query that finds it."""


def _explained(path: Path | None, error: BaseException) -> HastenError:
    """What a failing storage means, for a person."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = " ".join(chain).lower()
    where = f"the study file {path}"
    if "full" in text or "disk i/o" in text or "file too large" in text:
        return HastenError(f"cannot write {where}: the disk is full or failing: free some space and run again")
    if "malformed" in text or "not a database" in text:
        return HastenError(f"{where} is damaged: move it away and start again")
    if "readonly" in text or "unable to open" in text or "permission" in text:
        return HastenError(f"cannot write {where}: check its permissions and its folder's")
    if "locked" in text:
        return HastenError(f"{where} is in use by another program: wait until it is done")
    if "optuna" in text and "version" in text:
        return HastenError(f"{where} was made by another version of Optuna: give another path")
    return HastenError(f"{where} cannot be used: {chain[0].splitlines()[0] if chain[0] else type(error).__name__}")


@contextmanager
def _storage_errors(path: Path | None) -> Iterator[None]:
    """Turns errors of the storage into one line each."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise _explained(path, error) from None
    except RuntimeError as error:
        if "version" in str(error).lower():  # Optuna's check of its tables
            raise _explained(path, error) from None
        raise


@contextmanager
def _only_run(path: Path | None) -> Iterator[None]:
    """Holds the lock of a study file.

    The kernel's lock on an open file ends with its process, however that ends, so a lock file that was left
    behind locks nobody out; the process id in it is for the message alone.
    """
    if path is None:
        yield
        return
    if not path.parent.is_dir():
        raise HastenError(f"cannot make the study file {path}: give a path in an existing folder")
    lock = path.with_name(path.name + ".lock")
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise HastenError(f"cannot make the lock file {lock}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            raise HastenError(
                f"{path} is in use by another run{f' (process {owner})' if owner else ''}:"
                " wait for it, or give another study file"
            ) from None
        try:  # the former owner may have removed the file between our open and our lock
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError:
            pass  # a full disk: the lock holds without the number
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)

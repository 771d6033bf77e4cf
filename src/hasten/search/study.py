"""The study loop: asks a sampler, scores the point, and keeps every result in an Optuna storage.

The storage is plain Optuna on SQLite, so its dashboard opens it. What hasten adds: a study belongs to one
problem, only one run works on a file at a time, no point is scored twice, and what a killed run left
half done is done again by the next.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.problem import Problem
from hasten.search.study_file import check_file, is_begun, only_run, sqlite_storage, storage_errors, study_path
from hasten.search.study_loop import Order, Progress, StudyLoop
from hasten.search.study_result import StudyResult
from hasten.search.trial_records import DESCRIPTION, FINGERPRINT, read_chosen, read_trials
from hasten.search.workers import Processes, Workers


class Study:
    """Where results are kept between runs.

    Args:
        path: an SQLite file, made when missing, or its address, ``sqlite:///study.db``; None keeps results in memory.

    Raises:
        HastenError: the address of another database.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else study_path(path)
        self._memory: Any = None

    def begin(self) -> None:
        """Makes the file, with no study in it yet: what a run takes minutes to prepare for can be kept from then on.

        Raises:
            HastenError: it is no study, in use by another run, or cannot be written.
        """
        if self.path is not None:
            with only_run(self.path), storage_errors(self.path):
                check_file(self.path)
                storage = sqlite_storage(self.path)
                storage.remove_session()
                storage.engine.dispose()

    def description(self) -> dict[str, str]:
        """What the file's study is of, by aspect (`Problem.description`); empty where there is none yet.

        Raises:
            HastenError: the file is no study, or cannot be read.
        """
        if self.path is None or not self.path.exists():
            return {}
        check_file(self.path)
        with storage_errors(self.path):
            if not is_begun(self.path):
                return {}
            storage = sqlite_storage(self.path)
            try:
                found = [s.user_attrs.get(DESCRIPTION, {}) for s in optuna.get_all_study_summaries(storage)]
            finally:
                storage.remove_session()
                storage.engine.dispose()
        return {str(k): str(v) for k, v in found[0].items()} if found else {}

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
        if trials is None and seconds is None and order is None and problem.space.size == math.inf:
            raise HastenError("the space is infinite: give a budget of trials or seconds")
        if seconds is not None and not 0 < seconds < math.inf:
            raise HastenError(f"the budget is {seconds} seconds: give a number above 0")
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with only_run(self.path), self._open(problem) as optuna_study:
                loop = StudyLoop(optuna_study, problem, self.path, sampler, order, seed)
                if workers == 1:
                    return loop.run(trials, seconds, first, progress)
                with Processes(problem, workers) if isinstance(workers, int) else workers as team:
                    return loop.run(trials, seconds, first, progress, team)
        finally:
            optuna.logging.set_verbosity(verbosity)

    def read(self, problem: Problem) -> StudyResult:
        """What the study holds, without running anything.

        Raises:
            HastenError: the file is missing, not a study, or of another problem.
        """
        if self.path is not None and not self.path.exists():
            raise HastenError(f"there is no study file {self.path}: check the path")
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with self._open(problem, begun=True) as optuna_study, storage_errors(self.path):
                return StudyResult(
                    problem.objectives, read_trials(optuna_study, problem), chosen=read_chosen(optuna_study)
                )
        finally:
            optuna.logging.set_verbosity(verbosity)

    @contextmanager
    def _open(self, problem: Problem, *, begun: bool = False) -> Iterator[Any]:
        """The Optuna study of ``problem`` in this storage; with ``begun`` one that is there already."""
        storage: Any
        if self.path is None:
            storage = self._memory = self._memory or optuna.storages.InMemoryStorage()
        else:
            check_file(self.path)
            with storage_errors(self.path):
                if begun and not is_begun(self.path):
                    raise HastenError(f"the study file {self.path} has no study yet: wait until a run has begun one")
                storage = sqlite_storage(self.path)
        try:
            with storage_errors(self.path), warnings.catch_warnings():
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
        known = study.user_attrs.get(FINGERPRINT)
        if known is None:
            if study.get_trials(deepcopy=False):
                raise HastenError(
                    f"{self.path or 'the study'} was not made by hasten and has trials already: give another study file"
                )
            study.set_metric_names([problem.title(o.name) for o in problem.objectives])
            study.set_user_attr(DESCRIPTION, problem.description)
            study.set_user_attr(FINGERPRINT, problem.fingerprint)  # last: a kill before it leaves an unclaimed study
        elif known != problem.fingerprint:
            before, now = study.user_attrs.get(DESCRIPTION, {}), problem.description
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

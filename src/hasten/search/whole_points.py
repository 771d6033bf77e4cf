"""What samplers share that choose all parameters of a point at once."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

from optuna.samplers import BaseSampler

from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.space import Space


class WholePointSampler(BaseSampler):
    """An Optuna sampler that asks for whole points of a `Space`, which `choose` gives.

    It may be asked by several threads (``n_jobs`` of Optuna's ``Study.optimize``): one at a time is answered.

    Args:
        space: of the problem.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @abstractmethod
    def choose(self, study: Any, trial: Any) -> Params:
        """The next point to try."""

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> Params:
        with self._lock:
            return self.space.to_trial(self.choose(study, trial))

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return self.space.to_optuna()

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """The value of a parameter that exists only because somebody fixed another.

        Raises:
            HastenError: the space has no such parameter.
        """
        if name not in self.space.parameters:
            raise HastenError(f"parameter {name!r} is not in the searched space: use one space for a study")
        return self.space.parameters[name].to_trial(self.left_open(trial, name))

    def left_open(self, trial: Any, name: str) -> Any:
        """What such a parameter is where the sampler did not choose it: its first value."""
        return next(self.space.parameters[name].values())

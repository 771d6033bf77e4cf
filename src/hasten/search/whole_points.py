"""What samplers share that choose all parameters of a point at once."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler

from hasten.errors import HastenError
from hasten.search.space import Space


class WholePointSampler(BaseSampler):
    """An Optuna sampler that asks for whole points of a `Space`, which ``sample_relative`` gives.

    Args:
        space: of the problem.
    """

    def __init__(self, space: Space) -> None:
        self.space = space

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return self.space.to_optuna()

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """The value of a parameter that exists only because somebody fixed another.

        Raises:
            HastenError: the space has no such parameter.
        """
        if name not in self.space.parameters:
            raise HastenError(f"parameter {name!r} is not in the searched space: use one space for a study")
        return self.left_open(trial, name)

    def left_open(self, trial: Any, name: str) -> Any:
        """What such a parameter is where the sampler did not choose it: its first value."""
        return next(self.space.parameters[name].values())

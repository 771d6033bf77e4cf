"""An agent as an Optuna sampler: it proposes a study's points and is told their scores, resumed studies included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import TrialState

from hasten.errors import HastenError
from hasten.search.agents.agent import Agent, Indices
from hasten.search.agents.policies import Running
from hasten.search.agents.registry import make_agent
from hasten.search.codec import Codec
from hasten.search.parameter import Params
from hasten.search.space import Space
from hasten.search.whole_points import WholePointSampler

Reward = Callable[[Mapping[str, float]], float]


class AgentSampler(WholePointSampler):
    """Lets an `Agent` choose.

    Several objectives become one reward: the mean of how far each is on the better side of its mean so far, in units
    of its spread. A point that breaks a constraint counts as one unit worse than the worst, and up to one more by how
    far it breaks them; one that failed, or has a value that is not finite, as two.

    Args:
        space: of the problem.
        agent: its name (`hasten.search.agents.registry.agents`), or one made for `Codec(space).sizes`.
        seed: of the agent, when it is given by name.
        options: of the agent, when it is given by name.
    """

    def __init__(self, space: Space, agent: str | Agent, seed: int | None = None, **options: Any) -> None:
        super().__init__(space)
        self.codec = Codec(space)
        self.agent = make_agent(agent, self.codec.sizes, seed or 0, **options) if isinstance(agent, str) else agent
        if self.agent.sizes != self.codec.sizes:
            raise HastenError("the agent was made for another space: give it Codec(space).sizes")
        self._asked: dict[int, Indices] = {}
        self._told: set[int] = set()
        self._values: Running | None = None
        self._worst = 0.0

    def choose(self, study: Any, trial: Any) -> Params:
        # What an earlier run, or another worker, has tried.
        for known in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if known.number not in self._told and known.params:
                self._tell(study, known)
        point = self.agent.ask()
        self._asked[trial.number] = point
        return self.codec.decode(point)

    def left_open(self, trial: Any, name: str) -> Any:
        """What the agent has chosen with the rest."""
        at = list(self.space.parameters).index(name)
        asked = self._asked.get(trial.number)
        return self.codec.values[at][asked[at]] if asked else self.codec.values[at][0]

    def after_trial(self, study: Any, trial: Any, state: Any, values: Sequence[float] | None) -> None:
        with self._lock:
            if trial.number in self._told:
                return
            if state == TrialState.COMPLETE:
                self._tell(study, trial, values)
            elif state == TrialState.FAIL and trial.number in self._asked:
                self._told.add(trial.number)
                self.agent.tell(self._tried(trial, whole=False), self._worst - 2)

    def _tried(self, trial: Any, whole: bool = True) -> Indices:
        """The point that a trial was of: what was asked for, unless somebody had fixed some of its parameters.

        One that failed may have ended before its parameters were chosen, and is not ``whole``.
        """
        asked, tried = self._asked.pop(trial.number, None), self.space.from_trial(trial.params)
        if asked is not None and all(tried.get(n, v) == v for n, v in self.codec.decode(asked).items()):
            return asked
        chosen = {} if asked is None or whole else self.codec.decode(asked)
        return self.codec.encode({**chosen, **tried})

    def _tell(self, study: Any, trial: Any, values: Sequence[float] | None = None) -> None:
        self._told.add(trial.number)
        values = list(values if values is not None else trial.values)
        signs = [1 if d.name == "MAXIMIZE" else -1 for d in study.directions]
        better = np.array([s * v for s, v in zip(signs, values, strict=True)])
        over = sum(c for c in (getattr(trial, "constraints", None) or {}).values() if c > 0)
        finite = bool(np.isfinite(better).all())
        if finite:
            self._values = self._values or Running(len(better))
            self._values.add(better)
        if over:
            reward = self._worst - 1 - over / (1 + over) if over < np.inf else self._worst - 2
        elif self._values is None or not finite:
            reward = self._worst - 2
        else:
            reward = float(self._values.scaled(better).mean()) if len(better) > 1 else float(better[0])
            self._worst = min(self._worst, reward)
        self.agent.tell(self._tried(trial), reward, values)

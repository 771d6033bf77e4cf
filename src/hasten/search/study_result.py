"""What a study holds: the points tried, who chose them, the best of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hasten.errors import HastenError
from hasten.search.problem import Objective, Trial, pareto

Stopped = Literal["trials", "seconds", "exhausted", "repeating", "interrupted", "read"]


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

"""Looking beside what is best so far, as an Optuna sampler: the design-space search of ScaleHLS.

A first sample of points anywhere; then, again and again, one of the points that no other dominates is drawn, and its
nearest neighbour that nobody has tried is tried (ScaleHLS, in arXiv 2406.10903, section 4).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from optuna.trial import TrialState

from hasten.errors import HastenError
from hasten.search.codec import Codec
from hasten.search.parameter import Params
from hasten.search.problem import Objective, Trial, pareto
from hasten.search.samplers import register
from hasten.search.space import Space
from hasten.search.whole_points import WholePointSampler

_TRIES = 64


class FrontNeighbours(WholePointSampler):
    """Tries neighbours of the front.

    Args:
        space: of the problem.
        seed: of every choice.
        first: points tried anywhere before. Until one of them is feasible, neighbours are those of the point that
            misses the constraints least.

    Raises:
        HastenError: no first points.
    """

    def __init__(self, space: Space, seed: int | None = None, first: int = 16) -> None:
        if first < 1:
            raise HastenError("the search of neighbours begins with at least 1 point: raise first")
        super().__init__(space)
        self.codec, self.first = Codec(space), first
        self._rng = random.Random(seed)
        self._known: set[str] = set()
        self._read: set[int] = set()
        self._trials: list[Trial] = []

    def choose(self, study: Any, trial: Any) -> Params:
        for known in study.get_trials(deepcopy=False):
            if known.number in self._read or not known.params:
                continue
            params = self.space.from_trial(known.params)
            with suppress(HastenError):  # a run was killed before all of them were chosen
                self._known.add(self.space.key(params))
            if known.state.is_finished():
                self._read.add(known.number)
            if known.state == TrialState.COMPLETE:
                values = {str(i): float(v) for i, v in enumerate(known.values)}
                limits = dict(getattr(known, "constraints", None) or {})
                self._trials.append(Trial(known.number, params, values, limits))
        signs = [Objective(str(i), "maximize" if d.name == "MAXIMIZE" else "minimize")
                 for i, d in enumerate(study.directions)]  # fmt: skip
        point = self._beside(signs) if len(self._trials) >= self.first else None
        point = point or self._anywhere()
        self._known.add(self.space.key(point))
        return point

    def _anywhere(self) -> Params:
        for _ in range(_TRIES):
            point = self.space.sample(self._rng.randrange(2**31))
            if self.space.key(point) not in self._known:
                break
        return point

    def _beside(self, objectives: list[Objective]) -> Params | None:
        """The nearest point to one of the front that is not known."""
        front = pareto(self._trials, objectives)
        if not front:
            front = [min(self._trials, key=lambda t: sum(max(0.0, c) for c in t.constraints.values()))]
        for chosen in self._rng.sample(front, len(front)):
            for point in self._around(self.codec.encode(chosen.params)):
                if self.space.key(point) not in self._known:
                    return point
        return None

    def _around(self, indices: tuple[int, ...]) -> Iterator[Params]:
        """Points at growing distance: one parameter by a step, then by more, then several by a step."""
        sizes = self.codec.sizes
        places = list(range(len(sizes)))
        for far in range(1, max(sizes)):
            moves = [(i, s * far) for i in places for s in (1, -1) if 0 <= indices[i] + s * far < sizes[i]]
            self._rng.shuffle(moves)
            for i, by in moves:
                yield self.codec.decode([n + by if j == i else n for j, n in enumerate(indices)])
            for _ in range(len(places)):
                chosen = set(self._rng.sample(places, min(len(places), far + 1)))
                yield self.codec.decode([
                    min(sizes[j] - 1, max(0, n + self._rng.choice((-1, 1)))) if j in chosen else n
                    for j, n in enumerate(indices)
                ])  # fmt: skip


@register("front", "neighbours of the points that none dominates: ScaleHLS's search of designs")
def front(space: Space, seed: int | None, **options: Any) -> FrontNeighbours:
    return FrontNeighbours(space, seed, **options)

"""A cascade of models as a flow graph: what they scored becomes the stages' classifiers; and a stream beside it.

The first stage sees every event, each later one what is left. Its scores are taken of those events alone: a second
model's scores depend on the first's, which distributions of all events would not know (``independent=True`` shows how
much that is).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.cost.flows.flow_cost import FlowCost, flow_cost
from hasten.cost.flows.sorting import EmpiricalScores, Values, sort_out
from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import FlowGraph


@dataclass(frozen=True, eq=False)
class ScoredEvents:
    """Events that every stage has scored.

    Args:
        names: of the stages, in any order.
        scores: (events, stages); the higher, the more relevant.
        relevant: (events,) bool.

    Raises:
        HastenError: shapes that do not fit, a score that is no number, or no event of a kind.
    """

    names: tuple[str, ...]
    scores: Values
    relevant: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.relevant), len(self.names)) or len(set(self.names)) < len(self.names):
            raise HastenError(f"scores of {len(self.names)} stages: give (events, stages), and each stage one name")
        for column in self.scores.T:
            EmpiricalScores(column[~self.relevant], column[self.relevant])  # says what is wrong

    @classmethod
    def of(cls, relevant: ArrayLike, **scores: ArrayLike) -> ScoredEvents:
        """Events from labels, and from scores by stage."""
        columns = [np.asarray(s, float).ravel() for s in scores.values()]
        kinds = np.asarray(relevant, bool).ravel()
        if {len(c) for c in columns} != {len(kinds)}:
            raise HastenError(f"{len(kinds)} events have one score each of every stage")
        return cls(tuple(scores), np.stack(columns, 1), kinds)

    def column(self, name: str) -> Values:
        """A stage's scores (events,).

        Raises:
            HastenError: no such stage.
        """
        if name not in self.names:
            raise HastenError(f"no stage is called {name!r}: there are {', '.join(self.names)}")
        return np.asarray(self.scores[:, self.names.index(name)])


class CascadeStage(NamedTuple):
    """A model at its place in a cascade: one event in ``reduction`` passes, each takes ``joules``."""

    name: str
    joules: float
    reduction: float


class CascadeFlow(NamedTuple):
    """A cascade as a flow graph.

    Args:
        graph: source, stages and storage.
        cost: of the graph.
        thresholds: name of a stage -> score above which an event passes.
    """

    graph: FlowGraph
    cost: FlowCost
    thresholds: dict[str, float]

    @property
    def joules(self) -> float:
        """Of an event that comes in."""
        return self.cost.watts / float(self.cost.contingency.sum())


def cascade_flow(
    events: ScoredEvents, stages: Sequence[CascadeStage], *, relevant: float, rate: float = 1.0, size: float = 0.0,
    joules_per_bit: float = 0.0, independent: bool = False,
) -> CascadeFlow:  # fmt: skip
    """The flow graph of a cascade, and its cost.

    Args:
        events: scored by every stage; how many of them are relevant does not matter.
        stages: in order; one of reduction 1 sees and passes all.
        relevant: share of the stream's events that are.
        rate: events a second.
        size: bytes of an event.
        joules_per_bit: of the links from the source on.
        independent: whether a stage's scores are those of all events, as where stages do not know of each other.

    Raises:
        HastenError: no stage, a figure that is impossible, or too few events to know what a later stage scores.
    """
    if not stages or not 0 < relevant < 1:
        raise HastenError("a cascade has a stage at least, and a share of relevant events between 0 and 1")
    alive = np.ones(len(events.relevant), bool)
    flow = np.array([1 - relevant, relevant])
    link = {"joules_per_bit": joules_per_bit}
    nodes, thresholds = [], {}
    for stage, after in zip(stages, [*(s.name for s in stages[1:]), "storage"], strict=True):
        column = events.column(stage.name)
        seen = np.ones_like(alive) if independent else alive
        kinds = [column[seen & ~events.relevant], column[seen & events.relevant]]
        if not all(len(k) for k in kinds):
            raise HastenError(f"no scored event of a kind reaches {stage.name}: score more, or reduce less before it")
        found = sort_out(EmpiricalScores(*kinds), flow, stage.reduction)
        flow, alive = flow * found.passed, alive & (column > found.threshold)
        thresholds[stage.name] = found.threshold
        scores = {"kind": "scores", "irrelevant": kinds[0].tolist(), "relevant": kinds[1].tolist()}
        nodes.append({
            "name": stage.name, "reduction": stage.reduction, "classifier": scores, "ops": (1.0,),
            "joules_per_op": stage.joules, "links": [{"to": after, **link}],
        })  # fmt: skip
    source = {"name": "events", "bytes": size, "rate": rate, "links": [{"to": stages[0].name, **link}]}
    graph = FlowGraph.of(
        name="cascade", sources=[source], stages=[*nodes, {"name": "storage"}], relevant=relevant
    )  # fmt: skip
    return CascadeFlow(graph, flow_cost(graph), thresholds)


class Streamed(NamedTuple):
    """What happened to a stream of events.

    Args:
        received: (stages, 2) irrelevant and relevant events that each stage saw.
        stored: (2,) that passed all.
        joules: of an event that came in.
    """

    received: NDArray[np.int64]
    stored: NDArray[np.int64]
    joules: float

    @property
    def passing(self) -> Values:
        """(stages,) share of a stage's events that it passed."""
        totals = np.append(self.received.sum(1), self.stored.sum())
        return totals[1:] / np.maximum(totals[:-1], 1)

    @property
    def recall(self) -> float:
        """Share of relevant events that were stored."""
        return float(self.stored[1] / max(1, self.received[0, 1]))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return float(2 * self.stored[1] / max(1, self.stored.sum() + self.received[0, 1]))

    @property
    def productivity(self) -> float:
        """As `FlowCost.productivity`."""
        kept = self.stored.sum() / max(1, self.received[0].sum())
        return float(self.f1 * kept / self.joules) if self.joules else math.inf


def streamed(
    events: ScoredEvents, stages: Sequence[CascadeStage], thresholds: Sequence[float], *, relevant: float, count: int,
    seed: int = 0,
) -> Streamed:  # fmt: skip
    """Sends events one by one through a cascade's thresholds, and counts: nothing of the flow graph is used.

    Args:
        events: from which the stream is drawn, other than those that thresholds were chosen by.
        stages: whose energies are summed; their reductions do not matter.
        thresholds: of the stages' scores.
        relevant: how likely an event is.
        count: events.
        seed: of the stream.

    Raises:
        HastenError: fewer than no events, or a share of relevant ones that is none.
    """
    if count < 0 or not 0 <= relevant <= 1:
        raise HastenError(f"a stream of {count} events, of which {relevant:g} are relevant: give a number and a share")
    generator = np.random.default_rng(seed)
    kinds = [np.flatnonzero(events.relevant == kind) for kind in (False, True)]
    drawn = generator.random(count) < relevant
    chosen = np.where(drawn, *(k[generator.integers(len(k), size=count)] for k in reversed(kinds)))
    received, spent = [], 0.0
    for stage, threshold in zip(stages, thresholds, strict=True):
        received.append(np.bincount(events.relevant[chosen], minlength=2))
        spent += stage.joules * len(chosen)
        chosen = chosen[events.column(stage.name)[chosen] > threshold]
    stored = np.bincount(events.relevant[chosen], minlength=2)
    return Streamed(np.stack(received), stored, spent / max(1, count))


class Gaps(NamedTuple):
    """How far a flow graph is off a stream, as shares of what the stream showed; the greatest is ``worst``."""

    passing: float
    recall: float
    joules: float

    @property
    def worst(self) -> float:
        return max(self)


def stream_gaps(flow: CascadeFlow, stream: Streamed) -> Gaps:
    """Of what each stage passes (the greatest), of recall, and of an event's energy."""
    cost = flow.cost
    predicted = [cost.nodes[n].passed.sum() / cost.nodes[n].received.sum() for n in flow.thresholds]
    passing = max(abs(p / s - 1) if s else math.inf for p, s in zip(predicted, stream.passing, strict=True))
    recall = abs(cost.recall / stream.recall - 1) if stream.recall else math.inf
    joules = abs(flow.joules / stream.joules - 1) if stream.joules else math.inf if flow.joules else 0.0
    return Gaps(float(passing), recall, joules)


__all__ = [
    "CascadeFlow",
    "CascadeStage",
    "Gaps",
    "ScoredEvents",
    "Streamed",
    "cascade_flow",
    "stream_gaps",
    "streamed",
]

"""A cheap model before a costly one: which is first, and how much it sorts out; samples for a joule (measured here)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from hasten.cost.flows.cascade import CascadeStage, cascade_flow
from hasten.cost.flows.measured_cascade import MeasuredPair, measured_pair
from hasten.errors import HastenError
from hasten.processes import one_thread
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space
from hasten.train.cascade_pair import detection_signals, trained_detectors

NEEDS: str = "pair"


def problem(
    pair: MeasuredPair | None = None, *, relevant: float = 0.02, reduction: float | None = None, recall: float = 0.0,
    size: float = 0.0, joules_per_bit: float = 0.0, points: int = 33, steps: int = 1000, count: int = 60_000,
) -> Problem:  # fmt: skip
    """The productivity and F1 of a cascade that passes one event in so many, over who is first and how much it passes.

    A first stage that passes all, and a second one, are left out: each model alone is a point too.

    Args:
        pair: of any two models (`hasten.cost.flows.measured_cascade.measured_pair`); a small and a larger network that
            look for a digit in signals of MNIST-1D, trained and measured here, when None.
        relevant: share of events that are.
        reduction: events for each that is stored; as many as for each relevant one when None.
        recall: share of relevant events that must be stored.
        size, joules_per_bit: bytes of an event, and J of moving a bit to a stage or the storage.
        points: reductions of the first stage to choose from, in equal ratios.
        steps, count: of the training where no pair is given, and signals that are scored.

    Raises:
        HastenError: a share or reduction that is none, fewer than two points, or a pair of other than two models.
    """
    if not 0 < relevant < 1 or not 0 <= recall <= 1:
        raise HastenError("shares of events lie between 0 and 1")
    total = 1 / relevant if reduction is None else float(reduction)
    if not 1 < total < math.inf or points < 2:
        raise HastenError("a cascade passes one event in more than 1, and has two points or more to choose from")
    if pair is None:
        with one_thread():
            signals = detection_signals((12_000, count, 10))
            models = trained_detectors(signals, steps=steps)
            pair = measured_pair(models, signals.held, signals.held_relevant)
    events, joules = pair
    if len(events.names) != 2 or set(events.names) != set(joules):
        raise HastenError(f"a cascade is of two models with their energies, not of {', '.join(events.names)}")
    grid = [round(total ** (i / (points - 1)), 6) for i in range(points - 1)] + [total]

    def evaluate(params: Params) -> Mapping[str, Any]:
        first, own = str(params["first"]), float(params["reduction"] or 1)
        (second,) = (n for n in events.names if n != first)
        rest = max(1.0, total / own)
        stages = [CascadeStage(n, joules[n], r) for n, r in ((first, own), (second, rest)) if r > 1]
        try:
            flow = cascade_flow(events, stages, relevant=relevant, size=size, joules_per_bit=joules_per_bit)
        except HastenError as error:
            raise Infeasible(str(error)) from None
        cost = flow.cost
        found = {
            "productivity": cost.productivity, "f1": cost.f1, "recall": cost.recall, "precision": cost.precision,
            "energy": flow.joules, "thresholds": flow.thresholds,
        }  # fmt: skip
        return found | ({"missing": recall - cost.recall} if recall else {})

    digest = hashlib.sha256(events.scores.tobytes() + events.relevant.tobytes()).hexdigest()[:16]
    figures = {"relevant": relevant, "reduction": total, "recall": recall, "size": size, "link": joules_per_bit}
    return Problem(
        "cascade",
        Space([categorical("first", events.names), ordinal("reduction", grid)]),
        (Objective("productivity", "maximize", "1/J"), Objective("f1", "maximize")),
        evaluate,
        constraints=("missing",) if recall else (),
        identity={
            "scores": digest,
            "stages": ", ".join(events.names),
            **{k: f"{v:g}" for k, v in figures.items()},
        },
        units={"energy": "J"},
    )

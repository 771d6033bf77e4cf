"""The second step of tuning: what there is to choose, and what the cost model says of every combination."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hasten.cost import Estimate, estimate
from hasten.hardware import Device
from hasten.methods import Context, Method, clash, ordered, registry, unwritable
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space
from hasten.tuning.outcome import Combination, Prediction
from hasten.tuning.prepare import Prepared
from hasten.workload import Workload

NONE = "unchanged"
# Predictions within this factor of each other count as equal.
_STEP = 1.25
# Kinds that come first in a study's space, in this order; others, such as those of a user's methods, follow.
_FIRST = ("weights", "cache", "window", "depth", "drafts")


@dataclass(frozen=True)
class Choices:
    """What there is to choose.

    Args:
        options: for each kind of method its choices by label, leaving the model as it is (None) first.
        skipped: what is not tried, by title, and why.
    """

    options: Mapping[str, Mapping[str, Method | None]]
    skipped: Mapping[str, str]

    @property
    def space(self) -> Space:
        """One choice for each kind."""
        return Space([categorical(kind, list(labels)) for kind, labels in self.options.items()])

    def methods(self, point: Params) -> list[Method]:
        """The methods of a point of the space, as they are applied.

        Raises:
            HastenError: they do not go together.
        """
        chosen = [self.options[kind][str(label)] for kind, label in point.items()]
        return ordered([m for m in chosen if m is not None])

    def label(self, method: Method) -> str:
        """A method's own label among all."""
        return next(label for labels in self.options.values() for label, m in labels.items() if m == method)


@dataclass(frozen=True)
class Predictions:
    """Every combination that methods allow, predicted.

    Args:
        methods: those of each combination, by its title, in the order that they are applied.
        points: where in the space each stands.
        combinations: their predictions.
    """

    methods: Mapping[str, tuple[Method, ...]]
    points: Mapping[str, Params]
    combinations: Mapping[str, Combination]


def choices(context: Context) -> Choices:
    """What applies to a model, of every method that is defined: hasten's and the user's own.

    Args:
        context: what methods may know of the run.
    """
    offered: dict[str, list[Method]] = {kind: [] for kind in _FIRST}
    skipped: dict[str, str] = {}
    for known in registry().values():
        found = known.candidates(context)
        if not found and known.untried:
            skipped[known.name] = known.untried
        for method in found:
            reason = unwritable(method) or method.why_not_tried(context) or method.why_not(context.model)
            if reason:
                skipped[method.title] = reason
            else:
                offered.setdefault(method.kind, []).append(method)
    usable = {kind: list(dict.fromkeys(methods)) for kind, methods in offered.items() if methods}
    titles = Counter(m.title for methods in usable.values() for m in methods)

    def label(method: Method) -> str:
        if titles[method.title] == 1 and method.title != NONE:
            return method.title
        # Two with one title are told apart by all their settings.
        settings = ", ".join(f"{k} {v}" for k, v in method.to_dict().items() if k != "method")
        return f"{method.title} ({method.name} {settings})" if settings else f"{method.title} ({method.name})"

    options = {kind: {NONE: None, **{label(m): m for m in methods}} for kind, methods in usable.items()}
    return Choices(options, skipped)


def estimated(prepared: Prepared, device: Device, workload: Workload) -> Estimate:
    """What the cost model says of a workload on a device, run as this model runs."""
    compiled = prepared.base.why_not_compiled is None
    return estimate(workload, device, schedule={"prefill": "eager", "decode": "fused" if compiled else "eager"})


def prediction(cost: Estimate, workload: Workload) -> Prediction:
    """Seconds of both phases, and bytes of weights and cache."""
    memory = float(workload.weight_bytes + workload.state_bytes)
    return Prediction(prefill=cost.phase("prefill").latency, decode=cost.phase("decode").latency, memory=memory)


def predict(
    prepared: Prepared,
    device: Device,
    workload: Workload,
    found: Choices,
    *,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Predictions:
    """Every combination of one choice for each kind, with what the cost model says of it.

    Args:
        prepared: the model.
        device: what predictions are for.
        workload: of the unchanged model.
        found: what there is to choose.
        progress: told how many combinations of how many are done.
    """
    combinations: dict[str, Combination] = {}
    methods_of: dict[str, tuple[Method, ...]] = {}
    points: dict[str, Params] = {}
    every = list(itertools.product(*(labels.items() for labels in found.options.values())))
    labels = {m: label for some in found.options.values() for label, m in some.items() if m is not None}
    rewritten: dict[tuple[Method, ...], Workload] = {(): workload}

    def described(methods: tuple[Method, ...]) -> Workload:
        # Combinations share their first methods: each is rewritten once.
        if methods not in rewritten:
            rewritten[methods] = methods[-1].rewrite(described(methods[:-1]))
        return rewritten[methods]

    for done, choice in enumerate(every):
        together = [method for _, method in choice if method is not None]
        methods = () if clash(together) else tuple(ordered(together))
        if methods:
            title = " + ".join(labels[m] for m in methods)
            changed = described(methods)
            combinations[title] = Combination(
                title=title,
                methods=[m.to_dict() for m in methods],
                predicted=prediction(estimated(prepared, device, changed), changed),
            )
            methods_of[title] = methods
            points[title] = {kind: label for kind, (label, _) in zip(found.options, choice, strict=True)}
        progress(done + 1, len(every))
    return Predictions(methods_of, points, combinations)


def corrected(combination: Combination, alone: Sequence[Combination], baseline: Combination) -> float:
    """Predicted latency in seconds, corrected by what was measured.

    Each phase is scaled as the baseline's measurement is to its prediction, and again by how each method alone came
    out against its own prediction. Single measurements are noisy: no method counts for more than a factor of two.
    """
    if baseline.measured is None:
        return combination.predicted.latency
    total = 0.0
    for phase in ("prefill", "decode"):
        ratio = getattr(baseline.measured, phase) / getattr(baseline.predicted, phase)
        scale = ratio
        for one in alone:
            own = getattr(one.measured, phase) / getattr(one.predicted, phase)
            scale *= min(2.0, max(0.5, own / ratio))
        total += getattr(combination.predicted, phase) * scale
    return total


def gentle_first(predicted: Prediction, unchanged: Prediction) -> float:
    """Predicted latency in steps as coarse as predictions are; within a step, what keeps more bits of the model first.

    With little time, one that is as fast and likelier to keep the quality is measured before the smallest.
    """
    step = math.floor(math.log(predicted.latency) / math.log(_STEP))
    return step + 0.9 * max(0.0, 1 - predicted.memory / unchanged.memory)

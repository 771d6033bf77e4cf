"""The second step of tuning: what there is to choose, and what the cost model says of every combination."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hasten.cost import Estimate, estimate
from hasten.cost.folding import folded, resident_bytes
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.methods import Context, Method, clash, ordered, registry, unwritable
from hasten.methods.network_method import FUSED
from hasten.runtime.tracing import beneath
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space
from hasten.tuning.call_costs import seconds_beyond
from hasten.tuning.network import PreparedNetwork
from hasten.tuning.outcome import PHASES, Combination, Prediction, Wanted, seconds_of
from hasten.tuning.prepare import Deadline, Prepared
from hasten.workload import Workload

NONE = "unchanged"
# Predictions within this factor of each other count as equal.
_STEP = 1.25
# What a call measured on other sizes may take off a prediction.
_LEAST = 0.1
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
    """The combinations that methods allow, predicted.

    Args:
        methods: those of each combination, by its title, in the order that they are applied.
        points: where in the space each stands.
        combinations: their predictions.
        considered: how many there are, those without a prediction included.
    """

    methods: Mapping[str, tuple[Method, ...]]
    points: Mapping[str, Params]
    combinations: Mapping[str, Combination]
    considered: int = 0


def choices(context: Context) -> Choices:
    """What applies to a model, of every method that is defined: hasten's and the user's own.

    Args:
        context: what methods may know of the run.
    """
    offered: dict[str, list[Method]] = {kind: [] for kind in _FIRST}
    skipped: dict[str, str] = {}
    for known in registry().values():
        if context.subject not in known.subjects:
            continue
        try:
            found = known.candidates(context)
        except HastenError as error:  # a network that fails where one method looks at it has others
            skipped[known.name] = str(error)
            continue
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


def estimated(prepared: Prepared | PreparedNetwork, device: Device, workload: Workload) -> Estimate:
    """What the cost model says of a workload on a device, run as this model runs."""
    if isinstance(prepared, PreparedNetwork):
        return estimate(workload, device, schedule="fused" if workload.attributes.get(FUSED) else "eager")
    if prepared.base.why_not_compiled is not None:
        return estimate(workload, device)
    # Prompts run compiled too, unless a policy looks at them (`LanguageModel.prefill`).
    return estimate(
        workload,
        device,
        schedule={"prefill": "eager" if "policy" in workload.attributes else "fused", "decode": "fused"},
    )


def prediction(cost: Estimate, workload: Workload) -> Prediction:
    """Seconds of each phase, and bytes of weights and cache."""
    memory = float(sum(resident_bytes(workload)))
    return Prediction(memory=memory, **{p.name: p.latency for p in cost.phases})


def predicted(
    prepared: Prepared | PreparedNetwork, device: Device, methods: Sequence[Method], workload: Workload
) -> Prediction:
    """What the cost model says of a model with methods, of a network with what its calls take beside.

    Args:
        prepared: the model.
        device: what it is for.
        methods: that it has.
        workload: what it then computes.
    """
    said = prediction(estimated(prepared, device, workload), workload)
    if not isinstance(prepared, PreparedNetwork):
        return said
    seconds = said.forward + seconds_beyond(device, methods, workload)
    return said.model_copy(update={"forward": max(seconds, _LEAST * said.forward)})


class Descriptions:
    """What a model computes with methods: each rewriting is made once, and equal layers are described once.

    Methods that treat equal layers apart (`Method.layerwise`) get every layer, and come first; of what they leave
    equal layers are folded (`hasten.cost.folding`), and all others rewrite the few that are left.

    Args:
        workload: of the unchanged model.
    """

    def __init__(self, workload: Workload) -> None:
        self._whole: dict[tuple[Method, ...], Workload] = {(): workload}
        self._folded: dict[tuple[Method, ...], Workload] = {}

    def of(self, methods: Sequence[Method]) -> Workload:
        """The workload with methods, which are in order."""
        apart = tuple(m for m in methods if m.layerwise)
        return self._short(apart + tuple(m for m in methods if not m.layerwise), len(apart))

    def _short(self, methods: tuple[Method, ...], apart: int) -> Workload:
        if methods not in self._folded:
            if len(methods) == apart:
                self._folded[methods] = beneath(self._long(methods), folded)
            else:
                self._folded[methods] = methods[-1].rewrite(self._short(methods[:-1], apart))
        return self._folded[methods]

    def _long(self, methods: tuple[Method, ...]) -> Workload:
        if methods not in self._whole:
            self._whole[methods] = methods[-1].rewrite(self._long(methods[:-1]))
        return self._whole[methods]


def predict(
    prepared: Prepared | PreparedNetwork,
    device: Device,
    workload: Workload,
    found: Choices,
    *,
    deadline: Deadline = Deadline(),  # noqa: B008
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Predictions:
    """Combinations of one choice for each kind, with what the cost model says of them.

    Each method alone comes first, then combinations, best first by what their methods give alone, until the deadline.

    Args:
        prepared: the model.
        device: what predictions are for.
        workload: of the unchanged model.
        found: what there is to choose.
        deadline: when to stop; each method alone is predicted even so.
        progress: told how many combinations of how many are done.
    """
    labels = {m: label for some in found.options.values() for label, m in some.items() if m is not None}
    every: dict[tuple[Method, ...], Params] = {}
    for choice in itertools.product(*(options.items() for options in found.options.values())):
        together = [method for _, method in choice if method is not None]
        if together and not clash(together):
            every[tuple(ordered(together))] = {k: label for k, (label, _) in zip(found.options, choice, strict=True)}
    descriptions = Descriptions(workload)
    known: dict[tuple[Method, ...], Prediction] = {}

    def add(methods: tuple[Method, ...]) -> None:
        # What it is made of, one method less at a time, is measured where it turns out to be the best.
        if methods not in every or methods in known:
            return
        add(methods[:-1])
        changed = descriptions.of(methods)
        known[methods] = predicted(prepared, device, methods, changed)
        progress(len(known), len(every))

    for methods in every:
        if len(methods) == 1:
            add(methods)
    before = predicted(prepared, device, (), descriptions.of(()))
    wanted = prepared.settings.wanted

    def promise(methods: tuple[Method, ...]) -> float:
        return seconds_of(composed(before, [known[(m,)] for m in methods if (m,) in known]), wanted)

    for methods in sorted(every, key=promise):
        if deadline.left == 0:
            break
        add(methods)
    combinations: dict[str, Combination] = {}
    methods_of: dict[str, tuple[Method, ...]] = {}
    points: dict[str, Params] = {}
    for methods, point in every.items():
        if (said := known.get(methods)) is not None:
            title = " + ".join(labels[m] for m in methods)
            combinations[title] = Combination(title=title, methods=[m.to_dict() for m in methods], predicted=said)
            methods_of[title] = methods
            points[title] = point
    return Predictions(methods_of, points, combinations, len(every))


def composed(before: Prediction, alone: Sequence[Prediction]) -> Prediction:
    """What several methods give together if each gives what it gives alone: their ratios multiplied."""
    found = before.model_dump()
    for one in alone:
        for name, value in one.model_dump().items():
            found[name] *= value / getattr(before, name) if getattr(before, name) else 1.0
    return Prediction(**found)


def corrected(
    combination: Combination, alone: Sequence[Combination], baseline: Combination, wanted: Wanted = "total"
) -> float:
    """Predicted seconds of what is wanted, corrected by what was measured.

    Each phase is scaled as the baseline's measurement is to its prediction, and again by how each method alone came
    out against its own prediction. Single measurements are noisy: no method counts for more than a factor of two.
    """
    if baseline.measured is None:
        return seconds_of(combination.predicted, wanted)
    seconds = {}
    for phase in PHASES:
        if not getattr(baseline.predicted, phase):
            continue
        ratio = getattr(baseline.measured, phase) / getattr(baseline.predicted, phase)
        scale = ratio
        for one in alone:
            own = getattr(one.measured, phase) / getattr(one.predicted, phase)
            scale *= min(2.0, max(0.5, own / ratio))
        seconds[phase] = getattr(combination.predicted, phase) * scale
    return seconds_of(Prediction(**seconds, memory=combination.predicted.memory), wanted)


def gentle_first(predicted: Prediction, unchanged: Prediction, wanted: Wanted = "total") -> float:
    """Predicted seconds in steps as coarse as predictions are; within a step, what keeps more bits of the model first.

    With little time, one that is as fast and likelier to keep the quality is measured before the smallest.
    """
    step = math.floor(math.log(seconds_of(predicted, wanted)) / math.log(_STEP))
    return step + 0.9 * max(0.0, 1 - predicted.memory / unchanged.memory)

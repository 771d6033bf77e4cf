"""What following the law of test-time scaling gains, and what sparse attention gains, on recorded answers (Kinetics).

Two things that are easily taken for one: the law says to choose a dense model, its trials and its length by all costs
and not by FLOPs alone; sparse attention makes the same answers cheaper. arXiv 2506.05333, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.cost.serving.recorded_trials import Record, points
from hasten.cost.serving.scaling import Point, best_within, envelope
from hasten.errors import HastenError


def spent(records: Sequence[Record], method: str, caps: Sequence[int | None], intensity: float) -> list[Point]:
    """Accuracy and mean cost of every model, budget, number of trials and cap on tokens under one kind of attention.

    Args:
        records: of several models and kinds of attention.
        method: one of `hasten.cost.serving.scaling.METHODS`.
        caps: tokens after which an answer is cut off, None for none.
        intensity: FLOPs of the hardware in the time of a byte; 0 counts FLOPs alone.

    Raises:
        HastenError: no record is of that kind.
    """
    found = points([r for r in records if r.method == method], caps, intensity)
    if not found:
        raise HastenError(f"no answers were recorded with {method} attention: record some")
    return found


@dataclass(frozen=True)
class Compared:
    """Sparse beside dense attention on one device.

    Args:
        most, least: by how much more is right at the cost of a point of the dense frontier.
        ratio: cost at which the sparse one is as often right as the dense one ever is, over the dense one's; infinite
            where it never is.
        best: share that the dense one gets right at most.
        own: share that the sparse one does.
    """

    most: float
    least: float
    ratio: float
    best: float
    own: float


def compared(records: Sequence[Record], method: str, caps: Sequence[int | None], intensity: float) -> Compared:
    """``method`` beside dense attention at equal cost, see `spent`."""
    whole, part = (envelope(spent(records, m, caps, intensity)) for m in ("dense", method))
    top = whole[-1]
    needed = [p.cost for p in part if p.accuracy >= top.accuracy]
    others = [(best_within(part, point.cost), point) for point in whole]
    gaps = [(other.accuracy if other else 0.0) - point.accuracy for other, point in others]
    ratio = needed[0] / top.cost if needed else float("inf")
    return Compared(max(gaps), min(gaps), ratio, top.accuracy, part[-1].accuracy)


@dataclass(frozen=True)
class Law:
    """What choosing by all costs changes against choosing by FLOPs alone, on one device.

    Every point of the dense frontier by FLOPs is a case; all are charged with what they cost in full.

    Args:
        gain: the most times less that an equal accuracy costs where dense attention is chosen by all costs: the law's
            own. 1 where both choose alike.
        sparse: the most times less that an equal accuracy costs with sparse attention than with dense, both chosen by
            all costs; 0 where sparse attention never gets as much right.
        cases: how many were compared.
        no_larger: in how many the choice by FLOPs has no larger a model than the law's at the same full cost.
        smaller: in how many a smaller one.
    """

    gain: float
    sparse: float
    cases: int
    no_larger: int
    smaller: int

    @property
    def larger_models_first(self) -> bool:
        """Whether the law never chooses a smaller model than FLOPs do, and at least once a larger one."""
        return self.no_larger == self.cases and self.smaller > 0


def by_the_law(records: Sequence[Record], method: str, caps: Sequence[int | None], intensity: float) -> Law:
    """The law's gain, and beside it that of sparse attention by ``method``, see `spent`.

    Args:
        intensity: above 0, or both ways of choosing are one.
    """
    named = {r.decoder.name: r.decoder.active_parameters for r in records}

    def setting(point: Point) -> tuple[object, ...]:
        return tuple(point.settings[k] for k in ("model", "budget", "trials", "longest"))

    every = spent(records, "dense", caps, intensity)
    full = {setting(p): p.cost for p in every}
    whole, part = envelope(every), envelope(spent(records, method, caps, intensity))
    gains, sparse, sizes = [], [0.0], []
    for point in envelope(spent(records, "dense", caps, 0.0)):
        price = full[setting(point)]
        # The point itself is among them, so there is one.
        cheapest = next(p.cost for p in whole if p.accuracy >= point.accuracy)
        gains.append(price / cheapest)
        sparse += [cheapest / p.cost for p in part if p.accuracy >= point.accuracy][:1]
        rival = best_within(whole, price)
        assert rival is not None
        sizes.append((named[point.settings["model"]], named[rival.settings["model"]]))
    return Law(max(gains), max(sparse), len(sizes), sum(a <= b for a, b in sizes), sum(a < b for a, b in sizes))

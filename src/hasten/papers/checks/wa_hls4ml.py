"""Checks of wa-hls4ml: A Benchmark and Surrogate Models for hls4ml Resource and Latency Estimation."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from hasten.cost.chips.published_syntheses import SYNTHESES, rule_of_reuse
from hasten.cost.chips.synthesised import (
    TARGETS,
    DesignSplit,
    exact_estimator,
    known_values,
    resynthesised,
    split_by_depth,
    split_by_structure,
    split_by_width,
    synthesised_designs,
)
from hasten.cost.prediction_errors import PredictionErrors
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.search.codesign.hls_comparison import analytic_estimator
from hasten.train.resource_surrogates import (
    SURROGATES,
    SuccessClassifier,
    judged_outcomes,
    resource_surrogate,
    surrogate_errors,
)

Errors = dict[str, PredictionErrors]
_NETWORKS = ("graph", "transformer")
_SPLIT = 100  # first seed of splits by structure: those from 0 on were looked at while the networks were made


class _Learned(NamedTuple):
    """Errors of a surrogate on circuits that it did not learn from, seconds of one prediction, a network's readout."""

    errors: Errors
    seconds: float
    readout: str


Kinds = dict[str, list[_Learned]]


def _learned(kind: str, split: DesignSplit, steps: int, seed: int) -> _Learned:
    options = {"steps": steps, "readout": None} if kind in _NETWORKS else {}
    made = resource_surrogate(kind, seed=seed, **options).fit({"yosys": known_values(split.train)})
    design = next(r.design for r in split.test if r.values)
    begun = time.perf_counter()
    made.predict([design])
    seconds = time.perf_counter() - begun
    return _Learned(surrogate_errors(made, split.test), seconds, str(getattr(made, "chosen", "")))


def _mean(seen: list[_Learned], target: str) -> float:
    """75th percentile of the relative error in percent, mean over seeds."""
    return statistics.fmean(one.errors[target].within for one in seen)


def _all(experiment: Experiment, splits: dict[str, dict[int, DesignSplit]]) -> tuple[dict[str, Kinds], str]:
    """Of each way to part circuits: kind -> what it reached on each seed's split; and a clause on those that failed."""
    steps = experiment.at(quick=3, normal=experiment.steps(800))
    # The slowest kind first, of every way, so that processes are done together.
    plan = {
        f"{way} {kind} {s}": (kind, split, steps, s)
        for kind in SURROGATES for way, by_seed in splits.items() for s, split in by_seed.items()
    }  # fmt: skip
    found, failed = succeeded(experiment.arms(_learned, plan), [name for name in plan if " boosting " not in name])
    made = {
        way: {
            kind: [found[f"{way} {kind} {s}"] for s in by_seed if f"{way} {kind} {s}" in found] for kind in SURROGATES
        }
        for way, by_seed in splits.items()
    }
    return {way: {kind: seen for kind, seen in kinds.items() if seen} for way, kinds in made.items()}, failed


@shared(weight=140)
def _structures(experiment: Experiment) -> tuple[Kinds, str]:
    """Errors on structures that nobody learned from."""
    rows = synthesised_designs()
    splits = {s: split_by_structure(rows, 0.7, _SPLIT + s) for s in experiment.seeds(1, long=5)}
    found, failed = _all(experiment, {"structures": splits})
    return found["structures"], failed


def _words(kinds: Kinds, targets: tuple[str, ...] = tuple(TARGETS)) -> str:
    return "; ".join(
        f"{kind} " + ", ".join(f"{t} {_mean(seen, t):.1f}" for t in targets) for kind, seen in kinds.items()
    )


@check("W1", weight=60, needs=180)
def _surrogates(experiment: Experiment) -> Seen:
    """75th percentile of the relative error on structures that were not learned from: at most 10 % of lookup tables and
    flip-flops, both networks before ridge regression; slices, cycles and interval exact by rule. A random few circuits
    are synthesised again where the tools are."""
    kinds, failed = experiment.once(_structures)
    rows = [r for r in synthesised_designs() if r.values]
    valid = exact_estimator().predict([r.design for r in rows]).inside
    ruled_rows = [r for r, inside in zip(rows, valid, strict=True) if inside]
    rule = {t: exact_estimator().predict([r.design for r in ruled_rows], t) for t in ("dsp", "cycles", "interval")}
    exact = {t: sum(a == r.values[t] for a, r in zip(said, ruled_rows, strict=True)) for t, said in rule.items()}
    dense = [r for r in rows if not any(layer.convolution for layer in r.design.layers)]
    formulas = surrogate_errors(analytic_estimator(), experiment.at(quick=dense[:2], normal=dense))
    again = ""
    same = True
    try:
        equal, count = resynthesised(rows, experiment.at(quick=1, normal=5, long=20), experiment.seed)
        again, same = f"{equal} of {count} synthesised again are the same", equal == count
    except HastenError as error:
        again = f"none synthesised again ({error})"
    outcomes = {r.design: bool(r.values) for r in synthesised_designs()}
    success = _success(experiment)
    value = (
        f"{len(rows)} circuits really synthesised of {len(outcomes)}, 75th percentile in %: {_words(kinds)}; formulas "
        + ", ".join(f"{t} {e.within:.0f}" for t, e in formulas.items())
        + "; by rule exact: " + ", ".join(f"{t} {n}" for t, n in exact.items())
        + f" of {len(ruled_rows)} with reuse above 1; readouts chosen on circuits held out of those learned from: "
        + ", ".join(f"{kind} {'/'.join(one.readout for one in kinds[kind])}" for kind in _NETWORKS)
        + f"; {success}; {again}{failed}"
    )  # fmt: skip
    errors = {kind: {t: _mean(seen, t) for t in ("lut", "ff")} for kind, seen in kinds.items()}
    near = all(errors[kind][t] <= 10 for kind in _NETWORKS for t in ("lut", "ff"))
    before = all(errors[kind][t] < errors["ridge"][t] for kind in _NETWORKS for t in ("lut", "ff"))
    ruled = all(n == len(ruled_rows) for n in exact.values())
    return experiment.judge(value, near and before and ruled and same, before and same)


def _success(experiment: Experiment) -> str:
    """How well failures are told apart, on structures that the classifier did not learn from."""
    split = split_by_structure(synthesised_designs(), 0.7, _SPLIT + experiment.seed)
    train, test = ({r.design: bool(r.values) for r in part} for part in (split.train, split.test))
    try:
        steps = experiment.at(quick=3, normal=experiment.steps(400))
        found = judged_outcomes(SuccessClassifier(steps=steps, seed=experiment.seed).fit(train), test)
    except HastenError as error:
        return f"success not judged ({error})"
    return f"success: {found.right:.0%} of either kind right, area {found.area:.2f}, {found.failures[0]} failures asked"


@check("W3", weight=140, needs=180)
def _generalization(experiment: Experiment) -> Seen:
    """Networks of up to 3 layers are learned from and deeper ones asked, and of layers up to 12 wide and wider ones:
    errors are larger than within the sizes known."""
    rows, seeds = synthesised_designs(), experiment.seeds(1, long=5)
    ways = {"deep": split_by_depth(rows, 3), "wide": split_by_width(rows, 12)}
    found, failed = _all(experiment, {way: dict.fromkeys(seeds, split) for way, split in ways.items()})
    known, _ = experiment.once(_structures)
    targets = ("lut", "ff", "cycles")
    value = (
        f"75th percentile in %, 4 layers after 1 to 3: {_words(found['deep'], targets)}; wider than 12 after narrower: "
        f"{_words(found['wide'], targets)}; known sizes: {_words(known, targets)}{failed}"
    )
    gaps = [
        _mean(new[k], t) > _mean(known[k], t)
        for new in found.values() for k in _NETWORKS for t in ("lut", "ff")
    ]  # fmt: skip
    return experiment.judge(value, all(gaps), sum(gaps) > len(gaps) / 2)


@check("W4", weight=1)
def _seconds(experiment: Experiment) -> Seen:
    """A prediction of one circuit, beside what its synthesis took."""
    kinds, _ = experiment.once(_structures)
    rows = [r for r in synthesised_designs() if r.values]
    synthesis = statistics.fmean(r.seconds for r in rows)
    times = {kind: max(one.seconds for one in kinds[kind]) for kind in _NETWORKS}
    value = f"a synthesis takes {synthesis:.1f} s, a prediction " + ", ".join(
        f"{1e3 * s:.0f} ms ({kind})" for kind, s in times.items()
    )
    return experiment.judge(value, max(times.values()) < 1, max(times.values()) < synthesis)


@check("W5", weight=1)
def _rule(experiment: Experiment) -> Seen:
    """Cycles and slices of published designs, from widths, bits and the reuse that was asked for."""
    exact = sum(rule_of_reuse(r.widths, r.bits, r.reuse) == (r.cycles, r.dsp) for r in SYNTHESES)
    return experiment.judge(f"{exact} of {len(SYNTHESES)} designs exact in cycles and slices", exact == len(SYNTHESES))

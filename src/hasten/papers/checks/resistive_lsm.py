"""Checks of Resistive memory-based zero-shot liquid state machine for multimodal event data learning."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from typing import Any

import torch

from hasten.cost.spiking import recurrent_training, reservoir_training
from hasten.hardware.chips.crossbar import Crossbar
from hasten.nn import Reservoir
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.train.contrastive import Objective, Retrieved, TwoKinds, held_out_pairs
from hasten.train.reservoirs import (
    DigitEvents,
    analog_gap,
    counts,
    digit_events,
    digit_features,
    digit_reservoir,
    readout_accuracy,
    spiking_accuracy,
    word_events,
    zero_shot,
)
from hasten.train.spiking import align_spiking

# The paper's figures of R4, and what its scripts train: 100 epochs of projections of 200 neurons to 64.
_SAVED, _EPOCHS, _SIZE, _WIDTH = (152.83, 393.07), 100, 200, 64


@shared(weight=5)
def _data(experiment: Experiment) -> DigitEvents:
    return digit_events(experiment.at(quick=160, normal=None))


def _spread(values: list[float]) -> str:
    off = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * off:.1f} %"


def _beside_trained(
    experiment: Experiment, events: torch.Tensor, labels: torch.Tensor, training: torch.Tensor, **neurons: float
) -> tuple[str, float]:
    """Accuracies of linear readouts and of networks trained through time, in words, and by how much reservoirs are
    behind."""
    seeds, steps = experiment.seeds(5, long=10), experiment.at(quick=2, normal=experiment.steps(300))
    size = experiment.at(quick=20, normal=_SIZE)
    found = {}
    for label, recurrent in (("reservoir", True), ("without recurrence", False)):
        experiment.tell(label)
        features = [
            counts(Reservoir(events.shape[2], size, recurrent=recurrent, seed=s, **neurons), events)  # type: ignore[arg-type]
            for s in seeds
        ]
        found[label] = [readout_accuracy(f, labels, training, s) for f, s in zip(features, seeds, strict=True)]
    found["raw counts"] = [readout_accuracy(events.sum(1), labels, training)]
    arms = {f"trained {s}": (events, labels, training, s, size, steps) for s in seeds[:2]}
    experiment.tell("training spiking networks", 0.3)
    trained, _ = succeeded(experiment.arms(_trained, arms), arms)
    found["trained through time"] = list(trained.values())
    value = ", ".join(f"{label} {_spread(values)}" for label, values in found.items())
    return value, statistics.mean(found["trained through time"]) - statistics.mean(found["reservoir"])


@check("R1", weight=60, needs=120)
def _digits(experiment: Experiment) -> Seen:
    """Digits as events: a linear readout of the reservoir within ten points of a spiking network trained through time."""
    data = experiment.once(_data)
    value, behind = _beside_trained(experiment, data.noise, data.labels, data.training)
    return experiment.judge(value, behind <= 0.10)


@check("R2", weight=60, needs=120)
def _words(experiment: Experiment) -> Seen:
    """Synthetic speech: a reservoir not farther behind a trained network than the paper's is (11.8 points)."""
    value, behind = _beside_trained(
        experiment, *word_events(experiment.at(quick=2, normal=60)), threshold=5.3, decay=0.97, gain=0.08
    )
    return experiment.judge(value, behind <= 0.118)


def _trained(
    events: torch.Tensor, labels: torch.Tensor, training: torch.Tensor, seed: int, size: int, steps: int
) -> float:
    return spiking_accuracy(events, labels, training, seed, size=size, steps=steps)


_PROTOCOLS: dict[str, dict[str, Any]] = {
    "instance pairs": {},
    "class pairs": {"pairing": "class"},
    "instance pairs, dot products as they are": {"temperatures": (None,)},
    "prototypes": {"objective": "prototypes", "temperatures": (None,)},
    "shuffled pairs": {"shuffled": True, "temperatures": (None,)},
}


def _retrieved(kinds: list[TwoKinds], label: str, seed: int, how: dict[str, Any]) -> Retrieved:
    return zero_shot(kinds[:1] if "shuffled" in label else kinds, seed=seed, **how, **_PROTOCOLS[label])


def _aligned(data: DigitEvents, held: Any, objective: Objective, how: dict[str, Any]) -> tuple[float, float]:
    return align_spiking(data.noise, data.scan, data.labels, data.training, held, objective=objective, **how)


@check("R3", weight=200, needs=240)
def _zero_shot(experiment: Experiment) -> Seen:
    """All 45 pairs of held-out digits: pairs of one picture over 75 % on average, the interval of 95 % above chance."""
    data = experiment.once(_data)
    seeds, size = experiment.seeds(3, long=5), experiment.at(quick=20, normal=_SIZE)
    steps = experiment.at(quick=(2, 3), normal=tuple(experiment.steps(n) for n in (60, 180)))
    asked = held_out_pairs()[:: experiment.at(quick=30, normal=1)]
    kinds = {s: digit_features(data, s, size=size) for s in seeds}
    how: dict[str, Any] = {"pairs": asked, "steps": steps}
    arms = {f"{label} {s}": (kinds[s], label, s, how) for label, s in itertools.product(_PROTOCOLS, seeds)}
    found, told = succeeded(experiment.arms(_retrieved, arms), arms)
    parts = []
    for label in _PROTOCOLS:
        seen, unseen = (torch.stack([getattr(found[f"{label} {s}"], n) for s in seeds]) for n in ("seen", "unseen"))
        over = unseen.mean(0)
        half = 1.96 * float(over.std()) / len(over) ** 0.5
        parts.append((label, float(seen.mean()), float(over.mean()), half, unseen.mean(1)))
    chosen = Counter(t for s in seeds for t in found[f"instance pairs {s}"].temperatures)
    # Networks trained through time take the temperature that was chosen most often: there is no time to choose again.
    how = {"size": size, "steps": experiment.steps(150), "seed": seeds[0], "temperature": chosen.most_common(1)[0][0]}
    plan = {
        f"{objective} {pair}": (data, pair, objective, how)
        for pair in held_out_pairs()[:: experiment.at(quick=45, normal=15)]
        for objective in ("contrastive", "prototypes")
    }
    trained, failed = succeeded(experiment.arms(_aligned, plan))
    value = "; ".join(
        f"{label}: seen {100 * seen:.1f} %, unseen {100 * unseen:.1f} ± {100 * half:.1f} %"
        f" (reservoirs {_spread(each.tolist())})"
        for label, seen, unseen, half, each in parts
    )
    for objective in ("contrastive", "prototypes"):
        if some := [f for name, f in trained.items() if name.startswith(objective)]:
            known, new = (100 * statistics.mean(f[i] for f in some) for i in (0, 1))
            value += f"; trained through time, {objective}, {len(some)} pairs: seen {known:.1f} %, unseen {new:.1f} %"
    mean, half = parts[0][2:4]
    above = mean - half > 0.5
    value += "; temperatures chosen: " + ", ".join(f"{t or 'none'} {count}x" for t, count in chosen.most_common())
    return experiment.judge(value + told + failed, mean > 0.75 and above, above)


@check("R4", weight=5)
def _training(experiment: Experiment) -> Seen:
    """Operations of training alone, from the spikes that reservoirs of both kinds really make: 100 times fewer."""
    data = experiment.once(_data)
    found = []
    for scanned, events in ((False, data.noise), (True, data.scan)):
        additions = digit_reservoir(scanned).run_events(events[:200]).additions.double().mean().item()
        steps, channels = events.shape[1:]
        found.append((recurrent_training(1, _EPOCHS, steps, channels, _SIZE),
                      reservoir_training(1, _EPOCHS, _SIZE, _WIDTH, additions), additions))  # fmt: skip
    ratio = sum(f[0] for f in found) / sum(f[1] for f in found)
    rerun = sum(f[0] for f in found) / sum(f[1] + (_EPOCHS - 1) * f[2] for f in found)
    value = (
        f"{ratio:.0f}x fewer than training through time, reservoirs run once ({rerun:.0f}x, run in every epoch);"
        f" {found[0][2]:.0f} and {found[1][2]:.0f} additions an event-driven run; published {_SAVED[0]}x and {_SAVED[1]}x"
    )
    return experiment.judge(value, ratio >= 100, ratio > 1)


@check("R6", weight=80, needs=120)
def _analog(experiment: Experiment) -> Seen:
    """Reservoirs of formed cells beside their software twins: within two points at 5 % noise of each read."""
    data = experiment.once(_data)
    seeds, size = experiment.seeds(2, long=5), experiment.at(quick=20, normal=_SIZE)
    points = experiment.at(
        quick=((0.05, 0.0),), normal=((0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.2, 0.0), (0.05, 0.1), (0.05, 0.5))
    )
    arms = {
        f"{noise} {unformed} {s}": (data, Crossbar(input_bits=0, read_noise=noise, unformed=unformed), s, size)
        for noise, unformed in points
        for s in seeds
    }
    found, told = succeeded(experiment.arms(_gap, arms), arms)
    mean = {
        point: [statistics.mean(found[f"{point[0]} {point[1]} {s}"][i] for s in seeds) for i in (0, 1)]
        for point in points
    }
    value = "8-bit converters; " + ", ".join(
        f"{100 * noise:.0f} % noise{f' and {100 * unformed:.0f} % unformed' * bool(unformed)} {100 * analog:.1f} %"
        f" (software {100 * exact:.1f} %)"
        for (noise, unformed), (analog, exact) in mean.items()
    )
    analog, exact = mean[0.05, 0.0]
    return experiment.judge(value + told, abs(analog - exact) < 0.02, analog > exact - 0.05)


def _gap(data: DigitEvents, crossbar: Crossbar, seed: int, size: int) -> tuple[float, float]:
    return analog_gap(data, crossbar, seed, size=size)

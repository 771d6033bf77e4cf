"""Handwritten digits as two kinds of events, reservoirs that hear them, and retrieval of digits nobody trained on.

A digit is seen as noise of its pixels, and scanned column by column as a sound is. Both kinds come from the same
picture. Gain, temperature and steps of training are chosen for each held-out pair by two other classes, which that
training does not see either; the held-out pair is asked once, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.data.events import poisson_events, scan_events
from hasten.data.images import digits
from hasten.data.speech import cochlea_events, spoken_words
from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar
from hasten.nn.analog import noisy_reads
from hasten.nn.reservoir import Reservoir
from hasten.train.contrastive import Objective, Pairing, Retrieved, TwoKinds, align, held_out_pairs, validation_pair
from hasten.train.probing import linear_probe, probe_accuracy
from hasten.train.spiking import train_spiking_classifier

# Threshold and decay of neurons, as the paper's for pictures and for sounds.
_SEEN, _SCANNED = (5.0, 0.9), (5.3, 0.97)
_CHUNK = 300
# To choose from; None for dot products as they are, which the paper takes for sounds and pictures.
TEMPERATURES: tuple[float | None, ...] = (None, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class DigitEvents:
    """Digits as events of both kinds.

    Args:
        pictures: (samples, 64) pixels, 0 .. 1.
        noise: (samples, 50, 64) events of pixels.
        scan: (samples, 48, 32) events of a scan.
        labels: (samples,).
        training: (samples,) which are for training: seven of ten.
    """

    pictures: Tensor
    noise: Tensor
    scan: Tensor
    labels: Tensor
    training: Tensor


@functools.lru_cache(maxsize=2)
def digit_events(count: int | None = None, seed: int = 0) -> DigitEvents:
    """scikit-learn's digits as events; ``count`` of them, all when None.

    Raises:
        HastenError: scikit-learn is missing, or there are not so many.
    """
    pictures, labels = digits()
    if count is not None and not 0 < count <= len(labels):
        raise HastenError(f"there are {len(labels)} digits: take at least 1 and at most all of them, not {count}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    bright, asked = pictures[order].float() / 16, labels[order]
    training = torch.arange(len(order)) < 0.7 * len(order)
    return DigitEvents(
        bright.flatten(1), poisson_events(bright, seed=seed), scan_events(bright), asked, training
    )  # fmt: skip


@functools.lru_cache(maxsize=2)
def word_events(utterances: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Spoken digits, eleven words, as events (words, 129, 64), which word each is, and which are for training.

    Raises:
        HastenError: espeak-ng is not installed, or fails.
    """
    signals, labels, rate = spoken_words(utterances, seed=seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return cochlea_events(signals, rate)[order], labels[order], torch.arange(len(order)) < 0.7 * len(order)


@torch.no_grad()
def counts(reservoir: nn.Module, events: Tensor) -> Tensor:
    """A reservoir's counts of spikes, some samples at a time."""
    return torch.cat([reservoir(part) for part in events.split(_CHUNK)])


def digit_reservoir(scanned: bool, *, size: int = 200, gain: float = 0.07, seed: int = 0) -> Reservoir:
    """A reservoir for one of the two kinds of events."""
    threshold, decay = _SCANNED if scanned else _SEEN
    return Reservoir(
        32 if scanned else 64, size, gain=gain, threshold=threshold, decay=decay, seed=seed + (1 << 16) * scanned
    )  # fmt: skip


def readout_accuracy(features: Tensor, labels: Tensor, training: Tensor, seed: int = 0) -> float:
    """Accuracy of a linear readout of features (samples, in) on the samples that it was not trained on."""
    probe = linear_probe(features, labels, training, seed=seed)
    return probe_accuracy(probe, features[~training], labels[~training])


def spiking_accuracy(
    events: Tensor, labels: Tensor, training: Tensor, seed: int, *, size: int = 200, steps: int = 300
) -> float:
    """Accuracy of a spiking network of that size, trained through time."""
    module = train_spiking_classifier(events, labels, training, size=size, steps=steps, seed=seed)
    with torch.no_grad():
        found = torch.cat([module(part).argmax(1) for part in events[~training].split(_CHUNK)])
    return float((found == labels[~training]).float().mean())


def analog_gap(data: DigitEvents, crossbar: Crossbar, seed: int, *, size: int = 200) -> tuple[float, float]:
    """Accuracy of a reservoir read of noisy crossbars, and of its software twin, each with a readout of its own."""
    formed = Reservoir.formed(64, size, crossbar=crossbar, seed=seed)
    with noisy_reads(formed, seed):
        noisy = counts(formed, data.noise)
    exact = counts(formed.twin(), data.noise)
    noisy_one, exact_one = (readout_accuracy(f, data.labels, data.training, seed) for f in (noisy, exact))
    return noisy_one, exact_one


def digit_features(
    data: DigitEvents, seed: int, gains: Sequence[float] = (0.04, 0.07, 0.1), size: int = 200
) -> list[TwoKinds]:
    """Counts of both kinds, for each gain of the second kind's reservoir."""
    first = counts(digit_reservoir(False, size=size, seed=seed), data.noise)
    return [
        TwoKinds(
            first, counts(digit_reservoir(True, size=size, gain=g, seed=seed), data.scan), data.labels, data.training
        )
        for g in gains
    ]


def zero_shot(
    kinds: Sequence[TwoKinds], *, pairs: Sequence[tuple[int, int]] | None = None, pairing: Pairing = "instance",
    objective: Objective = "contrastive", temperatures: Sequence[float | None] = TEMPERATURES,
    steps: Sequence[int] = (100, 200, 400), shuffled: bool = False, width: int = 64, seed: int = 0,
) -> Retrieved:  # fmt: skip
    """Retrieval for every pair of held-out digits, with the features, temperature and steps that another pair chose.

    The temperature is chosen first, with the features in the middle, then the features with it.

    Args:
        kinds: features to choose of.
        pairs: held out; all 45 when None.
        pairing, objective, width, shuffled: as in `hasten.train.contrastive.align`.
        temperatures, steps: to choose of.
    """
    held = held_out_pairs() if pairs is None else list(pairs)
    how: dict[str, Any] = {
        "pairing": pairing, "objective": objective, "width": width, "shuffled": shuffled, "seed": seed, "steps": steps,
    }  # fmt: skip
    asked, middle = [validation_pair(pair) for pair in held], len(kinds) // 2

    def tried(choice: int, temperature: float | None, at: Sequence[int]) -> Tensor:
        """What the other pairs find (steps, sets)."""
        made = align(
            kinds, [choice] * len(at), [asked[i] for i in at], unused=[held[i] for i in at],
            temperature=temperature, **how,
        )  # fmt: skip
        return torch.stack([found.unseen for found in made])

    by_temperature = torch.stack([tried(middle, t, range(len(held))) for t in temperatures])
    chosen = [temperatures[best] for best in by_temperature.amax(1).argmax(0).tolist()]
    groups = {t: [i for i, own in enumerate(chosen) if own == t] for t in dict.fromkeys(chosen)}
    seen, unseen = torch.zeros(len(held)), torch.zeros(len(held))
    for temperature, at in groups.items():
        known = by_temperature[temperatures.index(temperature)][:, at]
        scores = torch.stack([known if c == middle else tried(c, temperature, at) for c in range(len(kinds))])
        best = scores.flatten(0, 1).argmax(0).tolist()
        made = align(
            kinds, [b // len(steps) for b in best], [held[i] for i in at], temperature=temperature, **how
        )  # fmt: skip
        for place, i in enumerate(at):
            found = made[best[place] % len(steps)]
            seen[i], unseen[i] = found.seen[place], found.unseen[place]
    return Retrieved(seen, unseen, tuple(chosen))

"""One once-for-all network against networks trained alone, on Fashion-MNIST, with the same time in all.

One network is trained for ``--seconds`` of processor time; some of its sub-networks are measured, a predictor learns
from them, and evolution picks the best within each of several latency limits, by a table of block latencies measured
here. With ``--tuning`` seconds each of ``--nets`` of them is then trained on by itself, as the paper does for a device;
without a teacher, who would know less here than they learn. The same architectures are trained alone by the same
recipe, as if there were ``--devices`` to serve: each for its share of the first arm's time once, and for the time of
the tuning. Accuracies are of 10,000 images that neither arm saw, latencies of ``--at-once`` images on one
thread, processor time is a thread's. What is finished is kept in ``--folder``, and a second run goes on from it.

    hasten assets get fashion-mnist
    python benchmarks/once_for_all.py [--json] [--folder once-for-all]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hasten.files import write_aside
from hasten.models.vision.once_for_all import Architecture, OnceForAll, SubNetwork, calibrate, resized
from hasten.processes import run_arms
from hasten.search.networks.members.once_for_all import OnceForAllSpace
from hasten.search.networks.specialize import AccuracyPredictor, evolve, measured
from hasten.spaces.once_for_all import SMALL, images, judged, specialized
from hasten.train.shrinking import train, train_alone
from rows import Row, emit

clock = time.process_time
Options = tuple[int, float, int]  # batch, rate, seed


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Kept:
    """What is known, in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.json"
        self.known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def put(self, **found: Any) -> None:
        self.known |= found
        write_aside(self.path, json.dumps(self.known, indent=1) + "\n", "what is known")


def supernet(folder: Path, kept: Kept, seconds: float, batch: int, rate: float, seed: int) -> OnceForAll:
    """The trained network, made when it is not there."""
    if "trained" not in kept.known:
        torch.manual_seed(seed)
        network = OnceForAll(SMALL)
        data, begun, phases = images(), clock(), [""]

        def tell(phase: str, share: float) -> None:
            if phase != phases[-1]:
                phases.append(phase)
                note(f"{phase} from {share:.0%}")

        options: dict[str, Any] = {"seconds": seconds, "batch": batch, "rate": rate, "seed": seed, "clock": clock}
        train(network, data.training, data.training_labels, progress=tell, **options)
        network.save(folder / "supernet")
        kept.put(trained=clock() - begun, batch=batch, rate=rate)
    return OnceForAll.load(folder / "supernet")


def picked(network: OnceForAll, kept: Kept, count: int, limits: int, at_once: int, seed: int) -> list[Architecture]:
    """The best sub-networks within several limits by prediction, smallest limit first."""
    import random

    if "picked" not in kept.known:
        data, begun, rng = images(), clock(), random.Random(seed)
        config = network.config
        archs = [config.sample(rng) for _ in range(count)]
        accuracies = []
        for i, arch in enumerate(archs):
            alone = specialized(network, arch, 1000)
            accuracies.append(judged(alone, data.held[:2000], data.held_labels[:2000]))
            if i % 20 == 0:
                note(f"{i} of {count} sub-networks measured")
        predictor = AccuracyPredictor(config, seed=seed).fit(archs, accuracies)
        table = measured(config, batch=at_once)
        ends = [
            table(config.architecture(config.kernels[0], config.expands[0], config.depths[0], config.resolutions[0])),
            table(config.architecture()),
        ]
        best = []
        for i in range(limits):
            limit = 1.05 * ends[0] * (ends[1] / ends[0]) ** (i / (limits - 1))
            found = evolve(OnceForAllSpace(config), predictor.predict, table, limit, generations=50, seed=seed)
            note(f"within {limit * 1e3:.2f} ms: {found.score:.2%} predicted at {found.latency * 1e3:.2f} ms")
            best.append(found.arch)
        unique = list(dict.fromkeys(best))
        kept.put(picked=[asdict(a) for a in unique], picking=clock() - begun)
    return [Architecture.from_dict(a) for a in kept.known["picked"]]


def tuned(folder: Path, number: int, arch: Architecture, seconds: float, options: Options) -> float:
    """Accuracy of a picked sub-network that was trained on by itself; it is saved."""
    batch, rate, seed = options
    data = images()
    made = specialized(OnceForAll.load(folder / "supernet"), arch)
    if seconds:
        given: dict[str, Any] = {"seconds": seconds, "batch": batch, "rate": rate, "seed": seed, "clock": clock}
        train_alone(made, data.training, data.training_labels, **given)
        calibrate(made, resized(data.training[:2000], arch.resolution))
    made.save(folder / f"network-{number}")
    return judged(made, data.test, data.test_labels)


def trained_alone(arch: Architecture, seconds: float, batch: int, rate: float, seed: int) -> float:
    """Accuracy of an architecture trained from the start, its statistics calibrated like a sub-network's."""
    data = images()
    torch.manual_seed(seed)
    network = SubNetwork(SMALL, arch)
    options: dict[str, Any] = {"seconds": seconds, "batch": batch, "rate": rate, "seed": seed, "clock": clock}
    train_alone(network, data.training, data.training_labels, **options)
    calibrate(network, resized(data.training[:2000], arch.resolution))
    return judged(network, data.test, data.test_labels)


def all_tuned(
    folder: Path, archs: dict[int, Architecture], seconds: float, options: Options, kept: Kept, processes: int
) -> dict[int, float]:
    """Pick -> accuracy after its own training."""
    done: dict[str, float] = kept.known.get("tuned", {})
    left = [i for i in archs if str(i) not in done]

    def keep(number: int, accuracy: float) -> None:
        done[str(left[number])] = accuracy
        kept.put(tuned=done)
        note(f"trained on, {left[number]}: {accuracy:.2%}")

    run_arms(tuned, [(folder, i, archs[i], seconds, options) for i in left], each=keep, processes=processes)
    return {i: done[str(i)] for i in archs}


def all_alone(
    archs: dict[int, Architecture], shares: dict[int, float], options: Options, kept: Kept, processes: int
) -> dict[int, dict[int, float]]:
    """Devices -> architecture -> accuracy when each is trained for its share of the time."""
    done: dict[str, float] = kept.known.get("alone", {})
    left = [(i, n) for n in shares for i in archs if f"{i} of {n}" not in done]

    def keep(number: int, accuracy: float) -> None:
        i, n = left[number]
        done[f"{i} of {n}"] = accuracy
        kept.put(alone=done)
        note(f"alone, {i} of {n}: {accuracy:.2%}")

    run_arms(trained_alone, [(archs[i], shares[n], *options) for i, n in left], each=keep, processes=processes)
    return {n: {i: done[f"{i} of {n}"] for i in archs} for n in shares}


@torch.inference_mode()
def latencies(networks: Sequence[SubNetwork], batch: int, rounds: int = 60) -> list[float]:
    """Least seconds of a batch, the networks taking turns so that a busy moment hits all."""
    inputs = [
        torch.zeros(batch, 1, n.arch.resolution, n.arch.resolution).contiguous(memory_format=torch.channels_last)
        for n in networks
    ]
    least = [float("inf")] * len(networks)
    for _ in range(rounds):
        for i, (network, x) in enumerate(zip(networks, inputs, strict=True)):
            for _ in range(3):
                begun = time.perf_counter()
                network(x)
                least[i] = min(least[i], time.perf_counter() - begun)
    return least


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (latency, accuracy), which no other is as fast and as accurate as, and better in one."""
    return [not any((t <= s and b >= a) and (t < s or b > a) for t, b in points if (t, b) != (s, a)) for s, a in points]


def spread(count: int, of: int) -> list[int]:
    """Which ``count`` of ``of`` in a row, ends included."""
    return sorted({round(i * (of - 1) / max(1, count - 1)) for i in range(min(count, of))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--seconds", type=float, default=600.0, help="processor time of the one network's training")
    parser.add_argument("--tuning", type=float, default=0.0, help="of each sub-network's own training")
    parser.add_argument("--tuning-rate", type=float, default=0.2)
    parser.add_argument("--folder", type=Path, default=Path("once-for-all"))
    parser.add_argument("--processes", type=int, default=2, help="trained by themselves at once, a thread each")
    parser.add_argument("--measured", type=int, default=100, help="sub-networks that the predictor learns from")
    parser.add_argument("--limits", type=int, default=16, help="latency limits to pick for")
    parser.add_argument("--at-once", type=int, default=1, help="images whose latency counts")
    parser.add_argument("--nets", type=int, default=10, help="sub-networks to train on, and alone")
    parser.add_argument("--devices", type=int, nargs="+", default=[32, 64], help="devices that the one network serves")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder, options = given.folder, (given.batch, given.rate, given.seed)
    kept = Kept(folder)
    network = supernet(folder, kept, given.seconds, *options)
    archs = picked(network, kept, given.measured, given.limits, given.at_once, given.seed)
    chosen = {i: archs[i] for i in spread(given.nets, len(archs))}
    own = (given.batch, given.tuning_rate, given.seed)
    accuracies = all_tuned(folder, chosen, given.tuning, own, kept, given.processes)
    once = kept.known["trained"] + kept.known["picking"]
    shares = {n: once / n + given.tuning for n in given.devices}
    alone = all_alone(chosen, shares, options, kept, given.processes)
    before = accuracies
    if given.tuning:
        data = images()
        before = {i: judged(specialized(network, a), data.test, data.test_labels) for i, a in chosen.items()}
    seconds = latencies([SubNetwork.load(folder / f"network-{i}") for i in chosen], given.at_once)
    rows = [
        Row("training of the one network", "hasten", kept.known["trained"], "s"),
        Row("picking its sub-networks", "hasten", kept.known["picking"], "s"),
        Row("each sub-network's own training", "hasten", given.tuning, "s"),
    ]
    emit(rows + report(chosen, dict(zip(chosen, seconds, strict=True)), before, accuracies, shares, alone), given.json)


def report(
    archs: dict[int, Architecture], seconds: dict[int, float], before: dict[int, float], after: dict[int, float],
    shares: dict[int, float], alone: dict[int, dict[int, float]],
) -> list[Row]:  # fmt: skip
    """Rows of each sub-network, and of those trained alone beside them."""
    points = {i: (seconds[i], after[i]) for i in archs}
    front = dict(zip(points, on_front(list(points.values())), strict=True))
    rows = []
    for i, arch in archs.items():
        name = f"{i}: depths {'-'.join(map(str, arch.depths))} at {arch.resolution}{', on the front' * front[i]}"
        rows += [
            Row(f"{name}: latency", "hasten", seconds[i], "s"),
            Row(f"{name}: accuracy as it leaves the one network", "hasten", before[i], "1"),
            Row(f"{name}: accuracy", "hasten", after[i], "1"),
        ]
        rows += [Row(f"{name}: accuracy, {n} devices", "alone", found[i], "1") for n, found in alone.items()]
    rows.append(Row("sub-networks on their latency and accuracy front", "hasten", sum(front.values()), "1"))
    for n, found in alone.items():
        case = f"{n} devices, {shares[n]:.0f} s for each alone"
        beaten = sum(any(t <= seconds[i] and a > right for t, a in points.values()) for i, right in found.items())
        behind = sum(any(seconds[i] <= t and right > a for i, right in found.items()) for t, a in points.values())
        gain = sum(after[i] - right for i, right in found.items()) / len(found)
        rows += [
            Row(f"{case}: mean accuracy", "alone", sum(found.values()) / len(found), "1"),
            Row(f"{case}: networks that a sub-network beats, no slower, of {len(found)}", "hasten", beaten, "1"),
            Row(f"{case}: sub-networks that one alone beats, no slower, of {len(points)}", "alone", behind, "1"),
            Row(f"{case}: mean accuracy over the same architectures", "hasten", gain, "1"),
        ]
    return rows


if __name__ == "__main__":
    main()

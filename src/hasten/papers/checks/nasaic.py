"""Co-Exploration of Neural Architectures and Heterogeneous ASIC Accelerator Designs Targeting Multiple Tasks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.search.codesign.coexplore import ChipSpace, NetworkTask, Solution, Specs


_WIDTHS, _SKIPS = (4, 12, 32), (0, 1, 2)
_IMAGES = {"digits": (8, 1200), "fashion-mnist": (14, 1200), "mnist": (14, 1200)}
_SEEDS = 3


def _data(name: str) -> tuple[Any, ...]:
    """Images and labels of a task, to train on and to judge by."""
    import torch
    import torch.nn.functional as F

    from hasten.data import images as source

    load = {"digits": source.digits, "fashion-mnist": source.fashion_mnist, "mnist": source.mnist}[name]
    images, labels = load()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:3500]
    pictures = images[chosen, None].float()
    size, count = _IMAGES[name]
    if pictures.shape[-1] != size:
        pictures = F.avg_pool2d(pictures, pictures.shape[-1] // size)
    pictures = (pictures - pictures[:count].mean()) / pictures[:count].std()
    return pictures[:count], labels[chosen][:count], pictures[count:], labels[chosen][count:]


def _network(params: Mapping[str, Any]) -> Any:
    from hasten.models.vision.resnet9 import ResNet9

    return ResNet9(10, 1, 8, (params["filters-1"], params["filters-2"]), (params["skips-1"], params["skips-2"]))


def _trained(name: str, points: list[dict[str, int]], seed: int) -> list[float]:
    """Accuracies after three epochs: an arm of the table."""
    import torch

    from hasten.train.classifying import accuracy, classify

    images, labels, held, answers = _data(name)
    found = []
    for params in points:
        torch.manual_seed(seed)
        network = _network(params)
        classify(network, images, labels, epochs=3, batch=32, rate=0.05, seed=seed)
        found.append(accuracy(network, held, answers))
    return found


def _key(params: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(params[k] for k in ("filters-1", "skips-1", "filters-2", "skips-2"))


def _space() -> Any:
    from hasten.search.space import Space, categorical

    return Space(
        [
            categorical("filters-1", _WIDTHS),
            categorical("skips-1", _SKIPS),
            categorical("filters-2", _WIDTHS),
            categorical("skips-2", _SKIPS),
        ]
    )


@lru_cache(maxsize=1)
def _table(seed: int, report: Any) -> dict[str, dict[tuple[int, ...], float]]:
    """Task -> network -> accuracy, of all 81 networks of each task, really trained; searches are charged for what
    they look up."""
    from hasten.processes import run_arms

    points: list[dict[str, int]] = [
        {"filters-1": a, "skips-1": b, "filters-2": c, "skips-2": d}
        for a, b, c, d in itertools.product(_WIDTHS, _SKIPS, _WIDTHS, _SKIPS)
    ]
    pieces = 12
    arms = [(name, points[i::pieces], seed) for name in _IMAGES for i in range(pieces)]
    report("training 81 networks for each of three tasks", 0.0)
    found = run_arms(
        _trained, arms, progress=lambda share: report("training 81 networks for each of three tasks", 0.6 * share)
    )
    return {
        name: {
            _key(p): a
            for (n, part, _), row in zip(arms, found, strict=True)
            if n == name
            for p, a in zip(part, row, strict=True)
        }
        for name in _IMAGES
    }


def _task(name: str, table: dict[str, dict[tuple[int, ...], float]], label: str = "") -> NetworkTask:
    from hasten.cost.chips.dataflow import conv_shapes
    from hasten.search.codesign.coexplore import NetworkTask

    size = _IMAGES[name][0]
    return NetworkTask(
        label or name,
        _space(),
        lambda params: conv_shapes(_network(params), (1, 1, size, size)),
        lambda params: table[name][_key(params)],
    )


def _chips(**changed: Any) -> ChipSpace:
    """Chips in proportion to the small networks: 512 elements, 16 GB/s."""
    from hasten.search.codesign.coexplore import ChipSpace

    given: dict[str, Any] = {
        "pes": tuple(range(0, 513, 32)),
        "bandwidths": (1, 2, 4, 6, 8, 10, 12, 14),
        "total_pes": 512,
        "total_bandwidth": 16,
    }
    return ChipSpace(**{**given, **changed})


def _setting(tasks: list[NetworkTask], chips: ChipSpace) -> tuple[Specs, Specs]:
    from hasten.search.codec import Codec
    from hasten.search.codesign.coexplore import limits_from

    best = []
    for task in tasks:
        codec = Codec(task.space)
        points = [codec.decode(i) for i in itertools.product(*(range(n) for n in codec.sizes))]
        best.append(max(points, key=task.accuracy))
    return limits_from(tasks, chips, best, 0.6)


def _searched(
    names: tuple[str, ...], changed: dict[str, Any], limits: Specs, bounds: Specs, method: str, seed: int,
    table: dict[str, dict[tuple[int, ...], float]],
) -> Solution | None:  # fmt: skip
    """One search: an arm. 2000 mapped chips and 30 trained networks a task."""
    from hasten.search.codesign.coexplore import CoProblem, coexplore

    tasks = tuple(_task(n, table, f"{n} {i}") for i, n in enumerate(names))
    return coexplore(CoProblem(tasks, _chips(**changed), limits, bounds, mapped=2000, trained=30), method, seed=seed)


_WORKLOADS = {"2 tasks": ("digits", "fashion-mnist"), "3 tasks": ("digits", "fashion-mnist", "mnist")}
# The same task twice (the paper's W3) on other kinds of chips.
_TWICE = ("fashion-mnist", "fashion-mnist")
_KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "heterogeneous": ({},),
    "single": ({"units": 1, "bandwidths": (2, 4, 8, 12, 16)},),
    "homogeneous": tuple({"dataflows": (d,)} for d in ("dla", "shi", "rs")),
}

_Found = dict[tuple[str, str], list["Solution | None"]]


@lru_cache(maxsize=1)
def _searches(seed: int, report: Any) -> _Found:
    """(workload, method) and (kind of chip, its number) -> the solution with each seed."""
    from hasten.processes import run_arms
    from hasten.search.codesign.coexplore import METHODS

    table = _table(seed, report)
    rows: list[tuple[tuple[str, str], tuple[Any, ...]]] = []
    for label, names in _WORKLOADS.items():
        limits, bounds = _setting([_task(n, table) for n in names], _chips())
        rows += [((label, m), (names, {}, limits, bounds, m)) for m in METHODS]
    # All kinds have the limits that heterogeneous chips set.
    limits, bounds = _setting([_task(n, table) for n in _TWICE], _chips())
    for kind, spaces in _KINDS.items():
        rows += [((kind, str(i)), (_TWICE, c, limits, bounds, "nasaic")) for i, c in enumerate(spaces)]
    arms = [(*arm, seed + s, table) for _, arm in rows for s in range(_SEEDS)]
    solutions = iter(run_arms(_searched, arms, progress=lambda share: report("searching", 0.6 + 0.4 * share)))
    return {key: [next(solutions) for _ in range(_SEEDS)] for key, _ in rows}


def _met(solutions: list[Solution | None]) -> list[Solution]:
    return [s for s in solutions if s is not None and s.meets]


def _mean(solutions: list[Solution | None]) -> float:
    """Mean accuracy of those that meet the limits; 0 when none does."""
    met = _met(solutions)
    return sum(s.accuracy for s in met) / len(met) if met else 0.0


@check("c1")
def _specs(experiment: Experiment) -> Seen:
    from hasten.search.codesign.coexplore import METHODS

    found = _searches(experiment.seed, experiment.run.progress)
    met = {(w, m): len(_met(found[w, m])) for w in _WORKLOADS for m in METHODS}
    value = "; ".join(f"{w}: " + ", ".join(f"{m} {met[w, m]} of {_SEEDS}" for m in METHODS) for w in _WORKLOADS)
    ours = all(met[w, "nasaic"] == _SEEDS for w in _WORKLOADS)
    return Seen(f"all limits met, {value}", ours and all(met[w, "networks-first"] == 0 for w in _WORKLOADS), ours)


@check("c2")
def _less(experiment: Experiment) -> Seen:
    """Means over seeds, of the two tasks, whether or not they meet the limits."""
    found = _searches(experiment.seed, experiment.run.progress)
    each = [[s.cost.all for s in found["2 tasks", m] if s is not None] for m in ("nasaic", "networks-first")]
    if not all(each):
        return Seen("a method found no network that a chip carries within the limits, so none was trained", False)
    ours, theirs = ([sum(costs) / len(rows) for costs in zip(*rows, strict=True)] for rows in each)
    latency, energy, area = (a / b for a, b in zip(theirs, ours, strict=True))
    value = f"latency {1 / latency - 1:+.0%}, energy {energy:.2f}x less, area {area:.2f}x less"
    holds = latency >= 1 / (1 - 0.1777) and energy >= 2.49 and area >= 2.32
    return Seen(value, holds, min(latency, energy, area) > 1)


@check("c3")
def _loss(experiment: Experiment) -> Seen:
    """Against the most accurate of the 81 networks of each task, of the seeds that meet the limits."""
    table = _table(experiment.seed, experiment.run.progress)
    found = _searches(experiment.seed, experiment.run.progress)
    losses = []
    for label, names in _WORKLOADS.items():
        best = sum(max(table[n].values()) for n in names) / len(names)
        losses.append(100 * (best - _mean(found[label, "nasaic"])))
    value = f"{losses[0]:.2f} points for two tasks, {losses[1]:.2f} for three, at 0.6 of every cost"
    return Seen(value, max(losses) <= 0.76, max(losses) <= 1.5)


@check("c4")
def _better(experiment: Experiment) -> Seen:
    """Means over the seeds that meet the limits, of each method; one that meets none is not compared with."""
    found = _searches(experiment.seed, experiment.run.progress)
    gains, parts = [], []
    for w in _WORKLOADS:
        ours = 100 * _mean(found[w, "nasaic"])
        others = {m: found[w, m] for m in ("chip-first", "monte-carlo")}
        each = ", ".join(
            f"{ours - 100 * _mean(rows):+.2f} points over {m}" if _met(rows) else f"{m} meets no limits"
            for m, rows in others.items()
        )
        parts.append(f"{w}: {ours:.2f} %, {each}")
        if _met(others["chip-first"]):
            gains.append(ours - 100 * _mean(others["chip-first"]))
    return Seen("; ".join(parts), bool(gains) and min(gains) >= 0.87, bool(gains) and min(gains) > 0)


@check("c5")
def _heterogeneous(experiment: Experiment) -> Seen:
    """A single array, two of the same dataflow, and two of any, for one task twice. Of the homogeneous chips the best
    dataflow of three counts, each with a search of its own."""
    found = _searches(experiment.seed, experiment.run.progress)
    reached = {kind: max(_mean(found[kind, str(i)]) for i in range(len(of))) for kind, of in _KINDS.items()}
    value = ", ".join(f"{k} {100 * a:.2f} %" if a else f"{k} none" for k, a in reached.items())
    rest = max(reached["single"], reached["homogeneous"])
    ours = reached["heterogeneous"]
    return Seen(f"accuracy within the limits: {value}", ours > rest, ours >= rest > 0)


@check("c6")
def _suits(experiment: Experiment) -> Seen:
    """ResNet-18's convolutions on 1024 elements at 32 bytes a cycle."""
    from hasten.cost.chips.dataflow import ConvShape, SubAccelerator, layer_cost

    layers = [ConvShape(64, 3, 7, 7, 112, 112, 2)]
    layers += [ConvShape(n, n, 3, 3, 3584 // n, 3584 // n) for n in (64, 128, 256, 512)]
    ratios = [
        layer_cost(layer, SubAccelerator("shi", 1024, 32)).cycles
        / layer_cost(layer, SubAccelerator("dla", 1024, 32)).cycles
        for layer in layers
    ]
    value = "shi's cycles over dla's, from the first layer to the last: " + ", ".join(f"{r:.2f}" for r in ratios)
    return Seen(value, ratios[0] < 1 < ratios[-1], ratios[0] < ratios[-1])


@check("hap")
def _heuristic(experiment: Experiment) -> Seen:
    from hasten.search.codesign.assignment import assign, best_assignment, makespan

    rng = random.Random(experiment.seed)
    missed, ratios = 0, []
    for _ in range(200):
        units, networks = rng.choice((2, 3)), rng.choice((1, 2, 3))
        count = rng.randint(6, 8 if units == 3 else 10)
        lengths = [count // networks + (n < count % networks) for n in range(networks)]
        times, energies = (
            [[[rng.uniform(1, 10) for _ in range(units)] for _ in range(n)] for n in lengths] for _ in "te"
        )
        fastest = [[row.index(min(row)) for row in network] for network in times]
        deadline = rng.uniform(0.6, 1.1) * makespan(times, fastest)
        best, ours = best_assignment(times, energies, deadline), assign(times, energies, deadline)
        if best.makespan <= deadline:
            missed += ours.makespan > deadline
            if ours.makespan <= deadline:
                ratios.append(ours.energy / best.energy)
    mean = sum(ratios) / len(ratios)
    value = f"{len(ratios)} of {len(ratios) + missed} feasible instances solved, energy {mean - 1:.1%} over the least"
    return Seen(value, missed == 0 and mean <= 1.08, mean <= 1.08)

"""Choosing a network of a space for a device: an accuracy predictor, latency tables, evolution that rejects.

Once-for-All (arXiv 1908.09791), section 3.4. Any function of an architecture may stand for the latency: a table of
measured or estimated blocks, a predictor of `hasten.cost.latency.predictor`, or running the extracted network.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.cost import estimate
from hasten.cost.latency.correlation import kendall
from hasten.cost.latency.modelled import Part
from hasten.cost.measuring import alternating
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.processes import one_thread
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.train.loop import train
from hasten.train.schedules import Cosine
from hasten.workload import trace

A = TypeVar("A", bound=Hashable)
A_contra = TypeVar("A_contra", contravariant=True)
_IN_TURN = 64  # parts whose seconds are asked for together, and that so are in memory together


class Encodes(Protocol[A_contra]):
    """What a predictor of accuracy asks of a space of networks."""

    @property
    def features(self) -> int:
        """Length of `encode`'s result."""

    def encode(self, arch: A_contra, /) -> list[float]:
        """As `ArchitectureSpace.encode`."""


class AccuracyPredictor(nn.Module, Generic[A]):
    """Accuracy of a network from its code: three layers of 400, and a constant it starts from.

    Args:
        space: of the networks: an `ArchitectureSpace`, or whatever encodes them.
        hidden: width.
        seed: of the weights and of the order of training.
    """

    def __init__(self, space: Encodes[A], hidden: int = 400, seed: int = 0) -> None:
        super().__init__()
        self.space, self.seed = space, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(space.features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False),
            )  # fmt: skip
        self.base = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (count, features) to accuracies (count,)."""
        found: Tensor = self.base + self.scale * self.layers(codes)[:, 0]
        return found

    def codes(self, archs: Sequence[A]) -> Tensor:
        """Codes (count, features) of architectures."""
        return torch.tensor([self.space.encode(a) for a in archs])

    def fit(
        self, archs: Sequence[A], accuracies: Sequence[float], steps: int = 600, rate: float = 1e-3
    ) -> AccuracyPredictor[A]:
        """Learns from measured sub-networks.

        Raises:
            HastenError: fewer than two, another number of accuracies, or accuracies that are not finite.
        """
        if len(archs) < 2 or len(archs) != len(accuracies):
            raise HastenError("a predictor learns from at least two sub-networks with an accuracy each")
        x, y = self.codes(archs), torch.tensor(list(accuracies), dtype=torch.float32)
        self.base.data, self.scale.data = y.mean(), y.std().clamp_min(1e-6)
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=rate, weight_decay=1e-2)
        generator = torch.Generator().manual_seed(self.seed)
        target = (y - self.base) / self.scale

        def loss(step: int) -> Tensor:
            chosen = torch.randint(len(x), (min(64, len(x)),), generator=generator)
            return F.mse_loss(self.layers(x[chosen])[:, 0], target[chosen])

        trained = train(self.layers, loss, optimizer=optimizer, steps=steps, schedule=Cosine())
        trained.finished("the accuracy predictor's training")
        return self

    @torch.no_grad()
    def predict(self, archs: Sequence[A]) -> list[float]:
        """Accuracies of architectures."""
        found: list[float] = self(self.codes(archs)).tolist()
        return found

    def judged(self, truth: Mapping[A, float]) -> tuple[float, float]:
        """Root of the mean squared error on architectures of known accuracy, and Kendall's tau of their order."""
        found, values = self.predict(list(truth)), list(truth.values())
        error = sum((a - b) ** 2 for a, b in zip(found, values, strict=True)) / len(values)
        return error**0.5, kendall(found, values)


class HasParts(Protocol[A_contra]):
    """What a latency table asks of a space of networks."""

    def parts(self, arch: A_contra, /) -> Sequence[Part]:
        """As `ArchitectureSpace.parts`."""


@dataclass
class LatencyTable(Generic[A]):
    """Latency of networks as the sum of their parts', each part looked up once.

    Args:
        space: of the networks: an `ArchitectureSpace`, or whatever says of what parts they are.
        costs: seconds of modules, each on an input (1, channels, height, width), in their order: what is measured in
            turn meets a slow moment of the machine together.
        on: the torch device that parts are made on: ``meta`` where ``costs`` does not run them.
    """

    space: HasParts[A]
    costs: Callable[[Sequence[tuple[nn.Module, Tensor]]], Sequence[float]]
    on: str = "cpu"
    known: dict[Hashable, float] = field(default_factory=dict)

    def __call__(self, arch: A) -> float:
        """Seconds of a network for one image."""
        parts = self.space.parts(arch)
        self._learn(parts)
        return sum(self.known[key] for key, *_ in parts)

    def fill(self, archs: Iterable[A]) -> LatencyTable[A]:
        """Learns all parts of some networks that it does not know yet, in turn where it measures. Returns itself."""
        self._learn([part for arch in archs for part in self.space.parts(arch)])
        return self

    def _learn(self, parts: Sequence[Part]) -> None:
        new = {key: (make, shape) for key, make, shape in parts if key not in self.known}
        keys = list(new)
        for i in range(0, len(keys), _IN_TURN):
            some = keys[i : i + _IN_TURN]
            seconds = self.costs([self._made(*new[key]) for key in some])
            self.known.update(zip(some, seconds, strict=True))

    def _made(self, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
        with torch.device(self.on), torch.no_grad():
            return make().eval(), torch.zeros(1, *shape)


def estimated(space: HasParts[A], device: Device) -> LatencyTable[A]:
    """Latencies by the analytic model on a device of the catalogue, or any other, `without_caches`.

    A part alone would find its own weights in a cache from the last time, which in a network the other parts have
    displaced; without caches the parts' latencies add up to the whole network's.
    """
    cold = without_caches(device)

    def costs(parts: Sequence[tuple[nn.Module, Tensor]]) -> list[float]:
        return [estimate(trace(*part), cold).latency for part in parts]

    return LatencyTable(space, costs, "meta")


def without_caches(device: Device) -> Device:
    """The device when nothing but its main memory keeps what one operator leaves for the next."""
    *caches, main = device.memory
    return device.model_copy(update={"memory": (*(m.model_copy(update={"keeps": False}) for m in caches), main)})


def measured(space: HasParts[A], runs: int = 7, batch: int = 1) -> LatencyTable[A]:
    """Latencies by running the parts on this machine, ``batch`` images at a time, channels last.

    The parts of a network that are new, or of all networks that `LatencyTable.fill` is given, are run in turn.
    """

    def prepared(module: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
        layout = torch.contiguous_format
        if x.ndim == 4:  # tokens have no channels
            layout = torch.channels_last
            module = module.to(memory_format=layout)  # type: ignore[call-overload]
        return module, x.expand(batch, *x.shape[1:]).contiguous(memory_format=layout)

    def costs(parts: Sequence[tuple[nn.Module, Tensor]]) -> list[float]:
        return seconds_in_turn([prepared(*part) for part in parts], runs)

    return LatencyTable(space, costs)


def seconds_of(module: nn.Module, x: Tensor, runs: int = 7) -> float:
    """Least seconds of a call, of ``runs`` times as many calls as fit in a millisecond: one without disturbance."""
    return seconds_in_turn([(module, x)], runs)[0]


@torch.inference_mode()
def seconds_in_turn(parts: Sequence[tuple[nn.Module, Tensor]], runs: int = 7) -> list[float]:
    """`seconds_of` of several modules, each on its input, in ``runs`` rounds over all of them."""
    calls: dict[str, Callable[[], object]] = {}
    counts = []
    for i, (module, x) in enumerate(parts):
        for _ in range(3):
            module(x)
        begun = time.perf_counter()
        module(x)
        counts.append(max(1, min(50, int(1e-3 / max(time.perf_counter() - begun, 1e-6)))))
        # A call that does not count comes first in a turn: the one before left other weights in the caches.
        calls |= {f"before {i}": partial(module, x), f"counted {i}": partial(_called, module, x, counts[-1])}
    times = alternating(calls, runs)
    return [min(times[f"counted {i}"]) / count for i, count in enumerate(counts)]


def _called(module: nn.Module, x: Tensor, calls: int) -> None:
    for _ in range(calls):
        module(x)


@dataclass(frozen=True)
class Specialized(Generic[A]):
    """What a search found: the network, its predicted score, its latency, and the best score by generation."""

    arch: A
    score: float
    latency: float
    history: tuple[float, ...]


def evolve(
    space: ArchitectureSpace[A],
    score: Callable[[Sequence[A]], Sequence[float]],
    latency: Callable[[A], float],
    limit: float,
    *,
    population: int = 100,
    generations: int = 500,
    parents: float = 0.25,
    mutants: float = 0.5,
    chance: float = 0.1,
    seed: int = 0,
    tries: int = 5000,
    progress: Callable[[int, float], None] = lambda generation, best: None,
) -> Specialized[A]:
    """The best network within a latency limit, by evolution; what exceeds the limit is rejected, not penalized.

    Args:
        space: of the networks.
        score: of several architectures, larger is better (`AccuracyPredictor.predict`).
        latency: of one, in the unit of ``limit``.
        limit: no architecture over it is kept.
        population, generations, parents, mutants: sizes; ``parents`` and ``mutants`` as shares.
        chance: of each of a mutant's decisions to be drawn anew.
        tries: draws for one admissible architecture before giving up.
        progress: told the generation and the best score.

    Raises:
        HastenError: nothing within the limit was found.
    """
    rng = random.Random(seed)
    known: dict[A, float] = {}
    within: dict[A, float] = {}

    def admitted(draw: Callable[[], A]) -> A:
        for _ in range(tries):
            arch = draw()
            if arch not in within:
                within[arch] = latency(arch)
            if within[arch] <= limit:
                return arch
        raise HastenError(
            f"no network within {limit:g} in {tries} draws (the last took {within[arch]:g}): raise the limit"
        )

    def scored(archs: Sequence[A]) -> list[tuple[float, A]]:
        new = [a for a in dict.fromkeys(archs) if a not in known]
        if new:
            known.update(zip(new, score(new), strict=True))
        return [(known[a], a) for a in archs]

    def first() -> A:
        # Where few fit, drawing evenly finds none: draw from the smaller half then.
        return space.sample(rng) if rng.random() < 0.7 else space.near_smallest(rng)

    def mutant() -> A:
        return space.mutate(rng.choice(best)[1], rng, chance)

    def child() -> A:
        return space.cross(rng.choice(best)[1], rng.choice(best)[1], rng)

    rows = scored([admitted(first) for _ in range(population)])
    history: list[float] = []
    for generation in range(generations):
        rows.sort(key=lambda row: -row[0])
        best = rows[: max(1, round(parents * population))]
        history.append(rows[0][0])
        progress(generation, rows[0][0])
        changed = round(mutants * population)
        made = [admitted(mutant) for _ in range(changed)]
        made += [admitted(child) for _ in range(population - changed)]
        rows = best + scored(made)
    rows.sort(key=lambda row: -row[0])
    value, arch = rows[0]
    return Specialized(arch, value, within[arch], (*history, value))


@dataclass(frozen=True)
class Pick(Generic[A]):
    """What a search found within a limit, and what stands beside it.

    Args:
        arch: the network.
        limit: seconds that it may take by the table.
        over: the whole network, measured, over the limit: 0.1 is a tenth over.
        random: the best score of random networks within the limit.
    """

    arch: A
    limit: float
    over: float
    random: float


def picks_within(
    space: ArchitectureSpace[A], score: Callable[[Sequence[A]], Sequence[float]], drawn: Mapping[A, float],
    shares: Sequence[float], *, random_ones: int = 50, seed: int = 0, **options: Any,
) -> list[Pick[A]]:  # fmt: skip
    """Searches within latency limits measured here, on one thread, by a table of parts, beside random search.

    Args:
        space: of the networks.
        score: as of `evolve`.
        drawn: random networks that ``score`` has not learned from, and their true scores.
        shares: of these that each limit admits.
        random_ones: so many of them, in their order, are random search within a limit.
        seed, options: of `evolve`.
    """
    with one_thread():
        table = measured(space)
        rest = [(table(a), value) for a, value in drawn.items()]
        ordered = sorted(t for t, _ in rest)
        limits = [ordered[min(len(rest) - 1, int(q * len(rest)))] for q in shares]
        found = [evolve(space, score, table, limit, seed=seed, **options).arch for limit in limits]
        over = [seconds_of(*_channels_last(space, a)) / limit - 1 for a, limit in zip(found, limits, strict=True)]
    best = [max([value for t, value in rest if t <= limit][:random_ones]) for limit in limits]
    return [Pick(*row) for row in zip(found, limits, over, best, strict=True)]


def whole_seconds(space: ArchitectureSpace[A], arch: A, runs: int = 7, batch: int = 1) -> float:
    """Least seconds of a whole network for ``batch`` images on one thread, run as `measured` runs its parts."""
    network, image = _channels_last(space, arch)
    images = image.expand(batch, *image.shape[1:]).contiguous(memory_format=torch.channels_last)
    with one_thread():
        return seconds_of(network, images, runs)


def _channels_last(space: ArchitectureSpace[A], arch: A) -> tuple[nn.Module, Tensor]:
    network, image = space.example(arch)
    kept = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return kept, image.contiguous(memory_format=torch.channels_last)

"""Choosing a sub-network for a device: an accuracy predictor, latency tables, evolution that rejects.

Once-for-All (arXiv 1908.09791), section 3.4. Any function of an architecture may stand for the latency: a table of
measured or estimated blocks, a predictor of `hasten.cost.latency.predictor`, or running the extracted network.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.models.vision.once_for_all import Architecture, OFAConfig, SubNetwork
from hasten.train.loop import train
from hasten.train.schedules import Cosine
from hasten.workload import trace

Score = Callable[[Sequence[Architecture]], Sequence[float]]


class AccuracyPredictor(nn.Module):
    """Accuracy of a sub-network from its code: three layers of 400, and a constant it starts from.

    Args:
        config: of the space.
        hidden: width.
        seed: of the weights and of the order of training.
    """

    def __init__(self, config: OFAConfig, hidden: int = 400, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(config.features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False),
            )  # fmt: skip
        self.base = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (count, features) to accuracies (count,)."""
        found: Tensor = self.base + self.scale * self.layers(codes)[:, 0]
        return found

    def codes(self, archs: Sequence[Architecture]) -> Tensor:
        """Codes (count, features) of architectures."""
        return torch.tensor([self.config.encode(a) for a in archs])

    def fit(
        self, archs: Sequence[Architecture], accuracies: Sequence[float], steps: int = 600, rate: float = 1e-3
    ) -> AccuracyPredictor:
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
    def predict(self, archs: Sequence[Architecture]) -> list[float]:
        """Accuracies of architectures."""
        found: list[float] = self(self.codes(archs)).tolist()
        return found


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two orders of the same things: 1 for equal, -1 for reversed; 0 where one has no order."""
    pairs = [
        ((one[i] > one[j]) - (one[i] < one[j]), (other[i] > other[j]) - (other[i] < other[j]))
        for i in range(len(one))
        for j in range(i)
    ]
    apart = sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs)
    return sum(a * b for a, b in pairs) / math.sqrt(apart) if apart else 0.0


@dataclass
class LatencyTable:
    """Latency of sub-networks as the sum of their parts', each part looked up once.

    Args:
        config: of the space.
        cost: seconds of a module on an input (1, channels, height, width).
        on: the torch device that parts are made on: ``meta`` where ``cost`` does not run them.
    """

    config: OFAConfig
    cost: Callable[[nn.Module, Tensor], float]
    on: str = "cpu"
    parts: dict[tuple[object, ...], tuple[float, tuple[int, ...]]] = field(default_factory=dict)

    def __call__(self, arch: Architecture) -> float:
        """Seconds of a sub-network for one image."""
        config = self.config
        size: tuple[int, ...] = (1, config.channels, arch.resolution, arch.resolution)
        total, size = self._part(("stem", size), size, lambda net: nn.Sequential(net.stem, net.first), None)
        for stage, depth in enumerate(arch.depths):
            for j in range(depth):
                at = stage * config.depths[-1] + j
                kind = (stage, min(j, 1), arch.kernels[at], arch.expands[at])
                seconds, size = self._part((kind, size), size, lambda net: net.blocks[-1], (kind, stage, j))
                total += seconds
        seconds, _ = self._part(("head", size), size, lambda net: net.head, None)
        return total + seconds

    def _part(
        self, key: tuple[object, ...], size: tuple[int, ...], part: Callable[[SubNetwork], nn.Module],
        block: tuple[tuple[int, int, int, int], int, int] | None,
    ) -> tuple[float, tuple[int, ...]]:  # fmt: skip
        if key not in self.parts:
            with torch.device(self.on), torch.no_grad():
                module, x = part(self._network(block)).eval(), torch.zeros(size)
                made = tuple(module(x).shape)
            self.parts[key] = (self.cost(module, x), made)
        return self.parts[key]

    def _network(self, block: tuple[tuple[int, int, int, int], int, int] | None) -> SubNetwork:
        """A network that ends with the block, or the smallest."""
        config = self.config
        if block is None:
            return SubNetwork(config, config.architecture(config.kernels[0], config.expands[0], config.depths[0]))
        (_, _, kernel, expand), stage, j = block
        depths = [config.depths[0]] * stage + [j + 1]
        count = config.blocks
        arch = Architecture((kernel,) * count, (expand,) * count, tuple(depths), config.resolutions[0])
        return SubNetwork(config, arch)


def estimated(config: OFAConfig, device: Device) -> LatencyTable:
    """Latencies by the analytic model on a device of the catalogue, or any other, `without_caches`.

    A part alone would find its own weights in a cache from the last time, which in a network the other parts have
    displaced; without caches the parts' latencies add up to the whole network's.
    """
    cold = without_caches(device)

    def cost(module: nn.Module, x: Tensor) -> float:
        return estimate(trace(module, x), cold).latency

    return LatencyTable(config, cost, "meta")


def without_caches(device: Device) -> Device:
    """The device when nothing but its main memory keeps what one operator leaves for the next."""
    *caches, main = device.memory
    return device.model_copy(update={"memory": (*(m.model_copy(update={"keeps": False}) for m in caches), main)})


def measured(config: OFAConfig, runs: int = 7, batch: int = 1) -> LatencyTable:
    """Latencies by running the parts on this machine, ``batch`` images at a time, channels last."""

    def cost(module: nn.Module, x: Tensor) -> float:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.expand(batch, *x.shape[1:])
        return seconds_of(module, x.contiguous(memory_format=torch.channels_last), runs)

    return LatencyTable(config, cost)


@torch.inference_mode()
def seconds_of(module: nn.Module, x: Tensor, runs: int = 7) -> float:
    """Least seconds of a call, of ``runs`` times as many calls as fit in a millisecond: one without disturbance."""
    for _ in range(3):
        module(x)
    begun = time.perf_counter()
    module(x)
    calls = max(1, min(50, int(1e-3 / max(time.perf_counter() - begun, 1e-6))))
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        for _ in range(calls):
            module(x)
        times.append((time.perf_counter() - begun) / calls)
    return min(times)


@dataclass(frozen=True)
class Specialized:
    """What a search found: the sub-network, its predicted score, its latency, and the best score by generation."""

    arch: Architecture
    score: float
    latency: float
    history: tuple[float, ...]


def evolve(
    config: OFAConfig,
    score: Score,
    latency: Callable[[Architecture], float],
    limit: float,
    *,
    population: int = 100,
    generations: int = 500,
    parents: float = 0.25,
    mutants: float = 0.5,
    chance: float = 0.1,
    resize: float = 0.5,
    seed: int = 0,
    tries: int = 5000,
    progress: Callable[[int, float], None] = lambda generation, best: None,
) -> Specialized:
    """The best sub-network within a latency limit, by evolution; what exceeds the limit is rejected, not penalized.

    Args:
        config: of the space.
        score: of several architectures, larger is better (`AccuracyPredictor.predict`).
        latency: of one, in the unit of ``limit``.
        limit: no architecture over it is kept.
        population, generations, parents, mutants: sizes; ``parents`` and ``mutants`` as shares.
        chance, resize: of a mutant's block, and of its resolution, to be drawn anew.
        tries: draws for one admissible architecture before giving up.
        progress: told the generation and the best score.

    Raises:
        HastenError: nothing within the limit was found.
    """
    rng = random.Random(seed)
    known: dict[Architecture, float] = {}
    within: dict[Architecture, float] = {}

    def admitted(draw: Callable[[], Architecture]) -> Architecture:
        for _ in range(tries):
            arch = draw()
            if arch not in within:
                within[arch] = latency(arch)
            if within[arch] <= limit:
                return arch
        raise HastenError(
            f"no sub-network within {limit:g} in {tries} draws (the last took {within[arch]:g}): raise the limit"
        )

    def scored(archs: Sequence[Architecture]) -> list[tuple[float, Architecture]]:
        new = [a for a in dict.fromkeys(archs) if a not in known]
        if new:
            known.update(zip(new, score(new), strict=True))
        return [(known[a], a) for a in archs]

    smallest = config.architecture(config.kernels[0], config.expands[0], config.depths[0], config.resolutions[0])

    def first() -> Architecture:
        # Where few fit, drawing evenly finds none: draw from the smaller half then.
        return config.sample(rng) if rng.random() < 0.7 else _mutant(config, smallest, rng, 0.3, 0.3)

    def mutant() -> Architecture:
        return _mutant(config, rng.choice(best)[1], rng, chance, resize)

    def child() -> Architecture:
        return _crossed(config, rng.choice(best)[1], rng.choice(best)[1], rng)

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


def _mutant(config: OFAConfig, arch: Architecture, rng: random.Random, chance: float, resize: float) -> Architecture:
    def drawn(values: Sequence[int], choices: Sequence[int]) -> list[int]:
        return [rng.choice(choices) if rng.random() < chance else v for v in values]

    size = rng.choice(config.resolutions) if rng.random() < resize else arch.resolution
    return config.architecture(
        drawn(arch.kernels, config.kernels),
        drawn(arch.expands, config.expands),
        drawn(arch.depths, config.depths),
        size,
    )


def _crossed(config: OFAConfig, one: Architecture, other: Architecture, rng: random.Random) -> Architecture:
    def either(a: Sequence[int], b: Sequence[int]) -> list[int]:
        return [rng.choice(pair) for pair in zip(a, b, strict=True)]

    return config.architecture(
        either(one.kernels, other.kernels), either(one.expands, other.expands), either(one.depths, other.depths),
        rng.choice((one.resolution, other.resolution)),
    )  # fmt: skip

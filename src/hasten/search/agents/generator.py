"""A generator of points: a small recurrent policy that a seed and a condition make a point of, learned from scores.

Generative synthesis (arXiv 1809.05989) and TurboViT's search (2308.11421) learn a generator instead of one best
network; what theirs is made of is not published. This one draws a point gene by gene, each by what was drawn before, by
normal numbers that the seed gives and by numbers that say what is asked for (a budget). It can be kept, and asked for
points later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.processes import one_thread
from hasten.search.agents.agent import Agent, Indices
from hasten.search.agents.registry import register_agent
from hasten.train.loop import descend

_NOISE = 8  # normal numbers that a seed stands for
_SEEDS = 2**31


class PointGenerator(nn.Module):
    """An autoregressive policy over the values of each parameter.

    Args:
        sizes: values of each parameter.
        condition: how many numbers say what is asked for.
        hidden: width.
        seed: of the weights.

    Raises:
        HastenError: no parameter, or one without values.
    """

    def __init__(self, sizes: Sequence[int], condition: int = 0, hidden: int = 48, seed: int = 0) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1 or condition < 0 or hidden < 1:
            raise HastenError("a generator needs at least one parameter, with a value each, and a width")
        self.sizes, self.condition, self.hidden = tuple(int(n) for n in sizes), condition, hidden
        width = max(self.sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.begin = nn.Linear(_NOISE + condition, hidden)
            self.values = nn.Embedding(width + 1, hidden)  # the last stands for nothing drawn yet
            self.places = nn.Embedding(len(self.sizes), hidden)
            self.cell = nn.GRUCell(hidden, hidden)
            self.heads = nn.Linear(hidden, len(self.sizes) * width)
        with torch.no_grad():
            self.heads.weight.mul_(0.1)  # at first every value is about as likely
            self.heads.bias.zero_()
        mask = torch.zeros(len(self.sizes), width)
        for i, n in enumerate(self.sizes):
            mask[i, n:] = -torch.inf
        self.register_buffer("mask", mask, persistent=False)

    def near(self, point: Indices, by: float = 2.0) -> PointGenerator:
        """Begins near a point: its values are e^by times as likely as others. Returns itself."""
        with torch.no_grad():
            width = max(self.sizes)
            for i, value in enumerate(point):
                self.heads.bias[i * width + value] += by
        return self

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        rows = [torch.randn(_NOISE, generator=torch.Generator().manual_seed(s % _SEEDS)) for s in seeds]
        return torch.stack(rows)

    def _asked(self, count: int, condition: Sequence[float]) -> Tensor:
        if len(condition) != self.condition:
            raise HastenError(f"this generator is asked by {self.condition} numbers: got {len(condition)}")
        return torch.tensor([list(condition)], dtype=torch.float32).expand(count, self.condition)

    def _logits(self, state: Tensor, before: Tensor, place: int) -> tuple[Tensor, Tensor]:
        at = torch.full((len(before),), place)
        state = self.cell(self.values(before) + self.places(at), state)
        width = max(self.sizes)
        part = slice(place * width, (place + 1) * width)
        return F.linear(state, self.heads.weight[part], self.heads.bias[part]) + self.mask[place], state  # type: ignore[index]

    @torch.no_grad()
    def points(self, seeds: Sequence[int], condition: Sequence[float] = (), heat: float = 1.0) -> list[Indices]:
        """Points, one a seed; the same seed and condition give the same.

        Args:
            seeds: from 0.
            condition: what is asked for.
            heat: of the draw; 0 for the likeliest value of each parameter.
        """
        with one_thread():
            return self._points(seeds, condition, heat)

    def _points(self, seeds: Sequence[int], condition: Sequence[float], heat: float) -> list[Indices]:
        state = torch.tanh(self.begin(torch.cat([self._noise(seeds), self._asked(len(seeds), condition)], 1)))
        draws = [torch.Generator().manual_seed((s + _SEEDS // 2) % _SEEDS) for s in seeds]
        levels = torch.stack([torch.rand(len(self.sizes), generator=g, dtype=torch.float64) for g in draws])
        before = torch.full((len(seeds),), max(self.sizes))
        chosen = []
        for place in range(len(self.sizes)):
            logits, state = self._logits(state, before, place)
            if heat > 0:
                shares = (logits.double() / heat).softmax(-1)
                # The value in whose part of the unit interval the level lies.
                before = (shares.cumsum(-1) <= levels[:, place, None]).sum(-1).clamp_max(self.sizes[place] - 1)
            else:
                before = logits.argmax(-1)
            chosen.append(before)
        return [tuple(int(v) for v in row) for row in torch.stack(chosen, 1)]

    def log_chances(
        self, points: Sequence[Indices], seeds: Sequence[int], condition: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor]:
        """Logarithm of the chance of each value of each point, and the entropy of each draw: (points, parameters)."""
        chosen = torch.tensor([list(p) for p in points])
        state = torch.tanh(self.begin(torch.cat([self._noise(seeds), self._asked(len(seeds), condition)], 1)))
        before = torch.full((len(seeds),), max(self.sizes))
        chances, spread = [], []
        for place in range(len(self.sizes)):
            logits, state = self._logits(state, before, place)
            logs = logits.log_softmax(-1)
            before = chosen[:, place]
            chances.append(logs.gather(1, before[:, None])[:, 0])
            spread.append(-(logs.exp() * logs.clamp_min(-1e9)).sum(-1))
        return torch.stack(chances, 1), torch.stack(spread, 1)

    def to_bytes(self) -> bytes:
        """The generator as a file holds it (safetensors)."""
        about = {"sizes": self.sizes, "condition": self.condition, "hidden": self.hidden}
        return save({n: t.contiguous() for n, t in self.state_dict().items()}, {"generator": json.dumps(about)})

    @classmethod
    def from_bytes(cls, data: bytes) -> PointGenerator:
        """The generator that `to_bytes` gave.

        Raises:
            HastenError: the bytes are of something else.
        """
        try:
            length = int.from_bytes(data[:8], "little")
            about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["generator"])
            made = cls(about["sizes"], about["condition"], about["hidden"])
            made.load_state_dict(load(data))
        except HastenError:
            raise
        except Exception as error:  # whatever is wrong with them
            raise HastenError(
                f"these bytes hold no generator ({type(error).__name__}): give what to_bytes gave"
            ) from None
        return made


class GeneratorTraining:
    """Teaches a generator by scores: REINFORCE against a moving mean, an entropy bonus, and the best points again.

    Args:
        generator: taught in place.
        rate: of Adam.
        entropy: weight of the bonus.
        elites: best points that are repeated at each update.
        replay: weight of their log-chance.
        least: share of the largest entropy that shall stay, so that seeds go on giving different points; what is
            missing is a loss of its own.
    """

    def __init__(
        self,
        generator: PointGenerator,
        rate: float = 1e-2,
        entropy: float = 0.02,
        elites: int = 6,
        replay: float = 0.3,
        least: float = 0.0,
    ) -> None:
        if rate <= 0 or entropy < 0 or elites < 0 or replay < 0 or not 0 <= least < 1:
            raise HastenError("a generator is taught at a rate above 0, with entropy, elites and replay from 0")
        self.generator, self.entropy, self.elites, self.replay = generator, entropy, elites, replay
        self.least = least * float(np.mean(np.log(generator.sizes)))
        self.optimizer = torch.optim.Adam(generator.parameters(), rate)
        self.best: dict[tuple[Indices, tuple[float, ...]], tuple[float, int]] = {}

    def update(
        self, points: Sequence[Indices], seeds: Sequence[int], scores: Sequence[float],
        condition: Sequence[float] = (), credit: Tensor | None = None, sure: Sequence[bool] | None = None,
    ) -> None:  # fmt: skip
        """One step: points that scored above the others' mean become likelier.

        Args:
            points, seeds: that were drawn, with what they were drawn by.
            scores: larger is better; -inf for what is not admissible, which counts as the worst of the others.
            condition: that they were drawn by.
            credit: (points, parameters), what each value added to its point's score where somebody knows; it is then
                part of each value's own advantage.
            sure: of each score whether it is more than a guess, so that its point may be repeated; all are when None.
        """
        with one_thread():
            self._update(points, seeds, scores, condition, credit, sure or [True] * len(points))

    def _update(
        self, points: Sequence[Indices], seeds: Sequence[int], scores: Sequence[float], condition: Sequence[float],
        credit: Tensor | None, sure: Sequence[bool],
    ) -> None:  # fmt: skip
        raw = np.array([s if np.isfinite(s) else np.nan for s in scores], dtype=float)
        if np.isnan(raw).all():
            raw[:] = 0.0
        worst = float(np.nanmin(raw)) - float(np.nanstd(raw)) - 1e-9
        paid = torch.tensor(np.where(np.isnan(raw), worst, raw), dtype=torch.float32)
        advantage = ((paid - paid.mean()) / paid.std(unbiased=False).clamp_min(1e-6))[:, None]
        if credit is not None:
            advantage = advantage + credit / credit.std(unbiased=False).clamp_min(1e-6)
        for point, seed, score, known in zip(points, seeds, scores, sure, strict=True):
            if known and np.isfinite(score):
                self.best[point, tuple(condition)] = (float(score), seed)
        chances, spread = self.generator.log_chances(points, seeds, condition)
        loss = -(advantage * chances).mean() - self.entropy * spread.mean()
        loss = loss + (self.least - spread.mean()).clamp_min(0)
        like = [(s, p, seed) for (p, c), (s, seed) in self.best.items() if c == tuple(condition)]
        elite = sorted(like, key=lambda row: -row[0])[: self.elites]
        if elite and self.replay:
            again, _ = self.generator.log_chances([p for _, p, _ in elite], [s for *_, s in elite], condition)
            loss = loss - self.replay * again.mean()
        descend(self.optimizer, loss, clip=1.0)


@register_agent("generator", "agent: a generator that is taught by what its points scored (TurboViT's search)")
class GeneratorAgent(Agent):
    """Asks a `PointGenerator` for points and teaches it, a batch at a time.

    Args:
        batch: points of an update.
        options: of `GeneratorTraining`.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0, batch: int = 8, **options: Any) -> None:
        super().__init__(sizes, seed)
        if batch < 2:
            raise HastenError("a generator learns from two points or more at a time")
        self.batch = batch
        self.generator = PointGenerator(self.sizes, seed=seed)
        self.training = GeneratorTraining(self.generator, **options)
        self._next = seed * 1_000_003
        self._asked: dict[Indices, int] = {}
        self._rows: list[tuple[Indices, int, float]] = []

    def ask(self) -> Indices:
        self._next += 1
        (point,) = self.generator.points([self._next])
        self._asked[point] = self._next
        return point

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        self._rows.append((point, self._asked.pop(point, self._next), reward))
        if len(self._rows) >= self.batch:
            points, seeds, rewards = zip(*self._rows, strict=True)
            self.training.update(points, seeds, rewards)
            self._rows = []

"""Agents that learn a policy by reinforcement: one for each parameter, or one for all (arXiv 2211.16385).

Trying a point is an episode of one step, as in `hasten.search.environments.environment`: a policy sees what every
episode begins with, zeros, and is paid for the point that it chose. The metrics of the point before say nothing of
what the next is paid, and to see them lets one bad point lead to the next. What differs is who chooses:

- ``Multi``: an actor for each parameter, with networks, optimizer state and clipped ratios of its own, all paid the
  same reward; critics of their own, or one that all share (``central``).
- ``Single``: one network with a head for each parameter, clipped by the ratio of the whole choice.
- ``Continuous``: one network that places a point in a box, as the paper's baseline; coordinates are binned.
- ``SoftActorCritic``: the same box, off-policy, with the entropy in the goal.
- ``TimeDivision``: one network that sets a parameter at a time, each time paid for what then stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.search.agents.agent import Agent, Indices
from hasten.search.agents.registry import register_agent
from hasten.search.codec import bins
from hasten.train.loop import descend

METRICS = 3
"""Zeros that a policy sees: the metrics that an environment of three objectives shows when an episode begins."""

_PENDING = 64


class Running:
    """Mean and spread of what came so far (Welford)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean, self.square = np.zeros(size), np.zeros(size)

    def add(self, value: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self.count += 1
        off = value - self.mean
        self.mean += off / self.count
        self.square += off * (value - self.mean)

    def scaled(self, value: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        spread = np.sqrt(self.square / max(1, self.count - 1))
        return np.clip((value - self.mean) / np.where(spread > 1e-12, spread, 1.0), -5, 5)


class _Networks(nn.Module):
    """``copies`` separate networks of two hidden layers, side by side: (rows, inputs) to (copies, rows, outputs)."""

    def __init__(self, copies: int, inputs: int, outputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = [inputs, hidden, hidden, outputs]

        def weight(rows: int, columns: int, gain: float) -> nn.Parameter:
            made = torch.empty(copies, rows, columns)
            for one in made:
                nn.init.orthogonal_(one, gain, generator=generator)
            return nn.Parameter(made)

        gains = (math.sqrt(2), math.sqrt(2), 0.01)
        self.weights = nn.ParameterList(weight(a, b, g) for a, b, g in zip(widths[:-1], widths[1:], gains, strict=True))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(copies, 1, b)) for b in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.weights[0].shape[0], *x.shape[-2:])
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(b, x, w)
            if i < 2:
                x = torch.tanh(x)
        return x


class _Learner(Agent):
    """What all policies share: normalized rewards, a batch, when to learn."""

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, rate: float = 3e-3, batch: int = 32, epochs: int = 4,
        entropy: float = 0.02, clip: float = 0.2, hidden: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(sizes, seed)
        if rate <= 0 or batch < 1 or epochs < 1 or entropy < 0 or clip <= 0 or hidden < 1:
            raise HastenError("a policy takes a positive rate, batch, epochs, clip and hidden size, and entropy from 0")
        self.rate, self.batch, self.epochs, self.entropy, self.clip = rate, batch, epochs, entropy, clip
        self.generator = torch.Generator().manual_seed(seed)
        self.rewards = Running(1)
        self.rows: list[tuple[Any, ...]] = []
        # Points that were asked for and not told of yet, more than one where several are tried at the same time.
        self.asked: dict[Indices, tuple[Any, ...]] = {}
        width = max(self.sizes)
        self.mask = torch.zeros(len(self.sizes), 1, width)
        for i, n in enumerate(self.sizes):
            self.mask[i, :, n:] = -1e9

    def _observation(self) -> Tensor:
        return torch.zeros(METRICS)

    def _remember(self, point: Indices, *choice: Any) -> None:
        """Keeps what was observed and chosen until the point is told of; of points that never are, the last few."""
        self.asked.pop(point, None)
        self.asked[point] = choice
        if len(self.asked) > _PENDING:
            del self.asked[next(iter(self.asked))]

    def _draw(self, logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(-1), 1, generator=self.generator)[:, 0]

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        paid = reward if math.isfinite(reward) else (float(self.rewards.mean[0]) - 1)
        self.rewards.add(np.array([paid]))
        if (asked := self.asked.pop(point, None)) is not None:  # what others tried teaches nothing on-policy
            self.rows.append((*asked, paid))
            if len(self.rows) >= self.batch:
                self._update()
                self.rows = []

    def _update(self) -> None:
        raise NotImplementedError

    def _paid(self) -> Tensor:
        return torch.tensor(self.rewards.scaled(np.array([[r[-1]] for r in self.rows]))[:, 0], dtype=torch.float32)


@register_agent("multi-agent", "agents: an independent PPO learner for each parameter")
class Multi(_Learner):
    """Separate learners (independent PPO); ``central`` gives them one critic (MAPPO).

    Args:
        rate, batch, epochs, entropy, clip, hidden: of PPO (Adam's rate, points of an update, passes over them).
        central: one critic for all.
        algorithm: ``ppo``, or ``reinforce``: one pass, no clipping.
    """

    joint = False

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, central: bool = False, algorithm: str = "ppo", **options: Any
    ) -> None:
        super().__init__(sizes, seed, **options)
        if algorithm not in ("ppo", "reinforce"):
            raise HastenError(f"a policy learns by ppo or reinforce, not {algorithm!r}")
        self.algorithm = algorithm
        hidden = options.get("hidden", 32)
        count, width = len(self.sizes), max(self.sizes)
        self.actors = self._actors(count, width, hidden)
        self.critics = _Networks(1 if central or self.joint else count, METRICS, 1, hidden, self.generator)
        self.optimizer = torch.optim.Adam([*self.actors.parameters(), *self.critics.parameters()], self.rate)

    def _actors(self, count: int, width: int, hidden: int) -> nn.Module:
        return _Networks(count, METRICS, width, hidden, self.generator)

    def _logits(self, observations: Tensor) -> Tensor:
        """(parameters, rows, values)."""
        return self.actors(observations) + self.mask

    def ask(self) -> Indices:
        observation = self._observation()
        with torch.no_grad():
            logits = self._logits(observation[None])[:, 0]
            choice = self._draw(logits)
            chance = logits.log_softmax(-1).gather(-1, choice[:, None])[:, 0]
        point = tuple(int(i) for i in choice)
        self._remember(point, observation, choice, chance)
        return point

    def greedy(self) -> Indices:
        """The likeliest value of each parameter, now."""
        with torch.no_grad():
            return tuple(int(i) for i in self._logits(self._observation()[None])[:, 0].argmax(-1))

    def _update(self) -> None:
        observations = torch.stack([r[0] for r in self.rows])
        choices = torch.stack([r[1] for r in self.rows], 1)
        before = torch.stack([r[2] for r in self.rows], 1)
        paid = self._paid()
        with torch.no_grad():
            advantage = paid - self.critics(observations)[..., 0]
        for _ in range(1 if self.algorithm == "reinforce" else self.epochs):
            logits = self._logits(observations).log_softmax(-1)
            now = logits.gather(-1, choices[..., None])[..., 0]
            policy = self._policy_loss(now, before, advantage)
            spread = -(logits.exp() * logits).sum(-1)
            value = (self.critics(observations)[..., 0] - paid) ** 2
            # Sums over the agents of means over the rows: each has the gradient that it would have alone.
            loss = policy.mean(-1).sum() - self.entropy * spread.mean(-1).sum() + 0.5 * value.mean(-1).sum()
            descend(self.optimizer, loss)

    def _policy_loss(self, now: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
        """(agents, rows) of the loss, from log-chances (parameters, rows)."""
        if self.algorithm == "reinforce":
            return -now * advantage
        ratio = (now - before).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)


class _Heads(nn.Module):
    """One body, a head for each parameter."""

    def __init__(self, count: int, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.body = _Networks(1, METRICS, count * width, hidden, generator)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.body(x)[0]
        return made.reshape(made.shape[0], self.count, -1).transpose(0, 1)


@register_agent("ppo", "agent: one policy with a head for each parameter, by PPO")
class Single(Multi):
    """One learner with a head for each parameter: the ratio of the whole choice is clipped."""

    joint = True

    def _actors(self, count: int, width: int, hidden: int) -> nn.Module:
        return _Heads(count, width, hidden, self.generator)

    def _policy_loss(self, now: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
        return super()._policy_loss(now.sum(0, keepdim=True), before.sum(0, keepdim=True), advantage)


class _Box(_Learner):
    """Learners whose choice is a place in [-1, 1]^n, binned evenly, or rounded first as ArchGym's public code does."""

    rounded = False

    def _bin(self, coordinates: Sequence[float]) -> Indices:
        return bins(self.sizes, coordinates, self.rounded)


@register_agent("ppo-box", "agent: one Gaussian policy over the box of all parameters, by PPO")
class Continuous(_Box):
    """One Gaussian policy over the box [-1, 1]^n, by PPO.

    Args:
        rounded: bin as ArchGym's public code does, which reaches three values of a parameter at most.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0, rounded: bool = False, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        hidden, count = options.get("hidden", 32), len(self.sizes)
        self.rounded = rounded
        self.actor = _Networks(1, METRICS, count, hidden, self.generator)
        self.critic = _Networks(1, METRICS, 1, hidden, self.generator)
        self.spread = nn.Parameter(torch.full((count,), -0.5))
        parts = [*self.actor.parameters(), *self.critic.parameters(), self.spread]
        self.optimizer = torch.optim.Adam(parts, self.rate)

    def _density(self, observations: Tensor, actions: Tensor) -> Tensor:
        off = (actions - self.actor(observations)[0]) / self.spread.exp()
        return (-0.5 * off**2 - self.spread - 0.5 * math.log(2 * math.pi)).sum(-1)

    def ask(self) -> Indices:
        observation = self._observation()
        with torch.no_grad():
            mean = self.actor(observation[None])[0, 0]
            action = mean + self.spread.exp() * torch.randn(mean.shape, generator=self.generator)
            chance = self._density(observation[None], action[None])[0]
        point = self._bin(action.clamp(-1, 1).tolist())
        self._remember(point, observation, action, chance)
        return point

    def _update(self) -> None:
        observations, actions, before = (torch.stack([r[i] for r in self.rows]) for i in range(3))
        paid = self._paid()
        with torch.no_grad():
            advantage = paid - self.critic(observations)[0, :, 0]
        for _ in range(self.epochs):
            ratio = (self._density(observations, actions) - before).exp()
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            value = ((self.critic(observations)[0, :, 0] - paid) ** 2).mean()
            loss = policy + 0.5 * value - self.entropy * self.spread.sum()
            descend(self.optimizer, loss)


@register_agent("sac-box", "agent: the same box by soft actor-critic")
class SoftActorCritic(_Box):
    """The box by SAC: two critics of an action, a squashed Gaussian, a learned temperature; episodes of one
    step have no next state, so that critics fit rewards.

    Args:
        every: points between updates.
        rounded: as `Continuous`.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, every: int = 4, rounded: bool = False, **options: Any
    ) -> None:
        super().__init__(sizes, seed, **options)
        hidden, count = options.get("hidden", 32), len(self.sizes)
        self.every, self.rounded = every, rounded
        self.actor = _Networks(1, METRICS, 2 * count, hidden, self.generator)
        self.critics = _Networks(2, METRICS + count, 1, hidden, self.generator)
        self.temperature = nn.Parameter(torch.tensor(-1.0))
        self.actor_step = torch.optim.Adam(self.actor.parameters(), self.rate)
        self.critic_step = torch.optim.Adam(self.critics.parameters(), self.rate)
        self.temperature_step = torch.optim.Adam([self.temperature], self.rate)
        self.told = 0

    def _sample(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.actor(observations)[0].chunk(2, -1)
        spread = spread.clamp(-4, 1)
        raw = mean + spread.exp() * torch.randn(mean.shape, generator=self.generator)
        action = torch.tanh(raw)
        density = -0.5 * ((raw - mean) / spread.exp()) ** 2 - spread - 0.5 * math.log(2 * math.pi)
        return action, (density - torch.log(1 - action**2 + 1e-6)).sum(-1)

    def ask(self) -> Indices:
        observation = self._observation()
        if self.told < self.batch:
            action = torch.rand(len(self.sizes), generator=self.generator) * 2 - 1
        else:
            with torch.no_grad():
                action = self._sample(observation[None])[0][0]
        point = self._bin(action.tolist())
        self._remember(point, observation, action)
        return point

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        batch, self.batch = self.batch, 1 << 62  # rows are kept, and learned from again and again
        super()._learn(point, reward, metrics)
        self.batch = batch
        self.told += 1
        if self.told >= self.batch and self.told % self.every == 0:
            self._update()

    def _update(self) -> None:
        chosen = self.rng.integers(0, len(self.rows), self.batch)
        observations = torch.stack([self.rows[i][0] for i in chosen])
        actions = torch.stack([self.rows[i][1] for i in chosen])
        raw = np.array([[self.rows[i][-1]] for i in chosen])
        paid = torch.tensor(self.rewards.scaled(raw)[:, 0], dtype=torch.float32)
        value = self.critics(torch.cat((observations, actions), -1))[..., 0]
        descend(self.critic_step, ((value - paid) ** 2).mean(-1).sum())
        action, density = self._sample(observations)
        least = self.critics(torch.cat((observations, action), -1))[..., 0].min(0).values
        descend(self.actor_step, (self.temperature.exp().detach() * density - least).mean())
        goal = -float(len(self.sizes))
        descend(self.temperature_step, -(self.temperature.exp() * (density.detach() + goal)).mean())


@register_agent("time-division", "agent: one policy that sets one parameter at a time")
class TimeDivision(_Learner):
    """One policy that sets one parameter at a time: it sees what stands, and whose turn it is."""

    def __init__(self, sizes: Sequence[int], seed: int = 0, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        hidden, count = options.get("hidden", 32), len(self.sizes)
        self.actor = _Networks(1, METRICS + 2 * count, max(self.sizes), hidden, self.generator)
        self.critic = _Networks(1, METRICS + 2 * count, 1, hidden, self.generator)
        self.optimizer = torch.optim.Adam([*self.actor.parameters(), *self.critic.parameters()], self.rate)
        self.stands = list(self._anywhere())
        self.turn = 0

    def ask(self) -> Indices:
        standing = torch.tensor([2 * i / max(1, n - 1) - 1 for i, n in zip(self.stands, self.sizes, strict=True)])
        turn = nn.functional.one_hot(torch.tensor(self.turn), len(self.sizes)).float()
        observation = torch.cat((self._observation(), standing.float(), turn))
        with torch.no_grad():
            logits = (self.actor(observation[None])[0] + self.mask[self.turn])[0]
            choice = self._draw(logits[None])[0]
            chance = logits.log_softmax(-1)[choice]
        self.stands[self.turn] = int(choice)
        point = tuple(self.stands)
        self._remember(point, observation, choice, chance, torch.tensor(self.turn))
        self.turn = (self.turn + 1) % len(self.sizes)
        return point

    def _update(self) -> None:
        observations, choices, before, turns = (torch.stack([r[i] for r in self.rows]) for i in range(4))
        paid = self._paid()
        with torch.no_grad():
            advantage = paid - self.critic(observations)[0, :, 0]
        for _ in range(self.epochs):
            logits = (self.actor(observations)[0] + self.mask[turns, 0]).log_softmax(-1)
            ratio = (logits.gather(-1, choices[:, None])[:, 0] - before).exp()
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            spread = -(logits.exp() * logits).sum(-1).mean()
            value = ((self.critic(observations)[0, :, 0] - paid) ** 2).mean()
            loss = policy - self.entropy * spread + 0.5 * value
            descend(self.optimizer, loss)


@register_agent("reinforce", "agent: one policy with a head for each parameter, by REINFORCE")
def _reinforce(sizes: Sequence[int], seed: int = 0, **options: Any) -> Agent:
    return Single(sizes, seed, algorithm="reinforce", **options)

"""Proximal policy optimization with a memory: whole trajectories, resets inside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.nn.s5 import S5
from hasten.tasks.control import MemoryEnvironment
from hasten.train.loop import descend

Memory = Literal["s5", "gru", "none"]
_KEPT = ("observations", "firsts", "actions", "chances", "values", "rewards", "ends")


class GRUMemory(nn.Module):
    """A GRU that is reset inside a sequence, step by step: what resets cost a recurrent network.

    Shape:
        x (batch, length, width), state (batch, width), resets (batch, length) to x's shape and the last state.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, hidden or width)
        self.width = hidden or width

    def new_state(self, batch: int) -> Tensor:
        return self.cell.weight_hh.new_zeros(batch, self.width)

    def forward(self, x: Tensor, state: Tensor | None = None, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = self.new_state(len(x)) if state is None else state
        outputs = []
        for t in range(x.shape[1]):
            if resets is not None:
                state = state * (~resets[:, t])[:, None]
            state = self.cell(x[:, t], state)
            outputs.append(state)
        return torch.stack(outputs, 1), state


class RecurrentPolicy(nn.Module):
    """An actor and critic over a memory (arXiv 2303.03982, section 5).

    Observations go through layers with leaky ReLU, the memory, and one head each for actions and value. Actions are
    drawn from logits or, where they are continuous, from independent normal distributions whose deviations are learned
    and the same in every state.

    Args:
        observation, actions: sizes of the task.
        memory: ``s5``, ``gru`` or ``none``.
        width: of the memory's features.
        states: complex states of an S5 layer; half the width when None.
        layers: of S5.
        hidden: of the GRU; the width when None.
        encoder: widths of the layers in front of the memory, which takes ``width``; one of that width when None.
        heads: widths of each head's inner layers; one of ``width`` when None.
        continuous: whether an action is ``actions`` real numbers, not one of so many.

    Raises:
        ValueError: an unknown memory, or an encoder that does not end at the memory's width.
    """

    def __init__(
        self,
        observation: int,
        actions: int,
        memory: Memory = "s5",
        *,
        width: int = 64,
        states: int | None = None,
        layers: int = 2,
        hidden: int | None = None,
        encoder: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        continuous: bool = False,
    ) -> None:
        super().__init__()
        encoder, heads = tuple(encoder or (width,)), tuple(heads or (width,))
        if encoder[-1] != width:
            raise ValueError(f"the encoder ends at {encoder[-1]}, the memory takes {width}")
        layers_before = [nn.Linear(a, b) for a, b in itertools.pairwise((observation, *encoder))]
        for layer in layers_before:
            nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.zeros_(layer.bias)
        between = [part for layer in layers_before for part in (nn.LeakyReLU(), layer)][1:]
        self.encoder: nn.Module = between[0] if len(between) == 1 else nn.Sequential(*between)
        last = width
        self.memory: nn.ModuleList
        if memory == "s5":
            self.memory = nn.ModuleList(S5(width, states) for _ in range(layers))
        elif memory == "gru":
            self.memory = nn.ModuleList([GRUMemory(width, hidden)])
            last = hidden or width
        elif memory == "none":
            self.memory = nn.ModuleList()
        else:
            raise ValueError(f"the memory is s5, gru or none, not {memory!r}")
        self.actor, self.critic = (
            nn.Sequential(*[
                part for a, b in itertools.pairwise((last, *heads)) for part in (nn.Linear(a, b), nn.LeakyReLU())
            ], nn.Linear(heads[-1], size))
            for size in (actions, 1)
        )  # fmt: skip
        for head, gain in ((self.actor, 0.01), (self.critic, 1.0)):
            inner = [layer for layer in head if isinstance(layer, nn.Linear)]
            for layer in inner:
                nn.init.orthogonal_(layer.weight, gain if layer is inner[-1] else 2.0)
                nn.init.zeros_(layer.bias)
        self.log_deviation = nn.Parameter(torch.zeros(actions)) if continuous else None

    @classmethod
    def published(
        cls, observation: int, actions: int, memory: Memory = "s5", *, continuous: bool = False
    ) -> RecurrentPolicy:
        """The sizes of the released code's POPGym runs.

        An encoder of 128 and 256, four S5 layers of 256 features and 128 complex states (or a GRU of 256), heads of 128
        and 128. Its observations have the action before in them, see `hasten.tasks.control.PreviousAction`.
        """
        return cls(
            observation, actions, memory, width=256, states=128, layers=4, encoder=(128, 256), heads=(128, 128),
            continuous=continuous,
        )  # fmt: skip

    @property
    def continuous(self) -> bool:
        """Whether an action is a row of real numbers."""
        return self.log_deviation is not None

    def draw(self, answers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions and the logarithms of their chances (batch), from what the actor says (batch, actions).

        Actions are (batch) int64, or continuous (batch, actions).
        """
        if self.log_deviation is not None:
            normal = torch.randn(answers.shape, generator=generator, device=answers.device)
            chosen = answers + self.log_deviation.exp() * normal
            return chosen, self.chance(answers, chosen)
        chances = answers.log_softmax(-1)
        chosen = torch.multinomial(chances.exp(), 1, generator=generator)[:, 0]
        return chosen, chances.gather(1, chosen[:, None])[:, 0]

    def chance(self, answers: Tensor, actions: Tensor) -> Tensor:
        """Logarithms of the chances (densities, where continuous) of actions (...), answers (..., actions)."""
        if self.log_deviation is not None:
            away = (actions - answers) * (-self.log_deviation).exp()
            return -(0.5 * away.square() + self.log_deviation + 0.5 * math.log(2 * math.pi)).sum(-1)
        return answers.log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    def entropy(self, answers: Tensor) -> Tensor:
        """Mean entropy of the distributions, nats."""
        if self.log_deviation is not None:
            return (self.log_deviation + 0.5 * math.log(2 * math.pi * math.e)).sum()
        chances = answers.log_softmax(-1)
        return -(chances.exp() * chances).sum(-1).mean()

    def new_state(self, batch: int) -> list[Tensor]:
        return [layer.new_state(batch) for layer in self.memory]  # type: ignore[operator]

    def forward(
        self, observations: Tensor, state: list[Tensor], resets: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits or means (batch, length, actions), values (batch, length), and the state behind the last step.

        Args:
            observations: (batch, length, observation).
            state: in front of the first step, see `new_state`.
            resets: (batch, length) bool: True where a new episode begins.
        """
        x = F.leaky_relu(self.encoder(observations))
        after = []
        for layer, before in zip(self.memory, state, strict=True):
            x, last = layer(x, before, resets)
            after.append(last)
        return self.actor(x), self.critic(x)[..., 0], after


@dataclass(frozen=True)
class PPO:
    """How to learn; the defaults suit small memory tasks.

    Args:
        steps: of a rollout, in every copy of the task.
        epochs, minibatches: passes over a rollout, and parts of one; a part holds whole trajectories.
        rate: Adam's.
        discount, trace: gamma and lambda of the advantage estimates.
        clip: of the probability ratio and of the value's change.
        entropy, value: weights of these terms.
        norm: largest norm of the gradient.
        reset: whether the memory is reset at episode borders; False to see what that is for.
    """

    steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    rate: float = 1e-3
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 1.0
    norm: float = 0.5
    reset: bool = True


Progress = Callable[[int, float], None]


def advantages(
    rewards: Tensor, values: Tensor, ends: Tensor, following: Tensor, discount: float, trace: float
) -> Tensor:
    """Generalized advantage estimates (arXiv 1506.02438, equation 16).

    Args:
        rewards, values, ends: (batch, length); an end stops what flows back to its step.
        following: value of the state behind the last step (batch).
        discount, trace: gamma and lambda.
    """
    found, running = torch.zeros_like(rewards), torch.zeros_like(following)
    for t in reversed(range(rewards.shape[1])):
        going = (~ends[:, t]).float()
        surprise = rewards[:, t] + discount * following * going - values[:, t]
        running = surprise + discount * trace * going * running
        found[:, t], following = running, values[:, t]
    return found


def learn(
    policy: RecurrentPolicy,
    task: MemoryEnvironment,
    total: int,
    settings: PPO = PPO(),
    *,
    seed: int = 0,
    progress: Progress = lambda steps, episode_return: None,
) -> list[tuple[int, float]]:
    """Trains a policy in place.

    The memory's state in front of a rollout is kept and starts every epoch's pass over it; with each observation goes
    whether it is an episode's first (arXiv 2303.03982, section 4).

    Args:
        policy, task: what learns, and what.
        total: environment steps, over all copies.
        settings: how.
        seed: of actions and minibatches.
        progress: told the steps done and the mean return of the episodes that ended in the last rollout.

    Returns:
        (steps, mean return of finished episodes) for each rollout in which one finished.

    Raises:
        ValueError: more minibatches than copies of the task; a policy of discrete actions for continuous ones, or the
            other way round.
    """
    if policy.continuous != task.continuous:
        words = {True: "continuous", False: "discrete"}
        raise ValueError(f"the task's actions are {words[task.continuous]}, the policy's {words[policy.continuous]}")
    if settings.minibatches > task.count:
        raise ValueError(f"{settings.minibatches} minibatches of whole trajectories need as many copies of the task")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate, eps=1e-5)
    observation, state = task.reset(), policy.new_state(task.count)
    first = torch.ones(task.count, dtype=torch.bool)
    running, history, done = torch.zeros(task.count), [], 0
    while done < total:
        begun = [s.clone() for s in state]
        kept: dict[str, list[Tensor]] = {name: [] for name in _KEPT}
        finished: list[Tensor] = []
        with torch.no_grad():
            for _ in range(settings.steps):
                resets = first[:, None] if settings.reset else None
                logits, value, state = policy(observation[:, None], state, resets)
                actions, chances = policy.draw(logits[:, 0], generator)
                kept["observations"].append(observation)
                kept["firsts"].append(first)
                kept["actions"].append(actions)
                kept["chances"].append(chances)
                kept["values"].append(value[:, 0])
                observation, rewards, first = task.step(actions)
                kept["rewards"].append(rewards)
                kept["ends"].append(first)
                running += rewards
                finished.append(running[first].clone())
                running = torch.where(first, 0.0, running)
            _, following, _ = policy(observation[:, None], state, first[:, None] if settings.reset else None)
        rollout = {name: torch.stack(tensors, 1) for name, tensors in kept.items()}
        rollout["advantages"] = advantages(
            rollout["rewards"], rollout["values"], rollout["ends"], following[:, 0], settings.discount, settings.trace
        )
        _update(policy, optimizer, rollout, begun, settings, generator)
        done += settings.steps * task.count
        returns = torch.cat(finished)
        if len(returns):
            history.append((done, float(returns.mean())))
            progress(done, history[-1][1])
    return history


def _update(
    policy: RecurrentPolicy, optimizer: Any, rollout: dict[str, Tensor], begun: list[Tensor], settings: PPO,
    generator: torch.Generator,
) -> None:  # fmt: skip
    count = rollout["actions"].shape[0]
    for _ in range(settings.epochs):
        for part in torch.randperm(count, generator=generator).chunk(settings.minibatches):
            r = {name: tensor[part] for name, tensor in rollout.items()}
            resets = r["firsts"] if settings.reset else None
            logits, values, _ = policy(r["observations"], [s[part] for s in begun], resets)
            chance = policy.chance(logits, r["actions"])
            gain = r["advantages"]
            targets = gain + r["values"]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            ratio = (chance - r["chances"]).exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            actor = -torch.minimum(ratio * gain, clipped * gain).mean()
            near = r["values"] + (values - r["values"]).clamp(-settings.clip, settings.clip)
            critic = 0.5 * torch.maximum((values - targets).square(), (near - targets).square()).mean()
            loss = actor + settings.value * critic - settings.entropy * policy.entropy(logits)
            descend(optimizer, loss, parameters=policy.parameters(), clip=settings.norm)

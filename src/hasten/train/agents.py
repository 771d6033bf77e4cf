"""Agents with a memory, trained on a task and asked what they learned: the arms of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.tasks.control import MemoryEnvironment, ProjectedCartPole
from hasten.train.recurrent_ppo import PPO, Memory, RecurrentPolicy, learn


@dataclass(frozen=True)
class TrainedAgent:
    """A trained policy.

    Args:
        policy: in its last state.
        last_return: mean return of the last tenth of the rollouts in which an episode finished; 0 without any.
        seconds: of training.
        parameters: of the policy.
    """

    policy: RecurrentPolicy
    last_return: float
    seconds: float
    parameters: int


def train_agent(
    task: MemoryEnvironment,
    memory: Memory,
    total: int,
    settings: PPO | None = None,
    *,
    seed: int = 0,
    width: int = 64,
    hidden: int | None = None,
    progress: Callable[[int, float], None] = lambda steps, episode_return: None,
) -> TrainedAgent:
    """Trains a `RecurrentPolicy` on a task by PPO.

    Args:
        task: many copies of it.
        memory: ``s5``, ``gru`` or ``none``.
        total: environment steps, over all copies.
        settings: of PPO; its defaults when None.
        seed: of weights, actions and minibatches.
        width, hidden: of the memory, see `RecurrentPolicy`.
        progress: told the steps done and the mean return of the last rollout's finished episodes.
    """
    torch.manual_seed(seed)
    policy = RecurrentPolicy(
        task.observation, task.actions, memory, width=width, hidden=hidden, continuous=task.continuous
    )
    begun = time.perf_counter()
    history = learn(policy, task, total, settings or PPO(), seed=seed, progress=progress)
    seconds = time.perf_counter() - begun
    last = [value for _, value in history[-max(1, len(history) // 10) :]]
    mean = sum(last) / len(last) if last else 0.0
    return TrainedAgent(policy, mean, seconds, sum(p.numel() for p in policy.parameters()))


def trial_lengths(policy: RecurrentPolicy, task: ProjectedCartPole) -> Tensor:
    """Mean steps that each trial (trials) of an episode lasts, when the likeliest action is taken.

    Args:
        policy: remembers over the trials of an episode, which is what the task is about.
        task: every copy counts its first episode.
    """
    observation, state = task.reset(), policy.new_state(task.count)
    lengths = torch.zeros(task.count, task.trials)
    going = torch.ones(task.count, dtype=torch.bool)
    first = going
    with torch.no_grad():
        while going.any():
            logits, _, state = policy(observation[:, None], state, first[:, None])
            trial = task.trial.clone()
            observation, _, first = task.step(logits[:, 0].argmax(-1))
            lengths[torch.arange(task.count), trial] += going
            going = going & ~first
    return lengths.mean(0)

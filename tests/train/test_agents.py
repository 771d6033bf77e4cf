"""Agents that are trained on a task."""

from __future__ import annotations

import torch

from hasten.tasks.control import MemoryLength, ProjectedCartPole
from hasten.train.agents import train_agent, trial_lengths
from hasten.train.recurrent_ppo import PPO, RecurrentPolicy


def test_what_is_told_of_an_agent() -> None:
    told: list[tuple[int, float]] = []
    agent = train_agent(
        MemoryLength(8, 3), "s5", 8 * 8 * 3, PPO(steps=8), width=8, progress=lambda *step: told.append(step)
    )  # fmt: skip
    assert [steps for steps, _ in told] == [64, 128, 192]
    assert agent.last_return == told[-1][1]
    assert agent.parameters == sum(p.numel() for p in agent.policy.parameters())
    assert agent.seconds > 0


def test_the_same_seed_gives_the_same_agent() -> None:
    first, again, other = (
        train_agent(MemoryLength(4, 3), "gru", 4 * 16, PPO(steps=16), seed=seed, width=8, hidden=12)
        for seed in (1, 1, 2)
    )
    same = [torch.equal(a, b) for a, b in zip(first.policy.parameters(), again.policy.parameters(), strict=True)]
    assert all(same)
    assert first.last_return == again.last_return
    assert not torch.equal(first.policy.encoder.weight, other.policy.encoder.weight)


def test_an_episode_that_never_ends_in_the_rollouts_has_no_return() -> None:
    assert train_agent(MemoryLength(4, 50), "none", 4 * 8, PPO(steps=8), width=8).last_return == 0.0


def test_trials_of_a_pole_that_always_falls_to_one_side() -> None:
    torch.manual_seed(0)
    policy = RecurrentPolicy(ProjectedCartPole.observation, 2, "none", width=8)
    last = policy.actor[2]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    lengths = trial_lengths(policy, ProjectedCartPole(8, trials=3))
    assert lengths.shape == (3,)
    # Pushed one way all the time it falls within ten steps or so, in every trial alike.
    assert 5 < float(lengths.min()) <= float(lengths.max()) < 15
    assert torch.equal(lengths, lengths[:1].expand(3))

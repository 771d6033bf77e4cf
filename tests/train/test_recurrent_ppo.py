"""Recurrent PPO: its estimates, its memory at episode borders, and that it learns what needs memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.control import (
    GymTask,
    MemoryEnvironment,
    MemoryLength,
    PreviousAction,
    ProjectedCartPole,
    RepeatPrevious,
    RunningMajority,
    cart_pole,
)
from hasten.train.recurrent_ppo import PPO, RecurrentPolicy, advantages, learn


def test_gymnasiums_actions_begin_where_they_say_and_every_reset_is_new():
    gymnasium = pytest.importorskip("gymnasium")

    class Button(gymnasium.Env):
        """Actions that do not begin at 0, and an observation by chance."""

        action_space = gymnasium.spaces.Discrete(3, start=5)
        observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float64)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.np_random.random(1), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return self.np_random.random(1), float(action), True, False, {}

    gymnasium.register("hasten-test/button-v0", entry_point=Button)
    task = GymTask(2, "hasten-test/button-v0", seed=3)
    first, second = task.reset(), task.reset()
    assert not torch.equal(first, second)
    assert torch.equal(GymTask(2, "hasten-test/button-v0", seed=3).reset(), first)
    assert task.step(torch.tensor([0, 2]))[1].tolist() == [5.0, 7.0]
    with pytest.raises(HastenError, match="wrap it so that it shows a row of numbers"):
        GymTask(1, "FrozenLake-v1")


def test_advantages_stop_at_ends() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[0.5, 0.25, 0.125]])
    ends = torch.tensor([[False, True, False]])
    found = advantages(rewards, values, ends, torch.tensor([4.0]), 0.9, 0.8)
    second = 2 - 0.25
    first = 1 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * second
    third = 3 + 0.9 * 4 - 0.125
    torch.testing.assert_close(found, torch.tensor([[first, second, third]]))


@pytest.mark.parametrize("memory", ["s5", "gru", "none"])
def test_a_rollout_in_pieces_equals_one_in_whole(memory: str) -> None:
    """Acting step by step and learning from the sequence must see the same, resets included."""
    torch.manual_seed(0)
    policy = RecurrentPolicy(4, 2, memory, width=16)
    observations = torch.randn(3, 12, 4)
    firsts = torch.rand(3, 12) < 0.3
    state = policy.new_state(3)
    whole, values, _ = policy(observations, state, firsts)
    for t in range(12):
        logits, value, state = policy(observations[:, t : t + 1], state, firsts[:, t : t + 1])
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value[:, 0], values[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["s5", "gru"])
def test_the_first_epoch_starts_at_a_ratio_of_one(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acting and learning agree on every action's probability, across episode borders."""
    from hasten.train import recurrent_ppo

    ratios: list[float] = []

    def look(policy, optimizer, rollout, begun, settings, generator) -> None:
        logits, _, _ = policy(rollout["observations"], begun, rollout["firsts"])
        chance = logits.log_softmax(-1).gather(2, rollout["actions"][..., None])[..., 0]
        ratios.append(float((chance - rollout["chances"]).detach().exp().sub(1).abs().max()))

    monkeypatch.setattr(recurrent_ppo, "_update", look)
    torch.manual_seed(0)
    task = RunningMajority(8, seed=1)
    learn(RecurrentPolicy(task.observation, task.actions, memory, width=16), task, 1500, PPO(steps=50))
    assert len(ratios) >= 3
    assert max(ratios) < 1e-4


def test_memory_length_asks_for_what_it_showed() -> None:
    task = MemoryLength(8, 5, seed=1)
    observation = task.reset()
    bits = observation[:, 0]
    assert torch.all(observation[:, 2] == 1)
    for t in range(5):
        assert torch.all((observation[:, 1] == 1) == (t == 4))
        observation, rewards, ends = task.step(((bits + 1) / 2).long())
        assert torch.all(ends == (t == 4))
    assert torch.all(rewards == 1)
    assert torch.all(observation[:, 0].abs() == 1)


def test_running_majority_pays_the_sign_of_its_bits() -> None:
    task = RunningMajority(16, seed=2)
    observation = task.reset()
    total = observation[:, 0].clone()
    for _ in range(60):
        answers = (total > 0).long()
        observation, rewards, ends = task.step(answers)
        assert torch.all(rewards[ends] == 1)
        assert torch.all(rewards[~ends] == 0)
        total = torch.where(ends, 0.0, total) + observation[:, 0]


def test_repeat_previous_pays_one_for_a_perfect_memory() -> None:
    task = RepeatPrevious(4, delay=3, seed=3)
    seen = [task.reset()[:, :4].argmax(1)]
    total = torch.zeros(4)
    for t in range(52):
        guess = seen[t - 3] if t >= 3 else torch.zeros(4, dtype=torch.int64)
        observation, rewards, ends = task.step(guess)
        seen.append(observation[:, :4].argmax(1))
        total += rewards
    assert torch.all(ends)
    torch.testing.assert_close(total, torch.ones(4))
    with pytest.raises(ValueError, match="does not fit"):
        RepeatPrevious(1, delay=52)


def test_projected_cart_pole_turns_but_does_not_change_the_physics() -> None:
    task = ProjectedCartPole(32, trials=3, seed=4)
    observation = task.reset()
    torch.testing.assert_close(task.maps @ task.maps.transpose(1, 2), torch.eye(4).expand(32, 4, 4), atol=1e-5, rtol=0)
    starts = task.starts.clone()
    trials = torch.zeros(32)
    for _ in range(200):
        observation, _, ends = task.step(torch.zeros(32, dtype=torch.int64))
        trials += observation[:, 5]
        again = (observation[:, 5] == 1) & ~ends & (trials < 3)
        assert torch.equal(task.state[again], starts[again])
        if ends.any():
            break
    assert torch.all(trials[ends] == 3)


def test_cart_pole_is_gymnasiums() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    environment = gymnasium.make("CartPole-v1")
    seen, _ = environment.reset(seed=0)
    state = torch.tensor(seen)[None]
    for action in (0, 1, 1, 0, 0, 0):
        seen, *_ = environment.step(action)
        state = cart_pole(state, torch.tensor([action]))
        torch.testing.assert_close(state[0], torch.tensor(seen), rtol=1e-4, atol=1e-5)


def test_gym_task_hides_and_names_errors() -> None:
    pytest.importorskip("gymnasium")
    task = GymTask(3, "CartPole-v1", keep=(0, 2))
    assert task.reset().shape == (3, 3)
    ended = 0
    for _ in range(60):
        observation, rewards, ends = task.step(torch.zeros(3, dtype=torch.int64))
        assert torch.equal(observation[:, 2] == 1, ends)
        ended += int(ends.sum())
    assert ended
    assert torch.all(rewards == 1)
    with pytest.raises(HastenError, match="no environment"):
        GymTask(1, "Nowhere-v0")
    with pytest.raises(HastenError, match="continuous"):
        GymTask(1, "Pendulum-v1")


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="whole trajectories"):
        learn(RecurrentPolicy(4, 2), MemoryLength(2, 5), 10, PPO(minibatches=4))
    with pytest.raises(ValueError, match="s5, gru or none"):
        RecurrentPolicy(4, 2, "lstm")


def test_s5_remembers_a_bit() -> None:
    torch.manual_seed(0)
    task = MemoryLength(32, 6)
    policy = RecurrentPolicy(task.observation, task.actions, "s5", width=32)
    history = learn(policy, task, 60_000, PPO(steps=64))
    assert history[-1][1] > 0.8


@pytest.mark.slow
def test_s5_balances_a_pole_whose_speed_it_does_not_see() -> None:
    pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    task = GymTask(64, "CartPole-v1", keep=(0, 2))
    policy = RecurrentPolicy(task.observation, task.actions, "s5")
    history = learn(policy, task, 250_000)
    assert history[0][1] < 30
    assert sum(value for _, value in history[-5:]) / 5 > 45


def test_the_published_agent_has_the_published_size() -> None:
    """1,186,949 parameters: RepeatPrevious' suit, whether it is the first step, and the action before, nine numbers."""
    task = PreviousAction(RepeatPrevious(2))
    assert (task.observation, task.actions) == (9, 4)
    policy = RecurrentPolicy.published(task.observation, task.actions)
    assert sum(p.numel() for p in policy.parameters()) == 1_186_949
    logits, values, state = policy(task.reset()[:, None], policy.new_state(2), None)
    assert (logits.shape, values.shape, len(state)) == ((2, 1, 4), (2, 1), 4)
    shapes = [tuple(p.shape) for p in policy.encoder.parameters()]
    assert shapes == [(128, 9), (128,), (256, 128), (256,)]
    assert [tuple(p.shape) for p in policy.critic.parameters() if p.ndim == 2] == [(128, 256), (128, 128), (1, 128)]
    gru = RecurrentPolicy.published(9, 4, "gru")
    assert gru.memory[0].width == 256
    # A state-free deviation for each number of a continuous action, and nothing else.
    continuous = RecurrentPolicy.published(9, 4, continuous=True)
    assert sum(p.numel() for p in continuous.parameters()) == 1_186_949 + 4
    with pytest.raises(ValueError, match="ends at 32"):
        RecurrentPolicy(9, 4, width=64, encoder=(16, 32))


def test_the_action_before_is_seen_but_not_across_episodes() -> None:
    task = PreviousAction(MemoryLength(4, 3))
    observation = task.reset()
    assert observation.shape == (4, 6)
    assert not observation[:, 4:].any()
    for t in range(5):
        actions = torch.tensor([0, 1, 1, 0])
        observation, _, ends = task.step(actions)
        assert torch.all(ends == (t % 3 == 2))
        wanted = torch.zeros(4, 2) if t % 3 == 2 else torch.eye(2)[actions]
        assert torch.equal(observation[:, 4:], wanted)


class Recall(MemoryEnvironment):
    """A number between -1 and 1 is shown at the first of two steps and to be said at the second."""

    observation, actions, continuous = 2, 1, True

    def reset(self) -> torch.Tensor:
        self.second = torch.zeros(self.count, dtype=torch.bool)
        return self._observe()

    def _observe(self) -> torch.Tensor:
        fresh = torch.rand(self.count, generator=self.generator) * 2 - 1
        self.number = torch.where(self.second, getattr(self, "number", fresh), fresh)
        return torch.stack([torch.where(self.second, 0.0, self.number), self.second.float()], 1)

    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ends = self.second
        rewards = torch.where(ends, -(actions[:, 0] - self.number).square(), 0.0)
        self.second = ~ends
        return self._observe(), rewards, ends


def test_gaussian_actions_are_those_of_torch() -> None:
    torch.manual_seed(0)
    policy = RecurrentPolicy(3, 2, "none", width=8, continuous=True)
    with torch.no_grad():
        policy.log_deviation.copy_(torch.tensor([0.3, -1.0]))
    means = torch.randn(5000, 2)
    normal = torch.distributions.Independent(torch.distributions.Normal(means, policy.log_deviation.exp()), 1)
    actions, chances = policy.draw(means, torch.Generator().manual_seed(1))
    torch.testing.assert_close(chances, normal.log_prob(actions))
    torch.testing.assert_close(policy.chance(means, actions), chances)
    torch.testing.assert_close(policy.entropy(means), normal.entropy().mean())
    torch.testing.assert_close((actions - means).std(0), policy.log_deviation.exp(), rtol=0.05, atol=0)


@pytest.mark.slow
def test_s5_says_a_number_that_it_saw() -> None:
    torch.manual_seed(0)
    task = Recall(32, seed=1)
    policy = RecurrentPolicy(2, 1, "s5", width=16, layers=1, continuous=True)
    history = learn(policy, task, 30_000, PPO(steps=16, rate=3e-3, entropy=0.0))
    # A guess of 0 loses 1/3, and a deviation of 1 another 1.
    assert history[0][1] < -1
    assert history[-1][1] > -0.25
    assert policy.log_deviation is not None
    assert float(policy.log_deviation.detach()) < -0.4


def test_kinds_of_actions_do_not_mix() -> None:
    with pytest.raises(ValueError, match="the task's actions are continuous, the policy's discrete"):
        learn(RecurrentPolicy(2, 1), Recall(4), 10)
    pytest.importorskip("gymnasium")
    task = GymTask(2, "Pendulum-v1", continuous=True)
    policy = RecurrentPolicy(task.observation, task.actions, width=8, continuous=True)
    learn(policy, task, 2 * 4, PPO(steps=4, minibatches=1, epochs=1))
    with pytest.raises(HastenError, match="rows of real numbers"):
        GymTask(1, "CartPole-v1", continuous=True)

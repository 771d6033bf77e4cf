"""Environments that only an agent with memory solves, many at once, as tensors.

Each has ``observation`` numbers a step, ``actions`` discrete actions and ``count`` copies; `reset` gives the first
observations (count, observation), `step` takes actions (count) and returns observations, rewards (count), and whether
the episode ended with this step (count). Where actions are ``continuous`` they are ``actions`` real numbers (count,
actions). The observation after an end is already the next episode's first.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.errors import HastenError, MissingExtraError
from hasten.tasks.task import Batch, Better, Model, Split, Task, registered


class MemoryEnvironment(ABC):
    """Many copies of an episodic environment.

    Args:
        count: copies.
        seed: of everything random.
    """

    observation: int
    actions: int
    continuous: bool = False

    def __init__(self, count: int, seed: int = 0) -> None:
        if count < 1:
            raise ValueError("at least one copy")
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)

    @abstractmethod
    def reset(self) -> Tensor:
        """New episodes everywhere."""

    @abstractmethod
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Observations, rewards, ends."""

    def best_actions(self) -> Tensor:
        """Actions (count) of one who sees what an agent has to remember.

        Raises:
            HastenError: nobody knows them here.
        """
        raise HastenError(f"nobody knows the best actions in {type(self).__name__}")

    def _signs(self) -> Tensor:
        return torch.randint(0, 2, (self.count,), generator=self.generator) * 2.0 - 1


class MemoryLength(MemoryEnvironment):
    """A bit is shown once; after a blank wait the agent is asked for it (bsuite's ``memory_len``).

    Observations: the bit (at the first step only), whether this is the question, whether this is the first step, the
    action before (-1 or 1). The answer's reward is 1 or -1; every other step's 0.
    """

    observation, actions = 4, 2

    def __init__(self, count: int, length: int, seed: int = 0) -> None:
        super().__init__(count, seed)
        if length < 2:
            raise ValueError("an episode has at least 2 steps")
        self.length = length

    def reset(self) -> Tensor:
        self.time = torch.zeros(self.count, dtype=torch.int64)
        self.bits = self._signs()
        return self._observe(torch.zeros(self.count))

    def _observe(self, before: Tensor) -> Tensor:
        first = (self.time == 0).float()
        return torch.stack([self.bits * first, (self.time == self.length - 1).float(), first, before], 1)

    def best_actions(self) -> Tensor:
        return (self.bits > 0).long()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answers = actions * 2.0 - 1
        ends = self.time == self.length - 1
        rewards = torch.where(ends, answers * self.bits, 0.0)
        self.time = torch.where(ends, 0, self.time + 1)
        self.bits = torch.where(ends, self._signs(), self.bits)
        return self._observe(answers), rewards, ends


class RunningMajority(MemoryEnvironment):
    """A bit at every step of an episode of 7 to 23 (odd); at the last one: which was the majority?

    Nothing in the observation (bit, whether this is the question) tells where an episode begins: an agent whose memory
    is not reset there counts the last episode's bits too.
    """

    observation, actions = 2, 2

    def reset(self) -> Tensor:
        self.left = self._lengths()
        self.total = torch.zeros(self.count)
        return self._observe()

    def _lengths(self) -> Tensor:
        return 7 + 2 * torch.randint(0, 9, (self.count,), generator=self.generator)

    def _observe(self) -> Tensor:
        bits = self._signs()
        self.total = self.total + bits
        return torch.stack([bits, (self.left == 1).float()], 1)

    def best_actions(self) -> Tensor:
        return (self.total > 0).long()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ends = self.left == 1
        rewards = torch.where(ends, (actions * 2.0 - 1) * self.total.sign(), 0.0)
        self.left = torch.where(ends, self._lengths(), self.left - 1)
        self.total = torch.where(ends, 0.0, self.total)
        return self._observe(), rewards, ends


class RepeatPrevious(MemoryEnvironment):
    """Cards are dealt; name the suit of the one ``delay`` cards ago (POPGym's RepeatPrevious).

    Easy is a delay of 4 and one deck, medium 32 and two, hard 64 and three. The rewards of an episode add up to
    between -1 and 1; guessing gives -0.5.
    """

    observation, actions = 5, 4

    def __init__(self, count: int, delay: int = 4, decks: int = 1, seed: int = 0) -> None:
        super().__init__(count, seed)
        self.delay, self.length = delay, 52 * decks
        if not 0 < delay < self.length:
            raise ValueError(f"a delay of {delay} does not fit {self.length} cards")

    def reset(self) -> Tensor:
        self.cards = torch.stack([self._deal() for _ in range(self.count)])
        self.time = torch.zeros(self.count, dtype=torch.int64)
        return self._observe()

    def _deal(self) -> Tensor:
        return torch.randperm(self.length, generator=self.generator) % 4

    def _observe(self) -> Tensor:
        suits = self.cards.gather(1, self.time[:, None])[:, 0]
        return torch.cat([torch.nn.functional.one_hot(suits, 4).float(), (self.time == 0).float()[:, None]], 1)

    def best_actions(self) -> Tensor:
        return self.cards.gather(1, (self.time - self.delay).clamp(min=0)[:, None])[:, 0]

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        asked = self.time >= self.delay
        wanted = self.best_actions()
        rewards = torch.where(actions == wanted, 1.0, -1.0) / (self.length - self.delay) * asked
        ends = self.time == self.length - 1
        self.time = torch.where(ends, 0, self.time + 1)
        for i in ends.nonzero()[:, 0].tolist():
            self.cards[i] = self._deal()
        return self._observe(), rewards, ends


class ProjectedCartPole(MemoryEnvironment):
    """In-context control: one cart-pole, seen through a random rotation, tried 16 times an episode.

    The observation's four numbers pass through an orthogonal matrix that is drawn anew for each episode, and the two
    actions may be swapped; every trial starts from the same state. Appended are the action before, whether a trial
    ended, and whether the episode begins. What is learned in the early trials of an episode pays in the later ones.

    Args:
        count, seed: as for every task.
        trials: of an episode.
        limit: steps of a trial.
    """

    observation, actions = 7, 2

    def __init__(self, count: int, trials: int = 16, limit: int = 200, seed: int = 0) -> None:
        super().__init__(count, seed)
        self.trials, self.limit = trials, limit

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        square = torch.randn(self.count, 4, 4, generator=self.generator)
        maps = torch.linalg.qr(square).Q
        starts = torch.rand(self.count, 4, generator=self.generator) * 0.1 - 0.05
        return maps, torch.randint(0, 2, (self.count,), generator=self.generator), starts

    def reset(self) -> Tensor:
        self.maps, self.swap, self.starts = self._draw()
        self.state, self.time = self.starts.clone(), torch.zeros(self.count, dtype=torch.int64)
        self.trial = torch.zeros(self.count, dtype=torch.int64)
        none = torch.zeros(self.count)
        return self._observe(none, none, none + 1)

    def _observe(self, before: Tensor, ended: Tensor, first: Tensor) -> Tensor:
        # Positions and speeds of about one, so that the rotation mixes what matters.
        seen = self.state / torch.tensor([1.0, 1.0, 0.1, 1.0])
        return torch.cat([(self.maps @ seen[..., None])[..., 0], before[:, None], ended[:, None], first[:, None]], 1)

    def best_actions(self) -> Tensor:
        """Pushes towards where the pole falls, and a little back to the middle: it stands until the limit."""
        place, speed, angle, turn = self.state.unbind(1)
        return (angle + 0.3 * turn + 0.02 * place + 0.05 * speed > 0).long() ^ self.swap

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.state = cart_pole(self.state, actions ^ self.swap)
        self.time = self.time + 1
        position, angle = self.state[:, 0], self.state[:, 2]
        over = (position.abs() > 2.4) | (angle.abs() > 0.2095) | (self.time >= self.limit)
        self.last_trial = self.trial.clone()
        self.trial = self.trial + over
        ends = self.trial >= self.trials
        if ends.any():
            maps, swap, starts = self._draw()
            self.maps = torch.where(ends[:, None, None], maps, self.maps)
            self.swap = torch.where(ends, swap, self.swap)
            self.starts = torch.where(ends[:, None], starts, self.starts)
        self.trial = torch.where(ends, 0, self.trial)
        self.state = torch.where(over[:, None], self.starts, self.state)
        self.time = torch.where(over, 0, self.time)
        rewards = torch.full((self.count,), 1.0 / self.limit)
        return self._observe(actions * 2.0 - 1, over.float(), ends.float()), rewards, ends


def cart_pole(state: Tensor, actions: Tensor) -> Tensor:
    """The next state (count, 4) of carts with poles: position, speed, angle, angular speed.

    Barto, Sutton and Anderson's equations (1983) as Gymnasium's CartPole-v1 takes them, Euler steps of 0.02 s.
    """
    x, speed, angle, turn = state.unbind(1)
    force = actions * 20.0 - 10.0
    cosine, sine = angle.cos(), angle.sin()
    mass, pole, half = 1.1, 0.1, 0.5
    push = (force + pole * half * turn.square() * sine) / mass
    turning = (9.8 * sine - cosine * push) / (half * (4.0 / 3.0 - pole * cosine.square() / mass))
    pulling = push - pole * half * turning * cosine / mass
    step = 0.02
    return torch.stack([x + step * speed, speed + step * pulling, angle + step * turn, turn + step * turning], 1)


class PreviousAction(MemoryEnvironment):
    """Another task with the action before in its observation, as agents of arXiv 2303.03982 (section 5) see it.

    Appended are as many numbers as there are actions: 1 for the last one taken, or the action itself where it is
    continuous; zeros at the first step of an episode.

    Args:
        task: whose episodes they are.
    """

    def __init__(self, task: MemoryEnvironment) -> None:
        super().__init__(task.count)
        self.task, self.continuous = task, task.continuous
        self.observation, self.actions = task.observation + task.actions, task.actions

    def best_actions(self) -> Tensor:
        return self.task.best_actions()

    def reset(self) -> Tensor:
        return torch.cat([self.task.reset(), torch.zeros(self.count, self.actions)], 1)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observation, rewards, ends = self.task.step(actions)
        before = actions if self.continuous else torch.nn.functional.one_hot(actions, self.actions)
        return torch.cat([observation, before.float() * ~ends[:, None]], 1), rewards, ends


class GymTask(MemoryEnvironment):
    """Copies of a Gymnasium environment, of whose observation the agent sees a part.

    ``GymTask(64, "CartPole-v1", keep=(0, 2))`` hides the velocities. Appended is whether the episode begins.

    Args:
        count, seed: as for every task.
        name: the environment's id.
        keep: indices of the observation that the agent sees; all when None.
        continuous: its actions are a row of real numbers; those beyond its bounds are taken as the bounds.

    Raises:
        MissingExtraError: Gymnasium is not installed.
        HastenError: no such environment, or one whose actions are of the other kind.
    """

    def __init__(
        self, count: int, name: str, keep: tuple[int, ...] | None = None, seed: int = 0, *, continuous: bool = False
    ) -> None:
        super().__init__(count, seed)
        self.continuous = continuous
        try:
            import gymnasium
        except ImportError:
            raise MissingExtraError("gymnasium", "rl") from None
        try:
            self.environments: Any = gymnasium.make_vec(
                name, num_envs=count, vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
            )  # fmt: skip
        except gymnasium.error.Error as error:
            raise HastenError(f"Gymnasium has no environment {name!r}: {str(error).splitlines()[0]}") from None
        space = self.environments.single_action_space
        if not isinstance(space, gymnasium.spaces.Box if continuous else gymnasium.spaces.Discrete):
            if continuous:
                raise HastenError(f"{name} has other actions: continuous=True is for rows of real numbers, not {space}")
            raise HastenError(f"{name} has continuous actions or several at once: say continuous=True for real numbers")
        seen = self.environments.single_observation_space
        if not isinstance(seen, gymnasium.spaces.Box) or len(seen.shape) != 1:
            raise HastenError(f"{name} shows {seen}: wrap it so that it shows a row of numbers")
        self.keep = list(keep if keep is not None else range(seen.shape[0]))
        self.start = 0 if continuous else int(space.start)
        self.observation, self.actions = len(self.keep) + 1, math.prod(space.shape) if continuous else int(space.n)
        self.bounds = (space.low, space.high) if continuous else None
        self.seed: int | None = seed

    def _observe(self, seen: Any, first: Tensor) -> Tensor:
        return torch.cat([torch.as_tensor(seen, dtype=torch.float32)[:, self.keep], first[:, None]], 1)

    def reset(self) -> Tensor:
        seen, _ = self.environments.reset(seed=self.seed)
        self.seed = None  # the same seed again would begin the same episodes
        return self._observe(seen, torch.ones(self.count))

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given: Any = actions.numpy() + self.start
        if self.bounds is not None:
            given = given.reshape(self.count, *self.bounds[0].shape).clip(*self.bounds)
        seen, rewards, ended, cut, _ = self.environments.step(given)
        ends = torch.as_tensor(ended | cut)
        return self._observe(seen, ends.float()), torch.as_tensor(rewards, dtype=torch.float32), ends


def episode_returns(
    environment: MemoryEnvironment, act: Callable[[Tensor, Tensor], Tensor], limit: int = 10_000
) -> Tensor:
    """Return (count) of every copy's first episode.

    Args:
        environment: is reset.
        act: told the observations (count, observation) and whether each is an episode's first (count); gives actions
            (count), int64.
        limit: steps after which an episode counts as far as it came.
    """
    observation = environment.reset()
    first = torch.ones(environment.count, dtype=torch.bool)
    total, going = torch.zeros(environment.count), first.clone()
    for _ in range(limit):
        observation, rewards, first = environment.step(act(observation, first))
        total = total + rewards * going
        going = going & ~first
        if not going.any():
            break
    return total


class ControlTask(Task):
    """An environment to act in: a batch is a new one of so many copies, and what is judged are its episodes' returns.

    A model is a function of a `MemoryEnvironment` to returns, such as ``lambda e: episode_returns(e, act)``.
    """

    given = "an environment, see `hasten.tasks.control.MemoryEnvironment`"
    answered = "the return of every copy's first episode (batch)"
    metric = "return of an episode"
    better: ClassVar[Better] = "higher"
    environment: ClassVar[Callable[..., MemoryEnvironment]]

    def __init__(self, **options: Any) -> None:
        self.options = options
        try:
            type(self).environment(1, **options)
        except ValueError as error:
            raise HastenError(f"{self.name} cannot be made: {error}") from None

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        # A split's seeds are those of its own remainder.
        seed = int(torch.randint(2**29, (), generator=generator)) * len(self.splits) + self.splits.index(split)
        return Batch(type(self).environment(size, **self.options, seed=seed), None)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        raise HastenError(f"{self.name} is learned by its rewards: see hasten.train.recurrent_ppo")

    def count(self, answers: Tensor, targets: Any) -> tuple[float, int]:
        return float(answers.double().sum()), len(answers)

    def right(self, batch: Batch) -> Tensor:
        return episode_returns(batch.inputs, lambda observation, first: batch.inputs.best_actions())

    def blind(self, batch: Batch, generator: torch.Generator) -> Tensor:
        kinds, count = batch.inputs.actions, batch.inputs.count
        return episode_returns(
            batch.inputs, lambda observation, first: torch.randint(kinds, (count,), generator=generator)
        )


@registered("memory-length")
class MemoryLengthTask(ControlTask):
    """`MemoryLength` of a number of steps."""

    description = "a bit that is shown once and asked for at the end of an episode"
    environment = MemoryLength
    best, chance = 1.0, 0.0

    def __init__(self, length: int = 16) -> None:
        super().__init__(length=length)


@registered("running-majority")
class RunningMajorityTask(ControlTask):
    """`RunningMajority`."""

    description = "the majority of the bits of an episode whose beginning is not shown"
    environment = RunningMajority
    best, chance = 1.0, 0.0

    def __init__(self) -> None:
        super().__init__()


@registered("repeat-previous")
class RepeatPreviousTask(ControlTask):
    """`RepeatPrevious` of a delay and decks."""

    description = "the suit of the card that was dealt some cards ago"
    environment = RepeatPrevious
    best, chance = 1.0, -0.5

    def __init__(self, delay: int = 4, decks: int = 1) -> None:
        super().__init__(delay=delay, decks=decks)


@registered("projected-cart-pole")
class ProjectedCartPoleTask(ControlTask):
    """`ProjectedCartPole` of trials and steps of each."""

    description = "a cart-pole seen through a rotation that is another one in each episode, tried several times"
    environment = ProjectedCartPole

    def __init__(self, trials: int = 16, limit: int = 200) -> None:
        super().__init__(trials=trials, limit=limit)
        self.best = float(trials)  # type: ignore[misc]

    @functools.cached_property
    def chance(self) -> float:
        """Of random actions, measured in 256 episodes."""
        generator = torch.Generator().manual_seed(0)
        return float(self.blind(self.draw("training", 256, generator), generator).mean())

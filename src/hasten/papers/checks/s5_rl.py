"""Checks of Structured State Space Models for In-Context Reinforcement Learning."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hasten.cost.measuring import least_seconds, log_slope
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.tasks.control import Task
    from hasten.train.recurrent_ppo import Memory


def _layer_seconds(kind: str, length: int, seed: int, runs: int = 3) -> float:
    """Forward and backward of one layer of width 256 on 8 sequences, 2 % of the steps resets where it knows them."""
    import torch
    from torch import nn

    from hasten.nn import S5
    from hasten.train.recurrent_ppo import GRUMemory

    torch.manual_seed(seed)
    width, batch = 256, 8
    x, resets = torch.randn(batch, length, width), torch.rand(batch, length) < 0.02
    call: Callable[[], object]
    if kind == "S5":
        s5 = S5(width, 128)
        call = lambda: s5(x, None, resets)[0].sum().backward()  # noqa: E731
    elif kind == "GRU":
        gru = nn.GRU(width, width, batch_first=True)
        call = lambda: gru(x)[0].sum().backward()  # noqa: E731
    elif kind == "GRU with resets":
        cell = GRUMemory(width)
        call = lambda: cell(x, cell.new_state(batch), resets)[0].sum().backward()  # noqa: E731
    else:
        q, k, v = (torch.randn(1, 4, length, 64, requires_grad=True) for _ in range(3))

        def call() -> None:
            hidden = torch.full((length, length), -math.inf).triu(1)
            (torch.softmax(q @ k.transpose(-1, -2) * 0.125 + hidden, -1) @ v).sum().backward()

    return least_seconds(call, runs)


@check("S1", needs=30)
def _speed(experiment: Experiment) -> Seen:
    short = experiment.paper_budget < 30
    length = 64 if short else 1024
    seconds = {}
    for number, kind in enumerate(("S5", "GRU", "GRU with resets")):
        experiment.run.progress(f"s5-rl S1: {kind}", number / 3)
        seconds[kind] = _layer_seconds(kind, length, experiment.seed, 7 if kind == "S5" else 3)
    ratios = {kind: s / seconds["S5"] for kind, s in seconds.items() if kind != "S5"}
    value = f"8 sequences of {length}, width 256, forward and backward: S5 {seconds['S5'] * 1e3:.0f} ms, " + ", ".join(
        f"{kind} {seconds[kind] * 1e3:.0f} ms ({ratio:.1f}x)" for kind, ratio in ratios.items()
    )
    return experiment.judge(value, ratios["GRU"] >= 4 and ratios["GRU with resets"] >= 5, min(ratios.values()) > 1)


@check("S2", needs=30)
def _asymptotics(experiment: Experiment) -> Seen:
    import torch

    from hasten.nn import S5

    short = experiment.paper_budget < 30
    sizes = [32, 64] if short else [256, 512, 1024, 2048, 4096]
    ours = [_layer_seconds("S5", size, experiment.seed) for size in sizes]
    experiment.run.progress("s5-rl S2: attention", 0.6)
    long = sizes[-3:]
    theirs = [_layer_seconds("attention", size, experiment.seed, 2) for size in long]
    slopes = log_slope(sizes, ours), log_slope(long, theirs)
    s5 = S5(256, 128)
    with torch.no_grad():
        acting = []
        for before in (16, sizes[-1]):
            _, state = s5(torch.randn(1, before, 256))
            step = torch.randn(1, 256)
            acting.append(least_seconds(lambda state=state, step=step: s5.step(step, state), 200))  # type: ignore[misc]
    value = (
        f"log-log slope of training time: S5 {slopes[0]:.2f} ({sizes[0]} to {sizes[-1]}), attention {slopes[1]:.2f} "
        f"({long[0]} to {long[-1]}); an acting step after 16 and {sizes[-1]}: {acting[0] * 1e6:.0f} and {acting[1] * 1e6:.0f} us"
    )
    holds = slopes[0] <= 1.1 and slopes[1] >= 1.5 and acting[1] <= 1.2 * acting[0]
    return experiment.judge(value, holds, slopes[0] < slopes[1])


def _learned(
    task: Task, memory: Memory, total: int, seed: int, rate: float = 1e-3, reset: bool = True, hidden: int | None = None
) -> tuple[float, float, int]:
    """Mean return of the last tenth of the rollouts, seconds, and the policy's parameters."""
    import torch

    from hasten.train.recurrent_ppo import PPO, RecurrentPolicy, learn

    torch.manual_seed(seed)
    policy = RecurrentPolicy(task.observation, task.actions, memory, hidden=hidden)
    begun = time.perf_counter()
    history = learn(policy, task, total, PPO(rate=rate, reset=reset), seed=seed)
    seconds = time.perf_counter() - begun
    last = [value for _, value in history[-max(1, len(history) // 10) :]]
    return sum(last) / max(1, len(last)) if last else 0.0, seconds, sum(p.numel() for p in policy.parameters())


@functools.cache
def _memory(length: int, total: int, seed: int) -> tuple[str, bool, bool]:
    """What was seen at one length, whether it meets the criterion, and whether S5 was best."""
    from hasten.tasks.control import MemoryLength

    def task() -> MemoryLength:
        return MemoryLength(64, length, seed)

    s5, s5_seconds, size = _learned(task(), "s5", total, seed)
    none, _, _ = _learned(task(), "none", total // 2, seed)
    grus = {rate: _learned(task(), "gru", total, seed, rate, hidden=104) for rate in (3e-4, 1e-3, 3e-3)}
    rate, (gru, _, gru_size) = max(grus.items(), key=lambda item: item[1][0])
    gru_seconds = min(seconds for _, seconds, _ in grus.values())
    said = (
        f"length {length}, {total:,} steps: S5 ({size:,} parameters) {s5:.2f} in {s5_seconds:.0f} s, GRU ({gru_size:,}, best "
        f"of three rates {rate:g}) {gru:.2f} in {gru_seconds:.0f} s, no memory {none:.2f}"
    )
    return said, s5 >= 0.95 and abs(none) <= 0.15 and s5_seconds <= 0.75 * gru_seconds, s5 > max(gru, none)


@check("S3", needs=100)
def _memory_length(experiment: Experiment) -> Seen:
    short = experiment.paper_budget < 100
    experiment.run.progress("s5-rl S3: length 20, S5, GRU at three rates, no memory", 0.1)
    value, holds, direction = _memory(20, 2 * 8192 if short else 262_144, experiment.seed)
    if short:
        return experiment.judge(value, holds, direction)
    experiment.run.progress("s5-rl S3: length 100", 0.5)
    if experiment.paper_budget < 1200:
        from hasten.tasks.control import MemoryLength

        s5, seconds, _ = _learned(MemoryLength(64, 100, experiment.seed), "s5", 1_500_000, experiment.seed)
        value += f"; length 100, 1,500,000 steps: S5 {s5:.2f} in {seconds:.0f} s (the GRU there takes --budget 1200)"
        return Seen(value, holds and s5 >= 0.95, direction)
    longer, held, directed = _memory(100, 1_500_000, experiment.seed)
    return Seen(f"{value}; {longer}", holds and held, direction and directed)


@check("S5", needs=100)
def _reset(experiment: Experiment) -> Seen:
    """Running majority: nothing but the reset tells where an episode begins."""
    from hasten.tasks.control import RunningMajority

    short = experiment.paper_budget < 100
    total = 2 * 8192 if short else 800_000
    found = {}
    for number, reset in enumerate((True, False)):
        experiment.run.progress(f"s5-rl S5: {'with' if reset else 'without'} resets", number / 2)
        found[reset], _, _ = _learned(RunningMajority(64, experiment.seed), "s5", total, experiment.seed, reset=reset)
    value = f"running majority, {total:,} steps: with resets {found[True]:.2f}, without {found[False]:.2f}"
    return experiment.judge(value, found[True] - found[False] >= 0.15, found[True] > found[False])


@check("S4")
def _popgym(experiment: Experiment) -> Seen:
    from hasten.tasks.control import RepeatPrevious

    if experiment.paper_budget < 1500:
        raise HastenError("repeating cards takes S5 and GRU about 10 minutes: give --budget 1500")
    total = 2_000_000
    s5, seconds, _ = _learned(RepeatPrevious(64, 4, 1, experiment.seed), "s5", total, experiment.seed)
    experiment.run.progress("s5-rl S4: GRU", 0.3)
    gru, gru_seconds, _ = _learned(RepeatPrevious(64, 4, 1, experiment.seed), "gru", total, experiment.seed, hidden=104)
    value = (
        f"RepeatPrevious easy, {total:,} steps: S5 {s5:.2f} in {seconds:.0f} s, GRU {gru:.2f} in {gru_seconds:.0f} s"
    )
    return Seen(value, s5 > gru, s5 >= gru - 0.05)


@check("S6")
def _in_context(experiment: Experiment) -> Seen:
    """A cart-pole behind a random rotation: are later trials of an episode better than the first?"""
    import torch

    from hasten.tasks.control import ProjectedCartPole
    from hasten.train.recurrent_ppo import PPO, RecurrentPolicy, learn

    if experiment.paper_budget < 1500:
        raise HastenError("learning to adapt takes about 15 minutes: give --budget 1500")
    torch.manual_seed(experiment.seed)
    policy = RecurrentPolicy(ProjectedCartPole.observation, 2, "s5", width=128)
    total = 8_000_000
    settings = PPO(steps=512, rate=3e-4)
    learn(
        policy, ProjectedCartPole(64, seed=experiment.seed), total, settings, seed=experiment.seed,
        progress=lambda steps, value: experiment.run.progress("s5-rl S6", steps / total),
    )  # fmt: skip
    # Rotations that it has not met.
    task = ProjectedCartPole(256, seed=experiment.seed + 1000)
    observation, state = task.reset(), policy.new_state(256)
    lengths = torch.zeros(256, 16)
    going = torch.ones(256, dtype=torch.bool)
    first = torch.ones(256, dtype=torch.bool)
    with torch.no_grad():
        while going.any():
            logits, _, state = policy(observation[:, None], state, first[:, None])
            trial = task.trial.clone()
            observation, _, first = task.step(logits[:, 0].argmax(-1))
            lengths[torch.arange(256), trial] += going
            going &= ~first
    means = lengths.mean(0)
    early, late = float(means[0]), float(means[8:].mean())
    value = f"steps balanced on unseen rotations: trial 1 {early:.0f}, trials 9 to 16 {late:.0f} ({total:,} steps of training)"
    return Seen(value, late > early, late > early)

"""Checks of Structured State Space Models for In-Context Reinforcement Learning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hasten.cost.measuring import least_seconds, log_slope
from hasten.nn import S5
from hasten.nn.plain_attention import whole_attention
from hasten.papers.experiment import Experiment, Seen, check, succeeded
from hasten.tasks.control import MemoryEnvironment, MemoryLength, ProjectedCartPole, RepeatPrevious, RunningMajority
from hasten.train.agents import train_agent, trial_lengths
from hasten.train.recurrent_ppo import PPO, GRUMemory, Memory


def _layer_seconds(kind: str, length: int, seed: int, runs: int = 3) -> float:
    """Forward and backward of one layer of width 256 on 8 sequences, 2 % of the steps resets where it knows them."""
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
        call = lambda: whole_attention(q, k, v, scale=0.125, causal=True).sum().backward()  # noqa: E731
    return least_seconds(call, runs)


@check("S1", weight=10)
def speed(experiment: Experiment) -> Seen:
    """Training time of a layer, beside torch's GRU and one that can be reset inside a sequence."""
    experiment.require(30)
    length = experiment.at(quick=64, normal=1024)
    seconds = {}
    for number, kind in enumerate(("S5", "GRU", "GRU with resets")):
        experiment.tell(kind, number / 3)
        seconds[kind] = _layer_seconds(kind, length, experiment.seed, 7 if kind == "S5" else 3)
    ratios = {kind: s / seconds["S5"] for kind, s in seconds.items() if kind != "S5"}
    value = f"8 sequences of {length}, width 256, forward and backward: S5 {seconds['S5'] * 1e3:.0f} ms, " + ", ".join(
        f"{kind} {seconds[kind] * 1e3:.0f} ms ({ratio:.1f}x)" for kind, ratio in ratios.items()
    )
    return experiment.judge(value, ratios["GRU"] >= 4 and ratios["GRU with resets"] >= 5, min(ratios.values()) > 1)


@check("S2", weight=15)
def growth_with_length(experiment: Experiment) -> Seen:
    """Training time over the length, beside attention's; and an acting step early and late."""
    experiment.require(30)
    sizes = experiment.at(quick=[32, 64], normal=[256, 512, 1024, 2048, 4096])
    ours = [_layer_seconds("S5", size, experiment.seed) for size in sizes]
    experiment.tell("attention", 0.6)
    long = sizes[-3:]
    theirs = [_layer_seconds("attention", size, experiment.seed, 2) for size in long]
    slopes = log_slope(sizes, ours), log_slope(long, theirs)
    s5 = S5(256, 128)
    with torch.no_grad():
        acting = []
        for before in (16, sizes[-1]):
            _, state = s5(torch.randn(1, before, 256))
            step = torch.randn(1, 256)
            acting.append(least_seconds(functools.partial(s5.step, step, state), 200))
    value = (
        f"log-log slope of training time: S5 {slopes[0]:.2f} ({sizes[0]} to {sizes[-1]}), attention {slopes[1]:.2f} "
        f"({long[0]} to {long[-1]}); an acting step after 16 and {sizes[-1]}: {acting[0] * 1e6:.0f} and {acting[1] * 1e6:.0f} us"
    )
    holds = slopes[0] <= 1.1 and slopes[1] >= 1.5 and acting[1] <= 1.2 * acting[0]
    return experiment.judge(value, holds, slopes[0] < slopes[1])


def _agent(
    make: Callable[..., MemoryEnvironment], options: dict[str, Any], memory: Memory, total: int, settings: PPO,
    hidden: int | None, seed: int,
) -> tuple[float, float, int]:  # fmt: skip
    """An agent's last return, its seconds of training and its parameters; 64 copies of the task."""
    agent = train_agent(make(64, seed=seed, **options), memory, total, settings, seed=seed, hidden=hidden)
    return agent.last_return, agent.seconds, agent.parameters


def _total(experiment: Experiment, normal: int) -> tuple[int, int]:
    """Environment steps of an arm, and of one of its rollouts in every copy."""
    return experiment.at(quick=(64 * 32, 32), normal=(normal, PPO.steps))


def _remember(experiment: Experiment, length: int, normal: int) -> tuple[str, bool, bool]:
    """What was seen of a bit to be remembered so long, whether it meets the criterion, and whether S5 was best."""
    total, rollout = _total(experiment, normal)

    def arm(memory: Memory, total: int, rate: float = 1e-3, hidden: int | None = None) -> tuple[Any, ...]:
        settings = PPO(steps=rollout, rate=rate)
        return MemoryLength, {"length": length}, memory, total, settings, hidden, experiment.seed

    rates = (3e-4, 1e-3, 3e-3)
    plan = {"S5": arm("s5", total), "no memory": arm("none", total // 2)}
    plan |= {f"GRU at {rate:g}": arm("gru", total, rate, 104) for rate in rates}
    found, failed = succeeded(experiment.arms(_agent, plan), ("S5", "no memory"))
    s5, s5_seconds, size = found["S5"]
    none = found["no memory"][0]
    grus = {name: arm for name, arm in found.items() if name.startswith("GRU")}
    best, (gru, _, gru_size) = max(grus.items(), key=lambda item: item[1][0])
    gru_seconds = min(seconds for _, seconds, _ in grus.values())
    value = (
        f"length {length}, {total:,} steps: S5 ({size:,} parameters) {s5:.2f} in {s5_seconds:.0f} s, GRU ({gru_size:,}, "
        f"best of three rates {best.removeprefix('GRU at ')}) {gru:.2f} in {gru_seconds:.0f} s, no memory {none:.2f}{failed}"
    )
    return value, s5 >= 0.95 and abs(none) <= 0.15 and s5_seconds <= 0.75 * gru_seconds, s5 > max(gru, none)


@check("S3", weight=180)
def memory_length(experiment: Experiment) -> Seen:
    """A bit is asked for 20 and 100 steps later; the GRU's turn at 100 takes twenty minutes' budget."""
    experiment.require(120)
    value, holds, direction = _remember(experiment, 20, 262_144)
    experiment.tell("length 100", 0.5)
    total, rollout = _total(experiment, 1_500_000)
    if not experiment.allows(1200):
        s5, seconds, _ = _agent(
            MemoryLength, {"length": 100}, "s5", total, PPO(steps=rollout), None, experiment.seed
        )  # fmt: skip
        value += f"; length 100, {total:,} steps: S5 {s5:.2f} in {seconds:.0f} s (the GRU there takes --budget 1200)"
        return experiment.judge(value, holds and s5 >= 0.95, direction)
    longer, held, directed = _remember(experiment, 100, 1_500_000)
    return experiment.judge(f"{value}; {longer}", holds and held, direction and directed)


@check("S5", weight=90)
def reset(experiment: Experiment) -> Seen:
    """Running majority: nothing but the reset tells where an episode begins."""
    experiment.require(120)
    total, rollout = _total(experiment, 800_000)
    plan: dict[str, tuple[Any, ...]] = {
        name: (RunningMajority, {}, "s5", total, PPO(steps=rollout, reset=resets), None, experiment.seed)
        for name, resets in (("with", True), ("without", False))
    }
    found, _ = succeeded(experiment.arms(_agent, plan), plan)
    with_resets, without = found["with"][0], found["without"][0]
    value = f"running majority, {total:,} steps: with resets {with_resets:.2f}, without {without:.2f}"
    return experiment.judge(value, with_resets - without >= 0.15, with_resets > without)


@check("S4", weight=1)
def repeat_previous(experiment: Experiment) -> Seen:
    """POPGym's cards, a suit to be named four cards later; about 10 minutes."""
    experiment.require(1500)
    total, rollout = _total(experiment, 2_000_000)
    options = {"delay": 4, "decks": 1}
    plan = {
        "S5": (RepeatPrevious, options, "s5", total, PPO(steps=rollout), None, experiment.seed),
        "GRU": (RepeatPrevious, options, "gru", total, PPO(steps=rollout), 104, experiment.seed),
    }
    found, _ = succeeded(experiment.arms(_agent, plan), plan)
    s5, gru = found["S5"], found["GRU"]
    value = f"RepeatPrevious easy, {total:,} steps: S5 {s5[0]:.2f} in {s5[1]:.0f} s, GRU {gru[0]:.2f} in {gru[1]:.0f} s"
    return experiment.judge(value, s5[0] > gru[0], s5[0] >= gru[0] - 0.05)


@check("S6", weight=1)
def in_context(experiment: Experiment) -> Seen:
    """A cart-pole behind a random rotation: are later trials of an episode better than the first? About 15 minutes."""
    experiment.require(1500)
    total, rollout, copies = experiment.at(quick=(64 * 16, 16, 4), normal=(8_000_000, 512, 256))
    agent = train_agent(
        ProjectedCartPole(64, seed=experiment.seed), "s5", total, PPO(steps=rollout, rate=3e-4),
        seed=experiment.seed, width=128, progress=lambda steps, value: experiment.tell("", steps / total),
    )  # fmt: skip
    # Rotations that it has not met.
    means = trial_lengths(agent.policy, ProjectedCartPole(copies, seed=experiment.seed + 1000))
    early, late = float(means[0]), float(means[8:].mean())
    value = f"steps balanced on unseen rotations: trial 1 {early:.0f}, trials 9 to 16 {late:.0f} ({total:,} steps of training)"
    return experiment.judge(value, late > early, late > early)

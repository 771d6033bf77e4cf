"""Checks of ArchGym: An Open-Source Gymnasium for Machine Learning Assisted Architecture Design."""

from __future__ import annotations

import itertools
import random
from typing import Any

from hasten.cost.measuring import alternating
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.search.agents.registry import make_agent
from hasten.search.environments import Log, to_target
from hasten.search.exploring import SETTINGS, Explorer, Proxy, Sweep, sweep
from hasten.spaces import dram

_TRACES = ("stream", "random", "cloud-1", "cloud-2")


def _explorer(workload: str, small: bool = True) -> Explorer:
    """The controller's knobs for a trace of 1000 requests, paid for power near 1 W and time near half of the least."""
    knobs = dram.space((1, 8, 64), (1, 8), (1, 16, 128)) if small else dram.space()
    problem = dram.problem(workload, knobs=knobs)
    return Explorer(problem, to_target(power=1.0, time=0.5 * 1000 * 4 / 800e6))


def _swept(trace: str, budgets: tuple[int, ...], seeds: list[int]) -> tuple[float, dict[str, Sweep]]:
    """An arm: the best reward there is (every point tried), and each agent's settings at equal samples."""
    explorer = _explorer(trace)
    best = explorer.everything()
    return best, {agent: sweep(explorer, agent, budgets, seeds=seeds) for agent in SETTINGS}


@shared(weight=30)
def _lottery(experiment: Experiment) -> tuple[dict[str, tuple[float, dict[str, Sweep]]], int, int]:
    """Trace -> what `_swept` found of five agents with twelve settings each; the fewest samples and the most."""
    budgets = experiment.at(quick=(4, 8, 12), normal=(50, 200, 800))
    arms = {t: (t, budgets, experiment.seeds(3)) for t in experiment.at(quick=_TRACES[:1], normal=_TRACES)}
    found, _ = succeeded(experiment.arms(_swept, arms), arms)
    return found, budgets[0], budgets[-1]


@check("c1")
def _reach(experiment: Experiment) -> Seen:
    """The best of twelve settings at 800 samples, against the best of all 15 552 points."""
    found, _, most = experiment.once(_lottery)
    shares = {
        agent: min(sweeps[agent].tuned(most) / best for best, sweeps in found.values())
        for agent in next(iter(found.values()))[1]
    }
    value = ", ".join(f"{agent} {share:.1%}" for agent, share in shares.items())
    value = f"of the best reward, on the worst of {len(found)} traces: {value}"
    return experiment.judge(value, min(shares.values()) >= 0.95, min(shares.values()) >= 0.85)


@check("c2")
def _spread(experiment: Experiment) -> Seen:
    """Distance between the quartiles of settings, each the mean of its seeds, over their median, at 50 samples and at
    800. It counts where settings differ beyond seeds: a permutation of runs among settings as wide in under 5 %."""
    found, few, most = experiment.once(_lottery)
    spreads, chances = {}, {}
    for agent in next(iter(found.values()))[1]:
        widest = max((sweeps[agent] for _, sweeps in found.values()), key=lambda s: s.spread(few))
        # The widest of so many traces: each has its share of what chance may be.
        spreads[agent], chances[agent] = widest.spread(few), min(1.0, widest.chance(few) * len(found))
    late = max(s.spread(most) for _, sweeps in found.values() for s in sweeps.values())
    wide = sum(s >= 0.2 and chances[agent] < 0.05 for agent, s in spreads.items())
    value = ", ".join(f"{agent} {s:.0%} (by chance {chances[agent]:.2g})" for agent, s in spreads.items())
    return experiment.judge(f"widest at {few} samples: {value}; at {most} at most {late:.0%}", wide >= 3, wide >= 1)


@check("c3")
def _ranking(experiment: Experiment) -> Seen:
    """Agents by the mean over all settings, at 50 and at 800 samples. The order changes where one of two is ahead at
    first and behind at last, both by over two standard errors over the seeds."""
    found, few, most = experiment.once(_lottery)
    changed = []
    for trace, (_, sweeps) in found.items():
        order = [sorted(sweeps, key=lambda a: -sweeps[a].best[:, :, i].mean()) for i in (0, 2)]
        crossed = any(
            sweeps[a].beyond_noise(sweeps[b], few) > 2 and sweeps[b].beyond_noise(sweeps[a], most) > 2
            for a, b in itertools.permutations(sweeps, 2)
        )
        changed.append((trace, crossed, order))
    name, _, shown = changed[-1]
    value = f"the order changes on {sum(c for _, c, _ in changed)} of {len(changed)} traces"
    detail = f"{name}: {shown[0]} at {few}, {shown[1]} at {most}"
    return experiment.judge(value, sum(c for _, c, _ in changed) >= 3, detail=detail)


@shared(weight=15)
def _proxies(experiment: Experiment) -> dict[str, Any]:
    """A forest from 4000 points of ants, and one from as many of four agents; both tried on points drawn evenly."""
    explorer = _explorer("cloud-1", small=False)
    seed = experiment.seed
    names, size, asked = (
        ("time", "power", "energy"),
        experiment.at(quick=80, normal=4000),
        experiment.at(quick=20, normal=2000),
    )
    alone, mixed = Log(), Log()
    explorer.run(make_agent("ants", explorer.codec.sizes, seed), size, alone, {"agent": "ants"})
    for i, agent in enumerate(("ants", "genetic", "parzen", "random-walk")):
        explorer.run(make_agent(agent, explorer.codec.sizes, seed + i), size // 4, mixed, {"agent": agent})
    rng = random.Random(seed + 99)
    space = explorer.problem.space
    points = [space.sample(rng) for _ in range(asked)]
    truth = [explorer.problem.score(p)[0] for p in points]
    made: dict[str, Any] = {"points": points, "truth": truth, "problem": explorer.problem}
    for label, log in (("alone", alone), ("mixed", mixed)):
        proxy = Proxy(space, names, logarithm=("time", "energy"), seed=seed).fit_log(log)
        made[label] = proxy
        made[f"{label} errors"] = proxy.errors(points, truth)
        made[f"{label} R2"] = proxy.determination(points, truth)
    uniform = [space.sample(rng) for _ in range(size)]
    values = [explorer.problem.score(p)[0] for p in uniform]
    made["even errors"] = (
        Proxy(space, names, logarithm=("time", "energy"), seed=seed).fit(uniform, values).errors(points, truth)
    )
    return made


def _percent(errors: dict[str, float]) -> str:
    return ", ".join(f"{n} {e:.2%}" for n, e in errors.items())


@check("c4")
def _error(experiment: Experiment) -> Seen:
    """On 2000 points drawn evenly from 442 368, that no agent led to."""
    found = experiment.once(_proxies)
    mixed, even = found["mixed errors"], found["even errors"]
    explained = ", ".join(f"{n} {r:.3f}" for n, r in found["mixed R2"].items())
    value = (
        f"from 4000 points of four agents: {_percent(mixed)} (R2 {explained}); from 4000 drawn evenly: {_percent(even)}"
    )
    return experiment.judge(value, max(mixed.values()) <= 0.02, max(even.values()) <= 0.02)


@check("c5")
def _speed(experiment: Experiment) -> Seen:
    """Against hasten's own simulator, whose 1000 requests take a tenth of a millisecond, and not DRAMSys's seconds."""
    found = experiment.once(_proxies)
    points, proxy, problem = found["points"], found["mixed"], found["problem"]

    def simulate() -> None:
        for p in points:
            problem.score(p)

    def one_by_one() -> None:
        for p in points[:20]:
            proxy.predict([p])

    calls = {"simulated": simulate, "together": lambda: proxy.predict(points), "single": one_by_one}
    spent = {name: min(times) for name, times in alternating(calls, 1).items()}
    simulated, together, single = (
        spent["simulated"] / len(points),
        spent["together"] / len(points),
        spent["single"] / 20,
    )
    value = (
        f"a point takes {simulated * 1e6:.0f} us simulated, {together * 1e6:.0f} us by the model in batches of {len(points)} "
        f"({simulated / together:.2g}x), {single * 1e6:.0f} us one by one ({simulated / single:.2g}x)"
    )
    return experiment.judge(value, simulated / together >= 2000, simulated / together > 1)


@check("c6")
def _diverse(experiment: Experiment) -> Seen:
    found = experiment.once(_proxies)
    alone, mixed = found["alone errors"], found["mixed errors"]
    ratio = max(alone[n] / mixed[n] for n in alone)
    value = f"ants alone {_percent(alone)}; four agents {_percent(mixed)}: up to {ratio:.1f}x lower"
    return experiment.judge(value, all(mixed[n] <= 0.5 * alone[n] for n in alone), ratio > 1)

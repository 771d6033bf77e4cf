"""Checks of ArchGym: An Open-Source Gymnasium for Machine Learning Assisted Architecture Design."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.search.exploring import Explorer, Sweep


_BUDGETS = (50, 200, 800)
_TRACES = ("stream", "random", "cloud-1", "cloud-2")


def _explorer(workload: str, small: bool = True) -> Explorer:
    """The controller's knobs for a trace of 1000 requests, paid for power near 1 W and time near half of the least."""
    from hasten.search.environments import to_target
    from hasten.search.exploring import Explorer
    from hasten.spaces import dram

    knobs = dram.space((1, 8, 64), (1, 8), (1, 16, 128)) if small else dram.space()
    problem = dram.problem(workload, knobs=knobs)
    return Explorer(problem, to_target(power=1.0, time=0.5 * 1000 * 4 / 800e6))


def _swept(trace: str, seed: int) -> tuple[float, dict[str, Sweep]]:
    """An arm: the best reward there is (every point tried), and each agent's settings at equal samples."""
    from hasten.search.exploring import SETTINGS, sweep

    explorer = _explorer(trace)
    best = explorer.everything()
    return best, {agent: sweep(explorer, agent, _BUDGETS, seeds=[seed + s for s in range(3)]) for agent in SETTINGS}


@lru_cache(maxsize=1)
def _lottery(seed: int, report: Any) -> dict[str, tuple[float, dict[str, Sweep]]]:
    """Trace -> what `_swept` found."""
    from hasten.processes import run_arms

    label = "five agents with 12 settings each, 3 seeds"
    report(label, 0.0)
    found = run_arms(_swept, [(t, seed) for t in _TRACES], progress=lambda share: report(label, 0.9 * share))
    return dict(zip(_TRACES, found, strict=True))


@check("c1")
def _reach(experiment: Experiment) -> Seen:
    """The best of twelve settings at 800 samples, against the best of all 15 552 points."""
    found = _lottery(experiment.seed, experiment.run.progress)
    shares = {
        agent: min(sweeps[agent].tuned(800) / best for best, sweeps in found.values())
        for agent in next(iter(found.values()))[1]
    }
    value = ", ".join(f"{agent} {share:.1%}" for agent, share in shares.items())
    value = f"of the best reward, on the worst of {len(found)} traces: {value}"
    return Seen(value, min(shares.values()) >= 0.95, min(shares.values()) >= 0.85)


@check("c2")
def _spread(experiment: Experiment) -> Seen:
    """Distance between the quartiles over settings and seeds, over the median, at 50 samples and at 800."""
    found = _lottery(experiment.seed, experiment.run.progress)
    spreads = {
        agent: max(sweeps[agent].spread(50) for _, sweeps in found.values()) for agent in next(iter(found.values()))[1]
    }
    late = max(s.spread(800) for _, sweeps in found.values() for s in sweeps.values())
    wide = sum(s >= 0.2 for s in spreads.values())
    value = ", ".join(f"{agent} {s:.0%}" for agent, s in spreads.items())
    return Seen(f"widest at 50 samples: {value}; at 800 at most {late:.0%}", wide >= 3, wide >= 1)


@check("c3")
def _ranking(experiment: Experiment) -> Seen:
    """Agents by the mean over all settings, at 50 and at 800 samples."""
    found = _lottery(experiment.seed, experiment.run.progress)
    changed = []
    for trace, (_, sweeps) in found.items():
        order = [sorted(sweeps, key=lambda a: -sweeps[a].best[:, :, i].mean()) for i in (0, 2)]
        changed.append((trace, order[0] != order[1], order))
    _, _, shown = changed[-1]
    value = f"the order changes on {sum(c for _, c, _ in changed)} of {len(changed)} traces"
    return Seen(value, sum(c for _, c, _ in changed) >= 3, detail=f"cloud-2: {shown[0]} at 50, {shown[1]} at 800")


@lru_cache(maxsize=1)
def _proxies(seed: int) -> dict[str, Any]:
    """A forest from 4000 points of ants, and one from as many of four agents; both tried on points drawn evenly."""
    import random

    from hasten.search.agents.agent import make_agent
    from hasten.search.environments import Log
    from hasten.search.exploring import Proxy

    explorer = _explorer("cloud-1", small=False)
    names, size = ("time", "power", "energy"), 4000
    alone, mixed = Log(), Log()
    explorer.run(make_agent("ants", explorer.codec.sizes, seed), size, alone, {"agent": "ants"})
    for i, agent in enumerate(("ants", "genetic", "parzen", "random-walk")):
        explorer.run(make_agent(agent, explorer.codec.sizes, seed + i), size // 4, mixed, {"agent": agent})
    rng = random.Random(seed + 99)
    space = explorer.problem.space
    points = [space.sample(rng) for _ in range(2000)]
    truth = [explorer.problem.score(p)[0] for p in points]
    made: dict[str, Any] = {"points": points, "truth": truth, "problem": explorer.problem}
    for label, log in (("alone", alone), ("mixed", mixed)):
        proxy = Proxy(space, names, logarithm=("time", "energy"), seed=seed).fit_log(log)
        made[label] = proxy
        made[f"{label} errors"] = proxy.errors(points, truth)
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
    found = _proxies(experiment.seed)
    mixed, even = found["mixed errors"], found["even errors"]
    value = f"from 4000 points of four agents: {_percent(mixed)}; from 4000 drawn evenly: {_percent(even)}"
    return Seen(value, max(mixed.values()) <= 0.02, max(even.values()) <= 0.02)


@check("c5")
def _speed(experiment: Experiment) -> Seen:
    """Against hasten's own simulator, whose 1000 requests take a tenth of a millisecond, and not DRAMSys's seconds."""
    found = _proxies(experiment.seed)
    points, proxy, problem = found["points"], found["mixed"], found["problem"]
    begun = time.perf_counter()
    for p in points:
        problem.score(p)
    simulated = (time.perf_counter() - begun) / len(points)
    begun = time.perf_counter()
    proxy.predict(points)
    together = (time.perf_counter() - begun) / len(points)
    begun = time.perf_counter()
    for p in points[:20]:
        proxy.predict([p])
    single = (time.perf_counter() - begun) / 20
    value = (
        f"a point takes {simulated * 1e6:.0f} us simulated, {together * 1e6:.0f} us by the model in batches of 2000 "
        f"({simulated / together:.2g}x), {single * 1e6:.0f} us one by one ({simulated / single:.2g}x)"
    )
    return Seen(value, simulated / together >= 2000, simulated / together > 1)


@check("c6")
def _diverse(experiment: Experiment) -> Seen:
    found = _proxies(experiment.seed)
    alone, mixed = found["alone errors"], found["mixed errors"]
    ratio = max(alone[n] / mixed[n] for n in alone)
    value = f"ants alone {_percent(alone)}; four agents {_percent(mixed)}: up to {ratio:.1f}x lower"
    return Seen(value, all(mixed[n] <= 0.5 * alone[n] for n in alone), ratio > 1)

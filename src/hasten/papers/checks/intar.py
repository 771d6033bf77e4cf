"""Checks of InTAR: Inter-Task Auto-Reconfigurable Accelerator Design for High Data Volume Variation in DNNs."""

from __future__ import annotations

import math

from hasten.cost.chips.core_replay import replay
from hasten.cost.chips.core_schedule import PATTERNS, ScheduleCost, schedule
from hasten.cost.chips.varied_kernels import (
    LAYER_PARTS,
    MEASURED_CYCLES,
    VARIED_KERNELS,
    layer_part,
    published_cycles,
    varied_graph,
)
from hasten.hardware.chips.core_array import CoreArray, core_array
from hasten.models.language.real_layer import layer_answers, real_layer
from hasten.papers.experiment import Experiment, Seen, check, shared
from hasten.processes import one_thread
from hasten.workload.streaming import work_graph

_KERNELS = VARIED_KERNELS[:5]
_SIZES = tuple(1 << k for k in range(16, 24))  # bytes on the chip, 64 KiB to 8 MiB
# Cores as published where there are two, and three of the same otherwise.
_ARRAYS = {name: "intar-2x16" if name in ("self-attention", "mlp") else "intar-3x16" for name in VARIED_KERNELS}


def _array(kernel: str, **changed: float) -> CoreArray:
    return core_array(_ARRAYS[kernel]).model_copy(update=changed)


@shared(weight=20)
def _swept(experiment: Experiment) -> dict[tuple[str, int], dict[str, ScheduleCost]]:
    """(kernel, bytes on the chip) -> pattern -> cost; ``waiting`` is sequential with cores that do not read ahead."""
    found = {}
    kernels = experiment.at(quick=("mlp", "cnn-4l"), normal=VARIED_KERNELS)
    for kernel in kernels:
        graph = varied_graph(kernel)
        for size in experiment.at(quick=_SIZES[:1], normal=_SIZES):
            plans = {p: schedule(graph, _array(kernel, on_chip=size), p) for p in PATTERNS}
            costs: dict[str, ScheduleCost] = {p: s.cost() for p, s in plans.items()}
            found[kernel, size] = costs | {"waiting": plans["sequential"].cost(synchronous=True)}
    return found


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _ratios(experiment: Experiment, pattern: str) -> dict[str, float]:
    """Cycles of a pattern over those of the reconfigurable schedule, for each of the five kernels with most room."""
    table = experiment.once(_swept)
    size = max(s for _, s in table)
    return {
        k: table[k, size][pattern].cycles / table[k, size]["reconfigurable"].cycles
        for k in _KERNELS
        if (k, size) in table
    }


def _compared(experiment: Experiment, pattern: str, published: int, paper: float) -> tuple[str, float]:
    """What was seen in words, and the geometric mean."""
    found = _ratios(experiment, pattern)
    measured = {k: MEASURED_CYCLES[k][published] / MEASURED_CYCLES[k][0] for k in found}
    words = ", ".join(f"{k} {r:.2f}x (measured {measured[k]:.2f}x)" for k, r in found.items())
    mean = _mean(list(found.values()))
    return f"{words}: geometric mean of cycles {mean:.2f}x, published {paper}x", mean


@check("I1", weight=1)
def _dataflow(experiment: Experiment) -> Seen:
    """Equal cores; dataflow has one order of loops, so that no task sums over what streams in, as in the MLP's kernel."""
    value, mean = _compared(experiment, "dataflow", 1, 1.8)
    return experiment.judge(value, 1.8 / 1.5 <= mean <= 1.8 * 1.5, mean > 1)


@check("I2", weight=1)
def _sequential(experiment: Experiment) -> Seen:
    """Sequential cores wait for each word; for how long is fitted to one kernel, the MLP measured and with ideal memory."""
    value, mean = _compared(experiment, "waiting", 2, 7.1)
    ahead = _mean(list(_ratios(experiment, "sequential").values()))
    detail = f"with reads ahead of a sequential design too, at the ports' bandwidth: {ahead:.3f}x"
    return experiment.judge(f"{value}; {detail}", 7.1 / 1.5 <= mean <= 7.1 * 1.5, mean > 1, detail)


@check("I1.sweep", weight=1)
def _sweep(experiment: Experiment) -> Seen:
    """On 64 KiB to 8 MiB, judged where all patterns read ahead over the same ports: nobody is handicapped."""
    table = experiment.once(_swept)
    worse = [k for k, c in table.items() if c["reconfigurable"].cycles > min(c[p].cycles for p in PATTERNS)]
    kernels = list(dict.fromkeys(k for k, _ in table if k in _KERNELS))

    def strict(kernel: str, sequential: str) -> bool:
        rows = [c for (k, _), c in table.items() if k == kernel]
        return any(
            min(c[p].cycles for p in (sequential, "dataflow")) >= 1.15 * c["reconfigurable"].cycles for c in rows
        )

    waiting, ahead = ([k for k in kernels if strict(k, p)] for p in ("waiting", "sequential"))
    thumb = [c["rule-of-thumb"].cycles / c["reconfigurable"].cycles for c in table.values()]
    value = (
        f"slower than a fixed pattern at {len(worse)} of {len(table)} points; 1.15x faster than both somewhere: "
        f"{len(ahead)} of {len(kernels)} kernels where all read ahead, {len(waiting)} where cores of the sequential "
        f"design wait for each word; the rule of thumb takes {_mean(thumb):.2f}x the cycles of the optimum, at most {max(thumb):.2f}x"
    )
    return experiment.judge(value, not worse and len(ahead) >= 4, not worse)


@check("I1.loops", weight=1)
def _loops(experiment: Experiment) -> Seen:
    """Cycles by the bounds of the published loops beside those measured; fetches of rows are in no bound."""
    found = {k: published_cycles(k) for k in ("mlp", "self-attention", "cnn-4l")}
    fixed = schedule(varied_graph("mlp"), _array("mlp", bandwidth=1e18), "dataflow").cost().compute_cycles
    slow = schedule(varied_graph("mlp"), _array("mlp", cores=1), "sequential").cost(synchronous=True).cycles
    value = ", ".join(f"{k} {n:,} ({n / MEASURED_CYCLES[k][0] - 1:+.0%} of measured)" for k, n in found.items())
    value += f"; the MLP as dataflow {fixed:,}, on one core that waits for its words {slow:,} (measured 1,374,935)"
    exact = (found["mlp"], fixed) == (139_264, 180_224) and abs(slow / 1_374_935 - 1) < 0.01
    return experiment.judge(value, exact and found["self-attention"] == 35_782_656 and found["cnn-4l"] == 54_376)


@check("I6", weight=1)
def _switches(experiment: Experiment) -> Seen:
    """Cycles of all switches over all cycles."""
    table = experiment.once(_swept)
    shares: dict[str, float] = {}
    for (kernel, _), costs in table.items():
        array, cost = _array(kernel), costs["reconfigurable"]
        shares[kernel] = max(shares.get(kernel, 0.0), array.switch * (len(cost.stages) - 1) / cost.cycles)
    each = array.switch / array.clock * 1e9
    worst = max(shares, key=lambda k: shares[k])
    value = f"{each:.0f} ns a switch: at most {shares[worst]:.2%} of the cycles ({worst}), median {sorted(shares.values())[len(shares) // 2]:.4%}"
    return experiment.judge(value, 10 <= each <= 20 and shares[worst] < 0.01)


@check("I7", weight=1)
def _traffic(experiment: Experiment) -> Seen:
    """The fastest schedules, then those with the least traffic among them."""
    table = experiment.once(_swept)
    less = [c["reconfigurable"].moved() / c["sequential"].moved() for c in table.values()]

    def idle(cost: ScheduleCost) -> float:
        return cost.cycles * (1 - cost.utilization)

    fewer = sum(idle(c["reconfigurable"]) <= idle(c["dataflow"]) for c in table.values())
    more = sum(r > 1 for r in less)
    value = (
        f"bytes off the chip over those of sequential schedules: geometric mean {_mean(less):.3f}, least {min(less):.2f}, "
        f"more at {more} of {len(less)} points; no more idle cycles than dataflow at {fewer}"
    )
    return experiment.judge(value, not more and min(less) < 1 and fewer == len(less), _mean(less) < 1)


@check("I7.run", weight=60, needs=60)
def _replayed(experiment: Experiment) -> Seen:
    """A layer's two parts, tile by tile in torch on memories that refuse a byte too many; without mask and rotation."""
    weights, source = real_layer(experiment.at(quick=8, normal=256), small=experiment.quick)
    expected = layer_answers(weights)
    n, width = weights["X"].shape
    sizes = {"n": n, "k": width, "h": weights["WG"].shape[1]} | dict(zip("gre", weights["WQ"].shape[1:], strict=True))
    wrong, seen, runs = [], {}, 0
    for name in LAYER_PARTS:
        cascade = layer_part(name, sizes)
        graph = work_graph(cascade, name)
        for pattern in ("sequential", "dataflow", "reconfigurable"):
            for share in (0.3, 4.0):
                experiment.tell(f"{name}, {pattern}", runs / 12)
                room = int(share * max(graph.tensors.values()))
                plan = schedule(graph, _array("cnn-4l", on_chip=room, bandwidth=290e6), pattern)
                given = {k: v for k, v in weights.items() if k in cascade.tensors}
                with one_thread():  # many small products: threads would wait for each other
                    cost, run = plan.cost(), replay(plan, cascade, given)
                runs += 1
                error = float((run.outputs["Y"] - expected[name]).abs().max() / expected[name].abs().max())
                counted = {k: cost.moved(k) for k in run.moved} == dict(run.moved) and run.peak == cost.peak <= room
                if error > 1e-5 or not counted:
                    wrong.append(f"{name} {pattern} in {room:,} bytes: error {error:.1e}, counted {run.moved}")
                seen[name, pattern, share] = cost.moved("spilled", "reloaded") / 1e6
    spills = ", ".join(f"{k[0]} {k[1]} {v:.2f} MB" for k, v in seen.items() if k[2] == 0.3)
    value = f"{source}, {n} tokens: {runs} schedules, {len(wrong)} differ from torch or their model; spilled and reloaded in little room: {spills}"
    return experiment.judge(value, not wrong, detail="; ".join(wrong))

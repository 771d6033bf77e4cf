"""What searching designs rests on: how fast and right `cost` is, how fast the DRAM simulator, and who searches best.

Convolutions and products on weight- and output-stationary arrays are priced by `hasten.cost.chips.dataflow` and by
zigzag-dse on the same layer, array, buffer, bandwidth and mapping (the unrolling and the order of loops that hasten
chose, written as zigzag's inputs): cycles of both, and designs a second, each in one thread. zigzag's rate is given for
its one-line API, for its stages without the files that leaves, and for its cost model alone on objects already parsed.
For some cases zigzag also searches its own order of loops. What fits the buffer zigzag loads before it computes and
stores after; hasten overlaps all three, and so is sooner where a short layer fits whole. Rates count processor time, so
that other programs matter less. zigzag-dse wants other versions of packages than hasten:

    python -m venv zigzag-venv && zigzag-venv/bin/pip install zigzag-dse six
    python benchmarks/dse.py --zigzag-python zigzag-venv/bin/python [--json] [--require zigzag] [--part cost,dram]

The samplers look for a DRAM controller and for a chip of two sub-accelerators, each with the same samples, several
seeds and its settings as they come; Optuna's count different points only, which favours them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hasten import spaces
from hasten.cost.chips import dataflow
from hasten.cost.chips.dataflow import (
    ATOMIC_CHANNELS,
    ConvShape,
    LayerCost,
    SubAccelerator,
    blocked_cost,
    layer_cost,
    layer_costs,
)
from hasten.cost.chips.dram import MemoryController, MemorySystem
from hasten.data.memory_traces import WORKLOADS, memory_trace
from hasten.errors import HastenError
from hasten.hardware.chips.memory_part import memory_part
from hasten.kernels import dram_controller
from hasten.search import Objective, Problem, Study
from hasten.search.agents.registry import make_agent
from hasten.search.codec import Codec
from hasten.search.environments import Fitness
from hasten.search.exploring import Explorer
from peers import peer_answer
from rows import Row, compared, emit, takes_required, told_missing

PEERS = {
    "zigzag": "python -m venv zigzag-venv && zigzag-venv/bin/pip install zigzag-dse six, then give --zigzag-python "
    "zigzag-venv/bin/python"
}
"""What may be missing, and what helps."""

LAYERS = {
    "ResNet-18 first": ConvShape(64, 3, 7, 7, 112, 112, 2),
    "ResNet-18 56 x 56": ConvShape(64, 64, 3, 3, 56, 56),
    "ResNet-18 28 x 28": ConvShape(128, 128, 3, 3, 28, 28),
    "ResNet-18 14 x 14": ConvShape(256, 256, 3, 3, 14, 14),
    "ResNet-18 7 x 7": ConvShape(512, 512, 3, 3, 7, 7),
    "ResNet-18 shortcut": ConvShape(128, 64, 1, 1, 28, 28, 2),
    "ResNet-18 classifier": ConvShape(1000, 512, 1, 1, 1, 1),
    "product 256 x 256 x 512": ConvShape(512, 256, 1, 1, 16, 16),
}
ARRAYS = ((256, 16), (256, 4), (1024, 32))
"""PEs, and bytes a cycle."""
OWN = ("ResNet-18 28 x 28", "ResNet-18 7 x 7", "ResNet-18 shortcut")
"""Layers for which zigzag looks for its own order of loops, on the first array."""
FEW, SAMPLES, SEEDS = 30, 150, 7
AGENTS = ("genetic", "ants", "parzen", "ppo")


def _cuts(layer: ConvShape, strips: int) -> tuple[int, int]:
    """Equal parts of rows and of columns, together as near to so many strips as there are."""
    rows, columns = ([d for d in range(1, size + 1) if size % d == 0] for size in (layer.height, layer.width))
    # Columns are only cut when every row is a strip already.
    ways = [(d, 1) for d in rows] + [(layer.height, d) for d in columns]
    return min(ways, key=lambda way: abs(math.log(way[0] * way[1] / strips)))


def fresh(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    """The cost of a design that was not seen before: nothing is looked up."""
    dataflow._ways.cache_clear()
    layer_costs.cache_clear()
    return layer_cost(layer, unit)


def mapped(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    """The mapping that hasten chooses, in equal strips, as zigzag's loops need them."""
    best = layer_cost(layer, unit)
    if unit.dataflow != "dla":
        return best
    return blocked_cost(layer, unit, best.blocking.rounds, math.prod(_cuts(layer, best.blocking.rows)))


def as_case(layer: ConvShape, unit: SubAccelerator, cost: LayerCost) -> dict[str, Any]:
    """A priced layer as zigzag is told it: array, what stays, unrolling, and loops from the innermost."""
    taken = cost.blocking
    if unit.dataflow == "dla":
        across = min(ATOMIC_CHANNELS, unit.pes)
        spatial = [("C", min(across, layer.in_channels)), ("K", math.ceil(layer.out_channels / taken.rounds))]
        array = [across, unit.pes // across]
        rows, columns = _cuts(layer, taken.rows)
        inner = [("OX", layer.width // columns), ("OY", layer.height // rows), ("FX", layer.kernel_columns)]
        inner += [("FY", layer.kernel_rows), ("C", math.ceil(layer.in_channels / across))]
        picture = [("OX", columns), ("OY", rows)]
    else:
        sides = math.ceil(layer.height / taken.rows), math.ceil(layer.width / taken.columns)
        spatial, array = [("OY", sides[0]), ("OX", sides[1])], list(sides)
        inner = [("FX", layer.kernel_columns), ("FY", layer.kernel_rows), ("C", layer.in_channels)]
        picture = [("OX", taken.columns), ("OY", taken.rows)]
    filters = [("K", taken.rounds)]
    loops = inner + (picture + filters if taken.outer == "filters" else filters + picture)
    return {
        "layer": [
            layer.out_channels, layer.in_channels, layer.kernel_rows, layer.kernel_columns, layer.height, layer.width,
            layer.stride,
        ],
        "stays": "weights" if unit.dataflow == "dla" else "outputs",
        "array": array,
        "buffer": unit.buffer,
        "bandwidth": int(unit.bandwidth),
        "spatial": spatial,
        "loops": [[name, size] for name, size in loops if size > 1],
    }  # fmt: skip


def zigzag(python: str | None, request: dict[str, Any]) -> dict[str, Any] | None:
    """zigzag's answers; None where it cannot be had, and `PEERS` says why."""
    found, why = peer_answer("zigzag", python, request)
    PEERS["zigzag"] = why or PEERS["zigzag"]
    return found


def rate(calls: list[Callable[[], object]], seconds: float = 2.0) -> float:
    """Calls a second of this thread's processor, in turn, whatever else runs: the best of three times."""
    best = 0.0
    for _ in range(3):
        done, begun = 0, time.process_time()
        while time.process_time() - begun < seconds / 3:
            for call in calls:
                call()
            done += len(calls)
        best = max(best, done / (time.process_time() - begun))
    return best


def costs(python: str | None) -> list[Row]:
    pairs = [
        (name, layer, SubAccelerator(stays, pes, bandwidth))
        for (pes, bandwidth), stays, (name, layer) in itertools.product(ARRAYS, ("dla", "shi"), LAYERS.items())
    ]
    priced = [mapped(layer, unit) for _, layer, unit in pairs]
    cases = [as_case(layer, unit, cost) for (_, layer, unit), cost in zip(pairs, priced, strict=True)]
    own = [i for i, (name, _, unit) in enumerate(pairs) if name in OWN and (unit.pes, unit.bandwidth) == ARRAYS[0]]

    ours = rate([lambda layer=layer, unit=unit: fresh(layer, unit) for _, layer, unit in pairs])
    case = f"designs priced, {len(pairs)} layers on arrays"
    rows = [Row(case, "hasten", ours, "1/s")]
    print(f"pricing {len(cases)} layers by zigzag-dse", file=sys.stderr)
    theirs = zigzag(python, {"cases": cases, "own": own, "seconds": 5.0})
    if theirs is None:
        return rows
    for peer, value in theirs["rates"].items():
        rows += [Row(case, peer, value, "1/s"), compared(case, "hasten", ours, "1/s", peer, value)]
    ratios = []
    for (name, _, unit), cost, found in zip(pairs, priced, theirs["cycles"], strict=True):
        ratios.append(cost.cycles / found["cycles"])
        where = f"{name}, {unit.dataflow}, {unit.pes} PEs, {unit.bandwidth:.0f} B/cycle"
        rows.append(Row(where, "zigzag", found["cycles"], "cycles"))
        rows.append(Row(where, "hasten", cost.cycles, "cycles"))  # of one mapping: nearer is better, not less
    off = [abs(r - 1) for r in ratios]
    within = sum(o <= 0.2 for o in off)
    rows.append(Row("cycles within 20 % of zigzag's, same mapping", "hasten", within / len(off), "1"))
    rows.append(Row("distance from zigzag's cycles, same mapping, median", "hasten", statistics.median(off), "1"))
    rows.append(Row("distance from zigzag's cycles, same mapping, largest", "hasten", max(off), "1"))
    for i, cycles in zip(own, theirs["own"], strict=True):
        name, _, unit = pairs[i]
        where = f"{name}, {unit.dataflow}, {unit.pes} PEs, own order of loops"
        rows.append(Row(where, "zigzag", cycles, "cycles"))
        rows.append(compared(where, "hasten", priced[i].cycles, "cycles", "zigzag", cycles))
    return rows


def dram(requests: int = 200_000) -> list[Row]:
    part = memory_part("ddr3-1600")
    controllers = {
        "FR-FCFS, open rows": MemoryController(),
        "FIFO, closed rows": MemoryController(page="closed", scheduler="fifo", size=1),
        "shared buffer of 64, reordered": MemoryController(
            page="open-adaptive",
            scheduler="fr-fcfs-grp",
            buffer="shared",
            size=64,
            arbiter="reorder",
            response="reorder",
        ),
    }
    rows, short = [], 2000
    for workload in WORKLOADS:
        memory = MemorySystem(part, memory_trace(workload, requests, capacity=part.capacity))
        for name, controller in controllers.items():
            value = requests * rate([lambda m=memory, c=controller: m.run(c)], 0.3)
            rows.append(Row(f"DRAM accesses simulated, {workload}, {name}", "hasten", value, "1/s"))
    few = MemorySystem(part, memory_trace("cloud-1", short, capacity=part.capacity))
    compiled = short * rate([lambda: few.run(MemoryController())], 0.3)
    native = dram_controller.native
    try:
        dram_controller.native = lambda: None
        plain = short * rate([lambda: few.run(MemoryController())], 0.6)
    finally:
        dram_controller.native = native
    case = f"DRAM accesses simulated, cloud-1, {short} at a time"
    rows += [Row(case, "plain Python twin", plain, "1/s")]
    rows += [compared(case, "hasten", compiled, "1/s", "plain Python twin", plain)]
    slowest = min(r.value for r in rows if r.case != case)
    return [*rows, Row("DRAM accesses simulated, slowest of these", "hasten", slowest, "1/s")]


def samplers() -> list[Row]:
    """Each sampler's best, as a share of the best that anyone found; what cannot be had is worth nothing.

    Of a DRAM controller the energy-delay product, soon as good as it gets, so with few samples; of a chip that runs two
    networks the product of energy, delay and area.
    """
    dram = spaces.build("dram", workload="cloud-1")
    rows = searched(f"DRAM controller, {FEW} samples", dram, lambda v: 1e-9 / (v["time"] * v["energy"]), FEW)
    chip = spaces.build("asic")
    return rows + searched(
        f"chip, {SAMPLES} samples", chip, lambda v: 1e-6 / (v["latency"] * v["energy"] * v["area"]), SAMPLES
    )


def searched(label: str, problem: Problem, fitness: Fitness, samples: int) -> list[Row]:
    explorer = Explorer(problem, fitness)
    codec = Codec(problem.space)
    rewarded = Problem(
        "reward", problem.space, (Objective("reward", "maximize"),),
        lambda params: {"reward": explorer.reward(codec.encode(params))},
    )  # fmt: skip

    def agent(name: str, seed: int, **options: Any) -> float:
        return float(explorer.run(make_agent(name, codec.sizes, seed, **options), samples, distinct=True).max())

    def optuna(name: str, seed: int) -> float:
        found = Study().run(rewarded, sampler=name, trials=samples, seed=seed)
        return max(t.values["reward"] for t in found.trials if t.values)

    subjects: dict[str, Callable[[int], float]] = {
        "random": lambda seed: agent("random-walk", seed, change=0),
        "random-walk": lambda seed: agent("random-walk", seed, change=2, back=0.9),
    }
    subjects |= {name: lambda seed, name=name: agent(name, seed) for name in AGENTS}
    subjects |= {f"optuna {name}": lambda seed, name=name: optuna(name, seed) for name in ("tpe", "nsga2")}
    seen: dict[str, tuple[list[float], float]] = {}
    for name, call in subjects.items():
        print(f"searching, {label}: {name}", file=sys.stderr)
        begun, rewards = time.perf_counter(), []
        for seed in range(SEEDS):
            explorer.scores.clear()
            rewards.append(call(seed))
        seen[name] = rewards, (time.perf_counter() - begun) / SEEDS
    best = max(max(rewards) for rewards, _ in seen.values())
    base = statistics.median(seen["random"][0])
    case = f"{label}, {SEEDS} seeds"
    rows = []
    for name, (rewards, seconds) in seen.items():
        low, middle, high = np.percentile(rewards, [25, 50, 75])
        told, share = f"{case}: share of the best, median", float(middle) / best
        rows.append(
            Row(told, name, share, "1")
            if name == "random"
            else compared(told, name, share, "1", "random", base / best, less_is_better=False)
        )
        rows.append(Row(f"{case}: quartiles' distance", name, float(high - low) / best, "1"))
        rows.append(Row(f"{case}: time of a search", name, seconds, "s"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("--zigzag-python", help="Python of an environment with zigzag-dse; this one when missing")
    takes_required(parser, PEERS)
    parser.add_argument("--part", default="cost,dram,samplers", help="what to run, of these three")
    options = parser.parse_args()
    parts: dict[str, Callable[[], list[Row]]] = {
        "cost": lambda: costs(options.zigzag_python),
        "dram": dram,
        "samplers": samplers,
    }
    wanted = options.part.split(",")
    if unknown := [p for p in wanted if p not in parts]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(parts)}")
    torch.set_num_threads(1)
    try:
        rows = [row for name in wanted for row in parts[name]()]
    except HastenError as error:
        print(error, file=sys.stderr)
        return 2
    emit(rows, options.json)
    # Who asks for other parts alone asked for no peer.
    return told_missing(rows, PEERS if "cost" in wanted or options.require else {}, options.require)


if __name__ == "__main__":
    sys.exit(main())

"""Hardware models beside what else does their work: mapping, scheduling, sizes of circuits, analogue arrays, maps.

*mapping*: loops of a layer on an array. A product that is small enough to try every mapping of it: the best of all,
what searches find with few samples, each another mapping, and random ones: medians of the seeds. Convolutions beside
zigzag-dse, which looks for its own order of loops on the same array; each counts cycles by its own model.

*scheduling*: InTAR's kernels on two cores, the search beside trying every schedule, the paper's rule of thumb and the
fixed patterns; a chain of layers beside stream-dse, each by its own model of the same cores.

*surrogates*: twelve circuits that hls4ml and Vitis really made. Cycles and DSP slices by rule; lookup tables and
flip-flops by surrogates that learned from Yosys' circuits and are adapted to Vitis by the other eleven; rule4ml, which
learned from hls4ml's, as it comes. hls4ml's version is not published: the nearer of two counts.

*analog*: a read of an analogue layer beside aihwkit's, the same weights and converters: time, and how many codes are
the same; a digital layer beside both.

*maps*: `oblivious.py`'s.

Seconds are of one thread's processor. Peers want other versions of packages than hasten, and run in Pythons of their
own:

    python -m venv zigzag-venv && zigzag-venv/bin/pip install zigzag-dse six
    python -m venv stream-venv && stream-venv/bin/pip install stream-dse 'zigzag-dse<3' plotly pandas
    python -m venv rule4ml-venv && rule4ml-venv/bin/pip install rule4ml
    pip install --no-deps --only-binary :all: aihwkit  # beside this torch
    python benchmarks/hardware.py --zigzag-python zigzag-venv/bin/python --stream-python stream-venv/bin/python \\
        --rule4ml-python rule4ml-venv/bin/python [--json] [--part mapping,scheduling,surrogates,analog,maps]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dse import LAYERS, OWN, as_case, fresh, mapped
from hasten.cost.chips.core_schedule import brute_force, schedule
from hasten.cost.chips.dataflow import SubAccelerator
from hasten.cost.chips.loop_nest import BufferedArray
from hasten.cost.chips.published_syntheses import SYNTHESES, Synthesis, rule_of_reuse
from hasten.cost.chips.synthesised import known_values, synthesised_designs
from hasten.cost.chips.varied_kernels import VARIED_KERNELS, varied_graph
from hasten.cost.prediction_errors import prediction_errors
from hasten.errors import HastenError
from hasten.hardware.chips.core_array import core_array
from hasten.hardware.chips.crossbar import Crossbar
from hasten.hardware.hls.engines import EngineDesign, dense_design
from hasten.nn import AnalogLinear
from hasten.search.agents.registry import make_agent
from hasten.search.exploring import Explorer
from hasten.search.problem import Infeasible
from hasten.spaces import mapper
from hasten.train.resource_surrogates import resource_surrogate
from hasten.workload import trace
from hasten.workload.streaming import work_graph
from oblivious import check_items, maps
from peers import peer_answer
from rows import Row, compared, emit, takes_required, told_missing

PEERS = {
    "zigzag": "python -m venv zigzag-venv && zigzag-venv/bin/pip install zigzag-dse six, then give --zigzag-python",
    "stream": "python -m venv stream-venv && stream-venv/bin/pip install stream-dse 'zigzag-dse<3' plotly pandas,"
    " then give --stream-python",
    "rule4ml": "python -m venv rule4ml-venv && rule4ml-venv/bin/pip install rule4ml, then give --rule4ml-python",
    "aihwkit": "pip install --no-deps --only-binary :all: aihwkit, or give --aihwkit-python",
}
"""What may be missing, and what helps."""
SIDE, SMALL = 32, BufferedArray(8, 8, 1024, 2.0)
SAMPLES, SEEDS = 300, 20
AGENTS = ("genetic", "ants", "parzen")
STEPS = 800
"""Of training the graph surrogate."""
MOST_TASKS = 5
"""Of a kernel whose every schedule is tried."""
LITTLE = {"on_chip": 1 << 18, "bandwidth": 2 * 290e6}
CORES = "2 cores of 16 multipliers, 256 KiB, 2 B a cycle"
WIDTHS, COUNT = (64, 128, 64, 32), 64
SHAPE, BOUND = (256, 512, 512), 4.0
"""Rows, inputs and outputs of an analogue layer; the largest current of its converters, in those of one input."""


def asked(name: str, python: str | None, request: dict[str, Any]) -> dict[str, Any] | None:
    """What a peer answers; None where it cannot be had, and `PEERS` says why."""
    print(f"asking {name}", file=sys.stderr)
    found, why = peer_answer(name, python, request)
    PEERS[name] = why or PEERS[name]
    return found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds of this process' processor."""
    begun = time.process_time()
    found = call()
    return found, time.process_time() - begun


def mapping(pythons: Mapping[str, str | None]) -> list[Row]:
    problem = mapper.problem(mapper.product_nest(SIDE, SIDE, SIDE), chip=SMALL)

    def product_of(params: Mapping[str, Any]) -> float:
        try:
            found = problem.evaluate(params)
        except Infeasible:
            return float("inf")
        return float(found["time"] * found["energy"])

    best, took = timed(lambda: min(map(product_of, problem.space.enumerate())))

    def searched(agent: str, **options: Any) -> tuple[float, float]:
        found = []
        for seed in range(SEEDS):
            explorer = Explorer(problem, lambda v: 1e-12 / (v["time"] * v["energy"]))
            made = make_agent(agent, explorer.codec.sizes, seed, **options)
            found.append(timed(lambda e=explorer, m=made: 1e-12 / float(e.run(m, SAMPLES, distinct=True).max())))
        return statistics.median(v for v, _ in found), statistics.fmean(s for _, s in found)

    case = f"product {SIDE} x {SIDE} x {SIDE} on 8 x 8 elements"
    told = f"{case}: seconds times joules"
    rows = [Row(told, "brute force", best, "1"), Row(f"{case}: search", "brute force", took, "s")]
    subjects = {"random": searched("random-walk", change=0)}
    subjects |= {f"hasten, {agent}": searched(agent) for agent in AGENTS}
    for subject, (value, each) in subjects.items():
        rows.append(compared(told, subject, value, "1", "brute force", best, less_is_better=True))
        rows.append(compared(f"{case}: search", subject, each, "s", "brute force", took))
    unit = SubAccelerator("dla", 256, 16)
    layers = {name: LAYERS[name] for name in OWN}
    ours = {name: timed(lambda layer=layer: fresh(layer, unit)) for name, layer in layers.items()}
    cases = [as_case(layer, unit, mapped(layer, unit)) for layer in layers.values()]
    theirs = asked("zigzag", pythons["zigzag"], {"cases": cases, "own": [*range(len(cases))], "seconds": 0.01})
    for i, (name, (cost, took)) in enumerate(ours.items()):
        case = f"{name} on 256 elements, own order of loops"
        if theirs is None:
            rows += [Row(case, "hasten", cost.cycles, "cycles"), Row(f"{case}: search", "hasten", took, "s")]
            continue
        rows.append(Row(case, "zigzag", theirs["own"][i], "cycles"))
        rows.append(Row(f"{case}: search", "zigzag", theirs["own_seconds"][i], "s"))
        rows.append(compared(case, "hasten", cost.cycles, "cycles", "zigzag", theirs["own"][i]))
        rows.append(compared(f"{case}: search", "hasten", took, "s", "zigzag", theirs["own_seconds"][i]))
    return rows


def scheduling(pythons: Mapping[str, str | None]) -> list[Row]:
    array, rows = core_array("intar-2x16").model_copy(update=LITTLE), []
    graphs = {name: varied_graph(name) for name in VARIED_KERNELS}
    for name, graph in graphs.items():
        if len(graph) > MOST_TASKS:
            continue
        case = f"{name} on {CORES}"
        whole, took = timed(lambda g=graph: brute_force(g, array).cost().cycles)
        ours, each = timed(lambda g=graph: schedule(g, array).cost().cycles)
        rows.append(Row(case, "brute force", whole, "cycles"))
        rows.append(compared(case, "hasten", ours, "cycles", "brute force", whole))
        for pattern in ("rule-of-thumb", "sequential", "dataflow"):
            cycles = schedule(graph, array, pattern).cost().cycles  # type: ignore[arg-type]
            rows.append(Row(case, pattern, cycles, "cycles"))
            rows.append(compared(case, "hasten", ours, "cycles", pattern, cycles))
        rows.append(Row(f"{case}: search", "brute force", took, "s"))
        rows.append(compared(f"{case}: search", "hasten", each, "s", "brute force", took))
    return rows + chained(pythons["stream"])


def chained(python: str | None) -> list[Row]:
    """A chain of dense layers in 8 bits, on two cores of 4 x 4 multipliers with 32 KiB each and 16 B a cycle."""
    net = torch.nn.Sequential(*(torch.nn.Linear(a, b, bias=False) for a, b in pairwise(WIDTHS)))
    graph = work_graph(trace(net, torch.zeros(COUNT, WIDTHS[0])), "chain", dtype="int8")
    array = core_array("intar-2x16").model_copy(update={"on_chip": 1 << 16, "bandwidth": 16 * 290e6, "dtype": "int8"})
    ours, took = timed(lambda: schedule(graph, array).cost().cycles)
    least = graph.macs / array.cores / array.macs
    case = f"{len(WIDTHS) - 1} layers, {COUNT} rows, 2 cores of 16 multipliers, 16 B a cycle"
    rows = [Row(case, "multipliers never idle", least, "cycles")]
    rows.append(compared(case, "hasten", ours, "cycles", "multipliers never idle", least))
    request = {"rows": COUNT, "widths": list(WIDTHS), "side": 4, "cores": 2, "sram": 1 << 15, "bits": 128}
    theirs = asked("stream", python, request)
    if theirs is None:
        return [*rows, Row(f"{case}: search", "hasten", took, "s")]
    rows.append(Row(case, "stream", theirs["cycles"], "cycles"))
    rows.append(compared(case, "hasten", ours, "cycles", "stream", theirs["cycles"]))
    rows.append(Row(f"{case}: search", "stream", theirs["seconds"], "s"))
    rows.append(compared(f"{case}: search", "hasten", took, "s", "stream", theirs["seconds"]))
    return rows


def _design(row: Synthesis) -> EngineDesign:
    return dense_design(row.widths, row.bits, row.reuse)


def surrogates(pythons: Mapping[str, str | None]) -> list[Row]:
    """Symmetric errors of each target over the twelve, in percent (wa-hls4ml's)."""
    truth = {t: [getattr(r, t) for r in SYNTHESES] for t in ("cycles", "dsp", "lut", "ff", "bram")}

    def errors(said: Mapping[str, list[float]]) -> dict[str, float]:
        return {t: prediction_errors(values, truth[t]).smape for t, values in said.items()}

    ruled = [rule_of_reuse(r.widths, r.bits, r.reuse) for r in SYNTHESES]
    subjects = {"hasten": errors({"cycles": [r.cycles for r in ruled], "dsp": [r.dsp for r in ruled]})}
    known = known_values(synthesised_designs())
    for kind, options in (("graph", {"steps": STEPS}), ("ridge", {})):
        print(f"learning: {kind}", file=sys.stderr)
        name = f"hasten, {kind}"
        made = resource_surrogate(kind, **options).fit({"yosys": known})
        said: dict[str, list[float]] = {"lut": [], "ff": []}
        for row in SYNTHESES:
            others = {_design(r): {t: float(getattr(r, t)) for t in said} for r in SYNTHESES if r is not row}
            adapted = made.adapt(others)
            for t, values in said.items():
                values.append(adapted.predict([_design(row)], t)[0])
        subjects[name] = errors(said)
        _, each = timed(lambda m=made: m.predict([_design(r) for r in SYNTHESES], "lut"))
        subjects[name]["seconds"] = each / len(SYNTHESES)
    networks = [{"widths": r.widths, "bits": r.bits, "reuse": r.reuse} for r in SYNTHESES]
    versions = ["0.8.1", "1.1.0"]
    request = {"networks": networks, "board": "alveo-u250", "vivado": "2023.2", "versions": versions}
    theirs = asked("rule4ml", pythons["rule4ml"], request)
    peer: dict[str, float] = {}
    if theirs is not None:
        each = [errors({t: [row[t] for row in theirs["rows"][v]] for t in truth}) for v in versions]
        peer = {t: min(e[t] for e in each) for t in truth} | {"seconds": theirs["seconds"]}
    rows = []
    for target in (*truth, "seconds"):
        timing = target == "seconds"
        case = "predicting a circuit" if timing else f"12 circuits of Vitis: error of {target}, percent"
        unit = "s" if timing else "1"
        if target in peer:
            rows.append(Row(case, "rule4ml", peer[target], unit))
        for subject, found in subjects.items():
            if target in found and target in peer:
                rows.append(compared(case, subject, found[target], unit, "rule4ml", peer[target], less_is_better=True))
            elif target in found:
                rows.append(Row(case, subject, found[target], unit))
    return rows


def analog(pythons: Mapping[str, str | None]) -> list[Row]:
    count, inputs, outputs = SHAPE
    bits = {"input_bits": 6, "adc_bits": 7}
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(outputs, inputs, generator=generator) * 2 - 1
    x = torch.randn(count, inputs, generator=generator)
    tile = Crossbar(rows=inputs, columns=outputs, adc_range=BOUND / inputs**0.5, full=1.0, **bits)
    layer = AnalogLinear(inputs, outputs, crossbar=tile)
    layer.positive, layer.negative = weight.clamp(min=0), (-weight).clamp(min=0)
    digital = torch.nn.Linear(inputs, outputs, bias=False)

    def seconds(module: Callable[[torch.Tensor], torch.Tensor]) -> float:
        with torch.no_grad():
            return min(timed(lambda: module(x))[1] for _ in range(20))

    ours = seconds(layer)
    case = f"a read of {count} rows by {inputs} x {outputs} weights"
    plain = seconds(digital)
    rows = [Row(case, "torch, digital", plain, "s")]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npy"
        np.savez(given, weight=weight.numpy(), x=x.numpy())
        request = {"given": str(given), "found": str(found), "bound": BOUND, "times": 20, **bits}
        theirs = asked("aihwkit", pythons["aihwkit"], request)
        said = None if theirs is None else torch.from_numpy(np.load(found))
    if theirs is not None and said is not None:
        rows.append(Row(case, "aihwkit", theirs["seconds"], "s"))
        rows.append(compared(case, "hasten", ours, "s", "aihwkit", theirs["seconds"]))
        step = BOUND / (2 ** (bits["adc_bits"] - 1) - 1) * x.abs().amax(1, keepdim=True)
        with torch.no_grad():
            same = ((layer(x) - said).abs() / step < 1e-3).double().mean()
        # Not a race: a sum between two codes may fall to either.
        rows.append(Row("codes that are aihwkit's, share", "hasten", float(same), "1"))
    rows.append(compared(case, "hasten", ours, "s", "torch, digital", plain))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    for name in PEERS:
        parser.add_argument(f"--{name}-python", help=f"Python of an environment with {name}; this one when missing")
    takes_required(parser, PEERS)
    parser.add_argument("--part", default="mapping,scheduling,surrogates,analog,maps", help="what to run, of these")
    parser.add_argument("--items", type=int, default=1 << 16, help="that every map holds")
    parser.add_argument("--large", type=int, default=1 << 20, help="that the oblivious one holds alone")
    options = parser.parse_args()
    check_items(parser, options)
    pythons = {name: getattr(options, f"{name}_python") for name in PEERS}
    parts: dict[str, tuple[Callable[[], list[Row]], tuple[str, ...]]] = {
        "mapping": (lambda: mapping(pythons), ("zigzag",)),
        "scheduling": (lambda: scheduling(pythons), ("stream",)),
        "surrogates": (lambda: surrogates(pythons), ("rule4ml",)),
        "analog": (lambda: analog(pythons), ("aihwkit",)),
        "maps": (lambda: maps(options.items, options.large), ()),
    }
    wanted = options.part.split(",")
    if unknown := [p for p in wanted if p not in parts]:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(parts)}")
    torch.set_num_threads(1)
    try:
        rows = [row for name in wanted for row in parts[name][0]()]
    except HastenError as error:
        print(error, file=sys.stderr)
        return 2
    emit(rows, options.json)
    # Who asks for other parts alone asked for no peer of these.
    concerned = {peer for name in wanted for peer in parts[name][1]} | set(options.require)
    return told_missing(rows, {p: why for p, why in PEERS.items() if p in concerned}, options.require)


if __name__ == "__main__":
    sys.exit(main())

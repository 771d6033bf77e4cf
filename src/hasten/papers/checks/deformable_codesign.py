"""Checks of Algorithm-hardware Co-design for Deformable Convolution, and of CoDeNet, which it became."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.cost.chips.sampling import SampledLayer, line_misses, network_cost, sampled_cost
from hasten.hardware.chips.sampling_engine import sampling_engine
from hasten.models import named
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.centernet import SizingNetwork, mini_centernet
from hasten.nn.deformable import DeformableConv2d, operator
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.tasks.digit_scenes import DigitScenes, SizedDigits, side_by_side
from hasten.train.fitting import fit_task
from hasten.train.quantization_aware import quantization_aware, weight_bytes
from hasten.workload import trace_cascade

_BOUND = 4  # places, on maps of 8 x 8
_DENSE = ("plain", "original", "bound", "square")
_DEPTHWISE = ("plain-depthwise", "original-depthwise", "square-depthwise")
# ms without cache of CoDeNet's table 2: 64 x 64 places, 256 channels, offsets rounded.
_TABLE = {
    "dense": {"plain": 43.1, "original": 59.0, "bound": 43.4, "square": 43.4},
    "depthwise": {"plain": 1.9, "original": 20.5, "bound": 3.0, "square": 2.1},
}
# Name, pixels of the image, whether the first layer is pooled, frames a second where they are published.
_CONFIGURATIONS = (
    ("a", "codenet-1x-voc", 256, False, 32.2), ("b", "codenet-1x-voc", 256, True, 26.9),
    ("c", "codenet-1x-voc", 512, False, 9.3), ("d", "codenet-2x-voc", 512, False, None),
    ("e", "codenet-2x-voc", 512, True, None),
)  # fmt: skip


class _Run(NamedTuple):
    """Percent right, error of sizes, offsets cut off, offsets on 64 x 64; rounded: percent right, bytes; parameters."""

    right: float
    error: float
    stuck: float = 0.0
    offsets: Tensor | None = None
    rounded: float = 0.0
    size: float = 0.0
    parameters: int = 0


def _trained(name: str, counts: tuple[int, int, int], steps: int, seed: int) -> _Run:
    torch.manual_seed(seed)
    task, network = SizedDigits(counts), SizingNetwork(operator(name, _BOUND))
    fit = functools.partial(fit_task, task=task, size=64, seed=seed, warmup=0.3, final=0.0, weight_decay=0.01)
    fit(network, steps=steps, peak=3e-3)
    network.eval()
    run = _Run(100 * task.evaluate(network, "test"), task.size_error(network), parameters=parameters_of(network))
    last = network.features[9]
    if isinstance(last, DeformableConv2d):
        with torch.no_grad():
            before = network.features[:9](side_by_side(task.parts["test"][0], 8))
        run = run._replace(offsets=last.trace_offsets(before)[0].round(), stuck=last.stuck(before))
    if name == "square-depthwise":
        rounded = quantization_aware(network, next(task.batches("training", 256, seed)).inputs).train()
        fit(rounded, steps=max(1, steps // 5), peak=3e-4)
        run = run._replace(rounded=100 * task.evaluate(rounded.eval(), "test"), size=weight_bytes(rounded))
    return run


@shared(weight=300)
def _ladder(experiment: Experiment) -> dict[tuple[str, int], _Run]:
    """(operator, seed) -> what it reached, all with equal steps; dense operators with one seed in a normal run."""
    counts = experiment.at(quick=(64, 32, 32), normal=(4000, 750, 1500))
    steps = experiment.at(quick=2, normal=experiment.steps(625))
    seeds = {n: experiment.seeds(1 if n in _DENSE else 3, long=5) for n in (*_DENSE, *_DEPTHWISE)}
    plan = {f"{n} {s}": (n, counts, steps, s) for n in seeds for s in seeds[n]}
    found, _ = succeeded(experiment.arms(_trained, plan), plan)
    return {(n, s): found[f"{n} {s}"] for n in seeds for s in seeds[n]}


def _means(experiment: Experiment, names: tuple[str, ...], what: str) -> dict[str, float]:
    table = experiment.once(_ladder)
    found = {n: [float(getattr(run, what)) for (name, _), run in table.items() if name == n] for n in names}
    return {n: sum(values) / len(values) for n, values in found.items()}


def _judged(experiment: Experiment, names: tuple[str, ...]) -> Seen:
    """Holds where each restriction costs, none more than half a point the other way, and the last is 2 above plain."""
    right, errors = _means(experiment, names, "right"), _means(experiment, names, "error")
    stuck = _means(experiment, names, "stuck")
    detail = "offsets cut off: " + ", ".join(f"{n} {stuck[n]:.0%}" for n in names[1:])
    plain, *restricted = [right[n] for n in names]
    ordered = all(a >= b - 0.5 for a, b in itertools.pairwise(restricted))
    value = "right (mean error of sizes): " + ", ".join(f"{n} {right[n]:.1f} % ({errors[n]:.3f})" for n in names)
    return experiment.judge(value, ordered and restricted[-1] - plain >= 2, min(restricted) > plain, detail)


@check("D1", weight=1, needs=200)
def _dense(experiment: Experiment) -> Seen:
    """Digits of 8 to 24 pixels named and sized, on one seed in a normal run."""
    return _judged(experiment, _DENSE)


@check("D2", weight=1, needs=200)
def _depthwise(experiment: Experiment) -> Seen:
    """The same with a kernel a channel, on three seeds."""
    return _judged(experiment, _DEPTHWISE)


def _times(traces: Mapping[str, Tensor], channels: int, cache: int) -> dict[tuple[str, str], float]:
    """(engine, kind) -> ms by the model, of 64 x 64 places; all kinds read where networks of that kind learned to."""
    found = {}
    for engine in ("dense", "depthwise"):
        layer = SampledLayer(channels, channels, 64, 64, depthwise=engine == "depthwise")
        for kind in _TABLE[engine]:
            more = "-depthwise" if engine == "depthwise" and kind != "bound" else ""
            chip, offsets = sampling_engine(f"ultra96-{engine}"), traces.get(f"{kind}{more}")
            cost = sampled_cost(replace(layer, kind=kind), chip, offsets, cache=cache)
            found[engine, kind] = 1e3 * cost.latency
    return found


@check("D4", weight=20, needs=200)
def _speed(experiment: Experiment) -> Seen:
    """Reads of real offsets on the engine: unrestricted past the cache over squares from a line buffer."""
    table = experiment.once(_ladder)
    traces = {n: r.offsets for (n, s), r in table.items() if s == experiment.seed and r.offsets is not None}
    words, gains = [], {}
    for channels, cache in ((256, 0), (128, 0), (128, 32 << 10), (128, 256 << 10)):
        times = _times(traces, channels, cache)
        gain = {e: times[e, "original"] / times[e, "square"] for e in _TABLE}
        more = f"{channels} channels, cache {cache >> 10} KB"
        words.append(f"{gain['dense']:.2f}x and {gain['depthwise']:.1f}x at {more}")
        gains[channels, cache] = gain
    times = _times(traces, 256, 0)
    rows = ", ".join(f"{e} {k} {times[e, k]:.1f} ({_TABLE[e][k]:.1f})" for e in _TABLE for k in _TABLE[e])
    missed = {n: line_misses(t, 2 * _BOUND + 3) for n, t in traces.items() if not n.startswith("original")}
    value = f"full and depthwise: {'; '.join(words)}; ms at 256 channels (published): {rows}"
    value += f"; a line buffer of {2 * _BOUND + 3} rows misses {sum(missed.values())} reads"
    seen = [gains[128, 0], gains[256, 0]]
    holds = all(1.1 <= g["dense"] <= 3 and 4 <= g["depthwise"] <= 20 for g in seen) and not any(missed.values())
    return experiment.judge(value, holds, all(g["dense"] > 1 and g["depthwise"] > 1 for g in seen))


@check("D5", weight=10)
def _detector(experiment: Experiment) -> Seen:
    """Size at 4 bits, products, and the order of frames a second by the model of the accelerator."""
    sizes = {n: parameters_of(named.build(n)) / 2e6 for n in ("codenet-1x-voc", "codenet-2x-voc")}
    published = {"codenet-1x-voc": (0.76, 1.14), "codenet-2x-voc": (2.90, 3.58)}
    image = experiment.at(quick=128, normal=512)
    products = {n: multiply_accumulates(named.build(n), (3, image, image)) / 1e9 for n in sizes}
    seconds: dict[str, float] = {}
    for configuration, name, side, pooled, _ in _CONFIGURATIONS:
        x = torch.zeros(1, 3, *[side * image // 512] * 2, device="meta", dtype=torch.bfloat16)
        work = trace_cascade(named.build(name, pooled=pooled), (x,)).cascade
        seconds[configuration] = network_cost(work, sampling_engine("codenet-ultra96")).latency
    value = ", ".join(
        f"{n[8:10]} {sizes[n]:.2f} MB ({s:.2f} published), {products[n]:.2f} G products ({p:.2f})"
        for n, (s, p) in published.items()
    )
    frames = ", ".join(f"{c} {1 / seconds[c]:.0f}" + (f" ({f})" if f else "") for c, *_, f in _CONFIGURATIONS)
    exact = parameters_of(named.build("codenet-voc"))
    value += f"; the published code's network has {exact:,} parameters; frames a second {frames}"
    order = [seconds[c] for c, *_ in _CONFIGURATIONS]
    near = all(abs(sizes[n] / s - 1) < 0.1 and abs(products[n] / p - 1) < 0.1 for n, (s, p) in published.items())
    return experiment.judge(value, near and order == sorted(order) and exact == 2_009_346, order == sorted(order))


@check("D5.rounded", weight=1, needs=200)
def _rounded(experiment: Experiment) -> Seen:
    """Squares, depthwise, trained on with 4-bit weights, 8-bit activations and offsets of whole places."""
    runs = [run for run in experiment.once(_ladder).values() if run.size]
    lost = sum(r.right - r.rounded for r in runs) / len(runs)
    halved = all(r.size == r.parameters / 2 for r in runs)
    value = f"{lost:.1f} points lost (published 2.9 of AP50), {runs[0].size:,.0f} bytes for {runs[0].parameters:,}"
    return experiment.judge(value, lost <= 2 and halved, lost <= 4)


def _detected(name: str, counts: tuple[int, int, int], steps: int, seed: int) -> float:
    torch.manual_seed(seed)
    network, task = mini_centernet(operator(name)), DigitScenes(counts)
    fit_task(network, task, size=16, steps=steps, peak=3e-3, warmup=0.1, weight_decay=0.01, seed=seed)
    return 100 * task.evaluate(lambda images: network.eval().detect(images), "test")


@check("D2.scenes", weight=20, needs=3000)
def _scenes(experiment: Experiment) -> Seen:
    """Heat maps, sizes and shifts of several digits on 128 x 128: AP50; only a long run has time for it."""
    experiment.require(3000)
    counts = experiment.at(quick=(16, 4, 8), normal=(10_000, 200, 500))
    seeds, steps = experiment.seeds(5), experiment.at(quick=2, normal=2000)
    plan = {f"{n} {s}": (n, counts, steps, s) for n in _DEPTHWISE for s in seeds}
    found, _ = succeeded(experiment.arms(_detected, plan), plan)
    plain, free, square = (sum(found[f"{n} {s}"] for s in seeds) / len(seeds) for n in _DEPTHWISE)
    value = f"AP50: plain {plain:.1f}, original {free:.1f}, square {square:.1f}, all depthwise"
    return experiment.judge(value, free >= square - 0.5 and square - plain >= 2, min(free, square) > plain)

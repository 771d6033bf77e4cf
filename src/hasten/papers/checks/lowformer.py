"""Checks of LowFormer: Hardware Efficient Design for Convolutional Transformer Backbones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from hasten.cost.measuring import alternating
from hasten.cost.preserving import fold_normalization
from hasten.models.vision.backbone import modelled_seconds, multiply_accumulates, published_figures
from hasten.models.vision.lowformer import PUBLISHED, LowFormer, faster_fusion, mini_lowformer
from hasten.nn import FusedMBConv, Lowtention, MapAttention, MBConv
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.tasks.placed_digits import PlacedDigits
from hasten.train.fitting import fit_task

# Parameters and millions of multiply-accumulates of the released code at 224 pixels.
_SIZES = {
    "lowformer-b0": (14_100_472, 944.0),
    "lowformer-b1": (17_936_312, 1411.0),
    "lowformer-b1.5": (33_982_028, 2573.7),
    "lowformer-b3": (57_086_920, 6098.7),
}
# Images a second at batch 200 on an A40, and milliseconds on a Titan RTX.
_THROUGHPUT = {"lowformer-b0": 5988, "lowformer-b1": 4237, "lowformer-b1.5": 2739, "lowformer-b3": 1162}
_LATENCY = {"lowformer-b0": 0.30, "lowformer-b1": 0.43, "lowformer-b1.5": 0.66, "lowformer-b3": 1.55}
_POINTS = ((32, 56), (64, 28), (128, 14), (256, 14))  # channels, height and width


@check("L1", weight=5)
def _sizes(experiment: Experiment) -> Seen:
    """The released models; the second one's standalone file is not among them, as it builds another network."""
    seen = {}
    for name in _SIZES:
        with torch.device("meta"):
            model = LowFormer.named(name)
        seen[name] = published_figures(model, (3, 224, 224))
    value = ", ".join(f"{name[10:].upper()} {p:,} / {m:.1f} M" for name, (p, m) in seen.items())
    exact = all(p == _SIZES[n][0] and abs(m / _SIZES[n][1] - 1) < 1e-3 for n, (p, m) in seen.items())
    return experiment.judge(value, exact)


def _modelled(
    experiment: Experiment, device: str, batch: int, published: Mapping[str, float]
) -> tuple[str, bool, bool]:
    """Seconds of an image by the analytic model: in words, whether each is within half again of the paper's ratio to
    the smallest network, and whether their order is the paper's. ``published`` grows with the seconds."""
    image = experiment.at(quick=64, normal=224)
    seconds = {}
    for done, name in enumerate(published):
        experiment.tell(name, done / len(published))
        with torch.device("meta"):
            model = LowFormer.named(name).eval()
        seconds[name] = modelled_seconds(model, (3, image, image), device, batch) / batch
    smallest = next(iter(published))
    ratios = {n: (seconds[n] / seconds[smallest], published[n] / published[smallest]) for n in published}
    value = f"{device}, batch {batch}: " + ", ".join(
        f"{n[10:].upper()} {1e3 * seconds[n]:.3f} ms ({found:.2f}x of B0, published {paper:.2f}x)"
        for n, (found, paper) in ratios.items()
    )
    near = all(2 / 3 <= found / paper <= 1.5 for found, paper in ratios.values())
    return value, near, sorted(seconds, key=lambda n: seconds[n]) == list(published)


@check("L2", weight=20)
def _throughput(experiment: Experiment) -> Seen:
    """By a model of the card: the order, and how many times as long as B0 each takes."""
    batch = experiment.at(quick=2, normal=200)
    value, near, ordered = _modelled(experiment, "a40", batch, {n: 1 / t for n, t in _THROUGHPUT.items()})
    return experiment.judge(value, near and ordered, ordered)


@check("L3", weight=20)
def _latency(experiment: Experiment) -> Seen:
    """As for throughput, at a batch of one, on a T4: the catalogue has no other card of the Titan RTX's generation."""
    value, near, ordered = _modelled(experiment, "t4", 1, _LATENCY)
    return experiment.judge(value, near and ordered, ordered)


def _least(experiment: Experiment, arms: Mapping[str, nn.Module], channels: int, side: int) -> dict[str, float]:
    """Least seconds of each arm on one map, one thread, in turn, each in the faster of two layouts of memory."""
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(experiment.seed))
    calls: dict[str, Callable[[], object]] = {}
    for name, arm in arms.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            moved = copy.deepcopy(arm).eval().to(memory_format=layout)  # type: ignore[call-overload]
            calls[f"{name} {layout}"] = functools.partial(moved, x.contiguous(memory_format=layout))
    with one_thread(), torch.inference_mode():
        times = alternating(calls, experiment.at(quick=1, normal=60, long=200))
    return {name: min(min(t) for call, t in times.items() if call.startswith(f"{name} ")) for name in arms}


@shared(weight=20)
def _depthwise(experiment: Experiment) -> dict[tuple[int, int], float]:
    """(channels, side) -> how many times as many products a second a dense 3x3 convolution does as a depthwise one."""
    found = {}
    for channels, side in experiment.at(quick=((8, 8),), normal=_POINTS):
        dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        single = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        times = _least(experiment, {"dense": dense, "depthwise": single}, channels, side)
        found[channels, side] = channels * times["depthwise"] / times["dense"]
    return found


@check("L4", weight=1)
def _proxy(experiment: Experiment) -> Seen:
    """Products a second of a dense 3x3 convolution over those of a depthwise one: three times and more everywhere."""
    found = experiment.once(_depthwise)
    value = "dense over depthwise, products a second on one thread: " + ", ".join(
        f"{r:.1f}x at {c} channels of {s} x {s}" for (c, s), r in found.items()
    )
    return experiment.judge(value, min(found.values()) >= 3, min(found.values()) > 1)


def _blocks(channels: int) -> dict[str, nn.Module]:
    """Both inverted bottlenecks as they are deployed, normalization folded: it would be time of neither's design."""
    fused = FusedMBConv(channels, channels, 4 * channels, bias=True)
    apart = MBConv(channels, channels, 4 * channels, 3, 1, "h_swish", False, normed=False)
    return {"fused": fold_normalization(fused), "apart": fold_normalization(apart)}


@shared(weight=60)
def _bottlenecks(experiment: Experiment) -> dict[tuple[int, int], tuple[float, float]]:
    """(channels, side) -> seconds and products of a fused inverted bottleneck over those of one that is not."""
    found = {}
    for channels, side in experiment.at(quick=((8, 8),), normal=_POINTS):
        arms = _blocks(channels)
        products = [multiply_accumulates(arm, (channels, side, side)) for arm in arms.values()]
        times = _least(experiment, arms, channels, side)
        found[channels, side] = (times["fused"] / times["apart"], products[0] / products[1])
    return found


@check("L5", weight=10)
def _fused(experiment: Experiment) -> Seen:
    """Up to 64 channels the fused block takes less than half the time that its products would ask for; where it is the
    faster one on this machine is decided by measuring, beside the paper's border of 256 channels."""
    found = experiment.once(_bottlenecks)

    def seconds(module: nn.Module, x: torch.Tensor) -> float:
        return _least(experiment, {"one": module}, *x.shape[1:3])["one"]

    config = PUBLISHED["lowformer-b1"]
    here = faster_fusion(config, seconds, experiment.at(quick=32, normal=224))
    names = [", ".join(str(w) for w, f in zip(config.widths, rule, strict=True) if f) for rule in (here, config.fusion)]
    value = (
        "fused over unfused: "
        + ", ".join(f"{t:.2f}x the time for {p:.1f}x the products at {c}" for (c, _), (t, p) in found.items())
        + f" channels; of B1's widths this machine fuses {names[0] or 'none'}, the paper's rule {names[1]}"
    )
    small = [(t, p) for (c, _), (t, p) in found.items() if c <= 64]
    return experiment.judge(value, all(t < 0.5 * p for t, p in small), all(t < p for t, p in found.values()))


@check("L6", weight=30)
def _attention(experiment: Experiment) -> Seen:
    """Beside attention at full size and width with 128 channels; and at stride 1, where nothing is left out but width."""
    sides = experiment.at(quick=(4, 6), normal=(14, 32, 64))
    found = {}
    for side in sides:
        found[side] = _least(experiment, {"low": Lowtention(128), "plain": MapAttention(128)}, 128, side)
    gains = {side: times["plain"] / times["low"] for side, times in found.items()}
    seven = _least(experiment, {"low": Lowtention(256, 1, 3), "plain": MapAttention(256)}, 256, 7)
    value = (
        "times as fast as plain attention, 128 channels: "
        + ", ".join(f"{g:.1f}x at {s} x {s} ({1e3 * found[s]['low']:.2f} ms)" for s, g in gains.items())
        + f"; the last stage's form, stride 1 at 7 x 7 and 256 channels: {seven['plain'] / seven['low']:.2f}x"
    )
    holds = gains[sides[0]] >= 1.5 and min(list(gains.values())[1:]) >= 3
    return experiment.judge(value, holds, min(gains.values()) > 1)


def _trained(plain: bool, steps: int, counts: tuple[int, int, int], seed: int) -> float:
    torch.manual_seed(seed)
    model, task = mini_lowformer(plain=plain), PlacedDigits(counts)
    fit_task(model, task, size=64, steps=steps, peak=2e-3, seed=seed)
    return 100 * task.evaluate(model.eval(), "test")


@check("L6.task", weight=180, needs=180)
def _accuracy(experiment: Experiment) -> Seen:
    """Digits of any size anywhere on 32 x 32: within a point of full attention, in less time a step of training."""
    seeds, steps = experiment.seeds(2, long=5), experiment.at(quick=2, normal=experiment.steps(400))
    counts = experiment.at(quick=(64, 64, 64), normal=(4000, 750, 750), long=(20_000, 750, 750))
    plan = {f"{plain} {s}": (plain, steps, counts, s) for plain in (False, True) for s in seeds}
    found, _ = succeeded(experiment.arms(_trained, plan), plan)
    low, full = (sum(found[f"{plain} {s}"] for s in seeds) / len(seeds) for plain in (False, True))
    images = torch.randn(experiment.at(quick=2, normal=64), 1, 32, 32)
    arms = {name: mini_lowformer(plain=plain) for name, plain in (("low", False), ("full", True))}
    calls = {name: functools.partial(lambda arm: arm(images).sum().backward(), arm) for name, arm in arms.items()}
    with one_thread():
        times = {name: 1e3 * min(t) for name, t in alternating(calls, experiment.at(quick=1, normal=20)).items()}
    value = f"Lowtention {low:.1f} %, {times['low']:.0f} ms a step; full attention {full:.1f} %, {times['full']:.0f} ms"
    return experiment.judge(value, low >= full - 1 and times["low"] < times["full"], low >= full - 1)

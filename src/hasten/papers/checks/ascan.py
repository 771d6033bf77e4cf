"""Checks of AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hasten.cost.measuring import alternating
from hasten.data.images import digits
from hasten.errors import MissingExtraError
from hasten.models.generation.ascan_unet import AsCANUNet, AsCANUNetConfig
from hasten.models.generation.noise import NoiseSchedule
from hasten.models.vision.ascan import AsCAN, AsCANConfig, StageLayout
from hasten.models.vision.backbone import equal_products, multiply_accumulates, published_figures
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.tasks.placed_digits import PlacedDigits
from hasten.train.fitting import fit, fit_task

# Parameters in millions and products in thousands of millions, as the paper has them; its layouts are not public.
_SIZES = {"ascan-fit-t": (55, 7.7), "ascan-fit-b": (98, 16.7), "ascan-fit-l": (173, 30.7)}


@check("A1", weight=2)
def _sizes(experiment: Experiment) -> Seen:
    """Networks of the paper's blocks, fitted, within 2 % of its sizes: there are such. Accuracy is not checked."""
    with torch.device("meta"):
        found = {name: published_figures(AsCAN.named(name), (3, 224, 224)) for name in _SIZES}
    value = ", ".join(
        f"{n[10:].upper()} {p / 1e6:.1f} M / {m / 1e3:.2f} G (published {_SIZES[n][0]} M / {_SIZES[n][1]} G)"
        for n, (p, m) in found.items()
    )
    off = [abs(x / y - 1) for n, (p, m) in found.items() for x, y in zip((p / 1e6, m / 1e3), _SIZES[n], strict=True)]
    return experiment.judge(f"fitted, not the paper's own: {value}; accuracy not checked", max(off) <= 0.02)


_LAYOUTS = {
    "asymmetric": "CC|CCT|TTT",
    "symmetric": "CT|CTT|CTT",
    "reversed": "TT|TCC|CCC",
    "convolutions": "CC|CCC|CCC",
}
_WIDTH = 16  # of the asymmetric arm, whose products the others are fitted to


class _Arm(NamedTuple):
    """Accuracies by seed, millions of products of an image, and seconds of an image."""

    accuracies: list[float]
    products: float
    seconds: float


def _config(layout: str, width: int, stem: int = 8) -> AsCANConfig:
    # A head for the width of the first stage: every arm may have attention anywhere.
    return AsCANConfig(StageLayout.of(layout), (width, 2 * width, 4 * width), stem, head_size=width, channels=1)


def _products(config: AsCANConfig | AsCANUNetConfig) -> int:
    with torch.device("meta"):
        if isinstance(config, AsCANUNetConfig):
            return multiply_accumulates(AsCANUNet(config), (1, _SIDE, _SIDE), 0)
        return multiply_accumulates(AsCAN(config), (1, config.image, config.image))


def _fitted(layout: str, wanted: int) -> AsCANConfig:
    """The even width with the products wanted, within 5 %; where no width has them, another stem makes up the rest."""
    choices = [_config(layout, width, stem) for stem in (8, 6, 10, 12) for width in range(10, 24, 2)]
    return equal_products(choices, AsCAN, (1, 32, 32), wanted)


def _trained(config: AsCANConfig, steps: int, counts: tuple[int, int, int], seed: int) -> float:
    """Accuracy on test canvases."""
    torch.manual_seed(seed)
    model, task = AsCAN(config), PlacedDigits(counts)
    fit_task(model, task, size=64, steps=steps, peak=2e-3, seed=seed)
    return task.evaluate(model.eval(), "test")


@shared(weight=100)
def _arms(experiment: Experiment) -> dict[str, _Arm]:
    """Every layout at nearly equal products: trained for equal steps, and timed in turn on one thread."""
    wanted = _products(_config(_LAYOUTS["asymmetric"], _WIDTH))
    configs = {n: _config(layout, 4) if experiment.quick else _fitted(layout, wanted) for n, layout in _LAYOUTS.items()}
    seeds = experiment.seeds(2, long=3)
    steps = experiment.at(quick=2, normal=experiment.steps(200, most=800))
    counts = experiment.at(quick=(64, 64, 64), normal=(4000, 750, 750))
    plan = {f"{name} {s}": (config, steps, counts, s) for name, config in configs.items() for s in seeds}
    found, _ = succeeded(experiment.arms(_trained, plan), plan)
    images = torch.randn(experiment.at(quick=2, normal=32), 1, 32, 32)
    with one_thread(), torch.inference_mode():
        calls = {name: functools.partial(AsCAN(config).eval(), images) for name, config in configs.items()}
        times = alternating(calls, experiment.at(quick=1, normal=40))
    return {
        name: _Arm([found[f"{name} {s}"] for s in seeds], _products(config) / 1e6, min(times[name]) / len(images))
        for name, config in configs.items()
    }


@check("A2", weight=1, needs=240)
def _asymmetric(experiment: Experiment) -> Seen:
    """Digits of any size anywhere on a canvas: at least 0.3 points more than the symmetric layout, in at most 0.9 of its
    time. The layout of convolutions alone stands beside them, whether it wins or not."""
    arms = experiment.once(_arms)
    points = {name: 100 * sum(arm.accuracies) / len(arm.accuracies) for name, arm in arms.items()}
    value = "; ".join(
        f"{name} {_LAYOUTS[name]} {points[name]:.1f} % ({min(arm.accuracies):.3f} to {max(arm.accuracies):.3f}), "
        f"{1e3 * arm.seconds:.2f} ms an image, {arm.products:.1f} M products"
        for name, arm in arms.items()
    )
    gain = points["asymmetric"] - points["symmetric"]
    share = arms["asymmetric"].seconds / arms["symmetric"].seconds
    return experiment.judge(value, gain >= 0.3 and share <= 0.9, gain > 0 and share < 1)


_PLACES = {"asymmetric": "CC|CT|TT", "symmetric": "CT|CT|CT", "reversed": "TT|TC|CC"}  # as many of each kind in all
_SIDE = 16


def _unet(layout: str, width: int) -> AsCANUNetConfig:
    return AsCANUNetConfig(StageLayout.of(layout), "T", (width, 2 * width, 4 * width), classes=10, head_size=width)


def _equal_unets(width: int, less: int) -> dict[str, AsCANUNetConfig]:
    """Every placement at the products of the asymmetric one of that width, where needed by so much less width."""
    wanted, image = _products(_unet(_PLACES["asymmetric"], width)), (1, _SIDE, _SIDE)
    choices = {name: [_unet(layout, width - i) for i in range(less + 1)] for name, layout in _PLACES.items()}
    return {name: equal_products(c, AsCANUNet, image, wanted, 0) for name, c in choices.items()}


def _pictures() -> tuple[torch.Tensor, torch.Tensor]:
    pictures, labels = digits()
    scaled = F.interpolate(pictures[:, None].float() / 8 - 1, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return scaled, labels


def _denoiser(config: AsCANUNetConfig, steps: int, seed: int) -> float:
    """Loss on digits that it was not trained on, at times and noise that are the same for all."""
    torch.manual_seed(seed)
    network, schedule = AsCANUNet(config), NoiseSchedule()
    pictures, labels = _pictures()
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> torch.Tensor:
        some = torch.randint(1400, (32,), generator=generator)
        return schedule.loss(network, pictures[some], generator, labels=labels[some])

    fit(network, loss, steps=steps, peak=2e-3)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        held = [schedule.loss(network.eval(), pictures[1400:], drawn, labels=labels[1400:], dropped=0) for _ in range(4)]  # fmt: skip
    return sum(map(float, held)) / len(held)


@check("A2.unet", weight=70, needs=240)
def _denoising(experiment: Experiment) -> Seen:
    """Digits of 16 x 16 asked for by their class, equal products and steps: a loss within 2 % of the symmetric one's and
    less time, or a lower loss in no more time."""
    configs = _equal_unets(*experiment.at(quick=(4, 1), normal=(16, 3)))
    steps, seeds = experiment.at(quick=2, normal=experiment.steps(200, most=600)), experiment.seeds(1, long=3)
    plan = {f"{name} {s}": (config, steps, s) for name, config in configs.items() for s in seeds}
    found, _ = succeeded(experiment.arms(_denoiser, plan), plan)
    losses = {name: sum(found[f"{name} {s}"] for s in seeds) / len(seeds) for name in configs}
    noise = torch.randn(experiment.at(quick=1, normal=16), 1, _SIDE, _SIDE)
    calls = {name: functools.partial(AsCANUNet(config).eval(), noise, 500) for name, config in configs.items()}
    with one_thread(), torch.inference_mode():
        times = {n: min(t) for n, t in alternating(calls, experiment.at(quick=1, normal=30)).items()}
    value = f"{steps} steps: " + "; ".join(
        f"{name} {_PLACES[name]} loss {losses[name]:.4f}, {1e3 * times[name] / len(noise):.2f} ms an image and step of "
        f"sampling, {_products(config) / 1e6:.1f} M products"
        for name, config in configs.items()
    )
    loss, share = losses["asymmetric"] / losses["symmetric"], times["asymmetric"] / times["symmetric"]
    holds = (loss <= 1.02 and share < 1) or (loss < 1 and share <= 1)
    return experiment.judge(value, holds, loss < 1 or share < 1)


_PEERS = ("coatnet_0_rw_224", "maxvit_tiny_tf_224")


@check("A3", weight=30, needs=60)
def _hybrids(experiment: Experiment) -> Seen:
    """The fitted T beside timm's hybrids of windows, one image of 224 x 224, one thread."""
    try:
        import timm
    except ImportError:
        raise MissingExtraError("timm", "vision") from None
    arms = {"ascan-fit-t": AsCAN.named("ascan-fit-t"), **{name: timm.create_model(name) for name in _PEERS}}
    image = torch.randn(1, 3, 224, 224)
    with one_thread(), torch.inference_mode():
        calls = {name: functools.partial(arm.eval(), image) for name, arm in arms.items()}
        times = alternating(calls, experiment.at(quick=1, normal=10, long=40))
    least = {name: min(t) for name, t in times.items()}
    value = ", ".join(f"{name} {1e3 * t:.0f} ms" for name, t in least.items())
    faster = [least["ascan-fit-t"] < least[name] for name in _PEERS]
    return experiment.judge(value, all(faster), any(faster))

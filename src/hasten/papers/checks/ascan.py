"""Checks of AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hasten.cost.measuring import alternating
from hasten.models.vision.ascan import AsCAN, AsCANConfig, StageLayout
from hasten.models.vision.backbone import multiply_accumulates
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.tasks.placed_digits import PlacedDigits
from hasten.train.fitting import fit_task

_LAYOUTS = {
    "asymmetric": "CC|CCT|TTT",
    "symmetric": "CT|CTT|CTT",
    "reversed": "TT|TCC|CCC",
    "convolutions": "CC|CCC|CCC",
}
_WIDTH = 16  # of the asymmetric arm, whose products the others' widths are fitted to
_IMAGES = 32  # of a call that is timed


class _Arm(NamedTuple):
    """Accuracies by seed, millions of products of an image, and seconds of an image."""

    accuracies: list[float]
    products: float
    seconds: float


def _config(layout: str, width: int) -> AsCANConfig:
    # A head for the width of the first stage: every arm may have attention anywhere.
    return AsCANConfig(StageLayout.of(layout), (width, 2 * width, 4 * width), 8, head_size=width, channels=1)


def _products(config: AsCANConfig) -> int:
    with torch.device("meta"):
        return multiply_accumulates(AsCAN(config), (1, config.image, config.image))


def _fitted(layout: str, wanted: int) -> AsCANConfig:
    """The even width at which a layout's products are nearest to what is wanted."""
    # Products grow with the square of the width, nearly: its neighbours are looked at too.
    guess = round(_WIDTH * (wanted / _products(_config(layout, _WIDTH))) ** 0.5 / 2) * 2
    return min((_config(layout, w) for w in (guess - 2, guess, guess + 2)), key=lambda c: abs(_products(c) - wanted))


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
    configs = {
        name: _config(layout, 4) if experiment.quick else _fitted(layout, wanted) for name, layout in _LAYOUTS.items()
    }
    seeds = experiment.seeds(2, long=3)
    steps = experiment.at(quick=2, normal=experiment.steps(400, most=800))
    counts = experiment.at(quick=(64, 64, 64), normal=(4000, 750, 750))
    plan = {f"{name} {s}": (config, steps, counts, s) for name, config in configs.items() for s in seeds}
    found, _ = succeeded(experiment.arms(_trained, plan), plan)
    images = torch.randn(experiment.at(quick=2, normal=_IMAGES), 1, 32, 32)
    with one_thread(), torch.inference_mode():
        models = {name: AsCAN(config).eval() for name, config in configs.items()}
        calls = {name: (lambda m=model: m(images)) for name, model in models.items()}
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

"""FlashKAT: Understanding and Addressing Performance Bottlenecks in the Kolmogorov-Arnold Transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.cost.measuring import alternating, least_seconds
from hasten.data.images import mnist
from hasten.errors import HastenError
from hasten.kernels import native
from hasten.kernels.rational import backward_reference, naive_backward, reference, shared_additions
from hasten.models.matching import parameters_of
from hasten.models.vision.kat import ACTIVATIONS, KAT, PUBLISHED, KATConfig, with_activation
from hasten.nn.rational import start_coefficients
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.train.classifying import fit_timed, noise_step

# Images of a training step at a published size: the slowest arm takes seconds.
BATCHES = {"kat-tiny": 8, "kat-small": 4, "kat-base": 2}


def _tensors(experiment: Experiment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal inputs and gradients of width 768, and the coefficients of swish: one numerator, eight denominators."""
    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    generator = torch.Generator().manual_seed(experiment.seed)
    top, bottom = start_coefficients("swish")
    x, grad = torch.randn(2, 197 * experiment.at(quick=2, normal=16), 768, generator=generator)
    return x, grad, torch.tensor([top]), torch.tensor([bottom]).repeat(8, 1)


@shared(weight=15)
def backward_times(experiment: Experiment) -> dict[str, float]:
    """Seconds of each backward kernel at the same size."""
    x, grad, a, b = _tensors(experiment)
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    value = reference(leaves[0], leaves[1], leaves[2], 8)
    return {
        "block": least_seconds(lambda: torch.ops.hasten.rational_backward(grad, x, a, b, 8), 10),
        "naive": least_seconds(lambda: naive_backward(grad, x, a, b, 8), 2),
        "naive, quotient 8 times": least_seconds(lambda: naive_backward(grad, x, a, b, 8, repeats=8), 2),
        "GELU": least_seconds(lambda: torch.ops.aten.gelu_backward(grad, x), 10),
        "autograd": least_seconds(lambda: torch.autograd.grad(value, leaves, grad, retain_graph=True), 3),
    }


@check("K1", weight=1)
def slow_activation(experiment: Experiment) -> Seen:
    """The backward of one activation with shared additions, beside GELU's."""
    experiment.require(30)
    times = experiment.once(backward_times)
    ratio = times["naive"] / times["GELU"]
    value = f"backward of one activation: shared additions {times['naive'] * 1e3:.1f} ms, GELU {times['GELU'] * 1e3:.2f} ms, {ratio:.0f}x"
    return experiment.judge(value, ratio >= 10, ratio > 1)


@check("K3", weight=1)
def backward_kernel(experiment: Experiment) -> Seen:
    """Block sums against shared additions, against autograd of the formula, and against GELU."""
    experiment.require(30)
    times = experiment.once(backward_times)
    faster = {name: seconds / times["block"] for name, seconds in times.items()}
    fewer = 1024 * 197 * 768 * 10 / shared_additions(1024 * 197, 8)
    value = (
        f"({len(_tensors(experiment)[0])}, 768): block sums {times['block'] * 1e3:.2f} ms, {faster['naive']:.0f}x faster "
        f"than shared additions, {faster['autograd']:.1f}x than autograd of the formula, {1 / faster['GELU']:.2f}x the "
        f"time of GELU's; at the paper's size {fewer:,.0f}x fewer shared additions"
    )
    holds = faster["naive"] >= 10 and faster["autograd"] >= 5 and faster["GELU"] >= 0.5 and fewer == 6144
    return experiment.judge(value, holds, faster["naive"] > 1)


@check("K4", weight=3)
def rounding(experiment: Experiment) -> Seen:
    """Rounding error of the coefficients' gradients, against double precision; KAT pools shared additions by group."""
    experiment.require(30)
    x, grad, a, b = _tensors(experiment)
    exact = backward_reference(grad.double(), x.double(), a.double(), b.double(), 8)
    ours = torch.ops.hasten.rational_backward(grad, x, a, b, 8)
    theirs = naive_backward(grad, x, a, b, 8)
    errors = [[float((found[i] - exact[i]).abs().mean()) for i in (1, 2)] for found in (ours, theirs[:3])]
    ratios = [naive / block for block, naive in zip(*errors, strict=True)]
    value = (
        f"mean error against fp64: numerator {errors[0][0]:.1e} (shared additions {errors[1][0]:.1e}, {ratios[0]:.0f}x), "
        f"denominator {errors[0][1]:.1e} ({errors[1][1]:.1e}, {ratios[1]:.0f}x)"
    )
    return experiment.judge(value, min(ratios) >= 8, min(ratios) > 1)


@check("K6", weight=1)
def stalls(experiment: Experiment) -> Seen:
    """Eight times the quotient's arithmetic, both polynomials and the division: does the kernel with shared additions notice?"""
    experiment.require(30)
    times = experiment.once(backward_times)
    grown = times["naive, quotient 8 times"] / times["naive"]
    value = f"the quotient (9 multiply-adds and a division an element) evaluated 8 times: {grown:.2f}x the time"
    return experiment.judge(value, grown <= 1.25, grown <= 2)


@check("K7", weight=2)
def sizes(experiment: Experiment) -> Seen:
    """Parameters at the published sizes, beside the plain vision transformer's."""
    counts = {
        name: [parameters_of(lambda n=name, kind=kind: KAT.named(n, kind)) for kind in ("rational", "mlp")]  # type: ignore[misc]
        for name in PUBLISHED
    }
    value = ", ".join(f"{name} {ours:,} (ViT {plain:,})" for name, (ours, plain) in counts.items())
    exact = [ours for ours, _ in counts.values()] == [5_718_328, 22_051_576, 86_568_568]
    return experiment.judge(value, exact and all(ours - plain == 912 for ours, plain in counts.values()))


def _digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits in random order at half their resolution: (10000, 1, 14, 14) within -0.5 and 0.5, labels."""
    images, labels = mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    halved = F.avg_pool2d(images[order, None].float() / 255 - 0.5, 2, padding=1)
    return halved[:, :, :14, :14], labels[order]


def _trained(
    arm: str, images: Tensor, labels: Tensor, held: int, steps: int, seed: int
) -> tuple[list[float], float, float]:
    """Losses, median seconds of a step and accuracy on the first ``held`` images of a small vision transformer."""
    torch.manual_seed(seed)
    model = with_activation(arm, KATConfig(14, 2, 1, 10, 64, 4, 4))
    return fit_timed(model, images, labels, held, steps, seed)


@shared(weight=250)
def training(experiment: Experiment) -> dict[str, tuple[list[float], float, float]]:
    """Arm -> losses, seconds of a step and accuracy; each on the whole machine, as their times are compared."""
    steps = experiment.at(quick=2, normal=experiment.steps(500, least=5))
    # The slow arm needs no more steps than the comparison of the two curves and their times.
    plan = {arm: min(steps, 60) if arm == "shared additions" else steps for arm in ACTIVATIONS}
    images, labels = _digits()
    held = experiment.at(quick=100, normal=2000)
    arms = {name: (name, images, labels, held, count, experiment.seed) for name, count in plan.items()}
    return succeeded(experiment.arms(_trained, arms, processes=1), plan)[0]


def _step(arm: str, config: KATConfig, batch: int, seed: int) -> Callable[[], object]:
    """A training step of an arm on a batch of noise."""
    torch.manual_seed(seed)
    return noise_step(with_activation(arm, config), batch, config.image, seed)


@shared(weight=50)
def published_steps(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Size, images and pixels in words -> arm -> seconds of a training step, the least of two after one to warm up."""
    found = {}
    for number, (name, batch) in enumerate(BATCHES.items()):
        experiment.tell(name, number / len(BATCHES))
        width, layers, heads = PUBLISHED[name]
        image, layers, batch = experiment.at(quick=(32, 1, 1), normal=(224, layers, batch))
        config = KATConfig(image, width=width, layers=layers, heads=heads, attention_start="normal")
        calls = {arm: _step(arm, config, batch, experiment.seed) for arm in ACTIVATIONS}
        times = alternating(calls, experiment.at(quick=1, normal=2))
        found[f"{name}, {batch} of {image} pixels"] = {arm: min(several) for arm, several in times.items()}
    return found


@check("K2", weight=1, needs=120)
def training_speed(experiment: Experiment) -> Seen:
    """A training step with either gradient at the published sizes and small, and whether both learn the same."""
    found, large = experiment.once(training), experiment.once(published_steps)
    (naive, slow, _), (block, fast, _) = found["shared additions"], found["block sums"]
    apart = max(abs(p - q) for p, q in zip(naive[:50], block[:50], strict=True))
    value = (
        f"step of a small vision transformer: shared additions {slow * 1e3:.0f} ms, block sums {fast * 1e3:.0f} ms "
        f"({slow / fast:.1f}x), GELU {found['GELU'][1] * 1e3:.0f} ms; losses of 50 steps within {apart:.1e}; "
    )
    gains = {name: s["shared additions"] / s["block sums"] for name, s in large.items()}
    value += ", ".join(
        f"{name}: {s['shared additions']:.2f} s, {s['block sums']:.2f} s ({gains[name]:.1f}x), GELU {s['GELU']:.2f} s"
        for name, s in large.items()
    )
    faster = min(gains.values()) > 1
    return experiment.judge(value, fast <= 0.5 * slow and apart <= 1e-3 and faster, fast < slow and faster)


@check("K5", weight=1, needs=120)
def accuracy(experiment: Experiment) -> Seen:
    """Accuracy on digits, beside the same transformer with GELU."""
    found = experiment.once(training)
    steps = len(found["GELU"][0])
    value = f"handwritten digits, {steps} steps: rational {found['block sums'][2]:.3f}, GELU {found['GELU'][2]:.3f}"
    return experiment.judge(value, found["block sums"][2] >= found["GELU"][2] - 0.01)

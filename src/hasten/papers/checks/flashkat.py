"""FlashKAT: Understanding and Addressing Performance Bottlenecks in the Kolmogorov-Arnold Transformer."""

from __future__ import annotations

import functools
import itertools
import time
from typing import TYPE_CHECKING, Any

from hasten.cost.measuring import least_seconds
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


@functools.cache
def _tensors(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal inputs and gradients of width 768, and the coefficients of swish: one numerator, eight denominators."""
    import torch

    from hasten.nn.rational import start_coefficients

    generator = torch.Generator().manual_seed(seed)
    top, bottom = start_coefficients("swish")
    x, grad = torch.randn(2, rows, 768, generator=generator)
    return x, grad, torch.tensor([top]), torch.tensor([bottom]).repeat(8, 1)


@functools.cache
def _backward_times(rows: int, seed: int) -> dict[str, float]:
    """Seconds of each backward kernel at the same size, in one run."""
    import torch

    from hasten.kernels import native
    from hasten.kernels.rational import naive_backward, reference

    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    x, grad, a, b = _tensors(rows, seed)
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    value = reference(leaves[0], leaves[1], leaves[2], 8)
    return {
        "block": least_seconds(lambda: torch.ops.hasten.rational_backward(grad, x, a, b, 8), 10),
        "naive": least_seconds(lambda: naive_backward(grad, x, a, b, 8), 2),
        "naive, polynomials 8 times": least_seconds(lambda: naive_backward(grad, x, a, b, 8, repeats=8), 2),
        "GELU": least_seconds(lambda: torch.ops.aten.gelu_backward(grad, x), 10),
        "autograd": least_seconds(lambda: torch.autograd.grad(value, leaves, grad, retain_graph=True), 3),
    }


def _rows(experiment: Experiment) -> int:
    return 16 * 197 if experiment.paper_budget >= 30 else 2 * 197


@check("K1", needs=30)
def _slow_activation(experiment: Experiment) -> Seen:
    times = _backward_times(_rows(experiment), experiment.seed)
    ratio = times["naive"] / times["GELU"]
    value = f"backward of one activation: shared additions {times['naive'] * 1e3:.1f} ms, GELU {times['GELU'] * 1e3:.2f} ms, {ratio:.0f}x"
    return experiment.judge(value, ratio >= 10, ratio > 1)


@check("K3", needs=30)
def _backward_kernel(experiment: Experiment) -> Seen:
    from hasten.kernels.rational import shared_additions

    rows = _rows(experiment)
    times = _backward_times(rows, experiment.seed)
    faster = {name: seconds / times["block"] for name, seconds in times.items()}
    fewer = 1024 * 197 * 768 * 10 / shared_additions(1024 * 197, 8)
    value = (
        f"({rows}, 768): block sums {times['block'] * 1e3:.2f} ms, {faster['naive']:.0f}x faster than shared additions, "
        f"{faster['autograd']:.1f}x than autograd of the formula, {1 / faster['GELU']:.2f}x the time of GELU's; at the "
        f"paper's size {fewer:,.0f}x fewer shared additions"
    )
    holds = faster["naive"] >= 10 and faster["autograd"] >= 5 and faster["GELU"] >= 0.5 and fewer == 6144
    return experiment.judge(value, holds, faster["naive"] > 1)


@check("K4", needs=30)
def _rounding(experiment: Experiment) -> Seen:
    import torch

    from hasten.kernels.rational import backward_reference, naive_backward

    x, grad, a, b = _tensors(_rows(experiment), experiment.seed)
    exact = backward_reference(grad.double(), x.double(), a.double(), b.double(), 8)
    ours = torch.ops.hasten.rational_backward(grad, x, a, b, 8)
    theirs = naive_backward(grad, x, a, b, 8)
    errors = [[float((found[i] - exact[i]).abs().mean()) for i in (1, 2)] for found in (ours, theirs[:3])]
    ratios = [naive / block for block, naive in zip(*errors)]
    value = (
        f"mean error against fp64: numerator {errors[0][0]:.1e} (shared additions {errors[1][0]:.1e}, {ratios[0]:.0f}x), "
        f"denominator {errors[0][1]:.1e} ({errors[1][1]:.1e}, {ratios[1]:.0f}x)"
    )
    return experiment.judge(value, min(ratios) >= 8, min(ratios) > 1)


@check("K6", needs=30)
def _stalls(experiment: Experiment) -> Seen:
    """Eight times the polynomial arithmetic: does the kernel with shared additions notice?"""
    times = _backward_times(_rows(experiment), experiment.seed)
    grown = times["naive, polynomials 8 times"] / times["naive"]
    value = f"the polynomials evaluated 8 times: {grown:.2f}x the time"
    return experiment.judge(value, grown <= 1.25, grown <= 2)


@check("K7")
def _sizes(experiment: Experiment) -> Seen:
    import torch

    from hasten.models.vision.kat import KAT, PUBLISHED

    counts = {}
    for name in PUBLISHED:
        with torch.device("meta"):
            pair = KAT.named(name), KAT.named(name, feed_forward="mlp")
        counts[name] = [sum(p.numel() for p in model.parameters()) for model in pair]
    value = ", ".join(f"{name} {ours:,} (ViT {plain:,})" for name, (ours, plain) in counts.items())
    exact = [ours for ours, _ in counts.values()] == [5_718_328, 22_051_576, 86_568_568]
    return Seen(value, exact and all(ours - plain == 912 for ours, plain in counts.values()))


@functools.cache
def _training(steps: int, seed: int) -> dict[str, tuple[list[float], float, float]]:
    """Losses, seconds a step and test accuracy of three small vision transformers on handwritten digits."""
    import torch
    from torch import nn

    from hasten.data.images import mnist
    from hasten.kernels.rational import naive_backward, rational
    from hasten.models.vision.kat import KAT, KATConfig
    from hasten.train import fit

    class Naive(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int) -> Tensor:
            ctx.save_for_backward(x, a, b)
            ctx.groups = groups
            return rational(x, a, b, groups)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            x, a, b = ctx.saved_tensors
            return (*naive_backward(grad, x, a, b, ctx.groups)[:3], None)

    class NaiveRational(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return Naive.apply(x, self.inner.numerator, self.inner.denominator, self.inner.groups)

    images, labels = mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = nn.functional.avg_pool2d(images[order, None].float() / 255 - 0.5, 2, padding=1)[:, :, :14, :14]
    labels = labels[order]
    held = slice(0, 2000)
    found = {}
    for arm in ("GELU", "shared additions", "block sums"):
        torch.manual_seed(seed)
        kind = "mlp" if arm == "GELU" else "rational"
        model = KAT(KATConfig(14, 2, 1, 10, 64, 4, 4, feed_forward=kind))  # type: ignore[arg-type]
        if arm == "shared additions":
            model.replace_activations(NaiveRational)
        generator = torch.Generator().manual_seed(seed)

        def loss(step: int, model: nn.Module = model, generator: Any = generator) -> Tensor:
            chosen = torch.randint(2000, len(images), (64,), generator=generator)
            return nn.functional.cross_entropy(model(images[chosen]), labels[chosen])

        # The slow arm needs no more steps than the comparison of the two curves and their times.
        counted = min(steps, 60) if arm == "shared additions" else steps
        marks = [time.perf_counter()]
        losses = fit(
            model, loss, steps=counted, peak=1e-3, warmup=10 / counted, final=1.0, weight_decay=0.05,
            progress=lambda step, value, marks=marks: marks.append(time.perf_counter()),  # type: ignore[misc]
        )  # fmt: skip
        times = sorted(b - a for a, b in itertools.pairwise(marks))
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in images[held].split(500)]) == labels[held]
        found[arm] = (losses, times[len(times) // 2], float(right.float().mean()))
    return found


@check("K2", needs=100)
def _training_speed(experiment: Experiment) -> Seen:
    experiment.run.progress("flashkat K2: training three small vision transformers", 0.5)
    found = _training(max(5, min(500, int(experiment.paper_budget * 500 / 300))), experiment.seed)
    (naive, slow, _), (block, fast, _) = found["shared additions"], found["block sums"]
    apart = max(abs(p - q) for p, q in zip(naive[:50], block[:50]))
    value = (
        f"step of a small vision transformer: shared additions {slow * 1e3:.0f} ms, block sums {fast * 1e3:.0f} ms "
        f"({slow / fast:.1f}x), GELU {found['GELU'][1] * 1e3:.0f} ms; losses of 50 steps within {apart:.1e}"
    )
    return experiment.judge(value, fast <= 0.5 * slow and apart <= 1e-3, fast < slow)


@check("K5", needs=100)
def _accuracy(experiment: Experiment) -> Seen:
    steps = max(5, min(500, int(experiment.paper_budget * 500 / 300)))
    found = _training(steps, experiment.seed)
    value = f"handwritten digits, {steps} steps: rational {found['block sums'][2]:.3f}, GELU {found['GELU'][2]:.3f}"
    return experiment.judge(value, found["block sums"][2] >= found["GELU"][2] - 0.01)

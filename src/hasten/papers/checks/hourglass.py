"""Checks of Rethinking the shape convention of an MLP."""

from __future__ import annotations

from typing import Any

import torch

from hasten.data.images import digits
from hasten.errors import MissingExtraError
from hasten.nn import Hourglass
from hasten.nn.hourglass import Lift
from hasten.papers.experiment import Experiment, Seen, check, succeeded
from hasten.search.problem import Infeasible
from hasten.spaces.hourglass import TASKS, WIDTH, Kind, restore, shape

# Four configurations for each arm at 100,000 parameters; convention allows two depths only, so it has two rates each.
GRID: dict[str, list[dict[str, Any]]] = {
    "conventional": [{"layers": n, "rate": rate} for n in (1, 2) for rate in (2e-3, 4e-3)],
    "narrow": [{"layers": n, "rate": 2e-3} for n in (3, 5, 8, 12)],
    "hourglass": [{"layers": n, "ratio": ratio, "rate": 2e-3} for n, ratio in ((3, 2), (4, 3), (5, 3), (8, 3))],
}

# Likewise at 30,000, for digits of 64 pixels.
DIGITS: dict[str, list[dict[str, Any]]] = {
    "conventional": [{"layers": n, "rate": rate} for n, rate in ((1, 2e-3), (2, 2e-3), (3, 2e-3), (2, 4e-3))],
    "narrow": [{"layers": n, "rate": 2e-3} for n in (4, 5, 8, 12)],
    "hourglass": [{"layers": n, "ratio": ratio, "rate": 2e-3} for n, ratio in ((2, 2), (4, 2), (4, 3), (8, 2))],
}


def _trained(params: dict[str, Any], parameters: int, steps: int, seed: int, task: Kind = "denoise") -> float:
    """PSNR of one configuration, dB."""
    torch.manual_seed(seed)
    return restore(shape(params, parameters, TASKS[task].width), steps, params["rate"], seed, task)


def _architecture(lift: Any, latent: int, hidden: int, steps: int, seed: int) -> float:
    """PSNR of an Hourglass of four blocks given outright, dB."""
    torch.manual_seed(seed)
    return restore(Hourglass(WIDTH, hidden=hidden, layers=4, latent=latent, lift=lift), steps, 2e-3, seed)


def _steps(experiment: Experiment) -> int:
    return experiment.at(quick=1, normal=experiment.steps(1000))


def _front(experiment: Experiment, parameters: int, task: Kind) -> dict[str, tuple[float, dict[str, Any]]]:
    """Each kind's best configuration at a size, and its mean PSNR over three seeds."""
    steps, (first, *others) = _steps(experiment), experiment.seeds(3)
    of = {
        f"{kind} {i}": {"shape": kind} | params
        for kind, several in (DIGITS if task == "digits" else GRID).items()
        for i, params in enumerate(experiment.at(quick=several[:2], normal=several))
    }
    plan = {name: (params, parameters, steps, first, task) for name, params in of.items()}
    scores, _ = succeeded(experiment.arms(_trained, plan))
    best = {kind: max((n for n in scores if n.startswith(kind)), key=lambda n: scores[n]) for kind in GRID}
    again = {f"{name}, seed {s}": (of[name], parameters, steps, s, task) for name in best.values() for s in others}
    more, _ = succeeded(experiment.arms(_trained, again), again) if again else ({}, "")
    mean = {
        name: (scores[name] + sum(more[f"{name}, seed {s}"] for s in others)) / (1 + len(others))
        for name in best.values()
    }
    return {kind: (mean[name], of[name]) for kind, name in best.items()}


def _size(params: dict[str, Any], parameters: int, width: int = WIDTH) -> str:
    """Widths, trainable parameters and FLOP of a configuration, in words."""
    network = shape(params, parameters, width)
    sizes = network.sizes()
    latent = f"d_z {network.latent}, " if params["shape"] == "hourglass" else ""
    return f"{latent}d_h {network.hidden}, {sizes.trainable:,} parameters, {sizes.flops:,} FLOP"


def _compared(experiment: Experiment, parameters: int, task: Kind) -> tuple[str, float]:
    """Each kind's best in words, and the Hourglass's dB over the conventional shape's."""
    found = _front(experiment, parameters, task)
    told = ", ".join(
        f"{kind} {score:.2f} dB (L {params['layers']}, {_size(params, parameters, TASKS[task].width)})"
        for kind, (score, params) in found.items()
    )
    gain, over = (found["hourglass"][0] - found[kind][0] for kind in ("conventional", "narrow"))
    return f"{task}: {told}; Hourglass {gain:+.2f} over convention, {over:+.2f} over the narrow control", gain


def _control(experiment: Experiment) -> str:
    """What the shapes give where the paper's reading does not hold: few images, and a read-out of half the parameters."""
    try:
        digits()
    except MissingExtraError as error:
        return f"no control on digits ({error})"
    return f"as a control 8 x 8 digits, 1,400 images, 30,000 parameters, {_compared(experiment, 30_000, 'digits')[0]}"


@check("H1", weight=300, needs=120)
def denoising(experiment: Experiment) -> Seen:
    """Equal grids and steps, at 100,000 trainable parameters; the narrow control and one of few data stand beside."""
    tasks: tuple[Kind, ...] = ("denoise", "superres")
    told, gains = zip(*(_compared(experiment, 100_000, task) for task in tasks), strict=True)
    value = f"12 x 12 patches of photographs, 100,000 parameters, mean of 3 seeds; {'; '.join(told)}; {_control(experiment)}"
    # The criterion is the denoising task's, where noise is 0.25.
    return experiment.judge(value, gains[0] >= 0.5 and gains[1] >= 0, gains[0] > 0)


@check("H2", weight=80, needs=120)
def frozen(experiment: Experiment) -> Seen:
    """A frozen lift against a trained one: at the same architecture, and at as many parameters."""
    arms: dict[str, tuple[Lift, int, int]]
    arms = {"frozen": ("frozen", 432, 9), "trained": ("trained", 432, 9), "equal": ("trained", 259, 9)}
    seeds, steps = experiment.seeds(3), _steps(experiment)
    plan = {f"{name} {seed}": (*arm, steps, seed) for name, arm in arms.items() for seed in seeds}
    scores, _ = succeeded(experiment.arms(_architecture, plan), plan)
    mean = {name: sum(scores[f"{name} {seed}"] for seed in seeds) / len(seeds) for name in arms}
    size = {
        name: Hourglass(WIDTH, hidden=hidden, layers=4, latent=latent, lift=lift).sizes().trainable
        for name, (lift, latent, hidden) in arms.items()
    }
    value = (
        f"frozen {mean['frozen']:.2f} dB ({size['frozen']:,} trainable), trained at the same architecture "
        f"{mean['trained']:.2f} ({size['trained']:,}), trained with as many parameters {mean['equal']:.2f} "
        f"({size['equal']:,})"
    )
    holds = abs(mean["frozen"] - mean["trained"]) <= 0.15 and mean["frozen"] >= mean["equal"] - 0.05
    return experiment.judge(value, holds, mean["frozen"] >= mean["equal"])


@check("H3", weight=1)
def trend(experiment: Experiment) -> Seen:
    """The best depth and widths at three sizes, beside the conventional shape's; about 25 minutes.

    The smallest size has room for every ratio, so that none is forced on it.
    """
    experiment.require(1500)
    sizes, depths, ratios = experiment.at(
        quick=((100_000, 200_000), (2,), (2,)), normal=((100_000, 200_000, 400_000), (2, 4, 8), (2, 3, 4))
    )
    grid: dict[str, list[dict[str, Any]]] = {
        "hourglass": [{"layers": n, "ratio": ratio, "rate": 2e-3} for n in depths for ratio in ratios],
        "conventional": [{"layers": n, "rate": 2e-3} for n in (1, *depths)],
    }
    plan: dict[str, tuple[dict[str, Any], int, int, int]] = {}
    for kind, several in grid.items():
        for parameters in sizes:
            for number, chosen in enumerate(several):
                params = {"shape": kind} | chosen
                try:
                    shape(params, parameters)
                except Infeasible:
                    continue
                steps = experiment.at(quick=1, normal=1000)
                plan[f"{kind} {parameters:,} {number}"] = (params, parameters, steps, experiment.seed)
    scores, failed = succeeded(experiment.arms(_trained, plan))
    told: list[str] = []
    trends: dict[str, list[Hourglass]] = {}
    for kind in grid:
        for parameters in sizes:
            best = max((n for n in scores if n.startswith(f"{kind} {parameters:,} ")), key=lambda n: scores[n])
            params = plan[best][0]
            trends.setdefault(kind, []).append(shape(params, parameters))
            told.append(f"{kind}, L {params['layers']}, {_size(params, parameters)}: {scores[best]:.2f} dB")
    deep = [len(network.blocks) for network in trends["hourglass"]]
    wide = [network.latent for network in trends["hourglass"]]
    inner = [network.hidden for network in trends["conventional"]]
    rises = deep == sorted(deep) and wide == sorted(wide) and (deep[-1] > deep[0] or wide[-1] > wide[0])
    return experiment.judge("; ".join(told) + failed, rises and inner[-1] > inner[0], rises)


@check("H4", weight=1)
def stored(experiment: Experiment) -> Seen:
    """Numbers that a file must hold, and whether the lift can be made again from its seed, which is one of them."""
    one, again, trained = (
        Hourglass(WIDTH, hidden=9, layers=4, latent=432, lift=kind, seed=3) for kind in ("frozen", "frozen", "trained")
    )
    kept = [sum(t.numel() for t in model.state_dict().values()) for model in (one, trained)]
    assert one.lift is not None
    assert again.lift is not None
    same = torch.equal(one.lift, again.lift)
    value = (
        f"stored {kept[0]:,} against {kept[1]:,}: {kept[1] - kept[0]:,} fewer, which is d_z d_x less the seed and the width "
        f"that it is made from; made again alike: {same}"
    )
    return experiment.judge(value, same and kept[1] - kept[0] == 432 * WIDTH - 2)

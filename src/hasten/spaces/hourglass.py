"""Shapes of a residual MLP that cleans photographs of noise, at a number of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.nn import functional as F

from hasten.nn.hourglass import Hourglass
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space
from hasten.tasks.restoration import NOISE, SIDE, Denoise, DenoiseDigits, Restoration, SuperResolution
from hasten.train import fit

Kind = Literal["denoise", "superres", "digits"]
TASKS: dict[Kind, type[Restoration]] = {"denoise": Denoise, "superres": SuperResolution, "digits": DenoiseDigits}
WIDTH = SIDE * SIDE
ENVIRONMENT: None = None  # a try trains a network: nothing to explore in thousands of steps


def shape(params: Mapping[str, Any], parameters: int, width: int = WIDTH) -> Hourglass:
    """The network of a point that has as many trainable parameters as asked, or just fewer.

    An Hourglass takes the largest inner width at its ratio, and what that leaves over widens the latent; the others'
    first blocks have one inner unit more.

    Args:
        params: of the point.
        parameters: at most so many.
        width: pixels of input and output.

    Raises:
        Infeasible: no inner width fits, or a conventional block would be narrower inside than outside.
    """
    layers = int(params["layers"])
    if params["shape"] == "hourglass":
        latent = width * int(params["ratio"])
        hidden = (parameters - latent * width) // (2 * layers * latent)
        if hidden < 1:
            raise Infeasible("the read-out takes all parameters")
        latent = parameters // (width + 2 * layers * hidden)
        return Hourglass(width, hidden=hidden, layers=layers, latent=latent, lift=params.get("lift", "frozen"))
    hidden, more = divmod(parameters // (2 * width), layers)
    if hidden < 1 or (params["shape"] == "conventional") != (hidden >= width):
        raise Infeasible(f"{layers} blocks of {hidden} inside are not {params['shape']}")
    return Hourglass(width, hidden=[hidden + (i < more) for i in range(layers)], layers=layers)


def psnr(network: Hourglass, seed: int, task: Kind = "denoise") -> float:
    """Peak signal-to-noise ratio on the test patches, dB: -10 log10 of the mean squared error."""
    restoration = TASKS[task]()
    test = restoration.parts["test"]
    given = restoration.spoil(test, torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        return -10 * math.log10(float(F.mse_loss(network(given), test)))


def restore(network: Hourglass, steps: int, rate: float, seed: int, task: Kind = "denoise") -> float:
    """Trains on freshly spoiled patches and gives the PSNR on the test patches, dB."""
    restoration = TASKS[task]()
    batches = restoration.batches("training", 256, seed)
    fit(
        network,
        lambda step: restoration.loss(network, next(batches)),
        steps=steps,
        peak=rate,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        warmup=0.3,
    )
    return psnr(network, seed, task)


def problem(seed: int = 0, steps: int = 1000, task: Kind = "denoise") -> Problem:
    """PSNR against parameters, over shape, depth, latent width and learning rate (arXiv 2510.01796, section 4).

    Args:
        seed: of weights, batches and noise.
        steps: of each training.
        task: ``denoise``, or ``superres``: from half the resolution; ``digits``: small digits to be cleaned of noise.
    """
    width = TASKS[task].width
    side = round(width**0.5)
    space = Space(
        [
            ordinal("parameters", [50_000, 100_000, 300_000]),
            categorical("shape", ["conventional", "narrow", "hourglass"]),
            ordinal("layers", [1, 2, 3, 4, 5, 8, 12]),
            ordinal("ratio", [2, 3, 4, 5], when={"shape": "hourglass"}),
            ordinal("rate", [1e-3, 2e-3, 4e-3]),
        ]
    )

    def evaluate(params: Params) -> dict[str, Any]:
        torch.manual_seed(seed)
        chosen: dict[str, Any] = dict(params)
        network = shape(chosen, int(chosen["parameters"]), width)
        found = restore(network, steps, float(chosen["rate"]), seed, task)
        sizes = network.sizes()
        return {
            "psnr": found, "trainable": sizes.trainable, "hidden": network.hidden, "latent": network.latent,
            "stored": sizes.stored, "flops": sizes.flops,
        }  # fmt: skip

    return Problem(
        "hourglass" if task == "denoise" else f"hourglass-{task}",
        space,
        (Objective("psnr", "maximize", "dB"), Objective("trainable", "minimize", "parameters")),
        evaluate,
        identity={"seed": str(seed), "steps": str(steps), "task": f"{task} {side}x{side}, noise {NOISE}"},
    )

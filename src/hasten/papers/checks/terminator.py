"""Checks of HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.models.matching import parameters_of
from hasten.models.vision.resnet9 import ResNet9
from hasten.models.vision.terminator import Terminator, TerminatorConfig
from hasten.nn.hyper_kernels import InstanceStandardized, SlowFastBlock, freeze_batch_statistics
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.tasks.images import Digits, LabelledImages
from hasten.tasks.placed_digits import PlacedDigits
from hasten.train.fitting import parameter_groups
from hasten.train.kar import Kar3
from hasten.train.loop import train
from hasten.train.schedules import Cosine, Product, Warmup

_COUNTS, _BATCH, _STEPS = (1000, 200, 597), 64, 12 * 1000 // 64  # twelve epochs
_RATES = {"Kar3": (6e-4, 1.2e-3, 2.4e-3), "AdamW": (1e-3, 3e-3, 1e-2)}
# Network, optimizer and whether the slow loss is in it.
_ARMS = {
    "Terminator": ("Terminator", "Kar3", True),
    "with AdamW": ("Terminator", "AdamW", True),
    "without slow loss": ("Terminator", "Kar3", False),
    "ResNet": ("ResNet", "AdamW", False),
}


class _Arm(NamedTuple):
    validation: float
    test: float
    early: float  # accuracy on test images after a third of the training
    seconds: float
    parameters: int


def _model(network: str, side: int) -> nn.Module:
    """The small Terminator, or the residual network whose parameters come nearest to its."""
    config = TerminatorConfig(side, 1, 10, (12, 3), (3, 2), (0.0, 0.05), ((), ()), hidden=(32, 16, 16, 8, 16))
    model = Terminator(config)
    return model if network == "Terminator" else ResNet9.of_size(parameters_of(model), 10, 1)


def _task(name: str, quick: bool) -> LabelledImages:
    counts = (64, 64, 64) if quick else _COUNTS
    wide = name.endswith("16 x 16")
    return PlacedDigits(counts, 16, permuted=True) if wide else Digits(counts, permuted=name.startswith("permuted"))


class _Plan(NamedTuple):
    images: str
    arm: str
    rate: float
    steps: int
    quick: bool
    seconds: float | None = None


def _trained(plan: _Plan, seed: int) -> _Arm:
    network, optimizer, slow = _ARMS[plan.arm]
    task = _task(plan.images, plan.quick)
    torch.manual_seed(seed)
    model = _model(network, task.parts["test"][0].shape[-1])
    batches, kar = task.batches("training", _BATCH, seed), optimizer == "Kar3"

    def loss(step: int) -> Tensor:
        batch = next(batches)
        if isinstance(model, Terminator):
            return model.loss(batch.inputs, batch.targets, slow=slow)
        return F.cross_entropy(model(batch.inputs), batch.targets)

    rate, groups = plan.rate, parameter_groups(model, 0.05)
    chosen = Kar3(model.parameters(), rate) if kar else torch.optim.AdamW(groups, rate)
    trained = train(
        model.train(), loss, optimizer=chosen, steps=None if plan.seconds else plan.steps, seconds=plan.seconds,
        schedule=Product(Warmup(0.08), Cosine()), evaluate=lambda _: task.evaluate(model, "test"),
        every=max(1, plan.steps // 3),
    ).finished(network)  # fmt: skip
    right = [task.evaluate(model.eval(), split) for split in ("validation", "test")]
    return _Arm(right[0], right[1], trained.evaluations[0][1], trained.seconds, parameters_of(model))


def _run(experiment: Experiment, plans: Mapping[str, _Plan], seeds: Sequence[int]) -> dict[str, list[_Arm]]:
    sent = {f"{name}/{seed}": (plan, seed) for name, plan in plans.items() for seed in seeds}
    found, _ = succeeded(experiment.arms(_trained, sent), sent)
    return {name: [found[f"{name}/{seed}"] for seed in seeds] for name in plans}


@shared(weight=60)
def _rates(experiment: Experiment) -> dict[str, float]:
    """Arm -> the best of three rates on validation images after half the epochs, by a seed of its own."""
    steps, most = experiment.at(quick=(2, 1), normal=(experiment.steps(_STEPS // 2, most=600), 3))
    rates = {name: _RATES[_ARMS[name][1]][:most] for name in ("Terminator", "with AdamW", "ResNet")}
    plans = {f"{n} {r}": _Plan("digits", n, r, steps, experiment.quick) for n, row in rates.items() for r in row}
    found = _run(experiment, plans, [experiment.seed + 1000])
    best = {n: max(row, key=lambda rate: found[f"{n} {rate}"][0].validation) for n, row in rates.items()}
    return {**best, "without slow loss": best["Terminator"]}


@shared(weight=140)
def _arms(experiment: Experiment, images: str) -> dict[str, list[_Arm]]:
    """Name -> an arm a seed, two where pixels are permuted; on digits the ResNet again for the Terminator's seconds."""
    rates, seeds = experiment.once(_rates), experiment.seeds(3 if images == "digits" else 2, long=5)
    whole = _STEPS // 2 if images.endswith("16 x 16") else _STEPS  # a step of the larger ones takes twice as long
    steps = experiment.at(quick=2, normal=experiment.steps(whole, most=600))
    names = _ARMS if images == "digits" else ("Terminator", "ResNet")
    plans = {name: _Plan(images, name, rates[name], steps, experiment.quick) for name in names}
    arms = _run(experiment, plans, seeds)
    if images != "digits":
        return arms
    seconds = 0.05 if experiment.quick else sum(a.seconds for a in arms["Terminator"]) / len(seeds)
    return arms | _run(experiment, {"ResNet for as long": plans["ResNet"]._replace(seconds=seconds)}, seeds)


def _points(arms: list[_Arm], early: bool = False) -> tuple[float, float]:
    """The mean in percent, and half the spread."""
    values = [100 * (a.early if early else a.test) for a in arms]
    return sum(values) / len(values), (max(values) - min(values)) / 2


def _gain(experiment: Experiment, first: str, second: str, early: bool = False) -> tuple[float, float, str]:
    """Points of an arm above another's on plain digits, the larger spread, and both in words."""
    arms = experiment.once(_arms, "digits")
    (mean, spread), (other, wide) = _points(arms[first], early), _points(arms[second], early)
    return mean - other, max(spread, wide), f"{first} {mean:.1f} ± {spread:.1f} %, {second} {other:.1f} ± {wide:.1f} %"


@check("Z1", weight=1, needs=240)
def _beats(experiment: Experiment) -> Seen:
    """Pixels in an order that tells nothing: a point more than a residual network of equal parameters."""
    images = ("digits", "permuted digits", "permuted canvases of 16 x 16")
    found = {name: experiment.once(_arms, name) for name in images[: 2 if experiment.quick else None]}
    gains = [_points(a["Terminator"])[0] - _points(a["ResNet"])[0] for a in found.values()][1:]
    value = "; ".join(
        f"{task}, {name}: {_points(a)[0]:.1f} ± {_points(a)[1]:.1f} % ({a[0].parameters:,}, {a[0].seconds:.1f} s)"
        for task, arms in found.items()
        for name, a in arms.items()
    )
    return experiment.judge(value, min(gains) >= 1, max(gains) > 0)


@check("Z2", weight=1, needs=240)
def _faster(experiment: Experiment) -> Seen:
    """Accuracy after a third of the same training, plain digits, beside a residual network of equal parameters."""
    gain, _, value = _gain(experiment, "Terminator", "ResNet", early=True)
    return experiment.judge(f"after a third of the steps {value}", gain > 0)


@check("Z3", weight=5)
def _stable(experiment: Experiment) -> Seen:
    """Twenty blocks without a sum around any: the mean of every standardized map, sizes of outputs; statistics kept."""
    torch.manual_seed(experiment.seed)
    x, largest, means = torch.randn(32, 12, 8, 8), [], list[float]()
    blocks = [SlowFastBlock(12, 8, 1, hidden=(16, 8, 8, 8, 8)) for _ in range(experiment.at(quick=2, normal=20))]
    net, images = nn.Sequential(*blocks), torch.randn(64, 12, 8, 8)
    for layer in (m for m in net.modules() if isinstance(m, InstanceStandardized)):
        layer.register_forward_hook(lambda _, given, made: means.append(float(made.mean((-2, -1)).abs().max())))
    with torch.no_grad():
        for block in blocks:
            x = block(x)
            largest.append(float(x.abs().max()))
        count, mean = len(means), max(means)
        alone, batch = net.eval()(images[:4]), net(images)[:4]
        freeze_batch_statistics(net, images)
        kept = net(images[:4])
    apart, frozen = ((a - batch).norm() / batch.norm() for a in (alone, kept))
    value = (
        f"{count} means at most {mean:.1e}; largest outputs {largest[0]:.1f} behind block 1, {max(largest):.1f} behind "
        f"any of {len(blocks)}; four alone {100 * apart:.0f} % from those among 64, {100 * frozen:.4f} % with kept ones"
    )
    return experiment.judge(value, mean < 1e-5 and all(v <= 10 * largest[0] for v in largest), mean < 1e-5)


@check("Z4", weight=1, needs=240)
def _slow_loss(experiment: Experiment) -> Seen:
    """With and without it: more by more than the seeds' spread."""
    gain, spread, value = _gain(experiment, "Terminator", "without slow loss")
    return experiment.judge(value, gain > spread, gain > 0)


@check("Z5", weight=1, needs=240)
def _kar(experiment: Experiment) -> Seen:
    """The same network and epochs, each optimizer at the best of three rates: a point more than AdamW."""
    gain, _, value = _gain(experiment, "Terminator", "with AdamW")
    kar, adamw = (experiment.once(_rates)[name] for name in ("Terminator", "with AdamW"))
    return experiment.judge(f"{value}; rates {kar:g} of Kar3 and {adamw:g} of AdamW", gain >= 1, gain > 0)


@check("Z6", weight=1)
def _size(experiment: Experiment) -> Seen:
    """The published network for CIFAR-10."""
    with torch.device("meta"):
        parameters = parameters_of(Terminator.named("terminator-cifar10"))
    return experiment.judge(f"{parameters:,}", parameters == 1_336_855)

"""Checks of Make Deep Networks Shallow Again."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hasten.cost.measuring import alternating
from hasten.models import ResidualRun, parallelize, residual_runs
from hasten.nn import ResidualStack, fuse_parallel, to_parallel
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.papers.language_models import fresh_model, real_tokens
from hasten.processes import torch_threads
from hasten.train.depth_study import DeepAndShallow, StudyRun, StudySize, determination_bin, study_run
from hasten.train.loop import train

_SIZES = (StudySize(4, 4), StudySize(8, 8), StudySize(16, 8))
_POOLED = (StudySize(8, 8, 3, True), StudySize(8, 8, 5, True))
_Found = dict[StudySize, DeepAndShallow]


def _both(experiment: Experiment, sizes: Sequence[StudySize], seeds: Sequence[int]) -> _Found:
    """Means over seeds of both networks of each size."""
    steps = experiment.at(quick=2, normal=experiment.steps(562))
    plan = {(size, groups, s): (size, groups, steps, s) for size in sizes for groups in (None, 1) for s in seeds}
    names = {str(key): arguments for key, arguments in plan.items()}
    found, _ = succeeded(experiment.arms(study_run, names), names)

    def mean(size: StudySize, groups: int | None) -> StudyRun:
        return StudyRun.mean(found[str((size, groups, s))] for s in seeds)

    return {size: DeepAndShallow(mean(size, None), mean(size, 1)) for size in sizes}


@shared(weight=100)
def _flat(experiment: Experiment) -> _Found:
    """Networks whose head reads every position."""
    return _both(experiment, experiment.at(quick=_SIZES[:2], normal=_SIZES), experiment.seeds(3))


@shared(weight=40)
def _pooled(experiment: Experiment) -> _Found:
    """Networks whose head reads means over positions: a shallow one of small kernels sees too little."""
    return _both(experiment, _POOLED, experiment.seeds(1, long=3))


@check("H1", weight=1)
def _losses(experiment: Experiment) -> Seen:
    """On digits in place of MNIST, at three ratios of answers to weights: accuracies within a point, the shallow
    network's validation loss at most 0.02 above, and the deep one's training loss below."""
    found = experiment.once(_flat)
    value = "training/validation loss, accuracy: " + "; ".join(
        f"Q {determination_bin(size.determination)} (depth {size.depth}, width {size.width}, {size.determination:.2f}): "
        + ", ".join(
            f"{name} {run.training:.4f}/{run.validation:.3f} {run.accuracy:.1f} %"
            for name, run in zip(("deep", "shallow"), pair, strict=True)
        )
        for size, pair in found.items()
    )

    def near(pair: DeepAndShallow) -> bool:
        deep, shallow = pair
        near = abs(deep.accuracy - shallow.accuracy) <= 1 and shallow.validation <= deep.validation + 0.02
        return near and deep.training < shallow.training

    pairs = list(found.values())
    return experiment.judge(value, all(map(near, pairs)), near(DeepAndShallow.mean(pairs)))


@check("H3", weight=1)
def _under_determined(experiment: Experiment) -> Seen:
    """Below a ratio of 3: the deep network's training loss lower, the shallow one's validation loss no higher. Beside
    it the trained deep networks with their branches put side by side, and heads that average positions."""
    found = {size: pair for size, pair in experiment.once(_flat).items() if size.determination < 3}
    value = "; ".join(
        f"depth {size.depth}, width {size.width}: training {deep.training:.4f} deep, {shallow.training:.4f} shallow, "
        f"validation {deep.validation:.3f} and {shallow.validation:.3f}; the trained deep one put side by side "
        f"{deep.accuracy:.1f} to {deep.converted:.1f} %, {deep.gap:.0%} of its change left out"
        for size, (deep, shallow) in found.items()
    )
    value += "; with a head that averages: " + ", ".join(
        f"kernel {size.kernel} {deep.accuracy:.1f} % deep, {shallow.accuracy:.1f} % shallow"
        for size, (deep, shallow) in experiment.once(_pooled).items()
    )
    lower = [deep.training < shallow.training for deep, shallow in found.values()]
    no_higher = [shallow.validation <= deep.validation for deep, shallow in found.values()]
    return experiment.judge(value, all(lower) and all(no_higher), any(lower) and any(no_higher))


def _times(experiment: Experiment, arms: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Least milliseconds of a call on two threads, in turn."""
    calls = {name: functools.partial(arm, x) for name, arm in arms.items()}
    with torch_threads(experiment.at(quick=1, normal=2)), torch.inference_mode():
        times = alternating(calls, experiment.at(quick=1, normal=60, long=200))
    return {name: 1e3 * min(t) for name, t in times.items()}


@shared(weight=60)
def _language(experiment: Experiment) -> dict[str, float]:
    """Perplexity of SmolLM2 with some of its layers side by side, none of them trained for it but the last."""
    network = fresh_model(experiment.quick).network.eval()
    length, size = experiment.at(quick=16, normal=512), experiment.at(quick=8, normal=128)
    ids = torch.tensor(experiment.once(real_tokens, 8000))[: 9 * length]
    text, rest, kwargs = ids[None, :length], ids[length:], {"use_cache": False}
    (run,) = residual_runs(network, (text[:, :8],), kwargs)
    middle = run.count // 2

    def seen(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model.eval()(text, labels=text, **kwargs).loss.exp())

    def changed(together: int = 2, first: int = 0, count: int = run.count, split: bool = False) -> nn.Module:
        runs = [ResidualRun(run.path, first, count)]
        return parallelize(network, (text[:, :8],), kwargs, together=together, runs=runs, split=split)

    tuned = changed(2, middle, 2)
    found = {
        "as it is": seen(network),
        "attention beside feed-forward in one layer": seen(changed(1, middle, 1, split=True)),
        "in all layers": seen(changed(1, split=True)),
        "two layers of the middle side by side": seen(tuned),
        "the first two": seen(changed(2, 0, 2)),
        "every two": seen(changed()),
    }
    moved = list(tuned.requires_grad_(False).get_submodule(f"{run.path}.{middle}").requires_grad_().parameters())
    steps = experiment.at(quick=1, normal=experiment.steps(20, most=100))

    def loss(step: int) -> Tensor:
        first = step * size % (len(rest) - size)
        made: Tensor = tuned(rest[None, first : first + size], labels=rest[None, first : first + size], **kwargs).loss
        return made

    train(tuned, loss, optimizer=torch.optim.AdamW(moved, 1e-5), steps=steps, keep=0)
    found[f"that pair of the middle after {steps} steps"] = seen(tuned)
    return found


@check("H4", weight=10)
def _faster(experiment: Experiment) -> Seen:
    """Sixteen branches of 32 channels at 32 x 32, a batch of one, two threads: one broad convolution in at most 0.8 of
    the deep stack's time. Beside it layers of a transformer, and what a language model loses by it."""
    depth, width, side = experiment.at(quick=(2, 4, 8), normal=(16, 32, 32))
    branches = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    deep = ResidualStack(branches).eval()
    loop = to_parallel(deep)
    times = _times(experiment, {"deep": deep, "side by side": loop, "broad": fuse_parallel(loop)}, torch.randn(1, width, side, side))  # fmt: skip
    layer = nn.TransformerEncoderLayer(64, 4, 128, norm_first=True, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    x = torch.randn(1, experiment.at(quick=4, normal=64), 64)
    pairs = parallelize(encoder, (x,), together=2, split=True, fused=True)
    layers = _times(experiment, {"one after the other": encoder, "two broad": pairs}, x)
    ratio = times["broad"] / times["deep"]
    told = [", ".join(f"{name} {ms:.2f} ms" for name, ms in t.items()) for t in (times, layers)]
    lost = ", ".join(f"{name} {p:.1f}" for name, p in experiment.once(_language).items())
    value = f"{told[0]}; four transformer layers: {told[1]}; perplexity of a language model: {lost}"
    return experiment.judge(value, ratio <= 0.8, ratio < 1)

"""Checks of Scalable MatMul-free Language Modeling."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hasten.cost.measuring import alternating, kept_for_backward
from hasten.models.language.llama import small_llama
from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM
from hasten.models.matching import parameters_of
from hasten.nn import BitLinear
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.tasks.text import Text
from hasten.train import fit

WIDTH, LAYERS, HIDDEN = 96, 3, 256
RATES = {"ternary": (3e-3, 1e-2, 3e-2), "transformer": (1e-3, 3e-3, 1e-2), "full precision": (1e-3, 3e-3, 1e-2)}


def _loss(kind: str, rate: float, width: int, steps: int, seed: int) -> float:
    """Test loss, nats a character, of a small model of Python sources."""
    task = Text(splits=(0.9, 0.1))
    torch.manual_seed(seed)
    hidden = HIDDEN * width // WIDTH
    model: Any
    if kind == "transformer":
        model = small_llama(task.classes, width=width, inner=hidden, layers=LAYERS, heads=4, positions=256)
    else:
        model = MatMulFreeLM(MatMulFreeConfig(width, LAYERS, task.classes, hidden, ternary=kind == "ternary"))

    def answer(ids: Tensor) -> Tensor:
        found = model(ids)
        return found.logits if kind == "transformer" else found

    batches = task.batches("training", 16, seed)
    fit(model, lambda step: task.loss(answer, next(batches)), steps=steps, peak=rate, weight_decay=0.01)
    return task.evaluate(answer, size=64, batches=1, seed=1)


@shared(weight=300)
def sweep(experiment: Experiment) -> tuple[dict[str, dict[float, float]], str]:
    """Kind of model -> learning rate -> test loss; and a clause on the trainings that failed."""
    steps = experiment.at(quick=2, normal=experiment.steps(600))
    plan = {
        f"{kind}, {rate:g}": (kind, rate, WIDTH, steps, experiment.seed)
        for kind, rates in RATES.items()
        for rate in experiment.at(quick=rates[:1], normal=rates)
    }
    losses, failed = succeeded(experiment.arms(_loss, plan))
    found: dict[str, dict[float, float]] = {kind: {} for kind in RATES}
    for name, loss in losses.items():
        found[plan[name][0]][plan[name][1]] = loss
    return found, failed


@check("B1", weight=1, needs=120)
def parity(experiment: Experiment) -> Seen:
    """Not the paper's tasks: whether a small model keeps up with a Transformer of its size on real text."""
    found, failed = experiment.once(sweep)
    best = {kind: min(losses.values()) for kind, losses in found.items()}
    value = (
        f"characters of Python sources, 0.35M parameters, best of three rates each: MatMul-free {best['ternary']:.3f}, "
        f"Transformer++ {best['transformer']:.3f}, MatMul-free in full precision {best['full precision']:.3f} nats{failed}"
    )
    return experiment.judge(value, False, best["ternary"] <= 1.03 * best["transformer"])


@check("B7", weight=1, needs=120)
def rates(experiment: Experiment) -> Seen:
    """The learning rate that suits each kind best."""
    found, failed = experiment.once(sweep)
    best = {kind: min(losses, key=lambda r: losses[r]) for kind, losses in found.items()}
    value = f"best rate: MatMul-free {best['ternary']:g}, Transformer++ {best['transformer']:g}; losses " + "; ".join(
        f"{kind} " + ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        for kind, losses in found.items()
    )
    return experiment.judge(value + failed, best["ternary"] > best["transformer"])


@check("B2", weight=1)
def scaling(experiment: Experiment) -> Seen:
    """How far behind a Transformer at three widths, each kind at the rate that suits it; about 20 minutes."""
    experiment.require(1500)
    found, _ = experiment.once(sweep)
    best = {kind: min(found[kind], key=lambda r: found[kind][r]) for kind in ("ternary", "transformer")}
    widths, steps = experiment.at(quick=((24, 48), 2), normal=((48, 96, 192), 1200))
    plan = {
        f"{kind} of width {width}": (kind, best[kind], width, steps, experiment.seed)
        for width in widths
        for kind in best
    }
    losses = list(succeeded(experiment.arms(_loss, plan), plan)[0].values())
    gaps = [losses[i] - losses[i + 1] for i in range(0, len(losses), 2)]
    value = ", ".join(f"width {w}: {gap:+.3f}" for w, gap in zip(widths, gaps, strict=True))
    return experiment.judge(
        f"{value} nats behind the Transformer, at rates {best['ternary']:g} and {best['transformer']:g}",
        gaps == sorted(gaps, reverse=True),
        gaps[-1] < gaps[0],
    )


@check("B3", weight=15)
def fused(experiment: Experiment) -> Seen:
    """Bytes kept for the backward and time of a training step, with and without the fused layer."""
    experiment.require(30)
    width, length = experiment.at(quick=(64, 32), normal=(256, 256))
    kept, calls = {}, {}
    for name in ("fused", "plain"):
        torch.manual_seed(experiment.seed)
        model = MatMulFreeLM(MatMulFreeConfig(width, 4, 1024))
        for module in model.modules():
            if isinstance(module, BitLinear):
                module.fused = name == "fused"
        ids = torch.randint(0, 1024, (4, length + 1))

        def step(model: MatMulFreeLM = model, ids: Tensor = ids) -> None:
            logits = model(ids[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

        kept[name] = kept_for_backward(step, model.parameters())
        calls[name] = step
    seconds = {name: min(times) for name, times in alternating(calls, experiment.at(quick=1, normal=3)).items()}
    saved = 1 - kept["fused"] / kept["plain"]
    faster = 1 - seconds["fused"] / seconds["plain"]
    value = (
        f"kept for the backward {kept['plain'] / 1e6:.0f} -> {kept['fused'] / 1e6:.0f} MB ({saved:.0%} less), a step "
        f"{seconds['plain'] * 1e3:.0f} -> {seconds['fused'] * 1e3:.0f} ms ({faster:.0%} faster)"
    )
    return experiment.judge(value, saved >= 0.4 and faster > 0, saved > 0)


def _stored(model: MatMulFreeLM) -> int:
    """Bytes of a model without its table of embeddings, which is looked up and not multiplied."""
    return sum(t.nbytes for name, t in model.state_dict().items() if name != "embeddings.weight")


@check("B4", weight=5)
def memory_13b(experiment: Experiment) -> Seen:
    """Bytes of the weights at the size of the paper's largest estimate (40 layers, width 5120, inner 13824).

    The claim is of memory and latency on a GPU: memory alone shows its direction.
    """
    with torch.device("meta"):
        model = MatMulFreeLM(MatMulFreeConfig(5120, experiment.at(quick=2, normal=40), 32000, 13824))
    full = 2 * parameters_of(model)
    table = 2 * model.embeddings.weight.numel()
    packed = _stored(model.pack())
    value = f"13B: {packed / 1e9:.2f} GB ternary and {table / 1e9:.2f} GB embedding against {full / 1e9:.1f} GB in fp16"
    total = packed + table
    value += "; the paper's latency is of a GPU, which this does not give"
    return experiment.judge(value, False, total <= 4.19e9 and full / total > 6)


@check("B5", weight=15)
def packed(experiment: Experiment) -> Seen:
    """A real model, packed: bytes, and tokens a second against the same shape in bf16."""
    experiment.require(30)
    torch.manual_seed(experiment.seed)
    config = experiment.at(quick=MatMulFreeConfig(128, 2, 1000), normal=MatMulFreeConfig(1024, 8, 8192))
    plain = MatMulFreeLM(MatMulFreeConfig(config.width, config.layers, config.vocabulary, ternary=False))
    models = {"packed": MatMulFreeLM(config).pack(), "bf16": plain.to(torch.bfloat16).eval()}
    ids = torch.zeros(1, 1, dtype=torch.int64)
    with torch.inference_mode():
        calls = {name: functools.partial(model, ids, model.new_state(1)) for name, model in models.items()}
        seconds = {name: min(times) for name, times in alternating(calls, 20).items()}
    sizes = {name: _stored(model) for name, model in models.items()}
    ratio = sizes["bf16"] / sizes["packed"]
    value = (
        f"projections {sizes['packed'] / 1e6:.1f} MB packed, {sizes['bf16'] / 1e6:.1f} MB in bf16: {ratio:.1f}x (2 bits a "
        f"weight: 8x at most); decoding {1 / seconds['packed']:.0f} tokens/s against {1 / seconds['bf16']:.0f} in bf16"
    )
    return experiment.judge(value, ratio > 10, ratio > 1)


@check("B6", weight=2)
def fpga(experiment: Experiment) -> Seen:
    """Bound by the weights' bandwidth: what the board's memory allows, at the power that was published."""
    with torch.device("meta"):
        weights = _stored(MatMulFreeLM.named("matmul-free-1.3b").pack())
    bandwidth = 76.8e9  # four DDR4-2400 channels of the Stratix 10 board
    bound = bandwidth / weights
    value = (
        f"1.3B: {weights / 1e9:.2f} GB a token over 76.8 GB/s allows {bound:.0f} tokens/s, above the published 23.8 and "
        f"above reading (5); 13.67 W, taken from the paper, would be {13.67 / 23.8:.2f} J a token"
    )
    return experiment.judge(value, False, bound >= 23.8)

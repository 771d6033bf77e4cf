"""Checks of Mamba: Linear-Time Sequence Modeling with Selective State Spaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from hasten import estimate, load_device
from hasten.cost.measuring import least_seconds, log_slope
from hasten.errors import HastenError
from hasten.kernels import native
from hasten.kernels.selective_scan import random_inputs, reference, selective_scan
from hasten.models import named
from hasten.models.language.llama import small_llama
from hasten.models.language.mamba_lm import PUBLISHED, MambaConfig, MambaLM, small_mamba
from hasten.models.matching import matching_width, parameters_of
from hasten.nn.plain_attention import whole_attention
from hasten.papers.experiment import Experiment, Seen, check, succeeded
from hasten.runtime.far_tokens import token_seconds
from hasten.tasks import make
from hasten.tasks.text import Text
from hasten.train.fitting import fit_task
from hasten.workload.language import language_model

FULL = ("B", "C", "delta")
FAST: dict[str, Any] = {"weight_decay": 0.01, "betas": (0.9, 0.999), "warmup": 0.3}


def _copying(selective: tuple[str, ...], width: int, steps: int, seed: int, fresh: int = 512) -> float:
    """Accuracy on fresh sequences after training on selective copying."""
    task = make("selective-copying")
    torch.manual_seed(seed)
    model = small_mamba(10, selective=selective, width=width)
    answer = functools.partial(model, logits_to_keep=8)
    fit_task(model, task, size=32, seed=seed, answer=answer, steps=steps, peak=5e-3, **FAST)
    return task.evaluate_batch(answer, task.draw("test", fresh, torch.Generator().manual_seed(seed + 1000)))


@check("M1", weight=60, needs=120)
def selective_copying(experiment: Experiment) -> Seen:
    """The full layer against the same one with constant step sizes and maps and more parameters."""
    steps = experiment.at(quick=3, normal=experiment.steps(1000, least=3))
    counts = {"selective": parameters_of(lambda: small_mamba(10))}
    wider = matching_width(
        lambda w: small_mamba(10, selective=(), width=w), counts["selective"], range(64, 128), at_least=True
    )
    counts["time-invariant"] = parameters_of(lambda: small_mamba(10, selective=(), width=wider))
    plan = {"selective": (FULL, 64, steps, experiment.seed), "time-invariant": ((), wider, steps, experiment.seed)}
    found, failed = succeeded(experiment.arms(_copying, plan), plan)
    value = "; ".join(f"{name} ({counts[name]:,} parameters) {accuracy:.3f}" for name, accuracy in found.items())
    value += f" after {steps} steps, 8 tokens among 64 positions{failed}"
    a, b = found.values()
    return experiment.judge(value, a >= 0.85 and a - b >= 0.25, a > b)


@check("M2", weight=60, needs=120)
def induction(experiment: Experiment) -> Seen:
    """Trained at one length, asked at up to 256 times it."""
    steps, length = experiment.at(quick=3, normal=experiment.steps(1500, least=3)), 64
    task = make("induction-heads", length=length)
    torch.manual_seed(experiment.seed)
    model = small_mamba(17)
    answer = functools.partial(model, logits_to_keep=1)
    fit_task(
        model, task, size=32, seed=experiment.seed, answer=answer, steps=steps, peak=3e-3, **FAST,
        progress=lambda step, value: experiment.tell("", step / steps),
    )  # fmt: skip
    found = {}
    for times in (1, 4, 16, 64, 256) if steps >= 1000 else (1, 4):
        count = experiment.at(quick=16, normal=max(16, min(256, 2**19 // (length * times))))
        longer = make("induction-heads", length=length * times)
        fresh = longer.draw("test", count, torch.Generator().manual_seed(1))
        found[times] = longer.evaluate_batch(lambda ids: answer(ids)[..., :17], fresh)
    value = f"trained at {length}, accuracy at that length times " + ", ".join(
        f"{t}: {a:.3f}" for t, a in found.items()
    )
    return experiment.judge(value, min(found.get(t, 0.0) for t in (1, 4, 16, 64)) >= 0.95, found[4] >= 0.95)


@check("M3", weight=1)
def selection(experiment: Experiment) -> Seen:
    """Which maps may depend on the token, on selective copying: every cell, three seeds; about 10 minutes."""
    experiment.require(1500)
    cells = {"none": (), "B": ("B",), "C": ("C",), "delta": ("delta",), "all": FULL}
    steps, fresh = experiment.at(quick=(3, 32), normal=(1600, 512))
    seeds = experiment.seeds(3)
    plan = {f"{name} {seed}": (maps, 64, steps, seed, fresh) for name, maps in cells.items() for seed in seeds}
    scores, _ = succeeded(experiment.arms(_copying, plan), plan)
    found = {name: sum(scores[f"{name} {seed}"] for seed in seeds) / len(seeds) for name in cells}
    value = f"mean accuracy of {len(seeds)} seeds: " + ", ".join(f"{name} {score:.3f}" for name, score in found.items())
    holds = max(found, key=lambda n: found[n]) == "all" and min(found, key=lambda n: found[n]) == "none"
    return experiment.judge(value, holds, found["all"] > found["none"])


def _text(selective: tuple[str, ...], states: int, steps: int, seed: int) -> float:
    """Test loss of a character model of Python sources, nats."""
    task = Text(splits=(0.9, 0.1))
    torch.manual_seed(seed)
    model = small_mamba(task.classes, selective=selective, states=states, tied=True)
    fit_task(model, task, size=16, seed=seed, steps=steps, peak=5e-3, warmup=0.2)
    return task.evaluate(model, size=64, batches=1, seed=1)


@check("M4", weight=60, needs=120)
def state_size(experiment: Experiment) -> Seen:
    """More state helps where the layer selects: test loss of a character model of Python sources."""
    steps = experiment.at(quick=3, normal=experiment.steps(500, least=3))
    cells = {f"{name}, {n}": (maps, n) for name, maps in (("selective", FULL), ("invariant", ())) for n in (1, 16)}
    plan = {name: (*cell, steps, experiment.seed) for name, cell in cells.items()}
    found, _ = succeeded(experiment.arms(_text, plan), plan)
    few, many, few_invariant, many_invariant = found.values()
    value = (
        f"character loss, 1 -> 16 states: selective {few:.3f} -> {many:.3f}, "
        f"time-invariant {few_invariant:.3f} -> {many_invariant:.3f} nats ({steps} steps)"
    )
    gain = few - many
    return experiment.judge(value, gain > 0 and gain > few_invariant - many_invariant, gain > 0)


@check("M6", weight=20)
def generation(experiment: Experiment) -> Seen:
    """A token's time far into a text, beside a Transformer of as many parameters with its key-value cache."""
    experiment.require(30)
    near, far = experiment.at(quick=(16, 64), normal=(64, 4096))
    torch.manual_seed(experiment.seed)
    mamba = MambaLM(MambaConfig(512, experiment.at(quick=2, normal=8), 8192)).eval()
    llama = small_llama(
        8192, width=512, layers=experiment.at(quick=1, normal=4), heads=8, inner=1408, positions=8192, tied=True
    ).eval()
    rounds, models = experiment.at(quick=3, normal=80), {"Mamba": mamba, "Transformer": llama}
    spent = token_seconds(models, (near, far), vocabulary=8192, rounds=rounds, progress=experiment.tell)
    # The paper's case: 1.4B, batch 128, prompt 2048, 128 new tokens on an A100.
    device = load_device("a100")
    published = named.build("mamba-1.4b").workload(2048, 128, 128)  # type: ignore[operator]
    peer = LlamaConfig(
        vocab_size=50280, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16,
        intermediate_size=5504, dtype="bfloat16",
    )  # fmt: skip
    transformer = language_model(peer, prompt=2048, new_tokens=128, batch=128)
    theirs, ours = (estimate(w, device, schedule="fused").latency for w in (transformer, published))
    grown = {name: times[1] / times[0] for name, times in spent.items()}
    value = (
        f"a token at {near} and {far}: Mamba ({parameters_of(mamba):,} parameters) {spent['Mamba'][0] * 1e3:.2f} and "
        f"{spent['Mamba'][1] * 1e3:.2f} ms, Transformer ({parameters_of(llama):,}) {spent['Transformer'][0] * 1e3:.2f} and "
        f"{spent['Transformer'][1] * 1e3:.2f} ms; estimated on an A100 at 1.4B, batch 128: {theirs / ours:.1f}x the throughput"
    )
    holds = grown["Mamba"] <= 1.10 < grown["Transformer"] and theirs / ours >= 4
    return experiment.judge(value, holds, grown["Mamba"] < grown["Transformer"])


@check("M7", weight=20)
def scan_speed(experiment: Experiment) -> Seen:
    """The compiled scan against the step-by-step one and against attention of equal width, forward and backward."""
    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    channels, states = 512, 16
    lengths = experiment.at(quick=[16, 32, 64, 128, 256], normal=[256, 512, 1024, 2048, 4096])
    generator = torch.Generator().manual_seed(experiment.seed)

    def scan(length: int, function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], None]:
        leaves = random_inputs(length, channels, states, generator)
        return lambda: torch.autograd.backward(function(*leaves)[0].sum())

    def attention(length: int) -> Callable[[], None]:
        q, k, v = (torch.randn(1, 8, length, 64, generator=generator, requires_grad=True) for _ in range(3))
        return lambda: torch.autograd.backward(whole_attention(q, k, v, scale=0.125, causal=True).sum())

    ours, theirs = [], []
    for number, length in enumerate(lengths):
        experiment.tell(f"length {length}", number / len(lengths))
        ours.append(least_seconds(scan(length, selective_scan), 7))
        theirs.append(least_seconds(attention(length), 2 if length > 1024 else 4))
    experiment.tell("step by step", 0.9)
    slow = least_seconds(scan(lengths[3], reference), 1)
    speedup, slope = slow / ours[3], log_slope(lengths, ours)
    attention_slope = log_slope(lengths[2:], theirs[2:])
    value = (
        f"at {lengths[3]} steps {ours[3] * 1e3:.1f} ms against {slow * 1e3:.0f} ms step by step ({speedup:.0f}x) and "
        f"{theirs[3] * 1e3:.0f} ms for masked softmax attention; log-log slopes: scan {slope:.2f} ({lengths[0]} to "
        f"{lengths[-1]}), attention {attention_slope:.2f} ({lengths[2]} to {lengths[-1]})"
    )
    holds = speedup >= 5 and slope <= 1.15 and attention_slope >= 1.6
    return experiment.judge(value, holds, speedup > 1 and slope < attention_slope)


@check("M8", weight=3)
def parameter_counts(experiment: Experiment) -> Seen:
    """Counted on the models built at the published sizes."""
    counts = [parameters_of(named.build(name)) for name in PUBLISHED]
    expected = [129_135_360, 371_516_416, 793_204_224, 1_372_178_432, 2_768_345_600]
    return experiment.judge(", ".join(f"{c:,}" for c in counts), counts == expected)

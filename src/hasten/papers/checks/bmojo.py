"""Checks of B'MOJO: Hybrid State Space Realizations of Foundation Models with Eidetic and Fading Memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


# Pattern and store of each arm; its width is chosen so that all have about as many parameters.
RECALL = {
    "B'MOJO": ("bb", "innovation"),
    "random store": ("bb", "random"),
    "B'MOJO-F": ("ff", "innovation"),
    "Mamba": ("mm", "innovation"),
    "sliding window": ("ww", "innovation"),
}


def _recall_model(pattern: str, store: str, width: int) -> Any:
    from hasten.models.language.bmojo_lm import BMojoConfig, BMojoLM

    return BMojoLM(
        BMojoConfig(
            pattern,
            width,
            vocabulary=33,
            window=8,
            memory=12,
            convolution=3,
            ratio=0,
            store=store,  # type: ignore[arg-type]
        )
    )


@functools.cache
def _width(pattern: str) -> int:
    """The width at which a pattern has about as many parameters as two B'MOJO layers of width 64."""
    import torch

    def count(pattern: str, width: int) -> int:
        with torch.device("meta"):
            return sum(
                p.numel()
                for p in _recall_model(pattern, "random" if "b" not in pattern else "innovation", width).parameters()
            )

    wanted = count("bb", 64)
    return min(range(64, 160, 8), key=lambda width: abs(count(pattern, width) - wanted))


def _recall(pattern: str, store: str, rate: float, steps: int, seed: int) -> tuple[float, int]:
    """Accuracy on fresh sequences after training, and the parameters."""
    import torch
    from torch.nn import functional as F

    from hasten.tasks.associative_recall import IGNORED, associative_recall
    from hasten.train import fit

    torch.manual_seed(seed)
    model = _recall_model(pattern, store, _width(pattern))
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        ids, targets = associative_recall(32, generator=generator)
        return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    fit(model, loss, steps=steps, peak=rate, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.3)
    ids, targets = associative_recall(512, generator=torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        right = (model(ids).argmax(-1) == targets)[targets != IGNORED]
    return float(right.float().mean()), sum(p.numel() for p in model.parameters())


@check("J1", needs=100)
def _associative_recall(experiment: Experiment) -> Seen:
    """Six pairs of sixteen keys, asked for beyond twice the window of eight; every arm has the better of two rates."""
    from hasten.processes import run_arms

    steps = max(2, min(700, int(experiment.paper_budget * 700 / 300)))
    told = lambda share: experiment.run.progress("bmojo J1: five arms", share)  # noqa: E731
    rates = (3e-3, 5e-3)
    plan = [(*arm, rate, steps, experiment.seed) for arm in RECALL.values() for rate in rates]
    found = run_arms(_recall, plan, progress=told)
    scores = {name: max(found[2 * i : 2 * i + 2]) for i, name in enumerate(RECALL)}
    value = f"{steps} steps: " + ", ".join(f"{name} {score:.3f} ({count:,})" for name, (score, count) in scores.items())
    ours = scores["B'MOJO"][0]
    gaps = {name: ours - score for name, (score, _) in scores.items()}
    holds = ours >= 0.8 and gaps["random store"] >= 0.1 and gaps["Mamba"] >= 0.3 and gaps["sliding window"] >= 0.5
    return experiment.judge(value, holds, min(gap for name, gap in gaps.items() if name != "B'MOJO") > 0)


TEXT = {"B'MOJO": ("bb", "rotary"), "attention": ("aa", "learned"), "Mamba": ("mmm", "none")}


def _text(pattern: str, positions: str, steps: int, seed: int) -> tuple[list[float], int]:
    """Loss by position (1024) of a character model of Python sources trained at 256, and its parameters."""
    import torch

    from hasten.data.text import characters, sources
    from hasten.models.language.bmojo_lm import BMojoConfig, BMojoLM, next_token_losses
    from hasten.train.fitting import fit, windows

    ids, alphabet = characters(sources(1_500_000))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    torch.manual_seed(seed)
    config = BMojoConfig(
        pattern, 64, vocabulary=len(alphabet), window=32, memory=16, ratio=2 if "b" in pattern else 4,
        positions=positions,  # type: ignore[arg-type]
    )  # fmt: skip
    model = BMojoLM(config)
    batches = windows(training, 256, 8, seed)
    fit(model, lambda step: next_token_losses(model, next(batches)).mean(), steps=steps, peak=3e-3, weight_decay=0.01)
    with torch.no_grad():
        losses = torch.cat([next_token_losses(model, part) for part in next(windows(held, 1024, 24, 1)).split(4)])
    return losses.mean(0).tolist(), sum(p.numel() for p in model.parameters())


@functools.cache
def _texts(steps: int, seed: int, experiment: Experiment) -> dict[str, tuple[list[float], int]]:
    from hasten.processes import run_arms

    told = lambda share: experiment.run.progress("bmojo: three models of text", share)  # noqa: E731
    return dict(zip(TEXT, run_arms(_text, [(*arm, steps, seed) for arm in TEXT.values()], progress=told)))


def _mean(losses: list[float], begin: int, end: int) -> float:
    return sum(losses[begin:end]) / (end - begin)


def _steps(experiment: Experiment) -> int:
    return max(2, min(300, int(experiment.paper_budget)))


@check("J2", needs=100)
def _perplexity(experiment: Experiment) -> Seen:
    found = _texts(_steps(experiment), experiment.seed, experiment)
    losses = {name: _mean(values, 0, 256) for name, (values, _) in found.items()}
    value = "nats a character at the trained length: " + ", ".join(
        f"{name} {loss:.3f} ({found[name][1]:,} parameters)" for name, loss in losses.items()
    )
    best = min(losses["attention"], losses["Mamba"])
    return experiment.judge(value, losses["B'MOJO"] <= 1.03 * best, losses["B'MOJO"] <= 1.03 * losses["attention"])


@check("J4", needs=100)
def _longer(experiment: Experiment) -> Seen:
    found = _texts(_steps(experiment), experiment.seed, experiment)
    spans = {name: (_mean(v, 128, 256), _mean(v, 512, 1024)) for name, (v, _) in found.items()}
    value = "nats a character at positions 128 to 255 and 512 to 1023, trained at 256: " + ", ".join(
        f"{name} {near:.3f} and {far:.3f}" for name, (near, far) in spans.items()
    )
    (near, far), (near_a, far_a) = spans["B'MOJO"], spans["attention"]
    return experiment.judge(value, far <= near + 0.02 and far_a - near_a > 0.1, far - near < far_a - near_a)


@check("J3", needs=100)
def _work(experiment: Experiment) -> Seen:
    """Multiply-adds and bytes of a forward pass at the paper's 1.4B scale: eight layers of width 2048, 8192 tokens."""
    import torch

    from hasten import trace
    from hasten.models.language.bmojo_lm import BMojoConfig, BMojoLM

    small = experiment.paper_budget < 100
    width, length = (128, 256) if small else (2048, 8192)
    work = {}
    for name, pattern in (("B'MOJO", "bb"), ("attention", "aa"), ("Mamba", "mmmm")):
        config = BMojoConfig(
            pattern, width, width // 64, 32000, window=length // 16, memory=32, ratio=4, store="recent"
        )
        with torch.device("meta"):
            model = BMojoLM(config)
        work[name] = trace(model, torch.zeros(1, length, dtype=torch.int64)).flops
    value = f"FLOP forward, {length} tokens, width {width}, two layers (four of Mamba): " + ", ".join(
        f"{name} {flops:.3g}" for name, flops in work.items()
    )
    value += "; the paper's figure is time on a GPU, which this does not give"
    return experiment.judge(value, False, work["B'MOJO"] < work["attention"])


@check("J5")
def _special_cases(experiment: Experiment) -> Seen:
    """Sliding window, full attention by a long window, and by a store of everything, against plain attention."""
    import torch
    from torch.nn import functional as F

    from hasten.nn import BMojo

    torch.manual_seed(experiment.seed)
    u = torch.randn(2, 50, 32)
    mask = torch.ones(50, 50, dtype=torch.bool).tril()
    cases = {
        "sliding window": ({"window": 8, "memory": 0, "fading": False}, mask & ~mask.tril(-8)),
        "window as long as the text": ({"window": 50, "memory": 4}, mask),
        "a store of everything": ({"window": 8, "memory": 50, "fading": False, "commit": 1}, mask),
    }
    errors = {}
    for name, (options, seen) in cases.items():
        module = BMojo(32, **options)
        place = torch.arange(50)
        q = module._queries(u, place, module.query)
        k, v = module._keys(u, place, module.key_value)
        wanted = module.out(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(2, 50, 32))
        errors[name] = float((module(u) - wanted).detach().abs().max())
    value = "largest difference: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return Seen(value, max(errors.values()) < 1e-5)

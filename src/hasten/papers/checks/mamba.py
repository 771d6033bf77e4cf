"""Checks of Mamba: Linear-Time Sequence Modeling with Selective State Spaces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hasten.cost.measuring import least_seconds, log_slope
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


FULL = ("B", "C", "delta")


def _stack(vocabulary: int, selective: tuple[str, ...] = FULL, width: int = 64) -> Any:
    """Two layers behind a unit-variance embedding, of the size of the paper's synthetic tasks."""
    import torch

    from hasten.models.language.mamba_lm import MambaConfig, MambaLM
    from hasten.nn import Mamba

    model = MambaLM(MambaConfig(width, 2, vocabulary, tie_embeddings=False))
    torch.nn.init.normal_(model.backbone.embedding.weight)
    for layer in model.backbone.layers:
        layer.mixer = Mamba(width, selective=selective)
    return model


def _copying(selective: tuple[str, ...], width: int, steps: int, seed: int, told: Callable[[float], None]) -> float:
    """Accuracy on fresh sequences after training on selective copying."""
    import torch

    from hasten.tasks.recall import selective_copying
    from hasten.train import fit

    torch.manual_seed(seed)
    model = _stack(10, selective, width)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        ids, answers = selective_copying(32, generator=generator)
        logits = model(ids, logits_to_keep=8)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())

    fit(
        model, loss, steps=steps, peak=5e-3, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.3,
        progress=lambda step, value: told(step / steps),
    )  # fmt: skip
    ids, answers = selective_copying(512, generator=torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        return float((model(ids, logits_to_keep=8).argmax(-1) == answers).float().mean())


def _count(selective: tuple[str, ...], width: int) -> int:
    return sum(p.numel() for p in _stack(10, selective, width).parameters())


@check("M1", needs=100)
def _selective_copying(experiment: Experiment) -> Seen:
    """The full layer against the same one with constant step sizes and maps and more parameters."""
    steps = max(3, min(1600, int(experiment.paper_budget * 1600 / 300)))
    count = _count(FULL, 64)
    wider = next(width for width in range(64, 128) if _count((), width) >= count)
    arms: dict[str, tuple[tuple[str, ...], int]] = {"selective": (FULL, 64), "time-invariant": ((), wider)}
    found = {}
    for number, (name, (selective, width)) in enumerate(arms.items()):
        found[name] = _copying(
            selective, width, steps, experiment.seed,
            lambda share, n=number: experiment.run.progress(f"mamba M1: {list(arms)[n]}", (n + share) / 2),  # type: ignore[misc]
        )  # fmt: skip
    value = "; ".join(f"{name} ({_count(*arms[name]):,} parameters) {accuracy:.3f}" for name, accuracy in found.items())
    value += f" after {steps} steps, 8 tokens among 64 positions"
    a, b = found.values()
    return experiment.judge(value, a >= 0.85 and a - b >= 0.25, a > b)


@check("M2", needs=100)
def _induction(experiment: Experiment) -> Seen:
    """Trained at one length, asked at up to 256 times it."""
    import torch

    from hasten.tasks.recall import induction_heads
    from hasten.train import fit

    steps = max(3, min(1500, int(experiment.paper_budget * 1500 / 300)))
    length = 64
    torch.manual_seed(experiment.seed)
    model = _stack(17)
    generator = torch.Generator().manual_seed(experiment.seed)

    def loss(step: int) -> Tensor:
        ids, answers = induction_heads(32, length=length, generator=generator)
        return torch.nn.functional.cross_entropy(model(ids, logits_to_keep=1)[:, 0], answers)

    fit(
        model, loss, steps=steps, peak=3e-3, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.3,
        progress=lambda step, value: experiment.run.progress("mamba M2", step / steps),
    )  # fmt: skip
    found = {}
    for times in (1, 4, 16, 64, 256) if steps >= 1000 else (1, 4):
        count = max(16, min(256, 2**19 // (length * times)))
        ids, answers = induction_heads(count, length=length * times, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found[times] = float((model(ids, logits_to_keep=1)[:, 0, :17].argmax(-1) == answers).float().mean())
    value = f"trained at {length}, accuracy at that length times " + ", ".join(
        f"{t}: {a:.3f}" for t, a in found.items()
    )
    return experiment.judge(value, min(found.get(t, 0.0) for t in (1, 4, 16, 64)) >= 0.95, found[4] >= 0.95)


@check("M3")
def _selection(experiment: Experiment) -> Seen:
    """Which maps may depend on the token, on selective copying: every cell, three seeds."""
    if experiment.paper_budget < 1500:
        raise HastenError("five arms of three seeds take about 10 minutes: give --budget 1500")
    cells = {"none": (), "B": ("B",), "C": ("C",), "delta": ("delta",), "all": FULL}
    found: dict[str, float] = {}
    for number, (name, selective) in enumerate(cells.items()):
        scores = [_copying(selective, 64, 1600, experiment.seed + seed, lambda share: None) for seed in range(3)]
        found[name] = sum(scores) / 3
        experiment.run.progress(f"mamba M3: {name}", (number + 1) / 5)
    value = "mean accuracy of 3 seeds: " + ", ".join(f"{name} {score:.3f}" for name, score in found.items())
    holds = max(found, key=lambda n: found[n]) == "all" and min(found, key=lambda n: found[n]) == "none"
    return Seen(value, holds, found["all"] > found["none"])


@check("M4", needs=100)
def _state_size(experiment: Experiment) -> Seen:
    """More state helps where the layer selects: validation loss of a character model of Python sources."""
    import torch

    from hasten.data.text import characters, sources
    from hasten.models.language.mamba_lm import MambaConfig, MambaLM
    from hasten.nn import Mamba
    from hasten.train import fit
    from hasten.train.fitting import windows

    steps = max(3, min(500, int(experiment.paper_budget * 500 / 300)))
    ids, alphabet = characters(sources(1_500_000))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    check = next(windows(held, 128, 64, seed=1))
    losses: dict[tuple[bool, int], float] = {}
    for number, (selects, states) in enumerate([(True, 1), (True, 16), (False, 1), (False, 16)]):
        torch.manual_seed(experiment.seed)
        model = MambaLM(MambaConfig(64, 2, len(alphabet)))
        torch.nn.init.normal_(model.backbone.embedding.weight)
        for layer in model.backbone.layers:
            layer.mixer = Mamba(64, states=states, selective=FULL if selects else ())
        batches = windows(training, 128, 16, seed=experiment.seed)

        def loss(step: int, model: Any = model, batches: Any = batches) -> Tensor:
            return _next_token_loss(model, next(batches))

        fit(
            model, loss, steps=steps, peak=5e-3, warmup=0.2,
            progress=lambda step, value, n=number: experiment.run.progress("mamba M4", (n + step / steps) / 4),  # type: ignore[misc]
        )  # fmt: skip
        with torch.no_grad():
            losses[selects, states] = float(_next_token_loss(model, check))
    gains = {selects: losses[selects, 1] - losses[selects, 16] for selects in (True, False)}
    value = (
        f"character loss, 1 -> 16 states: selective {losses[True, 1]:.3f} -> {losses[True, 16]:.3f}, "
        f"time-invariant {losses[False, 1]:.3f} -> {losses[False, 16]:.3f} nats ({steps} steps)"
    )
    return experiment.judge(value, gains[True] > 0 and gains[True] > gains[False], gains[True] > 0)


def _next_token_loss(model: Any, window: Tensor) -> Tensor:
    import torch

    logits = model(window[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


@check("M6", needs=30)
def _generation(experiment: Experiment) -> Seen:
    """A token's time far into a text, beside a Transformer of as many parameters with its key-value cache."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hasten import estimate, load_device
    from hasten.models import named
    from hasten.models.language.mamba_lm import MambaConfig, MambaLM
    from hasten.workload.language import language_model

    near, far = (64, 4096) if experiment.paper_budget >= 30 else (16, 64)
    torch.manual_seed(experiment.seed)
    mamba = MambaLM(MambaConfig(512, 8, 8192)).eval()
    count = sum(p.numel() for p in mamba.parameters())
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=1408, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    other = sum(p.numel() for p in llama.parameters())
    one = torch.zeros(1, 1, dtype=torch.int64)
    spent: dict[str, list[float]] = {"Mamba": [], "Transformer": []}
    with torch.inference_mode():
        for number, position in enumerate((near, far)):
            experiment.run.progress(f"mamba M6: position {position}", number / 2)
            prompt = torch.randint(0, 8192, (1, position))
            state = mamba.new_state(1)
            mamba(prompt, state, logits_to_keep=1)
            cache = llama(prompt, use_cache=True, logits_to_keep=1).past_key_values

            def llama_step(cache: Any = cache) -> None:
                llama(one, past_key_values=cache, use_cache=True)

            def mamba_step(state: Any = state) -> None:
                mamba(one, state)

            # In turn, so that a slow moment of the machine meets both.
            rounds = [(least_seconds(mamba_step, 20), least_seconds(llama_step, 20)) for _ in range(4)]
            spent["Mamba"].append(min(r[0] for r in rounds))
            spent["Transformer"].append(min(r[1] for r in rounds))
    # The paper's case: 1.4B, batch 128, prompt 2048, 128 new tokens on an A100.
    device = load_device("a100")
    published = named.build("mamba-1.4b").workload(2048, 128, 128)  # type: ignore[operator]
    peer = LlamaConfig(
        vocab_size=50280, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16,
        intermediate_size=5504, dtype="bfloat16",
    )  # fmt: skip
    transformer = language_model(peer, prompt=2048, new_tokens=128, batch=128)
    ratio = (
        estimate(transformer, device, schedule="fused").latency / estimate(published, device, schedule="fused").latency
    )
    grown = {name: times[1] / times[0] for name, times in spent.items()}
    value = (
        f"a token at {near} and {far}: Mamba ({count:,} parameters) {spent['Mamba'][0] * 1e3:.2f} and "
        f"{spent['Mamba'][1] * 1e3:.2f} ms, Transformer ({other:,}) {spent['Transformer'][0] * 1e3:.2f} and "
        f"{spent['Transformer'][1] * 1e3:.2f} ms; estimated on an A100 at 1.4B, batch 128: {ratio:.1f}x the throughput"
    )
    flat = grown["Mamba"] <= 1.10
    return experiment.judge(
        value,
        flat and grown["Transformer"] > 1.10 and ratio >= 4,
        grown["Mamba"] < grown["Transformer"],
    )


@check("M7")
def _scan_speed(experiment: Experiment) -> Seen:
    """The compiled scan against the step-by-step one and against attention of equal width, forward and backward."""
    import torch

    from hasten.kernels import native
    from hasten.kernels.selective_scan import reference, selective_scan

    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    channels, states = 512, 16
    lengths = [256, 512, 1024, 2048, 4096]
    generator = torch.Generator().manual_seed(experiment.seed)

    def scan(length: int, function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], None]:
        inputs = [
            torch.randn(1, length, channels, generator=generator),
            torch.rand(1, length, channels, generator=generator) * 0.1,
            -torch.rand(channels, states, generator=generator) * 16,
            torch.randn(1, length, states, generator=generator),
            torch.randn(1, length, states, generator=generator),
        ]
        leaves = [t.requires_grad_() for t in inputs]
        return lambda: torch.autograd.backward(function(*leaves)[0].sum())

    def attention(length: int) -> Callable[[], None]:
        q, k, v = (torch.randn(1, 8, length, 64, generator=generator, requires_grad=True) for _ in range(3))

        def run() -> None:
            hidden = torch.full((length, length), -math.inf).triu(1)
            scores = torch.softmax(q @ k.transpose(-1, -2) * 0.125 + hidden, -1)
            torch.autograd.backward((scores @ v).sum())

        return run

    ours, theirs = [], []
    for number, length in enumerate(lengths):
        experiment.run.progress(f"mamba M7: length {length}", number / len(lengths))
        ours.append(least_seconds(scan(length, selective_scan), 7))
        theirs.append(least_seconds(attention(length), 2 if length > 1024 else 4))
    experiment.run.progress("mamba M7: step by step", 0.9)
    slow = least_seconds(scan(2048, reference), 1)
    speedup, slope = slow / ours[3], log_slope(lengths, ours)
    attention_slope = log_slope(lengths[2:], theirs[2:])
    value = (
        f"at 2048 steps {ours[3] * 1e3:.1f} ms against {slow * 1e3:.0f} ms step by step ({speedup:.0f}x) and "
        f"{theirs[3] * 1e3:.0f} ms for masked softmax attention; log-log slopes: scan {slope:.2f} (256 to 4096), "
        f"attention {attention_slope:.2f} (1024 to 4096)"
    )
    return Seen(
        value, speedup >= 5 and slope <= 1.15 and attention_slope >= 1.6, speedup > 1 and slope < attention_slope
    )


@check("M8")
def _parameter_counts(experiment: Experiment) -> Seen:
    """Counted on the models built at the published sizes."""
    from hasten.models import named
    from hasten.models.language.mamba_lm import PUBLISHED

    counts = [sum(p.numel() for p in named.build(name).parameters()) for name in PUBLISHED]
    expected = [129_135_360, 371_516_416, 793_204_224, 1_372_178_432, 2_768_345_600]
    return Seen(", ".join(f"{c:,}" for c in counts), counts == expected)

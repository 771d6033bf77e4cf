"""Checks of Scalable MatMul-free Language Modeling."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from hasten.cost.measuring import least_seconds
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


WIDTH, LAYERS, HIDDEN = 96, 3, 256


def _arm(kind: str, rate: float, width: int, steps: int, seed: int) -> float:
    """Validation loss, nats a character, of a small model of Python sources."""
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from hasten.data.text import characters, sources
    from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM
    from hasten.train.fitting import fit, windows

    ids, alphabet = characters(sources(1_500_000))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    torch.manual_seed(seed)
    hidden = HIDDEN * width // WIDTH
    model: Any
    if kind == "transformer":
        config = LlamaConfig(
            vocab_size=len(alphabet), hidden_size=width, intermediate_size=hidden, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        model = MatMulFreeLM(MatMulFreeConfig(width, LAYERS, len(alphabet), hidden, ternary=kind == "ternary"))

    def loss_of(window: Tensor) -> Tensor:
        found = model(window[:, :-1])
        logits = found.logits if kind == "transformer" else found
        return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    batches = windows(training, 128, 16, seed)
    fit(model, lambda step: loss_of(next(batches)), steps=steps, peak=rate, weight_decay=0.01)
    with torch.no_grad():
        return float(loss_of(next(windows(held, 128, 64, 1))))


RATES = {"ternary": (3e-3, 1e-2, 3e-2), "transformer": (1e-3, 3e-3, 1e-2), "full precision": (3e-3,)}


@functools.cache
def _sweep(steps: int, seed: int, experiment: Experiment) -> dict[str, dict[float, float]]:
    from hasten.processes import run_arms

    arms = [(kind, rate, WIDTH, steps, seed) for kind, rates in RATES.items() for rate in rates]
    losses = run_arms(_arm, arms, progress=lambda share: experiment.run.progress("matmul-free: small models", share))
    found: dict[str, dict[float, float]] = {kind: {} for kind in RATES}
    for (kind, rate, *_), loss in zip(arms, losses):
        found[kind][rate] = loss
    return found


def _steps(experiment: Experiment) -> int:
    return max(2, min(600, int(experiment.paper_budget * 600 / 300)))


@check("B1", needs=100)
def _parity(experiment: Experiment) -> Seen:
    """Not the paper's tasks: whether a small model keeps up with a Transformer of its size on real text."""
    found = _sweep(_steps(experiment), experiment.seed, experiment)
    best = {kind: min(losses.values()) for kind, losses in found.items()}
    value = (
        f"characters of Python sources, 0.35M parameters, best of three rates each: MatMul-free {best['ternary']:.3f}, "
        f"Transformer++ {best['transformer']:.3f}, MatMul-free in full precision {best['full precision']:.3f} nats"
    )
    return experiment.judge(value, False, best["ternary"] <= 1.03 * best["transformer"])


@check("B2")
def _scaling(experiment: Experiment) -> Seen:
    from hasten.processes import run_arms

    if experiment.paper_budget < 1500:
        raise HastenError("models of three sizes take about 20 minutes: give --budget 1500")
    widths = (48, 96, 192)
    arms = [(kind, 3e-3, width, 1200, experiment.seed) for width in widths for kind in ("ternary", "transformer")]
    losses = run_arms(_arm, arms, progress=lambda share: experiment.run.progress("matmul-free B2", share))
    gaps = [losses[i] - losses[i + 1] for i in range(0, len(losses), 2)]
    value = ", ".join(f"width {w}: {gap:+.3f}" for w, gap in zip(widths, gaps)) + " nats behind the Transformer"
    return Seen(value, gaps == sorted(gaps, reverse=True), gaps[-1] < gaps[0])


@check("B7", needs=100)
def _rates(experiment: Experiment) -> Seen:
    found = _sweep(_steps(experiment), experiment.seed, experiment)
    best = {kind: min(losses, key=lambda r: losses[r]) for kind, losses in found.items()}
    value = f"best rate: MatMul-free {best['ternary']:g}, Transformer++ {best['transformer']:g}; losses " + "; ".join(
        f"{kind} " + ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        for kind, losses in found.items()
    )
    return experiment.judge(value, best["ternary"] > best["transformer"])


@check("B3", needs=100)
def _fused(experiment: Experiment) -> Seen:
    """Bytes kept for the backward and time of a training step, with and without the fused layer."""
    import torch

    from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM
    from hasten.nn import BitLinear

    small = experiment.paper_budget < 100
    width, length = (64, 32) if small else (256, 256)
    kept, seconds = {}, {}
    for fused in (True, False):
        torch.manual_seed(experiment.seed)
        model = MatMulFreeLM(MatMulFreeConfig(width, 4, 1024))
        for module in model.modules():
            if isinstance(module, BitLinear):
                module.fused = fused
        ids = torch.randint(0, 1024, (4, length + 1))
        own = {p.data_ptr() for p in model.parameters()}
        sizes: dict[int, tuple[Tensor, int]] = {}

        def keep(tensor: Tensor, own: set[int] = own, sizes: dict[int, tuple[Tensor, int]] = sizes) -> Tensor:
            if tensor.data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
            return tensor

        def step(model: Any = model, ids: Tensor = ids) -> None:
            logits = model(ids[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            step()
        kept[fused] = sum(size for _, size in sizes.values())
        sizes.clear()
        seconds[fused] = least_seconds(step, 3)
    saved = 1 - kept[True] / kept[False]
    faster = 1 - seconds[True] / seconds[False]
    value = (
        f"kept for the backward {kept[False] / 1e6:.0f} -> {kept[True] / 1e6:.0f} MB ({saved:.0%} less), a step "
        f"{seconds[False] * 1e3:.0f} -> {seconds[True] * 1e3:.0f} ms ({faster:.0%} faster)"
    )
    return experiment.judge(value, saved >= 0.4 and faster > 0, saved > 0)


@check("B4")
def _memory_13b(experiment: Experiment) -> Seen:
    """Bytes of the weights at the size of the paper's largest estimate (40 layers, width 5120, inner 13824)."""
    import torch

    from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM

    with torch.device("meta"):
        model = MatMulFreeLM(MatMulFreeConfig(5120, 40, 32000, 13824))
    full = 2 * sum(p.numel() for p in model.parameters())
    table = 2 * model.embeddings.weight.numel()
    model.pack()
    packed = sum(t.nbytes for name, t in model.state_dict().items() if name != "embeddings.weight")
    total = packed + table
    value = f"13B: {packed / 1e9:.2f} GB ternary and {table / 1e9:.2f} GB embedding against {full / 1e9:.1f} GB in fp16"
    return Seen(value, total <= 4.19e9 and full / total > 6)


@check("B5", needs=100)
def _packed(experiment: Experiment) -> Seen:
    """A real model, packed: bytes, and tokens a second against the same shape in bf16."""
    import torch

    from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM

    torch.manual_seed(experiment.seed)
    short = experiment.paper_budget < 100
    config = MatMulFreeConfig(128, 2, 1000) if short else MatMulFreeConfig(1024, 8, 8192)
    plain = MatMulFreeLM(MatMulFreeConfig(config.width, config.layers, config.vocabulary, ternary=False))
    plain = plain.to(torch.bfloat16).eval()
    packed = MatMulFreeLM(config).pack()
    sizes, speeds = [], []
    for model in (packed, plain):
        tensors = model.state_dict()
        # The table of embeddings is looked up, not multiplied; both keep theirs apart.
        sizes.append(sum(t.nbytes for name, t in tensors.items() if name != "embeddings.weight"))
        ids = torch.zeros(1, 1, dtype=torch.int64)
        state = model.new_state(1)
        with torch.inference_mode():
            speeds.append(1 / least_seconds(lambda m=model, s=state, i=ids: m(i, s), 20))  # type: ignore[misc]
    ratio = sizes[1] / sizes[0]
    value = (
        f"projections {sizes[0] / 1e6:.1f} MB packed, {sizes[1] / 1e6:.1f} MB in bf16: {ratio:.1f}x (2 bits a weight: 8x at "
        f"most); decoding {speeds[0]:.0f} tokens/s against {speeds[1]:.0f} in bf16"
    )
    return experiment.judge(value, ratio > 10, ratio > 1)


@check("B6")
def _fpga(experiment: Experiment) -> Seen:
    """Bound by the weights' bandwidth: what the board's memory allows, at the power that was published."""
    import torch

    from hasten.models.language.matmul_free import MatMulFreeLM

    with torch.device("meta"):
        model = MatMulFreeLM.named("matmul-free-1.3b").pack()
    weights = sum(t.nbytes for name, t in model.state_dict().items() if name != "embeddings.weight")
    bandwidth = 76.8e9  # four DDR4-2400 channels of the Stratix 10 board
    bound = bandwidth / weights
    value = (
        f"1.3B: {weights / 1e9:.2f} GB a token over 76.8 GB/s allows {bound:.0f} tokens/s, above the published 23.8 and "
        f"above reading (5); 13.67 W, taken from the paper, would be {13.67 / 23.8:.2f} J a token"
    )
    return Seen(value, False, bound >= 23.8)

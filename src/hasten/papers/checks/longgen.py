"""Checks of A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts."""

from __future__ import annotations

import torch

from hasten.cost import estimate
from hasten.hardware import load_device
from hasten.methods import HybridWindow
from hasten.models.language.llama import llama_7b
from hasten.models.loading.tiny import tiny_model
from hasten.nn.block_sparse import BlockCache, SinkWindow
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.papers.language_models import real_model
from hasten.runtime import CacheSpec, LanguageModel
from hasten.train.long_context import NEAR, Recalled, first_stage, second_stage
from hasten.train.partial_context import flops_ratio, layer_ratio
from hasten.workload.decoder import DecoderSizes

# Llama-2-7B with 12 of 32 layers full and a budget of 1024 tokens in the others, at 128K.
LAYERS, FULL, BUDGET, LENGTH = 32, 12, 1024, 131072


def allowed(backward: bool) -> float:
    """How many times fewer FLOPs the hybrid takes for a token at 128K, in training or in reading a prompt."""
    sizes = DecoderSizes.of(llama_7b(2 * LENGTH).config)
    return flops_ratio(sizes, SinkWindow(1, BUDGET // 64 - 1), FULL, LENGTH, backward=backward)


@shared(weight=40)
def step_ratio(experiment: Experiment) -> tuple[float, int]:
    """(full over hybrid, length) of a whole layer's training step, projected to 12 full layers of 30."""
    length = experiment.at(quick=512, normal=8192)
    pattern = SinkWindow(1, BUDGET // 64 - 1)
    return layer_ratio(length, pattern, 12 / 30, training=True, seed=experiment.seed), length


@check("G1")
def training(experiment: Experiment) -> Seen:
    """What the hybrid saves in training: by FLOPs, and measured on one layer."""
    experiment.require(30)
    bound, (measured, length) = allowed(backward=True), experiment.once(step_ratio)
    value = (
        f"FLOPs allow {bound:.3f}x at 128K for 7B (published 1.55x); a training step of SmolLM2's layers, 12 of 30 full,"
        f" takes {measured:.2f}x less at {length} tokens: forward, backward and update of whole layers, attention and MLP"
    )
    return experiment.judge(value, abs(bound - 1.869) < 0.01 and bound > 1.55 and measured > 1.3, bound > 1.55)


@check("G2")
def memory(experiment: Experiment) -> Seen:
    """The caches that the runtime itself would make, on a device without memory."""
    model = LanguageModel(llama_7b(2 * LENGTH), cache=CacheSpec("bf16"))
    full = model.new_cache(1, LENGTH).nbytes
    hybrid = HybridWindow(BUDGET - 64, 64).apply(model).new_cache(1, LENGTH).nbytes
    left, formula = hybrid / full, FULL / LAYERS + (1 - FULL / LAYERS) * BUDGET / LENGTH
    value = (
        f"{left:.4f} of the cache stays (formula {formula:.4f}): {full / 2**30:.1f} GiB to {hybrid / 2**30:.1f} GiB at 128K"
        " in bf16"
    )
    return experiment.judge(value, abs(left - 0.3799) < 1e-3 and abs((1 - left) - 0.62) < 0.005, left < 0.5)


@check("G3", weight=40)
def prefill(experiment: Experiment) -> Seen:
    """Reading a prompt: by FLOPs, and measured on whole layers."""
    experiment.require(30)
    bound = allowed(backward=False)
    lengths = experiment.at(quick=(512, 1024), normal=(4096, 8192, 16384))
    pattern = SinkWindow(1, 15)
    ratios = [layer_ratio(n, pattern, 12 / 30, training=False, seed=experiment.seed) for n in lengths]
    cache = BlockCache(pattern, 3)
    cache.append(*torch.zeros(2, 1, 3, lengths[-1], 64))
    expected = 16 * 64 * 3 * 64 * 2 * 4
    value = (
        f"FLOPs allow {bound:.3f}x at 128K for 7B (published 1.67x); measured on SmolLM2's layers, 12 of 30 full: "
        + ", ".join(f"{r:.2f}x at {n}" for r, n in zip(ratios, lengths, strict=True))
        + f"; a sparse layer keeps {cache.nbytes} bytes (formula {expected})"
    )
    holds = abs(bound - 1.808) < 0.01 and ratios[-1] > 1.3 and ratios == sorted(ratios) and cache.nbytes == expected
    return experiment.judge(value, holds, ratios[-1] > 1)


@check("G4", weight=40)
def decode(experiment: Experiment) -> Seen:
    """Decoding: estimated for a 7B at 128K, and measured with the real model at what it reads."""
    experiment.require(60)
    large = experiment.at(quick=lambda: tiny_model().network, normal=lambda: llama_7b(2 * LENGTH))()
    whole = LanguageModel(large, cache=CacheSpec("bf16")).workload(experiment.at(quick=2048, normal=LENGTH), 2)
    hybrid, device = HybridWindow(BUDGET - 64, 64).rewrite(whole), load_device("a100")
    seconds = [estimate(w, device, schedule="fused").phase("decode").latency for w in (whole, hybrid)]
    bound = seconds[0] / seconds[1]
    length, new = experiment.at(quick=(600, 4), normal=(7000, 24))
    network = experiment.once(real_model, "packed").network
    generator = torch.Generator().manual_seed(experiment.seed)
    ids = torch.randint(0, network.config.vocab_size, (1, length), generator=generator)
    rates = []
    for windowed in (False, True):
        model = LanguageModel(network, cache=CacheSpec("bf16"))
        if windowed:
            HybridWindow(experiment.at(quick=256, normal=1024), 64).apply(model)
        rates.append(new / model.measure(length, new, 1, 1, ids=ids).phases["decode"].low)
    value = (
        f"estimated {bound:.2f}x at 128K, batch 1, for 7B on an A100 (published 1.41x); SmolLM2-135M at {length} tokens"
        f" decodes {rates[1] / rates[0]:.2f}x as fast"
    )
    return experiment.judge(value, bound > 1.41 and rates[1] > 1.2 * rates[0], rates[1] > rates[0])


ARMS = {
    "full": ("full", (0, 1, 2, 3, 4, 5)),
    "hybrid, middle full": ("sparse", (2, 3)),
    "all sparse": ("sparse", ()),
    "hybrid, bottom full": ("sparse", (0, 1)),
    "hybrid, top full": ("sparse", (4, 5)),
    "hybrid, spread full": ("sparse", (1, 4)),
}


@shared(weight=230)
def recall(experiment: Experiment) -> tuple[dict[str, Recalled], float]:
    """What each arm recalls at the longer length, by distance, and the recall before at the trained one."""
    experiment.require(300)
    first = experiment.at(quick=2, normal=experiment.steps(1000, most=2500))
    second = experiment.at(quick=1, normal=experiment.steps(120, most=600))
    length, seed = experiment.at(quick=128, normal=512, long=1024), experiment.seed
    begun, _ = succeeded(experiment.arms(first_stage, {"first": (first, seed)}), needed=["first"])
    weights, before = begun["first"]
    arms = {name: (weights, kind, full, second, length, seed) for name, (kind, full) in ARMS.items()}
    found, _ = succeeded(experiment.arms(second_stage, arms), needed=["full", "hybrid, middle full", "all sparse"])
    most = {name: result[0] for name, result in found.items()}
    return most | {"sparse at inference only": found["full"][1]}, before


@check("G5")
def quality(experiment: Experiment) -> Seen:
    """Recall by distance: the hybrid beside full attention and two ways to be sparse that could see the answer too."""
    seen, formed = experiment.once(recall)
    full, ours = seen["full"].shares, seen["hybrid, middle full"].shares
    controls = [seen[name].shares for name in ("all sparse", "sparse at inference only")]
    far, faster = [d for d in full if d > NEAR], experiment.once(step_ratio)[0]
    value = (
        f"recall at 128 tokens {formed:.0%}{'' if formed >= 0.9 else ' (below 90%: raise --budget)'}; after a short training"
        f" at four times the length, at a distance of {', '.join(map(str, full))} tokens: "
        + "; ".join(
            f"{n} {', '.join(f'{r:.0%}' for r in s.shares.values())} (text {s.text:.2f})" for n, s in seen.items()
        )
        + f"; a layer's training step {faster:.2f}x faster"
    )
    detail = (
        "one sparse layer sees no further than the nearest; six together could pass on what stands at the second, the"
        " outer four of the hybrid and its two full ones at all"
    )
    # A control that does not even learn what stands in its window says nothing.
    learned = controls[0][NEAR] >= 0.5 * full[NEAR]
    fail = all(c[d] <= 0.5 * full[d] for c in controls for d in far)
    holds = formed >= 0.9 and learned and fail and all(ours[d] >= 0.9 * full[d] for d in far) and faster > 1
    best = max(seen["all sparse"].far, seen["sparse at inference only"].far)
    return experiment.judge(value, holds, seen["hybrid, middle full"].far > best, detail)


@check("G6", weight=0.1)
def placement(experiment: Experiment) -> Seen:
    """Where the full layers stand."""
    seen = {n: v for n, v in experiment.once(recall)[0].items() if n.startswith("hybrid, ")}
    middle = seen.pop("hybrid, middle full")
    value = f"two of six layers full, in the middle: {middle.far:.0%} recall, text {middle.text:.3f}; " + ", ".join(
        f"{n.removeprefix('hybrid, ').removesuffix(' full')} {v.far:.0%}, {v.text:.3f}" for n, v in seen.items()
    )
    best = max(v.far for v in seen.values())
    holds = middle.far > best and middle.text <= min(v.text for v in seen.values()) + 0.02
    return experiment.judge(value, holds, middle.far >= best)

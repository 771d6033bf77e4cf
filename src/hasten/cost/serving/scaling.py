"""What generating many tokens many times costs: parameters, and the cache that every token reads (Kinetics).

Costs are equivalent FLOPs: FLOPs plus bytes of cache read times the hardware's intensity (peak FLOP/s over memory B/s),
arXiv 2506.05333, section 2. Weights amortize over a large serving batch and are left out unless asked for. The cache
has two bytes a number. For dense attention the prompt's part of it is read once for all trials of a question; a sparse
method picks other keys in each trial, so nothing is shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.errors import HastenError
from hasten.hardware.device import Device
from hasten.workload.decoder import DecoderSizes

B200_INTENSITY = 562.5  # 4.5 PFLOP/s over 8 TB/s


def intensity_of(device: Device, dtype: str = "bf16") -> float:
    """FLOPs that ``device`` does in the time in which it reads a byte of its main memory, at its peaks."""
    return device.unit("contraction", dtype)[1] / float(device.main_memory.bandwidth)


def crossover(model: DecoderSizes, intensity: float = B200_INTENSITY) -> float:
    """Context at which reading the cache costs as much as the parameters' 2 P FLOPs."""
    return 2 * model.active_parameters / (intensity * model.token_bytes)


def _qwen3(
    name: str, parameters: float, layers: int, heads: int, hidden: int, inner: int, **others: Any
) -> DecoderSizes:
    sizes = {"hidden": hidden, "inner": inner, "vocabulary": 151936, "kv_heads": 8, "head_dim": 128, **others}
    return DecoderSizes(name, layers=layers, heads=heads, parameters=parameters, **sizes)


# Parameters as the paper counts them, the other sizes from the public configurations.
QWEN3 = (
    _qwen3("Qwen3-0.6B", 0.752e9, 28, 16, 1024, 3072, tied=True),
    _qwen3("Qwen3-1.7B", 2.03e9, 28, 16, 2048, 6144, tied=True),
    _qwen3("Qwen3-4B", 4.02e9, 36, 32, 2560, 9728, tied=True),
    _qwen3("Qwen3-8B", 8.19e9, 36, 32, 4096, 12288),
    _qwen3("Qwen3-14B", 14.77e9, 40, 40, 5120, 17408),
    _qwen3("Qwen3-32B", 32.76e9, 64, 64, 5120, 25600),
)
QWEN3_MOE = _qwen3(
    "Qwen3-30B-A3B", 3.3e9, 48, 32, 2048, 6144, kv_heads=4, experts=128, experts_per_token=8, expert_inner=768
)


@dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes of memory read."""

    flops: float
    bytes: float

    def equivalent(self, intensity: float = B200_INTENSITY) -> float:
        """Equivalent FLOPs on hardware of ``intensity`` FLOPs a byte."""
        return self.flops + intensity * self.bytes


def _queries(model: DecoderSizes) -> int:
    return model.layers * model.query_width


def _keys(model: DecoderSizes) -> int:
    return model.layers * model.kv_width


def _weights(model: DecoderSizes, made: float, trials: float, batch: int | None) -> float:
    return 0.0 if batch is None else 2 * model.active_parameters * made * trials / batch


def dense(model: DecoderSizes, prompt: float, made: float, trials: float = 1, batch: int | None = None) -> Cost:
    """Every token reads the whole cache.

    Args:
        model: its sizes.
        prompt, made: tokens given and generated, of each trial.
        trials: answers to one prompt.
        batch: over how many sequences a read of the weights is shared; None leaves the weights out.
    """
    flops = trials * (2 * model.active_parameters * made + 2 * (2 * prompt + made) * made * _queries(model))
    moved = 2 * (2 * prompt + trials * made) * made * _keys(model)
    return Cost(flops, moved + _weights(model, made, trials, batch))


def seen(budget: float, prompt: float, made: float) -> float:
    """Keys read over a generation when a step reads at most ``budget``: the integral of min(budget, length)."""
    if budget >= prompt + made:
        return prompt * made + made * made / 2
    return budget * made - max(0.0, budget - prompt) ** 2 / 2


def top_k(
    model: DecoderSizes, prompt: float, made: float, budget: float, trials: float = 1, batch: int | None = None
) -> Cost:
    """Every token reads the ``budget`` best keys, found for nothing: the bound for all sparse methods."""
    total = seen(budget, prompt, made)
    flops = trials * (2 * model.active_parameters * made + 4 * total * _queries(model))
    return Cost(flops, 4 * total * _keys(model) * trials + _weights(model, made, trials, batch))


def block_top_k(
    model: DecoderSizes,
    prompt: float,
    made: float,
    budget: float,
    trials: float = 1,
    block: int = 16,
    batch: int | None = None,
) -> Cost:
    """As `top_k`, with the search over one mean key for each block.

    Each trial scores the whole blocks of its own context; the mean keys of the prompt are read once for all trials.
    """
    plain = top_k(model, prompt, made, budget, trials, batch)
    flops = trials * ((2 * prompt + made) // block) * made * _queries(model)
    moved = (2 * prompt + trials * made) // block * made * _keys(model)
    return Cost(plain.flops + flops, plain.bytes + moved)


METHODS = ("dense", "top-k", "block top-k", "strided blocks", "random", "local")


def cost_of(
    method: str,
    model: DecoderSizes,
    prompt: float,
    made: float,
    budget: float,
    trials: float,
    *,
    block: int = 16,
    dense_layers: int = 0,
) -> Cost:
    """The cost of ``method``, one of `METHODS`; those that do not look at keys before they choose search for nothing.

    Args:
        method: how a token attends.
        model, prompt, made, trials: as for `dense`.
        budget: keys that a token reads; without effect on ``dense``.
        block: tokens that share a mean key, in ``block top-k``.
        dense_layers: layers that read everything all the same. The paper's law counts none.

    Raises:
        HastenError: another method.
    """
    if method not in METHODS:
        raise HastenError(f"unknown attention {method!r}: one of {', '.join(METHODS)}")
    full = min(dense_layers, model.layers)
    if method == "dense" or full == model.layers:
        return dense(model, prompt, made, trials)
    rest = replace(model, layers=model.layers - full)
    if method == "block top-k":
        sparse = block_top_k(rest, prompt, made, budget, trials, block)
    else:
        sparse = top_k(rest, prompt, made, budget, trials)
    if not full:
        return sparse
    # The parameters are in the sparse part already.
    above = dense(replace(model, layers=full, parameters=0), prompt, made, trials)
    return Cost(sparse.flops + above.flops, sparse.bytes + above.bytes)


def coverage(tried: int, right: int, k: int) -> float:
    """Chance that one of k answers drawn from ``tried`` recorded ones, ``right`` of them right, is right: unbiased.

    Raises:
        HastenError: fewer recorded answers than are drawn.
    """
    if not 0 < k <= tried or not 0 <= right <= tried:
        raise HastenError(f"{k} answers cannot be drawn from {tried} of which {right} are right")
    return 1 - math.comb(tried - right, k) / math.comb(tried, k)


@dataclass(frozen=True)
class Point:
    """One way to spend: what it costs on average and how often it is right."""

    cost: float
    accuracy: float
    settings: Mapping[str, Any]


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper one equals: accuracy rises along it."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found


def best_within(points: Sequence[Point], cost: float) -> Point | None:
    """The most accurate point that costs at most ``cost``, the cheapest of equals; None when all cost more."""
    return max((p for p in points if p.cost <= cost), key=lambda p: (p.accuracy, -p.cost), default=None)

"""What several papers' checks share: least times, slopes, a published size, and not judging what was too short."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from hasten.papers.card import Context, Seen

# Seconds below which a check that trains says that it was too short.
JUDGED_FROM = 100.0


def least_seconds(call: Callable[[], object], runs: int) -> float:
    """The least wall time of ``runs`` calls, after one that does not count: for ratios on a busy machine."""
    call()
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(size): 1 for what grows in proportion."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def judged(
    context: Context, value: str, holds: bool, direction: bool | None = None, *, needs: float = JUDGED_FROM
) -> Seen:
    """What was seen, judged only with a budget of at least ``needs`` seconds."""
    if context.budget < needs:
        return Seen(f"{value}: too short to judge, raise --budget", False, None)
    return Seen(value, holds, direction)


@functools.cache
def llama_7b(positions: int) -> Any:
    """Llama-2-7B in bf16 on the meta device, to be estimated: it has shapes and no weights."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=positions,
    )  # fmt: skip
    with torch.device("meta"):
        network = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    network.config._attn_implementation = "sdpa"
    return network

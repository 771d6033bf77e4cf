"""Which part of a model a kernel belongs to, for tables and plots of where the time goes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hasten.cost.estimate import EinsumCost, PhaseCost

EMBEDDING, ATTENTION, CACHE, STATE_SPACE, FEED_FORWARD, EXPERTS, NORM, HEAD, REST = (
    "embedding", "attention", "cache", "state space", "feed-forward", "experts", "norms", "head", "rest",
)  # fmt: skip
PARTS = (EMBEDDING, ATTENTION, CACHE, STATE_SPACE, FEED_FORWARD, EXPERTS, NORM, HEAD, REST)

# What the last telling piece of a module's path begins with or holds; the first that fits, from the inside out.
_WORDS: tuple[tuple[str, str], ...] = (
    (r"norm|^ln_?\w*$|layernorm", NORM),
    (r"expert|^moe|router|block_sparse_moe|^gate$", EXPERTS),
    (r"^(lm_head|embed_out|output_projection|score|classifier|cls|head)$", HEAD),
    (r"mamba|mixer|ssm|linear_attn|rwkv|time_mix|delta|recurrent|^rec", STATE_SPACE),
    (r"attn|attention|rotary|^att$", ATTENTION),
    (r"mlp|ffn|feed_forward|^ff$|fc[12]|channel_mix|intermediate|glu", FEED_FORWARD),
    (r"embed|^wte$|^wpe$|patch", EMBEDDING),
)
_CACHES = ("hasten::kv_append", "hasten::kv_read")


def part_of(kernel: EinsumCost) -> str:
    """The part that a kernel belongs to, by its module's path.

    >>> def of(module, source="aten::mm"):
    ...     return part_of(EinsumCost("e", module, source, 0, 0, "", 0, {}))
    >>> of("model.layers.3.self_attn.q_proj"), of("model.layers.3.mlp.experts"), of("transformer.h.0.ln_1")
    ('attention', 'experts', 'norms')
    >>> of("lm_head"), of("transformer.wte"), of("model.layers.0.self_attn", "hasten::kv_append")
    ('head', 'embedding', 'cache')
    """
    if kernel.source in _CACHES:
        return CACHE
    pieces = [p for p in kernel.module.lower().split(".") if not p.isdigit()]
    # An expert's or an attention's own norm or gate belongs to it; where two pieces tell, the outer one of the layer
    # is the part, but for what a path ends with.
    for piece in reversed(pieces):
        for pattern, part in _WORDS:
            if re.search(pattern, piece):
                if part == FEED_FORWARD and any(re.search(r"expert|moe", outer) for outer in pieces):
                    return EXPERTS
                return part
    return REST


def times(phases: Iterable[PhaseCost]) -> dict[str, float]:
    """Seconds of each part in phases, all their repeats, in the order of `PARTS`; parts without any are left out."""
    found: dict[str, float] = {}
    for phase in phases:
        for kernel in phase.einsums:
            part = part_of(kernel)
            found[part] = found.get(part, 0.0) + kernel.latency * kernel.repeats
    return {part: found[part] for part in PARTS if part in found}

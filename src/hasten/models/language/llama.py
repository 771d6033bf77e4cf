"""Llama models: the published size without weights, to be estimated, and small ones of any size."""

from __future__ import annotations

import functools
from typing import Any

import torch

from hasten.models.registry import published

# Width, inner width, layers, heads, KV heads, vocabulary, positions (arXiv 2307.09288, table 1 and the releases'
# configs; arXiv 2407.21783, table 3).
PUBLISHED = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 32000, 4096),
    "llama-2-70b": (8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3.1-8b": (4096, 14336, 32, 32, 8, 128256, 131072),
    "llama-3.1-70b": (8192, 28672, 80, 64, 8, 128256, 131072),
}
_LONGER = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@published(PUBLISHED)
def llama(name: str, positions: int | None = None) -> Any:
    """A published size of Llama, in transformers' own modules, with weights at their start.

    Args:
        name: one of ``PUBLISHED``.
        positions: that it has room for; as published when None.
    """
    import transformers

    width, inner, layers, heads, kv_heads, vocabulary, room = PUBLISHED[name]
    extra = {"rope_parameters": dict(_LONGER)} if name.startswith("llama-3") else {}
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=positions or room, **extra,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    network.config._attn_implementation = "sdpa"
    return network


@functools.cache
def llama_7b(positions: int) -> Any:
    """Llama-2-7B in bf16 on the meta device, to be estimated: it has shapes and no weights."""
    with torch.device("meta"):
        return llama("llama-2-7b", positions).to(torch.bfloat16)


def small_llama(
    vocabulary: int,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    inner: int | None = None,
    head_dim: int | None = None,
    positions: int = 2048,
    tied: bool = False,
) -> Any:
    """A Llama of any size with fresh weights from torch's own generator, in fp32: to train in minutes, or to time.

    Args:
        vocabulary: tokens.
        width: of the hidden state.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key-value heads; as many as query heads when None.
        inner: width of the MLP; twice ``width`` when None.
        head_dim: of a head; ``width / heads`` when None.
        positions: the longest text.
        tied: whether embedding and head share their weights.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner or 2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads or heads, head_dim=head_dim or width // heads,
        max_position_embeddings=positions, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)

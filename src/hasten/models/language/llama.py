"""Llama models: the published size without weights, to be estimated, and small ones of any size."""

from __future__ import annotations

import functools
from typing import Any


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

"""Llama models by their published sizes, in transformers' own modules, to be estimated."""

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

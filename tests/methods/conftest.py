"""A model small enough for every method."""

from __future__ import annotations

import torch

from hasten.methods import (
    Bf16Network,
    ChannelsLast,
    Compiled,
    FoldNormalization,
    HeadPruning,
    Int8Products,
    Method,
    OnnxRuntime,
    OpenVino,
    ParallelBlocks,
)
from hasten.runtime import LanguageModel

NETWORK_METHODS: tuple[Method, ...] = (
    FoldNormalization(), Bf16Network(), ChannelsLast(), Int8Products(), Compiled(), OnnxRuntime(), OnnxRuntime(True),
    OpenVino(), OpenVino("bf16"), OpenVino("int8"), ParallelBlocks(), HeadPruning(),
)  # fmt: skip


def small_llama(seed: int) -> LanguageModel:
    """Four layers of Llama with random weights, 512 positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=211, hidden_size=128, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config))

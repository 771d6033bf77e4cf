"""Tiny models of each family that the compiled step runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hasten.runtime import LanguageModel
from hasten.runtime.step import CompiledStep

FAMILIES = {
    "llama": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
    "mistral": ("MistralConfig", {"sliding_window": None, "tie_word_embeddings": True}),
}


def tiny(family: str, **changes: Any) -> Any:
    import transformers

    kind, extra = FAMILIES[family]
    config = getattr(transformers, kind)(
        **{
            "vocab_size": 211,
            "hidden_size": 128,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            **extra,
            **changes,
        }
    )
    torch.manual_seed(7)
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.08)
    return network


@pytest.fixture(params=sorted(FAMILIES))
def network(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture
def llama() -> Any:
    return tiny("llama")


@pytest.fixture
def read_in_pieces() -> Callable[[LanguageModel, list[int], list[int]], torch.Tensor]:
    """Logits of every token of a text, by compiled steps of so many rows into a cache of its own."""

    def read(model: LanguageModel, ids: list[int], pieces: list[int]) -> torch.Tensor:
        cache = model.new_cache(1, len(ids))
        step = CompiledStep(model.network, cache)
        found, at = [], 0
        for count in pieces:
            found.append(step(ids[at : at + count], [0] * count, list(range(at, at + count))).clone())
            cache.advance([count])
            at += count
        return torch.cat(found)

    return read

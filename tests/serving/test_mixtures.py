"""Mixtures of experts behind the engine that serves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.kernels import native
from hasten.methods import WeightOnly
from hasten.runtime import LanguageModel
from hasten.serving.engine import Engine
from hasten.serving.request import Request, Sampling
from hasten.serving.steps import PagedSteps

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 128, "intermediate_size": 96, "eos_token_id": 96, "pad_token_id": 0,
    "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def model(kind: str, **extra: Any) -> LanguageModel:
    import transformers

    torch.manual_seed(4)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **extra)
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.15)
    return LanguageModel(network)


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_answers_are_the_same_beside_each_other(kind: str) -> None:
    own = model(kind, **({"head_dim": 32, "sliding_window": 24} if kind == "GptOss" else {}))
    own = WeightOnly(8, int8=True).apply(own)
    prompts = [tuple((7 * i + 11 * k) % 95 + 1 for k in range(length)) for i, length in enumerate((40, 3, 25))]
    requests = [Request(p, max_tokens=8, ignore_end=True, sampling=Sampling(temperature=0)) for p in prompts]
    with Engine(own) as engine:
        assert isinstance(engine._steps, PagedSteps)
        alone = [engine.submit(request).result(60).tokens for request in requests]
    with Engine(own, piece=16) as engine:
        assert [stream.result(60).tokens for stream in [engine.submit(r) for r in requests]] == alone

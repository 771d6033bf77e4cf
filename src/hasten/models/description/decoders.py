"""Decoder-only language models: a prompt, then a step for each new token, with what is kept between them."""

from __future__ import annotations

from typing import Any

import torch

from hasten.models.loading.config import build
from hasten.workload import Workload, trace
from hasten.workload.language import ARCHITECTURES, language_model


def describe_decoder(
    config: Any,
    *,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    context: int = 0,
    dtype: str = "fp32",
    cache_dtype: str | None = None,
    name: str = "",
) -> Workload:
    """The phases ``prefill`` and ``decode`` of a causal language model, see `hasten.models.description.describe`."""
    if config.model_type in ARCHITECTURES:
        return language_model(
            config, prompt=prompt, new_tokens=new_tokens, batch=batch, dtype=dtype, cache_dtype=cache_dtype
        )
    ids = torch.zeros(batch, prompt, dtype=torch.int64)
    module = build(config).to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
    return trace(module, ids, name=name, use_cache=False)

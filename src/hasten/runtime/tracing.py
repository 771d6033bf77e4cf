"""What a language model computes for a prompt and new tokens, read off the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.kernels import kv_cache
from hasten.workload import Phase, Workload, trace_cascade

if TYPE_CHECKING:
    from hasten.runtime.language_model import LanguageModel


def workload(model: LanguageModel, prompt: int, new_tokens: int, batch: int = 1) -> Workload:
    """Phases ``prefill`` (once) and ``decode`` (a step; with drafts, several tokens a step).

    Args:
        model: traced on fake tensors, as it stands.
        prompt: tokens of each prompt.
        new_tokens: tokens made for each sequence.
        batch: sequences.

    The decode step stands for all of them: it is taken in the middle, at ``prompt + new_tokens // 2``
    positions, and what grows with length grows linearly.
    """
    capacity = prompt + new_tokens
    rows = 1 + (model.lookup.draft if model.lookup else 0)

    def call(new: int, filled: int) -> tuple[Any, dict[str, int], dict[str, int]]:
        def prepare() -> tuple[tuple[Any, ...], Mapping[str, Any]]:
            cache = model.new_cache(batch, capacity + rows)
            if filled:
                cache.lengths[:] = [filled] * batch
                if model.cache.quantized:
                    cache.quantized[:] = [filled // kv_cache.BLOCK] * batch
            keep = 0 if new == rows and filled else 1
            arguments = {"past_key_values": cache, "logits_to_keep": keep}
            return (torch.zeros(batch, new, dtype=torch.int64),), arguments

        return trace_cascade(model, prepare=prepare, state=_buffers)

    prefill, weights, _ = call(prompt, 0)
    decode, _, state = call(rows, prompt + new_tokens // 2)
    return Workload(
        model.name,
        (Phase("prefill", prefill), Phase("decode", decode, new_tokens)),
        weights,
        state,
        {"prompt": prompt, "new_tokens": new_tokens, "batch": batch, "rows": rows},
    )


def _buffers(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    cache = arguments["past_key_values"]
    return {f"cache.{i}.{name}": t for i, layer in enumerate(cache.layers) for name, t in layer.tensors.items()}

"""transformers' own loop of generation (beams, assistant models, ...) over hasten's cache and its rules."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.runtime.attention import following
from hasten.runtime.cache import KVCache
from hasten.runtime.generation_loop import Generates


def by_transformers(model: Generates, rows: int, length: int, drafts: bool, settings: dict[str, Any]) -> Any:
    """``generate`` of the network itself, over a cache of hasten's where the caller gives none.

    Args:
        model: what runs.
        rows: sequences that the network sees at once.
        length: tokens that a sequence has at most.
        drafts: whether tokens are drafted, some of which the cache gives back.
        settings: what transformers' ``generate`` takes.

    Raises:
        HastenError: a setting that the model's cache does not go with.
    """
    spec, given = model.cache, settings.get("past_key_values")
    if drafts and spec.quantized:
        raise HastenError(
            f"an {spec.dtype} cache cannot give drafted tokens back: draft with hasten's lookup, or use another cache"
        )
    if spec.whole:
        if given is None:
            settings = {**settings, "past_key_values": model.new_cache(rows, length)}
        elif not isinstance(given, KVCache) and spec.dtype != "fp32":
            raise HastenError("this model keeps its cache in another format: make past_key_values by its new_cache")
        return model.network.generate(**settings)
    if given is not None:
        raise HastenError("a window or a policy is the model's own cache's: give no past_key_values with one")
    mask = settings.get("attention_mask")
    if mask is not None and not mask.bool().all():
        raise HastenError("with these settings a window or a policy takes prompts of one length: pad none of them")
    if drafts or "inputs_embeds" in settings:
        raise HastenError("a window or a policy does not go with transformers' own drafts or embeddings as a prompt")
    cache = model.new_cache(rows, length)
    with _ruled(model.network, cache):
        return model.network.generate(**settings, past_key_values=cache)


@contextlib.contextmanager
def _ruled(network: Any, cache: KVCache) -> Iterator[None]:
    """Within, whoever calls ``network`` with ``cache`` has it attend, and forget, as the cache's rules say."""
    forward = type(network).forward

    @functools.wraps(forward)
    def by_rule(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = cache.get_seq_length()
        begin = start + cache.dropped[0]
        kwargs |= {
            "attention_mask": None,
            "past_key_values": cache,
            "position_ids": torch.arange(begin, begin + input_ids.shape[1], device=input_ids.device)[None],
        }
        found = forward(network, input_ids, *args, **kwargs)
        if start == 0 and cache.spec.policy is not None:
            cache.spec.policy.prefilled(cache)
        return found

    network.forward = by_rule
    try:
        with following(network, cache):
            yield
    finally:
        del network.forward

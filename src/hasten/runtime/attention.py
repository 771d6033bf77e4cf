"""The attention function by which transformers' networks follow a cache's own rule, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from hasten.errors import HastenError
from hasten.runtime.cache import KVCache

NAME = "hasten"
_NO_MASK = (
    "this cache's layers follow rules of their own and take no attention_mask: give rows of one length, or"
    " call the LanguageModel's generate"
)
_ACTIVE: ContextVar[KVCache] = ContextVar("the cache of the forward pass under way")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if mask is not None:
        raise HastenError(_NO_MASK)
    layer = _ACTIVE.get().layers[module.layer_idx]
    return layer.attend(query, key, value, scaling, cap=softcap, sinks=s_aux).transpose(1, 2).contiguous(), None


def no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Raises HastenError when a mask leaves something out."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise HastenError(_NO_MASK)


AttentionInterface.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, no_mask)


@contextlib.contextmanager
def following(network: Any, cache: KVCache) -> Iterator[None]:
    """Within, ``network`` attends as the layers of ``cache`` say."""
    before = network.config._attn_implementation
    token = _ACTIVE.set(cache)
    network.config._attn_implementation = NAME
    try:
        yield
    finally:
        network.config._attn_implementation = before
        _ACTIVE.reset(token)

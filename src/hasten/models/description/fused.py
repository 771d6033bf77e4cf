"""Attention as one kernel, whatever a model wraps around it, and latent attention without expanding what is cached.

transformers asks a table for the attention of a model. While a model is traced it finds this one there: the two
products and the softmax between them, over the keys that a window leaves, with no mask in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hasten.workload.dispatch import Tracer
from hasten.workload.latent import absorbed_attention

NAME = "hasten_described"
WITH_MASKS = "hasten_with_masks"  # for models that go on with the mask themselves


class _Attention:
    """The attention of one traced call."""

    def __init__(self, tracer: Tracer, cache: Any) -> None:
        self._tracer, self._cache = tracer, cache
        self._latents: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: list[Tensor] = []

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> tuple[Tensor, None]:
        latent = self._latents.pop(id(module), None)
        if latent is not None:
            return self._absorbed(module, query, *latent, options.get("indices")), None
        window = options.get("sliding_window") or self._window(module)
        seen = key.shape[-2] if options.get("indices") is None else options["indices"].shape[-1]
        if window:
            seen = min(seen, window)
        if seen < key.shape[-2]:
            key, value = key[..., :seen, :], value[..., :seen, :]
        own = isinstance(attention_mask, Tensor) and not any(attention_mask is m for m in self._masks)
        mask = attention_mask if own and attention_mask.shape[-1] == seen else None
        causal = query.shape[-2] > 1 and bool(getattr(module, "is_causal", True))
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal and mask is None,
                                               enable_gqa=True)  # fmt: skip
        return mixed.transpose(1, 2), None

    def _window(self, module: Any) -> int | None:
        number = getattr(module, "layer_idx", None)
        layers = getattr(self._cache, "layers", ())
        if not isinstance(number, int) or number >= len(layers):
            return None
        return getattr(layers[number], "sliding_window", None)

    def mask(self, batch_size: int = 1, q_length: int = 1, kv_length: int = 1, **options: Any) -> Tensor:
        """A mask that nothing is charged for: kernels work out what is seen."""
        with self._tracer.quiet():
            made = torch.empty((batch_size, 1, q_length, kv_length), dtype=torch.bool)
        self._masks.append(made)
        return made

    # -- latent attention ------------------------------------------------------------------------

    @contextmanager
    def latent(self, model: nn.Module, new: int) -> Iterator[bool]:
        """Within, cached latents are attended to as they are in a step of one token (arXiv 2405.04434, 2.1.2).

        A prompt expands them: there that is fewer operations.
        """
        found = [m for m in model.modules() if hasattr(m, "expand_kv") and hasattr(m, "kv_b_proj")] if new == 1 else []
        for module in found:

            def expand(low: Tensor, turned: Tensor, module: Any = module) -> tuple[Tensor, Tensor]:
                self._latents[id(module)] = (low, turned)
                heads, nope, wide = module.num_heads, module.qk_nope_head_dim, module.v_head_dim
                with self._tracer.quiet():
                    lead = (low.shape[0], heads, low.shape[2])
                    return low.new_empty(*lead, nope + turned.shape[-1]), low.new_empty(*lead, wide)

            module.__dict__["expand_kv"] = expand
        try:
            yield bool(found)
        finally:
            for module in found:
                del module.__dict__["expand_kv"]

    def _absorbed(self, module: Any, query: Tensor, low: Tensor, turned: Tensor, chosen: Tensor | None) -> Tensor:
        if chosen is not None and chosen.shape[-1] < low.shape[2]:
            low, turned = low[:, :, : chosen.shape[-1]], turned[:, :, : chosen.shape[-1]]
        weight, plain = module.kv_b_proj.weight, module.qk_nope_head_dim
        return absorbed_attention(self._tracer.recorder, query, low, turned, weight, plain)


_CURRENT: ContextVar[_Attention] = ContextVar("attention")


@contextmanager
def known_attention() -> Iterator[None]:
    """Within, `NAME` and `WITH_MASKS` are attention implementations that transformers knows."""

    def attend(*args: Any, **options: Any) -> tuple[Tensor, None]:
        return _CURRENT.get()(*args, **options)

    for name in (NAME, WITH_MASKS):
        ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(WITH_MASKS, lambda *args, **options: _CURRENT.get().mask(*args, **options))
    try:
        yield
    finally:
        for name in (NAME, WITH_MASKS):
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(WITH_MASKS, None)


@contextmanager
def fused_attention(model: nn.Module, tracer: Tracer, cache: Any, new: int) -> Iterator[None]:
    """Within, those implementations describe the attention of ``model`` in one traced call of ``new`` tokens."""
    made = _Attention(tracer, cache)
    token = _CURRENT.set(made)
    try:
        with made.latent(model, new):
            yield
    finally:
        _CURRENT.reset(token)

"""What a transformers model keeps from call to call, while it is traced: its own cache classes over bound state.

The layers of a `transformers.DynamicCache` keep their classes' behaviour and become subclasses of them, so that a
model that asks what kind of layer it has gets its usual answer. Keys and values lie in buffers as engines have them:
one token is written, all are read, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DummyLayer, LinearAttentionLayer

from hasten.workload.dispatch import Tracer
from hasten.workload.einsum import Role


class Store:
    """Where the state of one traced call is bound.

    Args:
        tracer: of the call.
        past: tokens that came before the call.
        capacity: tokens that there is room for.
        dtype: of keys and values; that of what is written when None.
    """

    def __init__(self, tracer: Tracer, past: int, capacity: int, dtype: torch.dtype | None) -> None:
        self.tracer, self.past, self.capacity, self.dtype = tracer, past, capacity, dtype
        self._buffers: dict[str, Tensor] = {}

    def bind(self, name: str, tensor: Tensor) -> Tensor:
        self.tracer.recorder.bind(tensor, name, Role.STATE)
        self._buffers[name] = tensor
        return tensor

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if name not in self._buffers:
            with self.tracer.quiet():
                self.bind(name, torch.empty(shape, dtype=dtype))
        return self._buffers[name]

    def write(self, name: str, new: Tensor, filled: int, window: int | None) -> Tensor:
        """Writes ``new`` (..., tokens, channels) behind ``filled`` tokens; returns what may be attended to."""
        count = new.shape[-2]
        kept = self.capacity if window is None else min(self.capacity, window)
        held = self.buffer(name, (*new.shape[:-2], kept, new.shape[-1]), self.dtype or new.dtype)
        last = min(count, kept)
        start = min(filled, kept - last)
        held[..., start : start + last, :].copy_(new[..., count - last :, :])
        if not filled:
            return new
        return held[..., : min(filled + count, kept), :].to(new.dtype)


class _Layer:
    """Mixed into a cache layer's class: what it keeps is bound in a `Store`."""

    store: Store
    number: int
    filled: int

    def _name(self, which: str) -> str:
        return f"cache.{self.number}.{which}"

    @property
    def window(self) -> int | None:
        return getattr(self, "sliding_window", None)


class _Attended(_Layer):
    """Keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = self.store.write(self._name("keys"), key_states, self.filled, self.window)
        values = self.store.write(self._name("values"), value_states, self.filled, self.window)
        self.filled += key_states.shape[-2]
        return keys, values

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        # Called behind `update` or before it: how much came before is what came before the call.
        return self.store.write(self._name("indexer"), indexer_key_states, self.store.past, None)

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if not self.filled:
            return query_length, 0
        kept = self.store.capacity if self.window is None else min(self.store.capacity, self.window)
        seen = min(self.filled + query_length, kept)
        return seen, self.filled + query_length - seen


class _Carried(_Layer):
    """The states of a recurrence or a convolution: as large after a million tokens as after one."""

    conv_states: dict[int, Tensor | None]
    recurrent_states: dict[int, Tensor | None]

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        with self.store.tracer.quiet():
            super().lazy_initialization(*args, **kwargs)  # type: ignore[misc]
        for which, states in (("conv", self.conv_states), ("recurrent", self.recurrent_states)):
            for index, tensor in states.items():
                if tensor is not None:
                    self.store.bind(self._name(f"{which}{index}"), tensor)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        if recurrent_states is self.recurrent_states[state_idx]:
            return recurrent_states  # a kernel moved it on in place
        return super().update_recurrent_state(recurrent_states, state_idx, **options)  # type: ignore[misc]

    def restore(self, which: str, tensor: Tensor) -> None:
        """Has a state from before the call."""
        kind = "conv" if which.startswith("conv") else "recurrent"
        index = int(which.removeprefix(kind))
        getattr(self, f"{kind}_states")[index] = tensor
        getattr(self, f"is_{kind}_states_initialized")[index] = True
        self.has_previous_state[index] = True  # type: ignore[attr-defined]
        if kind == "conv":
            self.conv_kernel_size[index] = tensor.shape[-1]  # type: ignore[attr-defined]
        self.dtype, self.device = tensor.dtype, tensor.device


class _Cache(DynamicCache):
    """A `transformers.DynamicCache` that knows how much came before even where no layer attends."""

    store: Store

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return int(super().get_seq_length(layer_idx))
        return self.store.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            seen, before = super().get_mask_sizes(query_length, layer_idx)
            return int(seen), int(before)
        return self.store.past + query_length, 0


_KEPT: dict[type[Any], type[Any]] = {}


def _kept_class(plain: type[Any]) -> type[Any] | None:
    """The class of a cache layer whose state is bound; None for one that keeps it in a way of its own."""
    attends = issubclass(plain, CacheLayerMixin)
    carries = issubclass(plain, LinearAttentionLayer)
    if plain.__module__ != "transformers.cache_utils" or not (attends or carries):
        return None
    parts = (*((_Carried,) if carries else ()), *((_Attended,) if attends else ()))
    return _KEPT.setdefault(plain, type(f"Kept{plain.__name__}", (*parts, plain), {}))


def kept_cache(config: Any, store: Store, before: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Any:
    """A cache for one traced call.

    Args:
        config: of the model.
        store: where its state is bound.
        before: what earlier calls left: shape and type of every state tensor, by name.

    Returns:
        The cache, or None where a layer keeps its state in a way that is known to its own class alone.
    """
    made = _Cache(config=config)
    made.store = store
    if made.layer_class_to_replicate is not None:
        return None
    for number, layer in enumerate(made.layers):
        if isinstance(layer, DummyLayer):
            continue
        plain: type[Any] = type(layer)
        kind = _kept_class(plain)
        if kind is None:
            return None
        own: Any = object.__new__(kind)
        vars(own).update(vars(layer), store=store, number=number, filled=store.past)
        made.layers[number] = own
    for name, (shape, dtype) in before.items():
        _, place, which = name.split(".")
        tensor = store.buffer(name, shape, dtype)
        kept = made.layers[int(place)]
        if isinstance(kept, _Carried) and which not in ("keys", "values", "indexer"):
            kept.restore(which, tensor)
    return made

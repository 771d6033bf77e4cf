"""Encoder-decoders: an encoder over the source once, then a decoder token by token that looks at what it made.

Keys and values of the cross attention are made once, with the decoder's first tokens, and read at every step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from hasten.errors import HastenError
from hasten.models.description.encoders import FLOATS, check_positions, inputs_of, number, trace_once
from hasten.models.description.kept import Store, kept_cache
from hasten.models.description.repeats import repeated_layers
from hasten.models.loading.config import build_as, one_line, quiet
from hasten.workload import Phase, Role, Traced, Workload, trace_cascade
from hasten.workload.dispatch import Tracer

_Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def describe_encoder_decoder(
    config: Any,
    kind: Any,
    *,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    dtype: str = "fp32",
    cache_dtype: str | None = None,
    image: tuple[int, int] | None = None,
    name: str = "",
) -> Workload:
    """The phases ``encode`` (once), ``prefill`` (the decoder's first tokens) and ``decode`` (a step a token).

    Args:
        config: its configuration.
        kind: its class in transformers.
        prompt: tokens of the source where that is text, after which the decoder begins with one; where the source is
            sound or an image, tokens that the decoder begins with.
        new_tokens: tokens made for each sequence.
        batch: sequences.
        dtype, cache_dtype: of weights and activations; of the cache.
        image: height and width in pixels, where the source is an image.
        name: for people.

    Raises:
        HastenError: more tokens than it has positions, or it cannot be traced.
    """
    heard = kind.main_input_name != "input_ids"
    first = prompt if heard else 1
    _check_positions(config, 0 if heard else prompt, first + new_tokens)
    problem: BaseException | None = None
    for implementation in ("sdpa", "eager"):
        try:
            model = build_as(config, implementation, FLOATS[dtype], kind)
            return _described(model, prompt, first, new_tokens, batch, dtype, cache_dtype, image, name)
        except Exception as error:  # whatever a class makes of its configuration
            problem = error
    raise HastenError(f"no description of {kind.__name__}: {one_line(problem or HastenError(''))}")


def _described(
    model: Any,
    prompt: int,
    first: int,
    new_tokens: int,
    batch: int,
    dtype: str,
    cache_dtype: str | None,
    image: tuple[int, int] | None,
    name: str,
) -> Workload:
    shapes, notes = inputs_of(_Encoder(model), prompt, batch, FLOATS[dtype], image)
    encoded = trace_once(model.get_encoder(), model, shapes)
    view = encoded.cascade.results[0].view
    if view is None or len(view.sizes) != 3:
        raise HastenError(f"{type(model).__name__} has an encoder whose result is no sequence")
    step = _Decoder(model, view.sizes, FLOATS[dtype], first + new_tokens, FLOATS[cache_dtype or dtype])
    prefill = step.call(first, 0, {})
    decode = step.call(1, first + new_tokens // 2, step.left)
    return Workload(
        name or model.config.model_type,
        (
            Phase("encode", encoded.cascade),
            Phase("prefill", prefill.cascade),
            Phase("decode", decode.cascade, new_tokens),
        ),
        prefill.weights,
        decode.state,
        {"prompt": prompt, "new_tokens": new_tokens, "batch": batch, "dtype": dtype},
        (f"the encoder reads once, the decoder begins with {first} token{'s' * (first > 1)}", *notes),
    )


class _Encoder:
    """A model as its encoder takes it: no tokens of the decoder."""

    def __init__(self, model: Any) -> None:
        self.config, self.main_input_name = model.config, model.main_input_name
        self.forward = model.get_encoder().forward
        if "input_ids" not in inspect.signature(self.forward).parameters:
            own = getattr(model.config, "encoder", None)
            self.config = own if own is not None and not isinstance(own, str) else model.config
        if self.main_input_name not in inspect.signature(self.forward).parameters:
            raise HastenError(f"{type(model).__name__} does not hand its input to its encoder")


class _CrossLayer(DynamicLayer):
    """Keys and values of the source for one layer of the decoder."""

    def __init__(self, store: Store, number: int, before: _Shapes) -> None:
        super().__init__()
        self._store, self._number = store, number
        held = {which: before.get(self._name(which)) for which in ("keys", "values")}
        self.filled = all(held.values())
        if self.filled:
            self.keys, self.values = (store.buffer(self._name(w), *s) for w, s in held.items() if s is not None)

    def _name(self, which: str) -> str:
        return f"cache.{self._number}.cross_{which}"

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = self._store.write(self._name("keys"), key_states, 0, None)
        return keys, self._store.write(self._name("values"), value_states, 0, None)

    def get_seq_length(self) -> int:
        return self._store.capacity if self.filled else 0


class _Decoder:
    """The decoder of a model on the meta device, traced call by call.

    Attributes:
        left: shape and type of every state tensor that the last call left, by name.
    """

    def __init__(
        self, model: Any, encoded: tuple[int, ...], dtype: torch.dtype, capacity: int, cache_dtype: torch.dtype
    ) -> None:
        self.model, self.encoded, self.dtype = model, encoded, dtype
        self.capacity, self.cache_dtype = capacity, cache_dtype
        self.left: _Shapes = {}

    def call(self, new: int, past: int, before: _Shapes) -> Traced:
        """One call with ``new`` tokens behind ``past``."""
        held: dict[str, Any] = {}

        @contextmanager
        def within(tracer: Tracer) -> Iterator[None]:
            held["tracer"] = tracer
            own = {n: s for n, s in before.items() if ".cross_" not in n}
            source = Store(tracer, 0, self.encoded[1], self.cache_dtype)
            with quiet():
                with tracer.fakes.mode:
                    kept = kept_cache(self.model.config, Store(tracer, past, self.capacity, self.cache_dtype), own)
                    if kept is None:
                        raise HastenError(f"{type(self.model).__name__} keeps its cache in a way of its own")
                    cross = DynamicCache()
                    cross.layers = [_CrossLayer(source, i, before) for i in range(len(kept.layers))]
                    cross.layer_class_to_replicate = None
                    held["cache"] = EncoderDecoderCache(kept, cross)
                with repeated_layers(self.model, tracer, kept):
                    yield

        def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
            tokens = torch.zeros(self.encoded[0], new, dtype=torch.int64)
            hidden = torch.zeros(self.encoded, dtype=self.dtype)
            return (), {
                "decoder_input_ids": tokens,
                "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
                "past_key_values": held["cache"],
                "use_cache": True,
            }

        found = trace_cascade(self.model, prepare=prepare, within=within)
        known = held["tracer"].recorder.tensors
        types = {**FLOATS, "int64": torch.int64}
        self.left = {n: (known[n].shape, types[known[n].dtype]) for n in found.state if known[n].role is Role.STATE}
        return found


def _check_positions(config: Any, source: int, target: int) -> None:
    """Whether a model has positions for its source and for what is made; relative ones have no end."""
    own = number(config, "max_target_positions", "decoder_max_position_embeddings")
    if own and target > own:
        raise HastenError(f"{target} tokens are more than the model's {own} positions: shorten the prompt")
    if not own and not hasattr(config, "relative_attention_num_buckets"):
        check_positions(config, max(source, target))

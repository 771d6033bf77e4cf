"""Decoder-only language models: a prompt, then a step for each new token, with what is kept between them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.description.fused import NAME, WITH_MASKS, fused_attention, known_attention
from hasten.models.description.kept import Store, kept_cache
from hasten.models.description.repeats import repeated_layers
from hasten.models.loading.config import build_as, one_line, quiet
from hasten.workload import Phase, Traced, Workload, trace_cascade
from hasten.workload.dispatch import Tracer

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_State = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


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
    """The phases ``prefill`` and ``decode`` of a causal language model, see `hasten.models.description.describe`.

    The decode step stands for all of them: it is taken in the middle, with ``new_tokens // 2`` tokens made before it.
    Only the last position of a prompt goes through the output head.
    """
    problem = ""
    for implementation in (NAME, WITH_MASKS, "sdpa", "eager"):
        try:
            with known_attention():
                model = build_as(config, implementation, FLOATS[dtype])
                described = _Decoder(model, batch, context + prompt + new_tokens, cache_dtype)
                prefill = described.call(prompt, context, {})
                decode = described.call(1, context + prompt + new_tokens // 2, described.left)
            break
        except Exception as error:  # whatever a class makes of an implementation that it does not have
            problem = problem or one_line(error)
    else:
        raise HastenError(f"no causal language model for this config: {problem}")
    return Workload(
        name or config.model_type,
        (Phase("prefill", prefill.cascade), Phase("decode", decode.cascade, new_tokens)),
        prefill.weights,
        decode.state,
        {"prompt": prompt, "new_tokens": new_tokens, "batch": batch, "context": context, "dtype": dtype},
        tuple(described.notes),
    )


class _Decoder:
    """A model on the meta device, traced call by call.

    Attributes:
        left: shape and type of every state tensor that the last call left, by name.
        notes: what stands in for what.
    """

    def __init__(self, model: nn.Module, batch: int, capacity: int, cache_dtype: str | None) -> None:
        self.model, self.batch, self.capacity = model, batch, capacity
        self.cache_dtype = None if cache_dtype is None else FLOATS[cache_dtype]
        self.left: _State = {}
        self.notes: dict[str, None] = {}
        self._takes = inspect.signature(model.forward).parameters

    def call(self, new: int, past: int, before: _State) -> Traced:
        """One call with ``new`` tokens behind ``past``."""
        held: dict[str, Any] = {}

        @contextmanager
        def within(tracer: Tracer) -> Iterator[None]:
            held["tracer"] = tracer
            store = Store(tracer, past, self.capacity, self.cache_dtype)
            with ExitStack() as stack:
                stack.enter_context(quiet())
                with tracer.fakes.mode:
                    held["cache"] = kept_cache(self.model.config, store, before)
                stack.enter_context(fused_attention(self.model, tracer, held["cache"], new))
                stack.enter_context(repeated_layers(self.model, tracer, held["cache"]))
                yield

        def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
            options: dict[str, Any] = {"use_cache": True}
            if "logits_to_keep" in self._takes:
                options["logits_to_keep"] = 1
            cache = "past_key_values" if "past_key_values" in self._takes else "cache_params"
            options[cache] = held["cache"]
            return (torch.zeros(self.batch, new, dtype=torch.int64),), options

        found = trace_cascade(self.model, prepare=prepare, within=within)
        known = held["tracer"].recorder.tensors
        self.left = {name: (known[name].shape, _torch_dtype(known[name].dtype)) for name in found.state}
        return found


def _torch_dtype(name: str) -> torch.dtype:
    return {**FLOATS, "fp64": torch.float64, "int64": torch.int64}[name]

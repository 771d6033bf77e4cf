"""Decoder-only language models: a prompt, then a step for each new token, with what is kept between them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from hasten.errors import HastenError
from hasten.models.description.fused import NAME, WITH_MASKS, fused_attention, known_attention
from hasten.models.description.kept import Store, kept_cache
from hasten.models.description.own_state import attribute_state, attributes_restored, returned_state, tensors_in
from hasten.models.description.recurrences import fused_recurrences
from hasten.models.description.repeats import repeated_layers
from hasten.models.loading.config import build_as, check_positions, one_line, quiet
from hasten.workload import Phase, Traced, Workload, trace_cascade
from hasten.workload.dispatch import Functions, Tracer
from hasten.workload.einsum import Role
from hasten.workload.recorder import TraceTooLongError

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How a model is tried: its attention in one kernel without and with masks, then torch's, then its own operators; its
# state in transformers' cache classes, then in whatever it returns. Classes differ in what they allow.
_WAYS = (
    (NAME, True), (NAME, False), (WITH_MASKS, True), ("sdpa", True), ("eager", True), ("eager", False),
)  # fmt: skip
_MOST = 40_000  # operators of one call, equal layers once: some 10 s; the largest models have a tenth
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
    build: Callable[[Any, str, torch.dtype], Any] = build_as,
) -> Workload:
    """The phases ``prefill`` and ``decode`` of a causal language model, see `hasten.models.description.describe`.

    The decode step stands for all of them: it is taken in the middle, with ``new_tokens // 2`` tokens made before it.
    Only the last position of a prompt goes through the output head.

    Raises:
        HastenError: more tokens than the model has positions, or a model that cannot be built or traced.
    """
    check_positions(config, context + prompt + new_tokens)
    problem = ""
    for implementation, keeps in _WAYS:
        try:
            with known_attention():
                model = build(config, implementation, FLOATS[dtype])
                described = _Decoder(model, batch, context + prompt + new_tokens, cache_dtype, keeps)
                prefill = described.call(prompt, context)
                decode = described.call(1, context + prompt + new_tokens // 2)
            break
        except TraceTooLongError:
            raise
        except Exception as error:  # whatever a class makes of an implementation that it does not have
            problem = problem or one_line(error)
    else:
        raise HastenError(f"no causal language model for this config: {problem}")
    if implementation == "eager":
        described.notes["attention is described operator by operator: the model has a form of its own"] = None
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

    def __init__(self, model: nn.Module, batch: int, capacity: int, cache_dtype: str | None, keeps: bool) -> None:
        self.model, self.batch, self.capacity = model, batch, capacity
        self.cache_dtype = None if cache_dtype is None else FLOATS[cache_dtype]
        self.left: _State = {}
        self.notes: dict[str, None] = {}
        takes = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True} if "use_cache" in takes else {}
        if "logits_to_keep" in takes:
            self._options["logits_to_keep"] = 1
        self._cache = next((n for n in ("past_key_values", "cache_params") if n in takes and keeps), "")
        self._takes_positions = "position_ids" in takes

    def call(self, new: int, past: int) -> Traced:
        """One call with ``new`` tokens behind ``past``."""
        tracers: list[Tracer] = []
        caches: list[Any] = []

        @contextmanager
        def within(tracer: Tracer) -> Iterator[None]:
            tracers.append(tracer)
            tracer.recorder.most = _MOST
            store = Store(tracer, past, self.capacity, self.cache_dtype)
            with ExitStack() as stack:
                stack.enter_context(quiet())
                stack.enter_context(attributes_restored(self.model))
                stack.enter_context(_unchecked_distributions())
                with tracer.fakes.mode:
                    cache = kept_cache(self.model.config, store, self.left if past else {}) if self._cache else None
                caches.append(cache)
                stack.enter_context(fused_attention(self.model, tracer, cache, new))
                stack.enter_context(_last_position(self.model, "logits_to_keep" in self._options))
                recurrences = stack.enter_context(fused_recurrences(self.model, tracer))
                if cache is None and past:
                    caches.append(self._own_state(tracer, past))
                stack.enter_context(repeated_layers(self.model, tracer, cache))
                yield
            for used in recurrences.used:
                kernel = used.replace("_", " ")
                self.notes[f"{kernel}: described as the kernel that engines run, in place of a loop"] = None

        def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
            options: dict[str, Any] = dict(self._options)
            if caches[0] is not None:
                options[self._cache] = caches[0]
            elif past:
                options |= caches[1]
                if self._takes_positions:
                    options["position_ids"] = torch.full((self.batch, new), past)
            return (torch.zeros(self.batch, new, dtype=torch.int64),), options

        found = trace_cascade(self.model, prepare=prepare, within=within)
        if caches[0] is None and past and not found.state:
            self.notes["the model keeps nothing between steps: each one reads all tokens again"] = None
            return self.call(past + new, 0)
        known = tracers[0].recorder.tensors
        self.left = {name: (known[name].shape, _torch_dtype(known[name].dtype)) for name in found.state}
        return found

    def _own_state(self, tracer: Tracer, past: int) -> dict[str, Any]:
        """What a model that reads ``past`` tokens takes at the next call; its tensors are bound as state."""
        recorder = tracer.recorder
        before = attribute_state(self.model)
        with torch.no_grad(), tracer.fakes.mode, tracer, Functions(tracer), tracer.quiet():
            result = self.model(torch.zeros(self.batch, past, dtype=torch.int64), **self._options)
        recorder.forget()
        state = returned_state(result)
        held = dict(tensors_in(state))
        held |= {n: t for n, t in attribute_state(self.model).items() if before.get(n) is not t}
        for name, tensor in held.items():
            recorder.bind(tracer.fakes.of(tensor), _state_name(name), Role.STATE, tensor.shape)
        return state


def _state_name(path: str) -> str:
    """The name of what a layer keeps, ``cache.7.keys``, so that equal layers' are told apart by their numbers alone."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.(.+)$", path)
    return f"cache.{found[1]}.{found[2].replace('.', '_')}" if found else f"state.{path}"


@contextmanager
def _last_position(model: Any, done: bool) -> Iterator[None]:
    """Within, the output head is given the last position alone, where the model does not see to it."""
    head = None if done else model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Within, torch's distributions do not look at values, which a trace has none of (Gemma 3n asks one)."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _torch_dtype(name: str) -> torch.dtype:
    return {**FLOATS, "fp64": torch.float64, "int64": torch.int64}[name]

"""The workload of any model that transformers can build."""

from __future__ import annotations

from typing import Any

from hasten.errors import HastenError
from hasten.models.description.decoders import describe_decoder
from hasten.workload import Workload

_FLOATS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def describe(
    config: Any,
    *,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    context: int = 0,
    dtype: str | None = None,
    cache_dtype: str | None = None,
    image: tuple[int, int] | None = None,
    name: str = "",
) -> Workload:
    """What a model computes for a prompt and new tokens: the phases ``prefill`` and ``decode``, weights and state.

    Args:
        config: a transformers configuration (`hasten.models.loading.config.read_config`).
        prompt: tokens of each prompt.
        new_tokens: tokens made for each sequence.
        batch: sequences.
        context: tokens that are in the cache before the prompt.
        dtype: of the weights, ``fp32``, ``bf16``, ``fp16``, ...; what the configuration says by default, fp32 where
            it says nothing.
        cache_dtype: of the cache; that of the activations by default.
        image: height and width in pixels, of models that see.
        name: for people.

    Returns:
        A workload. What was assumed or stands in for something is in its ``notes``.

    Raises:
        HastenError: nothing that can be described, in one line.
    """
    for label, value in (("prompt", prompt), ("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise HastenError(f"{label} is {value}: give at least 1")
    return describe_decoder(
        config,
        prompt=prompt,
        new_tokens=new_tokens,
        batch=batch,
        context=context,
        dtype=dtype or float_of(config),
        cache_dtype=cache_dtype,
        name=name,
    )


def float_of(config: Any) -> str:
    """The number format that a configuration gives its floating-point weights; fp32 where it says nothing."""
    said = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return _FLOATS.get(str(said).removeprefix("torch."), "fp32")

"""The workload of any model that transformers can build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hasten.errors import HastenError
from hasten.models.description.architecture import Way, class_of, way_of
from hasten.models.description.decoders import describe_decoder
from hasten.models.description.encoder_decoder import describe_encoder_decoder
from hasten.models.description.encoders import describe_encoder
from hasten.models.description.stored import with_weights
from hasten.models.description.vision_language import describe_vision_language
from hasten.models.loading.weight_types import WeightTypes, weight_types
from hasten.workload import Workload


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
    weights: WeightTypes | None = None,
) -> Workload:
    """What a model computes for a prompt and new tokens: its phases, weights and state.

    A decoder has the phases ``prefill`` and ``decode``, an encoder-decoder ``encode`` before them, and what runs once
    (an encoder, a classifier) ``forward`` alone.

    Args:
        config: a transformers configuration (`hasten.models.loading.config.read_config`).
        prompt: tokens of each prompt.
        new_tokens: tokens made for each sequence.
        batch: sequences.
        context: tokens that are in the cache before the prompt.
        dtype: of the weights, ``fp32``, ``bf16``, ``int4``, ``q4_k_m``, ..., see
            `hasten.models.loading.weight_types.weight_types`; what the configuration says by default.
        cache_dtype: of the cache; that of the activations by default.
        image: height and width in pixels, of models that see.
        name: for people.
        weights: their formats, where a file says them; ``dtype`` and the configuration by default.

    Returns:
        A workload. What was assumed or stands in for something is in its ``notes``.

    Raises:
        HastenError: nothing that can be described, in one line.
    """
    for label, value in (("prompt", prompt), ("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise HastenError(f"{label} is {value}: give at least 1")
    types = weights or weight_types(config, dtype)
    kind = class_of(config)
    way = way_of(config, kind)
    given: dict[str, Any] = {"prompt": prompt, "batch": batch, "dtype": types.activations, "name": name}
    if way is Way.ENCODER:
        return with_weights(describe_encoder(config, kind, image=image, **given), types)
    given |= {"new_tokens": new_tokens, "cache_dtype": cache_dtype}
    if way is Way.ENCODER_DECODER:
        return with_weights(describe_encoder_decoder(config, kind, image=image, **given), types)
    alone = getattr(config, "tower_unsaid", False) and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if way is Way.VISION_LANGUAGE and not alone:
        return with_weights(describe_vision_language(config, kind, context=context, image=image, **given), types)
    if way is Way.DECODER:
        _check_decoder(config, kind)
    found = describe_decoder(config, context=context, **given)
    if alone:
        said = "the language model alone: the configuration has no vision_config"
        found = replace(found, notes=(*found.notes, said))
    return with_weights(found, types)


def _check_decoder(config: Any, kind: Any) -> None:
    """Whether a model that makes tokens is of text alone.

    Raises:
        HastenError: it is not.
    """
    if getattr(config, "vision_config", None) is not None:
        raise HastenError(f"{kind.__name__} takes images in a way of its own, which hasten does not describe")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        sound = getattr(config, "audio_config", None) is not None
        what = "takes sound beside text" if sound else "makes tokens in a way of its own"
        raise HastenError(f"{kind.__name__} {what}, which hasten does not describe")

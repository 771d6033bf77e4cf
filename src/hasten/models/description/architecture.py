"""Which class of transformers a configuration is for, and in what way that class runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto

from hasten.errors import HastenError


class Way(StrEnum):
    """How a model runs."""

    DECODER = "decoder"  # a prompt, then a token at a time
    ENCODER = "encoder"  # once
    ENCODER_DECODER = "encoder-decoder"  # an encoder once, then a decoder a token at a time
    VISION_LANGUAGE = "vision-language"  # an image once, then as a decoder


# Where a configuration names no class: the tables of the auto classes, the most telling first.
_TABLES = (
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_MAPPING_NAMES,
)


def class_of(config: Any) -> Any:
    """The class that a configuration names, or else the one for its ``model_type``.

    Raises:
        HastenError: the installed transformers has none.
    """
    named = [n for n in getattr(config, "architectures", None) or () if isinstance(n, str)]
    kind = config.model_type
    for name in named:
        found = getattr(transformers, name, None) if name.isidentifier() else None
        if found is not None and getattr(found, "config_class", None) is not None and _made_for(found, config):
            causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
            # A file of a decoder without its head names the bare class; a step has a head all the same.
            bare = name == auto.MODEL_MAPPING_NAMES.get(kind) and not found.can_generate()
            if bare and causal and not _masked(config) and not _both(config):
                return getattr(transformers, causal)
            return found
    for table in _TABLES:
        if table is auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _masked(config):
            continue
        name = table.get(kind)
        name = name[0] if isinstance(name, list | tuple) else name
        if name and hasattr(transformers, name):
            return getattr(transformers, name)
    raise HastenError(
        f"this transformers has no model for configurations of {kind!r}: give another model's config.json"
    )


def way_of(config: Any, kind: Any) -> Way:
    """How ``kind``, the class of ``config``, runs."""
    if not kind.can_generate():
        return Way.ENCODER
    if _both(config):
        return Way.ENCODER_DECODER
    if getattr(config, "vision_config", None) is not None and hasattr(kind, "get_image_features"):
        return Way.VISION_LANGUAGE
    return Way.DECODER


def _made_for(found: Any, config: Any) -> bool:
    wanted = found.config_class
    return isinstance(wanted, type) and isinstance(config, wanted)


def _masked(config: Any) -> bool:
    """Whether it is of a family that fills in masked tokens, and not set up as a decoder."""
    known = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return known and not getattr(config, "is_decoder", False)


def _both(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))

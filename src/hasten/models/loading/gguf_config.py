"""A GGUF file's description of its network, as a transformers config."""

from __future__ import annotations

import re
from typing import Any

from hasten.errors import HastenError
from hasten.models.loading.config import one_line
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_architectures import ARCHITECTURES, StoredArchitecture
from hasten.models.loading.gguf_metadata import Metadata
from hasten.models.loading.gguf_rope import rope_parameters

# What changes a network; where an architecture has no such setting, hasten does not build what the file means.
_CHANGING = (
    "expert_shared_feed_forward_length",
    "expert_count",
    "expert_shared_count",
    "expert_group_count",
    "expert_weights_scale",
    "leading_dense_block_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.temperature_length",
    "attention.temperature_scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "router_logit_softcapping",
)
_FFN = "feed_forward_length"
_WINDOW, _PATTERN, _WINDOW_THETA = (
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
)


def architecture_of(file: GGUFFile) -> StoredArchitecture:
    """Which of the known networks a file holds.

    Raises:
        HastenError: none.
    """
    meta = Metadata(file)
    name = meta.architecture
    kinds = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if kinds is None:
        raise HastenError(f"{file.path} is a {str(name)[:40]!r} model; hasten loads {', '.join(ARCHITECTURES)}")
    return next(kind for kind in kinds if not kind.when or meta.given(kind.when))


def gguf_config(file: GGUFFile) -> Any:
    """The configuration of the network that a file holds.

    Raises:
        HastenError: an architecture that hasten does not load, a setting that is missing or impossible, or one that
            the network would have to heed and cannot.
    """
    import transformers

    meta = Metadata(file)
    kind = architecture_of(file)
    heeded = {setting.key for setting in kind.settings}
    for key in _CHANGING:
        if key not in heeded and meta.given(key):
            raise HastenError(f"{file.path} sets {meta.architecture}.{key}: hasten cannot load this variant")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise HastenError(f"{file.path} has no token_embd.weight matrix: fetch or copy the file again")
    vocabulary = embedding.shape[0]
    heads, hidden = meta.whole("attention.head_count"), meta.whole("embedding_length")
    layers = meta.whole("block_count")
    held = {layer[1] for name in file.tensors if (layer := re.match(r"blk\.(\d{1,6})\.", name))}
    if len(held) != layers:
        # Before a list of as many layers is made.
        raise HastenError(f"{file.path} holds {len(held)} layers, its config says {layers}: fetch or copy it again")
    head_dim = meta.whole("attention.key_length", max(hidden // heads, 1))
    turned = meta.whole("rope.dimension_count", head_dim)
    for key, found in (("attention.value_length", meta.whole("attention.value_length", head_dim)),
                       ("rope.dimension_count", turned)):  # fmt: skip
        if found != head_dim and not (kind.partial and key.startswith("rope") and found < head_dim):
            raise HastenError(
                f"{file.path}: {key} differs from the {head_dim} of a head: hasten cannot load this variant"
            )
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads or turned % 2:
        raise HastenError(f"{file.path} has {heads} heads of {turned} for {kv_heads} KV heads: fetch or copy it again")
    class_ = getattr(transformers, kind.config)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": meta.whole("context_length", 2048),
        "rope_parameters": rope_parameters(meta, turned),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.token("bos", vocabulary),
        "eos_token_id": meta.token("eos", vocabulary),
        "pad_token_id": meta.token("padding", vocabulary),
        **kind.fixed,
    }
    if head_dim * heads != hidden or hasattr(class_, "head_dim"):
        settings["head_dim"] = head_dim
    if settings["rope_parameters"]["rope_type"] == "yarn":
        settings["rope_parameters"] |= kind.yarn
    if kind.partial:
        settings["rope_parameters"]["partial_rotary_factor"] = turned / head_dim
    for setting in kind.settings:
        default = head_dim**-0.5 if setting.by_head else setting.default
        if setting.optional and not meta.given(setting.key):
            continue
        if setting.whole:
            settings[setting.name] = meta.whole(setting.key, None if default is None else int(default))
        else:
            settings[setting.name] = meta.number(setting.key, default)
    if "intermediate_size" not in settings and ("moe_intermediate_size" not in settings or meta.given(_FFN)):
        settings["intermediate_size"] = meta.whole(_FFN)
    for name, tensor in kind.present.items():
        settings[name] = (f"blk.0.{tensor.removeprefix('!')}" in file.tensors) is not tensor.startswith("!")
    if kind.scaled_by_width is not None:
        settings["query_pre_attn_scalar"] = hidden // heads if layers == kind.scaled_by_width else head_dim
    settings |= _windows(meta, kind, layers, settings["rope_parameters"])
    try:
        return class_(**settings)
    except Exception as error:
        raise HastenError(f"{file.path} does not describe a usable model: {one_line(error)}") from None


def _windows(meta: Metadata, kind: StoredArchitecture, layers: int, rope: dict[str, Any]) -> dict[str, Any]:
    """Settings of layers with a window, and of their positions."""
    windows = kind.windows
    if windows is None:
        return {}
    given = meta.given(_WINDOW)
    if not given and windows.default is None:
        if windows.period is None:
            return {"sliding_window": None}
        found: dict[str, Any] = {"layer_types": ["full_attention"] * layers}
    else:
        found = {"sliding_window": meta.whole(_WINDOW, windows.default)}
        if windows.period is None:
            return found
        found["layer_types"] = _layer_types(meta, layers, windows.period)
    if windows.theta is not None:
        theta = meta.number(_WINDOW_THETA, windows.theta or rope["rope_theta"])
        plain = {"rope_type": "default", "rope_theta": theta}
        found["rope_parameters"] = {"full_attention": rope, "sliding_attention": plain}
    elif meta.given(_WINDOW_THETA) and meta.number(_WINDOW_THETA) != rope["rope_theta"]:
        raise HastenError(f"{meta.file.path} sets {meta.architecture}.{_WINDOW_THETA}: hasten cannot load this variant")
    return found


def _layer_types(meta: Metadata, layers: int, period: int) -> list[str]:
    """Which layers have the window: as a list of the file says, or all but the last of each period."""
    said = meta.file.metadata.get(f"{meta.architecture}.{_PATTERN}", period)
    if isinstance(said, list):
        if len(said) != layers or not all(isinstance(one, bool | int) for one in said):
            raise HastenError(
                f"{meta.file.path} says for {len(said)} of {layers} layers which have a window: fetch or copy it again"
            )
        return ["sliding_attention" if one else "full_attention" for one in said]
    period = meta.whole(_PATTERN, period)
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]

"""A GGUF file's description of its network, as a transformers config."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.config import FAMILIES, one_line
from hasten.models.loading.gguf import GGUFFile

_GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
# What changes the network behind these architectures' names, and hasten does not build.
_UNREAD = (
    "expert_count",
    "attention.scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
_YARN_UNREAD = (
    "attn_factor",
    "yarn_log_multiplier",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)


class _Metadata:
    """A GGUF file's values of its architecture, each checked when it is read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.metadata.get("general.architecture")

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def _value(self, key: str, default: float | None) -> Any:
        found = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise HastenError(f"{self.file.path} lacks {self.architecture}.{key}: fetch or copy the file again")
        return found

    def _wrong(self, key: str, found: object) -> HastenError:
        shown = str(found)[:40]
        return HastenError(f"{self.file.path} says {self.architecture}.{key} is {shown}: hasten cannot load that")

    def whole(self, key: str, default: int | None = None) -> int:
        found = self._value(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 27:
            raise self._wrong(key, found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self._value(key, default)
        if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
            raise self._wrong(key, found)
        return float(found)

    def token(self, key: str, vocabulary: int) -> int | None:
        found = self.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if found is not None and (not isinstance(found, int) or not 0 <= found < vocabulary):
            raise HastenError(f"{self.file.path} has an impossible {key} token ({str(found)[:40]}): fetch it again")
        return found


def gguf_config(file: GGUFFile) -> Any:
    import transformers

    meta = _Metadata(file)
    architecture = meta.architecture
    if architecture not in _GGUF_ARCHITECTURES:
        known = ", ".join(_GGUF_ARCHITECTURES)
        raise HastenError(f"{file.path} is a {str(architecture)[:40]!r} model; hasten loads {known}")
    for key in _UNREAD:
        if file.metadata.get(f"{architecture}.{key}"):
            raise HastenError(f"{file.path} sets {architecture}.{key}: hasten cannot load this variant")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise HastenError(f"{file.path} has no token_embd.weight matrix: fetch or copy the file again")
    vocabulary = embedding.shape[0]
    heads, hidden = meta.whole("attention.head_count"), meta.whole("embedding_length")
    head_dim = meta.whole("attention.key_length", max(hidden // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if meta.whole(key, head_dim) != head_dim:
            raise HastenError(
                f"{file.path}: {key} differs from the {head_dim} of a head: hasten cannot load this variant"
            )
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise HastenError(
            f"{file.path} has {heads} heads of {head_dim} for {kv_heads} KV heads: fetch or copy it again"
        )
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": meta.whole("feed_forward_length"),
        "num_hidden_layers": meta.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": meta.whole("context_length", 2048),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(meta, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.token("bos", vocabulary),
        "eos_token_id": meta.token("eos", vocabulary),
        "pad_token_id": meta.token("padding", vocabulary),
    }
    family = architecture
    if architecture == "llama":
        # llama.cpp files Mistral under llama: the same network, but for the window.
        if meta.has("attention.sliding_window"):
            family = "mistral"
            settings["sliding_window"] = meta.whole("attention.sliding_window")
        else:
            settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
            settings["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if architecture == "qwen3":
        settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    try:
        return getattr(transformers, FAMILIES[family])(**settings)
    except Exception as error:
        raise HastenError(f"{file.path} does not describe a usable model: {one_line(error)}") from None


def _rope(meta: _Metadata, head_dim: int) -> dict[str, Any]:
    """Rotary positions as transformers names them."""
    theta = meta.number("rope.freq_base", 10000.0)
    plain = {"rope_type": "default", "rope_theta": theta}
    kind = meta.file.metadata.get(f"{meta.architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in meta.file.tensors:
        factors = meta.file.dequantize("rope_freqs.weight").flatten()
        if factors.shape == (head_dim // 2,) and kind == "none":
            found = _llama3_rope(factors, theta)
            if found is not None:
                return found
        raise HastenError(f"{meta.file.path} scales its rotary frequencies in a way that hasten does not know")
    if kind == "none":
        return plain
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": meta.number("rope.scaling.factor")}
    if kind == "yarn" and not any(meta.has(f"rope.scaling.{k}") for k in _YARN_UNREAD):
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": meta.number("rope.scaling.factor"),
            "original_max_position_embeddings": meta.whole("rope.scaling.original_context_length"),
        }
    raise HastenError(
        f"{meta.file.path} scales its rotary positions ({str(kind)[:40]}) in a way that hasten does not know"
    )


def _llama3_rope(factors: Tensor, theta: float) -> dict[str, Any] | None:
    """The rule of Llama 3.1 and 3.2 behind a file's divisors of rotary frequencies; None if it is another."""
    if bool((factors == 1).all()):
        return {"rope_type": "default", "rope_theta": theta}
    factor, low, high, trained = float(factors.max()), 1.0, 4.0, 8192
    half = len(factors)
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = trained * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    rule = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(factors.double(), rule, rtol=1e-3):
        return None
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }

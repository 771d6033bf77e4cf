"""Rotary positions as a GGUF file scales them, as transformers names them.

Facts from llama.cpp (``llama-model.cpp``, ``llama-context.cpp``): a factor without a kind is linear, and so is the
older key ``rope.scale_linear``; divisors of single frequencies stand in tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.gguf_metadata import Metadata

_DIVISORS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def rope_parameters(meta: Metadata, head_dim: int) -> dict[str, Any]:
    """The ``rope_parameters`` of a transformers config.

    Raises:
        HastenError: a kind of scaling that nobody knows, or one that lacks its numbers.
    """
    theta = meta.number("rope.freq_base", 10000.0)
    plain = {"rope_type": "default", "rope_theta": theta}
    kind = meta.file.metadata.get(f"{meta.architecture}.rope.scaling.type", "linear")
    factor = 1.0
    for key in ("rope.scale_linear", "rope.scaling.factor"):
        if meta.given(key):
            factor = meta.number(key)
    long, short = _divisors(meta, _LONG, head_dim), _divisors(meta, _SHORT, head_dim)
    divisors = _divisors(meta, _DIVISORS, head_dim)
    if divisors is None and long is not None and short is not None and kind in ("longrope", "linear", "none"):
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": _trained(meta),
            "attention_factor": meta.number("rope.scaling.attn_factor", 1.0),
        }
    if kind == "none":
        factor = 1.0
    if divisors is not None and kind in ("none", "linear", "longrope"):
        found = _llama3_rope(divisors, theta) if factor == 1 else None
        return found or _of_divisors(meta, theta, divisors * factor)
    if divisors is None and kind in ("none", "linear"):
        return plain if factor == 1 else {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if divisors is None and kind == "yarn":
        return _yarn(meta, theta, factor) if factor != 1 else plain
    raise HastenError(
        f"{meta.file.path} scales its rotary positions ({str(kind)[:40]}) in a way that hasten does not know"
    )


def _trained(meta: Metadata) -> int:
    """The length that a model was trained at, before its positions were scaled."""
    return meta.whole("rope.scaling.original_context_length", meta.whole("context_length", 2048))


def _yarn(meta: Metadata, theta: float, factor: float) -> dict[str, Any]:
    extrapolated = meta.file.metadata.get(f"{meta.architecture}.rope.scaling.yarn_ext_factor", 1.0)
    if not isinstance(extrapolated, int | float) or (extrapolated >= 0 and extrapolated != 1):
        raise HastenError(f"{meta.file.path} scales its rotary positions (yarn, a part of it) as hasten cannot")
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": _trained(meta),
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if meta.given(f"rope.scaling.{key}"):
            found[name] = meta.number(f"rope.scaling.{key}")
    by = meta.number("rope.scaling.attn_factor", 1.0) * meta.number("rope.scaling.yarn_attn_factor", 1.0)
    grown = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
    if meta.given("rope.scaling.yarn_log_multiplier"):
        # As DeepSeek's: what is divided by is the growth at another rate.
        rate = meta.number("rope.scaling.yarn_log_multiplier")
        found["attention_factor"] = by * grown / (1 + 0.1 * rate * math.log(factor) if factor > 1 else 1.0)
    elif by != 1:
        found["attention_factor"] = by * grown
    return found


def _divisors(meta: Metadata, name: str, head_dim: int) -> Tensor | None:
    """What a head's frequencies are divided by (head_dim / 2)."""
    if name not in meta.file.tensors:
        return None
    found = meta.file.dequantize(name).flatten()
    if found.shape != (head_dim // 2,) or not bool((torch.isfinite(found) & (found > 0)).all()):
        raise HastenError(f"{meta.file.path}: {name} are no rotary frequencies of heads of {head_dim}: fetch it again")
    return found


def _of_divisors(meta: Metadata, theta: float, divisors: Tensor) -> dict[str, Any]:
    """Divisors of no known rule: the same ones at any length."""
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": divisors.tolist(),
        "long_factor": divisors.tolist(),
        "original_max_position_embeddings": _trained(meta),
        "attention_factor": meta.number("rope.scaling.attn_factor", 1.0),
    }


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

"""The weights of a trained layer with what it is given on real text, for what computes a layer in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.models.loading.network import load_network


def real_layer(tokens: int = 256, *, small: bool = False) -> tuple[dict[str, Tensor], str]:
    """Weights of the middle layer of SmolLM2 and its input after the norm, or random ones of the same form without it.

    Args:
        tokens: of text.
        small: random ones of a few channels, without loading anything.

    Returns:
        ``X`` (tokens, hidden), ``WG`` and ``WU`` (hidden, inner), ``WD`` (inner, hidden), ``WQ`` (hidden, groups,
        heads of a group, channels; scaled by the root of the channels), ``WK`` and ``WV`` (hidden, groups, channels),
        ``WO`` (groups, heads of a group, channels, hidden), all float32 and contiguous; and where they are from.
    """
    if not small:
        try:
            return _trained(tokens), "a layer of SmolLM2"
        except HastenError:
            pass
    generator = torch.Generator().manual_seed(0)
    k, h, g, r, e = (12, 32, 2, 2, 3) if small else (576, 1536, 3, 3, 64)
    shapes = {
        "X": (tokens, k), "WG": (k, h), "WU": (k, h), "WD": (h, k),
        "WQ": (k, g, r, e), "WK": (k, g, e), "WV": (k, g, e), "WO": (g, r, e, k),
    }  # fmt: skip
    drawn = {n: torch.randn(s, generator=generator) * (1.0 if n == "X" else s[0] ** -0.5) for n, s in shapes.items()}
    return drawn, "random numbers"


def _trained(tokens: int) -> dict[str, Tensor]:
    loaded = load_network()
    network = loaded.network.float()
    ids = torch.tensor([loaded.tokenizer.encode(default_text()[:20_000])[:tokens]])
    layers = network.model.layers
    layer = layers[len(layers) // 2]
    seen: list[Tensor] = []
    handle = layer.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.inference_mode():
            network(ids)
    finally:
        handle.remove()
    config = network.config
    groups, channels = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    each = config.num_attention_heads // groups
    attention, mlp = layer.self_attn, layer.mlp
    width = config.hidden_size
    found = {
        "X": seen[0][0],
        "WG": mlp.gate_proj.weight.T,
        "WU": mlp.up_proj.weight.T,
        "WD": mlp.down_proj.weight.T,
        "WQ": attention.q_proj.weight.T.reshape(width, groups, each, channels) / math.sqrt(channels),
        "WK": attention.k_proj.weight.T.reshape(width, groups, channels),
        "WV": attention.v_proj.weight.T.reshape(width, groups, channels),
        "WO": attention.o_proj.weight.T.reshape(groups, each, channels, width),
    }
    return {n: t.detach().clone().float().contiguous() for n, t in found.items()}


def layer_answers(w: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What both parts of a layer give by torch, ``feed-forward`` and ``attention``: without mask and rotation."""
    x = w["X"]
    ffn = (functional.silu(x @ w["WG"]) * (x @ w["WU"])) @ w["WD"]
    q = torch.einsum("nk,kgre->grne", x, w["WQ"]).flatten(0, 1)
    k, v = (torch.einsum("nk,kge->gne", x, w[n]).repeat_interleave(w["WQ"].shape[2], 0) for n in ("WK", "WV"))
    mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]
    return {"feed-forward": ffn, "attention": torch.einsum("hnf,hfo->no", mixed, w["WO"].flatten(0, 1))}

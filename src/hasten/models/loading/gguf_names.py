"""GGUF's names and orders of tensors in transformers'."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.gguf import GGUFFile

NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def gguf_name(name: str) -> str | None:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    found = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{int(found[1])}.{_LAYER_NAMES[found[2]]}.{found[3]}"


def unpermuted(weight: Tensor, name: str, file: GGUFFile, config: Any) -> Tensor:
    """llama.cpp interleaves the two rotary halves of q and k, for its ``llama`` architecture alone."""
    if file.metadata.get("general.architecture") != "llama" or not re.search(r"[qk]_proj\.", name):
        return weight
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    if weight.shape[0] % (heads * 2):
        raise HastenError(f"{file.path}: {name} has {weight.shape[0]} rows for {heads} heads: fetch or copy it again")
    rest = weight.shape[1:]
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()

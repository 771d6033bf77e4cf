"""A GGUF file's description of its network, as a transformers config."""

from __future__ import annotations

from typing import Any

from hasten.errors import HastenError
from hasten.models.loading.config import FAMILIES, one_line
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.gguf_metadata import Metadata
from hasten.models.loading.gguf_rope import rope_parameters

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


def gguf_config(file: GGUFFile) -> Any:
    import transformers

    meta = Metadata(file)
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
        "rope_parameters": rope_parameters(meta, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.token("bos", vocabulary),
        "eos_token_id": meta.token("eos", vocabulary),
        "pad_token_id": meta.token("padding", vocabulary),
    }
    family = architecture
    if architecture == "llama":
        # llama.cpp files Mistral under llama: the same network, but for the window.
        if meta.given("attention.sliding_window"):
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

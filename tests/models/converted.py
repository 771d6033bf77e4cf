"""Tiny random networks of transformers, and GGUF files of them as llama.cpp's own converters write them.

What is stored in another form (permuted, split, with 1 added) is written here after ``conversion/*.py`` of llama.cpp,
apart from hasten's tables, so that a mistake in those does not cancel out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from .conftest import permuted, random_network, write_file

_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [2.0 + 0.5 * i for i in range(12)],
    "original_max_position_embeddings": 256,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1.5e5,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
_EXPERTS = {"num_experts_per_tok": 2}


# Ends of names of what llama.cpp never quantizes.
_IN_FP32 = ("norm.weight", "bias", "sinks.weight")


# Architectures whose q and k llama.cpp permutes.
_PERMUTED = ("llama", "granite", "granitemoe", "smollm3")


class Family(NamedTuple):
    """A configuration of transformers, GGUF's architecture, and the settings that make it different."""

    config: str
    architecture: str
    settings: dict[str, Any]


CONVERTED: dict[str, Family] = {
    "gemma": Family("GemmaConfig", "gemma", {"head_dim": 64}),
    "gemma2": Family(
        "Gemma2Config",
        "gemma2",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        "gemma3",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 8, "num_hidden_layers": 6,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
    "phi3": Family("Phi3Config", "phi3", {"rope_parameters": {**_PLAIN, "partial_rotary_factor": 1.0}}),
    "phi4-mini": Family(
        "Phi3Config",
        "phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 256, "max_position_embeddings": 1024,
         "tie_word_embeddings": True},
    ),
    "olmo2": Family("Olmo2Config", "olmo2", {}),
    "olmo3": Family(
        "Olmo3Config",
        "olmo2",
        {"num_hidden_layers": 4, "sliding_window": 8,
         "rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
                                                "original_max_position_embeddings": 64},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    ),
    "smollm3": Family("SmolLM3Config", "smollm3", {"num_hidden_layers": 4}),
    "granite": Family(
        "GraniteConfig",
        "granite",
        {"attention_multiplier": 0.11, "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "granitemoe": Family(
        "GraniteMoeConfig",
        "granitemoe",
        {**_EXPERTS, "num_local_experts": 4, "attention_multiplier": 0.11, "embedding_multiplier": 3.0,
         "residual_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "olmoe": Family("OlmoeConfig", "olmoe", {**_EXPERTS, "num_experts": 4, "num_key_value_heads": 4}),
    "seed_oss": Family("SeedOssConfig", "seed_oss", {"head_dim": 32}),
    "stablelm": Family("StableLmConfig", "stablelm", {"use_qkv_bias": True}),
    "stablelm in parallel": Family(
        "StableLmConfig", "stablelm", {"use_parallel_residual": True, "qk_layernorm": True}
    ),
    "mixtral": Family("MixtralConfig", "llama", {**_EXPERTS, "num_local_experts": 4}),
    "qwen2moe": Family(
        "Qwen2MoeConfig",
        "qwen2moe",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    ),
    "qwen3moe": Family(
        "Qwen3MoeConfig",
        "qwen3moe",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "gpt-oss": Family(
        "GptOssConfig",
        "gpt-oss",
        {**_EXPERTS, "num_local_experts": 4, "head_dim": 64, "sliding_window": 8, "rope_parameters": _YARN},
    ),
}  # fmt: skip


def tiny_network(family: str, **changes: Any) -> Any:
    """`random_network` of a family; Gemma's norms add 1 to their weights."""
    kind, _, extra = CONVERTED[family]
    return random_network(kind, 0.0 if family.startswith("gemma") else 1.0, **{**extra, **changes})


def metadata(network: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's converter for this class writes of its configuration."""
    c = network.config
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    found: dict[str, Any] = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
    }
    if architecture == "stablelm":
        return found | {
            "attention.layer_norm_epsilon": float(c.layer_norm_eps),
            "rope.dimension_count": int(rope["partial_rotary_factor"] * head_dim),
            "use_parallel_residual": c.use_parallel_residual,
        }
    found["attention.layer_norm_rms_epsilon"] = float(c.rms_norm_eps)
    if getattr(c, "head_dim", None):
        found |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if architecture not in ("gemma", "gemma2"):
        found["rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                found[f"rope.scaling.yarn_{key}"] = float(rope[key])
    if architecture in _PERMUTED:
        found["rope.dimension_count"] = head_dim
    if architecture == "phi3":
        found["rope.dimension_count"] = int(rope["partial_rotary_factor"] * head_dim)
        found["attention.sliding_window"] = c.sliding_window or 0
        found["rope.scaling.original_context_length"] = c.original_max_position_embeddings
        if rope["rope_type"] == "longrope":
            scale = c.max_position_embeddings / c.original_max_position_embeddings
            grown = np.sqrt(1 + np.log(scale) / np.log(c.original_max_position_embeddings))
            found["rope.scaling.attn_factor"] = float(grown)
    elif architecture in ("gemma2", "gemma3", "gpt-oss", "olmo2") and getattr(c, "sliding_window", None):
        found["attention.sliding_window"] = c.sliding_window
        if architecture == "olmo2":
            found["attention.sliding_window_pattern"] = [t == "sliding_attention" for t in c.layer_types]
    for key, name in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ):
        if getattr(c, key, None):
            found[name] = float(getattr(c, key))
    experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None)
    if experts:
        found |= {"expert_count": experts, "expert_used_count": c.num_experts_per_tok}
    if getattr(c, "moe_intermediate_size", None):
        found["expert_feed_forward_length"] = c.moe_intermediate_size
    if architecture == "gpt-oss":
        found["expert_feed_forward_length"] = c.intermediate_size
    if getattr(c, "shared_expert_intermediate_size", None):
        found["expert_shared_feed_forward_length"] = c.shared_expert_intermediate_size
    return found


def tensors(network: Any, architecture: str) -> dict[str, np.ndarray]:
    """The network's tensors by the names and in the forms of llama.cpp's converter."""
    c = network.config
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], c.num_hidden_layers
    )
    found: dict[str, np.ndarray] = {}
    norms: dict[str, list[np.ndarray]] = {}

    def add(name: str, value: np.ndarray) -> None:
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        found[target] = value

    for name, parameter in network.named_parameters():
        value = parameter.detach().float().numpy()
        if architecture == "granitemoe":  # by the names that its folders have, or Mixtral's
            name = name.replace("moe.router.", "moe.router.layer.").replace("block_sparse_moe.experts", "mlp.experts")
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if architecture in _PERMUTED and "q_proj" in name:
            value = permuted(value, c.num_attention_heads)
        if architecture in _PERMUTED and "k_proj" in name:
            value = permuted(value, c.num_key_value_heads)
        base = name.rpartition(".experts.")[0] + ".experts."
        if ".norms." in name:
            norms.setdefault(name.partition(".norms.")[0] + ".weight", []).append(value)
        elif "sinks" in name:
            add(f"{name}.weight", value)
        elif name.endswith("experts.gate_up_proj_bias"):
            add(f"{base}gate_proj.bias", value[:, ::2])
            add(f"{base}up_proj.bias", value[:, 1::2])
        elif name.endswith("experts.down_proj_bias"):
            add(f"{base}down_proj.bias", value)
        elif name.endswith("experts.gate_up_proj") and architecture == "gpt-oss":
            turned = value.swapaxes(1, 2)
            add(f"{base}gate_proj.weight", turned[:, ::2])
            add(f"{base}up_proj.weight", turned[:, 1::2])
        elif name.endswith("experts.gate_up_proj"):
            half = value.shape[1] // 2
            add(f"{base}gate_proj.weight", value[:, :half])
            add(f"{base}up_proj.weight", value[:, half:])
        elif name.endswith("experts.down_proj"):
            add(f"{base}down_proj.weight", value.swapaxes(1, 2) if architecture == "gpt-oss" else value)
        elif name.endswith("shared_expert_gate.weight"):
            add(name, value[0])
        else:
            add(name, value)
    for name, parts in norms.items():
        add(name, np.stack(parts))
    rope = c.rope_parameters
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            found[f"rope_factors_{length}.weight"] = np.array(rope[f"{length}_factor"], np.float32)
    return found


def convert(
    network: Any,
    path: Path,
    family: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    pre: str = "smollm",
    changes: dict[str, Any] | None = None,
    others: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Writes ``network`` as a GGUF file.

    Args:
        network, path: what and where.
        family: of `CONVERTED`.
        kind: of its matrices; routers, norms and biases stay in fp32, as llama.cpp keeps them.
        pre: how the tokenizer splits text.
        changes: metadata in place of the right ones; None for none.
        others: tensors in place of the right ones; None for none.
    """
    architecture = CONVERTED[family].architecture
    values = {**metadata(network, architecture), **(changes or {})}
    weights = {**tensors(network, architecture), **(others or {})}
    plain = {
        n: w for n, w in weights.items() if w is not None and ("ffn_gate_inp" in n or "norm" in n or n.endswith("bias"))
    }
    return write_file(
        path,
        architecture,
        {k: v for k, v in values.items() if v is not None},
        {n: w for n, w in weights.items() if w is not None and n not in plain},
        kind,
        pre=pre,
        as_they_are={n: np.ascontiguousarray(w, np.float32) for n, w in plain.items()},
    )

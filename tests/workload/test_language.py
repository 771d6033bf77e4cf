"""A configuration alone describes the same contractions, weights and cache as the real module, traced."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.workload import Cascade, Role, language, language_model, trace_cascade

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "deepseek_v3": {
        **LATENT,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "longcat_flash": {
        **LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 40,
        "expert_ffn_hidden_size": 20,
        "zero_expert_num": 4,
        "moe_topk": 3,
        "head_dim": 4,
    },
}


def configuration(name: str) -> dict[str, Any]:
    return {**COMMON, "model_type": name, **CONFIGS[name]}


def contractions(cascade: Cascade) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for einsum in cascade:
        if einsum.flops:
            found[einsum.module] += einsum.flops
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_alone_matches_the_traced_module(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    config = AutoConfig.for_model(**configuration(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    batch, prompt, new = 2, 12, 6
    work = language_model(configuration(name), prompt=prompt, new_tokens=new, batch=batch)

    cache = DynamicCache(config=config)
    ids = torch.zeros(batch, prompt, dtype=torch.int64)
    prefill = trace_cascade(model, (ids,), {"past_key_values": cache, "logits_to_keep": 1})
    assert contractions(work.phase("prefill").cascade) == contractions(prefill.cascade)
    assert work.weights == prefill.weights

    past = prompt + new // 2

    def step() -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = DynamicCache(config=config)
        for i, layer in enumerate(cache.layers):
            shapes = [(batch, t.shape[1], past, t.shape[3]) for t in (layer.keys, layer.values)]
            filled.update(torch.zeros(shapes[0]), torch.zeros(shapes[1]), i)
        token = torch.zeros(batch, 1, dtype=torch.int64)
        return (token,), {"past_key_values": filled, "logits_to_keep": 1}

    decode = trace_cascade(model, prepare=step)
    if "kv_lora_rank" not in configuration(name):  # there the module expands all that it has cached, at every step
        assert contractions(work.phase("decode").cascade) == contractions(decode.cascade)
    assert work.phase("decode").repeats == new

    per_token = sum(t.nbytes // t.shape[2] for layer in cache.layers for t in (layer.keys, layer.values))
    assert work.state_bytes == per_token * (prompt + new)
    assert len(work.state) == 2 * len(cache.layers)
    assert work.unknown == ()


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "deepseek_v3", "longcat_flash"])
def test_replaying_identical_layers_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**configuration(name), "num_hidden_layers": 4}
    if name == "longcat_flash":
        config["num_layers"] = 3
    quick = language_model(config, prompt=9, new_tokens=4)
    original = language._Network.run

    def slowly(self: Any, new: int, past: int) -> Cascade:
        self.replay = False
        return original(self, new, past)

    monkeypatch.setattr(language._Network, "run", slowly)
    slow = language_model(config, prompt=9, new_tokens=4)
    assert quick.canonical() == slow.canonical()


def test_number_formats_change_the_bytes_and_not_the_flops() -> None:
    wide = language_model(configuration("llama"), prompt=8, new_tokens=4)
    half = language_model(configuration("llama"), prompt=8, new_tokens=4, dtype="bf16", cache_dtype="fp32")
    assert half.flops == wide.flops
    rotary = sum(n for name, n in wide.weights.items() if "rotary" in name)
    assert 2 * (half.weight_bytes - rotary) == wide.weight_bytes - rotary
    assert half.state == wide.state


def test_a_window_bounds_the_cache_and_what_decode_attends_to() -> None:
    config = {**configuration("mistral"), "sliding_window": 8}
    work = language_model(config, prompt=20, new_tokens=4)
    full = language_model(configuration("mistral"), prompt=20, new_tokens=4)
    assert work.state_bytes * 24 == full.state_bytes * 8
    keys = [dict(e.ranks)["m"] for e in work.phase("decode").cascade if "attention" in e.source and e.flops]
    assert set(keys) == {8}


def test_decode_reads_and_writes_the_cache() -> None:
    cascade = language_model(configuration("qwen3"), prompt=8, new_tokens=4).phase("decode").cascade
    state = {t.name for t in cascade.with_role(Role.STATE)}
    assert {f"cache.{i}.{kind}" for i in range(2) for kind in ("keys", "values")} == state
    written = [e for e in cascade if e.output.tensor == "cache.0.keys"]
    assert [e.touched(e.output) for e in written] == [2 * 16]
    read = [a for e in cascade for a in e.inputs if a.tensor == "cache.0.keys"]
    assert read


def test_bad_configurations_are_one_clear_line() -> None:
    with pytest.raises(HastenError, match=r"unknown architecture 'gpt2'.*llama, mistral, qwen2"):
        language_model({"model_type": "gpt2"}, prompt=1, new_tokens=1)
    with pytest.raises(HastenError, match="prompt is 0"):
        language_model(configuration("llama"), prompt=0, new_tokens=1)
    with pytest.raises(HastenError, match="number format 'int4'"):
        language_model(configuration("llama"), prompt=1, new_tokens=1, dtype="int4")

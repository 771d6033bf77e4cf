"""Decoders described from their configuration alone, against the same classes run for real and against formulas."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hasten.errors import HastenError
from hasten.models.description import describe
from hasten.models.loading.config import config_of, read_config
from hasten.runtime.subject import read_subject
from hasten.workload import Cascade, Workload, language_model
from hasten.workload.einsum import Role

from .shrunk import shrunk

CONFIGS = Path(__file__).parent / "configs"
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
LATENT: dict[str, Any] = {
    **SMALL, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "head_dim": 4,
}  # fmt: skip
# What can be run for real here, with every operator that transformers would run counted by torch.
COUNTED: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gpt2": GPT,
    "gpt_neox": {**SMALL, "num_key_value_heads": 4},
    "gemma2": {**SMALL, "sliding_window": 64},
    "gemma3_text": {**SMALL, "sliding_window": 64},
    "phi3": {**SMALL, "sliding_window": None},
    "falcon": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "opt": {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "qwen3_moe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
}  # fmt: skip
PROMPT, NEW, BATCH = 12, 6, 2


def config(kind: str, sizes: dict[str, Any]) -> Any:
    return config_of({"model_type": kind, **sizes}, Path("config.json"))


def read_of(work: Workload, role: Role) -> int:
    """Bytes of a role that a decode step reads, each tensor's once."""
    cascade = work.phase("decode").cascade
    found: dict[str, int] = {}
    for e in cascade:
        for access in e.inputs:
            if cascade.tensors[access.tensor].role is role:
                found[access.tensor] = max(found.get(access.tensor, 0), cascade.access_bytes(e, access))
    return sum(found.values())


@pytest.mark.slow_except("llama", "gpt2", "gemma2", "qwen3_moe", "lfm2")
@pytest.mark.parametrize("kind", COUNTED)
def test_products_and_cache_are_those_of_the_model_run_for_real(kind: str) -> None:
    made = config(kind, COUNTED[kind])
    work = describe(made, prompt=PROMPT, new_tokens=NEW, batch=BATCH, dtype="fp32")
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32).eval()
    model.config._experts_implementation = "eager"  # torch counts no grouped products
    cache = DynamicCache(config=made)

    def flops(tokens: int) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.ones(BATCH, tokens, dtype=torch.int64), past_key_values=cache, use_cache=True, **kept)
        return counter.get_total_flops()

    kept = {} if kind in ("bloom", "mpt", "falcon") else {"logits_to_keep": 1}
    head = 0 if kept else 2 * BATCH * (PROMPT - 1) * 96 * 32
    assert work.phase("prefill").cascade.flops == flops(PROMPT) - head
    for _ in range(NEW // 2):
        flops(1)
    assert work.phase("decode").cascade.flops == flops(1)
    for _ in range(NEW - NEW // 2 - 1):
        flops(1)
    held = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    held += [t for layer in cache.layers for t in getattr(layer, "conv_states", {}).values()]
    assert work.state_bytes == sum(t.nbytes for t in held if t is not None)
    assert work.weight_bytes == sum(
        t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    )


def test_a_step_reads_its_weights_and_its_cache_once() -> None:
    tied = describe(
        config("llama", {**SMALL, "tie_word_embeddings": True}), prompt=PROMPT, new_tokens=NEW, dtype="bf16"
    )
    unused = sum(n for name, n in tied.weights.items() if "rotary" in name)
    assert 0 <= tied.weight_bytes - read_of(tied, Role.WEIGHT) <= unused
    seen = 2 * 3 * 2 * 8 * (PROMPT + NEW // 2 + 1) * 2
    assert read_of(tied, Role.STATE) == seen
    assert tied.state_bytes == 2 * 3 * 2 * 8 * (PROMPT + NEW) * 2


def contractions(cascade: Cascade) -> Counter[tuple[str, int]]:
    return Counter((e.module, e.flops) for e in cascade if e.flops)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "mixtral", "deepseek_v3"])
def test_the_quick_description_of_llama_like_models_is_the_traced_one(kind: str) -> None:
    sizes = {**(LATENT if kind == "deepseek_v3" else SMALL), "num_local_experts": 4, "sliding_window": 8}
    sizes = sizes if kind in ("mistral", "mixtral") else {k: v for k, v in sizes.items() if k != "sliding_window"}
    made = config(kind, sizes if kind in ("mixtral",) else {k: v for k, v in sizes.items() if k != "num_local_experts"})
    traced = describe(made, prompt=PROMPT, new_tokens=NEW, batch=BATCH, dtype="bf16")
    quick = language_model(made, prompt=PROMPT, new_tokens=NEW, batch=BATCH, dtype="bf16")
    for phase in ("prefill", "decode"):
        assert contractions(quick.phase(phase).cascade) == contractions(traced.phase(phase).cascade)
    assert quick.weights == traced.weights
    assert quick.state == traced.state
    assert read_of(quick, Role.WEIGHT) == read_of(traced, Role.WEIGHT)
    assert read_of(quick, Role.STATE) == read_of(traced, Role.STATE)


def test_equal_layers_are_traced_once_and_give_what_each_would(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.models.description import repeats

    made = config("gemma3_text", {**SMALL, "num_hidden_layers": 5, "sliding_window": 8})
    quick = describe(made, prompt=PROMPT, new_tokens=NEW)
    monkeypatch.setattr(repeats._Repeater, "_repeatable", lambda *_: False)
    assert describe(made, prompt=PROMPT, new_tokens=NEW).canonical() == quick.canonical()


def test_windows_hold_at_most_their_tokens() -> None:
    """Gemma 3 1B in bf16: 22 of its 26 layers keep 512 tokens, the others all."""
    one = describe(read_config(CONFIGS / "mlc-gemma3-1b.json"), prompt=2000, new_tokens=48)
    assert one.state_bytes == 2 * 256 * 2 * (22 * 512 + 4 * 2048)
    keys = {e.sizes["m"] for e in one.phase("decode").cascade if "attention" in e.source and e.flops}
    assert keys == {512, 2025}
    seen = {e.sizes["m"] for e in one.phase("prefill").cascade if "attention" in e.source and e.flops}
    assert seen == {512, 2000}


def test_latent_attention_attends_to_latents_in_a_step() -> None:
    """37 G active parameters of DeepSeek-V3 and its attention over 576 channels: 0.21 TFLOP a step at 8192 tokens."""
    found = read_config(CONFIGS / "aic-DeepSeek-V3.json")
    work = describe(found, prompt=8192, new_tokens=2)
    assert work.phase("decode").cascade.flops == pytest.approx(0.21e12, rel=0.03)
    assert work.state_bytes == 61 * 576 * 8194 * 2
    quick = language_model(found, prompt=8192, new_tokens=2, dtype="bf16")
    assert quick.phase("decode").cascade.flops == work.phase("decode").cascade.flops


def test_a_step_reads_the_experts_that_are_expected_to_be_hit() -> None:
    sizes = {**SMALL, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    made = config("qwen3_moe", sizes)
    for batch, experts in ((1, 2.0), (4, 8 * (1 - (6 / 8) ** 4))):
        work = describe(made, prompt=4, new_tokens=2, batch=batch, dtype="fp32")
        cascade = work.phase("decode").cascade
        (read,) = {
            cascade.access_bytes(e, a)
            for e in cascade
            for a in e.inputs
            if a.tensor == "model.layers.0.mlp.experts.down_proj"
        }
        assert read == pytest.approx(experts * 32 * 16 * 4, abs=4)


@pytest.mark.slow_except("gemma2-*", "gpt_oss-*", "mamba2-*", "minimax-*")
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("gemma2", {}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("mamba2", {"num_heads": 8, "expand": 2, "head_dim": 8, "state_size": 16, "n_groups": 1}),
        ("rwkv", {"attention_hidden_size": 32}),
        ("bloom", {}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
        ("llama4_text", {"intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1}),
        ("recurrent_gemma", {"lru_width": 32, "attention_window_size": 8}),
        ("dbrx", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
                  "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 5e5},
                  "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}}),
        ("jetmoe", {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("minimax", {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_local_experts": 4,
                     "num_experts_per_tok": 2, "block_size": 8}),
        ("qwen3_next", {"num_experts": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 16,
                        "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2}),
    ],
)  # fmt: skip
def test_every_kind_of_decoder_has_a_prompt_a_step_and_a_state(kind: str, extra: dict[str, Any]) -> None:
    made = config(kind, {**SMALL, **extra})
    few, many = (describe(made, prompt=16, new_tokens=new) for new in (2, 40))
    assert [(p.name, p.repeats) for p in many.phases] == [("prefill", 1), ("decode", 40)]
    assert many.flops > few.flops
    assert 0 < few.state_bytes <= many.state_bytes
    assert read_of(many, Role.STATE) > 0
    assert read_of(many, Role.WEIGHT) <= many.weight_bytes


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("mamba", {"state_size": 8, "intermediate_size": 64, "time_step_rank": 4}),
        ("jamba", {"attn_layer_offset": 1, "attn_layer_period": 2, "num_experts": 2, "mamba_dt_rank": 4}),
    ],
)
def test_a_recurrence_costs_no_time_to_describe_and_a_constant_state(kind: str, extra: dict[str, Any]) -> None:
    made = config(kind, {**SMALL, "max_position_embeddings": 1 << 21, **extra})
    works = [describe(made, prompt=n, new_tokens=2) for n in (16, 1 << 20)]
    assert len(works[0].phase("prefill").cascade) == len(works[1].phase("prefill").cascade)
    assert any("selective scan" in note for note in works[1].notes)
    recurrent = [{n: s for n, s in w.state.items() if "keys" not in n and "values" not in n} for w in works]
    assert recurrent[0] == recurrent[1] != {}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_more_tokens_than_positions_are_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind, **(GPT if kind == "gpt2" else SMALL)}))
    with pytest.raises(HastenError, match=r"^66 tokens are more than the model's 64 positions: shorten the prompt$"):
        read_subject(str(path), 60, 6).workload()


# Parameters as published (model cards and papers), bytes of a token in the cache by hand.
PUBLISHED = {
    "mlc-llama3.2-1b": (1.2358e9, 16 * 2 * 8 * 64 * 2),
    "mlc-gpt2": (124.4e6, 12 * 2 * 768 * 4),
    "mamba-130m-hf": (129.1e6, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_parameters_and_cache(name: str) -> None:
    parameters, token = PUBLISHED[name]
    found = read_config(CONFIGS / f"{name}.json")
    works = [describe(found, prompt=n, new_tokens=4) for n in (64, 128)]
    size = 4 if name in ("mlc-gpt2", "mamba-130m-hf") else 2
    assert works[0].weight_bytes / size == pytest.approx(parameters, rel=2e-3)
    assert works[1].state_bytes - works[0].state_bytes == 64 * token


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_any_decoder_of_transformers_is_described_or_refused_in_one_line(kind: str) -> None:
    try:
        made = shrunk(kind)
    except Exception as error:  # transformers' own defaults do not go together
        pytest.skip(str(error)[:100])
    refused = ""
    try:
        work = describe(made, prompt=32, new_tokens=4, dtype="bf16")
    except HastenError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        return
    if len(work.phases) == 2 and work.phases[-1].name == "decode":
        kept = work.state_bytes or any("keeps nothing" in note for note in work.notes)
        assert kept, "a step without a state"
    assert work.flops > 0

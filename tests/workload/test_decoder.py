"""Sizes of decoders, beside the real modules' and beside published parameter counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.cost.serving.scaling import QWEN3, QWEN3_MOE
from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes

from .test_language import CONFIGS, configuration


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"llama-biased"}))
def test_parameters_are_the_module_s(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**configuration(name))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = {
        id(p): p.numel()
        for n, p in model.named_parameters()
        if not n.endswith((".bias", "norm.weight")) and "norm" not in n.split(".")[-2] and "_layernorm" not in n
    }
    # Transformers keeps unused weights for the experts that pass their input on.
    sizes = DecoderSizes.of(config)
    unused = sizes.layers * sizes.zero_experts * 2 * sizes.expert_inner * sizes.hidden
    assert sizes.total_parameters + unused == sum(matrices.values())


def test_published_parameters_follow_from_the_sizes() -> None:
    for model in QWEN3:
        # The smallest three share one matrix, which the paper counts twice for the first two.
        both = model.layer_parameters + 2 * model.vocabulary * model.hidden
        once = model.layer_parameters + model.vocabulary * model.hidden
        assert model.active_parameters in (pytest.approx(both, rel=5e-3), pytest.approx(once, rel=5e-3))
    sizes = {k: v for k, v in vars(QWEN3_MOE).items() if k != "parameters"}
    assert DecoderSizes(**sizes).active_parameters == pytest.approx(3.3e9, rel=0.02)
    assert QWEN3_MOE.total_parameters == pytest.approx(30.5e9, rel=0.01)


def test_deepseek_v3() -> None:
    """671 billion parameters, 37 of them active, and 576 numbers a layer in the cache (arXiv 2412.19437)."""
    config = {
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "vocab_size": 129280,
    }  # fmt: skip
    sizes = DecoderSizes.of(config)
    assert sizes.total_parameters == pytest.approx(671e9, rel=2e-3)
    assert sizes.active_parameters == pytest.approx(37e9, rel=0.03)
    assert (sizes.cached_width, sizes.token_bytes) == (576, 61 * 576 * 2)


def test_a_cache_of_four_bits() -> None:
    sizes = DecoderSizes("small", layers=3, heads=4, kv_heads=2, head_dim=16, cache_dtype="int4")
    assert sizes.hidden == 64
    assert sizes.token_bytes == 3 * 2 * 2 * 16 // 2
    assert (
        DecoderSizes.of({"n_layer": 2, "n_embd": 8, "n_head": 2, "model_type": "gpt2"}).layer_parameters == 2 * 12 * 64
    )


def test_windows() -> None:
    config: dict[str, Any] = {
        "model_type": "qwen3", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    assert [DecoderSizes.of(config).window_of(i) for i in range(3)] == [4, None, 4]
    assert DecoderSizes.of({**config, "use_sliding_window": False}).window_of(0) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0, "heads": 1, "hidden": 8}, "no layers"),
        ({"layers": 1, "heads": 3, "kv_heads": 2, "hidden": 9}, "evenly"),
        ({"layers": 1, "heads": 1, "hidden": -8}, "hidden below 0"),
        ({"layers": 1, "heads": 1, "hidden": 8, "dtype": "int7"}, "unknown number format"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(HastenError, match=message):
        DecoderSizes("wrong", **sizes)


def test_a_configuration_of_something_else() -> None:
    with pytest.raises(HastenError, match="not a decoder's"):
        DecoderSizes.of({"model_type": "resnet"})
    with pytest.raises(HastenError, match="whole number"):
        DecoderSizes.of({"num_hidden_layers": "many", "num_attention_heads": 2, "hidden_size": 8})

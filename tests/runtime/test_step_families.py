"""Every family that has a compiled step, against transformers: random small networks of its class.

Windows are shorter than a block of the cache and no multiple of anything; texts are longer than both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.models import decoder_form
from hasten.models.decoder import is_decoder
from hasten.models.decoder_form import check_llama_like, form_of
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.step import CompiledStep, why_not

pytestmark = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")

_SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0, 1.25, 1.5, 2.0, 2.5, 3.0],
    "long_factor": [3.0, 2.5, 2.0, 1.5, 1.25, 1.0],
}
# Name -> (configuration, what it says beside the sizes).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama, gelu": ("LlamaConfig", {"hidden_act": "gelu", "tie_word_embeddings": True}),
    "mistral with a window": ("MistralConfig", {"sliding_window": 21}),
    "qwen2 with windows above": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "gemma": ("GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 32, "sliding_window": 21, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0,
         "final_logit_softcapping": 5.0, "tie_word_embeddings": True},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "sliding_window": 37, "layer_types": _SLIDING, "query_pre_attn_scalar": 40,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
    "phi3": ("Phi3Config", {"sliding_window": 29}),
    "phi4-mini": (
        "Phi3Config",
        {"rope_parameters": {**_LONG, "partial_rotary_factor": 0.75}, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 21, "layer_types": _SLIDING}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "smollm3 with windows": (
        "SmolLM3Config",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 13},
    ),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 2.5},
    ),
    "stablelm": (
        "StableLmConfig",
        {"use_qkv_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                   "partial_rotary_factor": 0.25}},
    ),
    "stablelm, parallel": ("StableLmConfig", {"use_parallel_residual": True, "qk_layernorm": True}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "sliding_window": 29}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0],
         "shared_expert_intermediate_size": 160, "norm_topk_prob": False},
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "decoder_sparse_step": 2,
         "norm_topk_prob": True, "head_dim": 32},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24, "sliding_window": 21, "swiglu_limit": 0.5,
         "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.5e5, "truncate": False,
                             "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64}},
    ),
    "seed-oss": ("SeedOssConfig", {"head_dim": 32, "attention_bias": True, "attention_out_bias": True}),
}  # fmt: skip


def tiny(name: str, **changes: Any) -> Any:
    import transformers

    kind, extra = CASES[name]
    torch.manual_seed(7)
    config = getattr(transformers, kind)(**{**_SIZES, **extra, **changes})
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for key, parameter in network.named_parameters():
        # Of every norm a weight that is its own, of Gemma's about 0.
        middle = 1.0 if "norm" in key and key.endswith("weight") and "Gemma" not in kind else 0.0
        torch.nn.init.normal_(parameter, middle, 0.2 if "norm" in key or key.endswith("bias") else 0.1)
    return network


def text(length: int, seed: int = 3) -> list[int]:
    found: list[int] = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


@torch.inference_mode()
def expected(network: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = network(torch.tensor([ids])).logits[0].float()
    return logits


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, read_in_pieces: Callable[..., torch.Tensor]) -> None:
    """A prompt and steps, at once, in pieces and one by one; no piece changes a bit of any row."""
    model = LanguageModel(tiny(name))
    assert model.why_not_compiled is None
    ids = text(110)
    found = read_in_pieces(model, ids, [70, *[1] * 10, 7, 23])
    torch.testing.assert_close(found, expected(model.network, ids), rtol=0, atol=1e-3)
    assert torch.equal(read_in_pieces(model, ids, [110]), found)
    assert torch.equal(read_in_pieces(model, ids, [3, *[1] * 40, *[9] * 7, 4]), found)


@pytest.mark.parametrize("name", CASES)
def test_texts_in_a_pool_and_branches_of_a_tree(name: str) -> None:
    """Beside each other and in a tree, rows are what they are alone."""
    model = LanguageModel(tiny(name))
    texts = [text(50, 1), text(33, 2), text(64, 3)]
    pool = model.new_paged_cache(sequences=3, capacity=96, blocks=9)
    step = CompiledStep(model.network, pool)
    for number in range(3):
        pool.set_table(number, [number, 8 - number, 3 + number][: 3 if number != 1 else 2])
    whole = [expected(model.network, ids) for ids in texts]
    for start in (0, 20, 40):
        parts = [ids[start : start + 20] for ids in texts]
        rows = [(token, s, start + i) for s, part in enumerate(parts) for i, token in enumerate(part)]
        found = step(*(list(column) for column in zip(*rows, strict=True)))
        right = torch.cat([logits[start : start + 20] for logits in whole])
        torch.testing.assert_close(found, right, rtol=0, atol=1e-3)
        pool.advance({s: len(part) for s, part in enumerate(parts) if part})
    # After the first text a root, and two branches of it: (5), (6, 7).
    branches, places = [9, 5, 6, 7], [50, 51, 52, 53]
    found = step(branches, [0] * 4, places, turns=[50, 51, 51, 52], masks=[0b1, 0b11, 0b101, 0b1101])
    for row, path in ((0, [9]), (1, [9, 5]), (2, [9, 6]), (3, [9, 6, 7])):
        right = expected(model.network, texts[0] + path)[-1]
        torch.testing.assert_close(found[row], right, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_and_bf16(name: str) -> None:
    network = tiny(name)
    ids = torch.tensor([text(40)])
    asked = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    found = LanguageModel(network).generate(ids, **asked)
    assert torch.equal(found, network.generate(ids, **asked))
    exact = expected(network, ids[0].tolist())
    half = network.to(torch.bfloat16)
    step = CompiledStep(half, LanguageModel(half).new_cache(1, 64))
    rounded = step(ids[0].tolist(), [0] * 40, list(range(40)))
    # Weights are rounded, and transformers rounds every result too.
    apart = (expected(half, ids[0].tolist()) - exact).abs().max()
    assert (rounded - exact).abs().max() < 2 * apart


def test_rotary_positions_of_long_texts(read_in_pieces: Callable[..., torch.Tensor]) -> None:
    """Longrope: a text that grows past the turning point is read again, as transformers does."""
    rope = {**_LONG, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 40}
    network = tiny("phi4-mini", rope_parameters=rope, original_max_position_embeddings=40)
    model = LanguageModel(network)
    ids = text(70)
    for length in (40, 41, 70):
        # At once, as transformers turns a text: by its whole length.
        found = read_in_pieces(model, ids[:length], [30, length - 30])
        torch.testing.assert_close(found, expected(network, ids[:length]), rtol=0, atol=1e-3)
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    for length in (35, 40, 41):
        prompt = torch.tensor([ids[:length], text(70, 9)[:length]])
        assert torch.equal(model.generate(prompt, **asked), network.generate(prompt, **asked)), length
    short = {**asked, "max_new_tokens": 5}
    prompt = torch.tensor([ids[:20]])
    assert torch.equal(model.generate(prompt, **short), network.generate(prompt, **short))


@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_windows_over_every_cache(name: str, dtype: str) -> None:
    model = LanguageModel(tiny(name), cache=CacheSpec(dtype))
    ids = torch.tensor([text(150)])
    plain, cache = model.new_cache(1, 150), model.new_cache(1, 150)
    step, at = CompiledStep(model.network, cache), 0
    for count in (70, 1, 1, 9, 60, 9):
        part = ids[:, at : at + count]
        with torch.inference_mode():
            right = model(part, past_key_values=plain).logits[0]
        found = step(part[0].tolist(), [0] * count, list(range(at, at + count)))
        torch.testing.assert_close(found, right, rtol=0, atol={"bf16": 0.05, "int8": 0.1, "int4": 0.6}[dtype])
        cache.advance([count])
        at += count


@pytest.mark.parametrize(("window", "sinks"), [(17, 4), (90, 40), (90, 2)])
def test_a_caches_window_beside_the_models_own(
    window: int, sinks: int, read_in_pieces: Callable[..., torch.Tensor]
) -> None:
    """The narrower one is what counts, and the model's own hides sinks too."""
    model = LanguageModel(tiny("qwen2 with windows above"), cache=CacheSpec("fp32", window, sinks))
    ids = text(150)
    with torch.inference_mode():
        right = model(torch.tensor([ids]), past_key_values=model.new_cache(1, 150)).logits[0]
    found = read_in_pieces(model, ids, [1] * 150)
    torch.testing.assert_close(found, right, rtol=0, atol=1e-3)
    assert torch.equal(read_in_pieces(model, ids, [100, 50]), found)


@pytest.mark.parametrize("name", ["phi3", "gemma3", "olmo2", "stablelm", "qwen2-moe", "gpt-oss"])
def test_packed_weights(name: str) -> None:
    from hasten.methods import WeightOnly

    model = LanguageModel(tiny(name))
    for bits in (8, 4):
        packed = WeightOnly(bits, group=32).apply(LanguageModel(tiny(name)))
        assert packed.why_not_compiled is None
        ids = text(60)
        step = CompiledStep(packed.network, packed.new_cache(1, 64))
        found = step(ids, [0] * 60, list(range(60)))
        torch.testing.assert_close(found, expected(packed.network, ids), rtol=0, atol=1e-3)
        assert not torch.equal(found, expected(model.network, ids))


@pytest.mark.parametrize("name", ["gemma", "granite", "stablelm", "phi3", "olmo2", "smollm3"])
def test_what_puts_layers_together_by_hand_says_so(name: str) -> None:
    with pytest.raises(HastenError, match="puts layers together as Llama does"):
        check_llama_like(tiny(name), "early exit")
    check_llama_like(tiny("qwen3"), "early exit")


def test_every_family_is_tried() -> None:
    """Each of the classes that docs name is one of the cases, and each says what its form is."""
    tried = {type(tiny(name)).__name__ for name in CASES}
    assert tried == set(decoder_form.FAMILIES)
    for name in CASES:
        assert len(form_of(tiny(name)).layers) == 3


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("FalconConfig", {}),
        ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}),
        ("CohereConfig", {}),
        ("Starcoder2Config", {}),
    ],
)
def test_others_say_that_they_have_none(kind: str, sizes: dict[str, Any]) -> None:
    import transformers

    network = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**_SIZES, **sizes)).eval()
    assert "is not one of" in str(why_not(network))
    model, prompt = LanguageModel(network), torch.tensor([text(20)])
    if not is_decoder(network):
        with pytest.raises(HastenError, match="give its class a `layout`"):
            model.generate(prompt, max_new_tokens=4)
        return
    asked = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, **asked), network.generate(prompt, **asked))

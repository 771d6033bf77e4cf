"""Attention against transformers' own modules, which somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.errors import HastenError
from hasten.nn.attention import GroupedAttention, LatentAttention, Rotary, attend, half, turned, turned_by, visible

TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.bfloat16: {"atol": 3e-2, "rtol": 3e-2},
}

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 64},
    "yarn with all": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 48, "beta_fast": 24, "beta_slow": 2,
        "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False,
    },
    "yarn with a gain": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.25
    },
    "longrope": {
        "original_max_position_embeddings": 64, "short_factor": [1 + i / 9 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
    },
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64
    },
}  # fmt: skip
POSITIONS = 256


def llama(kind: str = "default", share: float = 1.0, **changes: Any) -> Any:
    import transformers

    extra = dict(SCALINGS[kind])
    if share != 1.0:
        extra["partial_rotary_factor"] = share
        for name in ("short_factor", "long_factor"):
            if name in extra:
                extra[name] = extra[name][: int(8 * share)]
    return transformers.LlamaConfig(
        **{
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": POSITIONS, "attn_implementation": "eager",
            "rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **extra}, **changes,
        }
    )  # fmt: skip


def mask_of(length: int, window: int | None = None) -> Tensor:
    """transformers' additive mask (1, 1, length, length), made by loops."""
    mask = torch.full((length, length), torch.finfo(torch.float32).min)
    for i in range(length):
        for j in range(i + 1):
            if window is None or i - j < window:
                mask[i, j] = 0.0
    return mask[None, None]


# -- rotary positions ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("kind", SCALINGS)
def test_every_scaling_turns_as_transformers_does(kind: str, share: float) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = llama(kind, share)
    rotary = Rotary.from_parameters(config.rope_parameters, 16, POSITIONS)
    assert rotary.size == int(16 * share)
    if kind == "default":
        pairs = torch.arange(0, rotary.size, 2).float() / rotary.size
        torch.testing.assert_close(rotary.rates(), 5000.0**-pairs, rtol=1e-6, atol=0)
        return
    for length in (1, 63, 64, 65, POSITIONS, 3 * POSITIONS):
        rates, gain = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu", seq_len=length)
        torch.testing.assert_close(rotary.rates(length), rates, rtol=2e-6, atol=0)
        assert rotary.multiplier == pytest.approx(gain)


def test_pairs_that_stand_still() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = llama()
    config.rope_parameters = {
        "rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": 0.25, "factor": 2.0
    }  # fmt: skip
    rates, _ = ROPE_INIT_FUNCTIONS["proportional"](config, "cpu")
    rotary = Rotary.from_parameters(config.rope_parameters, 16, POSITIONS)
    torch.testing.assert_close(rotary.rates(), rates, rtol=2e-6, atol=0)
    x = torch.randn(1, 2, 5, 16)
    assert torch.equal(rotary.turn(x, torch.arange(5))[..., 2:8], x[..., 2:8])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", SCALINGS)
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), length=st.integers(1, 90), begin=st.integers(0, 200))
def test_turned_queries_and_keys(kind: str, dtype: torch.dtype, batch: int, length: int, begin: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = llama(kind)
    positions = torch.arange(begin, begin + length)
    q, k = torch.randn(batch, 4, length, 16).to(dtype), torch.randn(batch, 2, length, 16).to(dtype)
    table = LlamaRotaryEmbedding(config)(q, positions[None])
    rotary = Rotary.from_parameters(config.rope_parameters, 16, POSITIONS)
    for found, wanted in zip((q, k), apply_rotary_pos_emb(q, k, *table), strict=True):
        # Rates differ in their last bit, angles by that times the position.
        apart = 3e-4 if dtype is torch.float32 else 5e-2
        torch.testing.assert_close(rotary.turn(found, positions), wanted, atol=apart, rtol=apart)
        # The same tables give the same bits.
        assert torch.equal(turned(found, *(half(t) for t in table)), wanted)


@settings(max_examples=20, deadline=None)
@given(pairs=st.integers(1, 9), rest=st.integers(0, 3), length=st.integers(0, 5))
def test_interleaved_pairs_are_the_halves_in_another_order(pairs: int, rest: int, length: int) -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

    x = torch.randn(2, 3, length, 2 * pairs + rest)
    angles = torch.randn(length, pairs)
    found = turned_by(x, angles, interleaved=True)
    order = torch.cat((torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2), torch.arange(rest) + 2 * pairs))
    torch.testing.assert_close(found[..., order], turned_by(x[..., order], angles))
    assert torch.equal(found[..., 2 * pairs :], x[..., 2 * pairs :])
    both = torch.cat((angles, angles), -1)[None]
    theirs, _ = apply_rotary_pos_emb_interleave(x[..., : 2 * pairs], x[..., : 2 * pairs], both.cos(), both.sin())
    torch.testing.assert_close(found[..., order[: 2 * pairs]], theirs)


def test_angles_of_scores_are_relative_for_each_row_its_own_positions() -> None:
    rotary = Rotary(8)
    q, k = torch.randn(2, 2, 1, 1, 8)
    far = torch.tensor([[[7]], [[1007]]])
    scores = rotary.turn(q, far) @ rotary.turn(k, far - 5).transpose(-1, -2)
    torch.testing.assert_close(scores, rotary.turn(q, far * 0 + 5) @ k.transpose(-1, -2), atol=2e-3, rtol=1e-3)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"size": 3}, {"size": 8, "scaling": "yarn"}, {"size": 8, "scaling": "longrope", "trained": 4}):
        with pytest.raises(HastenError):
            Rotary(**wrong)  # type: ignore[arg-type]
    with pytest.raises(HastenError, match="not known"):
        Rotary.from_parameters({"rope_type": "spiral", "rope_theta": 1e4}, 8, 16)
    with pytest.raises(HastenError, match="do not divide"):
        GroupedAttention(8, heads=3, kv_heads=2, head_dim=2)
    with pytest.raises(HastenError, match="turn 4 channels"):
        LatentAttention(8, heads=2, plain=4, rotated=8, value=4, query_rank=None, latent=4, rotary=Rotary(4))


# -- the softmax -------------------------------------------------------------------------------------


def by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float | None, sinks: Any) -> Tensor:
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            for i in range(q.shape[2]):
                seen = mask.expand(q.shape[0], q.shape[1], -1, -1)[b, h, i].nonzero()[:, 0]
                logits = (k[b, g, seen].double() @ q[b, h, i].double()) * scale
                logits = logits if cap is None else cap * torch.tanh(logits / cap)
                total = logits.exp().sum() + (0 if sinks is None else sinks[h].double().exp())
                if len(seen):
                    out[b, h, i] = (logits.exp() / total) @ v[b, g, seen].double()
    return out


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2), groups=st.integers(1, 3), shared=st.integers(1, 3), rows=st.integers(0, 5),
    columns=st.integers(1, 7), cap=st.sampled_from([None, 0.5, 30.0]), sink=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_is_its_definition(
    batch: int, groups: int, shared: int, rows: int, columns: int, cap: float | None, sink: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    q = torch.randn(batch, groups * shared, rows, 6)
    k, v = torch.randn(batch, groups, columns, 6), torch.randn(batch, groups, columns, 4)
    mask = torch.rand(batch, 1, rows, columns) < 0.6
    sinks = torch.randn(groups * shared) if sink else None
    found = attend(q, k, v, mask=mask, scale=0.7, cap=cap, sinks=sinks)
    wanted = by_loops(q, k, v, mask, 0.7, cap, sinks)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    # What no row sees is never read.
    unseen = ~mask.any(2).expand(batch, groups, columns)
    poisoned = k.masked_fill(unseen[..., None], 1e30)
    torch.testing.assert_close(attend(q, poisoned, v, mask=mask, scale=0.7, cap=cap, sinks=sinks), found)


@pytest.mark.parametrize("cap", [None, 20.0])
def test_causal_is_the_lower_triangle(cap: float | None) -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v, causal=True, cap=cap), attend(q, k, v, mask=mask, cap=cap))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 6), columns=st.integers(0, 9), window=st.none() | st.integers(1, 9), first=st.integers(0, 3))
def test_visible_by_its_words(rows: int, columns: int, window: int | None, first: int) -> None:
    r, c = torch.arange(3, 3 + rows), torch.arange(columns)
    found = visible(r, c, window, first)
    assert found.shape == (rows, columns)
    for i in range(rows):
        for j in range(columns):
            apart = int(r[i]) - j
            assert bool(found[i, j]) == (apart >= 0 and (window is None or apart < window or j < first))


# -- grouped attention against whole modules ---------------------------------------------------------


def families(length: int) -> dict[str, tuple[Any, Any, GroupedAttention, Tensor, Any]]:
    """transformers' attention and its rotary module, ours, and the mask."""
    from transformers import Gemma2Config, GptOssConfig, Qwen3Config
    from transformers.models.gemma2 import modeling_gemma2
    from transformers.models.gpt_oss import modeling_gpt_oss
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen3 import modeling_qwen3

    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 128, "num_hidden_layers": 2, "attn_implementation": "eager",
    }  # fmt: skip
    ours: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 16}
    plain = Rotary(16, 10000.0)
    biased = llama(hidden_size=32, attention_bias=True)
    gemma = Gemma2Config(**sizes, sliding_window=5, query_pre_attn_scalar=64, attn_logit_softcapping=2.0)
    oss = GptOssConfig(**sizes, sliding_window=4, num_local_experts=2)
    qwen = Qwen3Config(**sizes)
    oss_rotary = Rotary.from_parameters(oss.rope_parameters, 16, 128)
    return {
        "llama": (
            modeling_llama.LlamaAttention(biased, 0), modeling_llama.LlamaRotaryEmbedding(biased),
            GroupedAttention(32, rotary=Rotary(16, 5000.0), bias=True, out_bias=True, **ours), mask_of(length),
            None,
        ),
        "gemma2": (
            modeling_gemma2.Gemma2Attention(gemma, 0), modeling_gemma2.Gemma2RotaryEmbedding(gemma),
            GroupedAttention(32, rotary=plain, window=5, scale=64**-0.5, cap=2.0, **ours), mask_of(length, 5), 5,
        ),
        "gpt-oss": (
            modeling_gpt_oss.GptOssAttention(oss, 0), modeling_gpt_oss.GptOssRotaryEmbedding(oss),
            GroupedAttention(32, rotary=oss_rotary, window=4, sinks=True, bias=True, out_bias=True, **ours),
            mask_of(length, 4), 4,
        ),
        "qwen3": (
            modeling_qwen3.Qwen3Attention(qwen, 0), modeling_qwen3.Qwen3RotaryEmbedding(qwen),
            GroupedAttention(32, rotary=plain, norm=1e-6, **ours), mask_of(length), None,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "qwen3"])
def test_a_whole_module_of_transformers(family: str, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(length)
    theirs, rotary, ours, mask, _ = families(length)[family]
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())  # the names are theirs
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    x = torch.randn(2, length, 32).to(dtype)
    with torch.no_grad():
        table = rotary(x, torch.arange(length)[None])
        wanted, _ = theirs(x, position_embeddings=table, attention_mask=mask.to(dtype))
        torch.testing.assert_close(ours(x), wanted, **TOLERANCE[dtype])


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.integers(0, 5), min_size=1, max_size=5), window=st.none() | st.integers(1, 6),
    sinks=st.booleans(), batch=st.integers(1, 2),
)  # fmt: skip
def test_in_pieces_as_at_once(parts: list[int], window: int | None, sinks: bool, batch: int) -> None:
    torch.manual_seed(sum(parts))
    module = GroupedAttention(16, heads=4, kv_heads=2, rotary=Rotary(4), window=window, sinks=sinks)
    x = torch.randn(batch, sum(parts), 16)
    cache = module.new_cache(batch)
    with torch.no_grad():
        pieces = [module(part, cache) for part in x.split(parts, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), module(x), atol=1e-5, rtol=1e-5)
    assert cache.seen == sum(parts)
    held = sum(parts) if window is None else min(sum(parts), window - 1)
    assert cache.keys.shape[2] == held
    fresh = module.new_cache(batch, sum(parts))
    assert (fresh.keys.shape, fresh.values.shape, fresh.seen) == (cache.keys.shape, cache.values.shape, cache.seen)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    module = GroupedAttention(16, heads=4, kv_heads=2, rotary=Rotary(4))
    x = torch.randn(1, 7, 16)
    padded = torch.cat((torch.randn(1, 3, 16) * 100, x), 1)
    padding = torch.arange(10)[None] >= 3
    with torch.no_grad():
        # Positions are relative: three more in front are the same text.
        torch.testing.assert_close(module(padded, padding=padding)[:, 3:], module(x), atol=1e-4, rtol=1e-4)


def test_a_cache_gives_tokens_back() -> None:
    module = GroupedAttention(16, heads=2, rotary=Rotary(8))
    x = torch.randn(1, 6, 16)
    cache = module.new_cache(1)
    with torch.no_grad():
        module(x[:, :5], cache)
        cache.cut(3)
        torch.testing.assert_close(module(x[:, 3:], cache), module(x)[:, 3:], atol=1e-5, rtol=1e-5)
    with pytest.raises(HastenError, match="cannot give"):
        GroupedAttention(16, heads=2, window=2).new_cache(1, 5).cut(3)


# -- latent attention --------------------------------------------------------------------------------

NAMES = {
    "q_a_proj": "q_down", "q_a_layernorm": "q_norm", "q_b_proj": "q_up", "q_proj": "q_up",
    "kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_up", "o_proj": "out",
}  # fmt: skip


def latent(query_rank: int | None, interleaved: bool, yarn: bool) -> tuple[Any, Any, LatentAttention]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if yarn:
        rope = {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 32,
            "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
        }  # fmt: skip
    config = DeepseekV3Config(
        hidden_size=32, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=query_rank, kv_lora_rank=12,
        qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=10, rope_interleave=interleaved, rope_parameters=rope,
        max_position_embeddings=1280, attn_implementation="eager",
    )  # fmt: skip
    module = theirs.DeepseekV3Attention(config, 0)
    ours = LatentAttention(
        32, heads=3, plain=8, rotated=6, value=10, query_rank=query_rank, latent=12, scale=module.scaling,
        rotary=Rotary.from_parameters(config.rope_parameters, 6, 1280, interleaved=interleaved),
    )  # fmt: skip
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict({f"{NAMES[n.split('.')[0]]}.weight": t for n, t in module.state_dict().items()})
    return module, theirs.DeepseekV3RotaryEmbedding(config), ours


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize(
    ("query_rank", "interleaved", "yarn"), [(None, False, False), (20, True, False), (20, True, True)]
)
def test_deepseeks_own_module(
    query_rank: int | None, interleaved: bool, yarn: bool, length: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(length)
    theirs, rotary, ours = (m.to(dtype) for m in latent(query_rank, interleaved, yarn))
    x = torch.randn(2, length, 32).to(dtype)
    with torch.no_grad():
        table = rotary(x, torch.arange(length)[None])
        wanted, _ = theirs(x, position_embeddings=table, attention_mask=mask_of(length).to(dtype))
        torch.testing.assert_close(ours(x), wanted, **TOLERANCE[dtype])


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.integers(0, 4), min_size=1, max_size=5), absorbed=st.sampled_from([None, True, False]),
    rank=st.sampled_from([None, 5]), batch=st.integers(1, 2),
)  # fmt: skip
def test_absorbed_is_unabsorbed(parts: list[int], absorbed: bool | None, rank: int | None, batch: int) -> None:
    torch.manual_seed(sum(parts))
    module = LatentAttention(16, heads=3, plain=4, rotated=2, value=6, query_rank=rank, latent=7, rotary=Rotary(2))
    wide = LatentAttention(
        16, heads=3, plain=4, rotated=2, value=6, query_rank=rank, latent=7, rotary=Rotary(2), expanded=True
    )
    wide.load_state_dict(module.state_dict())
    x = torch.randn(batch, sum(parts), 16)
    cache, expanded = module.new_cache(batch), wide.new_cache(batch)
    with torch.no_grad():
        whole = module(x, absorbed=False)
        pieces = torch.cat([module(part, cache, absorbed) for part in x.split(parts, 1)], 1)
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module(x, absorbed=True), whole, atol=1e-5, rtol=1e-4)
        unfolded = torch.cat([wide(part, expanded) for part in x.split(parts, 1)], 1)
        torch.testing.assert_close(unfolded, whole, atol=1e-5, rtol=1e-4)
    # A token costs its latent and one shared key, not keys and values of every head.
    assert cache.keys.shape == (batch, 1, sum(parts), 7)
    assert cache.values.shape == (batch, 1, sum(parts), 2)
    assert (expanded.keys.shape[1], expanded.keys.shape[3], expanded.values.shape[3]) == (3, 6, 6)
    with pytest.raises(HastenError, match="no latents"):
        wide(x, absorbed=True)

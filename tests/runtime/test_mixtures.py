"""Mixtures of experts and attention sinks where they are unlike other layers; test_step_families.py has the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.models import ExpertStack
from hasten.nn import PackedGatedExperts
from hasten.runtime import CacheSpec, LanguageModel, step
from hasten.runtime.policies import SparseWindowPolicy
from hasten.runtime.step import CompiledStep

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
    "num_experts_per_tok": 2, "max_position_embeddings": 256, "eos_token_id": 96, "pad_token_id": 96,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 6, "intermediate_size": 96},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96},
    "GptOss": {"num_local_experts": 6, "intermediate_size": 96, "head_dim": 16, "sliding_window": 8,
               "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}  # fmt: skip
compiled = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def network_of(kind: str, **changed: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **KINDS[kind], **changed})
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.15)
    return network


def logits_of(network: Any, ids: list[int]) -> torch.Tensor:
    compiled_step = CompiledStep(network, LanguageModel(network).new_cache(1, len(ids)))
    return compiled_step(ids, [0] * len(ids), list(range(len(ids)))).clone()


@torch.inference_mode()
def expected(network: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = network(torch.tensor([ids])).logits[0]
    return found


IDS = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def chosen_by(network: Any, change: Callable[[Any], None]) -> None:
    with torch.no_grad():
        for layer in network.model.layers:
            change(layer.mlp.gate if hasattr(layer.mlp, "gate") else layer.mlp.router)


@compiled
@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
@pytest.mark.parametrize(("count", "top"), [(8, 2), (64, 1), (130, 2)])
def test_ties_fall_as_they_do_in_transformers(kind: str, count: int, top: int) -> None:
    """Experts are wanted equally, all of them or some: which are taken changes everything behind."""
    network = network_of(kind, num_local_experts=count, num_experts_per_tok=top, intermediate_size=32)

    def equal(router: Any) -> None:
        # Pairs side by side: further apart torch's product may round one row's sum otherwise than an equal one's.
        router.weight[1::2] = router.weight[::2].clone()
        if kind == "GptOss":
            router.bias.zero_()

    chosen_by(network, equal)
    torch.testing.assert_close(logits_of(network, IDS), expected(network, IDS), rtol=0, atol=1e-3)
    chosen_by(network, lambda router: router.weight.zero_())
    torch.testing.assert_close(logits_of(network, IDS), expected(network, IDS), rtol=0, atol=1e-3)


@compiled
@pytest.mark.parametrize(
    ("experts", "top", "bias"),
    [(1, 1, {}), (6, 6, {}), (6, 2, {3: -1e9, 0: -1e9}), (6, 1, {4: 1e4}), (7, 3, {2: 50.0, 5: 50.0})],
    ids=["one expert", "all of them", "two that nobody picks", "one that everybody picks", "two that everybody picks"],
)
def test_loads_of_every_kind(experts: int, top: int, bias: dict[int, float]) -> None:
    network = network_of("GptOss", num_local_experts=experts, num_experts_per_tok=top)

    def lean(router: Any) -> None:
        for expert, value in bias.items():
            router.bias[expert] = value

    chosen_by(network, lean)
    found = logits_of(network, IDS)
    torch.testing.assert_close(found, expected(network, IDS), rtol=0, atol=1e-3)
    step_alone = CompiledStep(network, LanguageModel(network).new_cache(1, len(IDS)))
    cache = step_alone._cache
    for at, token in enumerate(IDS):
        assert torch.equal(step_alone([token], [0], [at])[0], found[at]), "a row is the same alone"
        cache.advance([1])


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads: int) -> None:
    network = network_of("Qwen2Moe")
    wanted, before = logits_of(network, IDS), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(logits_of(network, IDS), wanted)
    finally:
        torch.set_num_threads(before)


def packed(experts: Any, bits: int | tuple[int, int, int]) -> PackedGatedExperts:
    """Experts packed: of three numbers gate, up and down stand apart, with weights of their own."""
    made = PackedGatedExperts.from_experts(experts, bits if isinstance(bits, int) else 16)
    if isinstance(bits, int):
        return made
    apart = PackedGatedExperts(
        made.num_experts, made.hidden, made.inner, bits=bits, fused=False, bias=made.down_proj.bias is not None,
        activation=made.activation, clamped=made.clamped,
    )  # fmt: skip
    for stack in apart.stacks().values():
        if stack.bits <= 16:
            stack.pack(list(torch.randn(stack.experts, stack.rows, stack.columns) * 0.1))
            continue
        known = BLOCK_FORMATS[stack.bits]
        blocks = torch.randint(0, 256, (*stack.packed.shape[:2], stack.columns // 32, known.nbytes), dtype=torch.uint8)
        # Scales that leave weights below 1.
        blocks[..., 0] = 122
        if known.scale_bytes:
            blocks[..., :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
        stack.fill(blocks.flatten(2), None, None)
    return apart


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [16, 8, 4, (8, 4, 16), (139, 106, 139)], ids=str)
def test_packed_experts_run_compiled_and_are_held_once(kind: str, bits: Any) -> None:
    """Of every kind of format, and of several in one layer, rows rounded to int8 or not."""
    network = network_of(kind)
    for layer in network.model.layers:
        layer.mlp.experts = packed(layer.mlp.experts, bits)
    for int8 in (False, True):
        for layer in network.model.layers:
            layer.mlp.experts.int8 = int8
        right = expected(network, IDS)
        torch.testing.assert_close(logits_of(network, IDS), right, rtol=0, atol=2e-3 * float(right.abs().max()))
    held = CompiledStep(network, LanguageModel(network).new_cache(1, 8))
    memory = {t.untyped_storage().data_ptr() for layer in network.model.layers for t in layer.mlp.experts.buffers()}
    stacks = [kept for kept in held._kept if isinstance(kept, ExpertStack)]
    assert len(stacks) == 6
    for tensor in (t for stack in stacks for t in (stack.packed, stack.scales, stack.mins) if t is not None):
        assert tensor.untyped_storage().data_ptr() in memory, "no copy of a weight"


@compiled
@pytest.mark.parametrize("sinks", [-40.0, 0.0, 9.0, 60.0])
def test_sinks_small_and_large(sinks: float) -> None:
    network = network_of("GptOss")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.sinks += sinks
    torch.testing.assert_close(logits_of(network, IDS), expected(network, IDS), rtol=0, atol=1e-3)


def test_a_router_that_no_form_knows_is_named() -> None:
    network = network_of("Mixtral")

    class OtherRouter(type(network.model.layers[1].mlp.gate)):  # type: ignore[misc]
        pass

    network.model.layers[1].mlp.gate.__class__ = OtherRouter
    if native() is not None:
        assert step.why_not(network) == "its experts are chosen by a OtherRouter"
    network.model.layers[1].mlp.experts.config.hidden_act = "tanh"
    assert "activation is tanh" in str(PackedGatedExperts.why_not(network.model.layers[1].mlp.experts))


@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_sinks_and_windows_in_plain_torch(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "native", lambda: None)
    network = network_of("GptOss")
    model = LanguageModel(network, CacheSpec(cache))
    assert model.why_not_compiled
    ids = torch.randint(0, 96, (1, 30))
    with torch.inference_mode():
        wanted, kept = network(ids).logits, model.new_cache(1, 128)
        pieces = [model(part, past_key_values=kept).logits for part in ids.split((11, 18, 1), 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=1e-4 if cache == "fp32" else 0.3, rtol=0)
    if cache == "fp32":
        assert torch.equal(*(m.generate(ids, max_new_tokens=12, do_sample=False) for m in (network, model)))


def test_a_policy_that_knows_no_sinks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "native", lambda: None)
    model = LanguageModel(network_of("GptOss", layer_types=["full_attention"] * 2))
    model.cache = CacheSpec(policy=SparseWindowPolicy(0.4))
    with pytest.raises(HastenError, match="knows no attention sinks") as told:
        model.generate(torch.randint(0, 96, (1, 70)), max_new_tokens=3, do_sample=False)
    assert "\n" not in str(told.value)

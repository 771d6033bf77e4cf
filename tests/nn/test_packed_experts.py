"""Packed experts stand in for transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.kernels.packed_experts import packed_experts
from hasten.kernels.packed_linear import dequantize, quantize
from hasten.nn import ClampedGate, PackedGatedExperts

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "intermediate_size": 96},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 96, "intermediate_size": 64, "hidden_act": "gelu"},
    "GptOss": {"num_local_experts": 4, "intermediate_size": 96, "head_dim": 32, "num_experts_per_tok": 2},
}


def experts_of(kind: str) -> Any:
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    experts = transformers.AutoModelForCausalLM.from_config(config).model.layers[0].mlp.experts
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def choices(tokens: int, each: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(4)[:each] for _ in range(tokens)])
    return torch.randn(tokens, 64), ids, torch.rand(tokens, each)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.03), (8, 0.03), (4, 0.3)])
def test_they_compute_what_transformers_compute(kind: str, bits: int, tolerance: float) -> None:
    plain = experts_of(kind)
    packed = PackedGatedExperts.from_experts(plain, bits)
    assert (packed.clamped == ClampedGate()) == (kind == "GptOss")
    given = choices(9)
    wanted = plain(*given)
    assert (packed(*given) - wanted).norm() < tolerance * wanted.norm()


def test_a_token_is_the_same_alone_and_an_expert_may_have_none() -> None:
    packed = PackedGatedExperts.from_experts(experts_of("Mixtral"), 8)
    x, _, weights = choices(5)
    ids = torch.tensor([[3, 1]]).expand(5, 2)
    torch.testing.assert_close(packed(x, ids, weights)[2:3], packed(x[2:3], ids[2:3], weights[2:3]))
    assert packed(x[:0], ids[:0], weights[:0]).shape == (0, 64)


def test_gate_and_up_may_stand_apart_and_each_stack_has_its_format() -> None:
    fused = PackedGatedExperts.from_experts(experts_of("Mixtral"), 8)
    apart = PackedGatedExperts(4, 64, 96, bits=(8, 8, 16), fused=False)
    both = fused.gate_up_proj
    apart.gate_proj.fill(both.packed[:, :96], both.scales[:, :96], None)
    apart.up_proj.fill(both.packed[:, 96:], both.scales[:, 96:], None)
    apart.down_proj.fill(fused.down_proj.dequantize().bfloat16(), None, None)
    assert apart.up_proj.packed.data_ptr() == both.packed[:, 96:].data_ptr(), "no copy"
    given = choices(6)
    torch.testing.assert_close(apart(*given), fused(*given), rtol=0.02, atol=0.02)


def test_shapes_on_meta_cost_nothing_and_states_come_back() -> None:
    packed = PackedGatedExperts.from_experts(experts_of("GptOss"), 4)
    with torch.device("meta"):
        empty = PackedGatedExperts(4, 64, 96, bias=True, clamped=ClampedGate())
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in packed.state_dict().items()}
    again = PackedGatedExperts(4, 64, 96, bias=True, clamped=ClampedGate())
    again.load_state_dict(packed.state_dict())
    given = choices(3)
    assert torch.equal(again(*given), packed(*given))
    assert packed.half().gate_up_proj.packed.dtype is torch.uint8


def test_what_it_does_not_know_is_told_in_one_line() -> None:
    with pytest.raises(HastenError, match="in another way than Mixtral") as told:
        PackedGatedExperts.from_experts(nn.Linear(4, 4), 8)
    assert "\n" not in str(told.value)
    with pytest.raises(HastenError, match="activation is one of"):
        PackedGatedExperts(4, 64, 96, activation="tanh")


def test_gradients_flow_to_the_rows() -> None:
    weight = torch.randn(3, 8, 32)
    parts = [quantize(w, 8) for w in weight]
    packed, scales = (torch.stack([p[i] for p in parts]) for i in (0, 1))
    ends = torch.tensor([2, 2, 5])
    x = torch.randn(5, 32, requires_grad=True)
    y = packed_experts(x, packed, scales, None, ends, 8, 32)
    real = torch.stack([dequantize(p, s, None, 8, 32) for p, s in zip(packed, scales)])
    wanted = torch.cat((x[:2] @ real[0].t(), x[2:] @ real[2].t()))
    torch.testing.assert_close(y, wanted)
    found, known = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, wanted))
    torch.testing.assert_close(found, known)
    for bad in ([2, 1, 5], [2, 2, 4], [2, 2, 6]):
        with pytest.raises(ValueError, match="ends"):
            packed_experts(x, packed, scales, None, torch.tensor(bad), 8, 32)

"""Mixtures of experts against transformers' own blocks, which somebody else wrote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.errors import HastenError
from hasten.nn.moe import (
    BiasController,
    MixtureOfExperts,
    Router,
    by_expert,
    capacity,
    choose,
    load,
    within_capacity,
)

SIZES: dict[str, Any] = {"hidden_size": 16, "num_experts_per_tok": 3, "hidden_act": "silu"}


def deepseek(groups: int = 4, kept: int = 2, normalized: bool = True) -> tuple[Any, MixtureOfExperts]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        **SIZES, n_routed_experts=12, moe_intermediate_size=10, n_shared_experts=2, n_group=groups, topk_group=kept,
        norm_topk_prob=normalized, routed_scaling_factor=2.5,
    )  # fmt: skip
    theirs = DeepseekV3MoE(config)
    router = Router(
        16, 12, 3, score="sigmoid", balanced=True, groups=groups, kept_groups=kept, normalized=normalized, factor=2.5
    )
    ours = MixtureOfExperts(16, 10, 12, 3, router=router, shared=2)
    settle(theirs)
    torch.nn.init.normal_(theirs.gate.e_score_correction_bias, std=0.2)
    with torch.no_grad():
        assert router.bias is not None
        assert ours.shared_experts is not None
        router.bias.copy_(theirs.gate.e_score_correction_bias)
        router.weight.copy_(theirs.gate.weight)
        shared = theirs.shared_experts
        ours.shared_experts.gate_up_proj[0].copy_(torch.cat((shared.gate_proj.weight, shared.up_proj.weight)))
        ours.shared_experts.down_proj[0].copy_(shared.down_proj.weight)
    return theirs, with_experts(ours, theirs)


def mixtral() -> tuple[Any, MixtureOfExperts]:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    theirs = MixtralSparseMoeBlock(MixtralConfig(**SIZES, num_local_experts=6, intermediate_size=10))
    ours = MixtureOfExperts(16, 10, 6, 3)
    settle(theirs)
    return theirs, with_experts(with_router(ours, theirs.gate.weight), theirs)


def qwen3(normalized: bool) -> tuple[Any, MixtureOfExperts]:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(**SIZES, num_experts=7, moe_intermediate_size=10, norm_topk_prob=normalized)
    theirs = Qwen3MoeSparseMoeBlock(config)
    ours = MixtureOfExperts(16, 10, 7, 3, router=Router(16, 7, 3, normalized=normalized))
    settle(theirs)
    return theirs, with_experts(with_router(ours, theirs.gate.weight), theirs)


def longcat() -> tuple[Any, MixtureOfExperts]:
    from transformers import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

    config = LongcatFlashConfig(
        hidden_size=16, moe_topk=3, n_routed_experts=5, zero_expert_num=3, expert_ffn_hidden_size=10,
        routed_scaling_factor=1.5, hidden_act="silu",
    )  # fmt: skip
    theirs = LongcatFlashMoE(config)
    router = Router(16, 8, 3, balanced=True, normalized=False, factor=1.5)
    ours = MixtureOfExperts(16, 10, 5, 3, router=router, zero=3)
    settle(theirs)
    torch.nn.init.normal_(theirs.router.e_score_correction_bias, std=0.05)
    with torch.no_grad():
        assert router.bias is not None
        router.bias.copy_(theirs.router.e_score_correction_bias)
    return theirs, with_experts(with_router(ours, theirs.router.classifier.weight), theirs)


def settle(module: Any) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def with_router(ours: MixtureOfExperts, weight: Tensor) -> MixtureOfExperts:
    with torch.no_grad():
        ours.router.weight.copy_(weight)
    return ours


def with_experts(ours: MixtureOfExperts, theirs: Any) -> MixtureOfExperts:
    with torch.no_grad():
        ours.experts.gate_up_proj.copy_(theirs.experts.gate_up_proj[: ours.experts.experts])
        ours.experts.down_proj.copy_(theirs.experts.down_proj)
    return ours.eval()


BLOCKS = {
    "deepseek": deepseek, "deepseek without groups": lambda: deepseek(1, 1),
    "deepseek not normalized": lambda: deepseek(3, 1, normalized=False), "mixtral": mixtral,
    "qwen3": lambda: qwen3(True), "qwen3 not normalized": lambda: qwen3(False), "longcat": longcat,
}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 0)])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_transformers(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    theirs, ours = BLOCKS[name]()
    x = torch.randn(*shape, 16)
    with torch.no_grad():
        # Theirs cannot read nothing; ours gives nothing back.
        wanted = theirs.eval()(x) if x.numel() else x
        torch.testing.assert_close(ours(x), wanted, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "deepseek"])
def test_a_block_in_bf16(name: str) -> None:
    torch.manual_seed(1)
    theirs, ours = (m.to(torch.bfloat16) for m in BLOCKS[name]())
    # The same bits for the router: who is chosen must not hang on rounding.
    x = torch.randn(2, 9, 16).to(torch.bfloat16)
    with torch.no_grad():
        found, wanted = ours(x), theirs.eval()(x)
    near = torch.isclose(found.float(), wanted.float(), atol=6e-2, rtol=6e-2)
    assert near.all(-1).float().mean() > 0.9


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 6), experts=st.integers(1, 8), count=st.integers(1, 8), seed=st.integers(0, 99),
    score=st.sampled_from(["softmax", "sigmoid", "softmax of chosen"]),
)  # fmt: skip
def test_weights_by_their_words(tokens: int, experts: int, count: int, seed: int, score: Any) -> None:
    count = min(count, experts)
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * 3
    weights, chosen = choose(logits, count, score=score)
    assert weights.shape == chosen.shape == (tokens, count)
    for t in range(tokens):
        best = sorted(range(experts), key=lambda e: -float(logits[t, e]))[:count]
        assert sorted(chosen[t].tolist()) == sorted(best)
        values = {e: float(logits[t, e].sigmoid() if score == "sigmoid" else logits[t, e].exp()) for e in best}
        for weight, expert in zip(weights[t].tolist(), chosen[t].tolist(), strict=True):
            assert weight == pytest.approx(values[expert] / sum(values.values()), rel=1e-4)
    assert load(chosen, experts).tolist() == [int((chosen == e).sum()) for e in range(experts)]


def test_a_token_stays_within_its_groups_and_a_bias_changes_no_weight() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 12)
    _, chosen = choose(logits, 4, score="sigmoid", groups=4, kept_groups=2)
    assert max(len(set(row)) for row in (chosen // 3).tolist()) == 2
    bias = torch.zeros(12)
    bias[5] = 10.0
    weights, chosen = choose(logits, 2, score="sigmoid", bias=bias, normalized=False)
    assert (chosen == 5).any(-1).all()
    torch.testing.assert_close(weights, logits.sigmoid().gather(-1, chosen))


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 9), experts=st.integers(1, 5), count=st.integers(1, 3), most=st.integers(0, 5))
def test_room_goes_to_first_choices_and_earlier_tokens(tokens: int, experts: int, count: int, most: int) -> None:
    chosen = torch.randint(0, experts, (tokens, count), generator=torch.Generator().manual_seed(tokens * 7 + most))
    found = within_capacity(chosen, experts, most)
    held = [0] * experts
    for slot in range(count):
        for token in range(tokens):
            expert = int(chosen[token, slot])
            assert bool(found[token, slot]) == (held[expert] < most)
            held[expert] += 1


def test_what_an_expert_has_no_room_for_goes_past_it() -> None:
    torch.manual_seed(0)
    module = MixtureOfExperts(8, 12, 4, 1, capacity_factor=1.0)
    with torch.no_grad():
        module.router.weight.zero_()[2] = 1.0
        x = torch.rand(8, 8)
        out, routing = module(x, return_routing=True)
    assert capacity(8, 1, 4, 1.0) == 2
    assert (out[:2].abs().sum(-1) > 0).all()
    assert not out[2:].any()
    assert routing.loads is not None
    assert routing.loads.tolist() == [0, 0, 8, 0]
    with pytest.raises(HastenError, match="positive"):
        capacity(8, 1, 4, 0.0)


def test_a_products_rows_are_its_experts_alone() -> None:
    torch.manual_seed(0)
    x, weights, chosen = torch.randn(6, 4), torch.rand(6, 2), torch.tensor([[0, 2], [1, 3], [2, 0]] * 2)
    calls: list[tuple[int, int]] = []

    def run(number: int, rows: Tensor) -> Tensor:
        calls.append((number, len(rows)))
        return rows * (number + 1)

    found = by_expert(x, weights, chosen, 3, run)
    scale = torch.where(chosen < 3, weights * (chosen + 1), 0.0).sum(-1, keepdim=True)
    torch.testing.assert_close(found, x * scale)
    assert calls == [(0, 4), (1, 2), (2, 4)]  # number 3 is none of these experts


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_a_controller_balances_what_a_router_prefers(rule: Any) -> None:
    torch.manual_seed(0)
    router = Router(8, 6, 2, score="sigmoid", balanced=True)
    with torch.no_grad():
        router.weight[:2] += 0.6  # everybody's favourites
    assert router.bias is not None
    controller = BiasController(router.bias, rate=0.02 if rule == "sign" else 0.3, rule=rule)
    shares = []
    with torch.no_grad():
        for _ in range(150):
            _, _, chosen = router(torch.randn(256, 8) + 0.5)
            loads = load(chosen, 6)
            shares.append(float(loads.max() / loads.sum()))
            controller.step(loads)
    assert shares[0] > 0.3
    assert sum(shares[-20:]) / 20 < 0.21  # an equal share is 1 / 6


def test_zero_experts_keep_their_bias_and_the_wanted_share() -> None:
    torch.manual_seed(0)
    router = Router(8, 8, 2, balanced=True, normalized=False)
    assert router.bias is not None
    controller = BiasController(router.bias, rate=0.2, rule="proportional", zero=3, used=0.8)
    share = 0.0
    with torch.no_grad():
        for _ in range(300):
            _, _, chosen = router(torch.randn(256, 8))
            controller.step(load(chosen, 8))
            share = float((chosen < 5).float().mean())
    assert not router.bias[5:].any()
    assert share == pytest.approx(0.8, abs=0.04)


def test_every_part_learns() -> None:
    module = MixtureOfExperts(8, 6, 4, 2, shared=1, zero=1)
    module(torch.randn(64, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_routers_that_cannot_be_are_refused() -> None:
    with pytest.raises(HastenError, match="uses 1 to 4 experts"):
        Router(8, 4, 5)
    for groups, kept in ((3, 1), (2, 3), (4, 1)):
        with pytest.raises(HastenError, match="equal groups"):
            Router(8, 8, 4, groups=groups, kept_groups=kept)
    with pytest.raises(HastenError, match="the router chooses"):
        MixtureOfExperts(8, 6, 4, 2, router=Router(8, 5, 2))

"""LowFormer at its published sizes, and the decision of what is fused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.cost.preserving import check_same
from hasten.errors import HastenError
from hasten.models import LowFormer, LowFormerConfig
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.lowformer import PUBLISHED, TIMM, LowFormerBlock, faster_fusion, mini_lowformer
from hasten.nn import FusedMBConv, Lowtention, MapAttention, MBConv

# Parameters of the released code, and millions of multiply-accumulates at 224 pixels.
SIZES = {
    "lowformer-b0": (14_100_472, 944.0),
    "lowformer-b1": (17_936_312, 1411.0),
    "lowformer-b1.5": (33_982_028, 2573.7),
    "lowformer-b2": (44_986_912, 3689.2),
    "lowformer-b3": (57_086_920, 6098.7),
    "lowformer-e1": (18_896_268, 1348.2),
    "lowformer-e2": (22_750_664, 3789.3),
    "lowformer-e3": (41_316_808, 4865.6),
}
HEADS = {"lowformer-b0": 4_458_088, "lowformer-b1.5": 9_206_248, "lowformer-b2": 9_353_704, "lowformer-b3": 4_851_304}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = LowFormer.named(name)
    parameters, products = SIZES[name]
    assert count(model) == parameters
    assert multiply_accumulates(model, (3, 224, 224)) / 1e6 == pytest.approx(products, abs=0.06)
    if name in HEADS:
        assert count(model.head) + count(model.classifier) == HEADS[name]


def test_every_published_name_is_held() -> None:
    assert SIZES.keys() == PUBLISHED.keys()
    assert TIMM["lowformer_b15"] == "lowformer-b1.5"


def test_maps_at_224() -> None:
    with torch.device("meta"):
        maps = LowFormer.named("lowformer-b1").features_only()
        found = [tuple(m.shape[1:3]) for m in maps(torch.zeros(1, 3, 224, 224))]
    assert found == [(16, 112), (32, 56), (64, 28), (128, 14), (256, 7)]


def scatter(module: nn.Module) -> None:
    """Random parameters, and statistics as after a training."""
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(buffer)
            elif name.endswith("running_var"):
                nn.init.uniform_(buffer, 0.5, 2)


def hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def whole_norm(x: Tensor, norm: Any) -> Tensor:
    """Over all channels and positions of an image, then a scale and a shift of each channel."""
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    mean, variance, weight, bias = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def of_kind(module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, kind)]


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_is_its_formula(fused: bool) -> None:
    torch.manual_seed(0)
    block: Any = LowFormerBlock(8, 2, 5, fused).double().eval()
    scatter(block)
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)

    before, between = of_kind(block, nn.GroupNorm)
    (attention,) = of_kind(block, Lowtention)  # its own formula is in the tests of hasten.nn
    assert (attention.reduce[0].stride, attention.reduce[0].kernel_size) == ((2, 2), (5, 5))
    y = x + attention(whole_norm(x, before))
    up, down = block.feed_forward[1], block.feed_forward[3]
    assert up.weight.shape[:2] == (32, 8)
    y = y + F.conv2d(
        gelu(F.conv2d(whole_norm(y, between), up.weight, up.bias)), down.weight, down.bias
    )  # fmt: skip
    *early, project = of_kind(block.local, nn.Conv2d)
    *inner, last = of_kind(block.local, nn.BatchNorm2d)
    assert project.bias is None
    if fused:
        (dense,) = early
        (norm,) = inner
        assert dense.weight.shape == (32, 8, 3, 3)
        inside = hardswish(batch_norm(F.conv2d(y, dense.weight, dense.bias, padding=1), norm))
    else:
        expand, depthwise = early
        assert not inner
        assert depthwise.weight.shape == (32, 1, 3, 3)
        inside = hardswish(F.conv2d(y, expand.weight, expand.bias))
        inside = hardswish(F.conv2d(inside, depthwise.weight, depthwise.bias, padding=1, groups=32))
    assert all(conv.bias is not None for conv in early)
    wanted = y + batch_norm(F.conv2d(inside, project.weight), last)
    torch.testing.assert_close(block(x), wanted, rtol=1e-9, atol=1e-9)


def test_without_a_feed_forward_layer_nothing_is_normalized_before_the_attention() -> None:
    torch.manual_seed(0)
    block = LowFormerBlock(8, 1, 3, True, mlp=False).double().eval()
    scatter(block)
    assert not of_kind(block, nn.GroupNorm)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    (attention,) = of_kind(block, Lowtention)
    torch.testing.assert_close(block(x), block.local(x + attention(x)), rtol=1e-9, atol=1e-9)
    neither = LowFormerBlock(8, 1, 3, True, attention=False, mlp=False)
    assert [name for name, _ in neither.named_children()] == ["local"]


_KNOWN = (
    nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.AdaptiveAvgPool2d,
    nn.Flatten, nn.Identity,
)  # fmt: skip


@pytest.mark.parametrize("fused", [True, False])
def test_activations_are_hardswish_but_in_the_feed_forward_layers(fused: bool) -> None:
    with torch.device("meta"):
        model = LowFormer(LowFormerConfig((4, 8, 8, 32, 32), (1, 2, 2, 2, 1), (8, 16), fused=(fused,) * 5))
    leaves = [m for m in model.modules() if not list(m.children()) and not isinstance(m, (*_KNOWN, nn.Sequential))]
    assert {type(m) for m in leaves} == {nn.Hardswish, nn.GELU}
    feeding = [m for block in of_kind(model, LowFormerBlock) for m in of_kind(block.feed_forward, nn.GELU)]
    assert len(feeding) == 3
    assert feeding == of_kind(model, nn.GELU)


def test_convolutions_have_a_bias_inside_the_late_blocks_alone() -> None:
    """As published, whether a block is fused or not; the head's linear layer is another matter."""
    for fused in (True, False):
        with torch.device("meta"):
            config = LowFormerConfig((4, 8, 8, 32, 32), (1, 2, 2, 2, 1), (8, 16), fused=(fused,) * 5)
            model = LowFormer(config)
        early = of_kind(nn.ModuleList([model.stem, *model.stages[:3]]), nn.Conv2d)
        assert len(of_kind(model.stages[:3], MBConv)) == (0 if fused else 3)
        halving = [conv for stage in model.stages[3:] for conv in of_kind(stage[0], nn.Conv2d)]  # type: ignore[index]
        assert not any(conv.bias is not None for conv in (*early, *halving))
        for block in of_kind(model, LowFormerBlock):
            *inner, last = of_kind(block.local, nn.Conv2d)
            assert [conv.bias is None for conv in (*inner, last)] == [False] * len(inner) + [True]


def test_what_is_fused_by_the_paper_s_rule_and_by_one_s_own() -> None:
    assert PUBLISHED["lowformer-b1"].fusion == (True, True, True, True, False)
    with torch.device("meta"):
        model: Any = LowFormer.named("lowformer-b1")
        other: Any = LowFormer.named("lowformer-b1", fused=(True, True, True, False, True))
    local = [type(m.stages[s][1].local) for m in (model, other) for s in (3, 4)]
    assert local == [FusedMBConv, MBConv, MBConv, FusedMBConv]
    assert any(isinstance(m, Lowtention) for m in model.modules())


def test_the_decision_is_that_of_the_latency_given() -> None:
    seen = []

    def products(module: nn.Module, x: Tensor) -> float:
        seen.append((type(module).__name__, tuple(x.shape[1:])))
        assert not module.training
        return float(multiply_accumulates(module, x.shape[1:]))

    config = LowFormerConfig((4, 8, 8, 32, 32), (1, 1, 1, 1, 1))
    # By products a dense convolution is never the cheaper one; where dense ones are free, always.
    assert faster_fusion(config, products, 64) == (False,) * 5
    assert faster_fusion(config, lambda m, x: float(isinstance(m, MBConv)), 64) == (True,) * 5
    timed: list[nn.Module] = []
    faster_fusion(config, lambda m, x: float(timed.append(m) is None), 64)
    assert not any(isinstance(part, nn.BatchNorm2d) for m in timed for part in m.modules()), "timed as they run"
    assert seen[::2] == [("FusedMBConv", (w, s, s)) for w, s in zip(config.widths, (32, 16, 8, 4, 2), strict=True)]


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(HastenError, match="has 5 stages"):
        LowFormerConfig((8, 8))
    with pytest.raises(HastenError, match="from 1 in the second and third stage"):
        LowFormerConfig(depths=(0, 0, 0, 6, 6))


@pytest.mark.parametrize("name", ["lowformer_b0", "lowformer_e1"])
def test_logits_are_those_of_timm_s_own(name: str) -> None:
    """Where timm has the model: the same weights in the same order, the same logits, from odd maps too."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("timm.models.lowformer", reason="this timm has no LowFormer")
    torch.manual_seed(0)
    theirs, ours = timm.create_model(name).eval(), LowFormer.named(name).eval()
    state = theirs.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    theirs.load_state_dict(state)
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
    check_same(theirs, ours, (torch.randn(1, 3, 104, 104),))


def test_the_small_one_differs_in_its_attention_alone() -> None:
    low, plain = mini_lowformer(), mini_lowformer(plain=True)
    kinds = [[type(m) for m in net.modules() if isinstance(m, Lowtention | MapAttention)] for net in (low, plain)]
    assert kinds == [[Lowtention, Lowtention], [MapAttention, MapAttention]]
    assert low(torch.zeros(2, 1, 32, 32)).shape == plain(torch.zeros(2, 1, 32, 32)).shape == (2, 10)

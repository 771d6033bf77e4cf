"""LowFormer at its published sizes, and the decision of what is fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.preserving import check_same
from hasten.errors import HastenError
from hasten.models import LowFormer, LowFormerConfig
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.lowformer import PUBLISHED, TIMM, faster_fusion, mini_lowformer
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

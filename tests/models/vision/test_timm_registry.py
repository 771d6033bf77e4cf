"""Vision models under timm's own functions, where timm is installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import KAT, FeatureMaps, LowFormer, SimpleNet
from hasten.models.vision.timm_registry import _entry, register_with_timm, timm_names


def test_timm_makes_it() -> None:
    timm = pytest.importorskip("timm")
    names = register_with_timm()
    assert register_with_timm() == names
    assert {f"kat_{size}_patch16_224" for size in ("tiny", "small", "base")} <= set(timm.list_models("kat_*"))
    model = timm.create_model("kat_tiny_patch16_224", num_classes=7, in_chans=1, img_size=32)
    assert isinstance(model, KAT)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (1, 32, 32)
    with pytest.raises(HastenError, match="no trained weights"):
        timm.create_model("kat_tiny_patch16_224", pretrained=True)


def test_every_published_backbone_has_a_name_there() -> None:
    names = timm_names()
    assert {"kat_tiny_patch16_224", "lowformer_b15", "simplenetv1_5m_m1", "ascan_fit_t"} <= set(names)
    assert not any("cifar" in name for name in names)


def test_what_timm_calls_takes_its_options() -> None:
    made = _entry("simplenetv1_small_m1_05")(num_classes=7, in_chans=1, pretrained_cfg=None)
    assert isinstance(made, SimpleNet)
    assert made(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    settings: Any = made.pretrained_cfg
    assert (settings["input_size"], settings["classifier"]) == ((1, 224, 224), "classifier")
    # What timm's training script gives to every model.
    rates = {"drop_rate": 0.0, "drop_path_rate": 0.0, "drop_block_rate": None}
    assert isinstance(_entry("lowformer_b0")(**rates), LowFormer)
    with pytest.raises(HastenError, match="takes no option 'drop_path_rate'"):
        _entry("lowformer_b0")(drop_path_rate=0.1)
    maps = _entry("simplenetv1_small_m1_05")(features_only=True, out_indices=(1, 2))
    assert isinstance(maps, FeatureMaps)
    assert [tuple(m.shape[1:]) for m in maps(torch.randn(1, 3, 64, 64))] == [(64, 16, 16), (64, 8, 8)]
    with pytest.raises(HastenError, match="takes no option 'width': it takes num_classes, in_chans"):
        _entry("lowformer_b0")(width=3)
    with pytest.raises(HastenError, match="has one map of features"):
        _entry("kat_tiny_patch16_224")(features_only=True)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(HastenError, match=r"hasten\[vision\]"):
        register_with_timm()

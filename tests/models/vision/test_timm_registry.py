"""KAT under timm's own functions, where timm is installed."""

from __future__ import annotations

import sys

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import KAT
from hasten.models.vision.timm_registry import register_with_timm


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


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(HastenError, match=r"hasten\[vision\]"):
        register_with_timm()

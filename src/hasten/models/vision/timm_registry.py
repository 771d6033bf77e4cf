"""hasten's published vision models in timm's registry, where timm is installed.

from hasten.models.vision.timm_registry import register_with_timm
register_with_timm()
model = timm.create_model("kat_tiny_patch16_224", num_classes=10)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hasten.errors import HastenError, MissingExtraError
from hasten.models.vision.kat import KAT, TIMM

# Pixels as the published training normalizes them (ImageNet's mean and deviation), in timm's words.
_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 0.9}


def register_with_timm() -> list[str]:
    """Makes ``timm.create_model`` know KAT's names; returns them. A second call changes nothing.

    Raises:
        MissingExtraError: timm is not installed.
    """
    try:
        from timm.models import is_model, register_model
    except ImportError:
        raise MissingExtraError("timm", "vision") from None
    for name in TIMM:
        if not is_model(name):
            register_model(_entry(name))
    return list(TIMM)


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls to make the model."""

    def build(
        pretrained: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
    ) -> nn.Module:
        if pretrained:
            raise HastenError(f"hasten has no trained weights of {name}: leave pretrained out and load your own")
        model = KAT.named(name, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
        size = (in_chans, img_size, img_size)
        settings = {"architecture": name, "input_size": size, "num_classes": num_classes, "classifier": "head"}
        model.pretrained_cfg = {**settings, **_PIXELS}  # type: ignore[assignment]
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`hasten.models.KAT` at the size {TIMM[name]}."
    return build

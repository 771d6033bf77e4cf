"""hasten's published vision models in timm's registry, where timm is installed.

from hasten.models.vision.timm_registry import register_with_timm
register_with_timm()
model = timm.create_model("kat_tiny_patch16_224", num_classes=10)
maps = timm.create_model("lowformer_b1", features_only=True, out_indices=(2, 3, 4))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hasten.errors import HastenError, MissingExtraError
from hasten.models.registry import builders
from hasten.models.vision.backbone import Backbone
from hasten.models.vision.kat import KAT

# Shares that are left out in training: a network that has none is asked for 0 of them.
_RATES = ("drop_rate", "drop_path_rate", "drop_block_rate")
# Pixels as the published training normalizes them (ImageNet's mean and deviation), in timm's words.
_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 0.9}


def timm_names() -> list[str]:
    """Names of published vision models in timm's way of writing, with underscores."""
    found = []
    for name, builder in builders().items():
        kind = getattr(builder, "__self__", None)
        if isinstance(kind, type) and issubclass(kind, KAT | Backbone) and "-" not in name:
            found.append(name)
    return sorted(found)


def register_with_timm() -> list[str]:
    """Makes ``timm.create_model`` know `timm_names`; returns them.

    A second call changes nothing, and what timm has under such a name stays.

    Raises:
        MissingExtraError: timm is not installed.
    """
    try:
        from timm.models import is_model, register_model
    except ImportError:
        raise MissingExtraError("timm", "vision") from None
    names = timm_names()
    for name in names:
        if not is_model(name):
            register_model(_entry(name))
    return names


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls to make the model."""

    def build(
        pretrained: bool = False,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise HastenError(f"hasten has no trained weights of {name}: leave pretrained out and load your own")
        known = inspect.signature(builders()[name]).parameters
        # timm's own training script gives these to every model.
        options = {key: value for key, value in options.items() if key in known or key not in _RATES or value}
        if unknown := sorted(options.keys() - known.keys()):
            raise HastenError(f"{name} takes no option {unknown[0]!r}: it takes {', '.join(list(known)[1:])}")
        model: KAT | Backbone = builders()[name](name, **options)
        if features_only:
            if not isinstance(model, Backbone):
                raise HastenError(f"{name} has one map of features: leave features_only out and call forward_features")
            return model.features_only(out_indices)
        image = options.get("img_size", 224)
        model.pretrained_cfg = {  # type: ignore[assignment]
            "architecture": name, "input_size": (options.get("in_chans", 3), image, image),
            "num_classes": model.num_classes, "classifier": "head" if isinstance(model, KAT) else "classifier",
            **_PIXELS,
        }  # fmt: skip
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`{name}` of `hasten.models`."
    return build

"""Whole networks, and loaders for real pretrained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.models.loading import Loaded, load_network

__all__ = ["Loaded", "load_network"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hasten.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

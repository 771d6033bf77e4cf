"""Blocks: ordinary ``torch.nn.Module`` parts from the literature."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.nn.packed import PackedEmbedding as PackedEmbedding
    from hasten.nn.packed import PackedLinear as PackedLinear

_HOMES = {
    "BMojo": "hasten.nn.bmojo",
    "BitLinear": "hasten.nn.ternary",
    "BlockFFN": "hasten.nn.blockffn",
    "GroupRational": "hasten.nn.rational",
    "GroupRationalMLP": "hasten.nn.rational",
    "Hourglass": "hasten.nn.hourglass",
    "MLGRU": "hasten.nn.mlgru",
    "Mamba": "hasten.nn.mamba",
    "PackedEmbedding": "hasten.nn.packed",
    "PackedLinear": "hasten.nn.packed",
    "S5": "hasten.nn.s5",
    "TernaryGLU": "hasten.nn.mlgru",
    "TernaryLinear": "hasten.nn.ternary",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

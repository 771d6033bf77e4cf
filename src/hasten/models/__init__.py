"""Whole networks, and loaders for real pretrained ones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.models.blockffn_lm import BlockFFNConfig as BlockFFNConfig
    from hasten.models.blockffn_lm import BlockFFNLM as BlockFFNLM
    from hasten.models.bmojo_lm import BMojoConfig as BMojoConfig
    from hasten.models.bmojo_lm import BMojoLM as BMojoLM
    from hasten.models.kat import KAT as KAT
    from hasten.models.kat import KATConfig as KATConfig
    from hasten.models.loading import Loaded as Loaded
    from hasten.models.loading import load_network as load_network
    from hasten.models.loading import load_packed as load_packed
    from hasten.models.mamba_lm import MambaConfig as MambaConfig
    from hasten.models.mamba_lm import MambaLM as MambaLM
    from hasten.models.matmul_free import MatMulFreeConfig as MatMulFreeConfig
    from hasten.models.matmul_free import MatMulFreeLM as MatMulFreeLM
    from hasten.models.once_for_all import OFAConfig as OFAConfig
    from hasten.models.once_for_all import OnceForAll as OnceForAll
    from hasten.models.resnet9 import ResNet9 as ResNet9
    from hasten.models.smallthinker import SmallThinkerConfig as SmallThinkerConfig
    from hasten.models.smallthinker import SmallThinkerLM as SmallThinkerLM

_HOMES = {
    "BMojoConfig": "hasten.models.bmojo_lm",
    "BMojoLM": "hasten.models.bmojo_lm",
    "BlockFFNConfig": "hasten.models.blockffn_lm",
    "BlockFFNLM": "hasten.models.blockffn_lm",
    "KAT": "hasten.models.kat",
    "KATConfig": "hasten.models.kat",
    "Loaded": "hasten.models.loading",
    "MambaConfig": "hasten.models.mamba_lm",
    "MambaLM": "hasten.models.mamba_lm",
    "MatMulFreeConfig": "hasten.models.matmul_free",
    "MatMulFreeLM": "hasten.models.matmul_free",
    "OFAConfig": "hasten.models.once_for_all",
    "OnceForAll": "hasten.models.once_for_all",
    "ResNet9": "hasten.models.resnet9",
    "SmallThinkerConfig": "hasten.models.smallthinker",
    "SmallThinkerLM": "hasten.models.smallthinker",
    "load_network": "hasten.models.loading",
    "load_packed": "hasten.models.loading",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

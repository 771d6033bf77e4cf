"""Whole networks, and loaders for real pretrained ones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.models.language.blockffn_lm import BlockFFNConfig as BlockFFNConfig
    from hasten.models.language.blockffn_lm import BlockFFNLM as BlockFFNLM
    from hasten.models.language.bmojo_lm import BMojoConfig as BMojoConfig
    from hasten.models.language.bmojo_lm import BMojoLM as BMojoLM
    from hasten.models.language.mamba_lm import MambaConfig as MambaConfig
    from hasten.models.language.mamba_lm import MambaLM as MambaLM
    from hasten.models.language.matmul_free import MatMulFreeConfig as MatMulFreeConfig
    from hasten.models.language.matmul_free import MatMulFreeLM as MatMulFreeLM
    from hasten.models.language.smallthinker import SmallThinkerConfig as SmallThinkerConfig
    from hasten.models.language.smallthinker import SmallThinkerLM as SmallThinkerLM
    from hasten.models.loading.network import Loaded as Loaded
    from hasten.models.loading.network import load_network as load_network
    from hasten.models.loading.network import load_packed as load_packed
    from hasten.models.vision.kat import KAT as KAT
    from hasten.models.vision.kat import KATConfig as KATConfig
    from hasten.models.vision.once_for_all import OFAConfig as OFAConfig
    from hasten.models.vision.once_for_all import OnceForAll as OnceForAll
    from hasten.models.vision.resnet9 import ResNet9 as ResNet9

_HOMES = {
    "BMojoConfig": "hasten.models.language.bmojo_lm",
    "BMojoLM": "hasten.models.language.bmojo_lm",
    "BlockFFNConfig": "hasten.models.language.blockffn_lm",
    "BlockFFNLM": "hasten.models.language.blockffn_lm",
    "KAT": "hasten.models.vision.kat",
    "KATConfig": "hasten.models.vision.kat",
    "Loaded": "hasten.models.loading.network",
    "MambaConfig": "hasten.models.language.mamba_lm",
    "MambaLM": "hasten.models.language.mamba_lm",
    "MatMulFreeConfig": "hasten.models.language.matmul_free",
    "MatMulFreeLM": "hasten.models.language.matmul_free",
    "OFAConfig": "hasten.models.vision.once_for_all",
    "OnceForAll": "hasten.models.vision.once_for_all",
    "ResNet9": "hasten.models.vision.resnet9",
    "SmallThinkerConfig": "hasten.models.language.smallthinker",
    "SmallThinkerLM": "hasten.models.language.smallthinker",
    "load_network": "hasten.models.loading.network",
    "load_packed": "hasten.models.loading.network",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Published models by name: a name is enough to describe one, at its published size."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hasten.errors import HastenError

# Name -> where its class is; the class has ``PUBLISHED`` names in its module and a ``named`` constructor.
_HOMES = {
    "hasten.models.language.blockffn_lm": "BlockFFNLM",
    "hasten.models.vision.kat": "KAT",
    "hasten.models.language.mamba_lm": "MambaLM",
    "hasten.models.language.matmul_free": "MatMulFreeLM",
    "hasten.models.language.smallthinker": "SmallThinkerLM",
}


def names() -> list[str]:
    """Every name that `build` knows."""
    return sorted(name for home in _HOMES for name in import_module(home).PUBLISHED)


def build(name: str, *, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A published model, its weights at their start.

    Args:
        name: one of `names`.
        device: ``meta`` costs neither memory nor time.
        dtype: of the weights; what the paper keeps in fp32 stays.

    Raises:
        HastenError: nothing is called so.
    """
    constructor = _find(name)
    with torch.device(device):
        model = constructor(name)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        if not getattr(parameter, "no_decay", False):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def is_named(name: str) -> bool:
    return name in names()


def _find(name: str) -> Callable[[str], Any]:
    for home, kind in _HOMES.items():
        module = import_module(home)
        if name in module.PUBLISHED:
            return getattr(module, kind).named
    raise HastenError(f"no model is called {name!r}: {', '.join(names())} are")

"""Published models by name: a name is enough to describe one, at its published size."""

from __future__ import annotations

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.registry import builders


def names() -> list[str]:
    """Every name that `build` knows."""
    return sorted(builders())


def build(name: str, *, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A published model, its weights at their start.

    Args:
        name: one of `names`.
        device: ``meta`` costs neither memory nor time.
        dtype: of the weights; what the paper keeps in fp32 stays.

    Raises:
        HastenError: nothing is called so.
    """
    if name not in builders():
        raise HastenError(f"no model is called {name!r}: {', '.join(names())} are")
    with torch.device(device):
        model = builders()[name](name)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        if not getattr(parameter, "no_decay", False):
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def is_named(name: str) -> bool:
    return name in builders()

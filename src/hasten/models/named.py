"""Published models by name: a name is enough to describe one, at its published size."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.registry import builders
from hasten.nn.block import undecayed


def names() -> list[str]:
    """Every name that `build` knows."""
    return sorted(builders())


def build(name: str, *, device: str = "meta", dtype: torch.dtype = torch.bfloat16, **options: Any) -> nn.Module:
    """A published model, its weights at their start.

    Args:
        name: one of `names`.
        device: ``meta`` costs neither memory nor time.
        dtype: of the weights; what the paper keeps in fp32 stays.
        **options: what this model takes beside its name, such as timm's ``num_classes`` and ``in_chans``.

    Raises:
        HastenError: nothing is called so, or it takes no such option.
    """
    if name not in builders():
        raise HastenError(f"no model is called {name!r}: {', '.join(names())} are")
    builder = builders()[name]
    taken = list(inspect.signature(builder).parameters.values())[1:]
    unknown = sorted(options.keys() - {p.name for p in taken})
    if unknown:
        known = ", ".join(p.name for p in taken) or "none"
        raise HastenError(f"{name} takes no option {unknown[0]!r}: it takes {known}")
    with torch.device(device):
        model = builder(name, **options)
    assert isinstance(model, nn.Module)
    kept = undecayed(model)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name not in kept:
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def is_named(name: str) -> bool:
    return name in builders()

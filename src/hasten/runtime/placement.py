"""Where a language model runs, and in what format it is there."""

from __future__ import annotations

import torch

from hasten.hardware.gpu_probing import find_gpu
from hasten.runtime.cache import CacheSpec
from hasten.runtime.language_model import LanguageModel

# What a GPU keeps weights and cache in: half the bytes of fp32, and the format that its matrix units multiply.
_FORMAT = "bf16"


def placed(model: LanguageModel, where: str) -> LanguageModel:
    """``model`` on a processor as it is (``cpu``), or on the GPU that torch sees with weights and cache in bf16.

    Args:
        model: moved in place; packed weights keep their codes.
        where: ``cpu`` or ``cuda``.

    Raises:
        HastenError: torch sees no GPU.
    """
    return model if where == "cpu" else on_device(model, find_gpu())


def on_device(model: LanguageModel, device: torch.device) -> LanguageModel:
    """``model`` on a device of torch's, with weights in bf16, and a cache in bf16 where it was plain."""
    model.network.to(device=device, dtype=torch.bfloat16)
    if model.cache == CacheSpec():
        model.cache = CacheSpec(_FORMAT)
    return model

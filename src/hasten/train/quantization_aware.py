"""Training a network with its weights and activations rounded as a chip will hold them (arXiv 2006.08357, section 4.1).

    rounded = quantization_aware(network, images)  # 4-bit weights, 8-bit activations, thresholds fitted to the images
    fit_task(rounded, task, ...)

Every weight has a threshold a channel, what each layer reads has one; gradients pass the rounding (straight-through).
Batch normalization stays as it is while training: its factor of a channel scales that channel's step, and a chip does
both at once (`hasten.nn.requantizer`). Offsets of deformable convolutions become whole places.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hasten.errors import HastenError
from hasten.nn.deformable import DeformableConv2d
from hasten.nn.fake_quantization import SymmetricQuantizer

M = TypeVar("M", bound=nn.Module)
_INPUT = "input_quantizer"


def _round_input(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    quantizer: Any = getattr(layer, _INPUT)
    return quantizer(given[0]), *given[1:]


def quantization_aware(network: M, *inputs: Tensor, weight_bits: int = 4, activation_bits: int = 8) -> M:
    """A copy of a network whose convolutions and linear layers round their weights and what they read.

    Args:
        network: stays as it is.
        inputs: of a call that activations' thresholds are fitted to, in the mode that the network is in: in evaluation
            mode batch normalization must have seen what it normalizes.
        weight_bits, activation_bits: 2 to 16.

    Raises:
        HastenError: it has no such layer, or it rounds already.
    """
    made = copy.deepcopy(network)
    layers = [m for m in made.modules() if isinstance(m, nn.Conv2d | nn.Linear | DeformableConv2d)]
    if not layers or any(isinstance(m, SymmetricQuantizer) for m in made.modules()):
        raise HastenError("there is nothing to round: give a network of convolutions or linear layers that rounds none")
    # What predicts offsets reads the map that taps read, which is rounded once.
    served = {id(m.offsets) for m in layers if isinstance(m, DeformableConv2d)}
    quantizers = []
    for layer in layers:
        weight: Any = layer.weight
        device, dtype = weight.device, weight.dtype
        own = SymmetricQuantizer(weight_bits, len(weight), device=device, dtype=dtype)
        own.observing = True
        own(weight.detach())
        own.observing = False
        parametrize.register_parametrization(layer, "weight", own)
        if id(layer) in served:
            continue
        quantizer = SymmetricQuantizer(activation_bits, device=device, dtype=dtype)
        quantizers.append(quantizer)
        if isinstance(layer, DeformableConv2d):
            layer.sampled, layer.rounded = quantizer, True
        else:
            setattr(layer, _INPUT, quantizer)
            layer.register_forward_pre_hook(_round_input)
    for quantizer in quantizers:
        quantizer.observing = True
    with torch.no_grad():
        made(*inputs)
    for quantizer in quantizers:
        quantizer.observing = False
    return made


def weight_bytes(network: nn.Module, bits: int = 4) -> float:
    """Bytes of a network's parameters at so many bits each."""
    return sum(p.numel() for p in network.parameters()) * bits / 8

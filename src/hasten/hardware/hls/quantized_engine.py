"""A trained module as a circuit of whole numbers: ranges from example activations, all scales powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.hardware.hls.engines import EngineDesign, EngineLayer, LayerNumbers, engine_outputs
from hasten.hardware.hls.reuse import nearest_reuse


@dataclass(frozen=True, eq=False)
class QuantizedEngine:
    """A module as a circuit.

    Args:
        design, numbers: the circuit.
        scale_in, scale_out: what a whole number of the input and of the result stands for; powers of two.
    """

    design: EngineDesign
    numbers: list[LayerNumbers]
    scale_in: float
    scale_out: float

    def given(self, x: Tensor) -> Tensor:
        """Inputs (count, ...) of the module as whole numbers (count, given) of the circuit."""
        half = 1 << (self.design.bits - 1)
        places = x.flatten(2).transpose(1, 2).flatten(1) if x.ndim > 2 else x
        return torch.round(places / self.scale_in).clamp(-half, half - 1).to(torch.int64)

    def outputs(self, x: Tensor) -> Tensor:
        """What the circuit says of inputs of the module: (count, results), in the module's numbers."""
        return engine_outputs(self.design, self.numbers, self.given(x)).double() * self.scale_out


def quantized_engine(module: nn.Module, example: Tensor, *, bits: int = 8, reuse: int = 16) -> QuantizedEngine:
    """A sequence of linear layers, convolutions without padding, ReLU and flattening as a circuit of whole numbers.

    Args:
        module: an `nn.Sequential`.
        example: inputs (count, ...), from whose activations the ranges of numbers are taken.
        bits: of every number.
        reuse: asked of every layer; the nearest valid one is taken.

    Raises:
        HastenError: another kind of module, or see `EngineDesign`.
    """
    if not isinstance(module, nn.Sequential):
        raise HastenError("a circuit is made of an nn.Sequential: give one, of linear layers")
    parts = [m for m in module if not isinstance(m, nn.Identity | nn.Dropout)]
    layers: list[EngineLayer] = []
    numbers: list[LayerNumbers] = []
    with torch.no_grad():
        x = example.double()
        point_in = point = _point(x, bits)
        flattened: tuple[int, int] | None = None  # places and channels of a map that a dense layer takes
        for at, part in enumerate(parts):
            if isinstance(part, nn.ReLU | nn.Flatten):
                behind = isinstance(parts[at - 1], nn.Linear | nn.Conv1d | nn.Conv2d) if at else False
                if isinstance(part, nn.ReLU) and not behind:
                    raise HastenError("a ReLU of a circuit stands behind a linear layer or a convolution")
                if isinstance(part, nn.Flatten) and x.ndim > 2:
                    flattened = (math.prod(x.shape[2:]), x.shape[1])
                    x = x.flatten(1)
                continue
            relu = at + 1 < len(parts) and isinstance(parts[at + 1], nn.ReLU)
            layer, weight, bias, x = _layer(part, x, relu, reuse, flattened)
            flattened = None
            after = _point(x, bits)
            fraction = _point(weight, bits)
            after = min(after, fraction + point)  # sums are not made finer than they are
            shift = fraction + point - after
            if shift > 2 * bits:
                raise HastenError(f"layer {len(layers)}'s weights are too small beside its results for {bits} bits")
            half = 1 << (bits - 1)
            whole = [
                torch.round(t * 2.0**p).clamp(-half, half - 1).to(torch.int64).numpy()
                for t, p in ((weight, fraction), (bias, after))
            ]
            layers.append(layer)
            numbers.append(LayerNumbers(whole[0], whole[1], shift))
            point = after
    return QuantizedEngine(EngineDesign(tuple(layers), bits), numbers, 2.0**-point_in, 2.0**-point)


def _point(values: Tensor, bits: int) -> int:
    """Bits behind the point with which the greatest of some values just fits."""
    most = float(values.abs().max())
    if not math.isfinite(most):
        raise HastenError("a weight or an activation is not finite: a circuit has no such numbers")
    return bits - 1 - math.ceil(math.log2(most * (1 + 2.0 ** (1 - bits)))) if most else bits - 1


def _layer(
    part: nn.Module, x: Tensor, relu: bool, reuse: int, flattened: tuple[int, int] | None
) -> tuple[EngineLayer, Tensor, Tensor, Tensor]:
    """A layer, its weight (outputs, taps) and bias (outputs,), and its results on ``x``, all in fp64."""
    activation: Literal["linear", "relu"] = "relu" if relu else "linear"
    if isinstance(part, nn.Linear) and x.ndim == 2:
        weight = part.weight.double()
        inputs, outputs = part.in_features, part.out_features
        made = EngineLayer(inputs, outputs, nearest_reuse(inputs, outputs, reuse), activation)
        result = x @ weight.T
        if flattened is not None:  # torch flattens channel by channel
            places, channels = flattened
            weight = weight.reshape(outputs, channels, places).transpose(1, 2).reshape(outputs, inputs)
    elif isinstance(part, nn.Conv1d | nn.Conv2d) and x.ndim == part.weight.ndim:
        plain = not isinstance(part.padding, str) and not any(part.padding) and set(part.dilation) == {1}
        if not plain or part.groups != 1 or len(set(part.stride)) > 1:
            raise HastenError("a convolution of a circuit has no padding, no groups, no dilation, and one stride")
        kernel = (int(part.kernel_size[0]) if x.ndim == 4 else 1, int(part.kernel_size[-1]))
        size = (int(x.shape[2]) if x.ndim == 4 else 1, int(x.shape[-1]))
        taps = part.in_channels * kernel[0] * kernel[1]
        valid = nearest_reuse(taps, part.out_channels, reuse)
        stride = part.stride[0]
        made = EngineLayer(part.in_channels, part.out_channels, valid, activation, size, kernel, stride)
        planes = part.weight.double().reshape(part.out_channels, part.in_channels, *kernel)
        weight = planes.permute(0, 2, 3, 1).reshape(part.out_channels, taps)
        rows = x.reshape(len(x), part.in_channels, *size)
        result = nn.functional.conv2d(rows, planes, stride=(stride if size[0] > 1 else 1, stride))
        result = result if x.ndim == 4 else result[:, :, 0]
    else:
        raise HastenError(
            f"a {type(part).__name__} on {x.ndim} dimensions is no layer of a circuit: it has Linear, Conv1d, Conv2d,"
            " ReLU and Flatten"
        )
    outputs = made.outputs
    bias = torch.zeros(outputs, dtype=torch.float64) if part.bias is None else part.bias.double()
    result = result + bias.reshape(1, -1, *(1,) * (result.ndim - 2))
    return made, weight, bias, result.relu() if relu else result


__all__ = ["QuantizedEngine", "quantized_engine"]

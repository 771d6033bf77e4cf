"""Circuits of fixed-point layers whose multipliers are used several times: sizes, order of work, and what is computed.

An engine of n inputs and m outputs with reuse r has n m / r multipliers (`hasten.hardware.hls.reuse`). While r is below
n, each output has n / r of them; from n on they serve m n / r outputs at a time, one input a cycle. A convolution is
such an engine, whose positions take turns at it. Numbers are whole: activations and weights of ``bits`` bits with a
sign, sums exact, results shifted down, rounded towards minus infinity and held to the format's range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.errors import HastenError
from hasten.hardware.hls.reuse import nearest_reuse, valid_reuse

Numbers = NDArray[np.int64]
Activation = Literal["linear", "relu"]
MOST_BITS = 24
"""Of an activation or a weight: products and sums of more would not fit the 64 bits of the model."""
_MOST_SIZE = 1 << 20


@dataclass(frozen=True)
class EngineLayer:
    """A dense layer, or a convolution without padding.

    Args:
        inputs: of a dense layer; of a convolution, channels.
        outputs: likewise.
        reuse: cycles that each multiplier is used for one result of the layer, or for one position; a valid one.
        activation: of its results.
        map: height and width of a convolution's input; (1, 1) of a dense layer.
        kernel, stride: of a convolution.

    Raises:
        HastenError: a size that is not positive, a kernel larger than the map, or a reuse that no engine can have.
    """

    inputs: int
    outputs: int
    reuse: int
    activation: Activation = "relu"
    map: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def __post_init__(self) -> None:
        sizes = (self.inputs, self.outputs, self.reuse, self.stride, *self.map, *self.kernel)
        if min(sizes) < 1 or max(sizes) > _MOST_SIZE:
            raise HastenError(f"a layer's sizes are from 1 to {_MOST_SIZE:,}: {self} has another")
        if self.kernel[0] > self.map[0] or self.kernel[1] > self.map[1]:
            raise HastenError(f"a kernel of {self.kernel} does not fit a map of {self.map}: there is no padding")
        if self.activation not in ("linear", "relu"):
            raise HastenError(f"an engine's activation is linear or relu, not {self.activation!r}")
        if self.reuse not in valid_reuse(self.taps, self.outputs):
            near = nearest_reuse(self.taps, self.outputs, self.reuse)
            raise HastenError(
                f"no engine of {self.taps} inputs and {self.outputs} outputs uses its multipliers {self.reuse} times:"
                f" the nearest is {near}"
            )

    @property
    def convolution(self) -> bool:
        """Whether it has positions: else it is dense."""
        return self.map != (1, 1)

    @property
    def taps(self) -> int:
        """Inputs of one result."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def made(self) -> tuple[int, int]:
        """Height and width of its results."""
        height, width = ((n - k) // self.stride + 1 for n, k in zip(self.map, self.kernel, strict=True))
        return height, width

    @property
    def positions(self) -> int:
        return self.made[0] * self.made[1]

    @property
    def given(self) -> int:
        """Numbers that it takes at once."""
        return self.inputs * self.map[0] * self.map[1]

    @property
    def results(self) -> int:
        """Numbers that it gives at once."""
        return self.outputs * self.positions

    @property
    def multipliers(self) -> int:
        return self.taps * self.outputs // self.reuse

    @property
    def lanes(self) -> int:
        """Results that are summed at a time."""
        return min(self.multipliers, self.outputs)

    @property
    def parallel(self) -> int:
        """Inputs of each of them that are multiplied in a cycle."""
        return self.multipliers // self.lanes

    @property
    def groups(self) -> int:
        """Of results, one after the other."""
        return self.outputs // self.lanes

    @property
    def steps(self) -> int:
        """Cycles of a group."""
        return self.taps // self.parallel

    def __str__(self) -> str:
        end = f"{self.outputs} /{self.reuse} {self.activation}"
        if not self.convolution:
            return f"dense {self.inputs} {end}"
        (h, w), (kh, kw) = self.map, self.kernel
        return f"conv {h}x{w}x{self.inputs} {kh}x{kw} +{self.stride} {end}"


_DENSE = re.compile(r"dense (\d+) (\d+) /(\d+) (\w+)")
_CONVOLUTION = re.compile(r"conv (\d+)x(\d+)x(\d+) (\d+)x(\d+) \+(\d+) (\d+) /(\d+) (\w+)")


@dataclass(frozen=True)
class EngineDesign:
    """Layers one after the other, each at work on its own input.

    Args:
        layers: the results of one are all that the next takes; maps row by row, the channels of a place together.
        bits: of an activation and of a weight, with its sign.

    Raises:
        HastenError: no layers, layers that do not follow each other, or bits below 2 or above `MOST_BITS`.

    >>> design = read_design("8 bits; dense 16 32 /16 relu; dense 32 5 /32 linear")
    >>> [layer.multipliers for layer in design.layers]
    [32, 5]
    """

    layers: tuple[EngineLayer, ...]
    bits: int = 8

    def __post_init__(self) -> None:
        if not self.layers:
            raise HastenError("a circuit has at least one layer")
        if not 2 <= self.bits <= MOST_BITS:
            raise HastenError(f"an engine's numbers have 2 to {MOST_BITS} bits, not {self.bits}")
        for one, other in zip(self.layers[:-1], self.layers[1:], strict=True):
            if one.results != other.given:
                raise HastenError(f"a layer of {one.results} results is followed by one that takes {other.given}")

    @property
    def given(self) -> int:
        """Numbers of an input."""
        return self.layers[0].given

    @property
    def results(self) -> int:
        """Numbers of a result."""
        return self.layers[-1].results

    @property
    def structure(self) -> str:
        """What it computes, without its bits and how often multipliers are used."""
        return re.sub(r" /\d+", "", "; ".join(map(str, self.layers)))

    def __str__(self) -> str:
        return "; ".join((f"{self.bits} bits", *map(str, self.layers)))


def read_design(text: str) -> EngineDesign:
    """A design from its text, as ``str`` gives it.

    Raises:
        HastenError: it is none, or one that cannot be.
    """
    head, *layers = (part.strip() for part in text.split(";"))
    bits = re.fullmatch(r"(\d{1,3}) bits", head)
    found = []
    for layer in layers:
        dense, convolution = _DENSE.fullmatch(layer), _CONVOLUTION.fullmatch(layer)
        if dense is not None:
            *sizes, kind = dense.groups()
            inputs, outputs, reuse = map(_size, sizes)
            found.append(EngineLayer(inputs, outputs, reuse, _activation(kind)))
        elif convolution is not None:
            *sizes, kind = convolution.groups()
            h, w, inputs, kh, kw, stride, outputs, reuse = map(_size, sizes)
            found.append(EngineLayer(inputs, outputs, reuse, _activation(kind), (h, w), (kh, kw), stride))
        else:
            bits = None
    if bits is None:
        raise HastenError(f"{text[:80]!r} is no design: say it as '8 bits; dense 16 5 /16 relu'")
    return EngineDesign(tuple(found), int(bits[1]))


def _size(text: str) -> int:
    return int(text) if len(text) < 8 else _MOST_SIZE + 1


def _activation(kind: str) -> Activation:
    if kind not in ("linear", "relu"):
        raise HastenError(f"an engine's activation is linear or relu, not {kind!r}")
    return "relu" if kind == "relu" else "linear"


def dense_design(
    widths: Sequence[int], bits: int, reuse: int, activations: Sequence[Activation] | None = None
) -> EngineDesign:
    """Dense layers with the valid reuse nearest to the one asked for; ReLU between where nothing else is said.

    Raises:
        HastenError: fewer than two widths, or see `EngineDesign`.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise HastenError("dense layers are given by at least two widths above 0: of the input, and of each layer")
    count = len(widths) - 1
    between: list[Activation] = ["relu"] * (count - 1)
    kinds = activations or [*between, "linear"]
    layers = [
        EngineLayer(i, o, nearest_reuse(i, o, reuse), kind)
        for i, o, kind in zip(widths[:-1], widths[1:], kinds, strict=True)
    ]
    return EngineDesign(tuple(layers), bits)


@dataclass(frozen=True, eq=False)
class LayerNumbers:
    """The numbers of a layer.

    Args:
        weight: (outputs, taps); taps of a convolution row by row of its kernel, the channels of a place together.
        bias: (outputs,), in the format of results.
        shift: bits that a sum is shifted down.
    """

    weight: Numbers
    bias: Numbers
    shift: int


def random_numbers(design: EngineDesign, seed: int = 0) -> list[LayerNumbers]:
    """Random numbers for every layer of a design, the same for the same seed everywhere.

    Weights are uniform over their format, as hls4ml's with one bit before the point.
    """
    random = np.random.RandomState(seed)  # its stream never changes, and tables hold what it made
    half, found = 1 << (design.bits - 1), []
    for layer in design.layers:
        weight = random.randint(-half, half, (layer.outputs, layer.taps), dtype=np.int64)
        bias = random.randint(-half, half, layer.outputs, dtype=np.int64) // 4
        found.append(LayerNumbers(weight, bias, design.bits - 1))
    return found


def check_numbers(design: EngineDesign, numbers: Sequence[LayerNumbers]) -> None:
    """
    Raises:
        HastenError: numbers of other shapes, or out of the design's range.
    """
    half = 1 << (design.bits - 1)
    if len(numbers) != len(design.layers):
        raise HastenError(f"{len(numbers)} layers of numbers are given for {len(design.layers)} layers")
    for layer, n in zip(design.layers, numbers, strict=True):
        if n.weight.shape != (layer.outputs, layer.taps) or n.bias.shape != (layer.outputs,):
            raise HastenError(f"the numbers of {layer} have the shapes {n.weight.shape} and {n.bias.shape}")
        most = max(abs(n.weight).max(), abs(n.bias).max())
        if most > half or n.weight.max() == half or n.bias.max() == half:
            raise HastenError(f"a number of {layer} does not fit {design.bits} bits: give smaller ones, or more bits")
        if not 0 <= n.shift <= 2 * design.bits:
            raise HastenError(f"sums are shifted down by 0 to {2 * design.bits} bits, not by {n.shift}")


def engine_outputs(design: EngineDesign, numbers: Sequence[LayerNumbers], inputs: Tensor) -> Tensor:
    """What the circuit computes, by whole numbers in torch: the model that the circuit equals bit for bit.

    Args:
        inputs: int64 (count, given) in the range of the design's bits.

    Returns:
        int64 (count, results).

    Raises:
        HastenError: inputs of another shape or range, or see `check_numbers`.
    """
    check_numbers(design, numbers)
    half = 1 << (design.bits - 1)
    if inputs.ndim != 2 or inputs.shape[1] != design.given or inputs.dtype != torch.int64:
        raise HastenError(f"the circuit takes int64 inputs of the shape (count, {design.given})")
    if len(inputs) and (int(inputs.min()) < -half or int(inputs.max()) >= half):
        raise HastenError(f"an input does not fit {design.bits} bits")
    x = inputs
    for layer, n in zip(design.layers, numbers, strict=True):
        (h, w), (kh, kw), s = layer.map, layer.kernel, layer.stride
        windows = x.reshape(len(x), h, w, layer.inputs).unfold(1, kh, s).unfold(2, kw, s)
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(len(x), layer.positions, layer.taps)
        total = (windows @ torch.from_numpy(n.weight).T >> n.shift) + torch.from_numpy(n.bias)
        low = 0 if layer.activation == "relu" else -half
        x = total.clamp(low, half - 1).reshape(len(x), layer.results)
    return x


def engine_cycles(design: EngineDesign) -> int:
    """Cycles from taking an input until its result is there, when nothing else is at work: exact for these circuits.

    A dense layer takes its reuse and 4 (read, multiply, add, settle), a convolution for every position its reuse and 5,
    and 1.
    """
    return sum(
        layer.positions * (layer.reuse + 5) + 1 if layer.convolution else layer.reuse + 4 for layer in design.layers
    )


def engine_interval(design: EngineDesign) -> int:
    """Cycles from one result to the next when inputs never wait: as the slowest layer needs."""
    return max(
        layer.positions * (layer.reuse + 5) + 2 if layer.convolution else layer.reuse + 5 for layer in design.layers
    )


__all__ = [
    "MOST_BITS", "Activation", "EngineDesign", "EngineLayer", "LayerNumbers", "check_numbers", "dense_design",
    "engine_cycles", "engine_interval", "engine_outputs", "random_numbers", "read_design",
]  # fmt: skip

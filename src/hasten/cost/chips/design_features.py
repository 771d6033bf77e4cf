"""Circuits of layers as numbers: what surrogates of their resources are given (wa-hls4ml, arXiv 2511.05615).

A layer has the paper's numerics (sizes in and out, precision, reuse, filters, kernel, stride), its kind and activation;
reuse is the valid one, not the one asked for, which makes latencies look like noise. Beside them stands what is known
without learning: multipliers, words of the weights' memory, bits of a sum. Numbers are logarithms, so that a product of
sizes is a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.hardware.hls.engines import EngineDesign, EngineLayer

Matrix = NDArray[np.float64]
NUMERICS = (
    "height in", "width in", "channels in", "height out", "width out", "channels out", "precision", "reuse", "kernel",
    "stride", "positions", "multipliers", "weights", "weight bits", "word bits", "sum bits", "input bits",
)  # fmt: skip
KINDS = ("dense", "dense without activation", "convolution", "convolution without activation", "multiplied at once")
WIDTH = len(NUMERICS) + len(KINDS)
"""Numbers of a layer."""


def layer_features(layer: EngineLayer, bits: int) -> list[float]:
    """Numbers (`WIDTH`,) of a layer."""
    (h, w), (oh, ow) = layer.map, layer.made
    weights = layer.taps * layer.outputs
    sums = 2 * bits + max(1, (layer.taps - 1).bit_length())
    numerics = (
        h, w, layer.inputs, oh, ow, layer.outputs, bits, layer.reuse, layer.kernel[0] * layer.kernel[1], layer.stride,
        layer.positions, layer.multipliers, weights, weights * bits, layer.multipliers * bits, layer.lanes * sums,
        layer.given * bits,
    )  # fmt: skip
    relu = layer.activation == "relu"
    kinds = (
        not layer.convolution and relu, not layer.convolution and not relu, layer.convolution and relu,
        layer.convolution and not relu, layer.reuse == 1,
    )  # fmt: skip
    return [*(math.log(n) for n in numerics), *map(float, kinds)]


@dataclass(frozen=True, eq=False)
class LayerBatch:
    """Circuits as graphs of layers, those with fewer filled up.

    Args:
        features: (count, layers, `WIDTH`).
        present: bool (count, layers); what is not is nothing.
        edges: bool (count, layers, layers): whether the second's results go to the first.
        overall: (count, numbers) of the whole circuit: the logarithm of its bits.
    """

    features: Tensor
    present: Tensor
    edges: Tensor
    overall: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, at: Tensor) -> LayerBatch:
        return LayerBatch(self.features[at], self.present[at], self.edges[at], self.overall[at])

    def standardised(self, mean: Tensor, spread: Tensor) -> LayerBatch:
        """With features of zero mean and spread 1 where they were (`WIDTH`,) before; what is not present is 0."""
        features = (self.features - mean) / spread * self.present[..., None]
        return LayerBatch(features, self.present, self.edges, self.overall)


def layer_batch(designs: Sequence[EngineDesign]) -> LayerBatch:
    """Circuits as a batch: layer after layer."""
    count, most = len(designs), max((len(d.layers) for d in designs), default=0)
    features, present = torch.zeros(count, most, WIDTH), torch.zeros(count, most, dtype=torch.bool)
    edges = torch.zeros(count, most, most, dtype=torch.bool)
    for i, design in enumerate(designs):
        n = len(design.layers)
        features[i, :n] = torch.tensor([layer_features(layer, design.bits) for layer in design.layers])
        present[i, :n] = True
        edges[i, range(1, n), range(n - 1)] = True
    overall = torch.tensor([[math.log2(d.bits)] for d in designs]).reshape(count, 1)
    return LayerBatch(features, present, edges, overall)


def pooled_features(designs: Sequence[EngineDesign]) -> Matrix:
    """(count, features) for what takes vectors: number of layers, and of each number of a layer the mean, the greatest,
    and the logarithm of the sum over layers of what it is the logarithm of."""
    found = []
    for design in designs:
        rows = np.array([layer_features(layer, design.bits) for layer in design.layers])
        numerics = rows[:, : len(NUMERICS)]
        sums = np.log(np.exp(numerics).sum(0))
        found.append(np.concatenate([[len(rows)], rows.mean(0), rows.max(0), sums]))
    return np.array(found).reshape(len(designs), 1 + 2 * WIDTH + len(NUMERICS))

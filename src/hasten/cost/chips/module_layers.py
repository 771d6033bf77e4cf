"""What a module asks of an array: its convolutions and fully connected layers as `ConvShape`, and nothing left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from hasten.cost.chips.dataflow import ConvShape
from hasten.cost.preserving import evaluating
from hasten.errors import HastenError

_COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Looked up, not multiplied.
_TABLES = (nn.Embedding, nn.EmbeddingBag)


def conv_shapes(module: nn.Module, inputs: Sequence[int]) -> tuple[ConvShape, ...]:
    """The convolutions and fully connected layers of a module, in the order they run on an input of shape ``inputs``.

    Of one image, sequence or row: the first size of ``inputs`` is the batch. A fully connected layer has a row for each
    token, a convolution of one dimension is one of a single row.

    Raises:
        HastenError: a layer with groups, or one that multiplies otherwise: a convolution of three dimensions or a
            transposed one, attention, a recurrence.
    """
    found = grouped_shapes(module, inputs)
    if any(groups != 1 for _, groups in found):
        raise HastenError("a convolution with groups has no mapping to these dataflows")
    return tuple(shape for shape, _ in found)


def grouped_shapes(module: nn.Module, inputs: Sequence[int]) -> tuple[tuple[ConvShape, int], ...]:
    """As `conv_shapes`, of one group each, with how many groups there are.

    Raises:
        HastenError: a layer that multiplies otherwise.
    """
    for part in module.modules():
        own = [p for p in part.parameters(recurse=False) if p.dim() >= 2]
        if own and not isinstance(part, (*_COUNTED, *_TABLES)):
            raise HastenError(
                f"{type(part).__name__} has no mapping to these dataflows: only Linear, Conv1d and Conv2d have"
            )
    found: list[tuple[ConvShape, int]] = []
    batch = inputs[0]

    def seen(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            rows = math.ceil(made.numel() / layer.out_features / batch)
            found.append((ConvShape(layer.out_features, layer.in_features, 1, 1, rows, 1), 1))
            return
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        # Of a single row where there is one dimension.
        (rows, columns), (height, width), (down, along) = (
            (1, *sizes)[-2:] for sizes in (layer.kernel_size, made.shape[2:], layer.stride)
        )
        out, into = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        shape = ConvShape(out, into, rows, columns, height, width, down, along)
        # Pictures of a clip, say, that run as a batch.
        found.extend([(shape, layer.groups)] * math.ceil(made.shape[0] / batch))

    hooks = [m.register_forward_hook(seen) for m in module.modules() if isinstance(m, _COUNTED)]
    try:
        with evaluating(module), torch.no_grad():
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
            module(torch.zeros(tuple(inputs), device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)

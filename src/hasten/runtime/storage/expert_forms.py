"""How an expert lies in a file and in memory: plain, or in Q4_0 as SmallThinker runs it, multiplied as it is packed.

A bundle is the gate, up and transposed down of one expert, (3, inner, width): a neuron is a row of all three. In fp32
it is that tensor. In Q4_0 (arXiv 2507.20984, section 4; llama.cpp's format) every 32 values along the width are four
bits each and one fp16 scale, 18 bytes. The file holds GGUF's scales and codes of a bundle, first all scales and then
all codes, so that both are used where they were read to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.groups import check_range
from hasten.kernels.packed_linear import GROUP, dequantize
from hasten.nn.reglu_experts import sparse_rows

Shape = tuple[int, ...]
_BLOCK_BYTES, _SCALE_BYTES = 18, 2  # of 32 values


class ExpertForm(ABC):
    """A way to keep bundles of a shape (3, inner, width).

    Class attributes:
        name: as files say it.
        dtype: as safetensors says it.
    """

    name: ClassVar[str]
    dtype: ClassVar[str]

    @abstractmethod
    def stored(self, shape: Shape) -> Shape:
        """The shape that a file gives a bundle of ``shape``.

        Raises:
            HastenError: bundles of that shape cannot be kept so.
        """

    @abstractmethod
    def shape(self, stored: Shape) -> Shape:
        """The bundle's own shape.

        Raises:
            ValueError: no bundle is stored so.
        """

    def nbytes(self, shape: Shape) -> int:
        """Bytes of a bundle, in the file as in memory."""
        return math.prod(self.stored(shape)) * (4 if self.dtype == "F32" else 1)

    @abstractmethod
    def encode(self, weights: Tensor) -> Tensor:
        """What is stored of weights (3, inner, width) in fp32."""

    @abstractmethod
    def held(self, data: bytearray, shape: Shape) -> Tensor:
        """A bundle as it is held in memory, over the very bytes that were read."""

    @abstractmethod
    def one_token(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        """The expert for one token h (width), by those neurons alone whose gate is positive."""

    @abstractmethod
    def tokens(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        """The expert for tokens h (n, width)."""


class PlainExperts(ExpertForm):
    """Four bytes a value."""

    name, dtype = "fp32", "F32"

    def stored(self, shape: Shape) -> Shape:
        return shape

    def shape(self, stored: Shape) -> Shape:
        return stored

    def encode(self, weights: Tensor) -> Tensor:
        return weights

    def held(self, data: bytearray, shape: Shape) -> Tensor:
        return torch.from_numpy(np.frombuffer(data, np.float32).reshape(shape))

    def one_token(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        gate, up, down = bundle
        return sparse_rows(gate, up, down, h)

    def tokens(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        gate, up, down = bundle
        return (torch.relu(h @ gate.t()) * (h @ up.t())) @ down


class PackedExperts(ExpertForm):
    """Q4_0: gate and up are multiplied as they are packed, and of down the rows in use become fp32 for the moment."""

    name, dtype = "q4_0", "U8"

    def stored(self, shape: Shape) -> Shape:
        if shape[-1] % GROUP:
            raise HastenError(f"experts in q4_0 have a width of a multiple of {GROUP}, not {shape[-1]}: write fp32")
        return (*shape[:-1], shape[-1] // GROUP * _BLOCK_BYTES)

    def shape(self, stored: Shape) -> Shape:
        if stored[-1] % _BLOCK_BYTES:
            raise ValueError("a row of q4_0 is not of whole blocks")
        return (*stored[:-1], stored[-1] // _BLOCK_BYTES * GROUP)

    def encode(self, weights: Tensor) -> Tensor:
        check_range(weights, 4)  # a scale counts from -8 of it, which fp16 has to hold
        blocks = quantize(weights.numpy(), GGMLQuantizationType.Q4_0).reshape(-1, _BLOCK_BYTES)
        planes = np.concatenate([blocks[:, :_SCALE_BYTES].ravel(), blocks[:, _SCALE_BYTES:].ravel()])
        return torch.from_numpy(planes.reshape(self.stored(tuple(weights.shape))))

    def held(self, data: bytearray, shape: Shape) -> Tensor:
        return torch.from_numpy(np.frombuffer(data, np.uint8))

    def _parts(self, bundle: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Codes (3, inner, width / 2) and scales (3, inner, width / 32), views of the bundle."""
        edge = math.prod(shape) // GROUP * _SCALE_BYTES
        scales = bundle[:edge].view(torch.float16).view(*shape[:-1], shape[-1] // GROUP)
        return bundle[edge:].view(*shape[:-1], shape[-1] // 2), scales

    def one_token(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        codes, scales = self._parts(bundle, shape)
        opened = torch.relu(_product(h[None], codes[0], scales[0])[0])
        used = opened.nonzero()[:, 0]
        if not len(used):
            return torch.zeros_like(h)
        inner = opened[used] * _product(h[None], codes[1][used], scales[1][used])[0]
        return inner @ _plain(codes[2][used], scales[2][used])

    def tokens(self, bundle: Tensor, shape: Shape, h: Tensor) -> Tensor:
        codes, scales = self._parts(bundle, shape)
        inner = torch.relu(_product(h, codes[0], scales[0])) * _product(h, codes[1], scales[1])
        return inner @ _plain(codes[2], scales[2])


def _product(h: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """h (n, width) times rows (m, width) in Q4_0, whose codes count from -8: (n, m)."""
    return torch.ops.hasten.packed_linear(h, codes, scales, -8 * scales, 4, GROUP)


def _plain(codes: Tensor, scales: Tensor) -> Tensor:
    return dequantize(codes, scales, -8 * scales, 4, GROUP)


FORMS: dict[str, ExpertForm] = {form.name: form for form in (PlainExperts(), PackedExperts())}


def expert_form(name: str) -> ExpertForm:
    """A form by its name.

    Raises:
        HastenError: another name.
    """
    if name not in FORMS:
        raise HastenError(f"unknown form of experts {name!r}: one of {', '.join(FORMS)}")
    return FORMS[name]

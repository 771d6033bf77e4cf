"""Block formats: the same weights as the format's own package gives, at every width that a format has."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.kernels.block_formats import BLOCK_FORMATS, decode, finite, take_apart

NUMBERS = {f.name: number for number, f in BLOCK_FORMATS.items()}


def random_rows(name: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of random bytes, with scales of a usual size."""
    known = BLOCK_FORMATS[NUMBERS[name]]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, columns // known.columns, known.nbytes), dtype=np.uint8)
    for at in known.scale_bytes:
        scales = rng.normal(0, 0.01, raw.shape[:2]).astype(np.float16)
        raw[..., at : at + 2] = scales.view(np.uint8).reshape(*raw.shape[:2], 2)
    if name == "mxfp4":
        raw[..., 0] = rng.integers(110, 130, raw.shape[:2])
    return torch.from_numpy(raw.reshape(rows, -1))


@pytest.mark.parametrize("name", NUMBERS)
def test_weights_are_those_of_the_gguf_package(name: str) -> None:
    number = NUMBERS[name]
    known = BLOCK_FORMATS[number]
    kind = Type(number - 100)
    assert (kind.name.lower(), known.columns, known.nbytes) == (name, *GGML_QUANT_SIZES[kind])
    for columns in (32, 64, 96, 256, 288, 512):
        if columns % known.columns == 0:
            packed = random_rows(name, 5, columns, columns)
            found = decode(packed, number)
            np.testing.assert_array_equal(found.numpy(), gguf.quants.dequantize(packed.numpy(), kind))
            parts = take_apart(packed.unflatten(-1, (-1, known.nbytes)), number)
            assert parts.codes.dtype is torch.int8
            assert parts.scales.shape == (5, columns // known.columns, known.columns // known.group)


def test_every_power_of_two_is_read() -> None:
    packed = torch.full((254, 17), 0x12, dtype=torch.uint8)
    packed[:, 0] = torch.arange(254)
    np.testing.assert_array_equal(
        decode(packed, NUMBERS["mxfp4"]).numpy(), gguf.quants.dequantize(packed.numpy(), Type.MXFP4)
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_weights_that_are_not_finite_are_found(name: str) -> None:
    number = NUMBERS[name]
    packed = random_rows(name, 3, 512)
    assert finite(packed, number)
    size = BLOCK_FORMATS[number].nbytes
    for at in BLOCK_FORMATS[number].scale_bytes:
        for wrong in (np.inf, np.nan):
            damaged = packed.clone()
            where = size + at
            damaged[2, where : where + 2] = torch.from_numpy(np.array([wrong], np.float16).view(np.uint8))
            assert not finite(damaged, number)
    if name == "mxfp4":
        packed[1, 17] = 255
        assert not finite(packed, number)

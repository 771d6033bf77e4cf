"""Block formats: the same weights as the format's own package gives, at every width that a format has."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.kernels.block_formats import BLOCK_FORMATS, decode, decode_rows, finite, take_apart
from hasten.kernels.packed_linear import native_matrix, packed_linear, round_rows
from hasten.nn.packed import PackedEmbedding, PackedLinear

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


@pytest.mark.parametrize("name", NUMBERS)
def test_compiled_products_are_the_reference(name: str, isa: str) -> None:
    """Of one row of x, of few and of many, at widths of whole blocks and no more, in floats and in whole numbers."""
    number = NUMBERS[name]
    assert isa
    for columns in (32, 96, 256, 288, 1280):
        if columns % BLOCK_FORMATS[number].columns:
            continue
        packed = random_rows(name, 21, columns, columns)
        weight = decode(packed, number)
        unpacked = torch.ops.hasten.dequantize(packed, None, None, number, 32)
        torch.testing.assert_close(unpacked, weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))
        x = torch.randn(17, columns, generator=torch.Generator().manual_seed(columns))
        for int8 in (False, True):
            expected = (round_rows(x) if int8 else x) @ weight.t()
            most = float(expected.abs().max())
            whole = packed_linear(x, packed, None, None, number, 32, False, int8)
            # A code of x at a tie may go either way.
            torch.testing.assert_close(whole, expected, rtol=0, atol=(1e-3 if int8 else 1e-5) * most)
            for rows in (1, 5):
                few = packed_linear(x[:rows], packed, None, None, number, 32, False, int8)
                torch.testing.assert_close(few, whole[:rows], rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_row_of_codes_is_the_same_in_any_company(
    name: str, alone_as_beside_others: Callable[[object, torch.Tensor, int], None]
) -> None:
    """Of one row, of several and of many each has a way of its own, and all add the same numbers in the same order."""
    number = NUMBERS[name]
    columns = 1280 if BLOCK_FORMATS[number].columns > 32 else 1120
    packed = random_rows(name, 37, columns, 3)
    matrix = native_matrix(packed, None, None, number, 32, codes_in=True)
    alone_as_beside_others(matrix, torch.randn(40, columns, generator=torch.Generator().manual_seed(4)), 37)


def test_rows_that_are_no_blocks_are_refused() -> None:
    packed = random_rows("q4_k", 4, 512)
    layer = PackedLinear(512, 4, bits=NUMBERS["q4_k"])
    assert layer.packed.shape == packed.shape
    assert layer.format == "q4_k"
    layer.fill(packed, None, None)
    table = PackedEmbedding(4, 512, bits=NUMBERS["q4_k"]).tie(layer)
    torch.testing.assert_close(table(torch.tensor([2, 0])), decode(packed, NUMBERS["q4_k"])[[2, 0]])
    for wrong in (packed[:, :-1].contiguous(), packed.to(torch.int8)):
        with pytest.raises(ValueError, match=r"blocks of 144|must be uint8"):
            packed_linear(torch.randn(1, 512), wrong, None, None, NUMBERS["q4_k"], 32)
    with pytest.raises(ValueError, match="blocks of 256"):
        PackedLinear(96, 4, bits=NUMBERS["q4_k"])
    with pytest.raises(ValueError, match="neither scales nor mins"):
        packed_linear(torch.randn(1, 512), packed, torch.ones(4, 16).half(), None, NUMBERS["q4_k"], 32)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("rows", "blocks"), [(0, 2), (3, 0), (0, 0)])
def test_no_rows_and_no_columns_have_no_weights(name: str, rows: int, blocks: int) -> None:
    number = NUMBERS[name]
    known = BLOCK_FORMATS[number]
    packed = torch.zeros(rows, blocks * known.nbytes, dtype=torch.uint8)
    assert decode_rows(packed, number).shape == (rows, blocks * known.columns)
    assert finite(packed, number)

"""Weights in tiles: the same weights, and products that are bit for bit those of weights in rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.packed_linear import dequantize_reference, native_matrix, packed_embedding, packed_linear, quantize
from hasten.kernels.tiles import TILE, in_tiles, room_for_tiles, takes_tiles, tile_bytes, to_rows, to_tiles
from hasten.nn.packed import PackedEmbedding, PackedLinear
from hasten.workload import trace

BLOCKS = [bits for bits in BLOCK_FORMATS if takes_tiles(bits)]
# int4 has mins, or as "centred" none.
FORMATS = ["int8", "int4", "centred", *(BLOCK_FORMATS[bits].name for bits in BLOCKS)]


def weight_of(name: str, rows: int, columns: int) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    generator = torch.Generator().manual_seed(rows + columns)
    if name in ("int8", "int4", "centred"):
        bits = 8 if name == "int8" else 4
        packed, scales, mins = quantize(torch.randn(rows, columns, generator=generator), bits)
        return packed, scales, None if name == "centred" else mins, bits
    bits, known = next((b, f) for b, f in BLOCK_FORMATS.items() if f.name == name)
    blocks = torch.randint(0, 256, (rows, columns // known.columns, known.nbytes), generator=generator).to(torch.uint8)
    for at in known.scale_bytes:
        scales = (torch.rand(blocks.shape[:2], generator=generator) * 0.01).half()
        blocks[..., at : at + 2] = scales[..., None].view(torch.uint8)
    return blocks.flatten(1), None, None, bits


def widths(name: str) -> tuple[int, ...]:
    return (32, 96, 576, 1120) if name in ("int8", "int4", "centred", "q5_0") else (256, 768, 1280)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_come_back_bit_for_bit(name: str) -> None:
    for columns in widths(name):
        packed, scales, mins, bits = weight_of(name, 48, columns)
        tiles = to_tiles(packed, scales, mins, bits)
        assert in_tiles(tiles[0])
        assert tiles[0].nbytes == packed.nbytes
        assert tiles[0].shape[2] == tile_bytes(bits)[1]
        for found, given in zip(to_rows(*tiles, bits), (packed, scales, mins), strict=True):
            assert (found is None) == (given is None)
            assert found is None or given is None or torch.equal(found, given)
        weight = dequantize_reference(packed, scales, mins, bits, 32)
        assert torch.equal(dequantize_reference(*tiles, bits, 32), weight)
        ids = torch.tensor([[0, 47], [17, 3]])
        assert torch.equal(packed_embedding(ids, *tiles, bits, 32), weight[ids])


@pytest.mark.parametrize("name", FORMATS)
def test_compiled_products_are_those_of_rows(name: str, isa: str) -> None:
    """Of one row of x, of few and of many, whoever of the threads has which rows of the weight, and in floats."""
    assert isa
    generator = torch.Generator().manual_seed(0)
    for columns in widths(name):
        *rows, bits = weight_of(name, 48, columns)
        tiles = to_tiles(*rows, bits)
        weight = dequantize_reference(*rows, bits, 32)
        unpacked = torch.ops.hasten.dequantize(*tiles, bits, 32)
        torch.testing.assert_close(unpacked, weight, rtol=1e-6, atol=1e-6)
        x = torch.randn(40, columns, generator=generator)
        for count in (1, 2, 7, 40):
            found = packed_linear(x[:count], *tiles, bits, 32, int8=True)
            assert torch.equal(found, packed_linear(x[:count], *rows, bits, 32, int8=True))
        torch.testing.assert_close(packed_linear(x[:3], *tiles, bits, 32), x[:3] @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_codes_is_the_same_in_any_company(
    name: str, alone_as_beside_others: Callable[[object, Tensor, int], None]
) -> None:
    *rows, bits = weight_of(name, 80, widths(name)[-1])
    packed, scales, mins = to_tiles(*rows, bits)
    matrix = native_matrix(packed, scales, mins, bits, 32, codes_in=True)
    alone_as_beside_others(matrix, torch.randn(40, widths(name)[-1]), 80)


@pytest.mark.usefixtures("isa")
def test_a_number_that_is_not_finite_spoils_its_own_row() -> None:
    *rows, bits = weight_of("centred", 16, 64)
    tiles = to_tiles(*rows, bits)
    x = torch.randn(3, 64)
    whole = packed_linear(x, *tiles, bits, 32, int8=True)
    x[1, 40] = torch.inf
    found = packed_linear(x, *tiles, bits, 32, int8=True)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], whole[[0, 2]])


def test_shapes_that_are_no_tiles_are_refused() -> None:
    *rows, bits = weight_of("int4", 32, 96)
    packed, scales, mins = to_tiles(*rows, bits)
    x = torch.randn(2, 96)
    for wrong in ((packed[:, :2], scales, mins), (packed, scales[:1], mins), (packed[..., :-1], scales, mins)):
        with pytest.raises(ValueError, match="packed_linear: "):
            packed_linear(x, *wrong, bits, 32)
    with pytest.raises(ValueError, match="not of groups of 96"):
        packed_linear(x, packed, scales, mins, bits, 96)
    with pytest.raises(ValueError, match="packed_linear: "):
        packed_linear(x, packed, scales, mins, 16, 32)


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_in_tiles_is_saved_in_rows(name: str) -> None:
    columns = widths(name)[1]
    packed, scales, mins, bits = weight_of(name, 32, columns)
    layer = PackedLinear(columns, 32, bits=bits, int8=True)
    layer.fill(packed, scales, mins)
    before, x = {n: t.clone() for n, t in layer.state_dict().items()}, torch.randn(2, columns)
    expected = layer(x)
    assert layer.lay_in_tiles()
    assert layer.lay_in_tiles()
    assert in_tiles(layer.packed)
    assert torch.equal(layer(x), expected)
    table = PackedEmbedding(32, columns, bits=bits).tie(layer)
    assert torch.equal(table(torch.tensor([31])), layer.dequantize()[31:])
    saved = layer.state_dict()
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[n], before[n]) for n in saved)
    again = PackedLinear(columns, 32, bits=bits, int8=True)
    for one in (again, layer):
        one.load_state_dict(saved)
        assert torch.equal(one(x), expected)


def test_a_weight_of_other_rows_or_groups_stays_in_rows() -> None:
    for layer in (PackedLinear(64, TILE + 1), PackedLinear(64, TILE, group=64), PackedLinear(64, TILE, bits=16)):
        before = layer.packed
        assert not layer.lay_in_tiles()
        assert layer.packed is before


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 0), (0, 256)])
def test_nothing_stands_in_tiles_too(name: str, rows: int, columns: int) -> None:
    *given, bits = weight_of(name, rows, columns)
    back = to_rows(*to_tiles(*given, bits), bits)
    for found, part in zip(back, given, strict=True):
        assert found is part is None or (found.shape == part.shape and found.dtype == part.dtype)
    assert dequantize_reference(*to_tiles(*given, bits), bits, 32).shape == (rows, columns)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_in_tiles_is_described_as_in_rows(name: str) -> None:
    """Not as a stack of as many matrices as it has tiles, which is what its shape looks like."""
    *rows, bits = weight_of(name, 48, widths(name)[-1])

    class Layer(torch.nn.Module):
        def __init__(self, packed: Tensor, scales: Tensor | None, mins: Tensor | None) -> None:
            super().__init__()
            for part, tensor in (("packed", packed), ("scales", scales), ("mins", mins)):
                self.register_buffer(part, tensor)

        def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
            weight = (self.packed, self.scales, self.mins, bits, 32)
            return packed_linear(x, *weight, int8=True), packed_embedding(ids, *weight)

    x, ids = torch.randn(40, widths(name)[-1]), torch.tensor([3, 47])
    in_rows = trace(Layer(*rows), x, ids).phases[0].cascade
    tiled = trace(Layer(*to_tiles(*rows, bits)), x, ids).phases[0].cascade
    assert tiled.tensors == in_rows.tensors
    assert tiled.einsums == in_rows.einsums


@pytest.mark.parametrize("name", ["int4", "q6_k"])
def test_tiles_may_stand_in_memory_that_is_given(name: str) -> None:
    packed, scales, mins, bits = weight_of(name, 48, widths(name)[1])
    size = room_for_tiles(packed, scales, mins)
    room = torch.zeros(size, dtype=torch.uint8)
    found, own = to_tiles(packed, scales, mins, bits, room), to_tiles(packed, scales, mins, bits)
    for given, expected in zip(found, own, strict=True):
        assert (given is None) == (expected is None)
        if given is not None and expected is not None:
            assert torch.equal(given, expected)
            assert 0 <= given.data_ptr() - room.data_ptr() <= size - given.nbytes
            assert (given.data_ptr() - room.data_ptr()) % 64 == 0

"""Packed weights in tiles of sixteen rows, side by side as the compiled products of codes read them.

A weight (out, in) keeps its codes, scales and mins bit for bit, in another order and in three dimensions, by which it
is known. int4 and int8 in groups of 32: ``packed`` (out / 16, in / 32, 16 times the bytes of a group), ``scales`` and
``mins`` (out / 16, in / 32, 16). Block formats: ``packed`` (out / 16, blocks of a row, 16 times the bytes of a block).

A group's codes of 4 bits stand in bytes of two, value j beside value j + 16. The bytes are cut in fours, and of each
four the 16 rows' stand one after the other. Groups stand in the order in which a product adds them: every 16th from the
first on, from the second on, and so on.

A tile of a block format is read from its beginning to its end. First come the fp16 numbers of its blocks of 256
columns, then its groups, eight and eight, the codes of each and behind those the small numbers of each: of a group's
codes the lowest 4 bits, and what is above them, the bits of values 4 i + j, and then of values 16 + 4 i + j, in byte j
from the lowest bit on. Where blocks are groups (q5_0) their fp16 numbers are the groups' small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.gate import whole_lines

TILE = 16
"""Rows of a tile."""
_SUMS = 16
# Groups of a tile of a block format that stand together.
_RUN = 8
# Tiles that are laid out at once, so that little memory is needed beside the weight.
_AT_ONCE = 64

Weight = tuple[Tensor, Tensor | None, Tensor | None]


class _Cut(NamedTuple):
    """Rows of a block format taken apart.

    Attributes:
        codes: (rows, groups, 32) uint8, before anything is taken off.
        small: (rows, groups, n) uint8: numbers of each group, or none of them.
        halves: (rows, blocks, n) int16: the bits of fp16 numbers.
    """

    codes: Tensor
    small: Tensor
    halves: Tensor


def in_tiles(packed: Tensor) -> bool:
    """Whether a packed weight stands in tiles."""
    return packed.dim() == 3


def takes_tiles(bits: int) -> bool:
    """Whether weights of a format can stand in tiles."""
    return bits in _GROUP_BYTES or bits in _CUTS


def tile_bytes(bits: int) -> tuple[int, int]:
    """Columns that stand together in a tile, and their bytes: of a group, or of a block."""
    if bits in _GROUP_BYTES:
        return 32, TILE * _GROUP_BYTES[bits]
    return BLOCK_FORMATS[bits].columns, TILE * BLOCK_FORMATS[bits].nbytes


def tile_shapes(rows: int, columns: int, bits: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of a weight in tiles: of its codes, and of its scales and mins where the format has them."""
    together, size = tile_bytes(bits)
    return (rows // TILE, columns // together, size), (rows // TILE, columns // 32, TILE)


def room_for_tiles(*parts: Tensor | None) -> int:
    """Bytes of memory that `to_tiles` fills with these tensors, each from a line of a processor's cache on."""
    return sum(whole_lines(part.nbytes) for part in parts if part is not None)


def to_tiles(
    packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, room: Tensor | None = None
) -> Weight:
    """A weight whose rows are a multiple of `TILE`, in tiles; the given tensors stay as they are.

    Args:
        packed, scales, mins: as `hasten.kernels.packed_linear` has them, in groups of 32.
        bits: of a format that `takes_tiles`.
        room: memory for all of it, uint8, as much as `room_for_tiles` says; None: memory of its own for each part.
    """
    columns, size = tile_bytes(bits)
    together = packed.shape[1] * TILE // size
    groups = together * columns // 32
    order = _order(groups, packed.device)
    made = _memory(packed, (len(packed) // TILE, together, size), room)
    for start in range(0, len(made) if made.numel() else 0, _AT_ONCE):
        rows = packed[start * TILE : (start + _AT_ONCE) * TILE].contiguous()
        part = made[start : start + _AT_ONCE]
        if bits in _GROUP_BYTES:
            part.copy_(_side_by_side(rows.unflatten(1, (groups, -1)), order))
        else:
            part.copy_(_lay_out(_CUTS[bits](rows.unflatten(1, (together, -1))), bits, order).view_as(part))
    numbers: list[Tensor | None] = []
    at = room_for_tiles(packed)
    for given in (scales, mins):
        if given is None:
            numbers.append(None)
            continue
        numbers.append(_memory(given, (len(made), groups, TILE), room, at).copy_(_numbers_to_tiles(given, order)))
        at += room_for_tiles(given)
    return made, numbers[0], numbers[1]


def _memory(part: Tensor, shape: tuple[int, ...], room: Tensor | None, at: int = 0) -> Tensor:
    """Memory for as many numbers as ``part`` has: of its own, or in ``room`` from a byte on."""
    return part.new_empty(shape) if room is None else room[at : at + part.nbytes].view(part.dtype).view(shape)


def to_rows(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int) -> Weight:
    """What `to_tiles` was given."""
    columns, size = tile_bytes(bits)
    tiles, together, _ = packed.shape
    groups = together * columns // 32
    places = torch.argsort(_order(groups, packed.device))
    made = packed.new_empty(tiles * TILE, together * size // TILE)
    for start in range(0, tiles if made.numel() else 0, _AT_ONCE):
        part = packed[start : start + _AT_ONCE]
        rows = made[start * TILE : (start + _AT_ONCE) * TILE]
        if bits in _GROUP_BYTES:
            rows.copy_(_apart(part, places).flatten(1))
        else:
            rows.copy_(_JOINS[bits](_take_apart(part.flatten(1), bits, groups, places)).view_as(rows))
    numbers = [None if t is None else _numbers_to_rows(t, places) for t in (scales, mins)]
    return made, numbers[0], numbers[1]


def _order(groups: int, device: torch.device) -> Tensor:
    """Which group stands at each place of a tile."""
    return torch.tensor(sorted(range(groups), key=lambda g: (g % _SUMS, g)), device=device, dtype=torch.int64)


def _side_by_side(rows: Tensor, order: Tensor) -> Tensor:
    """(rows, groups, bytes) to (tiles, groups, 16 bytes), fours of sixteen rows one after the other."""
    fours = _seen_as(rows, torch.int32)[:, order].unflatten(0, (-1, TILE))
    return _seen_as(fours.permute(0, 2, 3, 1), rows.dtype).flatten(2)


def _apart(tiles: Tensor, places: Tensor) -> Tensor:
    """What `_side_by_side` was given."""
    fours = _seen_as(tiles, torch.int32).unflatten(2, (-1, TILE))
    return _seen_as(fours.permute(0, 3, 1, 2).flatten(0, 1)[:, places], tiles.dtype)


def _seen_as(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes of rows along the last axis. A single number's stride may be anything, which `view` minds."""
    return numbers.flatten().contiguous().view(dtype).unflatten(0, (*numbers.shape[:-1], -1))


def _numbers_to_tiles(numbers: Tensor, order: Tensor) -> Tensor:
    """(rows, groups) to (tiles, groups, 16)."""
    return numbers[:, order].unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()


def _numbers_to_rows(numbers: Tensor, places: Tensor) -> Tensor:
    return numbers.transpose(1, 2).flatten(0, 1)[:, places].contiguous()


def _gathered(pieces: Tensor, by: int) -> Tensor:
    """The numbers of a last but one axis in one, the first lowest, ``by`` bits each."""
    return sum(pieces.select(-2, i) << by * i for i in range(pieces.shape[-2]))  # type: ignore[return-value]


def _spread(whole: Tensor, count: int, by: int) -> Tensor:
    """What `_gathered` was given."""
    return torch.stack([whole >> by * i & (1 << by) - 1 for i in range(count)], -2)


def _lay_out(cut: _Cut, bits: int, order: Tensor) -> Tensor:
    """(tiles, bytes of a tile)."""
    codes, small = cut.codes, cut.small
    parts = [_side_by_side(_gathered((codes & 15).unflatten(-1, (2, 16)), 4), order)]
    wide = BLOCK_FORMATS[bits].bits - 4
    if wide:
        above = (codes >> 4).unflatten(-1, (2, 4, 4))
        # Of 5 bits the two halves share a byte, of 6 bits each has one.
        bytes_of = _gathered(above.flatten(-3, -2), 1) if wide == 1 else _gathered(above, 2).flatten(-2)
        parts.append(_side_by_side(bytes_of, order))
    own = cut.halves.shape[1] == len(order)
    halves = cut.halves[:, order] if own else cut.halves
    halves = _seen_as(halves.unflatten(0, (-1, TILE)).permute(0, 2, 3, 1).flatten(2), torch.uint8)
    if own:
        return _in_runs(torch.cat(parts, 2), halves)
    numbers = torch.stack([_numbers_to_tiles(small[..., i], order) for i in range(small.shape[-1])], -2)
    if bits in _SIX_BITS:
        upper = _gathered(numbers >> 4, 2).unflatten(-1, (2, 8))
        numbers = torch.cat((_gathered(numbers & 15, 4), _gathered(upper, 4)), -1)
    return torch.cat((halves.flatten(1), _in_runs(torch.cat(parts, 2), numbers.flatten(2))), 1)


def _in_runs(codes: Tensor, numbers: Tensor) -> Tensor:
    """Bytes of groups (tiles, groups, each), codes and numbers of `_RUN` groups after one another: (tiles, bytes)."""
    runs, rest = divmod(codes.shape[1], _RUN)
    whole = [t[:, : runs * _RUN].unflatten(1, (runs, _RUN)).flatten(2) for t in (codes, numbers)]
    last = [t[:, runs * _RUN :].flatten(1) for t in (codes, numbers)]
    return torch.cat((torch.cat(whole, 2).flatten(1), *(last if rest else ())), 1)


def _out_of_runs(tiles: Tensor, groups: int, code_bytes: int) -> tuple[Tensor, Tensor]:
    """What `_in_runs` was given."""
    number_bytes = tiles.shape[1] // groups - code_bytes
    runs, rest = divmod(groups, _RUN)
    sizes = [runs * _RUN * (code_bytes + number_bytes), rest * code_bytes, rest * number_bytes]
    whole, *last = tiles.split(sizes, 1)
    each = [_RUN * code_bytes, _RUN * number_bytes]
    parts = whole.unflatten(1, (runs, sum(each))).split(each, 2)
    codes, numbers = (
        torch.cat((run.flatten(1), end), 1).unflatten(1, (groups, size))
        for run, end, size in zip(parts, last, (code_bytes, number_bytes), strict=True)
    )
    return codes, numbers


def _take_apart(tiles: Tensor, bits: int, groups: int, places: Tensor) -> _Cut:
    """What `_lay_out` was given."""
    known = BLOCK_FORMATS[bits]
    wide, count, own = known.bits - 4, len(known.scale_bytes), known.columns == 32
    blocks = groups * 32 // known.columns
    head = 0 if own else blocks * count * TILE * 2
    above_bytes = (64, 128)[wide - 1] if wide else 0
    packed, found = _out_of_runs(tiles[:, head:], groups, 256 + above_bytes)
    low, high = packed.split([256, above_bytes], 2)
    codes = _spread(_apart(low, places), 2, 4).flatten(-2)
    if wide:
        above = _apart(high, places)
        above = _spread(above, 8, 1) if wide == 1 else _spread(above.unflatten(-1, (2, 4)), 4, 2)
        codes = codes | above.flatten(2) << 4
    halves = found if own else tiles[:, :head].unflatten(1, (blocks, -1))
    fp16 = _seen_as(halves, torch.int16).unflatten(2, (count, TILE)).permute(0, 3, 1, 2).flatten(0, 1)
    if own:
        return _Cut(codes, codes[..., :0], fp16[:, places])
    if bits in _SIX_BITS:
        upper = _spread(_spread(found[..., TILE:], 2, 4).flatten(-2), 2, 2)
        found = (_spread(found[..., :TILE], 2, 4) | upper << 4).flatten(-2)
    rows = [_numbers_to_rows(t, places) for t in found.unflatten(-1, (-1, TILE)).unbind(-2)]
    return _Cut(codes, torch.stack(rows, -1), fp16)


def _halves(blocks: Tensor, begin: int, end: int) -> Tensor:
    return _seen_as(blocks[..., begin:end], torch.int16)


def _bytes(halves: Tensor) -> Tensor:
    return _seen_as(halves, torch.uint8)


def _cut_q5_0(b: Tensor) -> _Cut:
    high = _spread(b[..., 2:6, None].transpose(-1, -2), 8, 1)  # (..., 1, 8, 4): bit i of byte j is of value 8 j + i
    high = high.squeeze(-3).transpose(-1, -2).flatten(-2)
    return _Cut(_spread(b[..., 6:], 2, 4).flatten(-2) | high << 4, b[..., :0], _halves(b, 0, 2))


def _join_q5_0(cut: _Cut) -> Tensor:
    high = _gathered((cut.codes >> 4).unflatten(-1, (4, 8)).transpose(-1, -2), 1)
    low = _gathered((cut.codes & 15).unflatten(-1, (2, 16)), 4)
    return torch.cat((_bytes(cut.halves), high, low), -1)


def _six_bits(b: Tensor) -> Tensor:
    """Of blocks' 12 bytes (rows, blocks, 12) the scales and mins of their groups (rows, groups, 2)."""
    first, second, third = b[..., :4], b[..., 4:8], b[..., 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return torch.stack((scales, mins), -1).flatten(1, 2)


def _twelve(small: Tensor) -> Tensor:
    """What `_six_bits` was given."""
    scales, mins = small.unflatten(1, (-1, 8)).unbind(-1)
    third = scales[..., 4:] & 15 | (mins[..., 4:] & 15) << 4
    return torch.cat((*(t[..., :4] | t[..., 4:] >> 4 << 6 for t in (scales, mins)), third), -1)


def _pairs(b: Tensor) -> Tensor:
    """Of blocks' 128 bytes 4 bits of every code (rows, groups, 32): two groups stand in the halves of 32 bytes."""
    return _spread(b.unflatten(-1, (4, 32)), 2, 4).flatten(1, 3)


def _paired(codes: Tensor) -> Tensor:
    """What `_pairs` was given."""
    return _gathered(codes.unflatten(1, (-1, 4, 2)), 4).flatten(-2)


def _cut_q4_k(b: Tensor) -> _Cut:
    return _Cut(_pairs(b[..., 16:]), _six_bits(b[..., 4:16]), _halves(b, 0, 4))


def _join_q4_k(cut: _Cut) -> Tensor:
    return torch.cat((_bytes(cut.halves), _twelve(cut.small), _paired(cut.codes)), -1)


def _cut_q5_k(b: Tensor) -> _Cut:
    codes = _pairs(b[..., 48:]) | _spread(b[..., 16:48], 8, 1).flatten(1, 2) << 4
    return _Cut(codes, _six_bits(b[..., 4:16]), _halves(b, 0, 4))


def _join_q5_k(cut: _Cut) -> Tensor:
    high = _gathered((cut.codes >> 4).unflatten(1, (-1, 8)), 1)
    return torch.cat((_bytes(cut.halves), _twelve(cut.small), high, _paired(cut.codes & 15)), -1)


def _cut_q6_k(b: Tensor) -> _Cut:
    low = _spread(b[..., :128].unflatten(-1, (2, 64)), 2, 4).flatten(-2)
    high = _spread(b[..., 128:192].unflatten(-1, (2, 32)), 4, 2).flatten(-2)
    small = b[..., 192:208].unflatten(-1, (8, 2)).flatten(1, 2)
    return _Cut((low | high << 4).flatten(1).unflatten(1, (-1, 32)), small, _halves(b, 208, 210))


def _join_q6_k(cut: _Cut) -> Tensor:
    codes = cut.codes.flatten(1).unflatten(1, (-1, 2, 128))
    low = _gathered((codes & 15).unflatten(-1, (2, 64)), 4).flatten(-2)
    high = _gathered((codes >> 4).unflatten(-1, (4, 32)), 2).flatten(-2)
    return torch.cat((low, high, cut.small.flatten(1).unflatten(1, (-1, 16)), _bytes(cut.halves)), -1)


# By the bits of a format in groups: bytes of a row's 32 codes.
_GROUP_BYTES = {4: 16, 8: 32}
# By the number of a block format: how rows of blocks are taken apart, and how they are put together. The small numbers
# of a group of `_SIX_BITS` share bytes.
_CUTS: dict[int, Callable[[Tensor], _Cut]] = {106: _cut_q5_0, 112: _cut_q4_k, 113: _cut_q5_k, 114: _cut_q6_k}
_JOINS: dict[int, Callable[[_Cut], Tensor]] = {106: _join_q5_0, 112: _join_q4_k, 113: _join_q5_k, 114: _join_q6_k}
_SIX_BITS = (112, 113)

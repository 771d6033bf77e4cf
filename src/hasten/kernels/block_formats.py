"""ggml's block formats, as files hold them: rows of bytes in which every 32 or 256 weights have their own scales.

A weight is ``scale * code + min``: codes are whole numbers in int8, and 32 weights, or 16, share a scale and a min.

=======  ======  =====  =============================  ===========================================================
format   block   bytes  codes                          scale and min
=======  ======  =====  =============================  ===========================================================
q5_0     32      22     5 bits, less 16                fp16
q5_1     32      24     5 bits                         fp16 and fp16
iq4_nl   32      18     4 bits, of a table             fp16
mxfp4    32      17     4 bits, of a table             a power of two in 8 bits
q2_k     256     84     2 bits                         of 16: 4 bits each, times fp16 and fp16 of the block
q3_k     256     110    3 bits, less 4                 of 16: 6 bits less 32, times the block's fp16
q4_k     256     144    4 bits                         of 32: 6 bits each, times fp16 and fp16 of the block
q5_k     256     176    5 bits                         likewise
q6_k     256     210    6 bits, less 32                of 16: int8, times the block's fp16
iq4_xs   256     136    4 bits, of a table             of 32: 6 bits less 32, times the block's fp16
=======  ======  =====  =============================  ===========================================================

Facts from ggml (``ggml-common.h``, ``ggml-quants.c``). The numbers of formats are ggml's plus 100.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class BlockFormat(NamedTuple):
    """A format of blocks.

    Attributes:
        name: such as ``q4_k``.
        columns: weights of a block.
        nbytes: bytes of a block.
        group: weights that share a scale.
        bits: of a code.
        scale_bytes: where a block has the numbers that everything in it is multiplied by.
    """

    name: str
    columns: int
    nbytes: int
    group: int
    bits: int
    scale_bytes: tuple[int, ...]


class Parts(NamedTuple):
    """Blocks taken apart: codes (..., columns) int8; scales and mins (..., columns / group) fp32."""

    codes: Tensor
    scales: Tensor
    mins: Tensor | None


# By the number that stands for the format in `hasten.kernels.packed_linear`: ggml's, plus 100.
BLOCK_FORMATS: dict[int, BlockFormat] = {
    106: BlockFormat("q5_0", 32, 22, 32, 5, (0,)),
    107: BlockFormat("q5_1", 32, 24, 32, 5, (0, 2)),
    110: BlockFormat("q2_k", 256, 84, 16, 2, (80, 82)),
    111: BlockFormat("q3_k", 256, 110, 16, 3, (108,)),
    112: BlockFormat("q4_k", 256, 144, 32, 4, (0, 2)),
    113: BlockFormat("q5_k", 256, 176, 32, 5, (0, 2)),
    114: BlockFormat("q6_k", 256, 210, 16, 6, (208,)),
    120: BlockFormat("iq4_nl", 32, 18, 32, 4, (0,)),
    123: BlockFormat("iq4_xs", 256, 136, 32, 4, (0,)),
    139: BlockFormat("mxfp4", 32, 17, 32, 4, ()),
}
_AT_A_TIME = 1 << 20
_CURVE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def decode(packed: Tensor, number: int) -> Tensor:
    """The weights of packed rows, fp32.

    Shape:
        (..., bytes) uint8 to (..., columns).
    """
    known = BLOCK_FORMATS[number]
    parts = take_apart(_blocks(packed, known), number)
    values = (
        parts.codes.unflatten(-1, (known.columns // known.group, known.group)).float().mul_(parts.scales[..., None])
    )
    if parts.mins is not None:
        values.add_(parts.mins[..., None])
    return values.flatten(-3)


def decode_rows(packed: Tensor, number: int) -> Tensor:
    """`decode` of a matrix (rows, bytes), a part at a time: what stands between is several times as large as a part."""
    known = BLOCK_FORMATS[number]
    columns = packed.shape[1] // known.nbytes * known.columns
    values = torch.empty(len(packed), columns, device=packed.device)
    step = max(1, _AT_A_TIME // max(columns, 1))
    for start in range(0, len(packed), step):
        values[start : start + step] = decode(packed[start : start + step], number)
    return values


def _blocks(packed: Tensor, known: BlockFormat) -> Tensor:
    """Packed rows (..., bytes) as (..., blocks, bytes of a block), where there are none too."""
    return packed.unflatten(-1, (packed.shape[-1] // known.nbytes, known.nbytes))


def take_apart(blocks: Tensor, number: int) -> Parts:
    """Codes, scales and mins of blocks (..., bytes of a block)."""
    return _READERS[number](blocks)


def finite(packed: Tensor, number: int) -> bool:
    """Whether every weight of packed rows is a finite number: what stands for the blocks' scales is."""
    known = BLOCK_FORMATS[number]
    blocks = _blocks(packed, known)
    if not known.scale_bytes:
        return bool((_power(blocks[..., 0]) * 12).isfinite().all())
    return all(bool(_half(blocks, at).isfinite().all()) for at in known.scale_bytes)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at a byte of each block, as fp32 (...)."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()


def _power(exponent: Tensor) -> Tensor:
    """Half of 2^(e - 127), exact for the subnormal ones too."""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.to(torch.int32) - 128)


def _nibbles(blocks: Tensor) -> Tensor:
    """(..., n) bytes as (..., 2 n) codes: the low halves, then the high ones."""
    return torch.cat((blocks & 15, blocks >> 4), -1)


def _bits(blocks: Tensor, count: int) -> Tensor:
    """Bit i of the 32 that four bytes hold, for i of 32: (..., 4) to (..., 32)."""
    places = torch.arange(count, device=blocks.device, dtype=torch.uint8)
    return (blocks[..., None] >> places & 1).flatten(-2)


def _shifted(blocks: Tensor, by: int, count: int) -> Tensor:
    """The lowest ``by`` bits, the next ones, ...: (..., n) to (..., count n)."""
    mask = (1 << by) - 1
    return torch.cat([blocks >> by * i & mask for i in range(count)], -1)


def _table(values: tuple[int, ...], codes: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int8, device=codes.device)[codes.long()]


def _q5_0(b: Tensor) -> Parts:
    codes = (_nibbles(b[..., 6:]) | _bits(b[..., 2:6], 8) << 4).to(torch.int8) - 16
    return Parts(codes, _half(b, 0)[..., None], None)


def _q5_1(b: Tensor) -> Parts:
    codes = (_nibbles(b[..., 8:]) | _bits(b[..., 4:8], 8) << 4).to(torch.int8)
    return Parts(codes, _half(b, 0)[..., None], _half(b, 2)[..., None])


def _iq4_nl(b: Tensor) -> Parts:
    return Parts(_table(_CURVE, _nibbles(b[..., 2:])), _half(b, 0)[..., None], None)


def _mxfp4(b: Tensor) -> Parts:
    return Parts(_table(_FP4, _nibbles(b[..., 1:])), _power(b[..., 0])[..., None], None)


def _q2_k(b: Tensor) -> Parts:
    halves = b[..., 16:80].unflatten(-1, (2, 32))
    codes = _shifted(halves, 2, 4).flatten(-2).to(torch.int8)
    scales = _half(b, 80)[..., None] * (b[..., :16] & 15).float()
    return Parts(codes, scales, -(_half(b, 82)[..., None] * (b[..., :16] >> 4).float()))


def _q3_k(b: Tensor) -> Parts:
    low = _shifted(b[..., 32:96].unflatten(-1, (2, 32)), 2, 4).flatten(-2)
    codes = (low | _shifted(b[..., :32], 1, 8) << 2).to(torch.int8) - 4
    packed = b[..., 96:108]
    scales = (_nibbles(packed[..., :8]) | _shifted(packed[..., 8:], 2, 4) << 4).to(torch.int8) - 32
    return Parts(codes, _half(b, 108)[..., None] * scales.float(), None)


def _scales_and_mins(b: Tensor) -> tuple[Tensor, Tensor]:
    """Of 12 bytes eight scales and eight mins, 6 bits each: those of the last four lie in what the first leave free."""
    first, second, third = b[..., :4], b[..., 4:8], b[..., 8:]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    mins = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return scales.float(), mins.float()


def _q4_k(b: Tensor) -> Parts:
    codes = _nibbles(b[..., 16:].unflatten(-1, (4, 32))).flatten(-2).to(torch.int8)
    scales, mins = _scales_and_mins(b[..., 4:16])
    return Parts(codes, _half(b, 0)[..., None] * scales, -(_half(b, 2)[..., None] * mins))


def _q5_k(b: Tensor) -> Parts:
    low = _nibbles(b[..., 48:].unflatten(-1, (4, 32))).flatten(-2)
    codes = (low | _shifted(b[..., 16:48], 1, 8) << 4).to(torch.int8)
    scales, mins = _scales_and_mins(b[..., 4:16])
    return Parts(codes, _half(b, 0)[..., None] * scales, -(_half(b, 2)[..., None] * mins))


def _q6_k(b: Tensor) -> Parts:
    low = _nibbles(b[..., :128].unflatten(-1, (2, 64)))
    high = _shifted(b[..., 128:192].unflatten(-1, (2, 32)), 2, 4)
    codes = (low | high << 4).flatten(-2).to(torch.int8) - 32
    scales = b[..., 192:208].view(torch.int8).float()
    return Parts(codes, _half(b, 208)[..., None] * scales, None)


def _iq4_xs(b: Tensor) -> Parts:
    codes = _table(_CURVE, _nibbles(b[..., 8:].unflatten(-1, (8, 16))).flatten(-2))
    low = torch.stack((b[..., 4:8] & 15, b[..., 4:8] >> 4), -1).flatten(-2)
    high = torch.stack([b[..., 2:4] >> 2 * i & 3 for i in range(4)], -1).flatten(-2)
    scales = (low | high << 4).to(torch.int8) - 32
    return Parts(codes, _half(b, 0)[..., None] * scales.float(), None)


_READERS: dict[int, Callable[[Tensor], Parts]] = {
    106: _q5_0,
    107: _q5_1,
    110: _q2_k,
    111: _q3_k,
    112: _q4_k,
    113: _q5_k,
    114: _q6_k,
    120: _iq4_nl,
    123: _iq4_xs,
    139: _mxfp4,
}

"""Reading GGUF files: header, metadata and tensors, with every length checked against the file.

The ``gguf`` package knows the quantization formats; its reader takes two seconds for a vocabulary and trusts
what the file says, so the header is read here, and so are the formats that small models mostly come in.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from torch import Tensor

from hasten.errors import HastenError

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
# The least bytes that one of these takes in a header: a count above (bytes left) / (least) is a lie, found
# before anything of that size is allocated.
_LEAST_STRING, _LEAST_ARRAY, _LEAST_PAIR, _LEAST_TENSOR = 8, 12, 13, 24

_BLOCK = 32


class Packed(NamedTuple):
    """A weight (out, in) in hasten's packed format, see `hasten.kernels.packed_linear`."""

    packed: Tensor
    scales: Tensor | None
    mins: Tensor | None
    bits: int


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: its shape as torch writes it, its GGUF type number, its bytes in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int
    size: int


class GGUFFile:
    """An opened GGUF file.

    Args:
        path: the file.

    Attributes:
        metadata: its key-value pairs; an array is a list.
        tensors: where each tensor is, by name.

    Raises:
        HastenError: it is missing, truncated, or not GGUF.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise HastenError(f"cannot read model file {path}: {error.strerror}") from None
        except ValueError:
            raise HastenError(f"{path} is empty: fetch or copy the file again") from None
        self._end = len(self._data)
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, _Corrupted) as error:
            reason = str(error) if isinstance(error, _Corrupted) else "it ends too early"
            raise HastenError(f"{path} is truncated or corrupted ({reason}): fetch or copy the file again") from None

    def _read_header(self) -> None:
        if self._data[:4] != b"GGUF":
            raise HastenError(f"{self.path} is not a GGUF file: give a .gguf model")
        self._at = 4
        version = self._read(_U32)
        if version not in (2, 3):
            raise HastenError(f"{self.path} is GGUF version {version}; hasten reads 2 and 3, little-endian")
        tensors, pairs = self._count(_LEAST_TENSOR), self._count(_LEAST_PAIR)
        for _ in range(pairs):
            name = self._string()
            if name in self.metadata:
                raise _Corrupted(f"the key {name[:60]!r} comes twice")
            self.metadata[name] = self._value(self._read(_U32))
        found = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _Corrupted("its alignment is impossible")
        base = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in found:
            if name in self.tensors:
                raise _Corrupted(f"tensor {name[:60]!r} comes twice")
            size = self._bytes_of(name, shape, kind)
            if base + offset + size > self._end:
                raise _Corrupted(f"tensor {name[:60]!r} reaches behind its end")
            self.tensors[name] = TensorInfo(name, shape, kind, base + offset, size)

    def _read(self, code: struct.Struct) -> Any:
        value = code.unpack_from(self._data, self._at)[0]
        self._at += code.size
        return value

    def _count(self, least: int) -> int:
        count: int = self._read(_U64)
        if count > (self._end - self._at) // least:
            raise _Corrupted("a count is larger than the file")
        return count

    def _string(self) -> str:
        length = self._count(1)
        text = self._data[self._at : self._at + length]
        self._at += length
        # A piece of a byte-level vocabulary need not be UTF-8 by itself.
        return text.decode("utf-8", errors="surrogateescape")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._read(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 2:
            raise _Corrupted("a value has an unknown type")
        inner = self._read(_U32)
        if inner in _SCALARS:
            code = _SCALARS[inner]
            count = self._count(code.size)
            values = struct.unpack_from(f"<{count}{code.format[-1]}", self._data, self._at)
            self._at += count * code.size
            return list(values)
        return [self._value(inner, depth + 1) for _ in range(self._count(_least(inner)))]

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dims = self._read(_U32)
        if not 0 < dims <= 4:
            raise _Corrupted(f"tensor {name[:60]!r} has {dims} dimensions")
        shape = tuple(self._read(_U64) for _ in range(dims))
        return name, shape[::-1], self._read(_U32), self._read(_U64)

    def _bytes_of(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        try:
            block, size = GGML_QUANT_SIZES[Kind(kind)]
        except (ValueError, KeyError):
            raise HastenError(f"{self.path} stores {name[:60]!r} in an unknown format ({kind}): update gguf") from None
        if min(shape) < 1 or shape[-1] % block:
            raise _Corrupted(f"tensor {name[:60]!r} has an impossible shape")
        return math.prod(shape) // block * size

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes (rows, bytes a row), read-only and not copied."""
        info = self.tensors[name]
        rows = math.prod(info.shape[:-1])
        return np.frombuffer(self._data, np.uint8, info.size, info.begin).reshape(rows, -1)

    def _bytes(self, name: str) -> Tensor:
        return torch.from_numpy(self.raw(name).copy())

    def dequantize(self, name: str) -> Tensor:
        """The tensor in fp32, in its shape.

        Raises:
            HastenError: a format that the ``gguf`` package cannot dequantize.
        """
        info = self.tensors[name]
        plain = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
        if info.kind in plain:
            return self._bytes(name).view(plain[Kind(info.kind)]).float().reshape(info.shape)
        packed = self.packed(name)
        if packed is not None:
            return _unpack(packed).reshape(info.shape)
        try:
            with np.errstate(all="ignore"):  # a damaged scale shows in the values
                values = dequantize(self.raw(name), Kind(info.kind))
        except NotImplementedError:
            kind = Kind(info.kind).name
            raise HastenError(f"{self.path} stores {name[:60]!r} as {kind}, which hasten cannot read") from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(info.shape)

    def packed(self, name: str) -> Packed | None:
        """The tensor in hasten's packed format, code for code; None when its own format has no counterpart.

        Q8_0 becomes int8, Q4_0 and Q4_1 int4, all in groups of 32; F16 and BF16 stay as they are. Nothing is lost:
        the values are those of `dequantize`.

        Shape:
            packed (out, in), or (out, in / 2) at 4 bits; scales and mins (out, in / 32).
        """
        info = self.tensors[name]
        out = math.prod(info.shape[:-1])
        if info.kind == Kind.F16:
            return Packed(self._bytes(name).view(torch.float16).reshape(out, -1), None, None, 16)
        if info.kind == Kind.BF16:
            return Packed(self._bytes(name).view(torch.bfloat16).reshape(out, -1), None, None, 16)
        sizes = {Kind.Q8_0: 34, Kind.Q4_1: 20, Kind.Q4_0: 18}
        if info.kind not in sizes:
            return None
        blocks = self._bytes(name).reshape(out, -1, sizes[Kind(info.kind)])
        scales = _halves(blocks[..., :2])
        if info.kind == Kind.Q8_0:
            return Packed(blocks[..., 2:].contiguous().view(torch.int8).reshape(out, -1), scales, None, 8)
        if info.kind == Kind.Q4_1:
            return Packed(blocks[..., 4:].reshape(out, -1), scales, _halves(blocks[..., 2:4]), 4)
        # Q4_0 means d * (q - 8). A power of two keeps fp16's digits, unless it leaves fp16's range.
        mins = scales * -8
        if not torch.isfinite(mins).all():
            return None
        return Packed(blocks[..., 2:].reshape(out, -1), scales, mins, 4)


class _Corrupted(Exception):
    """What the header says cannot be."""


def read_packed(path: str | Path, name: str) -> Packed | None:
    """`GGUFFile.packed` of one tensor of a file.

    Raises:
        HastenError: the file cannot be read, or has no such tensor.
    """
    file = GGUFFile(path)
    if name not in file.tensors:
        raise HastenError(f"{path} has no tensor {name[:60]!r}")
    return file.packed(name)


def _least(kind: int) -> int:
    return _LEAST_STRING if kind == _STRING else _LEAST_ARRAY


def _halves(raw: Tensor) -> Tensor:
    """(out, blocks, 2) bytes as (out, blocks) fp16."""
    return raw.contiguous().view(torch.float16)[..., 0].contiguous()


def _unpack(weight: Packed) -> Tensor:
    """(out, in) in fp32, by the operations of ggml's own reference: multiplied, then added."""
    packed, scales, mins, bits = weight
    if scales is None:
        return packed.float()
    out = packed.shape[0]
    if bits == 8:
        return (packed.reshape(out, -1, _BLOCK).float().mul_(scales.float()[..., None])).reshape(out, -1)
    assert mins is not None
    pairs = packed.reshape(out, -1, _BLOCK // 2)
    values = torch.empty(out, pairs.shape[1], _BLOCK)
    values[..., : _BLOCK // 2] = pairs & 15
    values[..., _BLOCK // 2 :] = pairs >> 4
    return values.mul_(scales.float()[..., None]).add_(mins.float()[..., None]).reshape(out, -1)

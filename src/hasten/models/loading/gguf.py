"""Reading GGUF files: header, metadata and tensors, with every length checked against the file.

The ``gguf`` package knows the quantization formats; its reader takes two seconds for a vocabulary and trusts
what the file says, so the header is read here, and so are the formats that models mostly come in.

A tensor is read when it is asked for, straight into its own memory. It is no view of a map of the file: a map counts
as memory in use beside what is made of it, has no huge pages, and ends the program where the file is cut meanwhile.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize as dequantize_blocks
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.block_formats import BLOCK_FORMATS, decode_rows, finite
from hasten.kernels.packed_linear import columns_of

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
_BLOCKS = 100  # what `BLOCK_FORMATS` adds to GGUF's numbers of types


class Packed(NamedTuple):
    """A weight (out, in) in hasten's packed format, see `hasten.kernels.packed_linear`."""

    packed: Tensor
    scales: Tensor | None
    mins: Tensor | None
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return len(self.packed), columns_of(self.packed, self.bits)

    def finite(self) -> bool:
        """Whether all its values are: no copy of a large weight is made to find out."""
        if self.bits in BLOCK_FORMATS:
            return finite(self.packed, self.bits)
        numbers = [self.packed] if self.scales is None else [self.scales, self.mins]
        ends = [torch.aminmax(t) for t in numbers if t is not None and t.numel()]
        return all(bool(torch.isfinite(end)) for pair in ends for end in pair)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is: its shape as torch writes it, its GGUF type number, its bytes in the file, and which of a
    split model's files that is."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int
    size: int
    part: int = 0


class GGUFFile:
    """An opened GGUF model: a file, or all the files that it is split into.

    Args:
        path: the file; of a split model any one of its files.

    Attributes:
        path: the file, of a split model the first one.
        paths: all files.
        metadata: the key-value pairs of the first file; an array is a list.
        tensors: where each tensor is, by name.

    Raises:
        HastenError: it is missing, truncated, or not GGUF, or a part of it is.
    """

    def __init__(self, path: str | Path) -> None:
        given = _Part(Path(path))
        self._parts = [given]
        count = given.metadata.get("split.count", 1)
        if isinstance(count, int) and count > 1:
            self._parts = [_Part(p) if p != given.path else given for p in _siblings(given.path, count)]
        self.path, self.paths = self._parts[0].path, tuple(part.path for part in self._parts)
        self.metadata: dict[str, Any] = self._parts[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        for number, part in enumerate(self._parts):
            if len(self._parts) > 1 and (part.metadata.get("split.no"), part.metadata.get("split.count")) != (
                number,
                count,
            ):
                raise HastenError(f"{part.path} is not part {number + 1} of {count}, as its name says: fetch it again")
            for name, shape, kind, begin, size in part.tensors:
                if name in self.tensors:
                    raise HastenError(f"{part.path} holds {name[:60]!r}, as another part does: fetch all parts again")
                self.tensors[name] = TensorInfo(name, shape, kind, begin, size, number)
        promised = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(self._parts) > 1 and promised != len(self.tensors):
            raise HastenError(
                f"{self.path} and its other parts hold {len(self.tensors)} tensors, not {str(promised)[:20]}: "
                "fetch all parts again"
            )

    def raw(self, name: str) -> Tensor:
        """The tensor's bytes (rows, bytes a row), in memory of their own.

        Raises:
            HastenError: the file has changed since it was opened.
        """
        info = self.tensors[name]
        data = np.empty(info.size, np.uint8)
        self._parts[info.part].read(info.begin, data.data)
        return torch.from_numpy(data).reshape(math.prod(info.shape[:-1]), -1)

    def dequantize(self, name: str) -> Tensor:
        """The tensor in fp32, in its shape.

        Raises:
            HastenError: a format that the ``gguf`` package cannot dequantize.
        """
        info = self.tensors[name]
        plain = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
        if info.kind in plain:
            return self.raw(name).view(plain[Kind(info.kind)]).float().reshape(info.shape)
        number = info.kind + _BLOCKS
        if number in BLOCK_FORMATS:
            return decode_rows(self.raw(name), number).reshape(info.shape)
        packed = self.packed(name)
        if packed is not None:
            return _unpack(packed).reshape(info.shape)
        try:
            with np.errstate(all="ignore"):  # a damaged scale shows in the values
                values = dequantize_blocks(self.raw(name).numpy(), Kind(info.kind))
        except NotImplementedError:
            kind = Kind(info.kind).name
            raise HastenError(f"{self.path} stores {name[:60]!r} as {kind}, which hasten cannot read") from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(info.shape)

    def packed(self, name: str) -> Packed | None:
        """The tensor in hasten's packed format, code for code; None when its own format has no counterpart, or
        it is no matrix.

        Q8_0 becomes int8, Q4_0 and Q4_1 int4, all in groups of 32; F32, F16, BF16 and the other formats that
        `hasten.kernels.block_formats` knows stay as they are. Nothing is lost: the values are those of `dequantize`.

        Shape:
            packed (out, in), or (out, in / 2) at 4 bits, or (out, bytes of a row); scales and mins (out, in / 32).
        """
        info = self.tensors[name]
        if len(info.shape) < 2:
            return None
        out = math.prod(info.shape[:-1])
        plain = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
        if info.kind in plain:
            dtype = plain[Kind(info.kind)]
            return Packed(self.raw(name).view(dtype).reshape(out, -1), None, None, 8 * dtype.itemsize)
        if info.kind + _BLOCKS in BLOCK_FORMATS:
            return Packed(self.raw(name), None, None, info.kind + _BLOCKS)
        sizes = {Kind.Q8_0: 34, Kind.Q4_1: 20, Kind.Q4_0: 18}
        if info.kind not in sizes:
            return None
        blocks = self.raw(name).reshape(out, -1, sizes[Kind(info.kind)])
        scales = _halves(blocks[..., :2])
        if info.kind == Kind.Q8_0:
            return Packed(blocks[..., 2:].contiguous().view(torch.int8).reshape(out, -1), scales, None, 8)
        if info.kind == Kind.Q4_1:
            return Packed(blocks[..., 4:].reshape(out, -1), scales, _halves(blocks[..., 2:4]), 4)
        # Q4_0 means d * (q - 8), as int4 without mins does.
        return Packed(blocks[..., 2:].reshape(out, -1), scales, None, 4)


class _Part:
    """One file: its header is read at once, its tensors when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: list[tuple[str, tuple[int, ...], int, int, int]] = []
        self._data = bytearray()
        self._at = 0
        try:
            with path.open("rb", buffering=0) as self._file:
                self._state = _state(self._file)
                self._end = self._state[0]
                if not self._end:
                    raise HastenError(f"{path} is empty: fetch or copy the file again")
                self._read_header()
        except (struct.error, UnicodeDecodeError, _Corrupted) as error:
            reason = str(error) if isinstance(error, _Corrupted) else "it ends too early"
            raise HastenError(f"{path} is truncated or corrupted ({reason}): fetch or copy the file again") from None
        except OSError as error:
            raise HastenError(f"cannot read model file {path}: {error.strerror}") from None
        self._data = bytearray()

    def read(self, begin: int, into: memoryview) -> None:
        """Fills ``into`` with the bytes from ``begin`` on.

        Raises:
            HastenError: the file cannot be read, or has changed since its header was.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                done = _read_at(file, begin, into)
                state = _state(file)
        except OSError as error:
            raise HastenError(f"cannot read model file {self.path}: {error.strerror}") from None
        if done < len(into) or state != self._state:
            raise HastenError(f"{self.path} changed while it was read: load it again when it is whole")

    def _need(self, end: int) -> None:
        """Reads on, so that the bytes before ``end`` are there, unless the file ends sooner."""
        have = len(self._data)
        if end > have:
            more = bytearray(min(max(end - have, have, 1 << 16), self._end - have))
            read = _read_at(self._file, have, memoryview(more))
            self._data += more[:read]

    def _read_header(self) -> None:
        self._need(4)
        if self._data[:4] != b"GGUF":
            raise HastenError(f"{self.path} is not a GGUF file: give a .gguf model")
        self._at = 4
        version = self._read(_U32)
        if version in (2 << 24, 3 << 24):
            raise HastenError(f"{self.path} is in the byte order of other machines (big-endian): fetch the usual one")
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
        names: set[str] = set()
        expected = 0
        for name, shape, kind, offset in found:
            if name in names:
                raise _Corrupted(f"tensor {name[:60]!r} comes twice")
            names.add(name)
            size = self._bytes_of(name, shape, kind)
            if base + offset + size > self._end:
                raise _Corrupted(f"tensor {name[:60]!r} reaches behind its end")
            if offset != expected:
                # Tensors stand one behind the other: another place is another size of the one before.
                raise _Corrupted(f"tensor {name[:60]!r} is not where the sizes of those before it put it")
            expected += -(-size // alignment) * alignment
            self.tensors.append((name, shape, kind, base + offset, size))

    def _read(self, code: struct.Struct) -> Any:
        self._need(self._at + code.size)
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
        self._need(self._at + length)
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
            self._need(self._at + count * code.size)
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


class _Corrupted(Exception):
    """What the header says cannot be."""


def _state(file: FileIO) -> tuple[int, ...]:
    """What tells an opened file from another, or from itself at another time."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ino


def _read_at(file: FileIO, begin: int, into: memoryview) -> int:
    """Fills ``into`` with a file's bytes from ``begin`` on; returns how many there were."""
    file.seek(begin)
    done = 0
    while done < len(into):
        read = file.readinto(into[done:])
        if not read:
            break
        done += read
    return done


def read_packed(path: str | Path, name: str) -> Packed | None:
    """`GGUFFile.packed` of one tensor of a file.

    Raises:
        HastenError: the file cannot be read, or has no such tensor.
    """
    file = GGUFFile(path)
    if name not in file.tensors:
        raise HastenError(f"{path} has no tensor {name[:60]!r}")
    return file.packed(name)


_SPLIT_NAME = re.compile(r"(.*-)(\d{5})-of-(\d{5})\.gguf")


def _siblings(path: Path, count: int) -> list[Path]:
    """The files of a split model, in order.

    Raises:
        HastenError: ``path`` is not called as one of them, or another is missing.
    """
    found = _SPLIT_NAME.fullmatch(path.name)
    if found is None or int(found[3]) != count or not 0 < int(found[2]) <= count:
        raise HastenError(f"{path} is one of {count} parts of a model: name it as it came, -00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{found[1]}{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [p for p in paths if not p.is_file()]
    if missing:
        raise HastenError(f"{path} is one of {count} parts, {missing[0].name} is missing: put them into one folder")
    return paths


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
    pairs = packed.reshape(out, -1, _BLOCK // 2)
    values = torch.empty(out, pairs.shape[1], _BLOCK)
    values[..., : _BLOCK // 2] = pairs & 15
    values[..., _BLOCK // 2 :] = pairs >> 4
    if mins is None:
        return values.sub_(8).mul_(scales.float()[..., None]).reshape(out, -1)
    return values.mul_(scales.float()[..., None]).add_(mins.float()[..., None]).reshape(out, -1)

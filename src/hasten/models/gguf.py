"""Reading GGUF files: header, metadata and tensors, with every length checked against the file.

The ``gguf`` package knows the quantization formats and dequantizes; its reader takes two seconds for a
vocabulary and trusts what the file says, so the header is read here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.errors import HastenError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 24  # more entries or bytes than any vocabulary or template has


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

    Raises:
        HastenError: it is missing, truncated, or not GGUF.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, mode="r")
        except OSError as error:
            raise HastenError(f"cannot read model file {path}: {error.strerror}") from None
        except ValueError:
            raise HastenError(f"{path} is empty: fetch or copy the file again") from None
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, _Truncated):
            raise HastenError(f"{path} is truncated or corrupted: fetch or copy the file again") from None

    def _read_header(self) -> None:
        if bytes(self._take(4)) != b"GGUF":
            raise HastenError(f"{self.path} is not a GGUF file: give a .gguf model")
        version = self._scalar("I")
        if version not in (2, 3):
            raise HastenError(f"{self.path} is GGUF version {version}; hasten reads 2 and 3")
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        if tensors > _LONGEST or pairs > _LONGEST:
            raise _Truncated
        self.metadata: dict[str, Any] = {}
        for _ in range(pairs):
            name = self._string()
            self.metadata[name] = self._value(self._scalar("I"))
        found = [self._tensor_info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _Truncated
        base = -(-self._at // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in found:
            size = _bytes_of(shape, kind, name, self.path)
            if base + offset + size > len(self._data):
                raise _Truncated
            self.tensors[name] = TensorInfo(name, shape, kind, base + offset, size)

    def _take(self, count: int) -> np.ndarray:
        if count < 0 or self._at + count > len(self._data):
            raise _Truncated
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")).tobytes())[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > _LONGEST:
            raise _Truncated
        return self._take(length).tobytes().decode("utf-8", errors="surrogateescape")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 2:
            raise _Truncated
        inner, count = self._scalar("I"), self._scalar("Q")
        if count > _LONGEST:
            raise _Truncated
        if inner in _SCALARS:
            code = _SCALARS[inner]
            raw = self._take(count * struct.calcsize(code)).tobytes()
            return list(struct.unpack(f"<{count}{code}", raw))
        return [self._value(inner, depth + 1) for _ in range(count)]

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dims = self._scalar("I")
        if dims > 8:
            raise _Truncated
        shape = tuple(self._scalar("Q") for _ in range(dims))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes (rows, bytes a row), not copied."""
        info = self.tensors[name]
        rows = math.prod(info.shape[:-1])
        return self._data[info.begin : info.begin + info.size].reshape(rows, -1)

    def dequantize(self, name: str) -> Tensor:
        """The tensor in fp32, in its shape."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        kind = GGMLQuantizationType(info.kind)
        raw = self.raw(name)
        if kind is GGMLQuantizationType.F32:
            return torch.from_numpy(np.array(raw)).view(torch.float32).reshape(info.shape)
        try:
            values = dequantize(raw, kind)
        except NotImplementedError:
            raise HastenError(f"{self.path} stores {name} as {kind.name}, which hasten cannot read") from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(info.shape)

    def packed(self, name: str) -> tuple[Tensor, Tensor | None, Tensor | None, int] | None:
        """The tensor in hasten's packed format, code for code: packed, scales, mins, bits.

        None for a format without one. Q8_0 becomes int8, Q4_0 and Q4_1 int4, all in groups of 32.
        """
        from gguf.constants import GGMLQuantizationType as Kind

        info = self.tensors[name]
        out = math.prod(info.shape[:-1])
        sizes = {Kind.Q8_0: 34, Kind.Q4_1: 20, Kind.Q4_0: 18}
        if info.kind not in sizes:
            return None
        blocks = torch.from_numpy(np.array(self.raw(name))).reshape(out, -1, sizes[Kind(info.kind)])
        scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
        if info.kind == Kind.Q8_0:
            return blocks[..., 2:].contiguous().view(torch.int8).reshape(out, -1), scales, None, 8
        if info.kind == Kind.Q4_1:
            mins = blocks[..., 2:4].contiguous().view(torch.float16)[..., 0]
            return blocks[..., 4:].reshape(out, -1).contiguous(), scales.contiguous(), mins.contiguous(), 4
        return blocks[..., 2:].reshape(out, -1).contiguous(), scales.contiguous(), scales * -8, 4


class _Truncated(Exception):
    """A length in the file points behind its end."""


def _bytes_of(shape: tuple[int, ...], kind: int, name: str, path: Path) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise HastenError(f"{path} stores {name} in an unknown format ({kind}): update gguf") from None
    if not shape or shape[-1] % block or math.prod(shape) > 1 << 48:
        raise _Truncated
    return math.prod(shape) // block * size

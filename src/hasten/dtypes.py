"""Names of number formats, as every part of hasten writes them, and their size in bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BITS: dict[str, int] = {
    "fp64": 64,
    "fp32": 32,
    "tf32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "fp4": 4,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "int6": 6,
    "int5": 5,
    "int4": 4,
    "int3": 3,
    "int2": 2,
    "int1": 1,
    "bool": 8,
    "complex64": 64,
    "complex128": 128,
}

_TORCH_NAMES: dict[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "bool": "bool",
    "complex64": "complex64",
    "complex128": "complex128",
}


def nbytes(elements: int, dtype: str) -> int:
    """Bytes that ``elements`` values of ``dtype`` take, rounded up to a whole byte.

    >>> nbytes(3, "int4")
    2
    """
    return -(-elements * BITS[dtype] // 8)


def name_of(dtype: torch.dtype) -> str:
    """hasten's name of a torch dtype.

    Raises:
        KeyError: a dtype that no part of hasten describes.
    """
    return _TORCH_NAMES[str(dtype).removeprefix("torch.")]

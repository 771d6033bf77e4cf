"""ggml's number formats, and what a file of one type (Q4_K_M, ...) keeps in which of them.

Facts from llama.cpp, ``ggml-common.h`` (sizes of blocks) and ``llama-quant.cpp`` (which tensor gets which format).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from hasten.models.loading.parameter_kinds import Kind, kind_of
from hasten.models.loading.weight_format import WeightFormat

_PLAIN = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_CODES = ((8, "int8"), (6, "int6"), (5, "int5"), (4, "int4"), (3, "int3"), (2, "int2"), (1, "int1"))
# Where a row is no multiple of a block of 256.
_FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def ggml_format(name: str) -> WeightFormat:
    """A ggml format by name: whole bits a number, and the rest of a block in bytes beside them.

    Raises:
        KeyError: no such format.

    >>> ggml_format("Q4_K").nbytes((1, 256)), ggml_format("Q6_K").nbytes((1, 256))
    (144, 210)
    """
    if name in _PLAIN:
        return WeightFormat(_PLAIN[name])
    block, size = GGML_QUANT_SIZES[Type[name]]
    bits, codes = next((b, c) for b, c in _CODES if b * block <= 8 * size)
    if name in ("MXFP4", "NVFP4"):
        codes = "fp4"
    return WeightFormat(codes, columns=block, scales="uint8", count=size - bits * block // 8)


class FileType:
    """What a GGUF file of one type keeps in which format.

    Args:
        name: ``q8_0``, ``q4_k_m``, ... in any case.

    Raises:
        KeyError: no such type.
    """

    def __init__(self, name: str) -> None:
        self.name = name.upper()
        self._base, self._mixed = _FILE_TYPES.get(self.name, (self.name, None))
        ggml_format(self._base)

    def format_of(self, name: str, shape: tuple[int, ...], layers: int, shared: int, tied: bool) -> WeightFormat:
        """The format of one parameter, see `type_of`."""
        return ggml_format(self.type_of(name, shape, layers, shared, tied))

    def type_of(self, name: str, shape: tuple[int, ...], layers: int, shared: int, tied: bool) -> str:
        """The ggml type of one parameter.

        Args:
            name, shape: transformers' name, and (..., out, in).
            layers: of the model.
            shared: query heads that share a head of keys.
            tied: the embedding is the output head too.
        """
        kind = kind_of(name, shape)
        if kind is Kind.REST or (kind is Kind.ROUTER and self._base not in _PLAIN):
            return "F32"
        if self._base in _PLAIN:
            return self._base
        chosen = self._base
        found = re.search(r"\.(\d+)\.", name)
        number = int(found[1]) if found else 0
        if kind is Kind.HEAD or (kind is Kind.EMBEDDING and tied):
            chosen = self._base if self._base in ("Q8_0", "MXFP4") else "Q6_K"
        elif self._mixed is not None and kind is not Kind.EMBEDDING:
            chosen = self._mixed(_part(name), number, layers, shared) or self._base
        block, _ = GGML_QUANT_SIZES[Type[chosen]]
        if shape[-1] % block:
            chosen = _FALLBACK.get(chosen, "F16")
            if shape[-1] % GGML_QUANT_SIZES[Type[chosen]][0]:
                chosen = "F16"
        return chosen


def _part(name: str) -> str:
    """``v``, ``down``, ``o`` or nothing: the parts that some types keep in more bits."""
    if re.search(r"(v_proj|\.value|attn_v)\.weight$", name):
        return "v"
    if re.search(r"(down_proj|fc2|\.w2|dense_4h_to_h|experts\.down_proj)(\.weight)?$", name):
        return "down"
    return "o" if re.search(r"(o_proj|attn\.c_proj|attention\.dense)\.weight$", name) else ""


def _more(number: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    first = layers // 8
    return number < first or number >= 7 * layers // 8 or (number - first) % 3 == 2


_Choice = Callable[[str, int, int, int], str | None]


def _q2_k(part: str, number: int, layers: int, shared: int) -> str | None:
    return {"v": "Q4_K" if shared >= 4 else "Q3_K", "down": "Q3_K", "o": "Q3_K"}.get(part)


def _q3_k_m(part: str, number: int, layers: int, shared: int) -> str | None:
    if part == "v":
        return "Q5_K" if number < 2 else "Q4_K"
    if part == "down":
        return "Q5_K" if number < layers // 16 else "Q4_K"
    return "Q4_K" if part == "o" else None


def _q3_k_l(part: str, number: int, layers: int, shared: int) -> str | None:
    return "Q5_K" if part else None


def _q4_k_s(part: str, number: int, layers: int, shared: int) -> str | None:
    few = 4 if part == "v" else layers // 8
    return "Q5_K" if part in ("v", "down") and number < few else None


def _q_k_m(part: str, number: int, layers: int, shared: int) -> str | None:
    if part == "v" and layers == 80 and shared == 8 and not _more(number, layers):
        return "Q5_K"  # of the 70-billion models, whose values are small
    return "Q6_K" if part in ("v", "down") and _more(number, layers) else None


_FILE_TYPES: dict[str, tuple[str, _Choice | None]] = {
    "Q2_K": ("Q2_K", _q2_k),
    "Q3_K_S": ("Q3_K", None),
    "Q3_K_M": ("Q3_K", _q3_k_m),
    "Q3_K": ("Q3_K", _q3_k_m),
    "Q3_K_L": ("Q3_K", _q3_k_l),
    "Q4_K_S": ("Q4_K", _q4_k_s),
    "Q4_K_M": ("Q4_K", _q_k_m),
    "Q4_K": ("Q4_K", _q_k_m),
    "Q5_K_S": ("Q5_K", None),
    "Q5_K_M": ("Q5_K", _q_k_m),
    "Q5_K": ("Q5_K", _q_k_m),
}
FILE_TYPES = tuple(
    sorted(
        {
            *_FILE_TYPES,
            "Q4_0",
            "Q4_1",
            "Q5_0",
            "Q5_1",
            "Q8_0",
            "Q6_K",
            "IQ4_NL",
            "IQ4_XS",
            "IQ3_XXS",
            "IQ2_XXS",
            "F16",
            "BF16",
            "F32",
        }
    )
)

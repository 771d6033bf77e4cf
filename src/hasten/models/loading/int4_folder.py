"""Int4 weights as GPTQ, AWQ and compressed-tensors write them into safetensors, as hasten's own int4.

All three keep whole numbers q of 0 to 15, eight in an int32, and for each group of columns a scale and a zero point:
a weight is ``scale * (q - zero)``. Facts from AutoGPTQ (checkpoint formats ``gptq`` and ``gptq_v2``), AutoAWQ (version
``gemm``) and compressed-tensors (``pack-quantized``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.errors import HastenError

# The column that a nibble of AWQ's words holds, among the eight of a word.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_LEAST_GROUP = 32


class Int4(NamedTuple):
    """A weight: codes (out, in) uint8 of 0 to 15; scales and zeros (out, groups) fp32, zeros being whole numbers."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantize(self) -> Tensor:
        """The weight (out, in), fp32."""
        codes = self.codes.unflatten(1, (-1, self.group)).float()
        return ((codes - self.zeros[..., None]) * self.scales[..., None]).flatten(1)

    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and mins as `hasten.kernels.packed_linear` has them.

        A min is rounded to fp16: nothing is lost of symmetric weights, and of others less than 1/250 of a step.
        """
        first, second = self.codes.unflatten(1, (-1, 2, self.group // 2)).unbind(2)
        return (first | second << 4).flatten(1), self.scales.half(), (-self.zeros * self.scales).half()


def take_int4(said: Mapping[str, Any], tensors: dict[str, Tensor], where: Path) -> dict[str, Int4]:
    """Takes the packed weights out of a folder's tensors.

    Args:
        said: the folder's ``quantization_config``.
        tensors: all of its tensors; those that belong to packed weights are removed.
        where: the folder, for messages.

    Returns:
        The weights by name (``...weight``).

    Raises:
        HastenError: a method, or a layout, that hasten's int4 has no counterpart for.
    """
    method = str(said.get("quant_method") or "").lower()
    if method not in _READERS:
        raise HastenError(
            f"{where} holds quantized weights ({method[:40] or 'of no name'}); hasten reads int4 of "
            f"{', '.join(_READERS)}: give the model's unquantized folder, or a GGUF file"
        )
    suffix, read = _READERS[method]
    found = {}
    for key in [k for k in tensors if k.endswith(suffix)]:
        name = key.removesuffix(suffix)
        parts = {
            k: tensors.pop(k) for k in [k for k in tensors if k.startswith(f"{name}.") and not k.endswith(".bias")]
        }
        own = {k.removeprefix(f"{name}."): t for k, t in parts.items()}
        try:
            weight = read(said, own)
            group = weight.group
        except (KeyError, RuntimeError, ValueError, ZeroDivisionError):
            raise HastenError(f"{where}: {name[:60]} is no {method} weight of 4 bits: fetch or copy it again") from None
        if group < _LEAST_GROUP or group % _LEAST_GROUP or weight.codes.shape[1] % group:
            raise HastenError(
                f"{where} holds quantized weights in groups of {group}; hasten reads groups of multiples of 32"
            )
        if not bool(torch.isfinite(weight.scales.half()).all()):
            raise HastenError(f"{where}: {name[:60]} holds scales that fp16 does not: fetch or copy it again")
        found[f"{name}.weight"] = weight
    if not found:
        raise HastenError(f"{where} says that it holds quantized weights ({method}), but has none: fetch it again")
    return found


def _refuse(what: str) -> HastenError:
    return HastenError(f"quantized weights {what} have no counterpart here: give another folder, or a GGUF file")


def _nibbles(words: Tensor) -> Tensor:
    """(..., n) int32 to (..., n, 8) whole numbers of 0 to 15, the lowest first."""
    return (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32) & 15).to(torch.uint8)


def _gptq(said: Mapping[str, Any], own: Mapping[str, Tensor]) -> Int4:
    if said.get("bits") != 4:
        raise _refuse(f"of {said.get('bits')} bits")
    # Words hold eight rows of (in, out).
    codes = _nibbles(own["qweight"]).transpose(1, 2).flatten(0, 1).t()
    scales = own["scales"].float().t()
    order = own.get("g_idx")
    group = codes.shape[1] // scales.shape[1]
    if order is not None and not torch.equal(order.long(), torch.arange(codes.shape[1]) // group):
        raise _refuse("whose columns are in the order of activations (act-order)")
    zeros = _nibbles(own["qzeros"]).flatten(1).t()
    if said.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & 15  # the first format stores one less
    return Int4(codes.contiguous(), scales.contiguous(), zeros.float().contiguous())


def _awq(said: Mapping[str, Any], own: Mapping[str, Tensor]) -> Int4:
    bits, version = said.get("bits", said.get("w_bit")), str(said.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise _refuse(f"of {bits} bits in the version {version[:20]}")
    order = torch.tensor(_AWQ_ORDER).argsort()
    codes = _nibbles(own["qweight"])[..., order].flatten(1).t()
    zeros = _nibbles(own["qzeros"])[..., order].flatten(1).t()
    return Int4(codes.contiguous(), own["scales"].float().t().contiguous(), zeros.float().contiguous())


def _compressed(said: Mapping[str, Any], own: Mapping[str, Tensor]) -> Int4:
    schemes = [g["weights"] for g in said.get("config_groups", {}).values()]
    if said.get("format") != "pack-quantized" or any(s.get("num_bits") != 4 for s in schemes):
        raise _refuse(f"in the format {str(said.get('format'))[:30]}, or not of 4 bits,")
    if "weight_g_idx" in own:
        raise _refuse("whose columns are in the order of activations (act-order)")
    rows, columns = (int(n) for n in own["weight_shape"])
    codes = _nibbles(own["weight_packed"]).flatten(1)[:, :columns]
    scales = own["weight_scale"].float()
    # What was -8 to 7 is stored with 8 added, zero points too: these have eight rows in a word.
    zeros = torch.full_like(scales, 8)
    if "weight_zero_point" in own:
        zeros = _nibbles(own["weight_zero_point"]).transpose(1, 2).flatten(0, 1)[:rows].float()
    return Int4(codes.contiguous(), scales, zeros)


_READERS: dict[str, tuple[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Int4]]] = {
    "gptq": (".qweight", _gptq),
    "awq": (".qweight", _awq),
    "compressed-tensors": (".weight_packed", _compressed),
}

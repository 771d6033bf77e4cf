"""Linear layers whose weight stays packed: plain, int8 or int4 with a scale for each group of columns, or in blocks.

Formats of a weight (out, in), groups of ``group`` consecutive columns:

=====  ===============================  =============================================  ===================
bits   ``packed``                       ``scales``, ``mins`` (out, in / group), fp16   value
=====  ===============================  =============================================  ===================
32     (out, in) fp32                   none                                           the number itself
16     (out, in) bf16 or fp16           none                                           the number itself
8      (out, in) int8, symmetric        scales                                         scale * code
4      (out, in / 2) uint8, asymmetric  scales and mins                                scale * code + min
4      (out, in / 2) uint8, symmetric   scales, and no mins                            scale * (code - 8)
=====  ===============================  =============================================  ===================

Of an int4 group, byte j holds value j in its low nibble and value j + group / 2 in its high one. That is
GGUF's layout within a block of 32, so Q4_0, Q4_1 and Q8_0 weights keep their codes. The other formats of GGUF stay as
they are: ``bits`` is then a number of `hasten.kernels.block_formats`, ``packed`` (out, bytes of a row) uint8, and there
are no other tensors. Every function takes a weight in tiles (`hasten.kernels.tiles`) too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.kernels import block_formats, gate
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.compiled import FORMATS, native
from hasten.kernels.groups import check_range, decode, encode
from hasten.kernels.tiles import TILE, in_tiles, takes_tiles, tile_bytes, to_rows
from hasten.workload.einsum import Access, Op
from hasten.workload.operators import Call, axes, register, whole

# Columns of x that share a scale in int8; a weight's groups are multiples of it.
GROUP = 32
# Up to this many rows of x the weight is unpacked in registers. Of more, compiled kernels unpack a few rows of it at a
# time; beyond `_MANY_ROWS`, and in bf16 `_MANY_ROWS_BF16`, the platform's matrix product is the faster, for which a
# weight is unpacked as a whole.
FEW_ROWS = 16
_MANY_ROWS, _MANY_ROWS_BF16 = 256, 128
# Rows of W unpacked at a time in a matrix product, so that a large vocabulary's head needs no fp32 copy.
_UNPACK_ROWS = 8192


def quantize(weight: Tensor, bits: int, group: int = GROUP) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Packs a weight.

    Args:
        weight: (out, in) floating point; ``in`` a multiple of ``group``.
        bits: 16, 8 or 4: what hasten quantizes to itself.
        group: columns that share a scale; a multiple of 32.

    Returns:
        packed, scales, mins, as the module's table says. Codes are rounded to nearest, so that
        ``|weight - value| <= scale / 2`` but for the rounding of scales and mins to fp16.

    Raises:
        ValueError: sizes or a bit width that no format has.
        HastenError: a weight is not finite, or larger than the format's numbers or scales reach
            (`hasten.kernels.groups.LARGEST`).
    """
    out, columns = weight.shape
    if bits not in (4, 8, 16):
        raise ValueError(f"a weight has 4, 8 or 16 bits, not {bits}")
    check_range(weight, bits)
    if bits == 16:
        return weight.to(torch.bfloat16).contiguous(), None, None
    if group % GROUP or columns % group:
        raise ValueError(f"a group of {group} must be a multiple of {GROUP} and divide {columns} columns")
    grouped = weight.detach().float().reshape(out, columns // group, group)
    codes, scales, mins = encode(grouped, bits)
    return codes.flatten(1), scales, mins


def dequantize_reference(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    """The weight (out, in) in fp32, in plain torch."""
    if in_tiles(packed):
        packed, scales, mins = to_rows(packed, scales, mins, bits)
    if bits in BLOCK_FORMATS:
        return block_formats.decode_rows(packed, bits)
    if bits >= 16:
        return packed.float()
    assert scales is not None
    out = packed.shape[0]
    codes = packed.reshape(out, scales.shape[1], group if bits == 8 else group // 2)
    return decode(codes, scales, mins).flatten(1)


def reference(x: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    """``x @ W.T`` in plain torch: x (..., in) to (..., out), in x's dtype."""
    wide = gate.wide(x.dtype)
    weight = dequantize_reference(packed, scales, mins, bits, group).to(wide)
    return torch.nn.functional.linear(x.to(wide), weight).to(x.dtype)


def round_rows(x: Tensor) -> Tensor:
    """x (..., in) as int8 codes in groups of 32 would have it: code * largest / 127, rounded to nearest."""
    grouped = x.to(gate.wide(x.dtype)).unflatten(-1, (-1, GROUP))
    largest = grouped.abs().amax(-1, keepdim=True)
    # As compiled: multiplied by the inverse, which decides ties, and numbers that have none become 0. torch makes of a
    # number over a tensor the number times the tensor's reciprocal, which is rounded twice.
    inverse = torch.where(largest > 2**-118, torch.full_like(largest, 127) / largest, 0)
    return (torch.round(grouped * inverse) * (largest / 127)).flatten(-2).to(x.dtype)


def format_name(bits: int) -> str:
    """A format for people: ``int4``, ``16 bits``, ``q4_k``."""
    return BLOCK_FORMATS[bits].name if bits in BLOCK_FORMATS else f"int{bits}" if bits < 16 else f"{bits} bits"


def product_map(bits: int, rows: int, bf16: bool, int8: bool) -> str:
    """How an Einsum calls the product of a packed weight: by what its rows are rounded to on the way."""
    if int8 and bits not in (16, 32):
        return "mul-int8"
    return "mul-bf16" if bf16 and rows > FEW_ROWS else "mul"


def native_matrix(
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    bits: int,
    group: int,
    bias: Tensor | None = None,
    codes_in: bool = False,
) -> object:
    """What the compiled kernels call a matrix: the tensors must outlive it."""
    module = native()
    assert module is not None
    out, columns = check_weight("native_matrix", packed, scales, mins, bits, group)
    tiled = in_tiles(packed)
    grouped = (out // TILE, columns // group, TILE) if tiled else (out, columns // group)
    return module.matrix(
        FORMATS["fp16"] if packed.dtype is torch.float16 else bits,
        out,
        columns,
        group,
        gate.address(packed, packed.dtype, *packed.shape),
        gate.address(scales, torch.float16, *grouped),
        gate.address(mins, torch.float16, *grouped),
        gate.address(bias, torch.float32, out),
        codes_in,
        tiled,
    )


# What the codes of a weight are kept in.
_CODES: dict[int, tuple[torch.dtype, ...]] = {
    4: (torch.uint8,),
    8: (torch.int8,),
    16: (torch.bfloat16, torch.float16),
    32: (torch.float32,),
    **dict.fromkeys(BLOCK_FORMATS, (torch.uint8,)),
}


def columns_of(packed: Tensor, bits: int) -> int:
    """Weights of a row of ``packed``, whole blocks where there are blocks."""
    if in_tiles(packed) and takes_tiles(bits):
        return packed.shape[1] * tile_bytes(bits)[0]
    if bits in BLOCK_FORMATS:
        return packed.shape[1] // BLOCK_FORMATS[bits].nbytes * BLOCK_FORMATS[bits].columns
    return packed.shape[1] * (2 if bits == 4 else 1)


def rows_of(packed: Tensor) -> int:
    """Rows of a packed weight."""
    return packed.shape[0] * (TILE if in_tiles(packed) else 1)


def check_weight(
    operator: str, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int
) -> tuple[int, int]:
    """Rows and columns of a packed weight whose parts fit each other.

    Raises:
        ValueError: they do not.
    """
    if bits not in _CODES:
        raise ValueError(f"{operator}: a weight has 4, 8, 16 or 32 bits or is of a block format, not {bits}")
    gate.dtypes(operator, _CODES[bits], packed=packed)
    gate.dtypes(operator, (torch.float16,), scales=scales, mins=mins)
    if tiled := in_tiles(packed) and takes_tiles(bits):
        letters, numbers = f"n t {tile_bytes(bits)[1]}", f"n g {TILE}"
    else:
        letters, numbers = "n p", "n g"
    found = gate.sizes(operator, packed=(packed, letters), scales=(scales, numbers), mins=(mins, numbers))
    columns = columns_of(packed, bits)
    if not tiled and bits in BLOCK_FORMATS and found["p"] % BLOCK_FORMATS[bits].nbytes:
        size = BLOCK_FORMATS[bits].nbytes
        raise ValueError(f"{operator}: rows of {found['p']} bytes are no blocks of {size} ({format_name(bits)})")
    if bits < 16 and (scales is None or (bits == 8 and mins is not None)):
        raise ValueError(f"{operator}: int8 weights have scales, int4 ones scales and perhaps mins")
    if bits >= 16 and (scales is not None or mins is not None):
        raise ValueError(f"{operator}: weights in {format_name(bits)} have neither scales nor mins")
    if group < GROUP or group % GROUP:
        raise ValueError(f"{operator}: a group of {group} must be a multiple of {GROUP}")
    if bits < 16 and (columns % group or found["g"] != columns // group):
        raise ValueError(f"{operator}: {found['g']} scales a row are not of groups of {group} in {columns} columns")
    if tiled and group != GROUP:
        raise ValueError(f"{operator}: a weight in tiles has groups of {GROUP}, not {group}")
    return rows_of(packed), columns


def _check(
    operator: str, x: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int
) -> None:
    _, columns = check_weight(operator, packed, scales, mins, bits, group)
    gate.dtypes(operator, gate.FLOATS, x=x)
    gate.sizes(operator, {"k": columns}, packed=(packed, "n g p" if in_tiles(packed) else "n p"), x=(x, "... k"))
    if not columns:
        raise ValueError(f"{operator}: the weight has no columns")


def _compiled_takes(packed: Tensor, columns: int, bits: int) -> bool:
    known = bits in FORMATS.values() and columns % GROUP == 0
    return known and packed.device.type == "cpu" and packed.is_contiguous() and native() is not None


def _most_compiled(packed: Tensor, bf16: bool, int8: bool) -> float:
    """Up to how many rows the compiled kernels are faster than torch's matrix product."""
    module = native()
    if module is None or module.isa() == "generic" or (bf16 and packed.dtype is torch.bfloat16):
        return FEW_ROWS
    if int8:
        return math.inf
    return _MANY_ROWS_BF16 if bf16 else _MANY_ROWS


def dequantize(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    """The weight (out, in) in fp32, by the compiled kernel where there is one."""
    return torch.ops.hasten.dequantize(packed, scales, mins, bits, group)


def _unpacked(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    columns = columns_of(packed, bits)
    if not _compiled_takes(packed, columns, bits):
        return dequantize_reference(packed, scales, mins, bits, group)
    weight = gate.buffer(rows_of(packed), columns)
    scales, mins = _together(scales), _together(mins)
    module = native()
    assert module is not None
    place = gate.address(weight, torch.float32, *weight.shape)
    module.dequantize(native_matrix(packed, scales, mins, bits, group), place, torch.get_num_threads())
    return weight


torch.library.define(
    "hasten::packed_linear",
    "(Tensor x, Tensor packed, Tensor? scales, Tensor? mins, int bits, int group, bool bf16=False, "
    "bool int8=False) -> Tensor",
)
torch.library.define(
    "hasten::dequantize", "(Tensor packed, Tensor? scales, Tensor? mins, int bits, int group) -> Tensor"
)
torch.library.define("hasten::plain_linear", "(Tensor x, Tensor weight) -> Tensor")
torch.library.define(
    "hasten::packed_embedding",
    "(Tensor ids, Tensor packed, Tensor? scales, Tensor? mins, int bits, int group) -> Tensor",
)


@torch.library.impl("hasten::packed_linear", ("cpu", "cuda", "mps"))
def _packed_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    _check("packed_linear", x, packed, scales, mins, bits, group)
    columns = x.shape[-1]
    rows = x.numel() // columns
    int8 = int8 and bits not in (16, 32) and group == GROUP
    if not _compiled_takes(packed, columns, bits):
        return reference(round_rows(x) if int8 else x, packed, scales, mins, bits, group).to(x.dtype)
    wide = gate.wide(x.dtype)
    flat = x.reshape(rows, columns).to(wide).contiguous()
    out = rows_of(packed)
    y = gate.buffer(rows, out, dtype=wide)
    if wide is torch.float32 and rows <= _most_compiled(packed, bf16, int8):
        scales, mins = _together(scales), _together(mins)
        matrix = native_matrix(packed, scales, mins, bits, group, codes_in=int8)
        multiply(matrix, flat, y)
    else:
        left = round_rows(flat) if int8 else flat
        bf16 = bf16 and wide is torch.float32
        left = left.to(torch.bfloat16) if bf16 else left
        for start in range(0, out, _UNPACK_ROWS):
            part = slice(start, start + _UNPACK_ROWS)
            if bf16 and packed.dtype is torch.bfloat16:
                weight = packed[part]
            else:
                parts = _some_rows(packed, part), _rows(scales, part), _rows(mins, part)
                weight = _unpacked(*parts, bits, group).to(left.dtype)
            y[:, part] = torch.nn.functional.linear(left, weight)
    return y.to(x.dtype).reshape(*x.shape[:-1], out)


def multiply(matrix: object, flat: Tensor, y: Tensor) -> None:
    """Writes ``flat @ W.T`` to y, both in fp32, by the compiled kernel whatever the number of rows, as a compiled step
    does; ``matrix`` is `native_matrix`'s."""
    module = native()
    assert module is not None
    rows = flat.shape[0]
    x_at, y_at = gate.address(flat, torch.float32, *flat.shape), gate.address(y, torch.float32, rows, y.shape[1])
    module.linear(matrix, x_at, rows, y_at, torch.get_num_threads())


def _together(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(tensor: Tensor | None, part: slice) -> Tensor | None:
    return None if tensor is None else _some_rows(tensor, part)


def _row_size(tensor: Tensor) -> int:
    return tensor.numel() // max(rows_of(tensor), 1)


def _some_rows(tensor: Tensor, part: slice) -> Tensor:
    """These rows of a weight's codes, scales or mins, whole tiles where it stands in tiles."""
    by = TILE if in_tiles(tensor) else 1
    return tensor[part.start // by : part.stop // by]


@gate.register_fake("hasten::packed_linear")
def _(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows_of(packed))


def in_four_bits(bits: int) -> bool:
    return bits == 4 or (bits in BLOCK_FORMATS and BLOCK_FORMATS[bits].bits == 4)


def _describe(call: Call, rows: int, columns: int) -> None:
    """Says what the bytes of codes of 4 bits mean; other block formats stay the bytes that they are, row after row
    where they stand in tiles too."""
    packed, bits, recorder = call["packed"], call["bits"], call.recorder
    for t in (packed, call["scales"], call["mins"]):
        if t is None or not in_tiles(packed):
            continue
        recorder.describe(t, (rows, t.numel() // max(rows, 1)), recorder.tensors[recorder.name_of(t)].dtype)
    if in_four_bits(bits):
        recorder.describe(packed, (rows, columns), "int4")


def _codes(call: Call, names: list[str], rows: int) -> Access:
    """Reading so many rows of the packed weight."""
    packed, bits = call["packed"], call["bits"]
    known = bits not in BLOCK_FORMATS or in_four_bits(bits)
    return call.read(packed, names, rows * (columns_of(packed, bits) if known else _row_size(packed)))


@register("hasten::packed_linear")
def _(call: Call) -> None:
    x, packed = call["x"], call["packed"]
    output = call.outputs[0]
    k, n = x.shape[-1], rows_of(packed)
    _describe(call, n, k)
    rows = int(x.numel() // max(k, 1))
    ranks = (("m", rows), ("n", n), ("k", k))
    scales = [call.read(t, ["n", "k"], t.numel()) for t in (call["scales"], call["mins"]) if t is not None]
    inputs = [call.read(x, ["m", "k"]), _codes(call, ["k", "n"], n), *scales]
    product = product_map(call["bits"], rows, bool(call["bf16"]), bool(call["int8"]))
    call.emit(Op.MATMUL, ranks, inputs, output, ["m", "n"], map=product, reduce="sum")


def _save_weight(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    _, packed, scales, mins, bits, group, *_ = inputs
    ctx.save_for_backward(packed, scales, mins)
    ctx.format = (bits, group)  # type: ignore[attr-defined]


def _input_gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, scales, mins = ctx.saved_tensors  # type: ignore[attr-defined]
    weight = dequantize(packed, scales, mins, *ctx.format)  # type: ignore[attr-defined]
    wide = gate.wide(grad.dtype)
    return (grad.to(wide) @ weight.to(wide)).to(grad.dtype), None, None, None, None, None, None, None


torch.library.register_autograd("hasten::packed_linear", _input_gradient, setup_context=_save_weight)


@torch.library.impl("hasten::dequantize", ("cpu", "cuda", "mps"))
def _dequantize(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    check_weight("dequantize", packed, scales, mins, bits, group)
    return _unpacked(packed, scales, mins, bits, group)


@gate.register_fake("hasten::dequantize")
def _(packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    columns = columns_of(packed, bits)
    return packed.new_empty(rows_of(packed), columns, dtype=torch.float32)


@register("hasten::dequantize")
def _(call: Call) -> None:
    packed, output = call["packed"], call.outputs[0]
    _describe(call, *output.shape)
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    scales = [call.read(t, names, t.numel()) for t in (call["scales"], call["mins"]) if t is not None]
    call.emit(Op.ELEMENTWISE, ranks, [_codes(call, names, rows_of(packed)), *scales], output, names, map="dequantize")


gate.without_gradient("hasten::dequantize")
gate.without_gradient("hasten::packed_embedding")


@torch.library.impl("hasten::packed_embedding", ("cpu", "cuda", "mps"))
def _packed_embedding(
    ids: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int
) -> Tensor:
    check_weight("packed_embedding", packed, scales, mins, bits, group)
    gate.dtypes("packed_embedding", (torch.int64, torch.int32), ids=ids)
    if ids.device != packed.device:
        raise ValueError(f"packed_embedding: ids are on {ids.device}, the table on {packed.device}")
    flat = ids.reshape(-1)
    if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < rows_of(packed)):
        raise IndexError(f"packed_embedding: an id is outside of the table's {rows_of(packed)} rows")
    wanted = flat // TILE if in_tiles(packed) else flat
    rows = dequantize_reference(
        packed[wanted],
        None if scales is None else scales[wanted],
        None if mins is None else mins[wanted],
        bits,
        group,
    )
    if in_tiles(packed):
        rows = rows[torch.arange(len(flat), device=flat.device) * TILE + flat % TILE]
    return rows.reshape(*ids.shape, rows.shape[-1])


@gate.register_fake("hasten::packed_embedding")
def _(ids: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int) -> Tensor:
    columns = columns_of(packed, bits)
    return packed.new_empty(*ids.shape, columns, dtype=torch.float32)


@register("hasten::packed_embedding")
def _(call: Call) -> None:
    ids, packed, output = call["ids"], call["packed"], call.outputs[0]
    width = output.shape[-1]
    _describe(call, rows_of(packed), width)
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    rows = min(ids.numel(), rows_of(packed))
    scales = [call.read(t, names, rows * _row_size(t)) for t in (call["scales"], call["mins"]) if t is not None]
    inputs = [_codes(call, names, rows), *scales, whole(call, ids)]
    call.emit(Op.GATHER, ranks, inputs, output, names, map="copy" if call["bits"] in (16, 32) else "dequantize")


@torch.library.impl("hasten::plain_linear", ("cpu", "cuda", "mps"))
def _plain_linear(x: Tensor, weight: Tensor) -> Tensor:
    gate.dtypes("plain_linear", gate.FLOATS, x=x, weight=weight)
    gate.sizes("plain_linear", x=(x, "... k"), weight=(weight, "n k"))
    if x.dtype is not weight.dtype:
        raise ValueError(f"plain_linear: x is {x.dtype}, the weight {weight.dtype}")
    rows = x.numel() // max(1, x.shape[-1])
    few = 0 < rows <= FEW_ROWS and x.dtype is torch.float32 and weight.numel() > 0
    if not few or not _compiled_takes(weight, x.shape[-1], FORMATS["fp32"]):
        return torch.nn.functional.linear(x, weight)
    flat, y = x.reshape(rows, -1).contiguous(), gate.buffer(rows, weight.shape[0])
    multiply(native_matrix(weight, None, None, FORMATS["fp32"], GROUP), flat, y)
    return y.reshape(*x.shape[:-1], weight.shape[0])


@gate.register_fake("hasten::plain_linear")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save_both(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    rows = grad.reshape(grad.numel() // max(1, weight.shape[0]), weight.shape[0])
    return grad @ weight, rows.t() @ x.reshape(rows.shape[0], weight.shape[1])


torch.library.register_autograd("hasten::plain_linear", _linear_gradients, setup_context=_save_both)


@register("hasten::plain_linear")
def _(call: Call) -> None:
    x, weight = call["x"], call["weight"]
    n, k = weight.shape
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    inputs = [call.read(x, ["m", "k"]), call.read(weight, ["n", "k"])]
    call.emit(Op.MATMUL, ranks, inputs, call.outputs[0], ["m", "n"], reduce="sum")


def packed_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    """``x @ W.T`` with W packed: x (..., in) to (..., out), in x's dtype, summed in fp32.

    With ``bf16``, many rows (more than `FEW_ROWS` at least) are multiplied in bf16 (x and the unpacked weight are
    rounded to 8 bits of mantissa): several times faster where the processor multiplies bf16 itself (`fast_bf16`).
    With ``int8``, rows of x are first rounded to int8 in groups of 32 (`round_rows`), where W has 8 or 4 bits in such
    groups: they are then multiplied as whole numbers, by the processor's byte dot products, a row with the same result
    among many others as alone.
    Gradients flow to x alone: the weight is not trainable.
    """
    gate.no_tangents("packed_linear", x)
    return torch.ops.hasten.packed_linear(x, packed, scales, mins, bits, group, bf16, int8)


def fast_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices natively, so that ``bf16`` pays."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def packed_embedding(
    ids: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, bits: int, group: int
) -> Tensor:
    """Rows ``ids`` (...) of a packed table as fp32 (..., in)."""
    return torch.ops.hasten.packed_embedding(ids, packed, scales, mins, bits, group)

"""How keys and values are kept between decoding steps: layouts, writing, reading.

Positions are stored in blocks of `BLOCK` tokens. Without a window block b has place b; with one, the blocks
behind those of the attention sinks form a ring, so that memory stops growing.

A plain cache (fp32, fp16, bf16) is one tensor (batch, heads, tokens, head_dim). A quantized one (int8, int4)
keeps complete blocks as codes and the newest `RECENT` tokens, or more, in fp32. Keys share a scale along the tokens of
a block, channel by channel, since a few of their channels are large throughout; values share it along `BLOCK`
channels, token by token (KIVI, arXiv 2402.02750, section 3). Key codes are stored (channel, token) within a block.

int8 is symmetric (scale), int4 asymmetric (scale and min) with nibbles as in `hasten.kernels.packed_linear`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import FORMATS
from hasten.kernels.groups import decode, encode
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

BLOCK = 32
RECENT = 2 * BLOCK
# Tokens of one sequence that may be written in one step without overwriting what the step still reads.
MOST_NEW = BLOCK

_STORED = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
}
BITS = FORMATS
# A layer's tensors in the order in which the compiled step is given them; each cache has some of them.
BUFFERS = (
    "keys",
    "values",
    "key_scales",
    "key_mins",
    "value_scales",
    "value_mins",
    "recent_keys",
    "recent_values",
    "pooled",
)


@dataclass(frozen=True)
class Ring:
    """Where blocks stand: the first ``sink_blocks`` in place, then ``ring_blocks`` in turn (0: no ring)."""

    sink_blocks: int = 0
    ring_blocks: int = 0

    @classmethod
    def of(cls, window: int | None, sinks: int) -> Ring:
        """The ring that serves a window of ``window`` tokens beside ``sinks`` tokens at the start."""
        if window is None:
            return cls()
        return cls(-(-sinks // BLOCK), -(-(window + MOST_NEW + BLOCK - 1) // BLOCK))

    def blocks(self, capacity: int) -> int:
        """Blocks to reserve for ``capacity`` positions."""
        needed = -(-capacity // BLOCK)
        return min(needed, self.sink_blocks + self.ring_blocks) if self.ring_blocks else needed

    def slots(self, positions: Tensor) -> Tensor:
        """Token places of absolute positions (int64, any shape)."""
        if not self.ring_blocks:
            return positions
        blocks = positions // BLOCK
        turned = self.sink_blocks + (blocks - self.sink_blocks) % self.ring_blocks
        return torch.where(blocks < self.sink_blocks, blocks, turned) * BLOCK + positions % BLOCK


def layout(
    dtype: str, batch: int, heads: int, head_dim: int, capacity: int, ring: Ring = Ring(), recent: int = RECENT
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor of one layer's cache, by name.

    Args:
        dtype: of `BITS`.
        batch, heads, head_dim, capacity: sizes.
        ring: where blocks stand.
        recent: newest tokens of a quantized cache that are no codes, whole blocks and at least `RECENT`: a step may
            write a block fewer of one sequence.

    Raises:
        ValueError: an unknown dtype, or a head size that a quantized cache cannot group.
    """
    if dtype not in _STORED:
        raise ValueError(f"a cache is one of {', '.join(_STORED)}, not {dtype!r}")
    blocks = ring.blocks(capacity)
    tokens = blocks * BLOCK
    stored = _STORED[dtype]
    if BITS[dtype] >= 16:
        shape = (batch, heads, tokens, head_dim)
        return {"keys": (shape, stored), "values": (shape, stored)}
    if head_dim % BLOCK:
        raise ValueError(f"a quantized cache needs heads of a multiple of {BLOCK} channels, not {head_dim}")
    packing = 2 if dtype == "int4" else 1
    key_scales = ((batch, heads, blocks, head_dim), torch.float16)
    value_scales = ((batch, heads, tokens, head_dim // BLOCK), torch.float16)
    newest = ((batch, heads, recent, head_dim), torch.float32)
    found = {
        "keys": ((batch, heads, blocks, head_dim, BLOCK // packing), stored),
        "values": ((batch, heads, tokens, head_dim // packing), stored),
        "key_scales": key_scales,
        "value_scales": value_scales,
    }
    if dtype == "int4":
        found |= {"key_mins": key_scales, "value_mins": value_scales}
    return found | {"recent_keys": newest, "recent_values": newest}


def visible(length: int, new: int, window: int | None, sinks: int) -> tuple[int, int]:
    """What the last ``new`` of ``length`` positions see together: [0, s) and [low, length) as (s, low)."""
    if window is None:
        return 0, 0
    low = max(0, length - new + 1 - window)
    return min(sinks, low), low


def quantized_after(start: int, new: int, recent: int = RECENT) -> int:
    """Complete blocks that are codes after ``new`` tokens were written behind ``start`` committed ones.

    A few tokens may still be taken back (speculative decoding), so they stay as they are; a long
    prompt's are final. ``recent`` is the cache's, see `layout`.
    """
    return start // BLOCK if new <= recent - BLOCK else (start + new) // BLOCK


def _rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype; what fp16 cannot reach is cut off at its largest number, as the compiled step does."""
    if dtype is torch.float16 and numbers.dtype is not torch.float16:
        most = torch.finfo(dtype).max
        numbers = numbers.clamp(-most, most)
    return numbers.to(dtype)


def _store_blocks(
    blocks: Tensor, places: Tensor, codes: Tensor, scales: Tensor, mins: Tensor | None, bits: int, keys: bool
) -> None:
    """Writes whole blocks (batch, heads, n, 32, head_dim) as codes to block places (n,)."""
    batch, heads, count, _, dim = blocks.shape
    if keys:
        packed, scale, low = encode(blocks.transpose(-1, -2).contiguous(), bits)
        codes[:, :, places] = packed
        scales[:, :, places] = scale
        if mins is not None and low is not None:
            mins[:, :, places] = low
        return
    grouped = blocks.reshape(batch, heads, count, BLOCK, dim // BLOCK, BLOCK)
    packed, scale, low = encode(grouped, bits)
    tokens = (places[:, None] * BLOCK + torch.arange(BLOCK, device=places.device)).reshape(-1)
    codes[:, :, tokens] = packed.reshape(batch, heads, count * BLOCK, -1)
    scales[:, :, tokens] = scale.reshape(batch, heads, count * BLOCK, -1)
    if mins is not None and low is not None:
        mins[:, :, tokens] = low.reshape(batch, heads, count * BLOCK, -1)


def _check_cache(
    operator: str, codes: Tensor, scales: Tensor | None, mins: Tensor | None, recent: Tensor | None, end: int,
    quantized: int, bits: int, keys: bool, sink_blocks: int, ring_blocks: int,
) -> dict[str, int]:  # fmt: skip
    """Sizes b, h, e of a cache whose parts fit each other and hold ``end`` positions.

    Raises:
        ValueError: they do not.
    """
    names = {b: n for n, b in BITS.items()}
    if bits not in names:
        raise ValueError(f"{operator}: a cache has {', '.join(map(str, names))} bits, not {bits}")
    gate.dtypes(operator, (_STORED[names[bits]],), codes=codes)
    gate.dtypes(operator, (torch.float16,), scales=scales, mins=mins)
    gate.dtypes(operator, (torch.float32,), recent=recent)
    plain = bits >= 16
    wanted = (scales is not None, mins is not None, recent is not None)
    if wanted != ((False,) * 3 if plain else (True, bits == 4, True)):
        raise ValueError(f"{operator}: a cache in {names[bits]} has other parts than these")
    if not 0 <= sink_blocks < 1 << 31 or not 0 <= ring_blocks < 1 << 31 or not 0 <= quantized < 1 << 31:
        raise ValueError(f"{operator}: blocks are counted from 0")
    if plain:
        found = gate.sizes(operator, codes=(codes, "b h t e"))
        blocks = found["t"] // BLOCK
    else:
        found = gate.sizes(operator, recent=(recent, "b h r e"))
        if found["r"] < RECENT or found["r"] % BLOCK:
            raise ValueError(f"{operator}: recent has {found['r']} tokens, not {RECENT} or more in blocks of {BLOCK}")
        packing = 2 if bits == 4 else 1
        known = found | {"p": found["e"] // packing, "g": found["e"] // BLOCK, "q": BLOCK // packing}
        shapes = ("b h n e q", "b h n e") if keys else ("b h t p", "b h t g")
        sized = gate.sizes(
            operator, known, codes=(codes, shapes[0]), scales=(scales, shapes[1]), mins=(mins, shapes[1]),
            recent=(recent, "b h r e"),
        )  # fmt: skip
        blocks = sized["n"] if keys else sized["t"] // BLOCK
        if found["e"] % BLOCK:
            raise ValueError(f"{operator}: a quantized cache has heads of a multiple of {BLOCK} channels")
    # A ring that the reserved blocks do not hold is one that positions never come round in.
    turns = ring_blocks and sink_blocks + ring_blocks <= blocks
    if not 0 <= end <= (1 << 40 if turns else blocks * BLOCK):
        raise ValueError(f"{operator}: position {end} is outside of a cache of {blocks * BLOCK}")
    return found


torch.library.define(
    "hasten::kv_append",
    "(Tensor(a!) codes, Tensor(b!)? scales, Tensor(c!)? mins, Tensor(d!)? recent, Tensor new, int start, "
    "int quantized, int bits, bool keys, int sink_blocks, int ring_blocks) -> ()",
)
torch.library.define(
    "hasten::kv_read",
    "(Tensor codes, Tensor? scales, Tensor? mins, Tensor? recent, int sinks, int low, int length, "
    "int quantized, int bits, bool keys, int sink_blocks, int ring_blocks) -> Tensor",
)


@torch.library.impl("hasten::kv_append", ("cpu", "cuda", "mps"))
def _append(
    codes: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    recent: Tensor | None,
    new: Tensor,
    start: int,
    quantized: int,
    bits: int,
    keys: bool,
    sink_blocks: int,
    ring_blocks: int,
) -> None:
    count = new.shape[2] if new.ndim == 4 else 0
    end = start + count
    found = _check_cache("kv_append", codes, scales, mins, recent, end, quantized, bits, keys, sink_blocks, ring_blocks)
    gate.dtypes("kv_append", gate.FLOATS, new=new)
    gate.sizes(
        "kv_append", {n: found[n] for n in "bhe"}, new=(new, "b h c e"), codes=(codes, " ".join("wxyzv"[: codes.ndim]))
    )
    if start < 0 or (recent is not None and not 0 <= start - quantized * BLOCK <= recent.shape[2]):
        raise ValueError(f"kv_append: {quantized} blocks of codes do not go with {start} positions")
    ring = Ring(sink_blocks, ring_blocks)
    positions = torch.arange(start, start + count, device=new.device)
    if recent is None:
        if ring_blocks and count > MOST_NEW:
            # Later positions of a long prompt take earlier ones' places: only the last holders are written.
            slots = ring.slots(positions)
            kept = _last_holders(slots)
            codes[:, :, slots[kept]] = _rounded(new[:, :, kept], codes.dtype)
        elif not ring_blocks:
            codes[:, :, start : start + count] = _rounded(new, codes.dtype)
        else:
            codes[:, :, ring.slots(positions)] = _rounded(new, codes.dtype)
        return
    assert scales is not None
    size = recent.shape[2]
    final = quantized_after(start, count, size)
    # What is to become codes: committed tokens in `recent`, and of a long prompt its own.
    first = quantized * BLOCK
    old = recent[:, :, torch.arange(first, start, device=new.device) % size]
    pending = torch.cat((old, new.float()), 2)
    ready = (final - quantized) * BLOCK
    if ready > 0:
        batch, heads, _, dim = new.shape
        blocks = pending[:, :, :ready].reshape(batch, heads, final - quantized, BLOCK, dim)
        numbers = torch.arange(quantized, final, device=new.device)
        places = ring.slots(numbers * BLOCK) // BLOCK
        kept = _last_holders(places)
        _store_blocks(blocks[:, :, kept], places[kept], codes, scales, mins, bits, keys)
    rest = torch.arange(first + max(ready, 0), start + count, device=new.device)
    recent[:, :, rest % size] = pending[:, :, max(ready, 0) :]


def _last_holders(places: Tensor) -> Tensor:
    """Indices of the last occurrence of each place, in order."""
    backwards = places.flip(0)
    seen: dict[int, int] = {}
    for index, place in enumerate(backwards.tolist()):
        seen.setdefault(place, len(places) - 1 - index)
    return torch.tensor(sorted(seen.values()), device=places.device)


@gate.register_fake("hasten::kv_append")
def _(
    codes: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    recent: Tensor | None,
    new: Tensor,
    start: int,
    quantized: int,
    bits: int,
    keys: bool,
    sink_blocks: int,
    ring_blocks: int,
) -> None:
    return None


def _parts(call: Call) -> list[Tensor]:
    """Codes, scales and mins of a cache, its int4 codes described by their logical shape."""
    codes = call["codes"]
    if call["bits"] == 4:
        call.recorder.describe(codes, (*codes.shape[:-1], 2 * codes.shape[-1]), "int4")
    return [codes, *(t for t in (call["scales"], call["mins"]) if t is not None)]


@register("hasten::kv_append")
def _(call: Call) -> None:
    new, recent = call["new"], call["recent"]
    ranks = (("b", new.shape[0]), ("h", new.shape[1]), ("t", new.shape[2]), ("e", new.shape[3]))
    names = [r for r, _ in ranks]
    codes, *scales = _parts(call)
    source = call.read(new, names)
    if recent is None:
        written = min(new.numel(), codes.numel())
        call.emit(Op.COPY, ranks, [source], codes, names, elements=written, map="copy")
        return
    written = min(new.numel(), call.recorder.elements_of(codes))
    call.emit(Op.ELEMENTWISE, ranks, [source], codes, names, elements=written, map="quantize")
    for part in scales:
        elements = min(-(-new.numel() // BLOCK), part.numel())
        call.emit(Op.ELEMENTWISE, ranks, [source], part, names, elements=elements, map="quantize-scale")
    call.emit(Op.COPY, ranks, [source], recent, names, elements=min(new.numel(), recent.numel()), map="copy")


@torch.library.impl("hasten::kv_read", ("cpu", "cuda", "mps"))
def _read(
    codes: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    recent: Tensor | None,
    sinks: int,
    low: int,
    length: int,
    quantized: int,
    bits: int,
    keys: bool,
    sink_blocks: int,
    ring_blocks: int,
) -> Tensor:
    _check_cache("kv_read", codes, scales, mins, recent, length, quantized, bits, keys, sink_blocks, ring_blocks)
    if not 0 <= sinks <= length or not 0 <= low <= length or (recent is not None and quantized * BLOCK > length):
        raise ValueError(f"kv_read: there are no positions 0 to {sinks} and {low} to {length}")
    ring = Ring(sink_blocks, ring_blocks)
    device = codes.device
    positions = torch.cat((torch.arange(sinks, device=device), torch.arange(low, length, device=device)))
    if recent is None:
        return codes[:, :, ring.slots(positions)].float()
    assert scales is not None
    edge = quantized * BLOCK
    old, fresh = positions[positions < edge], positions[positions >= edge]
    parts = []
    if len(old):
        slots = ring.slots(old)
        if keys:
            used, where = torch.unique(slots // BLOCK, return_inverse=True)
            low_values = None if mins is None else mins[:, :, used]
            wide = decode(codes[:, :, used], scales[:, :, used], low_values).transpose(-1, -2)
            parts.append(wide[:, :, where, slots % BLOCK])
        else:
            chosen = codes[:, :, slots]
            grouped = chosen.reshape(*chosen.shape[:3], scales.shape[-1], -1)
            low_values = None if mins is None else mins[:, :, slots]
            parts.append(decode(grouped, scales[:, :, slots], low_values).flatten(3))
    parts.append(recent[:, :, fresh % recent.shape[2]])
    return torch.cat(parts, 2)


gate.without_gradient("hasten::kv_read")


@gate.register_fake("hasten::kv_read")
def _(
    codes: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    recent: Tensor | None,
    sinks: int,
    low: int,
    length: int,
    quantized: int,
    bits: int,
    keys: bool,
    sink_blocks: int,
    ring_blocks: int,
) -> Tensor:
    if recent is not None:
        dim = recent.shape[-1]
    else:
        dim = codes.shape[-1]
    return codes.new_empty(codes.shape[0], codes.shape[1], sinks + length - low, dim, dtype=torch.float32)


@register("hasten::kv_read")
def _(call: Call) -> None:
    output, recent = call.outputs[0], call["recent"]
    ranks = tuple(zip("bhte", output.shape))
    names = [r for r, _ in ranks]
    parts = _parts(call)
    if recent is None:
        inputs = [call.read(parts[0], names, min(output.numel(), parts[0].numel()))]
        copied = parts[0].dtype == output.dtype
        call.emit(
            Op.COPY if copied else Op.ELEMENTWISE,
            ranks,
            inputs,
            output,
            names,
            map="copy" if copied else "cast",
        )
        return
    batch, heads, length, dim = output.shape
    fresh = min(length, call["length"] - BLOCK * call["quantized"])
    coded = length - max(fresh, 0)
    rows = batch * heads
    inputs = []
    if coded:
        inputs.append(call.read(parts[0], names, rows * coded * dim))
        inputs += [call.read(t, names, min(t.numel(), rows * -(-coded * dim // BLOCK))) for t in parts[1:]]
    if fresh > 0:
        inputs.append(call.read(recent, names, min(recent.numel(), rows * fresh * dim)))
    call.emit(Op.ELEMENTWISE, ranks, inputs, output, names, map="dequantize")

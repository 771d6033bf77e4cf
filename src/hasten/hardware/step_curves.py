"""Seconds of what a compiled step of a decoder does beside its products: attention, and threads that meet.

Both are timed where they happen, in steps of a decoder whose matrices are as small as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hasten.hardware.curve import Curve
from hasten.hardware.machine import cold_bytes
from hasten.hardware.timing import measured_curve, seconds
from hasten.kernels import gate, kv_cache
from hasten.kernels.compiled import FORMATS, native
from hasten.kernels.packed_linear import GROUP, native_matrix

# What a step may keep keys and values in, each timed; bf16 is read as fp16 is.
CACHES = ("fp32", "fp16", "int8", "int4")
# Channels of the smallest decoder, and tokens that it knows.
_WIDTH = 32
# How often the threads of a step wait for each other within a layer, of a cache that has no codes.
_MEETINGS = 9
_HEADS, _SHARED, _KEYS, _SIZES = (4,), (1, 4), (64, 512, 2048), (64, 128)
# Rows of one step: a token, drafts of it, and a piece of a prompt, which is attended from in tiles.
_ROWS = (1, 8, 64)
# Layers at most whose attention is timed as one.
_MOST_LAYERS = 64


class SmallStep:
    """Steps of one sequence by a compiled decoder that does hardly anything but attend.

    Args:
        heads, shared, size: heads of keys, query heads for each, channels of a head.
        cache: number format of keys and values.
        capacity: positions.
        layers: of the decoder.
        window: newest positions that a row attends to, itself included; 0 for all.
        memory: bytes to keep keys and values in; its own when None.

    Raises:
        ValueError: there is too little memory.
    """

    def __init__(
        self,
        heads: int,
        shared: int,
        size: int,
        cache: str,
        capacity: int,
        layers: int = 1,
        window: int = 0,
        memory: Tensor | None = None,
    ) -> None:
        module = native()
        assert module is not None
        self._layout = kv_cache.layout(cache, 1, heads, size, capacity)
        if memory is None:
            memory = torch.zeros(layers * cache_bytes(cache, heads, size, capacity), dtype=torch.uint8)
        self._kept = [memory]
        decoder = module.Decoder(_WIDTH, _WIDTH, heads * shared, heads, size, _WIDTH, capacity, size**-0.5)
        decoder.set_scales(1.0, 1.0, 1.0, 0.0, 0.0)
        norm = module.norm(self._vector(_WIDTH), 0, 1e-5, False)
        layer = module.Layer()
        layer.attention_norm = layer.feed_forward_norm = norm
        queries, keys = heads * shared * size, heads * size
        sizes = {
            "query": (queries, _WIDTH),
            "key": (keys, _WIDTH),
            "value": (keys, _WIDTH),
            "output": (_WIDTH, queries),
        }
        for name in ("gate", "up", "down"):
            sizes[name] = _WIDTH, _WIDTH
        for name, (out, columns) in sizes.items():
            setattr(layer, name, self._matrix(out, columns))
        layer.rotary, layer.window = -1, window
        for _ in range(layers):
            decoder.add_layer(layer)
        decoder.set_ends(self._matrix(_WIDTH, _WIDTH), self._matrix(_WIDTH, _WIDTH), norm)
        blocks = -(-capacity // kv_cache.BLOCK)
        each = cache_bytes(cache, heads, size, capacity)
        places = [[*self._cache(memory[i * each : (i + 1) * each]), blocks, 0, 0, 0, 0] for i in range(layers)]
        decoder.set_cache(FORMATS[cache], 1, kv_cache.BLOCK, kv_cache.RECENT, 0, 0, places, 0)
        self._decoder = decoder
        self._codes = FORMATS[cache] < FORMATS["bf16"]

    def step(self, rows: int, before: int) -> Callable[[], object]:
        """A call that runs one step of so many rows behind ``before`` positions, again and again the same one."""
        ids = torch.zeros(rows, dtype=torch.int64)
        at = torch.arange(before, before + rows)
        last = torch.tensor([rows - 1])
        # All blocks that can be codes are.
        length, coded = torch.tensor([before]), torch.tensor([before // kv_cache.BLOCK if self._codes else 0])
        logits = gate.buffer(1, _WIDTH)
        many = [gate.address(t, torch.int64, rows) for t in (ids, ids, at, at)]
        one = [gate.address(t, torch.int64, 1) for t in (last, length, coded)]
        place, threads = gate.address(logits, torch.float32, 1, _WIDTH), torch.get_num_threads()
        kept = ids, at, last, length, coded, logits

        def call() -> object:
            self._decoder.step(*many, rows, one[0], 1, *one[1:], place, threads, 0, 0, 0)
            return kept

        return call

    def _cache(self, memory: Tensor) -> list[int]:
        """Addresses of a layer's buffers, as a decoder is given them, in these bytes."""
        made, begin = {}, 0
        for name, (shape, kind) in self._layout.items():
            part = memory[begin : begin + math.prod(shape) * kind.itemsize]
            made[name] = part.view(kind).view(shape)
            begin += gate.whole_lines(part.nbytes)
        return [gate.address(made[n], made[n].dtype, *made[n].shape) if n in made else 0 for n in kv_cache.BUFFERS]

    def _vector(self, count: int) -> int:
        made = torch.ones(count)
        self._kept.append(made)
        return gate.address(made, torch.float32, count)

    def _matrix(self, out: int, columns: int) -> object:
        made = torch.zeros(out, columns)
        self._kept.append(made)
        return native_matrix(made, None, None, FORMATS["fp32"], GROUP)


def cache_bytes(cache: str, heads: int, size: int, capacity: int) -> int:
    """Bytes of a layer's keys and values, each buffer in whole lines of memory."""
    found = kv_cache.layout(cache, 1, heads, size, capacity).values()
    return sum(gate.whole_lines(math.prod(shape) * kind.itemsize) for shape, kind in found)


def step_curves() -> list[Curve]:
    """``step attention`` of each format of keys and values, and ``step meeting``: threads that wait for each other.

    Attention is what a step takes longer than one in which each row attends to itself alone; its keys are those that a
    row attends to on average. A single row's come from main memory, as where weights are read between one layer's and
    the same layer's again; a prompt's rows share theirs.
    """
    module = native()
    if module is None or module.isa() == "generic":
        return []
    few, many = (seconds(SmallStep(1, 1, 32, "fp32", 64, layers=n).step(1, 0)) for n in (1, 9))
    meeting = max((many - few) / 8 / _MEETINGS, 1e-9)
    found = [measured_curve("step meeting", {"m": (1,)}, lambda _: meeting)]
    # Bytes that are ordinary numbers in every format, and memory that is really there.
    memory = torch.full((cold_bytes(),), 0x3C, dtype=torch.uint8)
    for cache in CACHES:
        rows = _ROWS if cache == "fp32" else _ROWS[:1]
        axes = {"heads": _HEADS, "shared": _SHARED, "queries": rows, "keys": _KEYS, "size": _SIZES}

        def attention(heads: int, shared: int, n: int, keys: int, size: int, cache: str = cache) -> float:
            return _attention(cache, heads, shared, size, n, keys, memory)

        found.append(measured_curve("step attention", axes, attention, cache))
    return found


def _attention(cache: str, heads: int, shared: int, size: int, rows: int, keys: int, memory: Tensor) -> float:
    """Seconds of a layer's attention of so many rows to so many keys."""
    before = max(0, keys - (rows + 1) // 2)
    capacity = before + rows
    layers = 1
    if rows == 1:
        layers = max(1, min(_MOST_LAYERS, len(memory) // cache_bytes(cache, heads, size, capacity)))
    whole, alone = (
        seconds(SmallStep(heads, shared, size, cache, capacity, layers, window, memory).step(rows, before), 0.003)
        for window in (0, 1)
    )
    return max(whole - alone, 0.1 * whole) / layers

"""What files of tensors that are read in parts have in common: where each lies, and a rate that reads are held to."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from hasten.files import parse_json

_MOST_HEADER = 1 << 26  # bytes


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a safetensors file: its format as the file names it, its shape, first byte and number of bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def tensor_places(file: int) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    """Tensors by name, and the metadata, of an open safetensors file.

    Args:
        file: descriptor.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none, or cut short.
    """
    end = os.fstat(file).st_size
    size = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < size <= min(end, _MOST_HEADER):
        raise ValueError("no header")
    header = parse_json(os.pread(file, size, 8))
    metadata = header.pop("__metadata__")
    places = {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        if not 0 <= begin <= stop or 8 + size + stop > end:
            raise ValueError("it ends too early")
        places[name] = TensorPlace(
            str(entry["dtype"]), tuple(int(s) for s in entry["shape"]), 8 + size + begin, stop - begin
        )
    return places, dict(metadata)


class Throttle:
    """Holds reads to a rate, as one device would: they queue behind each other.

    Args:
        bandwidth: B/s; None for what the storage does.
    """

    def __init__(self, bandwidth: float | None) -> None:
        self.bandwidth = bandwidth
        self._lock = threading.Lock()
        self._free_at = 0.0

    def __str__(self) -> str:
        return f"held to {self.bandwidth / 1e9:g} GB/s" if self.bandwidth else "not held to a rate"

    def wait(self, begun: float, size: int) -> None:
        """Sleeps until a read of ``size`` bytes that began at ``begun`` (``time.perf_counter()``) may have ended."""
        if not self.bandwidth:
            return
        with self._lock:
            self._free_at = max(self._free_at, begun) + size / self.bandwidth
            until = self._free_at
        time.sleep(max(0.0, until - time.perf_counter()))

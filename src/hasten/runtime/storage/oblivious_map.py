"""A dictionary whose page accesses tell nothing of keys, operations or values: BOLT's map (arXiv 2509.01742).

Trust: whoever watches sees every page that is read or written, when, and its sealed bytes, and may change them. This
process' own memory stands for the fast memory of an accelerator or an enclave, whose accesses nobody sees: the position
map, what waits for its page, the trusted bins and the key lie there. How long the trusted half takes is not hidden.

An access touches 0, 1 or 2 pages with the probabilities t^2, 2 t (1 - t), (1 - t)^2, where t is the share of bins in
trusted memory, whatever is asked for: see `hasten.kernels.oblivious_bins`.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.kernels.oblivious_bins import FULL, GET, IDLE, OVERFLOW, READING, WORDS, Bins, items_of, oblivious_bins
from hasten.runtime.storage.sealed_map import Items, SealedMap, sized_items
from hasten.runtime.storage.sealed_pages import FilePages, SealedPages, StoreMaker

LEAST_BOUND = 1 << 12
"""Maps of fewer items have the bounds of one of so many: what is improbable among many items happens among few."""
_AHEAD = 1024  # accesses whose random bytes are drawn at once


@dataclass(frozen=True)
class MapBounds:
    """Sizes of an oblivious map, and the bounds that hold with high probability.

    Args:
        capacity: items, N.
        per_bin: items of a bin on average, c.
        trusted: share of bins in trusted memory, alpha.

    Raises:
        ValueError: ``per_bin`` is not between 1 and 256, or ``trusted`` not between 0 and 1.
    """

    capacity: int
    per_bin: int = 8
    trusted: float = 0.2

    def __post_init__(self) -> None:
        if not 1 <= self.per_bin <= 256:
            raise ValueError(f"bins have between 1 and 256 items on average, not {self.per_bin}")
        if not 0 <= self.trusted <= 1:
            raise ValueError(f"the share of trusted bins is between 0 and 1, not {self.trusted}")

    @property
    def bins(self) -> int:
        return max(2, -(-self.capacity // self.per_bin))

    @property
    def trusted_bins(self) -> int:
        """K."""
        return round(self.trusted * self.bins)

    @property
    def pages(self) -> int:
        """H, bins in host memory."""
        return self.bins - self.trusted_bins

    @property
    def _log(self) -> float:
        return math.log(max(self.capacity, LEAST_BOUND))

    @property
    def bin_load(self) -> float:
        """Of the fullest bin: c + log2 log2 N + 1, as an item goes to the emptier one of two bins."""
        return self.per_bin + math.log2(self._log / math.log(2)) + 1

    @property
    def slots(self) -> int:
        """Items of a page at most."""
        return int(self.bin_load)

    @property
    def trusted_items(self) -> float:
        """In trusted bins: K c + l sqrt(K ln N), l being the bound of a bin."""
        return self.trusted_bins * self.per_bin + self.bin_load * math.sqrt(self.trusted_bins * self._log)

    @property
    def buffered_items(self) -> float:
        """That wait for their page: (1 + alpha) H / 2 + l sqrt(H ln N)."""
        return (1 + self.trusted) * self.pages / 2 + self.bin_load * math.sqrt(self.pages * self._log)

    def pages_touched(self) -> float:
        """By an access, on average: 2 (1 - alpha)."""
        share = self.pages / self.bins
        return 2 * share

    def make(self, value_bytes: int, seed: bytes, *, plain: bool = False) -> Bins:
        """An empty trusted half of these sizes, whose bounds are enforced."""
        return oblivious_bins(
            self.capacity, self.bins, self.trusted_bins, self.slots, int(self.trusted_items), int(self.buffered_items),
            value_bytes, seed=seed, plain=plain,
        )  # fmt: skip


@dataclass(frozen=True)
class BoundSeen:
    """A bound, the most that was seen of it, and what is there now."""

    bound: float
    most: int
    now: int


class ObliviousMap(SealedMap):
    """A `MutableMapping` from whole numbers to bytes whose pages, in host memory, are sealed and touched obliviously.

    Every call that names a key is one access, a missing key and a full map too. What an access learns from the watched
    memory is checked before anything is changed: one that fails, by a page that was tampered with or a store that
    cannot be read, changes nothing, and is made again by the next one with the same two pages (an observer sees that
    it is repeated, and no more). Pages that could not be written are kept, and written first.

    Args:
        items: what it begins with, laid into its pages in one pass.
        capacity: items at most; as many as ``items`` when None.
        value_bytes: of the longest value; that of ``items`` when None.
        per_bin, trusted: see `MapBounds`.
        pages: a path, where a file is made that is there as long as the map; what makes another store of (pages, bytes
            of a page); this process' memory when None.
        entropy: gives so many random bytes: the system's, unless something is to be repeated.
        plain: take the plain version of the trusted half.

    Raises:
        HastenError: ``items`` are too many, the store cannot be made, or ``cryptography`` is missing.
        TypeError, ValueError: keys, values or sizes of another kind.

    >>> table = ObliviousMap({1: b"one", 2: b"two"}, capacity=100, value_bytes=8)
    >>> table[3] = b"three"
    >>> table[1], table.pop(2), sorted(table)
    (b'one', b'two', [1, 3])
    """

    def __init__(
        self,
        items: Items = (),
        *,
        capacity: int | None = None,
        value_bytes: int | None = None,
        per_bin: int = 8,
        trusted: float = 0.2,
        pages: StoreMaker | str | Path | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        plain: bool = False,
    ) -> None:
        held, size = sized_items(items, capacity)
        width = max((len(v) for v in held.values()), default=0) if value_bytes is None else value_bytes
        super().__init__(size, width)
        given = self._given(held)
        keys = np.fromiter(given, np.uint64, len(given))
        lengths = np.fromiter(map(len, given.values()), np.uint32, len(given))
        values = b"".join(v.ljust(width, b"\0") for v in given.values())
        self._begin((keys, lengths, values), MapBounds(self.capacity, per_bin, trusted), pages, entropy, plain)

    @classmethod
    def of_rows(
        cls,
        rows: NDArray[np.uint8],
        *,
        per_bin: int = 8,
        trusted: float = 0.2,
        pages: StoreMaker | str | Path | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> ObliviousMap:
        """A full map from 0, 1, ... to the rows of a table, without a Python object for each.

        Args:
            rows: (items, bytes of a value) uint8.
            per_bin, trusted, pages, entropy: as for the class.
        """
        if rows.ndim != 2 or rows.dtype != np.uint8 or not len(rows):
            raise ValueError(f"rows are a table (items, bytes) of uint8, not {rows.shape} {rows.dtype}")
        made = cls.__new__(cls)
        SealedMap.__init__(made, len(rows), rows.shape[1])
        keys = np.arange(len(rows), dtype=np.uint64)
        lengths = np.full(len(rows), rows.shape[1], np.uint32)
        made._begin((keys, lengths, rows.tobytes()), MapBounds(len(rows), per_bin, trusted), pages, entropy, False)
        return made

    def _begin(
        self,
        given: tuple[NDArray[np.uint64], NDArray[np.uint32], bytes],
        bounds: MapBounds,
        pages: StoreMaker | str | Path | None,
        entropy: Callable[[int], bytes],
        plain: bool,
    ) -> None:
        self.bounds, self._entropy, self._plain = bounds, entropy, plain
        self._words, self._at_word = b"", 0
        keys, lengths, values = given
        try:
            self._build(keys, lengths, values)
        except MemoryError:
            raise HastenError(f"there is no memory for a map of {self.capacity:,} items: take a smaller one") from None
        store = functools.partial(FilePages, pages) if isinstance(pages, str | Path) else pages
        self._pages = SealedPages(self._bins.pages, self._bins.page_bytes, store)
        for page in range(self._bins.pages):
            self._pages.write(page, self._bins.initial(page))
        self._bins.built()

    def _build(self, keys: NDArray[np.uint64], lengths: NDArray[np.uint32], values: bytes) -> None:
        """The trusted half with these items placed, whose pages are not written yet."""
        bounds, entropy = self.bounds, self._entropy
        for _ in range(8):  # one chance in thousands that a bound is passed: other bins are drawn then
            self._bins = bounds.make(self.value_bytes, entropy(16), plain=self._plain)
            try:
                self._bins.build(keys.tobytes(), lengths.tobytes(), values, entropy(16 * len(keys)))
                break
            except OverflowError:
                continue
        else:
            raise HastenError(f"{len(keys):,} items fit in no {bounds.bins:,} bins: give the map a larger capacity")

    def __len__(self) -> int:
        return self._bins.count

    @property
    def host(self) -> SealedPages:
        """The sealed pages."""
        return self._pages

    def _drawn(self) -> tuple[bytes, int]:
        """Random bytes for an access, and where they begin."""
        self._at_word += WORDS
        if self._at_word >= len(self._words):
            self._words, self._at_word = self._entropy(_AHEAD * WORDS), 0
        return self._words, self._at_word

    def _access(self, key: int, operation: int, value: bytes | None) -> bytes | None:
        bins, pages = self._bins, self._pages
        if bins.phase != IDLE:
            self._complete()
        touched = bins.begin(key, *self._drawn())
        contents = [pages.read(page) for page in touched]
        status, found, written = bins.finish(operation, value, *contents, *_NONE[len(contents) :])
        if status == OVERFLOW:
            raise HastenError("the map would pass one of its bounds: try again, which draws other bins (counted)")
        if written:
            for page, content in zip(touched, written):
                pages.write(page, content)
            bins.written()
        if status == FULL:
            raise self._full()
        return found

    def _complete(self) -> None:
        """Ends an access that failed: reads its pages again, or writes what it had to write."""
        bins, pages = self._bins, self._pages
        if bins.phase == READING:
            touched = bins.resume(*self._drawn())
            contents = [pages.read(page) for page in touched]
            if bins.finish(GET, None, *contents, *_NONE[len(contents) :])[0] == OVERFLOW:
                raise HastenError("the map would pass one of its bounds: try again, which draws other bins (counted)")
        if bins.phase != IDLE:
            for page, content in zip(bins.touched(), bins.outgoing(), strict=True):
                pages.write(page, content)
            bins.written()

    def _keys(self) -> list[int]:
        return self._bins.keys()

    def _parts(self) -> int:
        return self._bins.pages + 1

    def _part(self, number: int) -> list[tuple[int, bytes]]:
        if self._bins.phase != IDLE:
            self._complete()
        if number == self._bins.pages:
            return self._bins.kept()
        return items_of(self._pages.read(number), self.value_bytes)

    def copy(self) -> ObliviousMap:
        """The same items in a map of its own, with another key, in this process' memory."""
        return ObliviousMap(
            self.scan(), capacity=self.capacity, value_bytes=self.value_bytes, per_bin=self.bounds.per_bin,
            trusted=self.bounds.trusted, entropy=self._entropy, plain=self._plain,
        )  # fmt: skip

    def bounds_seen(self) -> dict[str, BoundSeen]:
        """The bounds that are enforced, the most that was seen of each since the map was made, and what is there now.

        ``together`` is what trusted memory needs room for: items in trusted bins and items that wait.
        """
        return bounds_seen(self.bounds, self._bins)

    @property
    def failures(self) -> int:
        """Accesses that would have passed a bound."""
        return self._bins.statistics()["failures"]

    def memory(self) -> dict[str, int]:
        """Bytes: of each part of trusted memory, and of the host's pages (``host``)."""
        sealings = 8 * len(self._pages)
        return self._bins.memory() | {"sealings": sealings, "host": len(self._pages) * self._pages.sealed_bytes}


_NONE = (b"", b"")


def bounds_seen(bounds: MapBounds, bins: Bins) -> dict[str, BoundSeen]:
    """As `ObliviousMap.bounds_seen`, of a trusted half without its pages."""
    seen = bins.statistics()
    together = bounds.trusted_items + bounds.buffered_items
    return {
        "bin": BoundSeen(bounds.bin_load, seen["peak_load"], seen["fullest_bin"]),
        "trusted": BoundSeen(bounds.trusted_items, seen["peak_trusted"], seen["trusted"]),
        "buffered": BoundSeen(bounds.buffered_items, seen["peak_buffered"], seen["buffered"]),
        "together": BoundSeen(together, seen["peak_together"], seen["trusted"] + seen["buffered"]),
    }


def exercised(bounds: MapBounds, bins: Bins, accesses: int, seed: int) -> Bins:
    """A trusted half that is filled with ``bounds.capacity`` items without values, and accessed so often at random.

    Its pages are kept unsealed beside it: what the bounds depend on, and nothing else, at a million accesses a second
    and more where it is compiled.

    Args:
        bounds: sizes; ``bins`` may have others, to see what happens then.
        bins: empty, of values of no bytes; or one that was exercised, which goes on.
        accesses: one random key each.
        seed: of bins and keys.
    """
    drawn = np.random.default_rng(seed)
    if not bins.count:
        n = bounds.capacity
        bins.build(np.arange(n, dtype=np.uint64).tobytes(), bytes(4 * n), b"", drawn.bytes(16 * n))
        for page in range(bins.pages):
            bins.give(page, bins.initial(page))
        bins.built()
    step = 1 << 16
    for done in itertools.count(0, step):
        if done >= accesses:
            return bins
        bins.exercise(drawn.bytes((WORDS + 8) * min(step, accesses - done)))
    raise AssertionError

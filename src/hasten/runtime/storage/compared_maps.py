"""What an oblivious map is compared with, over the same sealed pages: Path ORAM, a linear scan, and tables that leak.

They are baselines in plain Python: a page that cannot be written may lose them items, where `ObliviousMap` keeps it.
"""

from __future__ import annotations

import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from hasten.errors import HastenError
from hasten.kernels.oblivious_bins import DELETE, HEAD, PUT, PUT_ABSENT, items_of, slot_of
from hasten.runtime.storage.sealed_map import Items, SealedMap, sized_items
from hasten.runtime.storage.sealed_pages import RecordedPages, SealedPages, StoreMaker


class _Paged(SealedMap):
    """A map over sealed pages of ``slots`` items, in plain Python."""

    def __init__(
        self, items: Items, capacity: int | None, value_bytes: int | None, pages: int, slots: int,
        store: StoreMaker | None,
    ) -> None:  # fmt: skip
        given = dict(items)
        width = max((len(v) for v in given.values()), default=0) if value_bytes is None else value_bytes
        super().__init__(max(1, len(given)) if capacity is None else capacity, width)
        self._slots = slots
        self._pages = SealedPages(pages, slots * (HEAD + width), store)

    @property
    def host(self) -> SealedPages:
        """The sealed pages."""
        return self._pages

    def _opened(self, page: int) -> list[tuple[int, bytes]]:
        return items_of(self._pages.read(page), self.value_bytes)

    def _seal(self, page: int, items: Iterable[tuple[int, bytes]]) -> None:
        laid = b"".join(slot_of(key, value, self.value_bytes) for key, value in items)
        self._pages.write(page, laid.ljust(self._pages.page_bytes, b"\0"))

    def _parts(self) -> int:
        return len(self._pages)

    def _part(self, number: int) -> list[tuple[int, bytes]]:
        return self._opened(number)

    def copy(self) -> _Paged:
        return type(self)(self.scan(), capacity=self.capacity, value_bytes=self.value_bytes)  # type: ignore[call-arg]


class PathORAM(_Paged):
    """Path ORAM (Stefanov et al., CCS 2013), not recursive: its position map lies in trusted memory, as its stash does.

    A binary tree of buckets of four items; an access reads the path to the leaf that the key was last given, gives it
    another, and writes the same path with what of path and stash fits, as deep as it can.

    Args:
        items, capacity, value_bytes: as for `ObliviousMap`.
        bucket: items of a bucket, Z.
        stash: items at most beside the tree between accesses.
        pages: makes the store of the buckets, one a page.
        entropy: gives so many random bytes.

    Raises:
        HastenError: as `ObliviousMap`; by an access: the stash is full.
    """

    def __init__(
        self,
        items: Items = (),
        *,
        capacity: int | None = None,
        value_bytes: int | None = None,
        bucket: int = 4,
        stash: int = 1000,
        pages: StoreMaker | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        given, size = sized_items(items, capacity)
        self.depth = max(1, (size - 1).bit_length())
        super().__init__(given, capacity, value_bytes, (2 << self.depth) - 1, bucket, pages)
        given = self._given(given)
        self._entropy, self._stash_most = entropy, stash
        self._leaves: dict[int, int] = {}
        self._stash: dict[int, bytes] = {}
        self.peak_stash = 0
        filled: dict[int, list[tuple[int, bytes]]] = {}
        for key, value in given.items():
            self._leaves[key] = leaf = self._leaf()
            for page in reversed(self._path(leaf)):
                if len(filled.setdefault(page, [])) < bucket:
                    filled[page].append((key, value))
                    break
            else:
                self._stash[key] = value
        for page in range(len(self._pages)):
            self._seal(page, filled.get(page, ()))

    def _leaf(self) -> int:
        return int.from_bytes(self._entropy(8), "little") & ((1 << self.depth) - 1)

    def _path(self, leaf: int) -> list[int]:
        """Pages from the root to a leaf."""
        node = leaf + (1 << self.depth)
        return [(node >> (self.depth - level)) - 1 for level in range(self.depth + 1)]

    def __len__(self) -> int:
        return len(self._leaves)

    def _keys(self) -> list[int]:
        return list(self._leaves)

    def _parts(self) -> int:
        return len(self._pages) + 1

    def _part(self, number: int) -> list[tuple[int, bytes]]:
        if number < len(self._pages):
            return [(k, v) for k, v in self._opened(number) if k not in self._stash]
        return list(self._stash.items())

    def _access(self, key: int, operation: int, value: bytes | None) -> bytes | None:
        known = key in self._leaves
        leaf = self._leaves[key] if known else self._leaf()
        path = self._path(leaf)
        opened = [self._opened(page) for page in path]  # before anything changes
        for items in opened:
            self._stash.update((k, v) for k, v in items if k not in self._stash)
        found = self._stash.get(key)
        full = not known and operation in (PUT, PUT_ABSENT) and len(self) == self.capacity
        if operation == DELETE:
            self._leaves.pop(key, None)
            self._stash.pop(key, None)
        elif known or (operation in (PUT, PUT_ABSENT) and not full):
            self._leaves[key] = self._leaf()
            if value is not None and (operation == PUT or found is None):
                self._stash[key] = value
        levels: list[list[int]] = [[] for _ in path]
        for k in self._stash:
            levels[self.depth - (leaf ^ self._leaves[k]).bit_length()].append(k)
        carried: list[int] = []
        for level in range(self.depth, -1, -1):
            carried += levels[level]
            here, carried = carried[: self._slots], carried[self._slots :]
            self._seal(path[level], [(k, self._stash[k]) for k in here])
            for k in here:
                del self._stash[k]
        self.peak_stash = max(self.peak_stash, len(self._stash))
        if len(self._stash) > self._stash_most:
            raise HastenError(f"Path ORAM's stash holds more than {self._stash_most} items: give it more room")
        if full:
            raise self._full()
        return found


class _Laid(_Paged):
    """Items page after page as they are given; ``_where`` has the page of each key."""

    def __init__(
        self, items: Items, capacity: int | None, value_bytes: int | None, slots: int, store: StoreMaker | None
    ) -> None:
        given, size = sized_items(items, capacity)
        super().__init__(given, capacity, value_bytes, -(-size // slots), slots, store)
        laid = list(self._given(given).items())
        self._where = {k: i // slots for i, (k, _) in enumerate(laid)}
        for page in range(len(self._pages)):
            self._seal(page, laid[page * slots : (page + 1) * slots])

    def __len__(self) -> int:
        return len(self._where)

    def _keys(self) -> list[int]:
        return list(self._where)


class LinearScan(_Laid):
    """Reads and writes every page at every access: oblivious without randomness, and slow.

    Args:
        items, capacity, value_bytes, pages: as for `PathORAM`.
        slots: items of a page.
    """

    def __init__(
        self,
        items: Items = (),
        *,
        capacity: int | None = None,
        value_bytes: int | None = None,
        slots: int = 64,
        pages: StoreMaker | None = None,
    ) -> None:
        super().__init__(items, capacity, value_bytes, slots, pages)

    def _access(self, key: int, operation: int, value: bytes | None) -> bytes | None:
        putting = operation in (PUT, PUT_ABSENT)
        known = key in self._where
        full = putting and not known and len(self) == self.capacity
        found, placed, home = None, known or full or not putting, 0
        for page in range(len(self._pages)):
            items = dict(self._opened(page))
            if key in items:
                found = items[key]
                if operation == DELETE:
                    del items[key]
                elif operation == PUT and value is not None:
                    items[key] = value
            elif not placed and len(items) < self._slots and value is not None:
                items[key] = value
                placed, home = True, page
            self._seal(page, items.items())
        if operation == DELETE:
            self._where.pop(key, None)
        elif putting and not full:
            self._where.setdefault(key, home)
        if full:
            raise self._full()
        return found


class SealedTable(_Laid):
    """A table whose items stay where they are: an access reads the item's page, and writes it where it changed.

    Sealed, and still its accesses tell which items are asked for, how often, and whether they change: the plain table
    that obliviousness is paid for beside, and the one that a leakage test must find out.

    Args:
        items, capacity, value_bytes, pages: as for `PathORAM`.
        slots: items of a page.
        cached: pages that are kept open in trusted memory, the least recently used one making room; 0 for none.
    """

    def __init__(
        self,
        items: Items = (),
        *,
        capacity: int | None = None,
        value_bytes: int | None = None,
        slots: int = 8,
        cached: int = 0,
        pages: StoreMaker | None = None,
    ) -> None:
        super().__init__(items, capacity, value_bytes, slots, pages)
        self._free = [i // slots for i in range(len(self._pages) * slots - 1, len(self) - 1, -1)]
        self._cached = cached
        self._cache: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._dirty: set[int] = set()

    def _part(self, number: int) -> list[tuple[int, bytes]]:
        return list(self._cache[number].items()) if number in self._cache else self._opened(number)

    def _items(self, page: int) -> dict[int, bytes]:
        if page not in self._cache:
            if len(self._cache) >= max(1, self._cached):
                oldest = next(iter(self._cache))
                if oldest in self._dirty:
                    self._seal(oldest, self._cache[oldest].items())
                    self._dirty.remove(oldest)
                del self._cache[oldest]
            self._cache[page] = dict(self._opened(page))
        self._cache.move_to_end(page)
        return self._cache[page]

    def _access(self, key: int, operation: int, value: bytes | None) -> bytes | None:
        putting, known = operation in (PUT, PUT_ABSENT), key in self._where
        if not known and not putting:
            return None
        if not known and len(self) == self.capacity:
            raise self._full()
        page = self._where[key] if known else self._free[-1]
        items = self._items(page)
        found = items.get(key)
        if not known:
            self._where[key] = self._free.pop()
        if operation == DELETE:
            del items[key], self._where[key]
            self._free.append(page)
        elif value is not None and (operation == PUT or not known):
            items[key] = value
        if operation in (DELETE, PUT) or not known:
            self._dirty.add(page)
        if not self._cached:  # nothing stays open
            if page in self._dirty:
                self._seal(page, items.items())
                self._dirty.remove(page)
            del self._cache[page]
        return found


def access_seconds(table: Mapping[int, bytes], keys: int, accesses: int, seed: int = 0) -> float:
    """Seconds of this thread that a look-up takes: the least mean of four parts.

    Args:
        table: of keys 0 to ``keys`` - 1.
        keys: that are drawn from, at random.
        accesses: in all.
        seed: of the keys.
    """
    drawn = random.Random(seed)
    times = []
    for _ in range(4):
        asked = [drawn.randrange(keys) for _ in range(max(1, accesses // 4))]
        begun = time.thread_time()
        for key in asked:
            table[key]
        times.append((time.thread_time() - begun) / len(asked))
    return min(times)


def moved_bytes(table: Mapping[int, bytes], store: RecordedPages, keys: int, accesses: int, seed: int = 0) -> float:
    """Bytes that a look-up of a random key reads and writes in a recorded store.

    Args:
        table: of keys 0 to ``keys`` - 1, over ``store``.
        store: forgets what it has recorded before.
        keys, accesses, seed: as for `access_seconds`.
    """
    drawn = random.Random(seed)
    store.forget()
    for _ in range(accesses):
        table[drawn.randrange(keys)]
    return store.moved / accesses

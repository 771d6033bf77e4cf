"""The trusted half of an oblivious map: which key is where, and what an access makes of the pages it was given.

Items lie in bins. A share of the bins is trusted memory, which nobody watches; the others are pages of host memory,
one each, whose addresses are seen and whose contents are sealed elsewhere. Every key has a pair of two different bins,
drawn at random, and is in one of them, or waits in trusted memory for its page. An access of any kind

- touches those of the pair that are pages, both of them, whichever holds the key (a missing key: of a fresh pair);
- lays into each page all that waits for it, so that what waits is never written where an observer looks for it;
- gives the key a fresh pair, and lets it wait for the bin of the two that has less in it and waiting for it.

So pages are touched by pairs that are independent and uniform, whatever keys and operations were (BOLT, arXiv
2509.01742). Bounds on the fullest bin, on items in trusted bins and on items that wait hold with high probability; an
access that would pass one changes nothing, is counted, and is repeated with other random bins.

Random words are given by the caller, so that the compiled and the plain version are the same bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from hasten.kernels.compiled import native

GET, PUT, PUT_ABSENT, DELETE = range(4)
"""Operations of an access."""
IDLE, READING, WRITING = range(3)
"""Where an access stands: none is under way; it waits for pages; its pages wait to be written."""
DONE, FULL, OVERFLOW = range(3)
"""How an access ended: done; done but for a new key, which there is no room for; not at all, for a bound."""
HEAD = 12
"""Bytes of a slot before its value: a key of 8, and the value's length plus one of 4; 0 says that it is free."""
WORDS = 32
"""Random bytes of an access; `exercise` takes 8 more, which choose the key."""


class Bins(Protocol):
    """What `oblivious_bins` makes.

    ``build``, ``initial`` for each page, ``built``; then accesses: ``begin`` gives the pages to read, ``finish`` takes
    their contents and gives those to write, ``written`` says that they are. An access that failed between ``begin`` and
    ``finish`` is begun again by ``resume``; one that was not written is asked for by ``touched`` and ``outgoing``.
    """

    @property
    def pages(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def phase(self) -> int: ...
    def build(self, keys: bytes, lengths: bytes, values: bytes, words: bytes) -> None: ...
    def initial(self, page: int) -> bytes: ...
    def built(self) -> None: ...
    def begin(self, key: int, words: bytes, offset: int) -> Sequence[int]: ...
    def resume(self, words: bytes, offset: int) -> Sequence[int]: ...
    def finish(
        self, operation: int, value: bytes | None, first: bytes, second: bytes
    ) -> tuple[int, bytes | None, Sequence[bytes]]: ...
    def outgoing(self) -> Sequence[bytes]: ...
    def touched(self) -> Sequence[int]: ...
    def written(self) -> None: ...
    def exercise(self, words: bytes) -> None: ...
    def give(self, page: int, contents: bytes) -> None: ...
    def held(self, page: int) -> bytes: ...
    def keys(self) -> list[int]: ...
    def kept(self) -> list[tuple[int, bytes]]: ...
    def statistics(self) -> dict[str, int]: ...
    def memory(self) -> dict[str, int]: ...


def oblivious_bins(
    capacity: int, bins: int, trusted: int, slots: int, trusted_most: int, buffer_most: int, value_bytes: int,
    *, seed: bytes, choices: int = 2, plain: bool = False,
) -> Bins:  # fmt: skip
    """An empty map's trusted half: compiled where that is installed.

    Args:
        capacity: items at most.
        bins: how many, 2 at least; the first ``trusted`` of them in trusted memory, a page each for the others.
        slots: items of a bin at most.
        trusted_most, buffer_most: items in trusted bins, and items that wait, at most.
        value_bytes: of the longest value.
        seed: 16 secret bytes of the position map's hash.
        choices: 2; with 1 an item goes to the first bin of its pair, to show what the second is for.
        plain: take the plain version.

    Raises:
        ValueError: a number is out of range.
    """
    module = None if plain else native()
    made = (capacity, bins, trusted, slots, trusted_most, buffer_most, value_bytes, choices, seed)
    return PlainBins(*made) if module is None else module.ObliviousBins(*made)


def slot_of(key: int, value: bytes, value_bytes: int) -> bytes:
    """One item as it lies in a page."""
    head = key.to_bytes(8, "little") + (len(value) + 1).to_bytes(4, "little")
    return (head + value).ljust(HEAD + value_bytes, b"\0")


def items_of(page: bytes, value_bytes: int) -> list[tuple[int, bytes]]:
    """Keys and values of a page; empty slots are left out."""
    found = []
    for at in range(0, len(page), HEAD + value_bytes):
        size = int.from_bytes(page[at + 8 : at + HEAD], "little")
        if size:
            found.append((int.from_bytes(page[at : at + 8], "little"), page[at + HEAD : at + HEAD + size - 1]))
    return found


class _Item:
    __slots__ = ("buffered", "key", "pair", "second", "value")

    def __init__(self, key: int, pair: tuple[int, int], second: bool, value: bytes | None, buffered: bool) -> None:
        self.key, self.pair, self.second, self.value, self.buffered = key, pair, second, value, buffered

    @property
    def bin(self) -> int:
        return self.pair[self.second]


class PlainBins:
    """`Bins` in plain Python: what the compiled ones are compared with."""

    def __init__(
        self, capacity: int, bins: int, trusted: int, slots: int, trusted_most: int, buffer_most: int,
        value_bytes: int, choices: int, seed: bytes,
    ) -> None:  # fmt: skip
        for value, least, most, what in (
            (capacity, 1, 1 << 30, "capacity"), (bins, 2, 1 << 30, "bins"), (trusted, 0, bins, "trusted bins"),
            (slots, 1, 4096, "slots of a page"), (trusted_most, 0, 1 << 30, "trusted items"),
            (buffer_most, 0, 1 << 30, "buffered items"), (value_bytes, 0, 1 << 24, "bytes of a value"),
            (choices, 1, 2, "choices"),
        ):  # fmt: skip
            if not least <= value <= most:
                raise ValueError(f"{what}: out of range")
        if len(seed) != 16:
            raise ValueError("a seed has 16 bytes")
        self._capacity, self._bins, self._trusted_bins, self._slots = capacity, bins, trusted, slots
        self._trusted_most, self._buffer_most = trusted_most, buffer_most
        self._value_bytes, self._choices = value_bytes, choices
        self.pages, self.page_bytes = bins - trusted, slots * (HEAD + value_bytes)
        if self.page_bytes > 1 << 28:
            raise ValueError("a page is larger than 256 MiB")
        self._items: list[_Item | None] = []
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._loads = [0] * bins
        self._waiting: dict[int, list[int]] = {}
        self._held: dict[int, bytes] = {}
        self._source: dict[int, list[int]] | None = None
        self._trusted = self._buffered = self._accesses = self._failures = 0
        self._peaks = {"peak_load": 0, "peak_trusted": 0, "peak_buffered": 0, "peak_together": 0}
        self.phase = IDLE
        self._touched: list[int] = []
        self._out: tuple[bytes, ...] = ()
        self._key, self._index, self._drawn = 0, None, (0, 1)  # type: int, int | None, tuple[int, int]

    @property
    def count(self) -> int:
        return len(self._places)

    def _draw(self, words: bytes, at: int) -> tuple[int, int]:
        a = int.from_bytes(words[at : at + 8], "little") * self._bins >> 64
        b = int.from_bytes(words[at + 8 : at + 16], "little") * (self._bins - 1) >> 64
        return a, b + (b >= a)

    def build(self, keys: bytes, lengths: bytes, values: bytes, words: bytes) -> None:
        if self._items or self.phase != IDLE:
            raise ValueError("items are placed at once in an empty map alone")
        n, width = len(keys) // 8, self._value_bytes
        if len(keys) % 8 or n > self._capacity:
            raise ValueError("more items than there is room for")
        if len(lengths) != 4 * n or len(values) != n * width or len(words) != 16 * n:
            raise ValueError("keys, lengths, values and words are of different numbers")
        self._source = {}
        for i in range(n):
            key, length = (int.from_bytes(b[i * w : (i + 1) * w], "little") for b, w in ((keys, 8), (lengths, 4)))
            if length > width or key in self._places:
                raise ValueError("a value is too long" if length > width else "a key comes twice")
            pair = self._draw(words, 16 * i)
            second = self._choices == 2 and self._loads[pair[1]] < self._loads[pair[0]]
            item = _Item(key, pair, second, values[i * width : i * width + length], False)
            host = item.bin >= self._trusted_bins
            if self._loads[item.bin] >= self._slots or (not host and self._trusted >= self._trusted_most):
                raise OverflowError("a bound is passed")
            self._places[key] = i
            self._items.append(item)
            self._loads[item.bin] += 1
            self._peaks["peak_load"] = max(self._peaks["peak_load"], self._loads[item.bin])
            if host:
                self._source.setdefault(item.bin - self._trusted_bins, []).append(i)
            else:
                self._trusted += 1
        self._peaks["peak_trusted"] = self._trusted

    def _page(self, items: list[bytes]) -> bytes:
        return b"".join(items).ljust(self.page_bytes, b"\0")

    def _laid(self, index: int) -> bytes:
        """An item's slot; its value is in the page from here on."""
        item = self._items[index]
        assert item is not None
        assert item.value is not None
        slot = slot_of(item.key, item.value, self._value_bytes)
        item.value, item.buffered = None, False
        return slot

    def initial(self, page: int) -> bytes:
        if self._source is None or not 0 <= page < self.pages:
            raise ValueError("no page that waits for its first contents")
        return self._page([self._laid(i) for i in reversed(self._source.pop(page, []))])

    def built(self) -> None:
        if self._source:
            raise ValueError("a page has not been written yet")
        self._source = None

    def _start(self, index: int | None, words: bytes, at: int) -> None:
        self._index = index
        pair, self._drawn = self._draw(words, at), self._draw(words, at + 16)
        if index is not None:
            item = self._items[index]
            assert item is not None
            pair = item.pair
        self._touched = [b - self._trusted_bins for b in pair if b >= self._trusted_bins]
        self.phase = READING

    def begin(self, key: int, words: bytes, offset: int) -> Sequence[int]:
        if self.phase != IDLE or self._source is not None:
            raise ValueError("an access is under way")
        if not 0 <= offset <= len(words) - WORDS:
            raise ValueError("an access takes 32 random bytes")
        if not 0 <= key < 1 << 64:
            raise TypeError("keys are between 0 and 2^64 - 1")
        self._key = key
        self._start(self._places.get(key), words, offset)
        return self.touched()

    def resume(self, words: bytes, offset: int) -> Sequence[int]:
        if self.phase != READING:
            raise ValueError("no access has failed")
        if not 0 <= offset <= len(words) - WORDS:
            raise ValueError("an access takes 32 random bytes")
        self._drawn = self._draw(words, offset + 16)
        return self.touched()

    def finish(
        self, operation: int, value: bytes | None, first: bytes, second: bytes
    ) -> tuple[int, bytes | None, Sequence[bytes]]:
        if self.phase != READING:
            raise ValueError("no access is under way")
        if not GET <= operation <= DELETE:
            raise ValueError("an operation that is none")
        given = (first, second)
        if any(len(g) != (self.page_bytes if p < len(self._touched) else 0) for p, g in enumerate(given)):
            raise ValueError("a page of another size")
        if operation in (PUT, PUT_ABSENT) and value is None:
            raise ValueError("a value is missing")
        if value is not None and operation in (PUT, PUT_ABSENT) and len(value) > self._value_bytes:
            raise ValueError("a value is too long")
        status, old = self._commit(operation, value, given[: len(self._touched)])
        return status, old, self.outgoing()

    def outgoing(self) -> Sequence[bytes]:
        return self._out if self.phase == WRITING else ()

    def touched(self) -> Sequence[int]:
        return tuple(self._touched)

    def written(self) -> None:
        if self.phase != WRITING:
            raise ValueError("no page waits to be written")
        self.phase = IDLE

    def _commit(self, operation: int, value: bytes | None, given: Sequence[bytes]) -> tuple[int, bytes | None]:
        index, putting = self._index, operation in (PUT, PUT_ABSENT)
        item = None if index is None else self._items[index]
        old = None if item is None else item.value
        rest: list[list[bytes]] = []
        flushed = 0
        for page, contents in zip(self._touched, given, strict=True):
            slots = []
            for key, held in items_of(contents, self._value_bytes):
                mine = item is not None and item.bin == self._trusted_bins + page and key == item.key
                if mine and old is None:
                    old = held
                else:
                    slots.append(slot_of(key, held, self._value_bytes))
            rest.append(slots)
            waiting = self._waiting.get(page, [])
            flushed += len(waiting)
            if len(slots) + sum(i != index for i in waiting) > self._slots:
                raise ValueError("a page holds more than it has room for")
        if item is not None and old is None:
            raise ValueError("a page is without an item of it")
        trusted_before = item is not None and item.value is not None and not item.buffered

        full = item is None and putting and self.count == self._capacity
        stays = operation != DELETE and (item is not None or (putting and not full))
        a, b = (self._loads[x] - (item is not None and item.bin == x) for x in self._drawn)
        second = self._choices == 2 and b < a
        chosen = self._drawn[second]
        host = chosen >= self._trusted_bins
        if stays and (
            (b if second else a) >= self._slots
            or self._trusted - trusted_before + (not host) > self._trusted_most
            or self._buffered - flushed + host > self._buffer_most
        ):
            self._failures += 1
            return OVERFLOW, None

        pages = []
        for page, slots in zip(self._touched, rest, strict=True):
            waiting = self._waiting.pop(page, [])
            pages.append(self._page(slots + [self._laid(i) for i in reversed(waiting) if i != index]))
        self._out = tuple(pages)
        self._buffered -= flushed
        self._trusted -= trusted_before
        if item is not None:
            self._loads[item.bin] -= 1
        if stays:
            kept = old if item is not None and operation != PUT else value
            new = _Item(self._key if item is None else item.key, self._drawn, second, kept, host)
            if index is None:
                index = self._free.pop() if self._free else len(self._items)
                if index == len(self._items):
                    self._items.append(None)
                self._places[new.key] = index
            self._items[index] = new
            self._loads[chosen] += 1
            if host:
                self._waiting.setdefault(chosen - self._trusted_bins, []).append(index)
                self._buffered += 1
            else:
                self._trusted += 1
            for name, now in (
                ("peak_load", self._loads[chosen]), ("peak_trusted", self._trusted),
                ("peak_buffered", self._buffered), ("peak_together", self._trusted + self._buffered),
            ):  # fmt: skip
                self._peaks[name] = max(self._peaks[name], now)
        elif item is not None and index is not None:
            del self._places[item.key]
            self._items[index] = None
            self._free.append(index)
        self._accesses += 1
        self.phase = WRITING if self._touched else IDLE
        return FULL if full else DONE, old

    def exercise(self, words: bytes) -> None:
        if len(words) % (WORDS + 8):
            raise ValueError("an access takes 40 random bytes here")
        if self._source is not None or self.phase == WRITING or (self.phase == READING and not self._held):
            raise ValueError("an access is under way")
        if not self.count or len(self._items) != self.count:
            raise ValueError("there is no item, or one was taken away")
        for at in range(0, len(words), WORDS + 8):
            if self.phase == READING:
                self._drawn = self._draw(words, at + 24)
            else:
                chosen = int.from_bytes(words[at : at + 8], "little") * self.count >> 64
                self._start(chosen, words, at + 8)
            empty = bytes(self.page_bytes)
            if self._commit(GET, None, [self._held.get(p, empty) for p in self._touched])[0] != OVERFLOW:
                self._held.update(zip(self._touched, self._out, strict=True))
                self.phase = IDLE

    def give(self, page: int, contents: bytes) -> None:
        if not 0 <= page < self.pages or len(contents) != self.page_bytes or self.phase != IDLE:
            raise ValueError("no such page")
        self._held[page] = contents

    def held(self, page: int) -> bytes:
        if not self._held or not 0 <= page < self.pages:
            raise ValueError("no page is kept here")
        return self._held.get(page, bytes(self.page_bytes))

    def keys(self) -> list[int]:
        return [item.key for item in self._items if item is not None]

    def kept(self) -> list[tuple[int, bytes]]:
        if self._source is not None:
            raise ValueError("the map is not built yet")
        return [(item.key, item.value) for item in self._items if item is not None and item.value is not None]

    def statistics(self) -> dict[str, int]:
        return {
            "accesses": self._accesses, "failures": self._failures, "items": self.count, "trusted": self._trusted,
            "buffered": self._buffered, "waiting_pages": len(self._waiting), "fullest_bin": max(self._loads),
            **self._peaks,
        }  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Bytes, as far as Python says; the compiled ones know theirs."""
        values = sum(sys.getsizeof(value) for _, value in self.kept())
        items: list[Any] = [i for i in self._items if i is not None]
        return {
            "position_map": sys.getsizeof(self._places) + sum(map(sys.getsizeof, items)) + sys.getsizeof(self._items),
            "values": values,
            "bins": sys.getsizeof(self._loads) + sys.getsizeof(self._waiting),
            "pages": sum(map(sys.getsizeof, self._out)),
        }

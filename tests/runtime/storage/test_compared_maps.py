"""What an oblivious map is compared with: each is a dictionary, and moves what its algorithm says."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from hasten.errors import HastenError
from hasten.runtime.storage.compared_maps import LinearScan, PathORAM, SealedTable, access_seconds, moved_bytes
from hasten.runtime.storage.oblivious_map import ObliviousMap
from hasten.runtime.storage.sealed_map import MapFullError, SealedMap
from hasten.runtime.storage.sealed_pages import MemoryPages, RecordedPages, TamperedPageError, recorded

pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")

MAPS: dict[str, Callable[..., SealedMap]] = {
    "Path ORAM": PathORAM,
    "linear scan": lambda *a, **k: LinearScan(*a, slots=4, **k),
    "plain table": lambda *a, **k: SealedTable(*a, slots=4, **k),
    "table with a cache": lambda *a, **k: SealedTable(*a, slots=4, cached=2, **k),
}


@pytest.mark.parametrize("name", MAPS)
def test_each_is_a_dictionary(name: str) -> None:
    drawn = random.Random(1)
    held = {k: drawn.randbytes(k % 5) for k in range(20)}
    table = MAPS[name](held, capacity=24, value_bytes=4)
    for _ in range(400):
        key, value = drawn.randrange(30), drawn.randbytes(drawn.randrange(5))
        match drawn.randrange(4):
            case 0:
                assert table.get(key) == held.get(key)
            case 1:
                assert table.pop(key, None) == held.pop(key, None)
            case kind if key in held or len(held) < 24:
                if kind == 2:
                    table[key] = held[key] = value
                else:
                    assert table.setdefault(key, value) == held.setdefault(key, value)
            case _:
                with pytest.raises(MapFullError):
                    table[key] = value
        assert len(table) == len(held)
    assert dict(table.scan()) == held
    assert sorted(table) == sorted(held)
    assert dict(table.copy()) == held
    with pytest.raises(ValueError, match="too long"):
        table[0] = bytes(5)


@pytest.mark.parametrize("name", MAPS)
def test_none_takes_a_tampered_page(name: str) -> None:
    table = MAPS[name](dict.fromkeys(range(20), b"v"))
    store = table.host.store  # type: ignore[attr-defined]
    assert isinstance(store, MemoryPages)
    store.memory[:] = bytes(len(store.memory))
    with pytest.raises(TamperedPageError):
        table[19]


def test_path_orams_stash_stays_small() -> None:
    table = PathORAM(dict.fromkeys(range(256), b""), entropy=random.Random(0).randbytes)
    drawn = random.Random(2)
    for _ in range(1500):
        table[drawn.randrange(256)]
    assert table.peak_stash < 100
    small = PathORAM(dict.fromkeys(range(64), b""), bucket=1, stash=0)
    with pytest.raises(HastenError, match="stash holds more than 0"):
        deque((small[key] for key in range(64)), maxlen=0)


def test_what_a_look_up_moves() -> None:
    """Of 17-byte slots: two pages of 12 by 2 (1 - alpha), a path of buckets, all pages, one."""
    moved = {}
    for make in (ObliviousMap, PathORAM, LinearScan, SealedTable):
        stores: list[RecordedPages] = []
        table = make({k: bytes(5) for k in range(512)}, pages=recorded(stores))
        moved[make] = moved_bytes(table, stores[0], 512, 300)
        assert access_seconds(table, 512, 8) > 0
    bins, trusted = 64, 13
    expected = 2 * 2 * (1 - trusted / bins) * (12 * 17 + 16)
    assert moved[ObliviousMap] == pytest.approx(expected, rel=0.1)
    assert moved[PathORAM] == 2 * 10 * (4 * 17 + 16)
    assert moved[LinearScan] == 2 * 8 * (64 * 17 + 16)
    assert moved[SealedTable] == 8 * 17 + 16

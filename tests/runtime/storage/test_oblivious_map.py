"""The oblivious map is a dictionary, whatever is done to it and to its pages; its bounds are those of the paper."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.runtime.storage.oblivious_map import MapBounds, ObliviousMap, bounds_seen, exercised
from hasten.runtime.storage.sealed_map import MapFullError
from hasten.runtime.storage.sealed_pages import FilePages, MemoryPages, RecordedPages, TamperedPageError, recorded

pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")

KEYS = st.integers(0, 12)
VALUES = st.binary(max_size=6)


class Maps(RuleBasedStateMachine):
    """Any calls of a dictionary's, in any order, beside a dictionary; stores fail in between."""

    @initialize(
        items=st.dictionaries(KEYS, VALUES, max_size=8), spare=st.integers(0, 2),
        trusted=st.sampled_from((0.0, 0.3, 1.0)), plain=st.booleans(), seed=st.integers(0, 2**32),
    )  # fmt: skip
    def begin(self, items, spare, trusted, plain, seed):
        stores: list[RecordedPages] = []
        self.map = ObliviousMap(
            items, capacity=max(1, len(items) + spare), value_bytes=6, per_bin=2, trusted=trusted,
            pages=recorded(stores), entropy=random.Random(seed).randbytes, plain=plain or native() is None,
        )  # fmt: skip
        self.store, self.held = stores[0], dict(items)

    @rule(key=KEYS)
    def get(self, key):
        assert self.map.get(key) == self.held.get(key)
        assert (key in self.map) == (key in self.held)

    @rule(key=KEYS, value=VALUES)
    def put(self, key, value):
        if key in self.held or len(self.held) < self.map.capacity:
            self.map[key] = self.held[key] = value
        else:
            with pytest.raises(MapFullError, match="is full"):
                self.map[key] = value

    @rule(key=KEYS, value=VALUES)
    def put_absent(self, key, value):
        if key in self.held or len(self.held) < self.map.capacity:
            assert self.map.setdefault(key, value) == self.held.setdefault(key, value)
        else:
            with pytest.raises(MapFullError, match="is full"):
                self.map.setdefault(key, value)

    @rule(key=KEYS)
    def take(self, key):
        assert self.map.pop(key, None) == self.held.pop(key, None)

    @rule(key=KEYS)
    def delete(self, key):
        if key in self.held:
            del self.map[key], self.held[key]
        else:
            with pytest.raises(KeyError):
                del self.map[key]

    @rule(value=st.binary(min_size=7, max_size=9))
    def too_long(self, value):
        with pytest.raises(ValueError, match="is too long"):
            self.map[1] = value

    @rule(key=KEYS, value=VALUES, reading=st.booleans())
    def fail(self, key, value, reading):
        """A store that fails once: a read changes nothing, and what could not be written is not lost."""
        self.get(key)  # which ends what failed before
        name = "read" if reading else "write"

        def fails(*_):
            raise HastenError("for once")

        setattr(self.store, name, fails)
        before = dict(self.held)
        try:
            self.map[key] = value
            self.held[key] = value
        except MapFullError:
            pass
        except HastenError:
            if not reading and (key in before or len(before) < self.map.capacity):
                self.held[key] = value  # done, but for its pages
        delattr(self.store, name)

    @rule()
    def scan(self):
        assert dict(self.map.scan()) == self.held
        assert dict(copy.copy(self.map)) == self.held

    @invariant()
    def counted(self):
        if hasattr(self, "map"):
            assert len(self.map) == len(self.held)
            assert sorted(self.map) == sorted(self.held)


Maps.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestMaps = Maps.TestCase


@pytest.fixture
def table() -> ObliviousMap:
    return ObliviousMap({i: bytes([i]) * 3 for i in range(100)}, per_bin=4, entropy=random.Random(0).randbytes)


def test_one_call_is_one_access_whether_the_key_is_there_or_not() -> None:
    stores: list[RecordedPages] = []
    table = ObliviousMap({1: b"a"}, capacity=4, value_bytes=3, trusted=0, pages=recorded(stores))
    for call in (
        lambda: table[1],
        lambda: table.get(2),
        lambda: 1 in table,
        lambda: table.setdefault(1, b"b"),
        lambda: table.setdefault(3, b"c"),
        lambda: table.pop(3),
        lambda: table.pop(3, None),
        lambda: table.__setitem__(1, b"d"),
        table.popitem,
    ):
        stores[0].accesses.clear()
        call()
        kinds = [kind for kind, _ in stores[0].accesses]
        pages = [page for _, page in stores[0].accesses]
        assert kinds == ["read", "read", "write", "write"]
        assert pages[:2] == pages[2:]  # exactly those that were read
        assert len(set(pages)) == 2
    stores[0].accesses.clear()
    assert (list(table), len(table)) == ([], 0)
    assert stores[0].accesses == []
    with pytest.raises(KeyError, match="empty"):
        table.popitem()


def test_a_tampered_page_is_an_error_and_nothing_is_lost() -> None:
    table = ObliviousMap({i: bytes([i]) for i in range(100)}, value_bytes=3, trusted=0)
    store = table.host.store
    assert isinstance(store, MemoryPages)
    good = bytes(store.memory)
    store.memory[:] = bytes(len(good))
    with pytest.raises(TamperedPageError, match="was changed, or an older one put in its place") as told:
        table[7] = b"new"
    assert "\n" not in str(told.value)
    with pytest.raises(TamperedPageError):  # the access that failed comes first, whatever is asked for
        table[0]
    store.memory[:] = good
    assert dict(table.scan()) == {i: bytes([i]) for i in range(100)}
    table[7] = b"new"
    assert table[7] == b"new"


@pytest.mark.parametrize("kind", ["a bit", "an older page", "another page"])
def test_what_an_attacker_may_do(kind: str, table: ObliviousMap) -> None:
    store, size = table.host.store, table.host.sealed_bytes
    assert isinstance(store, MemoryPages)
    old = bytes(store.memory)
    for key in range(100):
        table[key] = b"new"
    good = bytes(store.memory)
    if kind == "a bit":
        store.memory[size - 1] ^= 1
    elif kind == "an older page":
        store.memory[:size] = old[:size]
    else:
        store.memory[:size] = good[size : 2 * size]
    with pytest.raises(TamperedPageError, match="page 0 of"):
        table.host.read(0)
    with pytest.raises(TamperedPageError, match="page 0 of"):
        list(table.scan())
    store.memory[:] = good
    assert dict(table.scan()) == dict.fromkeys(range(100), b"new")


def test_a_file_is_private_and_ends_with_the_map(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    table = ObliviousMap(dict.fromkeys(range(64), b"secret"), pages=path)
    assert path.stat().st_size == len(table.host) * table.host.sealed_bytes
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in path.read_bytes()
    with pytest.raises(HastenError, match="is there already"):
        ObliviousMap({1: b""}, pages=path)
    whole = path.read_bytes()
    for key in range(64):
        table[key]
    os.truncate(path, len(whole) // 2)
    with pytest.raises(HastenError, match=r"is cut short, it had [\d,]+ bytes: put it back") as told:
        deque((table[key] for key in range(64)), maxlen=0)
    assert "\n" not in str(told.value)
    path.write_bytes(whole)
    with pytest.raises(TamperedPageError):  # pages that were written after `whole` was copied are too old
        dict(table.scan())
    del table, told
    gc.collect()
    assert not path.exists()


def test_a_truncated_file_that_is_put_back_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    table = ObliviousMap(dict.fromkeys(range(64), b"x"), pages=path, trusted=0)
    whole = path.read_bytes()
    os.truncate(path, 0)
    with pytest.raises(HastenError, match="cut short"):
        table[5] = b"y"
    path.write_bytes(whole)
    assert table[5] == b"x"
    assert dict(table.scan()) == dict.fromkeys(range(64), b"x")


def test_files_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="No such file"):
        ObliviousMap({1: b""}, pages=tmp_path / "no" / "pages")
    with pytest.raises(HastenError, match="is there already"):
        ObliviousMap({1: b""}, pages=tmp_path)
    with pytest.raises(HastenError, match=r"cannot make .* of [\d,]+ bytes"):
        FilePages(tmp_path / "pages", 1 << 40, 1 << 20)
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"items": {1: b"a", 2: b"b"}, "capacity": 1}, HastenError, "2 items are more than the map's capacity of 1"),
        ({"items": {1: b"abc"}, "value_bytes": 2}, ValueError, "3 bytes is too long"),
        ({"items": {-1: b""}}, ValueError, "between 0 and"),
        ({"items": {"a": b""}}, TypeError, "whole numbers, not str"),
        ({"items": {1: "a"}}, TypeError, "are bytes, not str"),
        ({"capacity": 0}, ValueError, "capacity is between"),
        ({"value_bytes": -1}, ValueError, "values have between"),
        ({"per_bin": 0}, ValueError, "between 1 and 256"),
        ({"trusted": 1.5}, ValueError, "between 0 and 1"),
    ],
)
def test_bad_input_is_told(given: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ObliviousMap(**given)


def test_a_view_of_memory_is_as_long_as_its_bytes() -> None:
    view = memoryview(np.arange(3, dtype=np.int32))
    assert ObliviousMap({1: view})[1] == bytes(view)


def test_all_keys_are_taken_away_in_an_access_each(table: ObliviousMap, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    keys = table._keys
    monkeypatch.setattr(table, "_keys", lambda: asked.append(1) or keys())
    table.clear()
    assert len(table) == 0
    assert asked == [1], "a list of all keys for each of them takes the square of their number"
    assert table.bounds_seen()["buffered"].now == 0


def test_rows_are_a_map_from_their_numbers() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (50, 7), dtype=np.uint8)
    table = ObliviousMap.of_rows(rows)
    assert [table[i] for i in range(50)] == [r.tobytes() for r in rows]
    with pytest.raises(MapFullError):
        table[50] = b""
    with pytest.raises(ValueError, match="table"):
        ObliviousMap.of_rows(rows[0])


def test_sealed_maps_are_copied_and_not_pickled(table: ObliviousMap) -> None:
    other = copy.deepcopy(table)
    other[0] = b"x"
    assert table[0] == bytes(3)
    assert len(other) == len(table) == 100
    for what in (table, table.host):
        with pytest.raises(HastenError, match="not pickled"):
            pickle.dumps(what)


def test_a_scan_notices_accesses(table: ObliviousMap) -> None:
    scan = table.scan()
    next(scan)
    table[0]
    with pytest.raises(RuntimeError, match="during a scan"):
        list(scan)


def test_bounds_are_the_papers() -> None:
    """Published for N = 2^20: of a bin, of items waiting, of items in trusted bins."""
    for (per_bin, trusted), (load, waiting, held) in {
        (8, 0.2): (13.32, 78_977, 217_743), (8, 0.5): (13.32, 61_850, 536_986), (8, 0.01): (13.32, 83_398, 12_275),
        (16, 0.2): (21.32, 49_635, 218_801), (16, 0.5): (21.32, 38_947, 538_659), (16, 0.01): (21.32, 52_986, 12_512),
    }.items():  # fmt: skip
        bounds = MapBounds(1 << 20, per_bin, trusted)
        assert bounds.bin_load == pytest.approx(load, abs=0.005)
        assert bounds.buffered_items == pytest.approx(waiting, abs=10)
        assert bounds.trusted_items == pytest.approx(held, abs=20)


def test_bounds_are_reported(table: ObliviousMap) -> None:
    for _ in range(3):
        for key in range(100):
            table[key]
    seen = table.bounds_seen()
    assert all(0 < b.now <= b.most <= b.bound for b in seen.values())
    assert table.failures == 0
    memory = table.memory()
    assert memory["host"] == len(table.host) * table.host.sealed_bytes
    assert all(v > 0 for v in memory.values())
    bounds = MapBounds(4096)
    other = bounds_seen(bounds, exercised(bounds, bounds.make(0, bytes(16)), 8192, 0))
    assert other["buffered"].now == pytest.approx(bounds.pages / 2, rel=0.25)

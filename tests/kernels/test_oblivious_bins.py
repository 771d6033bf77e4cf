"""The trusted half of an oblivious map: compiled as plain, items in one place, bounds, what an observer sees."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels import native
from hasten.kernels.oblivious_bins import (
    DELETE,
    DONE,
    GET,
    OVERFLOW,
    PUT,
    PUT_ABSENT,
    READING,
    Bins,
    items_of,
    oblivious_bins,
)

CAPACITY, WIDTH = 40, 5
needs_native = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def filled(items: dict[int, bytes], drawn: random.Random, plain: bool, **changed: int) -> tuple[Bins, dict[int, bytes]]:
    """A trusted half with these items, and its pages."""
    sizes = {"capacity": CAPACITY, "bins": 8, "trusted": 2, "slots": 12, "trusted_most": 30, "buffer_most": 40}
    bins = oblivious_bins(**(sizes | changed), value_bytes=WIDTH, seed=drawn.randbytes(16), plain=plain)
    bins.build(
        b"".join(k.to_bytes(8, "little") for k in items),
        b"".join(len(v).to_bytes(4, "little") for v in items.values()),
        b"".join(v.ljust(WIDTH, b"\0") for v in items.values()), drawn.randbytes(16 * len(items)),
    )  # fmt: skip
    pages = {page: bins.initial(page) for page in range(bins.pages)}
    bins.built()
    return bins, pages


def access(bins: Bins, pages: dict[int, bytes], key: int, operation: int, value: bytes | None, words: bytes):
    """What it answered and which pages it touched."""
    touched = tuple(bins.begin(key, words, 0))
    given = [pages[p] for p in touched]
    status, found, written = bins.finish(operation, value, *given, *(b"", b"")[len(given) :])
    pages.update(zip(touched, written))
    if written:
        bins.written()
    return status, found, touched


@needs_native
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_compiled_is_plain(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    keys = data.draw(st.lists(st.integers(0, 60), max_size=CAPACITY, unique=True))
    trusted = data.draw(st.sampled_from((0, 2, 8)))
    choices = data.draw(st.sampled_from((1, 2)))
    drawn = random.Random(seed)
    items = {k: drawn.randbytes(drawn.randrange(WIDTH + 1)) for k in keys}
    pairs = [
        filled(items, random.Random(seed), plain, trusted=trusted, choices=choices, slots=40, trusted_most=40)
        for plain in (True, False)
    ]
    for _ in range(60):
        operation = drawn.choice((GET, PUT, PUT_ABSENT, DELETE))
        given = (drawn.randrange(61), operation, drawn.randbytes(drawn.randrange(WIDTH + 1)), drawn.randbytes(32))
        plain, compiled = (access(bins, pages, *given) for bins, pages in pairs)
        assert plain == compiled
        assert pairs[0][1] == pairs[1][1]
    assert pairs[0][0].statistics() == pairs[1][0].statistics()
    assert pairs[0][0].keys() == pairs[1][0].keys()
    assert pairs[0][0].kept() == pairs[1][0].kept()


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=needs_native)])
def test_every_key_is_in_one_place(plain: bool) -> None:
    drawn = random.Random(3)
    held = {k: drawn.randbytes(3) for k in range(30)}
    bins, pages = filled(held, drawn, plain)
    for _ in range(400):
        key, operation = drawn.randrange(50), drawn.choice((GET, GET, PUT, DELETE))
        value = drawn.randbytes(drawn.randrange(6))
        status, found, _ = access(bins, pages, key, operation, value, drawn.randbytes(32))
        assert found == held.get(key)
        if operation == DELETE:
            held.pop(key, None)
        elif operation == PUT and status == DONE:
            held[key] = value
        in_pages = [item for page in pages.values() for item in items_of(page, WIDTH)]
        kept = bins.kept()
        assert sorted(in_pages + kept) == sorted(held.items())
        seen = bins.statistics()
        assert seen["items"] == len(held) == len(in_pages) + seen["trusted"] + seen["buffered"]
        assert len({len(page) for page in pages.values()}) == 1


@needs_native
def test_pages_are_touched_by_the_law() -> None:
    """Whatever is asked for: 2 (1 - alpha) on average, uniform, independent of the access before."""
    drawn = random.Random(7)
    n, alpha = 20_000, 0.25
    for workload in ("one", "any"):
        bins, pages = filled(
            dict.fromkeys(range(64), b""), drawn, False, capacity=64, bins=16, trusted=4, slots=64, trusted_most=64,
            buffer_most=64,
        )  # fmt: skip
        touched = [
            access(bins, pages, 0 if workload == "one" else drawn.randrange(64), GET, None, drawn.randbytes(32))[2]
            for _ in range(n)
        ]
        numbers = Counter(map(len, touched))
        # Two different bins: of 16 4 are trusted.
        law = {0: 4 * 3 / (16 * 15), 1: 2 * 4 * 12 / (16 * 15), 2: 12 * 11 / (16 * 15)}
        assert sum(law.values()) == pytest.approx(1)
        for number, share in law.items():
            assert abs(numbers[number] - share * n) < 4 * (share * (1 - share) * n) ** 0.5
        mean = sum(map(len, touched)) / n
        variance = sum(number**2 * share for number, share in law.items()) - (2 * (1 - alpha)) ** 2
        assert abs(mean - 2 * (1 - alpha)) < 3 * (variance / n) ** 0.5
        flat = [p for t in touched for p in t]
        chi = sum((c - len(flat) / 12) ** 2 / (len(flat) / 12) for c in Counter(flat).values())
        assert chi < 31.3  # 11 degrees of freedom: one time in a thousand
        pairs = Counter((a[-1], b[0]) for a, b in itertools.pairwise(touched) if a and b)
        expected = sum(pairs.values()) / 144
        assert sum((pairs[a, b] - expected) ** 2 / expected for a in range(12) for b in range(12)) < 198.4  # 143, 1e-3


def mean_field(per_bin: int, slots: int, most: int = 48) -> tuple[float, float]:
    """(items that wait for a page, share of pages that any waits for) of a map without end, in the steady state.

    A bin is a chain of three numbers: D keys that have it in their pair, of which L are in it, of which W wait. A key
    is accessed once a unit of time. Then D falls by one, W to 0, and L by one where the key was there. New pairs come
    2 c times a unit, and the key is put here, and waits, where the other bin has more in it, half of the time where it
    has as much: the other is a bin like this one, independent of it where there are many.
    """
    keys, loads = np.arange(most + 1)[:, None, None], np.arange(slots + 1)[None, :, None]
    p = np.zeros((most + 1, slots + 1, slots + 1))
    p[2 * per_bin, per_bin, 0] = 1
    for _ in range(1500):
        load = p.sum((0, 2))
        comes = 2 * per_bin * p
        comes[-1] = 0
        here = comes * (1 - load.cumsum() + load / 2)[None, :, None]
        here[:, -1] = 0
        change = -comes - keys * p
        change[1:, 1:, 1:] += here[:-1, :-1, :-1]
        change[1:] += (comes - here)[:-1]
        change[:-1, :-1, 0] += (loads * p).sum(2)[1:, 1:]
        change[:-1, :, 0] += ((keys - loads) * p).sum(2)[1:]
        p = p + change / (most + 2 * per_bin)
    waits = p.sum((0, 1))
    return float(waits @ np.arange(slots + 1)), float(1 - waits[0])


def exercised(choices: int, slots: int, n: int = 1 << 16, more: int = 0) -> list[dict[str, int]]:
    """Statistics after two accesses an item, and after each of ``more`` quarters of one."""
    drawn = np.random.default_rng(0)
    bins = oblivious_bins(n, n // 8, n // 40, slots, n, n, 0, seed=bytes(16), choices=choices)
    bins.build(np.arange(n, dtype=np.uint64).tobytes(), bytes(4 * n), b"", drawn.bytes(16 * n))
    for page in range(bins.pages):
        bins.give(page, bins.initial(page))
    bins.built()
    for _ in range(4):
        bins.exercise(drawn.bytes(40 * n // 2))
    found = [bins.statistics()]
    for _ in range(more):
        bins.exercise(drawn.bytes(40 * n // 4))
        found.append(bins.statistics())
    return found


@needs_native
def test_the_steady_state() -> None:
    """Half an item a page waits; the fullest bin is near the average, of one choice far.

    The published simulator draws the pages that items wait for independently of what lies in bins: lengths of waiting
    are geometric there, and a third of the pages has any. Here an item waits for the bin that has less, so that waiting
    is spread more evenly: over 5.5 % more pages, as `mean_field` says.
    """
    first, *later = exercised(2, 13, more=20)
    pages = (1 << 13) - (1 << 16) // 40
    assert later[-1]["failures"] == 0
    assert later[-1]["peak_load"] <= 13
    assert first["buffered"] == pytest.approx(pages / 2, rel=0.04)
    waiting, share = mean_field(8, 13)
    assert share / (1 / 3) == pytest.approx(1.055, abs=0.002)
    # Four standard deviations of the mean of twenty looks, between which every page is flushed about four times.
    for name, expected in (("waiting_pages", share), ("buffered", waiting)):
        mean = sum(s[name] for s in later) / len(later)
        assert mean == pytest.approx(expected * pages, rel=0.012)
    assert exercised(1, 64)[0]["peak_load"] > 18


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=needs_native)])
def test_an_access_past_a_bound_changes_nothing_and_is_counted(plain: bool) -> None:
    drawn = random.Random(0)
    bins, pages = filled({1: b"a", 2: b"b"}, drawn, plain, bins=2, trusted=0, slots=2, buffer_most=0)
    before = dict(pages)
    touched = bins.begin(1, drawn.randbytes(32), 0)
    assert sorted(touched) == [0, 1]
    for number in (1, 2):
        status, found, written = bins.finish(GET, None, *(pages[p] for p in touched))
        assert (status, found, tuple(written)) == (OVERFLOW, None, ())
        assert bins.statistics()["failures"] == number
        assert tuple(bins.resume(drawn.randbytes(32), 0)) == tuple(touched)
    assert bins.phase == READING
    assert pages == before
    assert bins.kept() == []


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=needs_native)])
def test_what_is_out_of_turn_is_refused(plain: bool) -> None:
    drawn = random.Random(0)
    bins, pages = filled({1: b"a"}, drawn, plain, trusted=0)
    for call in (
        lambda: bins.finish(GET, None, b"", b""),
        lambda: bins.resume(bytes(32), 0),
        bins.written,
        lambda: bins.begin(1, bytes(31), 0),
        lambda: bins.begin(1, bytes(32), 1),
        lambda: bins.begin(1, bytes(32), -1),
        lambda: bins.exercise(bytes(39)),
        lambda: bins.initial(0),
        lambda: bins.build(b"", b"", b"", b""),
    ):
        with pytest.raises(ValueError, match=r"."):
            call()
    touched = bins.begin(1, bytes(32), 0)
    assert len(touched) == 2
    a, b = (pages[p] for p in touched)
    for wrong in (
        (GET, None, a, b""),
        (PUT, None, a, b),
        (PUT, b"longer", a, b),
        (7, None, a, b),
        (GET, None, a, a[:-1]),
    ):
        with pytest.raises(ValueError, match=r"."):
            bins.finish(*wrong)
    with pytest.raises(ValueError, match="without an item"):
        bins.finish(GET, None, bytes(len(a)), bytes(len(b)))
    assert bins.finish(GET, None, a, b)[:2] == (DONE, b"a")
    with pytest.raises(ValueError, match="under way"):
        bins.begin(1, bytes(32), 0)


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=needs_native)])
def test_items_that_do_not_fit_are_refused(plain: bool) -> None:
    one = (1).to_bytes(8, "little")

    def build(keys: bytes, count: int, **changed: int) -> None:
        sizes = {"capacity": 8, "bins": 2, "trusted": 0, "slots": 4, "trusted_most": 8, "buffer_most": 8}
        bins = oblivious_bins(**(sizes | changed), value_bytes=1, seed=bytes(16), plain=plain)
        bins.build(keys, (1).to_bytes(4, "little") * count, bytes(count), bytes(16 * count))

    with pytest.raises(ValueError, match="twice"):
        build(one * 2, 2)
    with pytest.raises(ValueError, match="room"):
        build(b"".join(i.to_bytes(8, "little") for i in range(9)), 9)
    with pytest.raises(OverflowError, match="bound"):
        build(b"".join(i.to_bytes(8, "little") for i in range(5)), 5, slots=1)
    with pytest.raises(ValueError, match="out of range"):
        oblivious_bins(0, 2, 0, 1, 1, 1, 1, seed=bytes(16), plain=plain)
    with pytest.raises(ValueError, match="16 bytes"):
        oblivious_bins(1, 2, 0, 1, 1, 1, 1, seed=b"", plain=plain)

from __future__ import annotations

import itertools
import random
from collections import OrderedDict

import pytest

from hasten.errors import HastenError
from hasten.workload.memories import Allocation, BackingMemory, Fifo, LiveBuffer, ManagedCache, Scratchpad, allocate


def test_a_scratchpad_holds_no_more_than_it_can() -> None:
    memory: Scratchpad[str] = Scratchpad(10)
    memory.put("a", "x", 6)
    with memory.room(4):
        assert memory.held == 10
    with pytest.raises(HastenError, match="11 bytes do not fit a memory of 10"):
        memory.put("b", "y", 5)
    assert (memory.held, memory.peak, "b" in memory, memory.get("a")) == (6, 10, False, "x")
    with pytest.raises(HastenError, match="in the memory already"):
        memory.put("a", "z", 1)
    memory.free("a")
    assert memory.held == 0
    with pytest.raises(HastenError, match="a is not in the memory"):
        memory.free("a")
    with pytest.raises(HastenError, match="from 0"):
        Scratchpad(-1)


def test_a_queue_keeps_the_order_and_its_depth() -> None:
    queue: Fifo[int] = Fifo(2)
    queue.put(1, 4)
    queue.put(2, 4)
    assert queue.full
    with pytest.raises(HastenError, match="is full"):
        queue.put(3, 4)
    assert [queue.take(), queue.take()] == [1, 2]
    assert (queue.passed, queue.peak, len(queue)) == (8, 2, 0)
    with pytest.raises(HastenError, match="has no tile"):
        queue.take()
    with pytest.raises(HastenError, match="at least 1"):
        Fifo(0)


def test_a_backing_memory_counts_what_moves() -> None:
    memory = BackingMemory({"w": ("weights", 100)})
    assert memory.load("w") == "weights"
    memory.store("s", "spilled", 7)
    memory.load("s")
    memory.load("w", 30)
    assert (memory.loads, memory.stores) == ({"w": 130, "s": 7}, {"s": 7})
    assert (memory.loaded, memory.stored, memory.moved) == (137, 7, 144)
    with pytest.raises(HastenError, match="in no memory"):
        memory.load("t")


def lru(trace: list[int], capacity: int) -> int:
    """Misses of things of one size, written apart from what is tested."""
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for key in trace:
        if key not in held:
            misses += 1
            if len(held) == capacity:
                held.popitem(last=False)
        held[key] = None
        held.move_to_end(key)
    return misses


@pytest.mark.parametrize("capacity", [1, 3, 6, 12])
def test_caches_beside_an_independent_one_and_the_best_that_can_be(capacity: int) -> None:
    rng = random.Random(capacity)
    trace = [min(rng.randrange(12), rng.randrange(12)) for _ in range(400)]
    counts = {}
    for policy in ("lru", "fifo", "belady"):
        cache = ManagedCache(5 * capacity, policy, trace if policy == "belady" else None)  # type: ignore[arg-type]
        for key in trace:
            cache.use(key, 5)
            assert cache.held <= 5 * capacity
        assert cache.hits + cache.misses == len(trace)
        assert cache.loaded == 5 * cache.misses
        assert cache.written == 0  # nothing was changed
        counts[policy] = cache.misses
    assert counts["lru"] == lru(trace, capacity)
    assert counts["belady"] <= min(counts["lru"], counts["fifo"])
    if capacity == 12:
        assert set(counts.values()) == {len(set(trace))}
    if capacity == 1:
        changes = 1 + sum(a != b for a, b in itertools.pairwise(trace))
        assert counts["lru"] == changes


def test_only_what_was_changed_is_written_back() -> None:
    cache = ManagedCache(10)
    cache.use("weights", 6)
    cache.use("state", 4, change=True)
    assert cache.use("other", 6, pinned=("state",)) == ["weights"]
    assert cache.written == 0
    assert cache.use("more", 4, pinned=("other",)) == ["state"]
    assert cache.written == 4
    cache.use("other", 6, change=True)
    cache.flush()
    cache.flush()
    assert cache.written == 10
    with pytest.raises(HastenError, match="does not fit a cache of 10"):
        cache.use("large", 11)
    with pytest.raises(HastenError, match="does not fit"):
        cache.use("new", 5, pinned=("other",))


def test_policies_are_given_what_they_need() -> None:
    with pytest.raises(HastenError, match="no policy 'mru'"):
        ManagedCache(1, "mru")  # type: ignore[arg-type]
    with pytest.raises(HastenError, match="belady alone looks ahead"):
        ManagedCache(1, "belady")
    cache = ManagedCache(10, "belady", ["a", "b"])
    cache.use("a", 1)
    with pytest.raises(HastenError, match="another use was foreseen"):
        cache.use("a", 1)


def meets(a: LiveBuffer, b: LiveBuffer) -> bool:
    return a.begin <= b.end and b.begin <= a.end


def test_buffers_that_live_at_once_share_no_byte() -> None:
    rng = random.Random(0)
    for trial in range(30):
        buffers = []
        for i in range(rng.randint(1, 14)):
            begin = rng.randint(0, 9)
            buffers.append(LiveBuffer(str(i), rng.randint(0, 40), begin, begin + rng.randint(0, 4)))
        found = allocate(buffers, align=4 if trial % 2 else 1)
        for i, a in enumerate(buffers):
            for b in buffers[:i]:
                if meets(a, b) and a.size and b.size:
                    at, other = found.offsets[a.name], found.offsets[b.name]
                    assert at + a.size <= other or other + b.size <= at
        assert found.lower <= found.peak
        if trial % 2:
            assert all(o % 4 == 0 for o in found.offsets.values())
        else:
            assert found.peak <= found.total
    assert allocate([]) == Allocation({}, 0, 0, 0)


def test_a_chain_needs_two_of_its_buffers_and_not_all() -> None:
    chain = [LiveBuffer(str(i), 10, i, i + 1) for i in range(8)]
    found = allocate(chain)
    assert (found.peak, found.lower, found.total) == (20, 20, 80)


@pytest.mark.parametrize(
    ("buffers", "words"),
    [
        ([LiveBuffer("a", 1, 0, 0), LiveBuffer("a", 1, 0, 0)], "two buffers"),
        ([LiveBuffer("a", -1, 0, 0)], "nothing lives so"),
        ([LiveBuffer("a", 1, 2, 1)], "nothing lives so"),
    ],
)
def test_buffers_that_cannot_be_are_refused(buffers: list[LiveBuffer], words: str) -> None:
    with pytest.raises(HastenError, match=words):
        allocate(buffers)

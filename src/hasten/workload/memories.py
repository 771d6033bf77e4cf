"""Memories that hold no more than they can and count what passes: to run a schedule beside what a model says of it.

A `Scratchpad` holds things by name under a hard limit; a `Fifo` passes tiles in order (with room for two it is a double
buffer); a `BackingMemory` stands outside of the chip and counts bytes moved to and from it; a `ManagedCache` keeps what
was used and throws out the rest, writing back only what was changed; `allocate` places buffers of known life in one
memory so that those that live at once share no byte. They stand on this floor because programs with counted traffic
(`hasten.workload.attention_io`) run on them, and all models of chips stand above it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from hasten.errors import HastenError

T = TypeVar("T")


class Scratchpad(Generic[T]):
    """A memory with a hard limit, in whatever unit its sizes are given.

    Args:
        capacity: the most that it holds.
        unit: of sizes, for messages.

    ``held`` is what it holds now and ``peak`` the most that it held.
    """

    def __init__(self, capacity: int, unit: str = "bytes") -> None:
        if capacity < 0:
            raise HastenError(f"a memory of {capacity} {unit}: give a number from 0")
        self.capacity, self.unit = capacity, unit
        self.held = self.peak = 0
        self._things: dict[str, tuple[T, int]] = {}

    def _take(self, size: int) -> None:
        if self.held + size > self.capacity:
            raise HastenError(
                f"{self.held + size} {self.unit} do not fit a memory of {self.capacity}: use smaller tiles"
            )
        self.held += size
        self.peak = max(self.peak, self.held)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Holds ``size`` for as long as the block runs.

        Raises:
            HastenError: it does not fit.
        """
        self._take(size)
        try:
            yield
        finally:
            self.held -= size

    def put(self, name: str, thing: T, size: int) -> None:
        """Keeps a thing until `free`.

        Raises:
            HastenError: it does not fit, or its name is taken.
        """
        if name in self._things:
            raise HastenError(f"{name} is in the memory already: free it first")
        self._take(size)
        self._things[name] = (thing, size)

    def get(self, name: str) -> T:
        """A thing that is held.

        Raises:
            HastenError: it is not.
        """
        if name not in self._things:
            raise HastenError(f"{name} is not in the memory: put it there first")
        return self._things[name][0]

    def free(self, name: str) -> None:
        """Gives up a thing.

        Raises:
            HastenError: it is not held.
        """
        self.get(name)
        self.held -= self._things.pop(name)[1]

    def __contains__(self, name: str) -> bool:
        return name in self._things


class Fifo(Generic[T]):
    """Tiles in the order in which they were put, at most ``depth`` of them; ``passed`` counts bytes, ``peak`` tiles.

    Raises:
        HastenError: a depth below 1.
    """

    def __init__(self, depth: int = 2) -> None:
        if depth < 1:
            raise HastenError(f"a queue of {depth} tiles: give room for at least 1")
        self.depth = depth
        self.passed = self.peak = 0
        self._tiles: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def full(self) -> bool:
        return len(self._tiles) >= self.depth

    def put(self, tile: T, size: int) -> None:
        """Adds a tile of ``size`` bytes.

        Raises:
            HastenError: the queue is full: who makes tiles must wait.
        """
        if self.full:
            raise HastenError(f"a queue of {self.depth} tiles is full: take one first")
        self._tiles.append(tile)
        self.passed += size
        self.peak = max(self.peak, len(self._tiles))

    def take(self) -> T:
        """The oldest tile.

        Raises:
            HastenError: there is none.
        """
        if not self._tiles:
            raise HastenError("a queue has no tile: put one first")
        return self._tiles.popleft()


class BackingMemory(Generic[T]):
    """What lies outside of the chip: everything fits, and every byte that moves is counted, by name.

    Args:
        things: name -> (thing, bytes) that are there to begin with.
    """

    def __init__(self, things: Mapping[str, tuple[T, int]] | None = None) -> None:
        self._things = dict(things or {})
        self.loads: dict[str, int] = {}
        self.stores: dict[str, int] = {}

    @property
    def loaded(self) -> int:
        return sum(self.loads.values())

    @property
    def stored(self) -> int:
        return sum(self.stores.values())

    @property
    def moved(self) -> int:
        return self.loaded + self.stored

    def load(self, name: str, size: int | None = None) -> T:
        """A thing, all of its bytes moved once, or ``size`` of them.

        Raises:
            HastenError: it is not there.
        """
        if name not in self._things:
            raise HastenError(f"{name} is in no memory: it was neither given nor stored")
        thing, whole = self._things[name]
        self.loads[name] = self.loads.get(name, 0) + (whole if size is None else size)
        return thing

    def store(self, name: str, thing: T, size: int) -> None:
        """Writes a thing of ``size`` bytes."""
        self._things[name] = (thing, size)
        self.stores[name] = self.stores.get(name, 0) + size

    def __contains__(self, name: str) -> bool:
        return name in self._things


class ManagedCache:
    """A memory that keeps what was used and makes room by throwing out; what was not changed goes without a write.

    Args:
        capacity: bytes.
        policy: who goes first: ``lru`` (used the longest ago), ``fifo`` (brought in the longest ago) or ``belady``
            (used again the latest: the fewest misses that any rule can have where all things have one size).
        future: for ``belady`` alone, all uses in order.

    ``hits``, ``misses``, ``loaded``, ``written`` (back), ``held`` and ``peak`` count.

    Raises:
        HastenError: an unknown policy, or ``belady`` without a future.
    """

    def __init__(
        self,
        capacity: int,
        policy: Literal["lru", "fifo", "belady"] = "lru",
        future: Sequence[Hashable] | None = None,
    ) -> None:
        if policy not in ("lru", "fifo", "belady"):
            raise HastenError(f"there is no policy {policy!r}: use lru, fifo or belady")
        if (policy == "belady") != (future is not None):
            raise HastenError("belady alone looks ahead: give it all uses in order, and the others none")
        if capacity < 0:
            raise HastenError(f"a cache of {capacity} bytes: give a number from 0")
        self.capacity, self.policy = capacity, policy
        self.hits = self.misses = self.loaded = self.written = self.held = self.peak = 0
        self._held: OrderedDict[Hashable, int] = OrderedDict()
        self._changed: set[Hashable] = set()
        self._uses: dict[Hashable, deque[int]] = {}
        self._now = 0
        for at, key in enumerate(future or ()):
            self._uses.setdefault(key, deque()).append(at)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Hashable]:
        """What it holds now."""
        return iter(tuple(self._held))

    def use(self, key: Hashable, size: int, *, change: bool = False, pinned: Iterable[Hashable] = ()) -> list[Hashable]:
        """Uses a thing, bringing it in where it is not; what was thrown out for it.

        Args:
            key: what.
            size: its bytes.
            change: whether it is written to, so that it is written back when it goes.
            pinned: that must stay.

        Raises:
            HastenError: it cannot fit, or, with ``belady``, another use was foreseen.
        """
        if self.policy == "belady":
            ahead = self._uses.get(key)
            if not ahead or ahead[0] != self._now:
                raise HastenError(f"{key!r} is used where another use was foreseen: give all uses in order")
            ahead.popleft()
            self._now += 1
        gone: list[Hashable] = []
        if key in self._held:
            self.hits += 1
            if self.policy == "lru":
                self._held.move_to_end(key)
        else:
            keep = set(pinned)
            fixed = sum(self._held.get(k, 0) for k in keep)
            if fixed + size > self.capacity:
                raise HastenError(f"{key!r} of {size} bytes does not fit a cache of {self.capacity}: make it larger")
            while self.held + size > self.capacity:
                gone.append(self._evict(keep))
            self.misses += 1
            self.loaded += size
            self._held[key] = size
            self.held += size
            self.peak = max(self.peak, self.held)
        if change:
            self._changed.add(key)
        return gone

    def _evict(self, keep: set[Hashable]) -> Hashable:
        able = (k for k in self._held if k not in keep)
        if self.policy == "belady":
            never = self._now + sum(map(len, self._uses.values())) + 1
            key = max(able, key=lambda k: self._uses[k][0] if self._uses.get(k) else never)
        else:
            key = next(able)
        self.drop(key)
        return key

    def drop(self, key: Hashable) -> None:
        """Throws a thing out, written back if it was changed.

        Raises:
            HastenError: it is not held.
        """
        if key not in self._held:
            raise HastenError(f"{key!r} is not in the cache")
        size = self._held.pop(key)
        self.held -= size
        if key in self._changed:
            self._changed.remove(key)
            self.written += size

    def flush(self) -> None:
        """Writes back all that was changed; everything stays."""
        self.written += sum(self._held[k] for k in self._changed)
        self._changed.clear()


@dataclass(frozen=True)
class LiveBuffer:
    """A buffer that is needed from step ``begin`` to step ``end``, both included."""

    name: str
    size: int
    begin: int
    end: int


@dataclass(frozen=True)
class Allocation:
    """Where buffers lie.

    Args:
        offsets: name -> first byte.
        peak: bytes of memory that are needed.
        lower: the most that is alive at one step: no placement needs less.
        total: the sum of all sizes, which buffers that share nothing would need.
    """

    offsets: Mapping[str, int]
    peak: int
    lower: int
    total: int


def allocate(buffers: Sequence[LiveBuffer], align: int = 1) -> Allocation:
    """Places buffers once and for all: those that are alive at one step share no byte.

    The largest first, then the longest alive; each in the lowest place where it fits. Of this order and that of
    beginnings the better one.

    Args:
        buffers: names unique.
        align: every offset is a multiple of it.

    Raises:
        HastenError: a name twice, a size below 0, or a life that ends before it begins.

    >>> two = [LiveBuffer("a", 8, 0, 1), LiveBuffer("b", 4, 1, 2), LiveBuffer("c", 8, 2, 3)]
    >>> allocate(two).peak, allocate(two).total
    (12, 20)
    """
    names = [b.name for b in buffers]
    if len(set(names)) < len(names):
        raise HastenError(f"two buffers are called {next(n for n in names if names.count(n) > 1)!r}: rename one")
    for b in buffers:
        if b.size < 0 or b.end < b.begin:
            raise HastenError(f"buffer {b.name} has {b.size} bytes from step {b.begin} to {b.end}: nothing lives so")
    orders = (
        sorted(buffers, key=lambda b: (-b.size, b.begin - b.end, b.name)),
        sorted(buffers, key=lambda b: (b.begin, -b.size, b.name)),
    )
    found = [_placed(order, align) for order in orders]
    offsets = min(found, key=lambda o: _top(o, buffers))
    steps = {s for b in buffers for s in (b.begin, b.end)}
    lower = max((sum(b.size for b in buffers if b.begin <= s <= b.end) for s in steps), default=0)
    return Allocation(offsets, _top(offsets, buffers), lower, sum(b.size for b in buffers))


def _top(offsets: Mapping[str, int], buffers: Sequence[LiveBuffer]) -> int:
    return max((offsets[b.name] + b.size for b in buffers), default=0)


def _placed(order: Sequence[LiveBuffer], align: int) -> dict[str, int]:
    offsets: dict[str, int] = {}
    placed: list[LiveBuffer] = []
    for b in order:
        at = 0
        meets = [o for o in placed if o.begin <= b.end and b.begin <= o.end]
        for other in sorted(meets, key=lambda o: offsets[o.name]):
            if at + b.size <= offsets[other.name]:
                break
            at = max(at, -(-(offsets[other.name] + other.size) // align) * align)
        offsets[b.name] = at
        placed.append(b)
    return offsets

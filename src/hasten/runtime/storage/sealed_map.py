"""What maps of fixed-size values over sealed pages have in common: how a dictionary's calls become accesses.

Every call that names one key is one access, whether the key is there or not: ``pop`` and ``setdefault`` as well, which
`collections.abc` makes of two calls where the key is there and of one where it is not.
"""

from __future__ import annotations

import operator
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar, overload

from hasten.errors import HastenError
from hasten.kernels.oblivious_bins import DELETE, GET, PUT, PUT_ABSENT

T = TypeVar("T")
_MISSING: Any = object()
MOST_KEY = (1 << 64) - 1
"""Keys are whole numbers from 0 to this one."""


Items = Mapping[int, bytes] | Iterable[tuple[int, bytes]]
"""What a map is made of, as a dictionary is."""


def sized_items(items: Items, capacity: int | None) -> tuple[dict[int, bytes], int]:
    """Items whose lengths are in bytes, as a view's need not be, and the capacity: as many as there are when None."""
    held = {k: bytes(v) if isinstance(v, memoryview) else v for k, v in dict(items).items()}
    return held, max(1, len(held)) if capacity is None else capacity


class MapFullError(HastenError):
    """A new key for which there is no room; the map is as it was."""


class SealedMap(MutableMapping[int, bytes]):
    """A `MutableMapping` from whole numbers to bytes of a bounded length, one access at a time.

    Subclasses say what an access is; accesses of several threads follow each other.

    Args:
        capacity: items at most.
        value_bytes: of the longest value.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(self, capacity: int, value_bytes: int) -> None:
        if not 1 <= capacity <= 1 << 30:
            raise ValueError(f"a map's capacity is between 1 and {1 << 30:,}, not {capacity:,}")
        if not 0 <= value_bytes <= 1 << 24:
            raise ValueError(f"values have between 0 and {1 << 24:,} bytes, not {value_bytes:,}")
        self.capacity, self.value_bytes = capacity, value_bytes
        self._lock = threading.Lock()
        self._begun = 0

    @abstractmethod
    def _access(self, key: int, operation: int, value: bytes | None) -> bytes | None:
        """One access, under the lock: the value that was there, None where the key was missing."""

    @abstractmethod
    def _keys(self) -> list[int]: ...

    @abstractmethod
    def _parts(self) -> int:
        """Into how many parts a scan falls, such as its pages."""

    @abstractmethod
    def _part(self, number: int) -> list[tuple[int, bytes]]:
        """Items of a part, under the lock."""

    def _key(self, key: Any) -> int:
        try:
            number = operator.index(key)
        except TypeError:
            raise TypeError(f"keys are whole numbers, not {type(key).__name__}") from None
        if not 0 <= number <= MOST_KEY:
            raise ValueError(f"keys are between 0 and 2^64 - 1, not {number}")
        return number

    def _value(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"values are bytes, not {type(value).__name__}")
        if memoryview(value).nbytes > self.value_bytes:
            length = memoryview(value).nbytes
            raise ValueError(f"a value of {length:,} bytes is too long: this map's have {self.value_bytes:,} at most")
        return bytes(value)

    def _at(self, key: Any, operation: int, value: bytes | None = None) -> bytes | None:
        number = self._key(key)
        with self._lock:
            self._begun += 1
            return self._access(number, operation, value)

    def __getitem__(self, key: int) -> bytes:
        found = self._at(key, GET)
        if found is None:
            raise KeyError(key)
        return found

    def __setitem__(self, key: int, value: bytes) -> None:
        self._at(key, PUT, self._value(value))

    def __delitem__(self, key: int) -> None:
        if self._at(key, DELETE) is None:
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self._at(key, GET) is not None

    @overload
    def get(self, key: int, default: None = None) -> bytes | None: ...
    @overload
    def get(self, key: int, default: bytes | T) -> bytes | T: ...
    def get(self, key: int, default: Any = None) -> Any:
        found = self._at(key, GET)
        return default if found is None else found

    @overload
    def pop(self, key: int) -> bytes: ...
    @overload
    def pop(self, key: int, default: bytes | T) -> bytes | T: ...
    def pop(self, key: int, default: Any = _MISSING) -> Any:
        found = self._at(key, DELETE)
        if found is None and default is _MISSING:
            raise KeyError(key)
        return default if found is None else found

    def setdefault(self, key: int, default: Any = b"") -> bytes:
        value = self._value(default)
        found = self._at(key, PUT_ABSENT, value)
        return value if found is None else found

    def popitem(self) -> tuple[int, bytes]:
        """Takes the key that was there longest, or in the place of one that was; one access."""
        key = next(iter(self), None)
        if key is None:
            raise KeyError("popitem: the map is empty")
        return key, self.pop(key)

    def clear(self) -> None:
        """Takes all keys away, an access for each that was there."""
        for key in list(self):
            self.pop(key, None)

    def __iter__(self) -> Iterator[int]:
        """Keys, from trusted memory: no access."""
        with self._lock:
            return iter(self._keys())

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """All items, by reading every page once in order: less than an access for each, and it tells nothing.

        Raises:
            RuntimeError: the map was accessed meanwhile.
        """
        begun = self._begun
        for number in range(self._parts()):
            with self._lock:
                if self._begun != begun:
                    raise RuntimeError("the map was accessed during a scan of it")
                items = self._part(number)
            yield from items

    @abstractmethod
    def copy(self) -> SealedMap:
        """The same items in a map of its own, with another key, in this process' memory."""

    def __copy__(self) -> SealedMap:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> SealedMap:
        return self.copy()

    def __reduce__(self) -> Any:
        raise HastenError("sealed maps are not pickled, their key would be with them: send dict(the_map.scan())")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self.capacity} items of {self.value_bytes} bytes)"

    def _full(self) -> MapFullError:
        return MapFullError(
            f"the map has room for {self.capacity:,} items and is full: delete some, or make a larger one"
        )

    def _given(self, items: Mapping[int, bytes] | Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
        """What a map begins with, checked."""
        given = {self._key(k): self._value(v) for k, v in dict(items).items()}
        if len(given) > self.capacity:
            raise MapFullError(f"{len(given):,} items are more than the map's capacity of {self.capacity:,}")
        return given

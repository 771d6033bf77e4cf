"""Pages of one size in memory that is not trusted, sealed: whoever holds them can neither read, change, swap nor
put back older ones without being noticed.

Each page is AES-256-GCM of its contents. The key is made with the pages and never leaves them, so it ends with the
process. The nonce is the page's number (4 bytes) and the number of this sealing (8 bytes), which counts up and is drawn
before it is used, so that no nonce is used twice with a key, also where a sealing or a write failed (NIST SP 800-38D,
8.2.1). Which sealing of a page is the latest is kept here, in trusted memory, 8 bytes a page: an older page, or one
from another place, does not open. A process that was forked would count up by itself, so it is refused.
"""

from __future__ import annotations

import itertools
import os
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from hasten.errors import HastenError, MissingExtraError
from hasten.files import named_path

TAG = 16
"""Bytes that sealing adds to a page."""
_MOST_BLOCKS = 1 << 48
# 2^48 blocks of 16 bytes under one key: an observer who has seen them all tells them from random ones with an
# advantage below 2^-32 (the birthday bound of a block cipher of 128 bits).


class PageStore(Protocol):
    """Memory of ``pages`` pages of one size, which is watched and may lie."""

    def read(self, page: int) -> bytes: ...
    def write(self, page: int, contents: bytes) -> None: ...


StoreMaker: TypeAlias = Callable[[int, int], PageStore]
"""Makes a store of (pages, bytes of a page)."""


class TamperedPageError(HastenError):
    """A page is not what was last written there; nothing was changed by the access that found it."""


class MemoryPages:
    """Pages in this process' memory, for an accelerator's or an enclave's view of its host.

    Raises:
        HastenError: there is no memory for them.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        try:
            self._size, self.memory = page_bytes, bytearray(pages * page_bytes)
        except (MemoryError, OverflowError):
            raise HastenError(
                f"there is no memory for {pages:,} pages of {page_bytes:,} bytes: put them into a file, or take fewer"
            ) from None

    def read(self, page: int) -> bytes:
        at = page * self._size
        return bytes(self.memory[at : at + self._size])  # a copy: it must not change between its check and its use

    def write(self, page: int, contents: bytes) -> None:
        at = page * self._size
        self.memory[at : at + self._size] = contents


class FilePages:
    """Pages in a file that is made anew, at its full size; it is deleted when the pages are no longer used.

    Its key ends with the process, so that nobody could read it later.

    Args:
        path: where nothing is yet.
        pages, page_bytes: its size.

    Raises:
        HastenError: something is there, it cannot be made, or there is no room for it.
    """

    def __init__(self, path: str | Path, pages: int, page_bytes: int) -> None:
        self.path, self._pages, self._size = named_path(path), pages, page_bytes
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise HastenError(f"{self.path} is there already: name a file that is not, for sealed pages") from None
        except OSError as error:
            raise HastenError(f"cannot make {self.path}: {error.strerror}") from None
        self.close = weakref.finalize(self, _remove, self._file, self.path, os.getpid())
        try:
            os.posix_fallocate(self._file, 0, max(1, pages * page_bytes))
        except OSError as error:
            self.close()
            what = f"cannot make {self.path} of {pages * page_bytes:,} bytes: {error.strerror}"
            raise HastenError(what) from None

    def read(self, page: int) -> bytes:
        try:
            found = os.pread(self._file, self._size, page * self._size)
        except OSError as error:
            raise HastenError(f"cannot read page {page} of {self.path}: {error.strerror}: try again") from None
        if len(found) < self._size:
            whole = self._pages * self._size
            raise HastenError(f"{self.path} is cut short, it had {whole:,} bytes: put it back whole and try again")
        return found

    def write(self, page: int, contents: bytes) -> None:
        try:
            done = os.pwrite(self._file, contents, page * self._size)
        except OSError as error:
            raise HastenError(f"cannot write page {page} of {self.path}: {error.strerror}: {_KEPT}") from None
        if done < len(contents):
            raise HastenError(f"cannot write all of page {page} of {self.path}: {_KEPT}")


_KEPT = "it is kept, and written before the next access"


def _remove(file: int, path: Path, process: int) -> None:
    """Of a file that a forked process holds too, only its maker removes the name."""
    os.close(file)
    if os.getpid() == process:
        path.unlink(missing_ok=True)


class RecordedPages:
    """Another store, and what an observer of it sees.

    ``accesses`` are ("read" or "write", page) in order, ``moved`` the bytes of them all, until `forget`.
    """

    def __init__(self, store: PageStore) -> None:
        self._store = store
        self.accesses: list[tuple[str, int]] = []
        self.moved = 0

    def forget(self) -> None:
        self.accesses.clear()
        self.moved = 0

    def read(self, page: int) -> bytes:
        self.accesses.append(("read", page))
        found = self._store.read(page)
        self.moved += len(found)
        return found

    def write(self, page: int, contents: bytes) -> None:
        self.accesses.append(("write", page))
        self.moved += len(contents)
        self._store.write(page, contents)


def recorded(stores: list[RecordedPages]) -> StoreMaker:
    """Makes pages in this process' memory that are recorded, and appends them to ``stores``."""

    def make(pages: int, page_bytes: int) -> PageStore:
        stores.append(RecordedPages(MemoryPages(pages, page_bytes)))
        return stores[-1]

    return make


class SealedPages:
    """Pages of ``page_bytes`` bytes of contents, each sealed in a store before anybody reads it.

    Reads and writes of one page are for one thread at a time; numbers of sealings are not drawn twice by several.

    Args:
        pages, page_bytes: number, and bytes of their contents.
        store: makes what the sealed ones, `TAG` bytes longer, are kept in; in this process' memory when None.

    Raises:
        MissingExtraError: the package ``cryptography`` is missing.
        HastenError: the store cannot be made.
    """

    def __init__(self, pages: int, page_bytes: int, store: StoreMaker | None = None) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtraError("cryptography", "oblivious") from None
        self._invalid: type[Exception] = InvalidTag
        self._cipher: Any = AESGCM(AESGCM.generate_key(256))
        self._last = _MOST_BLOCKS // (page_bytes // 16 + 2)
        self._numbers = itertools.count(1)  # of which every next one is given once, whoever asks
        self._sealed = array("Q", bytes(8 * pages))
        self.page_bytes, self.sealed_bytes = page_bytes, page_bytes + TAG
        self.store = (store or MemoryPages)(pages, self.sealed_bytes)
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._sealed)

    def read(self, page: int) -> bytes:
        """A page's contents.

        Raises:
            TamperedPageError: it is not what was last written there.
            HastenError: the store cannot be read, or is cut short.
        """
        sealed = self.store.read(page)
        nonce = page.to_bytes(4, "little") + self._sealed[page].to_bytes(8, "little")
        try:
            contents: bytes = self._cipher.decrypt(nonce, sealed, None)
        except self._invalid:
            raise TamperedPageError(
                f"page {page} of {len(self)} was changed, or an older one put in its place: put back the one that was "
                "last written there and try again, or make the map anew"
            ) from None
        return contents

    def write(self, page: int, contents: bytes) -> None:
        """Seals a page with a number of its own, and stores it.

        Raises:
            HastenError: the store cannot be written, or the key has sealed as much as a key should.
        """
        number = next(self._numbers)
        if number > self._last:
            raise HastenError(
                "the pages' key has sealed as much as one key should: copy the map, which takes a new one"
            )
        sealed = self._cipher.encrypt(page.to_bytes(4, "little") + number.to_bytes(8, "little"), contents, None)
        # Before the store is written: of a write that failed half-way neither page opens, and it is repeated.
        self._sealed[page] = number
        self.store.write(page, sealed)

    def __reduce__(self) -> Any:
        raise HastenError("sealed pages are not pickled, their key would be with them: copy or send what they hold")


_ALL: weakref.WeakSet[SealedPages] = weakref.WeakSet()


class _Forked:
    """Stands for the cipher in a forked process, which would seal other contents with the same nonces."""

    def encrypt(self, *_: object) -> bytes:
        raise HastenError("these sealed pages were made before this process was forked: make the map in this process")

    decrypt = encrypt


def _refuse_in_child() -> None:
    for pages in _ALL:
        pages._cipher = _Forked()


os.register_at_fork(after_in_child=_refuse_in_child)

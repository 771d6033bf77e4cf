"""Sealed pages: a nonce of their own each time, whatever fails, and none in a forked process."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from hasten.errors import HastenError, MissingExtraError
from hasten.runtime.storage.sealed_pages import TAG, MemoryPages, RecordedPages, SealedPages, recorded


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"run pip install 'hasten\[oblivious\]'"):
        SealedPages(1, 16)


class _Spy:
    """Stands before the cipher, and fails at times."""

    def __init__(self, cipher: object) -> None:
        self.cipher, self.nonces, self.fails = cipher, [], False

    def encrypt(self, nonce: bytes, contents: bytes, more: None) -> bytes:
        self.nonces.append(nonce)
        if self.fails:
            raise MemoryError
        return self.cipher.encrypt(nonce, contents, more)

    def decrypt(self, *given: object) -> bytes:
        return self.cipher.decrypt(*given)


@pytest.fixture
def pages() -> SealedPages:
    pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    return SealedPages(4, 16)


def test_no_nonce_comes_twice(pages: SealedPages) -> None:
    spy = pages._cipher = _Spy(pages._cipher)
    store = pages.store
    for number in range(40):
        spy.fails = number % 3 == 1
        pages.store = RecordedPages(store) if number % 5 else _Full()
        try:
            pages.write(number % 4, bytes([number]) * 16)
        except (MemoryError, HastenError):
            continue
        assert pages.read(number % 4) == bytes([number]) * 16
    spy.fails, pages.store = False, store

    def write(page: int) -> None:
        for _ in range(200):
            pages.write(page, bytes(16))

    threads = [threading.Thread(target=write, args=(page,)) for page in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spy.nonces) == 840
    assert len(set(spy.nonces)) == 840
    assert {len(n) for n in spy.nonces} == {12}
    assert [pages.read(page) for page in range(4)] == [bytes(16)] * 4


class _Full:
    def read(self, page: int) -> bytes:
        raise HastenError("no")

    def write(self, page: int, contents: bytes) -> None:
        raise HastenError("no")


def test_two_stores_have_two_keys_and_pages_have_one_size() -> None:
    pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    stores: list[RecordedPages] = []
    for _ in range(2):
        SealedPages(1, 100, recorded(stores)).write(0, bytes(100))
    one, other = (store.read(0) for store in stores)
    assert len(one) == len(other) == 100 + TAG
    assert one != other


def test_the_standards_cipher(pages: SealedPages) -> None:
    """NIST's AES-256-GCM vector (GCM specification, test case 14), so that what seals is what it says."""
    kind = type(pages._cipher)
    found = kind(bytes(32)).encrypt(bytes(12), bytes(16), None)
    assert found.hex() == "cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919"
    assert pages._cipher.encrypt(bytes(12), bytes(16), None) != found


def test_a_key_seals_no_more_than_it_should(pages: SealedPages) -> None:
    pages._last = 2
    pages.write(0, bytes(16))
    pages.write(0, bytes(16))
    with pytest.raises(HastenError, match="copy the map"):
        pages.write(0, bytes(16))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_seals_nothing(pages: SealedPages) -> None:
    pages.write(0, bytes(16))
    child = os.fork()
    if not child:
        try:
            pages.write(0, bytes(16))
        except HastenError as error:
            os._exit(7 if "before this process was forked" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert pages.read(0) == bytes(16)


def test_more_pages_than_memory_are_told_in_a_line() -> None:
    with pytest.raises(HastenError, match=r"no memory for .* put them into a file"):
        MemoryPages(1 << 44, 1 << 16)


def test_memory_gives_copies() -> None:
    store = MemoryPages(2, 3)
    found = store.read(0)
    store.write(0, b"abc")
    assert found == bytes(3)
    assert store.read(0) == b"abc"

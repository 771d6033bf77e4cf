"""Several trainings side by side: the arms of a comparison, a thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back while processes are started: they never see it, not while they start either.

    A terminal sends it to all, and each would report it; who starts processes ends them when it is interrupted.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Of glibc; other systems' libraries do not read it.
_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started within it have these environment variables; afterwards this one's are as before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def huge_pages_asked() -> contextlib.AbstractContextManager[None]:
    """Processes that are started within it take their memory in huge pages where the system has them.

    A training gives the memory of its activations back and takes it again at every step; mapped in small pages, that
    can take longer than its arithmetic. Settings of the user for this, in ``GLIBC_TUNABLES``, stay.
    """
    users = os.environ.get(_TUNABLES, "")
    return environment({} if _HUGE in users else {_TUNABLES: ":".join(filter(None, (users, f"{_HUGE}=1")))})


def restart_in_huge_pages() -> None:
    """Starts this program again, by the words it was started with, so that its memory comes in huge pages.

    glibc reads that setting only when a program begins. Nothing happens, and this returns, where the system has no such
    pages, the setting is there already, or what runs was not started by these words.
    """
    words, given = sys.orig_argv, sys.argv[1:]
    if not given or words[-len(given) :] != given or _HUGE in os.environ.get(_TUNABLES, "") or not _huge_pages():
        return
    with huge_pages_asked(), contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *words[1:]])


def _huge_pages() -> bool:
    """Whether glibc can have them here: from its version 2.35 on, where the system is not told to make none."""
    name, version = platform.libc_ver()
    try:
        kept = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return name == "glibc" and not kept and [int(n) for n in version.split(".")[:2]] >= [2, 35]
    except (OSError, ValueError):
        return False


def end_with_parent() -> None:
    """Lets this process end when its parent does, however that ends, whatever runs here."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch on so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """torch on one thread: threads that wait for each other cost small operations many times their work."""
    return torch_threads(1)


def _begin() -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)


def run_arms(
    function: Callable[..., T],
    arms: Sequence[tuple[Any, ...]],
    *,
    progress: Callable[[float], None] = lambda share: None,
    each: Callable[[int, T], None] = lambda number, result: None,
    processes: int | None = None,
) -> list[T]:
    """Results of ``function(*arm)`` for each arm, in their order.

    Every arm has one thread, so that all have the same, and as many run at once as torch may use threads. With one
    thread or one arm they run here, one after the other.

    Args:
        function: importable by its name, as are its arguments' types.
        arms: arguments.
        progress: told the share done.
        each: told an arm's number and its result as soon as there is one, to keep it.
        processes: at once; torch's number of threads when None.

    Raises:
        Exception: the first that an arm raised; the others are not begun.
    """
    import torch

    count = min(processes or torch.get_num_threads(), len(arms))
    if count < 2:
        found = []
        for number, arm in enumerate(arms):
            found.append(function(*arm))
            each(number, found[-1])
            progress((number + 1) / len(arms))
        return found
    # Forking would copy locked thread pools.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)
    try:
        with interrupts_held(), huge_pages_asked():
            waiting = {pool.submit(function, *arm): number for number, arm in enumerate(arms)}
        for done, future in enumerate(as_completed(waiting)):
            each(waiting[future], future.result())
            progress((done + 1) / len(arms))
        return [future.result() for future in waiting]
    except (KeyboardInterrupt, SystemExit):  # TimeIsUp is one
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()  # an arm may go on for minutes
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class TimeIsUp(KeyboardInterrupt):
    """The time is over: what is going on is broken off as Ctrl-C would, and nothing of it is kept."""


class TimeLimit:
    """Whether what goes on within `at_most` was broken off, or should be.

    Args:
        seconds: from now; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self.broken_off = False

    def check(self) -> None:
        """Raises `TimeIsUp` when the time is over: for threads that no signal reaches."""
        if self._end is not None and time.monotonic() >= self._end:
            self.broken_off = True
            raise TimeIsUp


class at_most:
    """Breaks off what goes on within it after so many seconds, by `TimeIsUp`, and again while it does not end.

    In the main thread, where the system has signals, that is at once, waiting for other processes included; elsewhere
    it is where the limit is asked (`TimeLimit.check`). Once it is left, nothing is broken off any more, whenever the
    time ran out and whoever keeps the exception.

    Args:
        seconds: from where it is entered; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._limit = TimeLimit(None)
        self._ended = threading.Event()
        self._watching: threading.Thread | None = None
        self._before: Any = None

    def __enter__(self) -> TimeLimit:
        self._limit = TimeLimit(self._seconds)
        main = threading.main_thread()
        if self._seconds is not None and threading.current_thread() is main and hasattr(signal, "SIGALRM"):
            self._before = signal.signal(signal.SIGALRM, self._alarm)
            self._watching = threading.Thread(target=self._watch, args=(self._seconds, main.ident), daemon=True)
            self._watching.start()
        return self._limit

    def __exit__(self, *error: object) -> None:
        if self._watching is None:
            return
        self._ended.set()
        self._watching.join()
        self._watching = None
        signal.signal(signal.SIGALRM, self._before)

    def _watch(self, pause: float, main: int) -> None:
        while not self._ended.wait(pause):
            self._limit.broken_off, pause = True, 0.5
            signal.pthread_kill(main, signal.SIGALRM)

    def _alarm(self, number: int, frame: types.FrameType | None) -> None:
        if _held:  # the next alarm comes soon
            return
        within = frame
        while within is not None:
            if within.f_code in _UNBROKEN:  # broken off there, a limit would never be lifted; the next alarm comes soon
                return
            within = within.f_back
        if self._limit.broken_off and not self._ended.is_set():
            raise TimeIsUp
        if callable(self._before):
            self._before(number, frame)  # it is somebody else's


_UNBROKEN = (at_most.__enter__.__code__, at_most.__exit__.__code__)
_held: list[bool] = []  # one for each `unbroken` that the main thread is in


@contextmanager
def unbroken() -> Iterator[None]:
    """Holds Ctrl-C and `at_most` back until it is left: for compiled code of others that calls Python and ends the
    whole process where that raises. Other threads than the main one are not interrupted anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = before is not None  # else somebody's handler that is not Python's: it could not be put back
    if ours:
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    _held.append(True)
    try:
        yield
    finally:
        _held.pop()
        if ours:
            signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def bytes_from_storage() -> int | None:
    """Bytes that this process has had read from storage so far; None where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)

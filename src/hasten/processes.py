"""Several trainings side by side: the arms of a comparison, a thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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
        with interrupts_held():
            waiting = {pool.submit(function, *arm): number for number, arm in enumerate(arms)}
        for done, future in enumerate(as_completed(waiting)):
            each(waiting[future], future.result())
            progress((done + 1) / len(arms))
        return [future.result() for future in waiting]
    except (KeyboardInterrupt, SystemExit):
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()  # an arm may go on for minutes
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def bytes_from_storage() -> int | None:
    """Bytes that this process has had read from storage so far; None where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)

"""Where points are scored: here, in processes of this machine, or on machines that Ray joins.

A worker that dies is replaced, and its point is handed out again. The study alone writes down results, so that what a
worker was at when everything was killed is tried again by the next run, and nothing twice.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from hasten.errors import HastenError, MissingExtraError
from hasten.search.problem import Infeasible, Problem
from hasten.search.space import Params


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its values, constraints and details, the seconds it took, or why it cannot be had.

    ``error`` is what is wrong with the problem itself, and ends the run.
    """

    values: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    error: Exception | None = None


def outcome(problem: Problem, params: Params, catch: bool = False) -> Outcome:
    """Scores a point; with ``catch`` what it raises is handed over instead of raised."""
    begun = time.monotonic()
    try:
        values, limits, details = problem.score(params)
    except Infeasible as error:
        return Outcome(seconds=time.monotonic() - begun, reason=str(error) or "it cannot be had")
    except Exception as error:
        if not catch:
            raise
        if isinstance(error, HastenError):
            return Outcome(error=HastenError(str(error)))
        return Outcome(error=HastenError(f"scoring {params} failed: {type(error).__name__}: {error}"))
    return Outcome(values, limits, details, time.monotonic() - begun)


class Workers(ABC):
    """Scores several points at the same time. A context: leaving it ends the workers.

    ``size`` is how many points they score at once.
    """

    size: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def submit(self, key: str, params: Params) -> None:
        """Hands out a point; there are at most ``size`` out at a time."""

    @abstractmethod
    def wait(self) -> list[tuple[str, Outcome | None]]:
        """Waits for at least one point; None in place of an outcome whose worker died."""

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, whatever they are at."""


def pack(problem: Problem) -> bytes:
    """A problem as bytes for another process, functions included.

    Raises:
        HastenError: it holds something that cannot be sent, such as an open file.
    """
    import cloudpickle

    try:
        packed: bytes = cloudpickle.dumps(problem)
    except Exception as error:
        raise HastenError(
            f"problem {problem.name!r} cannot be sent to another process ({type(error).__name__}: {error}):"
            " score it in this one, or make what it needs inside evaluate"
        ) from None
    return packed


def _serve(connection: Connection, packed: bytes, threads: int) -> None:
    """A worker process: scores points until the connection closes."""
    import signal

    import cloudpickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's to handle
    import torch

    torch.set_num_threads(threads)
    problem = cloudpickle.loads(packed)
    while True:
        try:
            params = connection.recv()
        except EOFError:
            return
        connection.send(outcome(problem, params, catch=True))


class _Process:
    def __init__(self, context: Any, packed: bytes, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, packed, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.key: str | None = None


class Processes(Workers):
    """Processes of this machine.

    Args:
        problem: what is scored; sent to each.
        size: how many.
        threads: of torch in each; the machine's cores divided among them when None.

    Raises:
        HastenError: fewer than one, or a problem that cannot be sent.
    """

    def __init__(self, problem: Problem, size: int, threads: int | None = None) -> None:
        if size < 1:
            raise HastenError("a search needs at least one worker")
        import torch

        self.size, self.packed = size, pack(problem)
        self.threads = threads or max(1, torch.get_num_threads() // size)
        self.context = multiprocessing.get_context("spawn")
        self.team: list[_Process] = []

    def submit(self, key: str, params: Params) -> None:
        free = next((w for w in self.team if w.key is None), None)
        if free is None:
            free = _Process(self.context, self.packed, self.threads)
            self.team.append(free)
        free.key = key
        try:
            free.connection.send(params)
        except OSError:
            pass  # it died since: waiting finds out

    def wait(self) -> list[tuple[str, Outcome | None]]:
        busy = {w.connection: w for w in self.team if w.key is not None}
        found: list[tuple[str, Outcome | None]] = []
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            assert worker.key is not None
            key, worker.key = worker.key, None
            try:
                found.append((key, connection.recv()))
            except (EOFError, OSError):  # the other end closed with its process
                self.team.remove(worker)
                connection.close()
                worker.process.join(1)
                found.append((key, None))
        return found

    def close(self) -> None:
        for worker in self.team:
            worker.connection.close()
        for worker in self.team:
            if worker.key is not None:
                worker.process.terminate()
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
        self.team = []


def _reach(address: str | None) -> None:
    """Asks whether anything listens there at all: Ray itself tries for minutes."""
    import socket

    host, separator, port = (address or "").partition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise HastenError(f"no Ray cluster at {address}: {error.strerror or error}") from None


class RayWorkers(Workers):
    """Actors of a Ray cluster, on this machine or many.

    Args:
        problem: what is scored; sent to each.
        size: how many actors.
        address: of a running cluster (``auto`` for the one that this machine belongs to); None starts one here.
        cores: that each actor claims.

    Raises:
        HastenError: Ray is missing, there is no such cluster, or the problem cannot be sent.
    """

    def __init__(self, problem: Problem, size: int, address: str | None = None, cores: float = 1.0) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "distributed") from None
        self.ray, self.size, self.cores = ray, size, cores
        self.packed = pack(problem)
        self.started = not ray.is_initialized()
        if self.started:
            _reach(address)
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise HastenError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, str]] = {}
        self.waiting: list[tuple[str, Params]] = []

    def _actor(self) -> Any:
        class Scorer:
            def __init__(self, packed: bytes) -> None:
                import cloudpickle

                self.problem = cloudpickle.loads(packed)

            def score(self, params: Params) -> Outcome:
                return outcome(self.problem, params, catch=True)

        return self.ray.remote(num_cpus=self.cores, max_restarts=0)(Scorer).remote(self.packed)

    @property
    def actors(self) -> list[Any]:
        """Those at work, then the idle ones."""
        return [*(actor for actor, _ in self.busy.values()), *self.idle]

    def submit(self, key: str, params: Params) -> None:
        # A new actor waits for a free core; after a machine was lost there may be none, and those that are left do it.
        room = self.ray.available_resources().get("CPU", 0.0) >= self.cores
        if not self.idle and self.busy and not room:
            self.waiting.append((key, params))
            return
        actor = self.idle.pop() if self.idle else self._actor()
        self.busy[actor.score.remote(params)] = (actor, key)

    def wait(self) -> list[tuple[str, Outcome | None]]:
        ready, _ = self.ray.wait(list(self.busy), num_returns=1)
        found: list[tuple[str, Outcome | None]] = []
        for reference in ready:
            actor, key = self.busy.pop(reference)
            try:
                found.append((key, self.ray.get(reference)))
                self.idle.append(actor)
            except self.ray.exceptions.RayError:
                found.append((key, None))
        waiting, self.waiting = self.waiting, []
        for point in waiting:
            self.submit(*point)
        return found

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.idle, self.busy, self.waiting = [], {}, []
        if self.started:
            self.ray.shutdown()

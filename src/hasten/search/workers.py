"""Where points are scored: here, in processes of this machine, or on machines that Ray joins.

A worker that dies is replaced, and its point is handed out again. The study alone writes down results, so that what a
worker was at when everything was killed is tried again by the next run, and nothing twice.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import cloudpickle

from hasten.errors import HastenError, MissingExtraError
from hasten.processes import end_with_parent, interrupts_held
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Problem

# Seconds: between looks at actors that were given no core, and until that ends the run.
_LOOK, _PATIENCE = 1.0, 120.0
# Workers in a row that end before they start: they never will.
_STILLBORN = 2


@dataclass(frozen=True)
class Evaluation:
    """What became of a point: its values, constraints and details, the seconds it took, or why it cannot be had and how
    far it is from one that can.

    ``error`` is what is wrong with the problem itself, and ends the run.
    """

    values: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    distance: float = 0.0
    error: Exception | None = None


def evaluate(problem: Problem, params: Params, catch: bool = False) -> Evaluation:
    """Scores a point; with ``catch`` what it raises is handed over instead of raised."""
    begun = time.monotonic()
    try:
        values, limits, details = problem.score(params)
    except Infeasible as error:
        reason = str(error) or "it cannot be had"
        return Evaluation(seconds=time.monotonic() - begun, reason=reason, distance=error.distance)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a user's code may end the process, or try to
        if not catch:
            raise
        if isinstance(error, HastenError):
            return Evaluation(error=HastenError(str(error)))
        return Evaluation(error=HastenError(f"scoring {params} failed: {type(error).__name__}: {error}"))
    return Evaluation(values, limits, details, time.monotonic() - begun)


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
    def wait(self, seconds: float | None = None) -> list[tuple[str, Evaluation | None]]:
        """Waits for points, ``seconds`` at most; none perhaps. None in place of an evaluation whose worker died."""

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, whatever they are at."""


def pack(problem: Problem) -> bytes:
    """A problem as bytes for another process, functions included.

    Raises:
        HastenError: it holds something that cannot be sent, such as an open file.
    """
    try:
        packed: bytes = cloudpickle.dumps(problem)
    except Exception as error:
        raise HastenError(
            f"problem {problem.name!r} cannot be sent to another process ({type(error).__name__}: {error}):"
            " score it in this one, or make what it needs inside evaluate"
        ) from None
    return packed


class _Unpacked:
    """A problem in a worker. One that cannot be unpacked there is wrong for every point, and ends the run."""

    def __init__(self, packed: bytes) -> None:
        self.problem: Problem | None = None
        try:
            self.problem = cloudpickle.loads(packed)
        except Exception as error:
            self.error = HastenError(
                f"a worker cannot load the problem ({type(error).__name__}: {error}):"
                " install there what it is made of, or score it in one process"
            )

    def score(self, params: Params) -> Evaluation:
        return Evaluation(error=self.error) if self.problem is None else evaluate(self.problem, params, catch=True)


def _serve(connection: Connection, packed: bytes, threads: int) -> None:
    """A worker process: scores points until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's to handle
    import torch

    end_with_parent()
    torch.set_num_threads(threads)
    problem = _Unpacked(packed)
    try:
        connection.send(None)  # it has started
        while True:
            result = problem.score(connection.recv())
            try:
                connection.send(result)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                why = f"evaluate returned details that cannot be stored: {error}"
                connection.send(Evaluation(error=HastenError(why)))
    except (EOFError, OSError):  # the search has ended
        return


class _Process:
    def __init__(self, context: Any, packed: bytes, threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, packed, threads), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()
        self.key: str | None = None
        self.started = False


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
        self.stillborn = 0

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

    def wait(self, seconds: float | None = None) -> list[tuple[str, Evaluation | None]]:
        busy = {w.connection: w for w in self.team if w.key is not None}
        found: list[tuple[str, Evaluation | None]] = []
        for connection in wait(list(busy), seconds):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            assert worker.key is not None
            try:
                result = connection.recv()
            except (EOFError, OSError):  # the other end closed with its process
                self.team.remove(worker)
                connection.close()
                worker.process.join(1)
                found.append((worker.key, None))
                self.stillborn += not worker.started
                if self.stillborn >= _STILLBORN:
                    raise HastenError(
                        f"workers end before they start (exit code {worker.process.exitcode}): what is above says why;"
                        " a script that searches must do so under if __name__ == '__main__'"
                    ) from None
                continue
            if not worker.started:
                worker.started, self.stillborn = True, 0
                continue
            found.append((worker.key, result))
            worker.key = None
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
    host, separator, port = (address or "").partition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise HastenError(f"no Ray cluster at {address}: {error.strerror or error}") from None


@dataclass(frozen=True)
class _Actor:
    """An actor, and what is there once a machine has started it."""

    remote: Any
    ready: Any


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
                why = (str(error) or type(error).__name__).splitlines()[0]
                raise HastenError(f"no Ray cluster at {address or 'this machine'}: {why}") from None
        self.idle: list[_Actor] = []
        self.busy: dict[Any, tuple[_Actor, str, Params]] = {}
        self.waiting: list[tuple[str, Params]] = []

    def _actor(self) -> _Actor:
        remote = self.ray.remote(num_cpus=self.cores, max_restarts=0)(_Unpacked).remote(self.packed)
        return _Actor(remote, remote.__ray_ready__.remote())

    @property
    def actors(self) -> list[Any]:
        """Those at work, then the idle ones."""
        return [*(actor.remote for actor, _, _ in self.busy.values()), *(actor.remote for actor in self.idle)]

    def _started(self, actor: _Actor) -> bool:
        return bool(self.ray.wait([actor.ready], timeout=0)[0])

    def submit(self, key: str, params: Params) -> None:
        # A new actor waits for a free core; after a machine was lost there may be none, and those that are left do it.
        room = self.ray.available_resources().get("CPU", 0.0) >= self.cores
        if not self.idle and self.busy and not room:
            self.waiting.append((key, params))
            return
        actor = self.idle.pop() if self.idle else self._actor()
        self.busy[actor.remote.score.remote(params)] = (actor, key, params)

    def wait(self, seconds: float | None = None) -> list[tuple[str, Evaluation | None]]:
        begun = time.monotonic()
        ready: list[Any] = []
        while not ready:
            ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=_LOOK if seconds is None else seconds)
            if seconds is not None:
                break
            if ready or self._redeal() or any(self._started(actor) for actor, _, _ in self.busy.values()):
                continue
            if time.monotonic() - begun > _PATIENCE:
                raise HastenError(
                    f"no machine of the Ray cluster gave a core within {_PATIENCE:.0f} s:"
                    " add machines, end what else runs there, or ask for fewer workers"
                )
        found: list[tuple[str, Evaluation | None]] = []
        for reference in ready:
            actor, key, _ = self.busy.pop(reference)
            try:
                found.append((key, self.ray.get(reference)))
                self.idle.append(actor)
            except self.ray.exceptions.RayError:
                found.append((key, None))
        waiting, self.waiting = self.waiting, []
        for point in waiting:
            self.submit(*point)
        return found

    def _redeal(self) -> bool:
        """Gives the point of an actor that got no core to one that has nothing to do.

        Ray's figures of free cores lag behind, so an actor may have been asked for that no machine has room for.
        """
        stuck = [(reference, entry) for reference, entry in self.busy.items() if not self._started(entry[0])]
        if not self.idle or not stuck:
            return False
        reference, (actor, key, params) = stuck[0]
        del self.busy[reference]
        self.ray.kill(actor.remote)
        free = self.idle.pop()
        self.busy[free.remote.score.remote(params)] = (free, key, params)
        return True

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.idle, self.busy, self.waiting = [], {}, []
        if self.started:
            self.ray.shutdown()

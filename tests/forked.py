"""Programs in processes of their own that need not import torch first: each is forked off one that has.

A program has its own arguments, folder, environment and streams, and ends as any other: by its exit code or by a
signal. What it does while Python starts (streams that are closed, encodings, what libraries read of the environment as
they are loaded, what an import brings with it) is another matter, and tested with processes that start anew.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

# What programs import in the end. None of these starts a thread, which a fork would lose.
IMPORTED = (
    "torch",
    "hasten.cli",
    "hasten.tuning.tune",
    "hasten.tuning.network",
    "hasten.papers.running",
    "hasten.report",
    "hasten.search",
    "hasten.spaces",
    "transformers.models.llama.modeling_llama",
    "pytest",
)
HASTEN = ("-m", "hasten.cli")


class Server:
    """Runs programs, one after the other, in forks of a process that has imported what they need."""

    def __init__(self, requests: IO[str], replies: IO[str], wait: Callable[[], object]) -> None:
        self._requests, self._replies, self._wait = requests, replies, wait
        atexit.register(self._end)

    def _end(self) -> None:
        self._requests.close()
        self._wait()

    def run(
        self,
        *words: str,
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 280,
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of ``[sys.executable, *words]`` with its output captured, and nothing to read.

        Args:
            words: ``-m`` and a module or a package, or a file; and what it is called with.

        Raises:
            subprocess.TimeoutExpired: it went on for longer than ``timeout`` seconds, and was killed.
        """
        with tempfile.TemporaryDirectory() as kept:
            folder = Path(kept)
            (folder / "request").write_text(
                json.dumps({"words": words, "cwd": str(cwd or Path.cwd()), "env": env or dict(os.environ)})
            )
            print(folder, file=self._requests, flush=True)
            process = int(self._reply())
            if not select.select([self._replies], [], [], timeout)[0]:
                os.kill(process, signal.SIGKILL)
                self._reply()
                raise subprocess.TimeoutExpired([sys.executable, *words], timeout)
            code = int(self._reply())
            out, err = ((folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
            return subprocess.CompletedProcess([sys.executable, *words], code, out, err)

    def _reply(self) -> str:
        reply = self._replies.readline()
        if not reply:
            raise RuntimeError("the process that others are forked off has ended")
        return reply


@functools.cache
def server() -> Server:
    """The one of this process, started when it is first asked for."""
    requests, replies = os.pipe(), os.pipe()
    process = subprocess.Popen([sys.executable, __file__], stdin=requests[0], stdout=replies[1])
    return _server_of(requests, replies, process.wait)


def twin() -> Server:
    """A copy of this process as it is now, that goes on being so: for a program that others are to be run beside."""
    requests, replies = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.close(requests[1])
        os.close(replies[0])
        serve(os.fdopen(requests[0]), os.fdopen(replies[1], "w"))
    return _server_of(requests, replies, lambda: os.waitpid(process, 0))


def _server_of(requests: tuple[int, int], replies: tuple[int, int], wait: Callable[[], object]) -> Server:
    """Of a process that has the pipes' other ends."""
    os.close(requests[0])
    os.close(replies[1])
    return Server(os.fdopen(requests[1], "w"), os.fdopen(replies[0]), wait)


def run(
    *words: str, cwd: str | Path | None = None, env: dict[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """See `Server.run`."""
    return server().run(*words, cwd=cwd, env=env, timeout=timeout)


def serve(requests: IO[str], replies: IO[str]) -> NoReturn:
    """Runs what is asked for until nobody can ask any more: never returns, but raises `SystemExit` as programs do."""
    gc.freeze()  # what is there by now is never looked through again, and stays shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    while request := requests.readline():
        process = os.fork()
        if process == 0:
            requests.close()
            replies.close()
            _become(Path(request.removesuffix("\n")))
            sys.exit()
        print(process, file=replies, flush=True)
        status = os.waitpid(process, 0)[1]
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)
    os._exit(0)


def _become(folder: Path) -> None:
    """Turns this process into the program that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.loads((folder / "request").read_text())
    words: Sequence[str] = request["words"]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, (name, mode) in enumerate((("in", "w+"), ("out", "w"), ("err", "w"))):
        with (folder / name).open(mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    more = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    module = words[0] == "-m"
    sys.path[:1] = [os.getcwd() if module else str(Path(words[0]).parent), *more]
    importlib.invalidate_caches()
    sys.argv[:] = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


def _serve_imported() -> NoReturn:
    for name in IMPORTED:
        importlib.import_module(name)
    # Programs have streams of their own, and leave those on which they are asked for alone.
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(requests, replies)


if __name__ == "__main__":
    _serve_imported()

"""Output that is closed, full, read by nobody or of another encoding: told once, or borne in silence.

Results go to stdout: what of them cannot be written is an error in one line. Everything else goes to stderr, and that
nobody can read it changes nothing.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import IO, Any

from hasten.files import to_json

_STDOUT = "the standard output"


class _Results(io.TextIOWrapper):
    """stdout: an error in writing says what could not be written. What its encoding lacks becomes a question mark."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise named(error, self) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise named(error, self) from None


class _Messages(io.TextIOWrapper):
    """stderr: what cannot be written there is told to nobody."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            to_nowhere(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            to_nowhere(self)


class _Closed(io.TextIOBase):
    """stdout of a process that was started without one."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed", _STDOUT)


def named(error: OSError, file: IO[str]) -> OSError:
    """The same error with the name of what could not be written; what is left in the buffer goes nowhere."""
    to_nowhere(file)
    return type(error)(error.errno, error.strerror, _STDOUT)


def to_nowhere(file: IO[str]) -> None:
    """From here on what is written to a file is thrown away: Python would complain of it once more when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
    except (OSError, ValueError):
        pass  # it has no descriptor, or is closed


def prepare() -> None:
    """Makes the standard streams such that everything that is printed ends in a file, or in one error that names it."""
    for descriptor in (0, 1, 2):  # else the next file that is opened takes the place, and what is printed goes into it
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _Closed() if sys.stdout is None else _wrapped(sys.stdout, _Results)
    sys.stderr = open(os.devnull, "w") if sys.stderr is None else _wrapped(sys.stderr, _Messages)  # noqa: SIM115


def _wrapped(stream: Any, kind: type[io.TextIOWrapper]) -> Any:
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        return stream
    # Where PYTHONUNBUFFERED is set each write goes through and no stream says that it keeps lines.
    return kind(
        buffer,
        stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or kind is _Messages,
        write_through=stream.write_through,
    )


_documents: IO[str] | None = None


def keep_stdout_for_documents() -> None:
    """From here on nothing but `document` reaches this process's stdout; what else is written there goes to stderr.

    That is so below Python too, and to the process's end: what a user's file or a library in C prints, and what
    programs that they start print.
    """
    global _documents
    if isinstance(sys.stdout, _Closed):
        _documents, sys.stdout = sys.stdout, sys.stderr  # type: ignore[assignment]
        return
    sys.stdout.flush()
    _documents = _Results(os.fdopen(os.dup(1), "wb"), "utf-8")
    os.dup2(2, 1)
    encoding = sys.stdout.encoding
    sys.stdout = _Messages(sys.stdout.detach(), encoding, errors="replace", line_buffering=True)  # type: ignore


def document(data: Any) -> None:
    """The result as one JSON document."""
    file = _documents or sys.stdout
    try:
        file.write(to_json(data, indent=1) + "\n")
        file.flush()
    except BrokenPipeError:  # what is left in the buffer goes nowhere, or Python complains when it ends
        to_nowhere(file)
        raise

"""Errors that a user can mend: one line saying what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HastenError(Exception):
    """Something outside hasten's control is wrong: an argument, a file, a model, a network.

    The message is one line for a person: what is wrong, then what to do. The command line prints it
    without a traceback and exits with 2.
    """


class MissingExtraError(HastenError):
    """An optional package is not installed.

    >>> str(MissingExtraError("timm", "vision"))
    "timm is not installed: run pip install 'hasten[vision]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run pip install 'hasten[{extra}]'")


@contextmanager
def users_code(what: str, *, from_error: bool = True) -> Iterator[None]:
    """Within it a user's own code runs: however it ends, other than by Ctrl-C, is an error that the user can mend.

    Args:
        what: what runs, for the message: "FILE:NAME failed".
        from_error: whether ``--debug`` shows the traceback of the code too.

    Raises:
        HastenError: the code raised something, ``SystemExit`` included, or its own HastenError.

    >>> try:
    ...     with users_code("net.py failed"):
    ...         raise SystemExit(3)
    ... except HastenError as error:
    ...     print(error)
    net.py failed: SystemExit: 3
    """
    try:
        yield
    except (HastenError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        told = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise HastenError(told) from (error if from_error else None)

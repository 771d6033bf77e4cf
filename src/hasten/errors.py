"""Errors that a user can mend: one line saying what is wrong and what to do."""

from __future__ import annotations


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

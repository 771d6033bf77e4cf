"""What a user is told on stderr: notes of ours, warnings of hasten, and of other libraries what ``-v`` asks for."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OTHERS = r"(?!hasten(\.|$))"
# How libraries that we stand on are told to keep their notices and bars to themselves; what a user has set stays.
_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "KINETO_LOG_LEVEL": "5",  # torch's profiler
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "RAY_DEDUP_LOGS": "1",
    "TOKENIZERS_PARALLELISM": "true",  # not said to be turned off where processes are started
}

# Loggers that have a level of their own from the moment their library is imported, which may have been before us.
_APART = ("transformers", "optuna")

_quiet = False
_verbose = False


def quiet() -> bool:
    """Whether only errors are told."""
    return _quiet


def say(text: str) -> None:
    """A note for whoever looks on; not with ``-q``."""
    if not _quiet:
        print(text, file=sys.stderr)


def complain(text: str) -> None:
    """An error: told whatever was asked for."""
    print(text, file=sys.stderr)


def be_quiet(wanted: bool) -> None:
    """What ``-q`` does."""
    global _quiet
    if wanted:
        _quiet = True
        logging.getLogger("hasten").setLevel(logging.ERROR)


def be_verbose(wanted: bool) -> None:
    """What ``-v`` does: what libraries log and warn of is shown."""
    global _verbose
    if wanted:
        _verbose = True
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
        for name in ("", *_APART):
            logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger("hasten").setLevel(logging.DEBUG)
        warnings.simplefilter("default")


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what stderr is at that moment: a progress bar takes its place for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stderr


def keep_libraries_quiet() -> None:
    """Sets what libraries read from the environment when they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def telling() -> Iterator[None]:
    """Within it warnings of hasten are a line each, those of others are not shown, and logs go to stderr."""
    global _quiet, _verbose
    _quiet = _verbose = False
    handler, root, own = _Stderr(), logging.getLogger(), logging.getLogger("hasten")
    loggers = [root, own, *map(logging.getLogger, _APART)]
    levels = [logger.level for logger in loggers]
    root.addHandler(handler)
    for other in loggers[2:]:
        other.setLevel(logging.ERROR)
    root.setLevel(logging.CRITICAL)
    own.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_OTHERS)
            warnings.showwarning = _show  # type: ignore[assignment]
            yield
    finally:
        root.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        _quiet = _verbose = False


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    told = " ".join(str(message).split())
    say(f"{category.__name__} of {filename}:{lineno}: {told}" if _verbose else f"warning: {told}")

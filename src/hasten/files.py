"""Where hasten keeps files, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hasten.errors import HastenError


def write_aside(path: str | Path, content: str | bytes, what: str = "") -> None:
    """Writes ``content`` beside ``path``, then renames: a reader sees the old file or the new one.

    Args:
        path: the file.
        content: all that it shall hold; text as UTF-8.
        what: kind of file, for the error.

    Raises:
        HastenError: it cannot be written; the old file is as it was.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may be what is wrong
            aside.unlink(missing_ok=True)
        raise HastenError(f"cannot write {what + ' ' if what else ''}{path}: {error.strerror}") from None


def cache_folder() -> Path:
    """hasten's folder for what can be made again: ``HASTEN_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("HASTEN_CACHE"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("hasten"))

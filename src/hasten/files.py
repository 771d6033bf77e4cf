"""Where hasten keeps files, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, MissingExtraError


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


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "search") from None
    return parquet


def write_parquet(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Rows with the same or different keys as a Parquet table, written aside first.

    Raises:
        HastenError: pyarrow is missing, or the file cannot be written.
    """
    parquet = _parquet()
    import pyarrow

    names = list(dict.fromkeys(k for row in rows for k in row))
    columns = {}
    for name in names:
        column: list[Any] = [row.get(name) for row in rows]
        kinds = {type(v) for v in column if v is not None}
        if len(kinds) > 1:  # a parameter with values of several types
            column = [float(v) if kinds <= {int, float} else None if v is None else str(v) for v in column]
        columns[name] = column
    target = Path(path)
    aside = target.with_name(target.name + ".part")
    try:
        parquet.write_table(pyarrow.table(columns), aside)
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise HastenError(f"cannot write {target}: {error.strerror or error}") from None


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a Parquet table.

    Raises:
        HastenError: pyarrow is missing, no such file, or another one.
    """
    parquet = _parquet()
    import pyarrow

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise HastenError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    return rows

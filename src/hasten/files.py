"""Where hasten keeps files, reading what others wrote within bounds, and writing files whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import math
import os
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, MissingExtraError

MOST_BYTES = 1 << 28
"""A text or a description that is longer is none."""
DEEPEST = 64
"""Tables and lists in one another; what reads, checks or prints them calls itself once a level."""


def named_path(given: str | Path, what: str = "the file") -> Path:
    """A path that a user named, ``~`` replaced; whether something is there is not looked at.

    Raises:
        HastenError: no file can have this name: it is too long, holds a zero byte, or is of an unknown user.
    """
    try:
        path = Path(given).expanduser()
        os.lstat(path)
    except RuntimeError as error:
        raise HastenError(f"cannot read {what} {str(given)[:80]}: {error}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            why = "its name is too long" if isinstance(error, OSError) else "its name holds a zero byte"
            raise HastenError(f"cannot read {what} {str(given)[:80]!r}: {why}") from None
    return path


def read_bytes(path: str | Path, what: str = "the file", most: int | None = None) -> bytes:
    """All of a file, looked at while it is read: a device may have no end and say that it is empty.

    Args:
        path: the file.
        what: kind of file, for the error.
        most: bytes; `MOST_BYTES` when None.

    Raises:
        HastenError: it cannot be read, or is longer than ``most`` bytes.
    """
    path, most = named_path(path, what), MOST_BYTES if most is None else most
    try:
        with path.open("rb") as file:
            long = os.fstat(file.fileno()).st_size > most
            content = b"" if long else file.read(most + 1)
    except OSError as error:
        raise HastenError(f"cannot read {what} {path}: {error.strerror or error}") from None
    if long or len(content) > most:
        raise HastenError(f"cannot read {what} {path}: it is longer than {most:,} bytes: give a shorter one")
    return content


def checked_file(path: str | Path, what: str = "the file", most: int | None = None) -> Path:
    """The path of a file that somebody else will open by its name, looked at before: a plain file of bounded size.

    Args:
        path: the file.
        what: kind of file, for the error.
        most: bytes; `MOST_BYTES` when None. 0 for one that is read in parts, and may be as long as it likes.

    Raises:
        HastenError: there is none, it is a device, a pipe or a folder, or it is longer than ``most`` bytes.
    """
    path, most = named_path(path, what), MOST_BYTES if most is None else most
    try:
        found = path.stat()
    except OSError as error:
        raise HastenError(f"cannot read {what} {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise HastenError(f"cannot read {what} {path}: it is no plain file")
    if most and found.st_size > most:
        raise HastenError(f"cannot read {what} {path}: it is longer than {most:,} bytes: give a shorter one")
    return path


def read_text(path: str | Path, what: str = "the file", most: int | None = None) -> str:
    """A file of UTF-8 text, without the mark of byte order that some programs write first.

    Raises:
        HastenError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, what, most).removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise HastenError(f"{what} {path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of TOML text.

    Raises:
        ValueError: it is not TOML, nested deeper than `DEEPEST`, or has whole numbers of more than 64 bits, which TOML
            has not and Python would read.
    """
    try:
        found: dict[str, Any] = _shallow(tomllib.loads(text))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if (large := _large(found)) is not None:
        raise ValueError(f"{str(large)[:20]}... is a number of more than 64 bits")
    return found


def _large(value: Any) -> int | None:
    """A whole number of more than 64 bits in tables and lists; None where there is none."""
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 63 else value
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := _large(part)) is not None), None)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested deeper than `DEEPEST`.
    """
    try:
        return _shallow(json.loads(text))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


_NESTED = frozenset({dict, list})
_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"


def _shallow(value: Any) -> Any:
    """``value`` itself; a level at a time, so that depth costs no stack here."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [v for v in level if type(v) in _NESTED]
        if not level:
            return value
        parts = [v.values() if isinstance(v, dict) else v for v in level]
        # Most long lists are of numbers alone: those are passed over without a look at each in Python.
        level = [p for part in parts if not _NESTED.isdisjoint(map(type, part)) for p in part]
    raise ValueError(_TOO_DEEP)


def to_json(value: Any, indent: int | None = None) -> str:
    """Plain data as JSON that every parser takes (RFC 8259); what JSON does not have is written as its text.

    >>> to_json({"a": [1.5, float("inf"), float("nan")]})
    '{"a": [1.5, "Infinity", "NaN"]}'
    """
    return json.dumps(_finite(value), indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same with the texts ``Infinity``, ``-Infinity`` and ``NaN``, which `float` reads, in place of those."""
    if isinstance(value, dict):
        return {_finite(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def write_aside(path: str | Path, content: str | bytes, what: str = "") -> None:
    """Writes ``content`` beside ``path``, then renames: a reader sees the old file or the new one.

    Args:
        path: the file.
        content: all that it shall hold; text as UTF-8.
        what: kind of file, for the error.

    Raises:
        HastenError: it cannot be written; the old file is as it was.
    """
    path = named_path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may be what is wrong
            aside.unlink(missing_ok=True)
        raise HastenError(f"cannot write {what + ' ' if what else ''}{path}: {error.strerror}") from None


ROOM = 1 << 22
"""Bytes that a run needs for what it leaves: a page with its plots."""


def check_output(path: str | Path, *, folder: bool = False) -> Path:
    """The path of what will be written, ``~`` replaced, before any time is spent on it; nothing is left there.

    Args:
        path: a file, or with ``folder`` a folder, that need not be there yet.

    Raises:
        HastenError: it cannot be made or written, or there are fewer than `ROOM` bytes left.
    """
    path = named_path(path)
    if path.is_dir() and not folder:
        raise HastenError(f"cannot write {path}: it is a folder")
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(ROOM))
            file.flush()
        if not folder and path.exists():
            with path.open("r+b"):
                pass
    except OSError as error:
        raise HastenError(f"cannot write {path}: {error.strerror}") from None
    return path


def make_folder(path: str | Path) -> Path:
    """The folder, made where it is not there.

    Raises:
        HastenError: as `check_output`.
    """
    path = check_output(path, folder=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HastenError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def cache_folder() -> Path:
    """hasten's folder for what can be made again: ``HASTEN_CACHE``, or the user's cache folder.

    Raises:
        HastenError: ``HASTEN_CACHE`` is no path.
    """
    if chosen := os.environ.get("HASTEN_CACHE"):
        return named_path(chosen, "HASTEN_CACHE")
    import platformdirs

    return Path(platformdirs.user_cache_dir("hasten"))


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "search") from None
    return parquet


def write_parquet(rows: Sequence[Mapping[str, Any]], path: str | Path, units: Mapping[str, str] | None = None) -> None:
    """Rows with the same or different keys as a Parquet table, written aside first.

    Args:
        rows: plain data.
        path: of the file.
        units: column -> unit, kept with its field as the metadata ``unit``.

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
    target = named_path(path)
    aside = target.with_name(target.name + ".part")
    try:
        table = pyarrow.table(columns)
        fields = [f.with_metadata({"unit": units[f.name]}) if units and f.name in units else f for f in table.schema]
        parquet.write_table(table.cast(pyarrow.schema(fields)), aside)
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise HastenError(f"cannot write {target}: {error.strerror or error}") from None


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a Parquet table.

    Raises:
        HastenError: pyarrow is missing, no such file, another one, or one of more than `MOST_BYTES`, packed or not.
    """
    parquet = _parquet()
    import pyarrow

    path = checked_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            about = file.metadata
            packed = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            # What is said once may stand for millions of rows, of which each value takes a place of its own here.
            if max(packed, 8 * about.num_rows * about.num_columns) > MOST_BYTES:
                raise HastenError(f"cannot read {path}: its rows take more than {MOST_BYTES:,} bytes: give fewer")
            rows: list[dict[str, Any]] = file.read().to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise HastenError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    return rows

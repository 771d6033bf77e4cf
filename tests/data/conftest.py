"""A cache of its own for each test, and packages made on the spot for the real clients to deliver."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from hasten.data.assets import Asset, AssetFile

CONTENT = b"some real bytes\n" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HASTEN_CACHE", str(folder))
    return folder


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, files: dict[str, bytes], name: str = "tinydata", version: str = "1.0") -> Path:
    """A wheel that pip accepts."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for member, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{member},sha256={digest},{len(content)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def entry(path: str = "tinydata/data.bin", content: bytes = CONTENT, **changes: object) -> Asset:
    settings: dict[str, object] = {
        "name": "tiny",
        "title": "Tiny data",
        "client": "pip",
        "package": "tinydata",
        "version": "1.0",
        "files": (AssetFile(path=path, sha256=sha(content), bytes=len(content)),),
        "size": 1000,
        "licence": "CC0-1.0",
        "read": "hasten.data.text.read_text",
    }
    return Asset.model_validate({**settings, **changes})


def several(path: str, files: dict[str, bytes]) -> AssetFile:
    listing = "".join(f"{name} {sha(content)}\n" for name, content in sorted(files.items()))
    return AssetFile(path=path, sha256=sha(listing.encode()), bytes=sum(map(len, files.values())))


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def npm_package(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "tinydata", "version": "1.0.0", "license": "CC0-1.0"}))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def debian_repository(folder: Path, files: dict[str, bytes]) -> Path:
    """A repository of one package, and apt's settings for it; returns the settings file."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: tinydata\nVersion: 1.0-1\nArchitecture: all\nMaintainer: nobody <nobody@example.invalid>\n"
        "Description: tiny data\n"
    )
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    repository = folder / "repository"
    repository.mkdir()
    package = repository / "tinydata_1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, package], check=True, capture_output=True)
    content = package.read_bytes()
    (repository / "Packages").write_text(
        (root / "DEBIAN" / "control").read_text()
        + f"Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {sha(content)}\n"
    )
    shutil.rmtree(root)
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    settings = folder / "apt.conf"
    settings.write_text(
        f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
        f'Dir::State "{folder}";\nDir::State::status "{folder}/status";\nDir::State::lists "{folder}/lists";\n'
        f'Dir::Cache "{folder}/cache";\nAPT::Sandbox::User "root";\n'
    )
    return settings

"""The asset manager with the real clients, delivering packages that the test has made."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data import assets
from hasten.data.assets import AssetFile, fetch, read_entry
from hasten.errors import HastenError

from .conftest import CONTENT, debian_repository, entry, npm_package, several, sha, tar, wheel

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
needs_apt = pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None, reason="apt-get or dpkg-deb is not installed"
)


def left_behind(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "assets").glob("*")) if cache.exists() else []


def test_pip_delivers_one_file_and_nothing_else(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT, "tinydata/__init__.py": b"raise SystemExit"})
    said: list[str] = []
    path = fetch(entry(), said.append)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    assert left_behind(cache) == ["tiny-1.0"]
    assert said[0].startswith("pip: tinydata 1.0")
    assert "tinydata" not in sys.modules


def test_pip_is_not_let_build_a_source_distribution(cache: Path, index: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    setup = f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup(name='tinydata', version='1.0')\n".encode()
    members = [
        (tarfile.TarInfo("tinydata-1.0/setup.py"), setup),
        (tarfile.TarInfo("tinydata-1.0/PKG-INFO"), b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"),
    ]
    tar(index / "tinydata-1.0.tar.gz", members)
    with pytest.raises(HastenError, match=r"pip could not deliver tinydata 1\.0"):
        fetch(entry())
    assert not mark.exists()


def test_a_warm_cache_needs_no_client(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT})
    first = fetch(entry())
    shutil.rmtree(index)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert fetch(entry()) == first
    assert entry().cached


@needs_npm
def test_npm_delivers_several_files(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"0.json": b"[0]", "1.json": b"[1]"}
    package = npm_package(
        tmp_path / "package", {f"src/{n}": c for n, c in files.items()} | {"src/deep/2.json": b"[2]", "readme": b"no"}
    )
    monkeypatch.setenv("npm_config_offline", "true")
    # npm takes a folder where a version stands: the real client, and no registry.
    wanted = entry(client="npm", version="1.0.0", files=(several("package/src/[0-9].json", files),))
    wanted = wanted.model_copy(update={"version": f"file:{package}"})
    monkeypatch.setattr(type(wanted), "folder", property(lambda self: cache / "assets" / "tiny-1.0.0"))
    folder = fetch(wanted)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files


@needs_npm
def test_npm_without_a_network_is_one_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    with pytest.raises(HastenError, match=r"npm could not deliver tinydata 1\.0 ") as caught:
        fetch(entry(client="npm"))
    assert "\n" not in str(caught.value)
    assert "no reason given" not in str(caught.value)
    assert left_behind(cache) == []


@needs_apt
def test_apt_delivers_a_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = debian_repository(tmp_path / "apt", {"usr/share/tinydata/data.bin": CONTENT})
    monkeypatch.setenv("APT_CONFIG", str(config))
    subprocess.run(["apt-get", "-q", "update"], check=True, capture_output=True)
    path = fetch(entry("usr/share/tinydata/data.bin", client="apt", version="1.0-1"))
    assert path.read_bytes() == CONTENT
    assert left_behind(cache) == ["tiny-1.0-1"]
    with pytest.raises(HastenError, match="apt-get could not deliver tinydata 9-9"):
        fetch(entry("usr/share/tinydata/data.bin", client="apt", version="9-9"))


def test_another_content_is_refused_and_not_kept(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": b"another".ljust(len(CONTENT))})
    with pytest.raises(HastenError, match="not what the catalogue expects"):
        fetch(entry())
    assert left_behind(cache) == []


def test_one_bad_file_among_good_ones_keeps_none(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/a": b"a", "tinydata/b": b"x"})
    files = tuple(AssetFile(path=f"tinydata/{n}", sha256=sha(n.encode()), bytes=1) for n in "ab")
    with pytest.raises(HastenError, match=r"tinydata/b of tinydata 1\.0"):
        fetch(entry(files=files))
    assert left_behind(cache) == []


def test_a_file_that_unpacks_without_end_is_cut_off(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": bytes(50_000_000)})
    with pytest.raises(HastenError, match="larger than the catalogue expects"):
        fetch(entry())
    assert left_behind(cache) == []


def test_a_package_without_the_file_is_one_line(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/other.bin": CONTENT})
    with pytest.raises(HastenError, match=r"has no tinydata/data\.bin"):
        fetch(entry())
    assert left_behind(cache) == []


def test_no_network_and_no_package_is_one_line(cache: Path, index: Path) -> None:
    with pytest.raises(HastenError, match=r"pip could not deliver tinydata 1\.0 \(No matching") as caught:
        fetch(entry())
    assert "\n" not in str(caught.value)
    assert left_behind(cache) == []


@pytest.mark.parametrize(("client", "program"), [("npm", "npm"), ("apt", "apt-get")])
def test_a_missing_client_is_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HastenError, match=f"tiny comes through {program}, which is not installed"):
        fetch(entry(client=client))


HOSTILE = ("../../escaped", "/tmp/hasten-escaped", "package/../../escaped", "package/.hidden", "package/..")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_point_outside_stay_inside(tmp_path: Path, name: str) -> None:
    archive = tar(tmp_path / "x.tgz", [(tarfile.TarInfo(name), b"x")])
    target = tmp_path / "target" / "inner"
    target.mkdir(parents=True)
    for wanted in (name, "package/*"):
        try:
            assets._extract(archive, AssetFile(path=wanted, sha256="0" * 64, bytes=10), target)
        except HastenError as error:
            assert "nothing was kept" in str(error)  # noqa: PT017 (either outcome is safe)
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/hasten-escaped").exists()
    assert {p.name for p in (tmp_path / "target").iterdir()} == {"inner"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = tarfile.TarInfo("package/data.bin")
        link.type, link.linkname = kind, str(secret)
        archive = tar(tmp_path / "x.tgz", [(link, b"")])
        target = tmp_path / f"target{kind.decode()}"
        target.mkdir()
        with pytest.raises(HastenError, match=r"has no package/data\.bin"):
            assets._extract(archive, AssetFile(path="package/data.bin", sha256="0" * 64, bytes=10), target)
        assert list(target.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_package_is_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    if data.draw(st.booleans()):
        path = wheel(folder, {"tinydata/data.bin": CONTENT})
    else:
        path = tar(folder / "x.tgz", [(tarfile.TarInfo("tinydata/data.bin"), CONTENT)])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    target = folder / "target"
    target.mkdir()
    try:
        assets._extract(path, entry().files[0], target)
    except HastenError as error:
        assert "\n" not in str(error)  # noqa: PT017 (an undamaged member is fine too)


def child(code: str) -> subprocess.Popen[str]:
    """Another process that fetches the tiny asset, with this one's environment."""
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2])]!r}\n"
        "from tests.data.conftest import entry\nfrom hasten.data import assets\n" + code
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_both_get_it(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT})
    running = [child("print(assets.fetch(entry()))") for _ in range(3)]
    seen = [process.communicate(timeout=120) for process in running]
    assert {out.strip() for out, _ in seen} == {str(cache / "assets" / "tiny-1.0" / "data.bin")}, seen
    assert left_behind(cache) == ["tiny-1.0"]
    assert (cache / "assets" / "tiny-1.0" / "data.bin").read_bytes() == CONTENT


def test_an_interrupt_leaves_nothing(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT})
    running = child("print('ready', flush=True)\nassets.fetch(entry(), lambda message: print(message, flush=True))")
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    assert running.stdout.readline().startswith("pip")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert left_behind(cache) == []


def test_what_a_killed_run_left_is_swept_a_day_later(cache: Path, index: Path) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT})
    old, young = (cache / "assets" / name for name in (".tiny-old", ".tiny-young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 200_000,) * 2)
    fetch(entry())
    assert left_behind(cache) == [".tiny-young", "tiny-1.0"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(HastenError, match="cannot store tiny in"):
        fetch(entry())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(index, {"tinydata/data.bin": CONTENT})
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: real(Path("/dev/full") if "w" in mode else self, mode, *a, **k)
    )
    with pytest.raises(HastenError, match=r"cannot store tiny in .*No space left"):
        fetch(entry())
    assert left_behind(cache) == []


# The catalogue


def test_every_entry_is_whole_and_its_reader_exists() -> None:
    import importlib

    entries = assets.assets()
    assert {"smollm2-135m-instruct", "brown", "moby-dick", "fashion-mnist", "mnist", "video-clips"} <= {
        e.name for e in entries
    }
    for e in entries:
        module, _, function = e.read.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), e.name
        assert e.licence
        assert "://" not in e.model_dump_json()


def test_the_page_for_users_shows_the_catalogue_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "assets.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.M)) == [e.name for e in assets.assets()]
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert read_entry(example, "docs/assets.md") == assets.asset("moby-dick")


def test_unknown_names_list_the_known_ones(cache: Path) -> None:
    for ask in (assets.get, assets.cached, assets.remove):
        with pytest.raises(HastenError, match="no asset is called 'nonesuch': choose one of brown, "):
            ask("nonesuch")


def test_removing_makes_it_uncached(cache: Path, index: Path) -> None:
    assert assets.cached("moby-dick") is None
    folder = assets.asset("moby-dick").folder
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("Call me Ishmael.")
    assert assets.cached("moby-dick") == folder / "data.txt" == assets.get("moby-dick")
    assert assets.remove("moby-dick")
    assert assets.cached("moby-dick") is None
    assert not assets.remove("moby-dick")
    assert left_behind(cache) == []


GOOD = """
name = "x"
title = "X"
client = "pip"
package = "p"
version = "1"
size = 1
licence = "MIT"
read = "f"
[[files]]
path = "a"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
bytes = 1
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('client = "pip"', 'client = "curl"', "client"),
        ("size = 1", "", "size"),
        ("size = 1", "size = -1", "size"),
        ("bytes = 1", "bytes = 1\nmode = 1", "mode"),
        ('sha256 = "0', 'sha256 = "g', "sha256"),
        ('package = "p"', 'package = "--index-url=x"', "package"),
        ('package = "p"', 'package = "../p"', "package"),
        ('version = "1"', 'version = "1 --flag"', "version"),
        ('name = "x"', 'name = "../x"', "name"),
        ("[[files]]", "[[files", "x.toml"),
    ],
)
def test_a_wrong_entry_is_one_line(old: str, new: str, message: str) -> None:
    assert read_entry(GOOD, "x.toml").name == "x"
    with pytest.raises(HastenError, match=message) as caught:
        read_entry(GOOD.replace(old, new), "x.toml")
    assert "\n" not in str(caught.value)


def test_what_is_damaged_is_said_and_fetched_again(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "assets", lambda: [entry()])
    with pytest.raises(HastenError, match="is not on this machine: hasten assets get tiny fetches it"):
        assets.damage(entry())
    wheel(index, {"tinydata/data.bin": CONTENT})
    path = assets.get_whole("tiny")
    assert assets.damage(entry()) == ""
    for spoil, says in (
        (lambda: path.write_bytes(b"!" + CONTENT[1:]), "data.bin is not what the catalogue expects"),
        (path.unlink, "data.bin is missing"),
    ):
        spoil()
        assert assets.damage(entry()) == f"tiny is damaged: {says}"
        if path.exists():
            assert assets.get_whole("tiny") == path
            assert path.read_bytes() == CONTENT
    assert assets.get_whole("tiny").read_bytes() == CONTENT
    assert left_behind(cache) == ["tiny-1.0"]
    path.write_bytes(b"")
    shutil.rmtree(index)
    with pytest.raises(HastenError, match="pip could not deliver"):
        assets.get_whole("tiny")
    assert path.exists()  # what is there stays until there is better


def test_several_files_are_verified_together(cache: Path, index: Path) -> None:
    files = {"0.json": b"[0]", "1.json": b"[1]"}
    wheel(index, {f"tinydata/{name}": content for name, content in files.items()})
    wanted = entry(files=(several("tinydata/[0-9].json", files),))
    folder = fetch(wanted)
    assert assets.damage(wanted) == ""
    (folder / "1.json").unlink()
    assert "is not what the catalogue expects" in assets.damage(wanted)

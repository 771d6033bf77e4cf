"""Models of a server: names, loading once for all who wait, and leaving when there is no memory for all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.serving.api.errors import ApiError
from hasten.serving.models import ModelSet, ModelSource


class Loader:
    """Loads what takes ten bytes each, and keeps what happened."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds, self.happened, self.fails = seconds, list[str](), set[str]()
        self.bytes: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, source: ModelSource, tell: Callable[[str], None]) -> Any:
        tell("reading weights")
        time.sleep(self.seconds)
        with self.lock:
            if source.name in self.fails:
                raise HastenError("broken file")
            self.happened.append(f"+{source.name}")
        engine = SimpleNamespace(close=lambda: self.happened.append(f"-{source.name}"))
        return SimpleNamespace(engine=engine, bytes=self.bytes.get(source.name, 10))


def made(loader: Any, *names: str, memory: float | None = None, turn: float = 2.0) -> ModelSet:
    return ModelSet([ModelSource(name, f"nowhere/{name}") for name in names], memory, loader, beside=10, turn=turn)


async def touch(models: ModelSet, name: str, seconds: float = 0.0) -> None:
    async with models.use(name):
        await asyncio.sleep(seconds)


def test_one_that_several_ask_for_is_loaded_once() -> None:
    loader = Loader()
    models = made(loader, "a", "b")

    async def all_ask() -> None:
        await asyncio.gather(*(touch(models, "a") for _ in range(8)), touch(models, "b"))

    asyncio.run(all_ask())
    assert sorted(loader.happened) == ["+a", "+b"]
    assert models.loads == 2
    assert models.bytes == 20
    assert all(e.users == 0 for e in models.entries.values())


def test_whoever_is_idle_longest_leaves() -> None:
    loader = Loader(0)
    models = made(loader, "a", "b", "c", memory=20)

    async def ask() -> None:
        for name in ("a", "b", "a", "c", "b"):
            await touch(models, name)

    asyncio.run(ask())
    assert loader.happened == ["+a", "+b", "-b", "+c", "-a", "+b"]
    assert models.evictions == 2
    assert models.bytes == 20


def test_one_at_work_stays_until_it_ends() -> None:
    loader = Loader(0)
    models = made(loader, "a", "b", memory=10)

    async def later() -> None:
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await touch(models, "b")
        assert time.monotonic() - started > 0.1

    async def both() -> None:
        await asyncio.gather(touch(models, "a", 0.3), later())

    asyncio.run(both())
    assert loader.happened == ["+a", "-a", "+b"]


def test_others_that_never_end_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.serving.models._PATIENCE", 0.1)
    models = made(Loader(0), "a", "b", memory=10)

    async def ask() -> None:
        async with models.use("a"):
            with pytest.raises(ApiError, match="at work") as error:
                await touch(models, "b")
            assert error.value.status == 503
            assert "Retry-After" in error.value.headers
        await touch(models, "b")

    asyncio.run(ask())


def test_requests_of_one_model_are_a_group() -> None:
    """Ten requests for two models that do not fit together, while one is at work: each is loaded once for its five."""
    loader = Loader(0)
    models = made(loader, "a", "b", memory=10, turn=0.0)

    async def ask() -> None:
        async with models.use("a"):
            others = [asyncio.create_task(touch(models, "b")) for _ in range(5)]
            while not models.entries["a"].leaving:
                await asyncio.sleep(0.001)
            later = [asyncio.create_task(touch(models, "a")) for _ in range(5)]
            await asyncio.sleep(0.01)
            assert models.held_back == 5
        await asyncio.wait_for(asyncio.gather(*others, *later), 20.0)

    asyncio.run(ask())
    assert loader.happened == ["+a", "-a", "+b", "-b", "+a"]
    assert not any(e.leaving or e.users for e in models.entries.values())


def test_a_model_that_waited_for_a_turn_is_next_however_many_ask_for_the_other() -> None:
    models = made(Loader(0), "a", "b", memory=10, turn=0.05)

    async def ask() -> None:
        ended = False

        async def keep_asking() -> None:
            while not ended:
                await touch(models, "a", 0.03)

        others = [asyncio.create_task(keep_asking()) for _ in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.wait_for(touch(models, "b"), 20.0)
        ended = True
        await asyncio.gather(*others)

    asyncio.run(ask())
    assert models.evictions >= 1


def test_who_could_not_be_loaded_lets_the_others_in_again() -> None:
    loader = Loader(0)
    loader.fails = {"b"}
    models = made(loader, "a", "b", memory=10, turn=0.0)

    async def ask() -> None:
        async with models.use("a"):
            failing = asyncio.create_task(touch(models, "b"))
            while not models.entries["a"].leaving:
                await asyncio.sleep(0.001)
            again = asyncio.create_task(touch(models, "a"))
            await asyncio.sleep(0.01)
            assert models.held_back == 1
        with pytest.raises(ApiError, match="broken file"):
            await failing
        await asyncio.wait_for(again, 20.0)

    asyncio.run(ask())
    assert loader.happened == ["+a", "-a", "+a"]


def test_files_of_a_model_that_waits_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.gguf").write_bytes(bytes(5))
    (tmp_path / "model.safetensors").write_bytes(bytes(7))
    sources = [ModelSource("a", "nowhere/a"), ModelSource("b", str(tmp_path / "b.gguf"))]
    models = ModelSet(sources, 15, Loader(0), beside=10)

    async def ask() -> None:
        await asyncio.gather(touch(models, "a", 0.1), touch(models, "b"))

    asyncio.run(ask())
    assert models.read_ahead == 5
    asked: list[str] = []
    monkeypatch.setattr(
        "os.posix_fadvise", lambda file, *what: asked.append(Path(f"/proc/self/fd/{file}").readlink().name)
    )
    assert ModelSource("folder", str(tmp_path)).read_ahead() == 7  # weights alone, of the first kind
    assert asked == ["model.safetensors"]
    assert ModelSource("gone", str(tmp_path / "gone.gguf")).read_ahead() == 0
    with pytest.raises(HastenError, match="turn"):
        made(Loader(), "a", turn=-1.0)


def test_one_that_cannot_be_loaded_is_tried_again() -> None:
    loader = Loader()
    loader.fails = {"a"}
    models = made(loader, "a")

    async def ask() -> None:
        found = await asyncio.gather(touch(models, "a"), touch(models, "a"), return_exceptions=True)
        assert [getattr(e, "status", None) for e in found] == [503, 503]
        assert "broken file" in str(found[0])
        assert models.entries["a"].state == "failed"
        loader.fails = set()
        await touch(models, "a")
        assert models.entries["a"].state == "loaded"

    asyncio.run(ask())


def test_how_far_loading_is_can_be_seen() -> None:
    models = made(Loader(0.3), "a")
    entry = models.entries["a"]

    async def ask() -> None:
        task = asyncio.create_task(touch(models, "a"))
        await asyncio.sleep(0.1)
        assert (entry.state, entry.note) == ("loading", "reading weights")
        await task
        assert (entry.state, entry.note) == ("loaded", "")

    asyncio.run(ask())


def test_what_can_never_fit() -> None:
    with pytest.raises(HastenError, match="--memory"):
        made(Loader(), "a", memory=9)
    loader = Loader()
    loader.bytes = {"a": 100}
    models = made(loader, "a", memory=50)

    async def ask() -> None:
        with pytest.raises(ApiError, match="--memory"):
            await touch(models, "a")
        assert models.entries["a"].loaded is None

    asyncio.run(ask())
    assert loader.happened == ["+a", "-a"]


def test_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert ModelSource.read(str(tmp_path / "run" / "tuned.json")).name == "run"
    assert ModelSource.read(str(tmp_path / "run")).name == "run"
    named = ModelSource.read("mine=some/file.gguf", "moved.gguf")
    assert (named.name, named.source, named.moved) == ("mine", "some/file.gguf", "moved.gguf")
    with pytest.raises(HastenError, match="two models are called a"):
        ModelSet([ModelSource("a", "x"), ModelSource("a", "y")], None, Loader())
    with pytest.raises(HastenError, match="no model"):
        ModelSet([], None, Loader())


def test_two_real_models_take_turns(talkers: Path, serving: Any) -> None:
    models = serving.model_set(talkers / "talker", talkers / "other", memory=12 << 20)
    with serving.running(models) as server, server.client() as client:
        asked: Any = {"prompt": "abc", "max_tokens": 8, "temperature": 0}
        first = client.completions.create(model="talker", **asked).choices[0].text
        other = client.completions.create(model="other", **asked).choices[0].text
        assert models.entries["talker"].loaded is None
        assert client.completions.create(model="talker", **asked).choices[0].text == first != other
        assert models.evictions == 2
        states = {m.id: m.model_dump()["state"] for m in client.models.list()}
        assert states == {"talker": "loaded", "other": "not loaded"}

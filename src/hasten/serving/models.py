"""The models of a server: loaded when they are asked for, within a limit of memory; whoever is idle longest leaves.

Where not all fit, they take turns. Requests for one model are one group: they wait for one loading, and run together. A
model that has waited for memory as long as a turn lasts has the next one: who asks from then on for those that must
leave for it waits with the next group of theirs, so that what they answer ends. While a model waits its files are read
ahead, into memory that the system has to spare.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hasten.data import assets
from hasten.errors import HastenError
from hasten.files import named_path
from hasten.runtime import LanguageModel
from hasten.serving.api.errors import ApiError, busy
from hasten.serving.chat import own_sampling
from hasten.serving.engine import Engine
from hasten.serving.loading import load_model
from hasten.serving.request import Sampling
from hasten.serving.structured import Grammars
from hasten.serving.templates import ChatTemplate

logger = logging.getLogger("hasten.serve")

State = Literal["not loaded", "loading", "loaded", "failed"]
_NAMED = re.compile(r"([A-Za-z0-9][\w.:-]{0,95})=(.+)", re.S)
# How long a request waits for others to end, so that their model can leave.
_PATIENCE = 60.0
# How long a model has memory that another waits for.
TURN = 2.0


@dataclass(frozen=True)
class ModelSource:
    """A model that can be served.

    Attributes:
        name: what requests call it.
        source: see `hasten.serving.loading.load_model`.
        moved: where the model of a ``tuned.json`` is now, or None.
    """

    name: str
    source: str
    moved: str | None = None

    @classmethod
    def read(cls, given: str, moved: str | None = None) -> ModelSource:
        """From ``SOURCE``, or ``NAME=SOURCE``.

        >>> ModelSource.read("models/tiny.gguf").name, ModelSource.read("a=models/tiny.gguf").name
        ('tiny', 'a')
        >>> ModelSource.read("runs/qwen/tuned.json").name, ModelSource.read("HuggingFaceTB/SmolLM2-135M").name
        ('qwen', 'HuggingFaceTB/SmolLM2-135M')
        """
        named = _NAMED.fullmatch(given)
        if named and not Path(given).exists():
            return cls(named[1], str(named_path(named[2], "the model")) if "~" in named[2] else named[2], moved)
        path = Path(given)
        if path.name == "tuned.json":
            name = _whole(path).parent.name
        elif path.suffix in (".gguf", ".json"):
            name = path.stem
        elif path.is_dir():
            name = _whole(path).name
        else:
            name = given
        return cls(name or "model", given, moved)

    def bytes_on_disk(self) -> int:
        """Of the files that it is loaded from, as far as they are known before; 0 else."""
        known = next((a for a in assets.assets() if a.name == self.source), None)
        try:
            return known.size if known is not None else sum(f.stat().st_size for f in self.files())
        except OSError:
            return 0

    def files(self) -> list[Path]:
        """That hold its weights, as far as they are known before: none of an asset, or of what is not there."""
        path = named_path(self.moved or self.source, "the model")
        if path.is_dir():
            return sorted(path.glob("*.safetensors")) or sorted(path.glob("*.gguf"))
        return [path] if path.exists() else []

    def read_ahead(self) -> int:
        """Asks the system to read its files while there is time, into memory that it may take back; bytes asked for."""
        asked = 0
        for path in self.files() if hasattr(os, "posix_fadvise") else ():
            with contextlib.suppress(OSError):
                file = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
                    asked += os.fstat(file).st_size
                finally:
                    os.close(file)
        return asked


def _whole(path: Path) -> Path:
    """From the root on, links as they are called."""
    return Path(os.path.abspath(path))


@dataclass
class ServedModel:
    """A model that runs.

    Attributes:
        engine: runs requests.
        model: what it runs.
        template: how it is given a talk.
        grammars: make it hold to a format.
        sampling: how its makers would have tokens chosen; where they do not say, as the API has it.
        recommended: the same for a talk between people and it; where they do not say, as `hasten chat` has it.
        bytes: that it takes: weights, and keys and values.
    """

    engine: Engine
    model: LanguageModel
    template: ChatTemplate
    grammars: Grammars
    sampling: Sampling
    recommended: Sampling
    bytes: int

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer


@dataclass
class Entry:
    """A model of the set, and how it is.

    Attributes:
        source: what it is.
        state: whether it is loaded.
        loaded: it, while it is.
        users: requests that it answers.
        used: ``time.monotonic()`` of the last one's end.
        begun: the same of when it was loaded.
        bytes: that it takes; what its files take until it was loaded once.
        error: why it could not be loaded.
        note: what is happening while it is loaded.
        seconds: that loading took.
        leaving: whether it must leave for another: who asks for it now waits until it has.
        created: Unix time of when it was made known.
    """

    source: ModelSource
    state: State = "not loaded"
    loaded: ServedModel | None = None
    users: int = 0
    used: float = 0.0
    begun: float = 0.0
    bytes: int = 0
    error: str = ""
    note: str = ""
    seconds: float | None = None
    leaving: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


def load(source: ModelSource, progress: Callable[[str], None], **engine: Any) -> ServedModel:
    """Loads a model and starts its engine.

    Args:
        source: what to load.
        progress: told what is happening.
        **engine: what `Engine` takes besides the model.

    Raises:
        HastenError: it cannot be loaded, or its cache has no room.
    """
    model = load_model(source.source, model=source.moved, progress=progress)
    if model.tokenizer is None:
        raise HastenError(f"{source.name} has no tokenizer: give a model folder with one, or a GGUF file")
    runs = Engine(model, **engine)
    own, recommended = getattr(model, "generation_config", None), own_sampling(model)
    return ServedModel(
        engine=runs,
        model=model,
        template=ChatTemplate(model.tokenizer),
        grammars=Grammars(model.tokenizer, runs.vocabulary, runs.end_tokens),
        sampling=recommended if own is not None and own.do_sample else Sampling(),
        recommended=recommended,
        bytes=model.weight_bytes + runs.cache_bytes,
    )


class ModelSet:
    """Models by name, loaded when they are first asked for, as many at a time as there is memory for.

    Used from one event loop, but for `entries`.

    Args:
        sources: what there is.
        memory: bytes that all loaded ones take at most; None for no limit.
        loader: loads one, in a thread of its own: takes the source and what is told the progress.
        beside: bytes that each takes besides its files, as far as is known before.
        turn: seconds for which a model keeps memory that another waits for, while it is asked for.

    Attributes:
        loads, evictions: how often a model was loaded, and left memory for another.
        held_back: requests that waited because their model had to leave.
        read_ahead: bytes of files that were asked for while their model waited for memory.

    Raises:
        HastenError: there is none, two have one name, one cannot fit, or a turn below 0.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        memory: float | None,
        loader: Callable[[ModelSource, Callable[[str], None]], ServedModel],
        beside: int = 0,
        turn: float = TURN,
    ) -> None:
        if not turn >= 0:
            raise HastenError(f"a turn of {turn:g} seconds: give 0 or more")
        if not sources:
            raise HastenError("no model is named: name one")
        names = [s.name for s in sources]
        for name in names:
            if names.count(name) > 1:
                raise HastenError(f"two models are called {name}: give one another name, NAME={name}")
        self.entries = {s.name: Entry(s, bytes=s.bytes_on_disk() + beside) for s in sources}
        self.memory = math.inf if memory is None else memory
        self.evictions = self.loads = self.held_back = self.read_ahead = 0
        self._turn_seconds = turn
        self._loader = loader
        self._loading: dict[str, asyncio.Task[ServedModel]] = {}
        self._turn = asyncio.Lock()  # one is loaded at a time
        self._idle = asyncio.Condition()
        self._closed = False
        for entry in self.entries.values():
            self._check_fits(entry)

    def entry(self, name: str) -> Entry:
        """One by its name.

        Raises:
            ApiError: there is none.
        """
        found = self.entries.get(name)
        if found is None:
            there = ", ".join(self.entries)
            raise ApiError(
                404, f"there is no model {name[:80]!r}: there are {there}"[:500], param="model", code="model_not_found"
            )
        return found

    @property
    def bytes(self) -> int:
        """That loaded models take."""
        return sum(e.bytes for e in self.entries.values() if e.loaded is not None)

    def load_now(self, name: str) -> None:
        """Loads one before there is an event loop.

        Raises:
            HastenError: it cannot be loaded.
        """
        entry = self.entries[name]
        self._has(entry, self._load(entry))
        self._check_fits(entry)

    def fits_beside(self, name: str) -> bool:
        """Whether there is memory for one beside those that are loaded."""
        return self.bytes + self.entries[name].bytes <= self.memory

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ServedModel]:
        """A model, loaded; it stays so within.

        Raises:
            ApiError: there is none of this name, it cannot be loaded, or others take its memory too long.
        """
        entry = self.entry(name)
        if entry.leaving:
            self.held_back += 1
            async with self._idle:
                await self._idle.wait_for(lambda: not entry.leaving)
        entry.users += 1  # from here on nobody sends it away
        try:
            while entry.loaded is None:
                await self._wait_for(entry)
            yield entry.loaded
        finally:
            entry.users -= 1
            entry.used = time.monotonic()
            if not entry.users:
                async with self._idle:
                    self._idle.notify_all()

    async def close(self) -> None:
        """All leave; what they answer is cancelled."""
        self._closed = True
        for task in self._loading.values():
            task.cancel()
        for entry in self.entries.values():
            if entry.loaded is not None:
                await asyncio.to_thread(entry.loaded.engine.close)

    def close_now(self) -> None:
        """All leave, where there is no event loop."""
        for entry in self.entries.values():
            if entry.loaded is not None:
                entry.loaded.engine.close()
                entry.loaded, entry.state = None, "not loaded"
        gc.collect()

    async def _wait_for(self, entry: Entry) -> None:
        """One loads it for all that wait."""
        name = entry.source.name
        if self._closed:
            raise busy("the server ends", 5, status=503)
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load_in_turn(entry))
            task.add_done_callback(lambda done: (self._loading.pop(name, None), done.cancelled() or done.exception()))
        try:
            await asyncio.shield(task)
        except HastenError as error:
            raise ApiError(503, f"{name} cannot be loaded: {error}", param="model", code="model_not_loaded") from None

    async def _load_in_turn(self, entry: Entry) -> ServedModel:
        async with self._turn:
            await self._make_room(entry)
            loaded = await asyncio.to_thread(self._load, entry)
            self._has(entry, loaded)
            try:
                self._check_fits(entry)
            except HastenError:
                await self._send_away(entry)
                raise
            await self._make_room(entry, loaded=True)
            return loaded

    def _load(self, entry: Entry) -> ServedModel:
        """
        Raises:
            HastenError: it cannot be loaded.
        """
        name, started = entry.source.name, time.monotonic()
        entry.state, entry.error = "loading", ""

        def tell(text: str) -> None:
            entry.note = text
            logger.debug("%s: %s", name, text)

        logger.info("loading %s", name)
        try:
            loaded = self._loader(entry.source, tell)
        except Exception as error:
            entry.state, entry.error, entry.note = "failed", " ".join(str(error).split())[:500], ""
            logger.error("%s cannot be loaded: %s", name, entry.error)
            if isinstance(error, HastenError):
                raise
            raise HastenError(f"unexpected {type(error).__name__}: {entry.error[:200]}") from error
        entry.seconds, entry.note = time.monotonic() - started, ""
        logger.info("%s is loaded: %.1f s, %.2f GiB", name, entry.seconds, loaded.bytes / 2**30)
        for note in getattr(loaded.engine, "notes", ()):
            logger.info("%s: %s", name, note)
        return loaded

    def _has(self, entry: Entry, loaded: ServedModel) -> None:
        entry.loaded, entry.bytes, entry.state, entry.used = loaded, loaded.bytes, "loaded", time.monotonic()
        entry.begun = entry.used
        self.loads += 1

    def _check_fits(self, entry: Entry) -> None:
        if entry.bytes > self.memory:
            raise HastenError(
                f"{entry.source.name} takes {entry.bytes / 2**30:.2f} GiB with its cache, more than the "
                f"{self.memory / 2**30:.2f} GiB that models may take: give more (--memory), or less cache (--cache)"
            )

    async def _make_room(self, entry: Entry, loaded: bool = False) -> None:
        """Sends idle models away, longest idle first, until there is memory for one; after a turn others must leave.

        Raises:
            ApiError: the others are at work for too long.
        """
        started = time.monotonic()
        needed = 0 if loaded else entry.bytes
        chosen: list[Entry] = []
        ahead = False
        try:
            while self.bytes + needed > self.memory:
                idle = [e for e in self.entries.values() if e.loaded is not None and not e.users and e is not entry]
                if idle:
                    await self._send_away(min(idle, key=lambda e: e.used))
                    continue
                waited = time.monotonic() - started
                if loaded:
                    return  # it came out larger than its files; others leave as they end
                if waited >= _PATIENCE:
                    name = entry.source.name
                    raise busy(f"other models are at work, and there is no memory for {name}", 30, status=503)
                if not ahead:
                    ahead = True
                    self.read_ahead += await asyncio.to_thread(entry.source.read_ahead)
                    continue  # meanwhile one may have become idle
                if waited >= self._turn_seconds and not chosen:
                    chosen = self._choose_leaving(needed)
                until = _PATIENCE if chosen else min(self._turn_seconds, _PATIENCE)
                async with self._idle:
                    try:
                        await asyncio.wait_for(self._idle.wait(), max(0.0, until - waited))
                    except TimeoutError:
                        pass
        finally:
            await self._let_in(chosen)

    def _choose_leaving(self, needed: int) -> list[Entry]:
        """As many of those that are loaded as must leave, whoever was loaded the longest ago first."""
        found: list[Entry] = []
        for entry in sorted((e for e in self.entries.values() if e.loaded is not None), key=lambda e: e.begun):
            if self.bytes - sum(e.bytes for e in found) + needed <= self.memory:
                break
            entry.leaving = True
            found.append(entry)
        return found

    async def _let_in(self, entries: Sequence[Entry]) -> None:
        """Who was held back from these may ask again."""
        for entry in entries:
            entry.leaving = False
        if entries:
            async with self._idle:
                self._idle.notify_all()

    async def _send_away(self, entry: Entry) -> None:
        loaded, entry.loaded, entry.state = entry.loaded, None, "not loaded"
        assert loaded is not None
        self.evictions += 1
        logger.info("%s leaves memory", entry.source.name)
        await asyncio.to_thread(loaded.engine.close)
        del loaded
        gc.collect()

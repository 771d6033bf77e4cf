"""A server of experts: batches of prompts are routed, and each expert answers its own, brought into memory as needed.

After the composition of experts of SN40L (arXiv 2405.07518, sections II and V): memory holds the base with its router,
and places for as many experts as fit. The one that was used the longest ago makes room; nothing is written back.
Prompts of a batch that go to one expert are answered together, those of experts in memory first, and while one answers
the next one comes in.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.cost.serving.model_switching import jobs_of
from hasten.errors import HastenError
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.storage.expert_models import ExpertModels, expert_weights
from hasten.serving.engine import Engine
from hasten.serving.request import Request, Sampling
from hasten.workload.memories import ManagedCache

Prompt = Sequence[int]
Router = Callable[[Sequence[Prompt]], list[str]]


class EmbeddingRouter:
    """Sends a prompt to the expert whose examples it is most like, by the mean of its tokens' embeddings.

    Args:
        table: (vocabulary, width), the base's embedding.
        examples: expert -> prompts that are its own.

    Raises:
        HastenError: an expert without examples, or a prompt without tokens or of others than the table's.
    """

    def __init__(self, table: Tensor, examples: Mapping[str, Sequence[Prompt]]) -> None:
        if not examples or not all(examples.values()):
            raise HastenError("a router needs examples of each expert: give at least one prompt of each")
        self._table, self._names = table, list(examples)
        self._mean = torch.zeros(table.shape[1])
        means = torch.stack([self._vectors(prompts).mean(0) for prompts in examples.values()])
        self._mean = means.mean(0)
        self._keys = torch.nn.functional.normalize(means - self._mean, dim=1)

    def _vectors(self, prompts: Sequence[Prompt]) -> Tensor:
        for prompt in prompts:
            if not len(prompt) or not 0 <= min(prompt) <= max(prompt) < len(self._table):
                raise HastenError(f"a prompt has tokens from 0 to {len(self._table) - 1:,}, at least one")
        found = torch.stack([self._table[torch.as_tensor(p)].float().mean(0) for p in prompts])
        return torch.nn.functional.normalize(found - self._mean, dim=1)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        return [self._names[i] for i in (self._vectors(prompts) @ self._keys.T).argmax(1).tolist()]


@dataclass
class ExpertCounts:
    """What a server did: jobs whose expert was there or not, bytes brought in, prompts, and seconds.

    ``routing`` and ``waiting`` (for experts that come in) are parts of ``seconds``, the rest are answers.
    """

    hits: int = 0
    misses: int = 0
    loaded: int = 0
    prompts: int = 0
    routing: float = 0.0
    waiting: float = 0.0
    seconds: float = 0.0


@dataclass
class _Place:
    """Where an expert lies: a network of its own weights and the base's tables; who is in it, and its engine."""

    model: LanguageModel
    weights: dict[str, Tensor]
    engine: Engine | None = None

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None


class ExpertServer:
    """Answers batches of prompts by experts that share a base; batches of several threads follow each other.

    Args:
        model: the base, with weights in fp32 or bf16; it keeps what it has.
        experts: that come in.
        router: prompts -> the name of an expert for each.
        capacity: experts that memory holds; 0 keeps none, so that every job brings its own in.
        policy: who makes room: ``lru`` or ``fifo``.
        group: prompts of a batch that go to one expert are answered together, those of experts in memory first;
            otherwise one after the other as they are given.
        prefetch: the next expert of a batch comes in while one answers.
        most_running: prompts that an expert answers at a time.
        most_tokens: of a prompt and its answer.

    Raises:
        HastenError: a capacity below 0, or weights that experts cannot be written over.
    """

    def __init__(
        self,
        model: LanguageModel,
        experts: ExpertModels,
        router: Router,
        capacity: int,
        *,
        policy: str = "lru",
        group: bool = True,
        prefetch: bool = True,
        most_running: int = 8,
        most_tokens: int = 256,
    ) -> None:
        if capacity < 0:
            raise HastenError(f"memory for {capacity} experts: give a number from 0")
        if policy not in ("lru", "fifo"):
            raise HastenError(f"experts make room by lru or fifo, not by {policy[:20]!r}: the future is not known")
        own = expert_weights(model.network)
        if missing := experts.base.keys() - own.keys():
            raise HastenError(f"experts change {min(missing)}, which {model.name} has no plain weight of")
        self.experts, self.router, self.group = experts, router, group
        self.prefetch = prefetch and capacity > 0
        self._keeps = capacity > 0
        self._cache = ManagedCache(max(capacity, 1), "fifo" if policy == "fifo" else "lru")
        self._places = [_place(model, own) for _ in range(max(capacity, 1))]
        self._free = list(self._places)
        self._of: dict[str, _Place] = {}
        self._engine = {
            # A batch waits in whole, however large it is: nobody else asks.
            "most_running": most_running, "most_waiting": sys.maxsize, "most_tokens": most_tokens,
            "cache_bytes": most_running * model.new_cache(1, most_tokens).nbytes * 2,
        }  # fmt: skip
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._end = weakref.finalize(self, _end, self._places, self._reader)
        self._lock = threading.Lock()
        self.counts = ExpertCounts()

    def close(self) -> None:
        """Ends engines and the thread that reads, after the batch that is being answered."""
        with self._lock:
            self._end()

    def __enter__(self) -> ExpertServer:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @property
    def resident(self) -> tuple[str, ...]:
        """Experts that are in memory."""
        return tuple(self._of)

    def answer(self, prompts: Sequence[Prompt], new_tokens: int) -> list[tuple[int, ...]]:
        """Answers a batch by the likeliest tokens.

        Args:
            prompts: token numbers of each.
            new_tokens: of each answer.

        Returns:
            the answers' tokens, in the order of the prompts.

        Raises:
            HastenError: an expert is damaged, a prompt too long, the router names no expert for each prompt, or the
                server is closed.
        """
        with self._lock:
            return self._routed(prompts, new_tokens) if len(prompts) else []

    def _routed(self, prompts: Sequence[Prompt], new_tokens: int) -> list[tuple[int, ...]]:
        if not self._end.alive:
            raise HastenError("the server of experts is closed: make another")
        begun = time.perf_counter()
        chosen = self.router(prompts)
        self.counts.routing += time.perf_counter() - begun
        if len(chosen) != len(prompts):
            raise HastenError(f"the router named {len(chosen)} experts for {len(prompts)} prompts: give one for each")
        try:
            jobs = jobs_of(chosen, self.group, self._cache if self._keeps else ())
            answers = self._answers(prompts, new_tokens, jobs)
        except BaseException:
            self._forget()
            raise
        self.counts.prompts += len(prompts)
        self.counts.seconds += time.perf_counter() - begun
        return answers

    def _answers(
        self, prompts: Sequence[Prompt], new_tokens: int, jobs: Sequence[tuple[str, list[int]]]
    ) -> list[tuple[int, ...]]:
        answers: list[tuple[int, ...]] = [()] * len(prompts)
        coming: _Coming | None = None
        for at, (expert, places) in enumerate(jobs):
            coming = coming or self._ask(expert)
            self._wait(coming)
            engine = self._of[expert].engine
            assert engine is not None
            ahead = self._ask(jobs[at + 1][0], busy=expert) if self.prefetch and at + 1 < len(jobs) else None
            streams = [
                engine.submit(Request(tuple(prompts[p]), new_tokens, Sampling(temperature=0.0), ignore_end=True))
                for p in places
            ]
            for place, stream in zip(places, streams, strict=True):
                answers[place] = tuple(t for part in stream for t in part.tokens)
            coming = ahead
        return answers

    def _ask(self, expert: str, busy: str = "") -> _Coming:
        """Asks for an expert: begins to bring it in if it is not there, unless its place is that of a busy one."""
        present = self._keeps and expert in self._cache
        gone = [str(g) for g in self._cache.use(expert, 1)]
        self.counts.hits += present
        self.counts.misses += not present
        if present:
            return _Coming(expert)
        self.counts.loaded += self.experts.nbytes(expert)
        if not self._keeps and expert in self._of:
            gone = [expert]  # nothing stays: the same one comes in anew
        found = _Coming(expert, tuple(gone))
        if busy not in gone:
            self._begin(found)
        return found

    def _begin(self, coming: _Coming) -> None:
        for name in coming.gone:
            place = self._of.pop(name)
            # What it remembers of keys and values is of weights that are no more.
            place.close()
            self._free.append(place)
        place = self._free.pop()
        self._of[coming.expert] = place
        coming.future = self._reader.submit(self._bring, coming.expert, place)

    def _bring(self, expert: str, place: _Place) -> None:
        self.experts.load(expert, place.weights)
        place.engine = Engine(place.model, **self._engine)

    def _wait(self, coming: _Coming) -> None:
        begun = time.perf_counter()
        if coming.future is None and coming.expert not in self._of:
            self._begin(coming)
        if coming.future is not None:
            coming.future.result()
        self.counts.waiting += time.perf_counter() - begun

    def _forget(self) -> None:
        """After an error nobody knows what lies where: all is brought in anew."""
        self._reader.submit(lambda: None).result()  # until nothing is on its way
        for expert in [str(e) for e in self._cache]:
            self._cache.drop(expert)
        for place in self._places:
            place.close()
        self._of.clear()
        self._free = list(self._places)


@dataclass
class _Coming:
    """An expert that was asked for: whom it takes the place of, and its reading where it had to begin."""

    expert: str
    gone: tuple[str, ...] = ()
    future: Future[None] | None = None


def _place(model: LanguageModel, own: Mapping[str, Tensor]) -> _Place:
    """A network that shares all with the base but the weights of experts."""
    mine = {id(p) for name, p in model.network.named_parameters() if name in own}
    tensors = (*model.network.parameters(), *model.network.buffers())
    network = copy.deepcopy(model.network, {id(t): t for t in tensors if id(t) not in mine})
    return _Place(LanguageModel(network, model.tokenizer, cache=model.cache, name=model.name), expert_weights(network))


def _end(places: Sequence[_Place], reader: ThreadPoolExecutor) -> None:
    reader.shutdown()
    for place in places:
        place.close()

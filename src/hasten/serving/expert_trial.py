"""Ways of serving experts measured on one trace of prompts, beside what the model of switching says of each."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.cost.serving.model_switching import Switching, grouped, simulate_switching
from hasten.errors import HastenError
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.storage.expert_models import ExpertModels, expert_weights, write_experts_of
from hasten.serving.expert_server import EmbeddingRouter, ExpertCounts, ExpertServer, Prompt, Router


@dataclass(frozen=True)
class ServingWay:
    """How experts are served: how many memory holds (0: none stays), grouped or not, read ahead or not."""

    capacity: int
    group: bool = False
    prefetch: bool = False


def ways_of(capacity: int, experts: int) -> dict[str, ServingWay]:
    """The ways that are compared, of which the last is a bound: all experts are in memory before the first prompt."""
    return {
        "no cache": ServingWay(0),
        "lru": ServingWay(capacity),
        "grouped": ServingWay(capacity, group=True),
        "prefetched": ServingWay(capacity, group=True, prefetch=True),
        "resident": ServingWay(experts, group=True),
    }


@dataclass(frozen=True)
class WaySeen:
    """Of one way: what the server counted, its answers in the order of the prompts, and what the model says."""

    counts: ExpertCounts
    answers: tuple[tuple[int, ...], ...]
    predicted: Switching

    @property
    def error(self) -> float:
        """Of the predicted seconds, as a share of the measured ones."""
        return self.predicted.seconds / self.counts.seconds - 1

    @property
    def same_hits(self) -> bool:
        return (self.predicted.hits, self.predicted.misses) == (self.counts.hits, self.counts.misses)


def topic_prompts(
    ids: Sequence[int], topics: Sequence[str], batches: Sequence[Sequence[int]], length: int, examples: int = 32
) -> tuple[dict[str, list[Prompt]], list[list[Prompt]]]:
    """Examples of each topic, and batches of prompts: pieces of a text, of which each topic has a part.

    Args:
        ids: tokens of the text.
        topics: names, in the order of their parts of it.
        batches: the topic of each prompt, by its place.
        length: tokens of a piece; none comes twice as long as a part has others.
        examples: of each topic, from the begin of its part; prompts are from the rest.

    Raises:
        HastenError: a part is shorter than its examples and a prompt.
    """
    part = len(ids) // len(topics) // length
    if part <= examples:
        raise HastenError(f"{len(topics)} topics of {len(ids)} tokens have no prompts of {length}: give a longer text")
    pieces = [
        [ids[at * length : (at + 1) * length] for at in range(t * part, (t + 1) * part)] for t in range(len(topics))
    ]
    asked = [0] * len(topics)
    prompts: list[list[Prompt]] = []
    for batch in batches:
        prompts.append([])
        for topic in batch:
            prompts[-1].append(pieces[topic][examples + asked[topic] % (part - examples)])
            asked[topic] += 1
    return {name: list(own[:examples]) for name, own in zip(topics, pieces, strict=True)}, prompts


@dataclass(frozen=True)
class StepTimes:
    """What the model of switching is given, measured apart from the trace.

    Args:
        load: seconds in which an expert comes in, held to the stated rate, and is made ready to answer.
        unheld: in which it comes in without a rate: what the page cache gives.
        answers: number of prompts of one expert -> seconds of their answers.
        router: seconds of a batch.
    """

    load: float
    unheld: float
    answers: dict[int, float]
    router: float

    def answer(self, prompts: int) -> float:
        """Seconds of so many prompts' answers; of those measured the nearest, in proportion beyond."""
        nearest = min(self.answers, key=lambda n: abs(n - prompts))
        return self.answers[nearest] * prompts / nearest


def measured_times(
    model: LanguageModel, experts: ExpertModels, router: Router, batches: Sequence[Sequence[Prompt]], new_tokens: int,
    *, runs: int = 5, most_tokens: int = 256,
) -> StepTimes:  # fmt: skip
    """Medians of ``runs``: of loads, and of answers to as many prompts as the trace has for one expert."""
    sizes = sorted({len(places) for batch in batches for places in grouped(router(batch)).values()} | {1})
    prompts = [p for batch in batches for p in batch]
    free, into = ExpertModels(experts.folder, experts.base), {n: w.clone() for n, w in experts.base.items()}
    one = experts.names[0]

    def served(capacity: int) -> ExpertServer:
        return ExpertServer(model, experts, lambda asked: [one] * len(asked), capacity, most_tokens=most_tokens)

    loads: list[float] = []
    unheld: list[float] = []
    answers: dict[int, list[float]] = {n: [] for n in sizes}
    routing: list[float] = []
    with served(0) as bare, served(1) as keeps:
        keeps.answer(prompts[:1], new_tokens)
        for run in range(runs):
            before = bare.counts.waiting
            bare.answer(prompts[:1], 1)
            loads.append(bare.counts.waiting - before)
            begun = time.perf_counter()
            free.load(one, into)
            unheld.append(time.perf_counter() - begun)
            for n in sizes:
                # Prompts that were not asked before: what has been read of a text is not read again.
                at = (run * sum(sizes) + sum(sizes[: sizes.index(n)])) % max(1, len(prompts) - n)
                begun = time.perf_counter()
                keeps.answer(prompts[at : at + n], new_tokens)
                answers[n].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            router(batches[run % len(batches)])
            routing.append(time.perf_counter() - begun)
    return StepTimes(
        statistics.median(loads), statistics.median(unheld),
        {n: statistics.median(t) for n, t in answers.items()}, statistics.median(routing),
    )  # fmt: skip


def try_way(
    way: ServingWay, model: LanguageModel, experts: ExpertModels, router: Router, batches: Sequence[Sequence[Prompt]],
    new_tokens: int, times: StepTimes, *, most_tokens: int = 256,
) -> WaySeen:  # fmt: skip
    """Serves all batches one way, from a cold cache unless all experts fit, and asks the model what that takes."""
    names = experts.names
    resident = way.capacity >= len(names)
    answers: list[tuple[int, ...]] = []
    asked: list[list[str]] = []

    def routed(prompts: Sequence[Prompt]) -> list[str]:
        asked.append(router(prompts))
        return asked[-1]

    with ExpertServer(
        model, experts, lambda prompts: list(names), way.capacity, group=way.group, prefetch=way.prefetch,
        most_tokens=most_tokens,
    ) as server:  # fmt: skip
        if resident:
            server.answer([batches[0][0]] * len(names), 1)
            server.counts = ExpertCounts()
        server.router = routed
        for batch in batches:
            answers += server.answer(batch, new_tokens)
        counts = server.counts
    predicted = simulate_switching(
        asked, capacity=way.capacity, load=times.load, answer=times.answer, router=lambda prompts: times.router,
        group=way.group, prefetch=way.prefetch, nbytes=experts.nbytes(names[0]), warm=names if resident else (),
    )  # fmt: skip
    return WaySeen(counts, tuple(answers), predicted)


@dataclass(frozen=True)
class ExpertTrial:
    """All ways on one trace: what experts take and how reading is held, times measured apart, and what was seen."""

    about: str
    times: StepTimes
    seen: dict[str, WaySeen]


def tried(
    model: LanguageModel, ids: Sequence[int], topics: Sequence[Sequence[int]], count: int, capacity: int,
    new_tokens: int, *, bandwidth: float | None, length: int = 16, seed: int = 0,
    progress: Callable[[str, float], None] = lambda message, share: None,
) -> ExpertTrial:  # fmt: skip
    """Makes experts of a base by random changes, routes pieces of a text to them, and serves these every way.

    Args:
        model: the base.
        ids: tokens of the text, a part of it for each expert.
        topics: the part that each prompt is from, in batches.
        count, capacity: experts, and how many of them memory holds.
        new_tokens: of each answer.
        bandwidth: B/s that reading is held to.
        length: tokens of a prompt.
        seed: of the changes.
        progress: told the way, and the share done.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = expert_weights(model.network)
        names = write_experts_of(base, folder, count, seed=seed)
        experts = ExpertModels(folder, base, bandwidth=bandwidth)
        examples, batches = topic_prompts(ids, names, topics, length)
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        router = EmbeddingRouter(table.detach(), examples)
        times = measured_times(model, experts, router, batches, new_tokens)
        seen: dict[str, WaySeen] = {}
        ways = ways_of(capacity, count)
        for name, way in ways.items():
            progress(name, len(seen) / len(ways))
            seen[name] = try_way(way, model, experts, router, batches, new_tokens, times)
        return ExpertTrial(f"{experts.nbytes(names[0]) / 1e6:.0f} MB an expert, {experts.throttle}", times, seen)

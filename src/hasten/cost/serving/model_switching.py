"""Many expert models on one machine: which are in fast memory, what switching between them takes, and what hides it.

After the composition of experts of SN40L (arXiv 2405.07518, sections II and V). All experts lie in a large store. The
fast memory holds the router, keys and values, and as many experts as fit, as a managed cache. A batch of prompts is
routed first; then each prompt's expert is brought in where it is missing, and answers:

    T = router + sum over missing experts of (bytes / bandwidth) + sum over experts of (their prompts' time)

Prompts of a batch that go to one expert are grouped where that is asked for (`jobs_of`), so that it is brought in once
and answers them together; experts that are in memory answer first, before others take their places. With prefetching
the next missing expert comes in while the present one answers. Weights are only read, so an expert that leaves costs
nothing; a state that it changes is written back, and read again with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from hasten.cost.timeline import Activity, Timeline, run_timeline
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import StreamingChip, streaming_chip
from hasten.hardware.device import Device, load_device
from hasten.workload.memories import ManagedCache

E = TypeVar("E", bound=Hashable)
Policy = Literal["lru", "fifo", "belady"]


@dataclass(frozen=True)
class ExpertMachine:
    """A machine that serves experts.

    Args:
        name: for people.
        fast_bytes: of the memory that computes.
        store_bytes: of what lies behind it; 0 where nobody says.
        bandwidth: B/s at which an expert comes from there.

    Raises:
        HastenError: a bandwidth or a memory of nothing.
    """

    name: str
    fast_bytes: float
    store_bytes: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (0 < self.bandwidth < math.inf and 0 < self.fast_bytes < math.inf and self.store_bytes >= 0):
            raise HastenError(
                f"{self.name} has {self.fast_bytes:g} bytes of fast memory and {self.bandwidth:g} B/s to it: give "
                "numbers above 0"
            )

    @classmethod
    def of_chip(cls, chip: StreamingChip) -> ExpertMachine:
        """Fast memory and store of a streaming chip, or of several as a node."""
        return cls(chip.name, chip.memory_bytes, chip.store_bytes, chip.store_bandwidth)

    @classmethod
    def of_gpus(cls, device: Device, count: int) -> ExpertMachine:
        """GPUs in one host: their memories together, filled over the slowest link, one direction of it.

        Data sheets name both directions of a link together.

        Raises:
            HastenError: the device has no link.
        """
        if not device.links:
            raise HastenError(f"{device.name} has no connection to a host: add one to its file")
        rate = min(float(link.bandwidth) for link in device.links) / 2
        return cls(f"{count} x {device.name}", count * float(device.main_memory.capacity), 0.0, rate)

    def switch(self, nbytes: float) -> float:
        """Seconds in which an expert comes in."""
        return nbytes / self.bandwidth

    def held(self, nbytes: float, reserved: float = 0.0) -> int:
        """Experts that the fast memory holds beside what is reserved: the router, keys and values.

        Raises:
            HastenError: not one, or an expert of no bytes.
        """
        if not 0 < nbytes < math.inf or not 0 <= reserved < math.inf:
            raise HastenError(f"an expert of {nbytes:g} bytes beside {reserved:g} reserved: give numbers above 0")
        found = int((self.fast_bytes - reserved) // nbytes)
        if found < 1:
            raise HastenError(
                f"an expert of {nbytes:,.0f} bytes beside {reserved:,.0f} reserved is larger than {self.name}, which "
                f"has {self.fast_bytes:,.0f}: use a larger machine"
            )
        return found


def grouped(experts: Iterable[E]) -> dict[E, list[int]]:
    """Expert -> places in the batch that go to it; experts in the order in which they are first asked for.

    >>> grouped("abac")
    {'a': [0, 2], 'b': [1], 'c': [3]}
    """
    found: dict[E, list[int]] = {}
    for place, expert in enumerate(experts):
        found.setdefault(expert, []).append(place)
    return found


def jobs_of(batch: Sequence[E], group: bool = True, present: Container[object] = ()) -> list[tuple[E, list[int]]]:
    """(expert, places of prompts) in the order in which a batch is answered.

    Args:
        batch: the expert of each prompt.
        group: a job for each expert, or else for each prompt.
        present: experts that are in memory: of groups theirs come first, before another takes their place.

    >>> jobs_of("abac", present="c")
    [('c', [3]), ('a', [0, 2]), ('b', [1])]
    """
    if not group:
        return [(e, [i]) for i, e in enumerate(batch)]
    return sorted(grouped(batch).items(), key=lambda job: job[0] not in present)


def zipf_batches(experts: int, prompts: int, batch: int, seed: int, skew: float = 1.0) -> list[list[int]]:
    """Which expert each prompt goes to, in batches: the ``k``-th of them is as likely as ``k**-skew`` says.

    Raises:
        HastenError: a size below 1, or a skew below 0.
    """
    if min(experts, prompts, batch) < 1:
        raise HastenError(f"{experts} experts, {prompts} prompts in batches of {batch}: give at least 1 of each")
    if not skew >= 0:
        raise HastenError(f"experts are asked for with a skew of {skew:g}: give a number from 0")
    draw = random.Random(seed)
    weights = [(k + 1) ** -skew for k in range(experts)]
    asked = draw.choices(range(experts), weights, k=prompts)
    return [asked[i : i + batch] for i in range(0, prompts, batch)]


@dataclass(frozen=True)
class Switching:
    """What became of a trace of prompts.

    Args:
        timeline: lanes ``compute`` (router and answers) and ``link`` (experts that come, states that go).
        hits, misses: jobs whose expert was there, or not.
        loaded, written: bytes from and to the store.
        answers: number of prompts.
    """

    timeline: Timeline
    hits: int
    misses: int
    loaded: float
    written: float
    answers: int

    @property
    def seconds(self) -> float:
        return self.timeline.seconds

    @property
    def exposed(self) -> float:
        """Seconds in which the link is at work and nothing computes."""
        return self.timeline.exposed("link", "compute")


def simulate_switching(
    batches: Sequence[Sequence[Hashable]],
    *,
    capacity: int,
    load: float,
    answer: Callable[[int], float],
    router: Callable[[int], float] = lambda prompts: 0.0,
    policy: Policy = "lru",
    group: bool = True,
    prefetch: bool = False,
    nbytes: float = 1.0,
    state: float = 0.0,
    warm: Sequence[Hashable] = (),
) -> Switching:
    """Prompts on a machine with a managed cache of experts.

    Args:
        batches: the expert of each prompt, batch after batch: the next one begins when the last one is answered.
        capacity: experts that the fast memory holds; 0 for no cache, so that every job brings its expert in.
        load: seconds in which an expert comes in.
        answer: number of prompts of one expert -> seconds in which it answers them.
        router: number of prompts of a batch -> seconds in which they are routed.
        policy: who leaves.
        group: prompts of a batch that go to one expert are answered together, those of experts in memory first;
            with ``belady``, which must know the order before, in the order in which experts are first asked for.
        prefetch: while an expert answers the next one of the batch comes in, where it has a place.
        nbytes: of an expert, for what is counted.
        state: of these bytes beside, what an expert changes as it answers: written back when it leaves, at the rate of
            ``load``, and brought in with it again.
        warm: experts that are in memory at the begin.

    Raises:
        HastenError: a capacity or times below 0, or more experts in memory than fit.
    """
    if capacity < 0 or not 0 <= load < math.inf or nbytes <= 0 or state < 0:
        raise HastenError(f"a cache of {capacity} experts that load in {load:g} s: give numbers from 0")
    if len(warm) > capacity:
        raise HastenError(f"{len(warm)} experts are in a memory for {capacity}: name fewer")
    future = None
    if policy == "belady":
        future = [*warm, *(expert for batch in batches for expert, _ in jobs_of(batch, group))]
    cache = ManagedCache(max(capacity, 1), policy, future)
    for expert in warm:
        cache.use(expert, 1)
    found: list[Activity] = []
    last: dict[Hashable, str] = {}  # expert -> its last answer
    answered: list[str] = []
    loads = writes = 0.0
    hits = 0
    for number, batch in enumerate(batches):
        route = Activity(f"route {number}", "compute", router(len(batch)), tuple(answered[-1:]), label="router")
        found.append(route)
        there = cache if capacity and policy != "belady" else ()
        for expert, places in jobs_of(batch, group, there):
            at = len(answered)
            present = capacity > 0 and expert in cache
            gone = cache.use(expert, 1, change=state > 0)
            hits += present
            needs = [route.name, *answered[-1:]]
            if not present:
                # Asked for when the last answer is there; with prefetching when that one begins, after the one before.
                ahead = 2 if prefetch and capacity > 0 else 1
                waits = [route.name, *answered[at - ahead :][:1], *(last[g] for g in gone if g in last)]
                for g in gone if state else ():
                    name = f"write {g} at {at}"
                    found.append(Activity(name, "link", load * state / nbytes, tuple(waits), label="state"))
                    waits.append(name)
                    writes += state
                size = nbytes + (state if expert in last else 0.0)
                loads += size
                found.append(Activity(f"load {at}", "link", load * size / nbytes, tuple(waits), label="expert"))
                needs.append(f"load {at}")
            last[expert] = f"answer {at}"
            answered.append(last[expert])
            found.append(Activity(last[expert], "compute", answer(len(places)), tuple(needs), label="answer"))
    timeline = run_timeline(found)
    return Switching(timeline, hits, len(answered) - hits, loads, writes, sum(map(len, batches)))


# Of the experiments of the paper: 150 experts as large as Llama-2-7B in bf16, 850 at most, and a router of that size.
LLAMA_BYTES = 13.48e9
LLAMA_PARAMETERS = 6.74e9
# Keys and values of 8 sequences of 4096 tokens of that model, 0.5 MiB a token.
CACHE_BYTES = 8 * 4096 * 2**19


RESERVED = LLAMA_BYTES + CACHE_BYTES
"""Bytes of the fast memory that experts cannot have: the router's, and those of keys and values."""


def published_machines() -> tuple[ExpertMachine, ExpertMachine, ExpertMachine]:
    """A node of eight SN40L sockets, and hosts of eight A100 and of eight H100."""
    a100, h100 = (ExpertMachine.of_gpus(load_device(name), 8) for name in ("a100", "h100"))
    return ExpertMachine.of_chip(streaming_chip("sn40l").node(8)), a100, h100


def machines_needed(machine: ExpertMachine, experts: int, nbytes: float, reserved: float = 0.0) -> int:
    """Machines that hold so many experts in fast memory, each with its own router, keys and values."""
    return -(-experts // machine.held(nbytes, reserved))


def answering_seconds(
    machine: ExpertMachine, experts: Sequence[int], nbytes: float, *, tokens: int = 20, token: float = 3e-3,
    router: float = 0.0, reserved: float | None = None,
) -> float:  # fmt: skip
    """Seconds of prompts one by one, answered at the same rate on every machine, so that they differ by switching.

    Args:
        machine: where.
        experts: of each prompt.
        nbytes: of an expert.
        tokens, token: of an answer, and seconds of each.
        router: seconds of a prompt.
        reserved: bytes of the fast memory that experts cannot have; None where no expert stays.
    """
    return simulate_switching(
        [[e] for e in experts],
        capacity=0 if reserved is None else machine.held(nbytes, reserved),
        load=machine.switch(nbytes),
        answer=lambda prompts: tokens * token,
        router=lambda prompts: router,
    ).seconds

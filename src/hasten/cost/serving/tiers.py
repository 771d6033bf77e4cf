"""Where keys and values live while many sequences are generated on little memory, and what that costs (ALISA).

A batch's cache outgrows the fast memory (a GPU's) and goes in part to a slow one (the host's), or is deleted in part
and computed again. Three phases follow each other: everything is fast; the oldest share ``alpha`` of the tokens is
slow; of those again the oldest share ``beta`` is deleted. arXiv 2403.17312, section 4. Bytes and seconds, no overlap.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from hasten.dtypes import BITS
from hasten.errors import HastenError
from hasten.hardware.device import Device
from hasten.workload.decoder import DecoderSizes


@dataclass(frozen=True)
class Job:
    """What is generated, by what model; the paper's lengths by default.

    Args:
        model: its sizes, and the formats of its weights and its cache.
        batch, prompt, new_tokens: sequences, their prompt, what each makes: the first when the prompt is read, every
            other in a step.
        group: tokens of a rounded cache that share the scales of their channels, which stay in fast memory; the newest
            tokens, until they fill a group, are kept there in the format of the activations. 0: all are rounded alone,
            and scales count nothing.
    """

    model: DecoderSizes
    batch: int
    prompt: int = 128
    new_tokens: int = 512
    group: int = 0

    @functools.cached_property
    def token_bytes(self) -> int:
        """Keys and values of one position of all sequences."""
        return self.model.token_bytes * self.batch

    @functools.cached_property
    def number_bytes(self) -> int:
        """Of a weight or an activation."""
        return BITS[self.model.dtype] // 8

    @functools.cached_property
    def plain_bytes(self) -> int:
        """Keys and values of one position that are not rounded."""
        return replace(self.model, cache_dtype="").token_bytes * self.batch

    @functools.cached_property
    def input_bytes(self) -> int:
        """Layer inputs of one position, from which its keys and values can be computed again."""
        return self.model.layers * self.model.hidden * self.number_bytes * self.batch

    @functools.cached_property
    def least_bytes(self) -> int:
        """Of fast memory, without which no step can be made."""
        if not self.group:
            return self.token_bytes
        return self.group * self.plain_bytes + self._coded(self.prompt + self.new_tokens)[1]

    def _coded(self, length: int) -> tuple[int, int]:
        """(tokens of whole groups, bytes of their scales): all and none where nothing is grouped."""
        if not self.group:
            return length, 0
        groups = length // self.group
        return groups * self.group, groups * 2 * self.plain_bytes

    def held(self, schedule: Schedule, length: int, away: int, deleted: int) -> int:
        """Bytes in fast memory of ``length`` tokens, so many of them away or deleted: keys, values, scales, inputs."""
        coded, scales = self._coded(length)
        plain = (length - coded) * self.plain_bytes
        inputs = 0 if schedule.prefix else deleted * self.input_bytes
        return (coded - away) * self.token_bytes + plain + scales + inputs

    def placed(self, schedule: Schedule, length: int, fast_bytes: float) -> tuple[int, int]:
        """(slow or deleted, deleted) tokens of ``length`` that a schedule wants, in so much fast memory."""
        share = 0.0 if schedule.prefix else self.input_bytes / self.token_bytes
        if not self.group:
            return schedule.placed(length, self.prompt, fast_bytes / self.token_bytes, share)
        # The incomplete group is larger than its codes would be, and the scales stay.
        coded, scales = self._coded(length)
        beside = (length - coded) * (self.plain_bytes - self.token_bytes) + scales
        away, deleted = schedule.placed(length, self.prompt, (fast_bytes - beside) / self.token_bytes, share)
        if share:
            # What is deleted stays so, also when the incomplete group is at its largest.
            room = fast_bytes - self.least_bytes + self.plain_bytes
            deleted = min(deleted, int(room / self.input_bytes))
        return min(away, coded), min(deleted, away, coded)

    def placements(self, schedule: Schedule, fast_bytes: float) -> Iterator[tuple[int, int, int]]:
        """(length, slow or deleted, deleted) when the prompt is read, and after each step: nothing comes back."""
        away = deleted = 0
        for length in range(self.prompt, self.prompt + self.new_tokens):
            wanted = self.placed(schedule, length, fast_bytes)
            away = max(away, wanted[0])
            deleted = max(deleted, wanted[1])
            yield length, away, deleted

    def row_bytes(self, ratio: float, heads: int) -> int:
        """What sparse window attention remembers at the end beside keys and values: the weights of its last steps.

        The paper does not count it, and the schedules here do not either.

        Args:
            ratio: share of the tokens that a step reads.
            heads: whose choices differ, of a layer.
        """
        length = self.prompt + self.new_tokens
        rows = heads * self.model.layers * self.batch
        return max(1, math.floor(ratio * length) // 2) * length * rows * self.number_bytes


@dataclass(frozen=True)
class Tiers:
    """The machine.

    Args:
        fast_bytes: for keys and values.
        link: B/s between the two memories.
        fast: B/s of the fast memory.
        compute: FLOP/s.
        step: seconds of a step that do not depend on the cache; computed from the weights when 0.
    """

    fast_bytes: float
    link: float
    fast: float
    compute: float
    step: float = 0.0

    @classmethod
    def of(cls, device: Device, model: DecoderSizes, *, link: float | None = None, dtype: str = "fp16") -> Tiers:
        """What ``device`` has for keys and values beside the weights, with its host as the slow tier.

        Args:
            device: its main memory is the fast tier.
            model: whose weights lie there.
            link: B/s to the host; what the device's slowest connection has when None.
            dtype: of weights and products.

        Raises:
            HastenError: the weights do not fit, or the device has no connection.
        """
        weights = model.total_parameters * BITS[dtype] / 8
        room = float(device.main_memory.capacity) - weights
        if room <= 0:
            has = f"{model.name} has {weights / 1e9:.0f} GB of weights"
            raise HastenError(
                f"{has}, {device.name} {device.main_memory.capacity / 1e9:.0f} GB: choose a larger device"
            )
        if link is None and not device.links:
            raise HastenError(f"{device.name} has no connection to a host: give the link's B/s")
        rate = min(float(c.bandwidth) for c in device.links) if link is None else link
        return cls(room, rate, float(device.main_memory.bandwidth), device.unit("contraction", dtype)[1])


def _plain(name: str, layers: int, hidden: int, heads: int, vocabulary: int, *, tied: bool) -> DecoderSizes:
    """With an MLP of two matrices, four times as wide inside."""
    return DecoderSizes(
        name, layers=layers, hidden=hidden, heads=heads, inner=4 * hidden, matrices=2, vocabulary=vocabulary, tied=tied,
        dtype="fp16",
    )  # fmt: skip


def _llama(name: str, layers: int, hidden: int, heads: int, inner: int) -> DecoderSizes:
    return DecoderSizes(name, layers=layers, hidden=hidden, heads=heads, inner=inner, vocabulary=32000, dtype="fp16")


# The models of the paper's evaluation, from their public configurations.
MODELS = {
    m.name: m
    for m in (
        _plain("opt-6.7b", 32, 4096, 32, 50272, tied=True),
        _plain("opt-13b", 40, 5120, 40, 50272, tied=True),
        _plain("opt-30b", 48, 7168, 56, 50272, tied=True),
        _llama("llama-7b", 32, 4096, 32, 11008),
        _llama("llama-13b", 40, 5120, 40, 13824),
        _llama("llama-33b", 60, 6656, 52, 17920),
        _plain("pythia-6.9b", 32, 4096, 32, 50432, tied=False),
        _plain("pythia-12b", 36, 5120, 40, 50688, tied=False),
    )
}


@dataclass(frozen=True)
class Schedule:
    """When and how much leaves the fast memory.

    Args:
        alpha: share of the tokens that is slow from the moment that not all fit, or from the first if ``always``.
        beta: share of those that is deleted, from new token ``delete_from`` on.
        delete_from: first step of the third phase; beyond the last step there is none.
        prefix: how deleted tokens come back: by running the text's beginning through all layers, for which nothing is
            kept but only the prompt's tokens can go, instead of from kept layer inputs. Those of deleted tokens are in
            fast memory; those of tokens that are deleted later wait in slow memory.
        always: ``alpha`` counts while all tokens would fit, too.
    """

    alpha: float = 0.0
    beta: float = 0.0
    delete_from: int = 1 << 30
    prefix: bool = False
    always: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1):
            raise HastenError("a schedule's alpha and beta are shares from 0 to 1")

    def placed(self, length: int, prompt: int, fast_tokens: float, input_share: float) -> tuple[int, int]:
        """(slow or deleted, deleted) tokens of ``length``: always the oldest ones.

        Args:
            length: tokens of a sequence.
            prompt: how many of them it began with.
            fast_tokens: tokens that the fast memory holds.
            input_share: what a deleted token keeps there, as a share of its keys and values; where that is more than
                these none is deleted.
        """
        if length <= fast_tokens and not self.always:
            return 0, 0
        beta = self.beta if length - prompt >= self.delete_from and input_share <= 1 else 0.0
        # Deleted tokens keep their inputs: away must satisfy length - away + beta away share <= fast_tokens.
        least = math.ceil((length - fast_tokens) / max(1e-9, 1 - beta * input_share) - 1e-9)
        away = min(length, max(math.ceil(self.alpha * length), least))
        deleted = min(away, math.floor(beta * away))
        # Rounding must not cost a byte too many.
        while away < length and length - away + deleted * input_share > fast_tokens:
            away += 1
        while deleted and length - away + deleted * input_share > fast_tokens:
            deleted -= 1
        return away, min(deleted, prompt) if self.prefix else deleted


def window_split(ratio: float, length: int) -> tuple[int, int]:
    """(newest, chosen older) tokens of ``length`` that a sparse window reads: half of the share ``ratio`` each.

    All of them where the two are as many as there are.
    """
    budget = max(2, math.floor(ratio * length)) if length > 2 else length
    local = max(1, budget // 2)
    return local, budget - local


class Reads(Protocol):
    """Which tokens the steps of a generation read."""

    def oldest(self, length: int, count: int) -> float:
        """How many of the ``count`` oldest tokens a step over ``length`` reads: a mean over sequences and kv heads."""


# Measured: 0.2 to 0.25 with SmolLM2-135M on text at a ratio of 0.2, 0 to 0.3 with Llamas of random weights.
LASTING = 0.2


@dataclass(frozen=True)
class ExpectedReads:
    """What a sparse window is expected to read.

    Once chosen a token keeps its weight, and one that no step has read for a while has none: so what is chosen is what
    was chosen before, and the token that has left the newest ones takes the place of any of them. After a prompt, which
    weighs all tokens, the older ones are chosen evenly; of them ever fewer are left. A part of the choices lasts and
    stays spread evenly over the text.

    Args:
        prompt, ratio: tokens of the prompt, and the share that a step reads.
        lasting: share of the chosen older tokens that are spread evenly.
    """

    prompt: int
    ratio: float
    lasting: float = LASTING

    def oldest(self, length: int, count: int) -> float:
        local, others = window_split(self.ratio, length)
        count = min(count, length)
        if not count or local + others >= length:
            return count
        older = length - local
        even = others / older * min(count, older)
        moving = _turnover(self.prompt, self.ratio).oldest(length, min(count, older))
        return self.lasting * even + (1 - self.lasting) * moving + max(0, count - older)


class _Turnover:
    """Choices of which each step gives up any one for the token that has left the newest."""

    def __init__(self, prompt: int, ratio: float) -> None:
        self.ratio, self.begun = ratio, prompt + 1
        local, self.others = window_split(ratio, self.begun)
        self.older = self.first_older = self.begun - local
        self.even = self.others / self.first_older
        # For each length the logarithm of the share of the first choices that is left. For each token that has joined
        # since that logarithm just before, and how many of those that have joined so far were left then.
        self.left = [0.0]
        self.joined: list[float] = []
        self.sums = [0.0]

    def oldest(self, length: int, count: int) -> float:
        """How many of the ``count`` oldest tokens, all of them older than the newest that are read, are chosen."""
        while self.begun + len(self.left) <= length:
            self._extend()
        now = self.left[length - self.begun]
        found = min(count, self.first_older) * self.even * math.exp(now)
        later = count - self.first_older
        if later > 0:
            found += self.sums[later] * math.exp(now - self.joined[later - 1])
        return found

    def _extend(self) -> None:
        before, length = self.left[-1], self.begun + len(self.left)
        local, others = window_split(self.ratio, length)
        new = length - local - self.older
        for _ in range(new):
            so_far = self.sums[-1] * math.exp(before - self.joined[-1]) if self.joined else 0.0
            self.joined.append(before)
            self.sums.append(so_far + 1)
        self.left.append(before + math.log(min(1.0, others / (self.others + new))))
        self.older, self.others = self.older + new, others


@functools.lru_cache(maxsize=64)
def _turnover(prompt: int, ratio: float) -> _Turnover:
    return _Turnover(prompt, ratio)


@dataclass(frozen=True)
class Simulated:
    """A whole generation.

    Args:
        seconds: of the steps after the prompt, and of moving the prompt's tokens away.
        phases: tokens made while all was fast, a part slow, a part deleted.
        moved: bytes over the link.
        recomputed: deleted tokens that were computed again, a mean over sequences and kv heads.
        most_fast: bytes of fast memory in use after a step, at most.
        prompt_seconds: the part of ``seconds`` before the first step.
    """

    seconds: float
    phases: tuple[int, int, int]
    moved: float
    recomputed: float
    most_fast: float
    prompt_seconds: float = 0.0


def _fixed(job: Job, tiers: Tiers) -> float:
    if tiers.step:
        return tiers.step
    parameters = job.model.layer_parameters
    moved = parameters * job.number_bytes / tiers.fast
    return max(moved, 2 * parameters * job.batch / tiers.compute)


def sparse(job: Job, tiers: Tiers, schedule: Schedule, ratio: float, *, reads: Reads | None = None) -> Simulated:
    """Sparse window attention under a schedule, as `hasten.runtime.storage.tiered_cache` runs it.

    A step reads what it needs from where the step before has left it, then moves what the schedule wants away. Layer
    inputs of tokens that are deleted later are written when they are made, and read when they are deleted.

    Args:
        job, tiers, schedule: what runs where and how.
        ratio: share of the tokens that a step reads, half of them the newest.
        reads: which tokens; `ExpectedReads` when None.
    """
    reads = reads or ExpectedReads(job.prompt, ratio)
    model, fixed, phases = job.model, _fixed(job, tiers), [0, 0, 0]
    # Of a token: of its own keys and values, and of all that it goes through.
    again_flops, through_flops = 4 * model.layers * model.hidden * model.kv_width, 2 * model.layer_parameters
    seconds = moved = again = prompt_seconds = 0.0
    most = away = deleted = 0
    steps = list(job.placements(schedule, tiers.fast_bytes))
    # What is deleted by the end.
    waiting = 0 if schedule.prefix or not steps else steps[-1][2]
    for length, now_away, now_deleted in steps:
        new = length if length == job.prompt else 1
        bytes_moved = float((now_away - away) * job.token_bytes)
        # Inputs: of new tokens that wait to be deleted, and of earlier ones that now are.
        written = max(0, min(length, waiting) - max(length - new, now_deleted))
        read = max(0, min(now_deleted, length - new) - deleted) if waiting else 0
        bytes_moved += (written + read) * job.input_bytes
        if length > job.prompt:
            redone = reads.oldest(length, deleted)
            bytes_moved += (reads.oldest(length, away) - redone) * job.token_bytes
            again += redone
            flops = redone * again_flops * job.batch
            if schedule.prefix and redone:
                # All that are deleted, through every layer, whichever of them is read.
                flops = deleted * (through_flops + 2 * model.layers * model.hidden * deleted) * job.batch
            seconds += fixed + sum(window_split(ratio, length)) * job.token_bytes / tiers.fast
            seconds += flops / tiers.compute
        seconds += bytes_moved / tiers.link
        if length == job.prompt:
            prompt_seconds = seconds
        moved += bytes_moved
        away, deleted = now_away, now_deleted
        phases[2 if deleted else 1 if away else 0] += 1
        most = max(most, job.held(schedule, length, away, deleted))
    return Simulated(seconds, (phases[0], phases[1], phases[2]), moved, again, most, prompt_seconds)


def split_schedule(job: Job, tiers: Tiers) -> Schedule:
    """A fixed share of the tokens on the slow side, from the first on, chosen for the last step (FlexGen)."""
    final = (job.prompt + job.new_tokens) * job.token_bytes
    return Schedule(max(0.0, 1 - tiers.fast_bytes / final), always=True)


def static_split(job: Job, tiers: Tiers) -> Simulated:
    """Full attention with the `split_schedule`."""
    return sparse(job, tiers, split_schedule(job, tiers), 1.0)


def waves(job: Job, tiers: Tiers) -> Simulated:
    """Full attention, all in fast memory, as many sequences at a time as fit (preemption as in vLLM).

    Raises:
        HastenError: not one sequence fits.
    """
    each = (job.prompt + job.new_tokens) * job.token_bytes / job.batch
    at_once = min(job.batch, math.floor(tiers.fast_bytes / each))
    if at_once < 1:
        raise HastenError("not one sequence fits into fast memory: give it more, or generate less")
    seconds, left = 0.0, job.batch
    while left:
        some = replace(job, batch=min(at_once, left))
        left -= some.batch
        for step in range(1, job.new_tokens):
            seconds += _fixed(some, tiers) + (job.prompt + step) * some.token_bytes / tiers.fast
    return Simulated(seconds, (job.new_tokens, 0, 0), 0.0, 0.0, at_once * each)


def best_schedule(job: Job, tiers: Tiers, ratio: float, *, reads: Reads | None = None, delete: bool = True) -> Schedule:
    """The schedule of the least simulated time: a grid over alpha, beta, the beginning of the third phase and how what
    is deleted comes back.

    Raises:
        HastenError: even with everything away the fast memory is too small for a step.
    """
    if tiers.fast_bytes < job.least_bytes:
        what = f"a group of {job.group} tokens and the scales" if job.group else "one token"
        raise HastenError(f"the fast memory does not hold {what} of the batch: give it more")
    starts = [round(job.new_tokens * s) for s in (0, 0.25, 0.5, 0.75)]
    betas = (0.1, 0.25, 0.5, 0.75, 1.0) if delete else ()
    options = [Schedule(alpha) for alpha in (0.0, 0.25, 0.5, 0.75)]
    options += [
        Schedule(a, b, s, p) for a, b, s, p in itertools.product((0.0, 0.25, 0.5, 0.75), betas, starts, (False, True))
    ]
    return min(options, key=lambda s: sparse(job, tiers, s, ratio, reads=reads).seconds)


@dataclass(frozen=True)
class Speedups:
    """Simulated seconds of one generation in four ways, each with its best schedule.

    Args:
        three, two: sparse window attention with all three phases, and without deleting.
        split: see `static_split`.
        waves: see `waves`.
    """

    three: float
    two: float
    split: float
    waves: float

    @property
    def over_split(self) -> float:
        """How many times as fast as the static split."""
        return self.split / self.three

    @property
    def over_waves(self) -> float:
        """How many times as fast as waves."""
        return self.waves / self.three


def speedups(job: Job, tiers: Tiers, ratio: float = 0.2, *, reads: Reads | None = None) -> Speedups:
    """A generation by sparse windows that read the share ``ratio``, beside its baselines; reads as in `sparse`.

    Raises:
        HastenError: the fast memory is too small for one of them.
    """
    three, two = (
        sparse(job, tiers, best_schedule(job, tiers, ratio, reads=reads, delete=delete), ratio, reads=reads).seconds
        for delete in (True, False)
    )
    return Speedups(three, two, static_split(job, tiers).seconds, waves(job, tiers).seconds)

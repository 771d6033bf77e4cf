"""Where keys and values live while many sequences are generated on little memory, and what that costs (ALISA).

A batch's cache outgrows the fast memory (a GPU's) and goes in part to a slow one (the host's), or is deleted in part
and computed again. Three phases follow each other: everything is fast; the oldest share ``alpha`` of the tokens is
slow; of those again the oldest share ``beta`` is deleted. arXiv 2403.17312, section 4. Bytes and seconds, no overlap.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from hasten.dtypes import BITS
from hasten.errors import HastenError
from hasten.hardware.device import Device
from hasten.workload.decoder import DecoderSizes


@dataclass(frozen=True)
class Job:
    """What is generated, by what model; the paper's lengths by default.

    Args:
        model: its sizes, and the formats of its weights and its cache.
        batch, prompt, new_tokens: sequences, their prompt, what each makes.
    """

    model: DecoderSizes
    batch: int
    prompt: int = 128
    new_tokens: int = 512

    @property
    def token_bytes(self) -> int:
        """Keys and values of one position of all sequences."""
        return self.model.token_bytes * self.batch

    @property
    def number_bytes(self) -> int:
        """Of a weight or an activation."""
        return BITS[self.model.dtype] // 8

    @property
    def input_bytes(self) -> int:
        """Layer inputs of one position, from which its keys and values can be computed again."""
        return self.model.layers * self.model.hidden * self.number_bytes * self.batch

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
        alpha: share of the tokens that is slow from the moment that not all fit.
        beta: share of those that is deleted, from new token ``delete_from`` on.
        delete_from: first step of the third phase; beyond the last step there is none.
        prefix: how deleted tokens come back: by running the text's beginning through all layers, for which nothing is
            kept but only the prompt's tokens can go, instead of from kept layer inputs.
    """

    alpha: float = 0.0
    beta: float = 0.0
    delete_from: int = 1 << 30
    prefix: bool = False

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
        if length <= fast_tokens:
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


@dataclass(frozen=True)
class Simulated:
    """A whole generation: seconds, phases, bytes over the link, the most fast memory in use."""

    seconds: float
    phases: tuple[int, int, int]
    moved: float
    recomputed: float
    most_fast: float


def _fixed(job: Job, tiers: Tiers) -> float:
    if tiers.step:
        return tiers.step
    parameters = job.model.layer_parameters
    moved = parameters * job.number_bytes / tiers.fast
    return max(moved, 2 * parameters * job.batch / tiers.compute)


def sparse(job: Job, tiers: Tiers, schedule: Schedule, ratio: float, *, old_share: float = 1.0) -> Simulated:
    """Sparse window attention under a schedule.

    Args:
        job, tiers, schedule: what runs where and how.
        ratio: share of the tokens that a step reads, half of them the newest.
        old_share: how much rarer than evenly the chosen older tokens are among those away.
    """
    seconds = moved = again = most = 0.0
    model = job.model
    phases = [0, 0, 0]
    share = 0.0 if schedule.prefix else job.input_bytes / job.token_bytes
    fast_tokens = tiers.fast_bytes / job.token_bytes
    before = 0
    for step in range(job.new_tokens):
        length = job.prompt + step + 1
        away, deleted = schedule.placed(length, job.prompt, fast_tokens, share)
        budget = math.floor(ratio * length)
        local = min(length, max(1, budget // 2))
        older = max(1, length - local)
        # Local tokens are always in fast memory's reach: only the chosen older ones may be away.
        beyond = max(0, away - older)
        picked = (budget - local) / older * min(away, older) * old_share + beyond
        fetched = picked * (away - deleted) / max(1, away)
        redone = picked - fetched
        bytes_moved = (fetched + max(0, away - before)) * job.token_bytes
        flops = redone * 4 * model.layers * model.hidden * model.kv_width * job.batch
        if schedule.prefix and redone:
            # All that are deleted, through every layer, whichever of them is read.
            flops = deleted * (2 * model.layer_parameters + 2 * model.layers * model.hidden * deleted) * job.batch
        before = away
        moved += bytes_moved
        again += redone
        phases[2 if deleted else 1 if away else 0] += 1
        most = max(most, (length - away + deleted * share) * job.token_bytes)
        seconds += _fixed(job, tiers) + budget * job.token_bytes / tiers.fast + bytes_moved / tiers.link
        seconds += flops / tiers.compute
    return Simulated(seconds, (phases[0], phases[1], phases[2]), moved, again, most)


def static_split(job: Job, tiers: Tiers) -> Simulated:
    """Full attention with a fixed share of every token's cache on the slow side, chosen for the last step (FlexGen)."""
    final = (job.prompt + job.new_tokens) * job.token_bytes
    share = max(0.0, 1 - tiers.fast_bytes / final)
    seconds = moved = 0.0
    for step in range(job.new_tokens):
        cached = (job.prompt + step + 1) * job.token_bytes
        fetched = cached * share + job.token_bytes * share
        moved += fetched
        seconds += _fixed(job, tiers) + cached / tiers.fast + fetched / tiers.link
    phases = (0, job.new_tokens, 0) if share else (job.new_tokens, 0, 0)
    return Simulated(seconds, phases, moved, 0.0, final * (1 - share))


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
        for step in range(job.new_tokens):
            seconds += _fixed(some, tiers) + (job.prompt + step + 1) * some.token_bytes / tiers.fast
    return Simulated(seconds, (job.new_tokens, 0, 0), 0.0, 0.0, at_once * each)


def best_schedule(job: Job, tiers: Tiers, ratio: float, *, old_share: float = 1.0, delete: bool = True) -> Schedule:
    """The schedule of the least simulated time: a grid over alpha, beta, the beginning of the third phase and how what
    is deleted comes back.

    Raises:
        HastenError: even with everything away the fast memory is too small for a step.
    """
    if tiers.fast_bytes < job.token_bytes:
        raise HastenError("the fast memory does not hold one token of the batch: give it more")
    starts = [round(job.new_tokens * s) for s in (0, 0.25, 0.5, 0.75)]
    betas = (0.25, 0.5, 0.75, 1.0) if delete else ()
    options = [Schedule(alpha) for alpha in (0.0, 0.25, 0.5, 0.75)]
    options += [
        Schedule(a, b, s, p) for a, b, s, p in itertools.product((0.0, 0.25, 0.5, 0.75), betas, starts, (False, True))
    ]
    return min(options, key=lambda s: sparse(job, tiers, s, ratio, old_share=old_share).seconds)


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


def speedups(job: Job, tiers: Tiers, ratio: float = 0.2) -> Speedups:
    """A generation by sparse windows that read the share ``ratio``, beside its baselines.

    Raises:
        HastenError: the fast memory is too small for one of them.
    """
    three, two = (
        sparse(job, tiers, best_schedule(job, tiers, ratio, delete=delete), ratio).seconds for delete in (True, False)
    )
    return Speedups(three, two, static_split(job, tiers).seconds, waves(job, tiers).seconds)

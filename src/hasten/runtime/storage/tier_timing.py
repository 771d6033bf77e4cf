"""A batch really decoded over a throttled slow tier in each of ALISA's ways, beside what the simulator predicts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hasten.cost.serving.tiers import Job, Reads, Schedule, Tiers, best_schedule, sparse, split_schedule
from hasten.errors import HastenError
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.policies import SparseWindowPolicy
from hasten.runtime.policies.policy import PolicyLayer
from hasten.runtime.storage.tiered_cache import GROUP, TieredCache, generate
from hasten.workload.decoder import DecoderSizes


class RecordedReads:
    """Which tokens a run's steps read: by it a simulation of any schedule knows what that run would move."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}
        self._heads: dict[int, int] = {}

    def add(self, chosen: Tensor, length: int) -> None:
        """Positions (batch, kv heads, k) that a layer chose among ``length``."""
        counts = torch.bincount(chosen.flatten(), minlength=length)
        self._counts[length] = self._counts.get(length, 0) + counts
        self._heads[length] = self._heads.get(length, 0) + chosen.shape[0] * chosen.shape[1]

    def oldest(self, length: int, count: int) -> float:
        """See `hasten.cost.serving.tiers.Reads`."""
        if length not in self._counts:
            return min(count, length)
        return float(self._counts[length][:count].sum()) / self._heads[length]


@dataclass(frozen=True)
class RecordedWindow(SparseWindowPolicy):
    """A sparse window that records what it reads.

    Args:
        reads: where.
    """

    reads: RecordedReads = field(default_factory=RecordedReads, compare=False)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        chosen = super().choose(layer, query, keys, scaling)
        if chosen is not None:
            self.reads.add(chosen, keys.shape[2])
        return chosen


class Moved(NamedTuple):
    """Bytes over the link.

    Args:
        run: that were moved.
        simulated: from the choices of a run without tiers; in int8, whose choices differ, from the run's own.
        expected: simulated knowing no choices.
    """

    run: int
    simulated: float
    expected: float


@dataclass(frozen=True)
class TierTimes:
    """What was measured, and predicted. Seconds are of all steps after the prompt.

    Args:
        alone: the sparse window with everything in fast memory.
        two, three: it in tiers, without and with deleting.
        int8: as ``two``, with codes of 8 bits.
        split: full attention, a fixed share of the tokens in slow memory from the first on.
        waves: full attention, as many sequences at a time as fit.
        predicted_two, predicted_split: by the simulator.
        same: whether ``two`` and ``three`` gave the tokens of ``alone``.
        int8_agrees: share of its tokens that ``int8`` gave.
        bytes: moved in the ways ``two``, ``three``, ``int8`` and ``split``.
        rows: bytes of remembered attention rows over the fast memory.
    """

    alone: float
    two: float
    three: float
    int8: float
    split: float
    waves: float
    predicted_two: float
    predicted_split: float
    same: bool
    int8_agrees: float
    bytes: dict[str, Moved]
    rows: float

    @property
    def moved(self) -> int:
        """Bytes over the link of ``two``."""
        return self.bytes["two"].run

    @property
    def int8_moved(self) -> int:
        """Bytes over the link of ``int8``."""
        return self.bytes["int8"].run


def time_tiers(
    model: LanguageModel, ids: Tensor, new: int, *, share: float = 0.3, link: float = 200e6, ratio: float = 0.2
) -> TierTimes:
    """Greedy tokens of a batch in each way.

    Args:
        model: in fp32.
        ids: (batch, prompt) tokens.
        new: tokens to make.
        share: of the whole cache that the fast memory holds.
        link: B/s between the tiers.
        ratio: share of the cache that the sparse window reads.

    Raises:
        HastenError: a way does not keep to its memory, or that is too small for any.
    """
    batch, prompt = ids.shape
    job = Job(DecoderSizes.of(model.config, dtype="fp32"), batch, prompt, new)
    rounded = replace(job, model=replace(job.model, cache_dtype="int8"), group=GROUP)
    fast = share * (prompt + new) * job.token_bytes
    at_once = int(fast // ((prompt + new) * job.token_bytes / batch))
    if at_once < 1:
        raise HastenError(f"a share of {share:g} holds none of {batch} sequences: give more")

    def run(
        reads: float, schedule: Schedule, room: float, texts: Tensor = ids, dtype: Literal["fp32", "int8"] = "fp32"
    ) -> tuple[Tensor, float, TieredCache, RecordedReads]:
        policy = RecordedWindow(reads)
        cache = TieredCache(
            model, policy, schedule, batch=len(texts), capacity=prompt + new, fast_bytes=room, prompt=prompt,
            bandwidth=link, dtype=dtype,
        )  # fmt: skip
        made, times, most = generate(model, texts, cache, new)
        if most > room:
            raise HastenError(f"a cache with room for {room:.0f} bytes held {most:.0f}")
        return made, sum(times), cache, policy.reads

    def simulated(schedule: Schedule, reads: Reads | None, which: Job = job) -> float:
        return sparse(which, tiers, schedule, ratio, reads=reads).moved

    everything = (prompt + new + 1) * job.token_bytes
    expected, alone, _, reads = run(ratio, Schedule(), everything)
    full = run(1.0, Schedule(), everything)[1]
    # What a step costs without the tiers is measured; of the tiers the link alone is simulated.
    tiers = Tiers(fast, link, 1e12, 50e9, step=alone / (new - 1))
    plan, plan3 = (best_schedule(job, tiers, ratio, delete=delete) for delete in (False, True))
    plan8, halves = best_schedule(rounded, tiers, ratio), split_schedule(job, tiers)
    made2, two, cache2, _ = run(ratio, plan, fast)
    made3, three, cache3, _ = run(ratio, plan3, fast)
    made8, int8, cache8, reads8 = run(ratio, plan8, fast, dtype="int8")
    _, split, cache1, _ = run(1.0, halves, fast)
    static = sparse(job, replace(tiers, step=full / (new - 1)), halves, 1.0)
    ours = sparse(job, tiers, plan, ratio, reads=reads)
    return TierTimes(
        alone=alone,
        two=two,
        three=three,
        int8=int8,
        split=split,
        waves=sum(run(1.0, Schedule(), fast, some)[1] for some in ids.split(at_once)),
        predicted_two=ours.seconds - ours.prompt_seconds,
        predicted_split=static.seconds - static.prompt_seconds,
        same=torch.equal(made2, expected) and torch.equal(made3, expected),
        int8_agrees=float((made8 == expected).float().mean()),
        bytes={
            "two": Moved(cache2.slow.moved, ours.moved, simulated(plan, None)),
            "three": Moved(cache3.slow.moved, simulated(plan3, reads), simulated(plan3, None)),
            "int8": Moved(cache8.slow.moved, simulated(plan8, reads8, rounded), simulated(plan8, None, rounded)),
            "split": Moved(cache1.slow.moved, static.moved, static.moved),
        },
        rows=cache2.row_bytes / fast,
    )

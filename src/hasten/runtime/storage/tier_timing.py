"""A batch really decoded over a throttled slow tier in each of ALISA's ways, beside what the simulator predicts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hasten.cost.serving.tiers import Job, Schedule, Tiers, best_schedule, sparse, static_split
from hasten.errors import HastenError
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.policies import SparseWindowPolicy
from hasten.runtime.storage.tiered_cache import TieredCache, generate
from hasten.workload.decoder import DecoderSizes


@dataclass(frozen=True)
class TierTimes:
    """What was measured, and predicted. Seconds are of all steps after the prompt.

    Args:
        alone: the sparse window with everything in fast memory.
        two, three: it in tiers, without and with deleting.
        int8: as ``two``, with codes of 8 bits.
        split: full attention, tiers filled from the oldest token on.
        waves: full attention, as many sequences at a time as fit.
        predicted_two, predicted_split: by the simulator.
        same: whether ``two`` and ``three`` gave the tokens of ``alone``.
        int8_agrees: share of its tokens that ``int8`` gave.
        moved, int8_moved: bytes over the link.
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
    moved: int
    int8_moved: int
    rows: float


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
    fast = share * (prompt + new) * job.token_bytes
    at_once = int(fast // ((prompt + new) * job.token_bytes / batch))
    if at_once < 1:
        raise HastenError(f"a share of {share:g} holds none of {batch} sequences: give more")

    def run(
        reads: float, schedule: Schedule, room: float, texts: Tensor = ids, dtype: Literal["fp32", "int8"] = "fp32"
    ) -> tuple[Tensor, float, TieredCache]:
        cache = TieredCache(
            model, SparseWindowPolicy(reads), schedule, batch=len(texts), capacity=prompt + new, fast_bytes=room,
            prompt=prompt, bandwidth=link, dtype=dtype,
        )  # fmt: skip
        made, times, most = generate(model, texts, cache, new)
        if most > room:
            raise HastenError(f"a cache with room for {room:.0f} bytes held {most:.0f}")
        return made, sum(times), cache

    everything = (prompt + new + 1) * job.token_bytes
    expected, alone, _ = run(ratio, Schedule(), everything)
    full = run(1.0, Schedule(), everything)[1]
    # What a step costs without the tiers is measured; of the tiers the link alone is simulated.
    tiers = Tiers(fast, link, 1e12, 50e9, step=alone / (new - 1))
    plan = best_schedule(job, tiers, ratio, delete=False)
    made2, two, cache2 = run(ratio, plan, fast)
    made3, three, _ = run(ratio, best_schedule(job, tiers, ratio), fast)
    coded = best_schedule(replace(job, model=replace(job.model, cache_dtype="int8")), tiers, ratio)
    made8, int8, cache8 = run(ratio, coded, fast, dtype="int8")
    return TierTimes(
        alone=alone,
        two=two,
        three=three,
        int8=int8,
        split=run(1.0, Schedule(), fast)[1],
        waves=sum(run(1.0, Schedule(), fast, some)[1] for some in ids.split(at_once)),
        predicted_two=sparse(job, tiers, plan, ratio).seconds * (new - 1) / new,
        predicted_split=static_split(job, replace(tiers, step=full / (new - 1))).seconds,
        same=torch.equal(made2, expected) and torch.equal(made3, expected),
        int8_agrees=float((made8 == expected).float().mean()),
        moved=cache2.slow.moved,
        int8_moved=cache8.slow.moved,
        rows=cache2.row_bytes / fast,
    )

"""Points drawn uniformly, by Optuna."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, RandomSampler

from hasten.search.samplers import register
from hasten.search.space import Space


@register("random", "uniform: the baseline of every other")
def uniform(space: Space, seed: int | None, **options: Any) -> BaseSampler:
    return RandomSampler(seed=seed, **options)

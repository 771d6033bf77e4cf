"""Evolution of a population towards a Pareto front, by Optuna (Deb et al., 2002)."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, NSGAIISampler

from hasten.search.samplers import register
from hasten.search.space import Space


@register("nsga2", "Optuna's NSGA-II, evolution: several objectives, many trials")
def nsga2(space: Space, seed: int | None, **options: Any) -> BaseSampler:
    return NSGAIISampler(seed=seed, **{"population_size": 20, **options})

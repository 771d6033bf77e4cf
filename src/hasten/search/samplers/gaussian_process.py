"""A Gaussian process of the objective, by Optuna; it stands on scipy."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, GPSampler

from hasten.search.samplers import register
from hasten.search.space import Space


@register("gp", "Optuna's Gaussian process: few trials of continuous parameters; needs scipy")
def gp(space: Space, seed: int | None, **options: Any) -> BaseSampler:
    return GPSampler(seed=seed, **options)

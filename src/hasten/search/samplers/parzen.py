"""Densities of good and of bad points, by Optuna (Bergstra et al., 2011)."""

from __future__ import annotations

from typing import Any

from optuna.samplers import BaseSampler, TPESampler

from hasten.search.samplers import register
from hasten.search.space import Space


@register("tpe", "Optuna's tree-structured Parzen estimator: few, expensive trials")
def tpe(space: Space, seed: int | None, **options: Any) -> BaseSampler:
    # Joint sampling, in groups of parameters that exist together, so that conditions are respected.
    return TPESampler(seed=seed, **{"multivariate": True, "group": True, **options})

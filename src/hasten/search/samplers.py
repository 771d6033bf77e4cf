"""Who chooses: samplers by name, all of them Optuna samplers; every registered agent is one too.

A sampler of one's own, such as a paper's agent, is a subclass of ``optuna.samplers.BaseSampler`` and a
function that makes it, under a name:

    @register("ants")
    def ants(space, seed, **options):
        return AntColony(space, seed=seed, **options)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from hasten.errors import HastenError
from hasten.search.agents.registry import agents
from hasten.search.space import Space

Factory = Callable[..., Any]

EXHAUSTIVE_LIMIT = 10_000

_factories: dict[str, Factory] = {}
_about: dict[str, str] = {}


def register(name: str, about: str = "") -> Callable[[Factory], Factory]:
    """Adds a sampler under ``name``: a function of (space, seed, **options) that returns an Optuna sampler.

    Args:
        name: for ``sampler=`` and the command line.
        about: a line that says what it does; the first of the function's docstring when not given.

    Raises:
        HastenError: the name is taken.
    """

    def add(factory: Factory) -> Factory:
        if _factories.get(name, factory) is not factory or name in agents():
            raise HastenError(f"a sampler named {name!r} is already there: choose another name")
        _factories[name] = factory
        _about[name] = about or ((factory.__doc__ or "").strip().splitlines() or [""])[0]
        return factory

    return add


def samplers() -> list[str]:
    """Names of the samplers, agents among them."""
    return sorted({*_factories, *agents()})


def describe(name: str) -> str:
    """A line that says what a sampler does."""
    check_name(name)
    return _about[name] if name in _about else agents()[name]


def check_name(name: str) -> None:
    """Raises a HastenError unless there is a sampler called ``name``."""
    if name not in _factories and name not in agents():
        raise HastenError(f"there is no sampler {name!r}: choose from {', '.join(samplers())}")


def make_sampler(name: str, space: Space, seed: int | None = None, **options: Any) -> Any:
    """The sampler called ``name``, for ``space``.

    Raises:
        HastenError: there is no such sampler, it does not take an option, or it does not suit the space.
    """
    check_name(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of its options experimental, on every use
        try:
            return (_factories[name] if name in _factories else _agent(name))(space, seed, **options)
        except (TypeError, ValueError) as error:
            raise HastenError(f"sampler {name!r}: {error}") from None


def _agent(name: str) -> Factory:
    def make(space: Space, seed: int | None, **options: Any) -> Any:
        from hasten.search.agents.sampler import AgentSampler

        return AgentSampler(space, name, seed, **options)

    return make


@register("random", "uniform: the baseline of every other")
def _random(space: Space, seed: int | None, **options: Any) -> Any:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed, **options)


@register("tpe", "Optuna's tree-structured Parzen estimator: few, expensive trials")
def _tpe(space: Space, seed: int | None, **options: Any) -> Any:
    from optuna.samplers import TPESampler

    # Joint sampling, in groups of parameters that exist together, so that conditions are respected.
    return TPESampler(seed=seed, **{"multivariate": True, "group": True, **options})


@register("nsga2", "Optuna's NSGA-II, evolution: several objectives, many trials")
def _nsga2(space: Space, seed: int | None, **options: Any) -> Any:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, **{"population_size": 20, **options})


@register("exhaustive", f"every point once, in order: spaces of at most {EXHAUSTIVE_LIMIT:,} points")
def _exhaustive(space: Space, seed: int | None, limit: int = EXHAUSTIVE_LIMIT) -> Any:
    if space.size > limit:
        how_many = "infinitely many" if space.size == math.inf else f"{int(space.size):,}"
        raise HastenError(
            f"the space has {how_many} points and exhaustive search stops at {limit:,}:"
            " use the sampler tpe or nsga2, or a smaller space"
        )
    from hasten.search.exhaustive import ExhaustiveSampler

    return ExhaustiveSampler(space)


@register("gp", "Optuna's Gaussian process: few trials of continuous parameters; needs scipy")
def _gp(space: Space, seed: int | None, **options: Any) -> Any:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, **options)


@register("front", "neighbours of the points that none dominates: ScaleHLS's search of designs")
def _front(space: Space, seed: int | None, **options: Any) -> Any:
    from hasten.search.front_neighbours import FrontNeighbours

    return FrontNeighbours(space, seed, **options)

"""Who chooses: samplers by name, all of them Optuna samplers; every registered agent is one too.

A sampler is a file of this folder, or of one's own, with a subclass of ``optuna.samplers.BaseSampler`` and a function
that makes it, under a name:

    @register("ants", "an ant colony: pheromones on values")
    def ants(space, seed, **options):
        return AntColony(space, seed=seed, **options)

What the folder holds is read from its source: names are told without loading what the samplers stand on.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from hasten.errors import HastenError, MissingExtraError
from hasten.exports import Written, decorated
from hasten.search.agents.registry import agents
from hasten.search.space import Space

Factory = Callable[..., Any]

# Optuna's samplers that stand on a package which it does not install, and hasten's extra that has it.
_STANDS_ON = {"CmaEsSampler": ("cmaes", ""), "GPSampler": ("scipy", "search"), "QMCSampler": ("scipy", "search")}

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
        home = _folder()[name].module if name in _folder() else factory.__module__
        if _factories.get(name, factory) is not factory or home != factory.__module__ or name in agents():
            raise HastenError(f"a sampler named {name!r} is already there: choose another name")
        _factories[name] = factory
        _about[name] = about or ((factory.__doc__ or "").strip().splitlines() or [""])[0]
        return factory

    return add


@cache
def _folder() -> dict[str, Written]:
    """Names that the files of this folder register, and by which file."""
    return decorated(__name__, register.__name__)


def samplers() -> list[str]:
    """Names of the samplers, agents among them."""
    return sorted({*_folder(), *_factories, *agents()})


def describe(name: str) -> str:
    """A line that says what a sampler does."""
    check_name(name)
    if name in _folder():
        return _folder()[name].about
    return _about[name] if name in _about else agents()[name]


def check_name(name: str) -> None:
    """Raises a HastenError unless there is a sampler called ``name``."""
    if name not in samplers():
        raise HastenError(f"there is no sampler {name!r}: choose from {', '.join(samplers())}")


def make_sampler(name: str, space: Space, seed: int | None = None, **options: Any) -> Any:
    """The sampler called ``name``, for ``space``.

    Raises:
        HastenError: there is no such sampler, it does not take an option, lacks a package, or does not suit the space.
    """
    check_name(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of its options experimental, on every use
        try:
            return checked_sampler(_factory(name)(space, seed, **options))
        except (TypeError, ValueError) as error:
            raise HastenError(f"sampler {name!r}: {error}") from None


def checked_sampler(sampler: Any) -> Any:
    """A sampler that has the packages it stands on; Optuna itself looks for some of them after the first trials.

    Raises:
        HastenError: one is not installed.
    """
    for kind in type(sampler).__mro__:
        needed = _STANDS_ON.get(kind.__name__) if kind.__module__.startswith("optuna.") else None
        if needed and find_spec(needed[0]) is None:
            package, extra = needed
            if extra:
                raise MissingExtraError(package, extra)
            raise HastenError(f"{kind.__name__} stands on {package}, which is not installed: run pip install {package}")
    if (within := getattr(sampler, "_base_sampler", None)) is not None:
        checked_sampler(within)
    return sampler


def _factory(name: str) -> Factory:
    if name in _folder():
        importlib.import_module(_folder()[name].module)
    if name in _factories:
        return _factories[name]
    agent_sampler = importlib.import_module("hasten.search.agents.sampler").AgentSampler
    return lambda space, seed, **options: agent_sampler(space, name, seed, **options)

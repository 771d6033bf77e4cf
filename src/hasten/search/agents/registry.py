"""Agents by name: each is registered by a decorator in a file of this folder, or in a file of one's own.

What the folder holds is read from its source, so that names and what they mean are told without loading torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from hasten.errors import HastenError
from hasten.exports import Written, decorated

if TYPE_CHECKING:
    from hasten.search.agents.agent import Agent

_makers: dict[str, Callable[..., Agent]] = {}
_about: dict[str, str] = {}
M = TypeVar("M", bound="Callable[..., Agent]")


def register_agent(name: str, about: str) -> Callable[[M], M]:
    """Registers a class of agents, or a function of (sizes, seed, **options) that makes one; samplers know it too.

    Args:
        name: for `make_agent`, ``sampler=`` and the command line.
        about: a line that says what it does.

    Raises:
        HastenError: another agent has the name.
    """

    def add(make: M) -> M:
        here = (make.__module__, make.__qualname__)
        known = _makers.get(name)
        other = known is not None and (known.__module__, known.__qualname__) != here
        if other or (name in _folder() and _folder()[name].module != make.__module__):
            raise HastenError(f"an agent named {name!r} is already there: choose another name")
        _makers[name], _about[name] = make, about
        return make

    return add


@cache
def _folder() -> dict[str, Written]:
    """Names that the files of this folder register, and by which file."""
    return decorated(str(__package__), register_agent.__name__)


def agents() -> dict[str, str]:
    """Every agent's name, with a line that says what it does."""
    return dict(sorted(({name: written.about for name, written in _folder().items()} | _about).items()))


def make_agent(name: str, sizes: Sequence[int], seed: int = 0, **options: Any) -> Agent:
    """The agent called ``name``.

    Raises:
        HastenError: there is no such agent, or it does not take an option.
    """
    if name not in _makers and name in _folder():
        importlib.import_module(_folder()[name].module)
    if name not in _makers:
        raise HastenError(f"there is no agent {name!r}: choose from {', '.join(agents())}")
    try:
        return _makers[name](sizes, seed, **options)
    except TypeError as error:
        raise HastenError(f"agent {name!r}: {error}") from None

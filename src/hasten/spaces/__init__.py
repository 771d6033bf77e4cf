"""Problems that are known by name: each module of this folder has ``problem(**options) -> Problem``.

Its ``ENVIRONMENT``, where it has one, are the options with which it is made as an environment when none are given.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.search.environments import environment
from hasten.search.problem import Problem
from hasten.search.user_file import load_made


def names() -> list[str]:
    """Every known name."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def describe(name: str) -> str:
    """A line that says what is sought."""
    # Read, not imported: a list of names is not worth loading what all of them need.
    source = resources.files(__name__).joinpath(f"{name.replace('-', '_')}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def build(source: str, **options: Any) -> Problem:
    """A problem by name, or ``file.py:attribute``: a `Problem`, or a function that returns one.

    A file is the user's own code, and is run.

    Raises:
        HastenError: no such name, file or attribute, or it is no problem.
    """
    file, _, attribute = source.rpartition(":")
    if file.endswith(".py"):
        return _from_file(Path(file), attribute)
    if source not in names():
        known = ", ".join(names())
        raise HastenError(f"no space is called {source!r}: choose {known}, or give file.py:problem")
    return _module(source).problem(**options)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _from_file(path: Path, attribute: str) -> Problem:
    wrong = f"{path}:{attribute} is no problem: define a hasten.search.Problem or return one"
    return load_made(path, attribute, Problem, wrong)


def register_environments() -> list[str]:
    """Registers the spaces known by name as ``hasten/NAME-v0`` with Gymnasium, and says which they are.

    Importing `hasten.gym` does this, so that ``gymnasium.make("hasten.gym:hasten/dram-v0")`` needs nothing before.
    ``gymnasium.make("hasten/dram-v0", problem={"workload": "stream"}, actions="box")`` hands ``problem`` to the space
    and the rest to `environment`. What a space needs and has not got is an error of one line when it is made, and
    nothing is trained unless ``problem`` asks for it.
    """
    import gymnasium

    made = []
    for name in names():
        if name.startswith("hourglass"):
            continue  # a try trains a network: no environment to explore in thousands of steps
        label = f"hasten/{name}-v0"
        if label not in gymnasium.registry:
            # By its name alone, so that the specification can be written down and read by another process.
            gymnasium.register(label, entry_point=f"{__name__}:make_environment", kwargs={"space": name})
        made.append(label)
    return made


def make_environment(space: str, problem: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A space known by name as a Gymnasium environment.

    Args:
        space: its name.
        problem: options of the space.
        options: of `hasten.search.environments.environment`.

    Raises:
        HastenError: no such space, or what it needs is not here.
    """

    if space not in names():
        build(space)  # says what there is
    return environment(build(space, **{**getattr(_module(space), "ENVIRONMENT", {}), **(problem or {})}), **options)

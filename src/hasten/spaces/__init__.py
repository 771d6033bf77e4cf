"""Problems that are known by name: each module of this folder has ``problem(**options) -> Problem``.

Spaces of networks (`hasten.search.networks.architecture_space`) are known by theirs, where no module here is called so.

Its ``ENVIRONMENT``, where it has one, are the options with which it is made as an environment when none are given; None
where it is no environment. Its ``NEEDS`` says what such an environment has to be given, or why making it takes minutes.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.exports import Written, decorated
from hasten.search.environments import environment
from hasten.search.problem import Problem
from hasten.user_file import load_made


def names() -> list[str]:
    """Every known name."""
    return sorted({m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__)} | _networks().keys())


def _networks() -> Mapping[str, Written]:
    """Spaces of networks by name, but for those that a module here is called like."""
    modules = {m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__)}
    found = decorated("hasten.search.networks.members", "architecture_space")
    return {name: written for name, written in found.items() if name not in modules}


def describe(name: str) -> str:
    """A line that says what is sought."""
    if name in (networks := _networks()):
        return f"{networks[name].about}: accuracy after a short training against latency here or on a device"
    return (ast.get_docstring(_source(name)) or "").partition("\n")[0]


def needs(name: str) -> str | None:
    """What an environment of a space has to be given; "" where it is made in seconds with nothing, None without one.

    One that needs something is unlisted; ``gymnasium.make("hasten/test-time-v0", problem={"records": ...})`` makes it.
    """
    if name in _networks():
        return None  # a try trains a network: nothing to explore in thousands of steps
    said: dict[str, Any] = {}
    for statement in _source(name).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            with suppress(ValueError):  # no literal
                said[statement.target.id] = ast.literal_eval(statement.value)
    if said.get("ENVIRONMENT", {}) is None:
        return None
    return str(said.get("NEEDS", ""))


def _source(name: str) -> ast.Module:
    # Read, not imported: a list of names is not worth loading what all of them need.
    return ast.parse(resources.files(__name__).joinpath(f"{name.replace('-', '_')}.py").read_text("utf-8"))


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
    return _problem(source)(**options)


def options_of(source: str) -> set[str]:
    """Names of the options that `build` takes for a name; none for a file."""
    return set(inspect.signature(_problem(source)).parameters) if source in names() else set()


def _problem(name: str) -> Callable[..., Problem]:
    if name not in _networks():
        made: Callable[..., Problem] = _module(name).problem
        return made
    from hasten.search.networks.architecture_space import architecture_spaces
    from hasten.search.networks.network_problem import SIZE, network_problem

    return functools.partial(network_problem, architecture_spaces()[name].for_images(1, SIZE, 10))


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _from_file(path: Path, attribute: str) -> Problem:
    wrong = f"{path}:{attribute} is no problem: define a hasten.search.Problem or return one"
    return load_made(path, attribute, Problem, wrong)


def register_environments() -> list[str]:
    """Registers the spaces known by name as ``hasten/NAME-v0`` with Gymnasium, and lists those made in seconds.

    Those that need something of the user's (`needs`) are registered too, so that it can be given, but not listed.

    Importing `hasten.gym` does this, so that ``gymnasium.make("hasten.gym:hasten/dram-v0")`` needs nothing before.
    ``gymnasium.make("hasten/dram-v0", problem={"workload": "stream"}, actions="box")`` hands ``problem`` to the space
    and the rest to `environment`. What a space needs and has not got is an error of one line when it is made, and
    nothing is trained unless ``problem`` asks for it.
    """
    import gymnasium

    listed = []
    for name in names():
        if (needed := needs(name)) is None:
            continue
        label = f"hasten/{name}-v0"
        if label not in gymnasium.registry:
            # By its name alone, so that the specification can be written down and read by another process.
            gymnasium.register(label, entry_point=f"{__name__}:make_environment", kwargs={"space": name})
        if not needed:
            listed.append(label)
    return listed


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
    given = {} if space in _networks() else getattr(_module(space), "ENVIRONMENT", {})
    return environment(build(space, **{**given, **(problem or {})}), **options)

"""What every command has without saying so: ``-q`` and ``-v``, paths with ``~``, numbers that are finite.

A command has them by being registered.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.cli.messages import be_quiet, be_verbose
from hasten.errors import HastenError

_HOME = re.compile(r"~[\w.-]*(/|$)")
_SHARED = {
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Tell errors alone: no progress, no notes.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Show what libraries log and warn of, too.")],
}


class Commands(typer.Typer):
    """Commands that have what all have; groups of them too."""

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        register = super().command(*args, **kwargs)
        return lambda function: register(_with_shared(function))

    def callback(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        register = super().callback(*args, **kwargs)
        return lambda function: register(_with_shared(function))


def _with_shared(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        be_quiet(values.pop("quiet"))
        be_verbose(values.pop("verbose"))
        return function(**{name: _checked(value, name.replace("_", "-")) for name, value in values.items()})

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in _SHARED.items()
    ]
    whole = signature.replace(parameters=[*signature.parameters.values(), *more])
    command.__signature__ = whole  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in whole.parameters.values()}
    del command.__wrapped__
    return command


def _checked(value: Any, name: str) -> Any:
    """The value: a path at home spelt out, a number that is one.

    Raises:
        HastenError: the number is not finite, or nobody has that home.
    """
    if isinstance(value, list):
        return [_checked(one, name) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise HastenError(f"{name} cannot be {value}: give a finite number")
    if isinstance(value, str | Path) and _HOME.match(os.fspath(value)):
        spelt = os.path.expanduser(value)
        if spelt.startswith("~"):
            raise HastenError(f"{name} cannot be {str(value)[:80]}: there is no such user")
        return type(value)(spelt)
    return value

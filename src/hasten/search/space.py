"""What may be chosen: named parameters, some of them present only when others take certain values."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import parse_json, parse_toml, read_text
from hasten.search.parameter import Parameter, Params, Value, categorical, from_entry, integer, real
from hasten.user_file import load_made

_OTHER = object()  # stands for every value of a parameter that no condition mentions


class Space:
    """An ordered set of parameters.

    A point of the space is a dict that holds a value for each parameter that exists there, and nothing else.

    Args:
        parameters: in an order in which every condition speaks of earlier parameters only.

    Raises:
        HastenError: a name used twice, a condition on a later or unknown parameter, or on a value that it
            never takes.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters: dict[str, Parameter] = {}
        for parameter in parameters:
            if parameter.name in self.parameters:
                raise HastenError(f"parameter {parameter.name!r} is defined twice: rename one")
            for other, values in parameter.when:
                if other not in self.parameters:
                    raise HastenError(
                        f"parameter {parameter.name!r} depends on {other!r}, which does not come before it:"
                        " define it first"
                    )
                if self.parameters[other].size == math.inf:
                    raise HastenError(
                        f"parameter {parameter.name!r} depends on {other!r}, continuous: give that a step"
                    )
                for value in values:
                    self.parameters[other].canonical(value)
            self.parameters[parameter.name] = parameter

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{p.name}: {p}' for p in self)})"

    def active(self, parameter: Parameter, params: Mapping[str, Value]) -> bool:
        """Whether ``parameter`` exists, given the values of those before it."""
        return all(
            name in params and self._among(self.parameters[name], params[name], values)
            for name, values in parameter.when
        )

    @staticmethod
    def _among(parameter: Parameter, value: Any, values: Sequence[Value]) -> bool:
        if value is _OTHER:
            return False
        return value in [parameter.canonical(v) for v in values]

    @cached_property
    def size(self) -> float:
        """How many points: a whole number, or ``math.inf`` when a parameter is continuous.

        Counted without enumerating: a parameter that no other depends on only multiplies.
        """
        order = list(self)
        mentioned: dict[str, list[Value]] = {}
        last_use: dict[str, int] = {}
        for index, parameter in enumerate(order):
            for name, values in parameter.when:
                known = mentioned.setdefault(name, [])
                known += [c for v in values if (c := self.parameters[name].canonical(v)) not in known]
                last_use[name] = index
        memo: dict[tuple[int, tuple[Any, ...]], float] = {}

        def count(index: int, chosen: dict[str, Any]) -> float:
            if index == len(order):
                return 1
            chosen = {n: v for n, v in chosen.items() if last_use[n] >= index}
            key = (index, tuple((n, type(v), v) for n, v in chosen.items()))
            if key in memo:
                return memo[key]
            parameter = order[index]
            total: float
            if not self.active(parameter, chosen):
                total = count(index + 1, chosen)
            elif parameter.name not in mentioned:
                total = parameter.size * count(index + 1, chosen)
            else:
                values = mentioned[parameter.name]
                total = sum(count(index + 1, {**chosen, parameter.name: v}) for v in values)
                if parameter.size > len(values):
                    rest = count(index + 1, {**chosen, parameter.name: _OTHER})
                    total += (parameter.size - len(values)) * rest
            memo[key] = total
            return total

        return count(0, {})

    def enumerate(self) -> Iterator[Params]:
        """Every point once, the last parameter changing fastest.

        Raises:
            HastenError: a parameter is continuous.
        """
        order = list(self)

        def extend(index: int, params: Params) -> Iterator[Params]:
            if index == len(order):
                yield dict(params)
            elif not self.active(order[index], params):
                yield from extend(index + 1, params)
            else:
                for value in order[index].values():
                    yield from extend(index + 1, {**params, order[index].name: value})

        yield from extend(0, {})

    def sample(self, rng: random.Random | int | None = None) -> Params:
        """A random point; ``rng`` is a generator or a seed."""
        generator = rng if isinstance(rng, random.Random) else random.Random(rng)
        params: Params = {}
        for parameter in self:
            if self.active(parameter, params):
                params[parameter.name] = parameter.sample(generator)
        return params

    def validate(self, params: Mapping[str, Any]) -> Params:
        """``params`` in canonical form: in order, each value of its own type and on its grid.

        Raises:
            HastenError: a value is missing, out of range, unknown, or does not exist at this point.
        """
        found: Params = {}
        for parameter in self:
            if self.active(parameter, found):
                if parameter.name not in params:
                    raise HastenError(f"{parameter.name} is missing: choose it from {parameter}")
                found[parameter.name] = parameter.canonical(params[parameter.name])
        extra = [name for name in params if name not in found]
        if extra:
            known = extra[0] in self.parameters
            why = "does not exist with the other values" if known else "is not a parameter of this space"
            raise HastenError(f"{extra[0]} {why}: leave it out")
        return found

    def key(self, params: Mapping[str, Any]) -> str:
        """One string for a point: two points are the same when their keys are."""
        return json.dumps(self.validate(params))

    def suggest(self, trial: Any) -> Params:
        """Lets an Optuna trial choose a point."""
        params: Params = {}
        for p in self:
            if not self.active(p, params):
                continue
            if p.ordered:
                value = p.from_trial(trial.suggest_int(p.name, 0, len(p.choices) - 1))
            elif p.kind == "categorical":
                value = trial.suggest_categorical(p.name, list(p.choices))
            elif p.kind == "int":
                value = trial.suggest_int(p.name, int(p.low), int(p.high), step=int(p.step or 1), log=p.log)
            else:
                value = trial.suggest_float(p.name, float(p.low), float(p.high), step=p.step, log=p.log)
            params[p.name] = p.canonical(value)
        return params

    def to_trial(self, params: Mapping[str, Any]) -> Params:
        """A point, or a part of one, as a trial of Optuna has it: values that stand in an order by their places."""
        return {name: self.parameters[name].to_trial(value) for name, value in params.items()}

    def from_trial(self, params: Mapping[str, Any]) -> Params:
        """The point of the parameters of a trial of Optuna."""
        return {n: self.parameters[n].from_trial(v) if n in self.parameters else v for n, v in params.items()}

    def to_optuna(self) -> dict[str, Any]:
        """Parameter name -> Optuna distribution; conditions, which Optuna's do not have, are left out."""
        return {p.name: p.distribution() for p in self}

    @classmethod
    def from_optuna(cls, distributions: Mapping[str, Any]) -> Space:
        """The space of some Optuna distributions.

        Raises:
            HastenError: a distribution of a kind that Optuna has deprecated.
        """
        found: list[Parameter] = []
        for name, d in distributions.items():
            kind = type(d).__name__
            if kind == "CategoricalDistribution":
                found.append(categorical(name, list(d.choices)))
            elif kind == "IntDistribution":
                found.append(integer(name, d.low, d.high, step=d.step, log=d.log))
            elif kind == "FloatDistribution":
                found.append(real(name, d.low, d.high, step=d.step, log=d.log))
            else:
                raise HastenError(f"{name}: {kind} is not supported: use a newer distribution")
        return cls(found)

    def to_dict(self) -> dict[str, Any]:
        """The space as plain data."""
        return {"parameters": [p.to_dict() for p in self]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Space:
        """A space from plain data: ``{"parameters": [{"name": ..., "kind": ..., ...}, ...]}``.

        Raises:
            HastenError: a key is missing, misspelt or has a value of the wrong kind.
        """
        entries = data.get("parameters") if isinstance(data, Mapping) else None
        if not isinstance(entries, list) or not entries:
            raise HastenError("a space needs a list named 'parameters' with at least one entry")
        return cls([from_entry(entry) for entry in entries])

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """A space from a ``.toml`` or ``.json`` file, or ``file.py`` (its ``space``), or ``file.py:name``.

        What a Python file names may be a `Space`, or a function without arguments that returns one.

        Raises:
            HastenError: the file is missing or does not hold a space.
        """
        file, _, attribute = str(path).partition(".py:")
        if attribute:
            file += ".py"
        source = Path(file)
        if source.suffix == ".py":
            name = attribute or "space"
            return load_made(source, name, Space, f"{source}: {name} is not a hasten.search.Space")
        text = read_text(source, "the space")
        try:
            data = parse_json(text) if source.suffix == ".json" else parse_toml(text)
            return cls.from_dict(data)
        except ValueError as error:
            raise HastenError(f"the space {source} cannot be parsed: {error}") from None
        except HastenError as error:
            raise HastenError(f"{source}: {error}") from None

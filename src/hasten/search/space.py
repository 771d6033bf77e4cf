"""What may be chosen: named parameters, some of them present only when others take certain values."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, users_code
from hasten.files import checked_file, named_path, parse_json, parse_toml, read_text

Value = str | int | float | bool | None
Params = dict[str, Value]

_EXACT = 2**53  # whole numbers up to here are doubles, each a different one
_OTHER = object()  # stands for every value of a parameter that no condition mentions


@dataclass(frozen=True)
class Parameter:
    """One thing to choose. Made by `categorical`, `integer` and `real`.

    Args:
        name: unique in its space.
        kind: ``categorical``, ``int`` or ``float``.
        choices: the values of a categorical parameter.
        low, high: the range of a number, both ends included.
        step: the grid of a number; 1 for an ``int`` unless said otherwise, None (continuous) for a ``float``.
        log: sample the logarithm uniformly.
        when: (name, values) of earlier parameters; this one exists only where each of them exists and takes
            one of those values.

    Raises:
        HastenError: an empty or reversed range, a repeated choice, a grid on a logarithmic range.
    """

    name: str
    kind: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def __post_init__(self) -> None:
        def wrong(why: str) -> HastenError:
            return HastenError(f"parameter {self.name!r}: {why}")

        if not isinstance(self.name, str) or not self.name:
            raise HastenError("a parameter has no name: give each a name of its own")
        if self.kind == "categorical":
            if not self.choices:
                raise wrong("no choices: give at least one")
            for choice in self.choices:
                if choice is not None and not isinstance(choice, str | int | float | bool):
                    raise wrong(f"choice {choice!r} is not a string, number, bool or None: use a string")
                if isinstance(choice, float) and math.isnan(choice):
                    raise wrong("nan is not equal to itself, so no point would be known again: use a string or None")
            if len(set(self.choices)) < len(self.choices):  # True and 1 are equal, to Optuna's storage too
                raise wrong("two choices are equal: list each once")
            return
        if self.kind not in ("int", "float"):
            raise wrong(f"kind {self.kind!r} is not known: use categorical, int or float")
        numbers = [self.low, self.high] + ([] if self.step is None else [self.step])
        whole = int if self.kind == "int" else int | float
        if any(isinstance(n, bool) or not isinstance(n, whole) or not math.isfinite(n) for n in numbers):
            raise wrong(f"low, high and step must be {'whole' if self.kind == 'int' else 'finite'} numbers")
        if self.kind == "int" and max(abs(self.low), abs(self.high), abs(self.step or 1)) > _EXACT:
            raise wrong(
                "whole numbers beyond 2**53 would be kept as others, as studies hold doubles: choose from 0 on and add"
                f" {self.low}, or list them with categorical"
            )
        if self.kind == "int" and self.step is None:
            object.__setattr__(self, "step", 1)
        if self.low > self.high:
            raise wrong(f"low {self.low} is above high {self.high}: swap them")
        if self.step is not None and self.step <= 0:
            raise wrong(f"step {self.step} is not positive")
        if self.log and (self.low <= 0 or self.step not in (None, 1) or (self.kind == "float" and self.step)):
            raise wrong("a logarithmic range starts above 0 and takes no step")
        if self.step is not None:  # the last grid point, so that `high` is a value
            object.__setattr__(self, "high", self._grid(self._steps))

    @property
    def _steps(self) -> int:
        """Grid points after the first; exact in decimal, as (0.3 - 0.0) / 0.1 is not 3 in binary."""
        span = Fraction(Decimal(str(self.high))) - Fraction(Decimal(str(self.low)))
        return int(span / Fraction(Decimal(str(self.step))))

    def _grid(self, index: int) -> int | float:
        if self.kind == "int":
            return int(self.low) + index * int(self.step or 1)
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step)))

    @property
    def size(self) -> float:
        """How many values: a whole number, or ``math.inf`` for a continuous one."""
        if self.kind == "categorical":
            return len(self.choices)
        if self.low == self.high:
            return 1
        return math.inf if self.step is None else self._steps + 1

    def values(self) -> Iterator[Value]:
        """Every value, in order.

        Raises:
            HastenError: it is continuous.
        """
        if self.size == math.inf:
            raise HastenError(f"parameter {self.name!r} is continuous: give it a step to enumerate it")
        if self.kind == "categorical":
            yield from self.choices
        elif self.low == self.high:
            yield self.low
        else:
            yield from (self._grid(i) for i in range(int(self.size)))

    def canonical(self, value: Any) -> Value:
        """``value`` in the one form it is stored in: of the right type, on the grid.

        Raises:
            HastenError: it is not a value of this parameter.
        """
        if self.kind == "categorical":
            for choice in self.choices:
                if type(choice) is type(value) and choice == value:
                    return choice
            raise HastenError(f"{self.name} = {value!r} is not among {list(self.choices)}")
        noun = "a whole number" if self.kind == "int" else "a number"
        outside = HastenError(f"{self.name} = {value!r} is not {noun} in {self}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise outside
        # Whole numbers are compared exactly: a share of a large one is many.
        slack = 0.0 if self.kind == "int" else 1e-8 * max(abs(self.low), abs(self.high), 1e-300)
        if not self.low - slack <= value <= self.high + slack or (self.kind == "int" and value != int(value)):
            raise outside
        if self.step is None:
            return float(min(max(value, self.low), self.high))
        if self.kind == "int":
            if (int(value) - int(self.low)) % int(self.step):
                raise outside
            return int(value)
        index = round((value - self.low) / self.step)
        snapped = self._grid(index)
        if abs(snapped - value) > 1e-6 * self.step:
            raise outside
        return snapped

    def sample(self, rng: random.Random) -> Value:
        """A value drawn uniformly (of its logarithm with ``log``)."""
        if self.kind == "categorical":
            return rng.choice(self.choices)
        if self.log:
            if self.kind == "float":
                drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
                return min(max(drawn, self.low), self.high)
            drawn = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return min(max(round(drawn), int(self.low)), int(self.high))
        if self.step is None:
            return rng.uniform(self.low, self.high)
        return self._grid(rng.randint(0, self._steps))

    def distribution(self) -> Any:
        """The Optuna distribution of its values (conditions aside)."""
        from optuna import distributions

        if self.kind == "categorical":
            return distributions.CategoricalDistribution(list(self.choices))
        if self.kind == "int":
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(float(self.low), float(self.high), self.log, self.step)

    def to_dict(self) -> dict[str, Any]:
        """The parameter as plain data, as `Space.from_dict` reads it."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "categorical":
            data["choices"] = list(self.choices)
        else:
            data |= {"low": self.low, "high": self.high}
            if self.step is not None and (self.kind, self.step) != ("int", 1):
                data["step"] = self.step
            if self.log:
                data["log"] = True
        if self.when:
            data["when"] = {name: list(values) for name, values in self.when}
        return data

    def __str__(self) -> str:
        if self.kind == "categorical":
            return "{" + ", ".join(map(str, self.choices)) + "}"
        grid = f" by {self.step}" if self.step not in (None, 1) else ""
        return f"[{self.low}, {self.high}]{grid}{' (log)' if self.log else ''}"


def _conditions(when: Mapping[str, Any] | None) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    """``{"method": "int4"}`` and ``{"method": ["int4", "int8"]}`` alike."""
    if when is None:
        return ()
    if not isinstance(when, Mapping):
        raise HastenError(f"when = {when!r} is not a table: write when = {{ other = [values] }}")
    return tuple((k, tuple(v) if isinstance(v, list | tuple | set | frozenset) else (v,)) for k, v in when.items())


def categorical(name: str, choices: Sequence[Value], when: Mapping[str, Any] | None = None) -> Parameter:
    """One of ``choices``."""
    return Parameter(name, "categorical", choices=tuple(choices), when=_conditions(when))


def integer(
    name: str, low: int, high: int, *, step: int = 1, log: bool = False, when: Mapping[str, Any] | None = None
) -> Parameter:
    """A whole number from ``low`` to ``high``, both included."""
    return Parameter(name, "int", low=low, high=high, step=step, log=log, when=_conditions(when))


def real(
    name: str,
    low: float,
    high: float,
    *,
    step: float | None = None,
    log: bool = False,
    when: Mapping[str, Any] | None = None,
) -> Parameter:
    """A number from ``low`` to ``high``, both included; on a grid when ``step`` is given."""
    return Parameter(name, "float", low=low, high=high, step=step, log=log, when=_conditions(when))


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
            if p.kind == "categorical":
                value = trial.suggest_categorical(p.name, list(p.choices))
            elif p.kind == "int":
                value = trial.suggest_int(p.name, int(p.low), int(p.high), step=int(p.step or 1), log=p.log)
            else:
                value = trial.suggest_float(p.name, float(p.low), float(p.high), step=p.step, log=p.log)
            params[p.name] = p.canonical(value)
        return params

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
        return cls([_from_entry(entry) for entry in entries])

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
            found = load_attribute(source, attribute or "space")
            with users_code(f"{source}:{attribute or 'space'} failed"):
                found = found() if callable(found) and not isinstance(found, Space) else found
            if not isinstance(found, Space):
                raise HastenError(f"{source}: {attribute or 'space'} is not a hasten.search.Space")
            return found
        text = read_text(source, "the space")
        try:
            data = parse_json(text) if source.suffix == ".json" else parse_toml(text)
            return cls.from_dict(data)
        except ValueError as error:
            raise HastenError(f"the space {source} cannot be parsed: {error}") from None
        except HastenError as error:
            raise HastenError(f"{source}: {error}") from None


_KEYS = {
    "categorical": {"choices"},
    "int": {"low", "high", "step", "log"},
    "float": {"low", "high", "step", "log"},
}


def _from_entry(entry: Any) -> Parameter:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise HastenError(f"{entry!r} is not a parameter: each needs a name and a kind")
    name, kind = entry["name"], entry.get("kind")
    if kind not in _KEYS:
        raise HastenError(f"parameter {name!r}: kind {kind!r} is not known: use categorical, int or float")
    unknown = set(entry) - _KEYS[kind] - {"name", "kind", "when"}
    missing = {"choices", "low", "high"} & _KEYS[kind] - set(entry)
    if unknown or missing:
        what = f"{sorted(unknown)[0]!r} is not known" if unknown else f"{sorted(missing)[0]!r} is missing"
        raise HastenError(f"parameter {name!r}: {what}: a {kind} takes {', '.join(sorted(_KEYS[kind]))}, when")
    when = _conditions(entry.get("when"))
    if kind == "categorical":
        if not isinstance(entry["choices"], list | tuple):
            raise HastenError(f"parameter {name!r}: choices must be a list")
        return Parameter(name, kind, choices=tuple(entry["choices"]), when=when)
    log = entry.get("log", False)
    return Parameter(name, kind, low=entry["low"], high=entry["high"], step=entry.get("step"), log=log, when=when)


def load_attribute(source: Path, attribute: str) -> Any:
    """What the Python file ``source`` calls ``attribute``.

    Raises:
        HastenError: the file is missing, fails when run, or has no such name.
    """
    import cloudpickle

    if not named_path(source).is_file():
        raise HastenError(f"there is no file {source}: check the path")
    source = checked_file(source)
    spec = importlib.util.spec_from_file_location(f"_hasten_user_{source.stem}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Other processes cannot import the file under this name: what it defines goes to them whole.
    sys.modules[spec.name] = module
    cloudpickle.register_pickle_by_value(module)
    with users_code(f"{source} fails when it is run", from_error=False):
        spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise HastenError(f"{source} defines no {attribute!r}: add it, or name another one as {source}:NAME")
    return getattr(module, attribute)

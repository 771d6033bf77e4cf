"""One thing that may be chosen: a category, one of an order, a whole number or a real one; always or on conditions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from optuna import distributions

from hasten.errors import HastenError

Value = str | int | float | bool | None
Params = dict[str, Value]

_EXACT = 2**53  # whole numbers up to here are doubles, each a different one


@dataclass(frozen=True)
class Parameter:
    """One thing to choose. Made by `categorical`, `ordinal`, `integer` and `real`.

    Args:
        name: unique in its space.
        kind: ``categorical``, ``int`` or ``float``.
        choices: the values of a categorical parameter.
        ordered: whether they stand in an order that means something, so that neighbours are alike. Optuna's samplers
            and its storage then know a value by its place, from 0 on.
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
    ordered: bool = False

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
        if self.ordered:
            raise wrong("a number is in order already: leave out ordered")
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
        if self.ordered:
            return distributions.IntDistribution(0, len(self.choices) - 1)
        if self.kind == "categorical":
            return distributions.CategoricalDistribution(list(self.choices))
        if self.kind == "int":
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(float(self.low), float(self.high), self.log, self.step)

    def to_trial(self, value: Value) -> Value:
        """A value as a trial of Optuna has it.

        Raises:
            HastenError: it is not a value of this parameter.
        """
        return self.choices.index(self.canonical(value)) if self.ordered else value

    def from_trial(self, stored: Any) -> Any:
        """The value of what a trial of Optuna has; what it cannot have is left as it is."""
        if self.ordered and type(stored) is int and 0 <= stored < len(self.choices):
            return self.choices[stored]
        return stored

    def to_dict(self) -> dict[str, Any]:
        """The parameter as plain data, as `Space.from_dict` reads it."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "categorical":
            data["choices"] = list(self.choices)
            if self.ordered:
                data["ordered"] = True
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
            return "{" + (" < " if self.ordered else ", ").join(map(str, self.choices)) + "}"
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


def ordinal(name: str, values: Sequence[Value], when: Mapping[str, Any] | None = None) -> Parameter:
    """One of ``values``, which stand in an order: sizes, clocks, degrees. Samplers take neighbours for alike."""
    return Parameter(name, "categorical", choices=tuple(values), when=_conditions(when), ordered=True)


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


_KEYS = {
    "categorical": {"choices", "ordered"},
    "int": {"low", "high", "step", "log"},
    "float": {"low", "high", "step", "log"},
}


def from_entry(entry: Any) -> Parameter:
    """A parameter from plain data, as `Parameter.to_dict` gives it.

    Raises:
        HastenError: a key is missing, misspelt or has a value of the wrong kind.
    """
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
        ordered = entry.get("ordered", False)
        if not isinstance(ordered, bool):
            raise HastenError(f"parameter {name!r}: ordered must be true or false")
        return Parameter(name, kind, choices=tuple(entry["choices"]), when=when, ordered=ordered)
    log = entry.get("log", False)
    return Parameter(name, kind, low=entry["low"], high=entry["high"], step=entry.get("step"), log=log, when=when)

"""Physical quantities as a device file writes them: a number, a unit, and where the figure is from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}

# Dimension -> unit spelling -> factor to SI.
UNITS: dict[str, dict[str, float]] = {
    "bytes": {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()},
    "bytes per second": {f"{p}B/s": f for p, f in (_DECIMAL | _BINARY).items()},
    "operations per second": {f"{p}{o}/s": f for p, f in _DECIMAL.items() for o in ("FLOP", "OP")},
    "weights per second": {f"{p}weight/s": f for p, f in _DECIMAL.items()},
    "seconds": {f"{p}s": f for p, f in _SMALL.items()},
    "joules per byte": {f"{p}J/{d}": f * s for p, f in _SMALL.items() for d, s in (("B", 1), ("bit", 8))},
    "joules per operation": {f"{p}J/{o}": f for p, f in _SMALL.items() for o in ("FLOP", "OP")},
    "watts": {f"{p}W": f for p, f in (_DECIMAL | {"m": 1e-3}).items()},
    "share": {"%": 1e-2},
}
# The unit that a message shows as an example, and that a figure made by a program is written in.
PLAIN = {
    "bytes": "B",
    "bytes per second": "B/s",
    "operations per second": "FLOP/s",
    "weights per second": "weight/s",
    "seconds": "s",
    "joules per byte": "J/B",
    "joules per operation": "J/FLOP",
    "watts": "W",
    "share": "%",
}
_EXAMPLE = {
    "bytes": "50 MiB",
    "bytes per second": "3.35 TB/s",
    "operations per second": "989.4 TFLOP/s",
    "weights per second": "20 Gweight/s",
    "seconds": "5 us",
    "joules per byte": "31 pJ/B",
    "joules per operation": "0.8 pJ/FLOP",
    "watts": "700 W",
    "share": "85 %",
}
_PATTERN = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf)\s*(\S*)\s*", re.IGNORECASE)


class Quantity(float):
    """A figure in its SI unit that remembers how it was written and where it is from.

    It is a float in every computation. Zero and infinity are allowed only where a dimension says so:
    a rate must be positive and finite, an energy or a latency may be 0.

    Args:
        value: the figure in SI.
        text: as written, with its unit.
        source: where the figure is from: a datasheet, a paper, a measurement.
    """

    text: str
    source: str

    @property
    def value(self) -> float:
        """The figure in SI, as a plain float."""
        return float(self)

    def __new__(cls, value: float, text: str, source: str) -> Quantity:
        made = super().__new__(cls, value)
        made.text = text
        made.source = source
        return made

    def __getnewargs__(self) -> tuple[float, str, str]:  # type: ignore[override]
        return (float(self), self.text, self.source)

    @classmethod
    def make(cls, value: float, dimension: str, source: str) -> Quantity:
        """A quantity that a program measured: ``value`` in SI.

        >>> Quantity.make(2e-6, "seconds", "measured").text
        '2e-06 s'
        """
        digits = f"{value / UNITS[dimension][PLAIN[dimension]]:.9g}"
        return cls(float(digits) * UNITS[dimension][PLAIN[dimension]], f"{digits} {PLAIN[dimension]}", source)


def parse(raw: object, dimension: str) -> Quantity:
    """Reads ``{value = "989.4 TFLOP/s", source = "..."}``.

    Raises:
        ValueError: not such a table, a unit of another dimension, no source, or a figure that is
            negative, not a number or, where a division needs it, zero.
    """
    if isinstance(raw, Quantity):
        return raw
    example = _EXAMPLE[dimension]
    expected = f'expected {{ value = "{example}", source = "where from" }}'
    if not isinstance(raw, dict):
        raise ValueError(f"needs a unit and a source, {expected}")
    unknown = set(raw) - {"value", "source"}
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}, {expected}")
    text, source = raw.get("value"), raw.get("source")
    if not isinstance(text, str):
        raise ValueError(f"has no value with a unit, {expected}")
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"has no source, {expected}")
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"cannot read {text!r}, expected a figure with a unit such as {example!r}")
    unit = match.group(2)
    if unit not in UNITS[dimension]:
        raise ValueError(f"{text!r} has the wrong unit, expected {dimension} such as {example!r}")
    value = float(match.group(1)) * UNITS[dimension][unit]
    zero = dimension in ("seconds", "watts") or dimension.startswith("joules")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{text!r} must be a {'non-negative' if zero else 'positive'} finite figure")
    return Quantity(value, text.strip(), source.strip())


def _reader(dimension: str) -> Callable[[object], Quantity]:
    def read(raw: object) -> Quantity:
        return parse(raw, dimension)

    return read


def _table(quantity: Any) -> dict[str, str]:
    return {"value": quantity.text, "source": quantity.source}


Bytes = Annotated[Quantity, BeforeValidator(_reader("bytes")), PlainSerializer(_table)]
Bandwidth = Annotated[Quantity, BeforeValidator(_reader("bytes per second")), PlainSerializer(_table)]
Rate = Annotated[Quantity, BeforeValidator(_reader("operations per second")), PlainSerializer(_table)]
WeightRate = Annotated[Quantity, BeforeValidator(_reader("weights per second")), PlainSerializer(_table)]
Seconds = Annotated[Quantity, BeforeValidator(_reader("seconds")), PlainSerializer(_table)]
EnergyPerByte = Annotated[Quantity, BeforeValidator(_reader("joules per byte")), PlainSerializer(_table)]
EnergyPerOperation = Annotated[Quantity, BeforeValidator(_reader("joules per operation")), PlainSerializer(_table)]
Share = Annotated[Quantity, BeforeValidator(_reader("share")), PlainSerializer(_table)]
Power = Annotated[Quantity, BeforeValidator(_reader("watts")), PlainSerializer(_table)]

"""Numbers as people read them: SI units, three significant digits."""

from __future__ import annotations

import math

_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def digits(value: float) -> str:
    """Three significant digits, without an exponent where that stays short.

    >>> digits(1234.5), digits(0.12345), digits(12.0)
    ('1,234', '0.123', '12.0')
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def _scaled(value: float, unit: str, scales: tuple[tuple[float, str], ...]) -> str:
    for factor, prefix in scales:
        if abs(value) >= factor * 0.9995:
            return f"{digits(value / factor)} {prefix}{unit}"
    factor, prefix = scales[-1]
    return f"{digits(value / factor)} {prefix}{unit}"


def seconds(value: float) -> str:
    """A short or long time.

    >>> seconds(0.00125), seconds(93)
    ('1.25 ms', '93.0 s')
    """
    return "0 s" if value == 0 else _scaled(value, "s", _SMALL)


def si(value: float, unit: str) -> str:
    """A large quantity with its prefix: bytes, FLOP, bytes a second.

    >>> si(538_060_000, "B"), si(25e9, "B/s"), si(12, "B")
    ('538 MB', '25.0 GB/s', '12.0 B')
    """
    return _scaled(value, unit, (*_LARGE, (1.0, "")))


def joules(value: float) -> str:
    """An energy.

    >>> joules(0.0525)
    '52.5 mJ'
    """
    return "0 J" if value == 0 else _scaled(value, "J", _SMALL)


def duration(value: float) -> str:
    """How long a run took.

    >>> duration(754), duration(9.4)
    ('12 min 34 s', '9 s')
    """
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def times(ratio: float) -> str:
    """A ratio.

    >>> times(5.273)
    '5.27×'
    """
    return f"{digits(ratio)}×"


def percent(change: float) -> str:
    """A relative change with its sign.

    >>> percent(0.0213), percent(-0.004), percent(0)
    ('+2.1 %', '-0.4 %', '±0.0 %')
    """
    text = f"{change * 100:+.1f} %"
    return "±0.0 %" if text in ("+0.0 %", "-0.0 %") else text

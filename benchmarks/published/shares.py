"""The families' shares of their devices' peaks, derived from the rows of one half.

Each figure is a sum of what all devices have, what a group of families has and what the family has, in the logit of a
share or the logarithm of a time. What no row speaks of stays near those around it, since every term is drawn to
zero. The estimate is the mode: robust least squares of the logarithm of predicted over measured seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import hasten.hardware
from hasten.hardware import Quantity
from hasten.hardware.achieved import FAMILIES, Achieved, families

if TYPE_CHECKING:
    from devices import Priced

GROUPS = {
    "datacentre-gpu": "nvidia", "workstation-gpu": "nvidia", "geforce": "nvidia", "unified-gpu": "nvidia",
    "jetson": "nvidia", "gaudi": "other accelerators", "instinct": "other accelerators", "radeon": "other graphics",
    "arc": "other graphics", "laptop-gpu": "other graphics", "apple-gpu": "apple", "phone-gpu": "phones",
    "phone-cpu": "phones", "server-cpu": "cpus", "desktop-cpu": "cpus", "laptop-cpu": "cpus", "apple-cpu": "cpus",
    "board-cpu": "cpus",
}  # fmt: skip
# Where every figure starts, before any row: shares as they are commonly told of, loosely held.
START: dict[tuple[str, str], float] = {
    ("bandwidth", "bf16"): 0.8, ("bandwidth", "int8"): 0.75, ("bandwidth", "int4"): 0.65,
    ("bandwidth", "int2"): 0.5,
    ("product", "fp32"): 0.5, ("product", "bf16"): 0.5, ("product", "fp8"): 0.4, ("product", "int8"): 0.4,
    ("product", "int4"): 0.4, ("convolution", "fp32"): 0.4, ("convolution", "bf16"): 0.4,
    ("training", "fp32"): 0.5, ("training", "bf16"): 0.5, ("training", "fp8"): 0.3, ("experts", ""): 0.6,
    ("attention", ""): 0.3,
    ("kernel", ""): 4e-6,
}  # fmt: skip
COMMON, GROUP, FAMILY, OWN = 0.5, 0.7, 0.5, 0.3
"""How far a figure may lie from its start, a group from all, a family from its group with all its formats together, and
one format of a family from the others: standard deviations in logits or logarithms. Of four sets tried, it is the one
that best predicts a fifth of the fitted sources from the rest: 24 % off at the median, 88 % within a factor of 2."""
NOISE = 0.2
"""How far measurements scatter, in the logarithm."""


def _kinds() -> list[str]:
    return list(dict.fromkeys(kind for kind, _ in START))


class Model:
    """From a vector of terms to each family's `Achieved`."""

    def __init__(self) -> None:
        self.names: list[tuple[str, ...]] = [("all", *key) for key in START]
        groups = sorted(set(GROUPS.values()))
        self.names += [("group", group, kind) for group in groups for kind in _kinds()]
        self.names += [("family", family, kind) for family in GROUPS for kind in _kinds()]
        self.names += [("own", family, *key) for family in GROUPS for key in START if key[1]]
        self.index = {name: i for i, name in enumerate(self.names)}
        spread = {"all": COMMON, "group": GROUP, "family": FAMILY, "own": OWN}
        # A kernel's time differs by more than shares do: from microseconds to a tenth of a millisecond.
        self.spread = np.array([spread[n[0]] * (2 if "kernel" in n else 1) for n in self.names])

    def figures(self, terms: np.ndarray, family: str) -> dict[tuple[str, str], float]:
        """Every figure of a family."""
        found = {}
        for (kind, dtype), start in START.items():
            parts = [("all", kind, dtype), ("group", GROUPS[family], kind), ("family", family, kind)]
            parts += [("own", family, kind, dtype)] if dtype else []
            moved = sum(float(terms[self.index[p]]) for p in parts)
            if kind == "kernel":
                found[kind, dtype] = start * math.exp(moved)
            else:
                found[kind, dtype] = 1 / (1 + math.exp(-(math.log(start / (1 - start)) + moved)))
        return found


def achieved(figures: Mapping[tuple[str, str], float], source: str = "derived") -> Achieved:
    """Figures as the library holds them, shares to a tenth of a percent."""
    tables: dict[str, dict[str, Quantity]] = {}
    for (kind, dtype), value in figures.items():
        if dtype:
            share = Quantity(value, f"{100 * value:.3g} %", source)
            tables.setdefault(kind, {})[dtype] = share
    alone = {
        kind: Quantity(figures[kind, ""], f"{100 * figures[kind, '']:.3g} %", source)
        for kind in ("experts", "attention")
    }
    kernel = figures["kernel", ""]
    return Achieved.model_construct(
        **tables,
        **alone,
        kernel=Quantity(kernel, f"{1e6 * kernel:.3g} us", source),
        launch=None,
    )


def fit(items: Sequence[Priced]) -> dict[str, Achieved]:
    """Family -> its shares, from these rows."""
    model = Model()
    by_family: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_family.setdefault(item.device.family, []).append(number)
    logs = np.array([math.log(item.row.seconds) for item in items])

    def residuals(terms: np.ndarray, only: Sequence[str] | None = None) -> np.ndarray:
        found = np.zeros(len(items))
        for family in only or by_family:
            shares = achieved(model.figures(terms, family))
            for number in by_family.get(family, ()):
                found[number] = (math.log(items[number].seconds(shares)) - logs[number]) / NOISE
        return found

    def whole(terms: np.ndarray) -> np.ndarray:
        return np.concatenate((_robust(residuals(terms)), terms / model.spread))

    def jacobian(terms: np.ndarray) -> np.ndarray:
        here = residuals(terms)
        slopes = np.zeros((len(items) + len(terms), len(terms)))
        slopes[len(items) :] = np.diag(1 / model.spread)
        step = 1e-4
        for column, name in enumerate(model.names):
            touched = {
                "all": list(by_family),
                "group": [f for f in by_family if GROUPS[f] == name[1]],
            }.get(name[0], [name[1]])
            touched = [f for f in touched if f in by_family]
            if not touched:
                continue
            moved = terms.copy()
            moved[column] += step
            there = residuals(moved, touched)
            for family in touched:
                for number in by_family[family]:
                    slopes[number, column] = (_robust(there[number]) - _robust(here[number])) / step
        return slopes

    terms = _least_squares(whole, jacobian, np.zeros(len(model.names)))
    spoken = Counter(item.device.family for item in items)
    found = {}
    for family in GROUPS:
        rows = spoken[family]
        from_own = f"{rows} rows of it among {len(items)}" if rows else f"no row of it among {len(items)}"
        source = f"derived by benchmarks/devices.py --fit from published speeds: {from_own}"
        found[family] = achieved(model.figures(terms, family), source)
    return found


def _least_squares(
    residuals: Callable[[np.ndarray], np.ndarray], jacobian: Callable[[np.ndarray], np.ndarray], terms: np.ndarray
) -> np.ndarray:
    """Levenberg and Marquardt's steps, until none makes the sum of squares smaller by a ten-thousandth."""
    damping, here = 1.0, residuals(terms)
    for _ in range(40):
        slopes = jacobian(terms)
        normal, right = slopes.T @ slopes, -slopes.T @ here
        before = float(here @ here)
        while damping < 1e6:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), right)
            there = residuals(terms + step)
            if float(there @ there) < before:
                terms, here, damping = terms + step, there, damping / 4
                break
            damping *= 4
        if float(here @ here) > before * (1 - 1e-4):
            break
    return terms


def _robust(residual: np.ndarray | float) -> np.ndarray:
    """A residual whose square grows like its size beyond 1: what is far off pulls no harder than it must."""
    r = np.asarray(residual)
    return np.sign(r) * np.sqrt(2 * (np.sqrt(1 + r**2) - 1))


def write(found: Mapping[str, Achieved]) -> None:
    """Writes the families' file anew."""
    from pathlib import Path

    from hasten.hardware.device import to_toml

    path = Path(hasten.hardware.__file__).parent / FAMILIES
    data = {name: {"title": families()[name].title, "achieved": _table(shares)} for name, shares in found.items()}
    path.write_text(to_toml(data), encoding="utf-8")
    print(f"wrote {path}")


def _table(shares: Achieved) -> dict[str, object]:
    def plain(quantity: Quantity) -> dict[str, str]:
        return {"value": quantity.text, "source": quantity.source}

    tables = {
        kind: {dtype: plain(share) for dtype, share in getattr(shares, kind).items()}
        for kind in ("bandwidth", "product", "convolution", "training")
    }
    alone = {kind: plain(getattr(shares, kind)) for kind in ("experts", "attention", "kernel")}
    return {**alone, **tables}

"""Reuse of multipliers in an FPGA's layers: cycles against lookup tables, as a surrogate of real syntheses says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from hasten.cost.chips.synthesised import TARGETS, exact_estimator, known_values, synthesised_designs
from hasten.cost.estimator import Predicts
from hasten.errors import HastenError
from hasten.hardware.hls.engines import EngineDesign, dense_design
from hasten.hardware.hls.reuse import valid_reuse
from hasten.search.estimated import estimated_problem
from hasten.search.parameter import Params, ordinal
from hasten.search.problem import Problem
from hasten.search.space import Space
from hasten.train.resource_surrogates import SURROGATES, resource_surrogate

ENVIRONMENT: Mapping[str, Any] = {"estimator": "ridge"}


@lru_cache(maxsize=8)
def _learned(kind: str) -> Predicts[EngineDesign]:
    return resource_surrogate(kind).fit({"yosys": known_values(synthesised_designs())})


class _Learned:
    """A surrogate of the circuits that come with hasten, learned when it is first asked."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.targets = {t: unit for t, unit in TARGETS.items() if t not in exact_estimator().targets}

    def predict(self, designs: Any, target: str = "") -> Any:
        return _learned(self._kind).predict(designs, target)


def problem(
    widths: str = "16-12-5", *, bits: int = 6, estimator: str = "graph", dsp: float = 40, lut: float = 4000,
    sure: float = 0.0,
) -> Problem:  # fmt: skip
    """The fewest cycles and lookup tables of dense layers within limits, over how often each layer's multipliers serve.

    Cycles and slices follow exact rules; lookup tables are learned from the circuits that come with hasten.

    Args:
        widths: of the input and of each layer.
        bits: of a number.
        estimator: of lookup tables: one of `hasten.train.resource_surrogates.SURROGATES`.
        dsp, lut: the most slices and lookup tables.
        sure: deviations of the estimate that lookup tables are taken above it.

    Raises:
        HastenError: widths that are none, an unknown estimator, or bits that no engine has.
    """
    try:
        sizes = [int(w) for w in str(widths).split("-")]
    except ValueError:
        raise HastenError(f"widths are whole numbers with dashes between, such as 16-12-5, not {widths!r}") from None
    if estimator not in SURROGATES:
        raise HastenError(f"no surrogate is called {estimator!r}: choose {', '.join(SURROGATES)}")
    plain = dense_design(sizes, bits, 1)  # what cannot be is said here
    choices = {f"reuse{i}": valid_reuse(layer.taps, layer.outputs) for i, layer in enumerate(plain.layers)}

    def design_of(params: Params) -> EngineDesign:
        layers = [replace(layer, reuse=cast(int, params[f"reuse{i}"])) for i, layer in enumerate(plain.layers)]
        return EngineDesign(tuple(layers), bits)

    return estimated_problem(
        f"engines-{widths}-{bits}-bits",
        Space([ordinal(name, reuses) for name, reuses in choices.items()]),
        design_of,
        [exact_estimator(), _Learned(estimator)],
        objectives=("cycles", "lut"),
        limits={"dsp": dsp, "lut": lut},
        within=False,
        deviations=sure,
        identity={"estimator": estimator, "circuits": str(len(synthesised_designs()))},
    )

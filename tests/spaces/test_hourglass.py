"""Shapes of a residual MLP of a size."""

from __future__ import annotations

import pytest

from hasten.search.problem import Infeasible
from hasten.spaces.hourglass import shape


@pytest.mark.parametrize("parameters", [100_000, 300_000])
@pytest.mark.parametrize(
    "params",
    [
        *({"shape": "hourglass", "layers": n, "ratio": r} for n in (2, 3, 5, 8) for r in (2, 3, 4)),
        *({"shape": "conventional", "layers": n} for n in (1, 2)),
        *({"shape": "narrow", "layers": n} for n in (8, 12)),
    ],
)
def test_as_many_parameters_as_asked_or_just_fewer(params: dict[str, object], parameters: int) -> None:
    try:
        network = shape(params, parameters)
    except Infeasible:
        assert params["shape"] in ("narrow", "hourglass")
        return
    # Of three shapes the one with the coarsest steps is the narrow one: a unit more in each of its blocks.
    assert 0.965 * parameters < network.sizes().trainable <= parameters
    if params["shape"] == "hourglass":
        assert 0.995 * parameters < network.sizes().trainable
        assert network.latent >= 144 * int(str(params["ratio"]))

"""Shapes of a residual MLP of a size."""

from __future__ import annotations

import pytest
import torch

from hasten.search.problem import Infeasible
from hasten.spaces.hourglass import TASKS, psnr, restore, shape


@pytest.mark.parametrize("parameters", [100_000, 300_000])
@pytest.mark.parametrize(
    "params",
    [
        *({"shape": "hourglass", "layers": n, "ratio": r} for n in (2, 3, 5, 8) for r in (2, 3, 4)),
        *({"shape": "conventional", "layers": n} for n in (1, 2)),
        *({"shape": "narrow", "layers": n} for n in (3, 5, 8, 12)),
    ],
)
def test_as_many_parameters_as_asked_or_just_fewer(params: dict[str, object], parameters: int) -> None:
    try:
        network = shape(params, parameters)
    except Infeasible:
        assert params["shape"] in ("narrow", "hourglass")
        return
    # A unit more in some of its blocks, so that no shape is short of another.
    assert 0.995 * parameters < network.sizes().trainable <= parameters
    assert max(network.inner) - min(network.inner) <= 1
    if params["shape"] == "hourglass":
        assert network.latent >= 144 * int(str(params["ratio"]))


def test_digits_are_a_task_of_their_own_width() -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    params = {"shape": "conventional", "layers": 2, "rate": 2e-3}
    network = shape(params, 30_000, TASKS["digits"].width)
    assert (network.inputs, network.inner) == (64, (117, 117))
    before = psnr(network, 0, "digits")
    assert before == pytest.approx(12.04, abs=0.3)  # noise of 0.25, which it gives back at first
    assert restore(network, 60, params["rate"], 0, "digits") > before + 2

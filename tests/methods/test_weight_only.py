"""Weights that no scale reaches: refused in one line that names the layer, the model left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.methods import WeightOnly
from hasten.nn import PackedLinear


def network(value: float) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.ReLU(), nn.Linear(64, 8, bias=False)))
    made[1][1].weight.data[3, 5] = value
    return made


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("bits", "value"), [(8, 1e8), (4, 1e8), (8, math.nan), (4, -math.inf), (16, math.inf), (16, 3.4e38)]
)
def test_what_does_not_fit_is_refused_and_changes_nothing(bits: int, value: float, int8: bool) -> None:
    if bits == 16 and int8:
        pytest.skip("whole numbers go with codes")
    model = network(value)
    with pytest.raises(HastenError, match=r"^1\.1: a weight is"):
        WeightOnly(bits, int8=int8).apply(model)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())
    torch.testing.assert_close(model[1][1].weight[3, 5].detach(), torch.tensor(value), equal_nan=True)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("value", [6e4, 1e-9, 0.0])
def test_what_fits_gives_what_the_layer_gave(bits: int, value: float) -> None:
    model, x = network(value), torch.rand(5, 64)
    expected = model(x).detach()
    found = WeightOnly(bits).apply(model)(x)
    assert found.isfinite().all()
    spoiled = torch.arange(8) != 3 if value > 1 else torch.ones(8, dtype=torch.bool)
    torch.testing.assert_close(found[:, spoiled], expected[:, spoiled], rtol=0.3, atol=0.2 if bits == 4 else 0.05)

"""Pruning and rounding solvers: exact sparsity, their limits, and that knowing the inputs pays."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.methods.solvers import Rounding, keep_two_of_four, magnitude, round_to_nearest, sweep, wanda

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(24, 128, generator=GENERATOR)
X = torch.randn(600, 128, generator=GENERATOR) @ (torch.eye(128) + 0.3 * torch.randn(128, 128, generator=GENERATOR))
H = X.t() @ X


def error(found: torch.Tensor) -> float:
    return float(((X @ (found - WEIGHT).t()) ** 2).mean())


@pytest.mark.parametrize("rounding", [None, Rounding(2, 64), Rounding(4, 32)])
def test_two_of_every_four_stay(rounding: Rounding | None) -> None:
    for found in (sweep(WEIGHT, H, rounding=rounding), magnitude(WEIGHT), wanda(WEIGHT, H)):
        assert int((found.reshape(24, -1, 4) != 0).sum(-1).max()) <= 2
    assert (keep_two_of_four(WEIGHT.abs()).reshape(24, -1, 4).sum(-1) == 2).all()


def test_without_inputs_it_is_magnitude() -> None:
    torch.testing.assert_close(sweep(WEIGHT, torch.eye(128)), magnitude(WEIGHT))


def test_nothing_to_do_changes_nothing() -> None:
    torch.testing.assert_close(sweep(WEIGHT, H, sparse=False), WEIGHT)


def test_knowing_the_inputs_pays() -> None:
    assert error(sweep(WEIGHT, H)) < error(wanda(WEIGHT, H))
    assert error(sweep(WEIGHT, H)) < error(magnitude(WEIGHT))
    coarse = Rounding(2, 64)
    assert error(sweep(WEIGHT, H, sparse=False, rounding=coarse)) < error(round_to_nearest(WEIGHT, coarse))
    joint = sweep(WEIGHT, H, rounding=coarse)
    after = round_to_nearest(sweep(WEIGHT, H), coarse) * (joint != 0)
    assert error(joint) < error(after)


def test_rounded_values_are_codes() -> None:
    rounding = Rounding(2, 64)
    for part in round_to_nearest(WEIGHT, rounding).split(64, 1):
        assert max(len(row.unique()) for row in part) <= 4


def test_inputs_that_never_come_cost_nothing() -> None:
    silent = H.clone()
    silent[:, 5] = silent[5] = 0
    assert torch.isfinite(sweep(WEIGHT, silent)).all()


def test_widths_that_do_not_divide() -> None:
    with pytest.raises(HastenError, match="do not divide"):
        sweep(WEIGHT[:, :100], H[:100, :100], rounding=Rounding(2, 64))
    with pytest.raises(HastenError, match="1 to 8 bits"):
        Rounding(9)

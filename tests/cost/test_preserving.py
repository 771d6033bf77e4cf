"""What is folded computes the same, and what does not is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.preserving import check_same, difference, fold_normalization
from hasten.errors import HastenError


def _moved(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts that are not those of the start."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network


def test_norms_behind_convolutions_are_folded() -> None:
    torch.manual_seed(0)
    network = _moved(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4)),
            nn.BatchNorm2d(4),
        )
    ).train()
    folded = fold_normalization(network)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == 1  # behind no convolution
    assert network.training
    assert not folded.training
    x = torch.randn(2, 3, 9, 9)
    check_same(network, folded, (x,))
    assert network.training


def test_a_difference_is_seen() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, 4)
    assert difference(one, other, (x,)) == 0
    with torch.no_grad():
        other.weight[0, 0] += 0.1
    with pytest.raises(HastenError, match="does not keep what it computes"):
        check_same(one, other, (x,))
    with pytest.raises(HastenError, match="different shapes"):
        difference(one, nn.Linear(4, 5), (x,))
    with torch.no_grad():
        other.weight.fill_(torch.nan)
    with pytest.raises(HastenError, match="nan of the largest"):
        check_same(one, other, (x,))

"""What is folded computes the same, and what does not is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hasten.cost.preserving import check_same, difference, fold_normalization, norms_to_fold
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
    with pytest.raises(HastenError, match="inf of the largest"):
        check_same(one, other, (x,))


class Answers(nn.Module):
    def __init__(self, last: Any) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: torch.Tensor) -> Any:
        return {"first": x, "none": None, "name": "n", "last": self.last}


def test_answers_of_all_kinds_are_compared_and_no_numbers_are_never_equal() -> None:
    x = (torch.ones(2),)
    same = Answers(torch.ones(2))
    assert difference(same, Answers(torch.ones(2)), x) == 0
    assert difference(same, Answers(torch.tensor([1.0, torch.nan])), x) == torch.inf
    assert difference(Answers(torch.ones(2) * 1j), Answers(torch.ones(2) * 3j), x) == 2
    with pytest.raises(HastenError, match="lie inf of the largest apart"):
        check_same(same, Answers(torch.tensor([1.0, torch.nan])), x)


def test_a_normalization_behind_a_hooked_layer_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.normal_(network[1].running_mean)  # type: ignore[arg-type]
    network[0].register_forward_hook(lambda module, given, answer: 2 * answer)
    x = (torch.randn(2, 3, 4, 4),)
    check_same(network, fold_normalization(network), x)
    assert not norms_to_fold(network, x, {})
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    check_same(bare, fold_normalization(bare), x)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: an activation within."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Taps(nn.Sequential):
    """Gives what its convolution made too."""

    def forward(self, input: torch.Tensor) -> Any:
        y = self[0](input)
        return y, self[1](y)


def test_what_is_folded_computes_the_same_whatever_stands_there() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    x = (torch.randn(2, 3, 4, 4),)
    for network in (
        nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3)), nn.Sequential(nn.Conv2d(3, 3, 1), OwnNorm(3)),
        Taps(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.Sequential(conv, norm, conv, nn.BatchNorm2d(3)),
        nn.Sequential(weighted, nn.BatchNorm2d(3)),
    ):  # fmt: skip
        check_same(_moved(network).eval(), fold_normalization(network), x)
    folded = fold_normalization(nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3)))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())


def test_a_network_asked_in_evaluation_mode_has_each_part_in_its_own_again() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).train()
    network[2].eval()  # kept from training
    assert difference(network, network, (torch.randn(3, 2),)) == 0
    assert [part.training for part in network.modules()] == [True, True, True, False]

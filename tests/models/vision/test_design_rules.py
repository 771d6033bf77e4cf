"""The published SimpleNets keep every rule, and each violation is found by the rule it is of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models import ResidualConvNet, SimpleNet, SimpleNetConfig, parallelize
from hasten.models.vision.design_rules import DesignFinding, design_rules, image_of
from hasten.models.vision.simplenet import PUBLISHED
from hasten.nn import ResidualBranch, ResidualStack

LAYOUT = PUBLISHED["simplenet-cifar-310k"].layout


def broken(network: nn.Module, size: int = 32) -> set[str]:
    return {f.rule for f in design_rules(network, (3, size, size)) if not f.holds}


def of(layout: str, **options: float) -> SimpleNet:
    with torch.device("meta"):
        return SimpleNet(SimpleNetConfig(layout, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_keep_every_rule(name: str) -> None:
    with torch.device("meta"):
        model = SimpleNet.named(name, dropout=0.1)
    found = design_rules(model, (3, 32, 32) if "cifar" in name else (3, 224, 224))
    assert len(found) == 9
    assert not [f for f in found if not f.holds]
    assert all(0 <= f.score <= 1 and f.message for f in found)


def test_each_violation_is_found() -> None:
    assert "local correlation" in broken(of("256' 64' 64 32 32 32 p 32 32 64 p 64 64 p 128 p 64"))
    assert broken(of("64 p 32 p 32 p 32 32 32 64 64 64 128 256' 64' 64")) == {"late pooling"}
    mean = of(LAYOUT)
    mean.head[0] = nn.AdaptiveAvgPool2d(1)  # type: ignore[operator]
    assert broken(mean) == {"global maximum"}
    last = of(LAYOUT)
    last.head = nn.Sequential(last.head, nn.Dropout(0.5))
    assert broken(last) == {"dropout everywhere"}
    assert "gradual growth" in broken(of("16 64 64 64 p 64 64 64 p 64 64 p 128 256' 64' 64"))
    assert "homogeneous groups" in broken(of("24 32 40 48 p 56 64 72 p 80 88 p 96 128' 96' 104"))
    assert "balance" in broken(of("8 8 8 8 p 8 8 8 p 8 8 p 16 32' 256' 256"))
    assert "receptive field" in broken(of("32 32 32 32"))


def test_depthwise_convolutions_are_no_fast_ones() -> None:
    layers = [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 1)]
    found = {f.rule: f for f in design_rules(nn.Sequential(*layers), (3, 8, 8))}
    assert isinstance(found["fast operators"], DesignFinding)
    assert not found["fast operators"].holds


def test_it_leaves_the_network_as_it_was() -> None:
    model = SimpleNet(SimpleNetConfig("4 4 p 4")).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    design_rules(model, (3, 8, 8))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(HastenError, match="calls no convolution"):
        design_rules(nn.Linear(4, 4), (3, 4, 4))


def test_images_are_known_by_example_inputs() -> None:
    assert image_of((torch.zeros(2, 3, 8, 9),)) == (3, 8, 9)
    for wrong in ((), (torch.zeros(2, 3),), (torch.zeros(2, 3, 8, 9), 1), (torch.zeros(2, 3, 8, 9, dtype=torch.long),)):
        with pytest.raises(HastenError, match="one tensor of images"):
            image_of(wrong)


class Joined(nn.Module):
    """A module that is called with a list, as detectors' concatenations are."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(maps, 1)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.joined = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), Joined()
        self.pool, self.last = nn.MaxPool2d(2, return_indices=True), nn.LSTM(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.frozen(self.first(input=x))
        y, _ = self.pool(self.joined([y, y]))
        return self.last(y.flatten(2).permute(2, 0, 1))[0]


def test_layers_that_rules_are_not_about_may_be_called_with_anything() -> None:
    network = Odd()
    network.train()
    network.frozen.eval()
    assert len(design_rules(network, (3, 8, 8))) == 9
    assert [network.training, network.frozen.training] == [True, False]
    with pytest.raises(HastenError, match="calls no convolution"):
        design_rules(nn.ReLU(), (3, 8, 8))


def field(network: nn.Module, side: int = 16, channels: int = 4) -> int:
    """What the rule says that an output sees."""
    (found,) = (f for f in design_rules(network, (channels, side, side)) if f.rule == "receptive field")
    assert found.holds == (int(found.message.split()[3]) >= side)
    return int(found.message.split()[3])


def conv(kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


@pytest.mark.parametrize("groups", [None, 3, 2, 1])
def test_branches_side_by_side_see_as_much_as_the_widest(groups: int | None) -> None:
    network = ResidualConvNet(10, 4, 16, 4, 6, groups=groups)
    assert field(network) == network.field == 3 + 2 * (groups or 6)


def test_the_widest_branch_counts_and_of_order_two_the_two_widest() -> None:
    branches = [conv(3), nn.Sequential(conv(3), nn.ReLU(), conv(3)), conv(7)]
    assert field(ResidualStack(branches)) == 1 + 2 + 4 + 6
    assert field(ResidualStack(branches, 1)) == 1 + 6
    assert field(ResidualStack(branches, 2)) == 1 + 4 + 6
    assert field(ResidualStack(branches, 1, order=2)) == 1 + 4 + 6
    within = ResidualStack([ResidualStack([conv(5), conv(3)], 1), conv(3), conv(3)], 2)
    assert field(nn.Sequential(conv(3), within, within)) == 1 + 2 + 2 * (4 + 2)
    assert (
        field(nn.Sequential(nn.Conv2d(4, 4, 2, 2), ResidualStack([conv(3), conv(5)], 1), conv(3))) == 2 + 2 * 4 + 2 * 2
    )


def test_a_parallelized_network_s_field_is_that_of_its_groups() -> None:
    blocks = [ResidualBranch(nn.Sequential(conv(3), nn.ReLU())) for _ in range(2)]
    assert field(ResidualStack(blocks, 1)) == 3

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(conv(3), nn.ReLU(), conv(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.branch(x)

    network = nn.Sequential(conv(3), *(Added() for _ in range(4)), nn.Flatten(), nn.Linear(1024, 5)).eval()
    assert field(network) == 3 + 4 * 4
    for together, fused in ((2, False), (4, False), (4, True)):
        made = parallelize(network, (torch.randn(1, 4, 16, 16),), together=together, fused=fused)
        assert field(made) == 3 + 4 * 4 // together


def test_dilated_convolutions_see_further() -> None:
    assert field(nn.Sequential(conv(3), nn.Conv2d(4, 4, 3, dilation=3, padding=3))) == 1 + 2 + 6

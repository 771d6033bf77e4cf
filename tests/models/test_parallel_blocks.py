"""Residual blocks of any network are found, and stand side by side in a copy."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.models import ResidualRun, ResNet9, parallelize, residual_runs
from hasten.models.loading.tiny import tiny_model
from hasten.models.vision.receptive_field import averaged_share
from hasten.nn import FusedMBConv


class Basic(nn.Module):
    """A block of a classic ResNet: the activation stands behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def encoder(layers: int = 3) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True, activation="gelu")
    made = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


def test_runs_are_blocks_that_would_be_nothing_without_weights() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
    network = nn.Sequential(stem, Basic(6), Basic(6), plain, plain, FusedMBConv(6, 6, 12), nn.Identity(), Basic(6))
    images = (torch.randn(2, 3, 8, 8),)
    assert residual_runs(network, images) == [ResidualRun("", 1, 2)]
    assert network.training
    with pytest.raises(HastenError, match="no residual blocks"):
        parallelize(nn.Sequential(stem, plain), images)
    with pytest.raises(HastenError, match="no run of this network"):
        parallelize(network, images, runs=[ResidualRun("", 2, 2)])


def test_blocks_of_a_resnet_stand_side_by_side() -> None:
    blocks = [Basic(4) for _ in range(5)]
    network = nn.Sequential(nn.ReLU(), *blocks, nn.Flatten()).eval()
    x = torch.rand(2, 4, 6, 6)
    made = parallelize(network, (x,), together=2)
    with torch.no_grad():
        one = blocks[0](x) + blocks[1](x) - x
        two = blocks[2](one) + blocks[3](one) - one
        torch.testing.assert_close(made(x), blocks[4](two).flatten(1))
    assert len(made) == len(network)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in network.parameters())
    exact = parallelize(network, (x,), together=2, runs=[ResidualRun("", 1, 2)], order=2)
    assert 0 < difference(network, exact, (x,)) < difference(network, parallelize(network, (x,), together=None), (x,))


def test_sums_outside_of_blocks_are_no_residual_blocks() -> None:
    network = ResNet9(5, 3, 4, (8,), (3,)).eval()
    images = (torch.rand(2, 3, 8, 8),)
    with pytest.raises(HastenError, match="no residual blocks"):  # the sum is the network's, not the block's
        parallelize(network, images)


def test_layers_of_a_transformer_are_taken_apart_and_fused() -> None:
    network, x = encoder(), (torch.randn(2, 5, 8),)
    assert residual_runs(network, x) == [ResidualRun("layers", 0, 3)]
    inside = parallelize(network, x, together=1, split=True)
    layer: Any = network.layers[0]
    with torch.no_grad():
        normed = layer.norm1(x[0])
        attended = layer.self_attn(normed, normed, normed)[0]
        wanted = x[0] + attended + layer.linear2(layer.activation(layer.linear1(layer.norm2(x[0]))))
        torch.testing.assert_close(inside.layers[0](x[0]), wanted, rtol=1e-4, atol=1e-5)
    apart = parallelize(network, x, together=3, split=True)
    fused = parallelize(network, x, together=3, split=True, fused=True)
    check_same(apart, fused, x, 1e-5)
    assert any(isinstance(m, nn.Linear) and m.out_features == 48 for m in fused.modules())
    assert difference(network, apart, x) > 1e-2


class Mlp(nn.Module):
    """timm's feed-forward layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Gated(Mlp):
    """A feed-forward layer that is none of three layers one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)).square())
        return y


class Attention(nn.Module):
    """Of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = torch.softmax(q @ k.mT / 8, -1) @ v
        return y


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmLike(nn.Module):
    """A block with the names that timm's vision transformers give their parts."""

    def __init__(self, width: int, mlp: type[Mlp]) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(width), Attention(width), Scale(width)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(width), mlp(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


@pytest.mark.parametrize("mlp", [Mlp, Gated])
def test_layers_with_timm_s_names_are_taken_apart(mlp: type[Mlp]) -> None:
    blocks = [TimmLike(8, mlp).eval() for _ in range(2)]
    x = torch.randn(2, 5, 8)
    inside = parallelize(nn.Sequential(*blocks), (x,), together=1, split=True)
    both = parallelize(nn.Sequential(*blocks), (x,), together=2, split=True)
    stack: Any = both[0].stack
    # A feed-forward layer of three layers is given as such: it may be made one with another's.
    assert [len(branch) for branch in list(stack.branches)[1::2]] == [5 if mlp is Mlp else 3] * 2

    def added(block: TimmLike, z: Tensor) -> Tensor:
        attended: Tensor = block.attn(block.norm1(z)) * block.ls1.gamma
        return attended + block.mlp(block.norm2(z)) * block.ls2.gamma

    with torch.no_grad():
        first = x + added(blocks[0], x)
        torch.testing.assert_close(inside(x), first + added(blocks[1], first), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both(x), x + added(blocks[0], x) + added(blocks[1], x), rtol=1e-5, atol=1e-5)


class Mean(nn.Module):
    """A head that averages without a layer for it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


class ChannelGate(nn.Module):
    """Every position sees the whole image, by means over all."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(nn.functional.adaptive_avg_pool2d(x, 1))


def for_images(*head: nn.Module, gate: nn.Module | None = None) -> nn.Sequential:
    """A stem and four blocks of two 3 x 3 convolutions: positions see 19 pixels a side, side by side 7."""
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(stem, *(Basic(4) for _ in range(4)), *([gate] if gate else []), *head).eval()


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(16), Mean()])
def test_averaging_what_no_longer_sees_the_image_is_warned_of(pool: nn.Module) -> None:
    images = (torch.rand(2, 3, 16, 16),)
    network = for_images(pool, nn.Flatten(), nn.Linear(4, 5))
    with pytest.warns(UserWarning, match="positions that see 19% of the image each, and saw 100%"):  # 49 of 256 pixels
        parallelize(network, images, together=None)
    with pytest.warns(UserWarning, match="see 47%"):  # 121 of 256
        parallelize(network, images, together=2)
    assert network(*images).isfinite().all()


@pytest.mark.parametrize(
    ("head", "gate", "side"),
    [
        ((nn.Flatten(), nn.Linear(4 * 256, 5)), None, 16),
        ((nn.Flatten(), nn.Linear(4 * 256, 5)), ChannelGate(), 16),
        ((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), ChannelGate(), 16),
        ((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), None, 7),
    ],
    ids=["reads every position", "and has a gate", "sees by a gate", "small images"],
)
def test_nothing_is_warned_of_where_the_image_is_seen(head: Any, gate: nn.Module | None, side: int) -> None:
    network = for_images(*head, gate=gate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallelize(network, (torch.rand(2, 3, side, side),), together=None)


def test_a_state_that_a_call_changes_is_not_spoiled() -> None:
    class Counting(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.mean()
            return super().forward(x)

    network = for_images(Counting())
    assert averaged_share(network, (torch.rand(2, 3, 16, 16),)) == 1
    assert network[-1].seen == 0
    assert averaged_share(network, (torch.rand(2, 16),)) is None


def test_decoders_of_transformers_stand_side_by_side() -> None:
    network = tiny_model(layers=4).network.eval()
    ids, kwargs = torch.randint(0, 40, (2, 8)), {"use_cache": False}
    inside = parallelize(network, (ids,), kwargs, together=1, split=True)
    gaps = []
    for scale in (0.1, 0.05):
        small = tiny_model(layers=4).network.eval()
        small.load_state_dict(network.state_dict())
        for layer in small.model.layers:
            layer.self_attn.o_proj.weight.data *= scale
            layer.mlp.down_proj.weight.data *= scale
        changed = parallelize(small, (ids,), kwargs, together=2)
        with torch.no_grad():
            gaps.append(float((changed(ids, **kwargs).logits - small(ids, **kwargs).logits).norm()))
    assert 3 < gaps[0] / gaps[1] < 5  # what is left out falls with the square
    with torch.no_grad():
        assert inside(ids, **kwargs).logits.isfinite().all()

"""Terminators at their published sizes, and what their losses reach."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import Terminator, TerminatorConfig, named
from hasten.models.vision.backbone import multiply_accumulates, published_figures

SMALL = TerminatorConfig(8, 1, 10, (12, 1, 2), (1, 1, 1), (0.0, 0.0, 0.0), ((), (), (0,)), (8, 4, 4, 4, 8))


def made() -> Terminator:
    torch.manual_seed(0)
    return Terminator(SMALL)


@pytest.mark.parametrize(("classes", "parameters"), [(10, 1_336_855), (100, 1_362_865)])
def test_published_sizes(classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Terminator.named(f"terminator-cifar{classes}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    if classes == 10:
        slow = [_slow(block) for block in model.blocks]
        whole = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
        assert slow == [50_796, 49_387, 57_235, 69_007, 92_551]
        assert [w - s for w, s in zip(whole, slow, strict=True)] == [2_581, 8_437, 47_953, 184_573, 771_445]


def _slow(block: torch.nn.Module) -> int:
    kernels = ("kernel.", "channel_gate.", "pixel_channels.", "pixel_positions.")
    return sum(
        p.numel()
        for name, p in block.named_parameters()
        if name.startswith(kernels) or (name.startswith("local.") and ".kernel." in name)
    )


def test_a_name_takes_classes_and_channels() -> None:
    model = named.build("terminator-cifar10", num_classes=7, in_chans=6)
    assert (model.head.out_features, model.config.channels) == (7, 6)
    with pytest.raises(HastenError, match="from 1, not 3 and 0"):
        named.build("terminator-cifar10", num_classes=0)
    with pytest.raises(HastenError, match="4 channels are no multiple"):
        named.build("terminator-cifar10", in_chans=1)


def test_a_later_block_reads_an_earlier_one() -> None:
    model, x = made().eval(), torch.randn(3, 1, 8, 8)
    first, second, third = model.features(x)
    assert [t.shape[1] for t in (first, second, third)] == model.config.widths[1:]
    torch.testing.assert_close(third, model.blocks[2](second, first))
    torch.testing.assert_close(model(x), model.head(third.mean((2, 3))))


def test_the_loss_reaches_every_weight_and_each_part_of_it_its_own() -> None:
    model, x, y = made(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    loss = model.loss(x, y)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    smoothed = torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.09)
    torch.testing.assert_close(loss, smoothed + model.slow_loss() + 5e-5 * model.norms())
    torch.testing.assert_close(model.loss(x, y, slow=False), smoothed + 5e-5 * model.norms())


def test_weights_of_the_loss_are_those_that_are_given() -> None:
    """Such as CIFAR-100's published 4e-5 of the norms."""
    model, x, y = made(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = torch.nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(model.loss(x, y, slow=0, norms=0, smoothing=0), plain)
    found = model.loss(x, y, slow=0.5, norms=4e-2, smoothing=0)
    torch.testing.assert_close(found, plain + 0.5 * model.slow_loss() + 4e-2 * model.norms())
    chances = model(x).log_softmax(1)
    spread = -(0.8 * chances[range(4), y] + 0.2 * chances.mean(1)).mean()
    torch.testing.assert_close(model.loss(x, y, slow=0, norms=0, smoothing=0.2), spread)


@pytest.mark.parametrize("config", [SMALL, TerminatorConfig()], ids=["small", "published"])
def test_products_are_those_of_its_convolutions_and_three_of_matrices_a_block(config: TerminatorConfig) -> None:
    """By hand: 1x1 convolutions at every position, local kernels, and 3 C n^3 of the global part of each block."""
    with torch.device("meta"):
        model = Terminator(config)
    positions = config.size**2
    total = config.widths[-1] * config.classes
    for c, out, read, sines in zip(config.widths, config.widths[1:], config.earlier, config.layers, strict=False):
        total += 3 * c * config.size**3
        total += (2 * 4 + 1 + 4) * c * c * positions  # two gates of four, one in front of the products, the local ones'
        total += sum(k * k for k in config.sizes) * c * positions
        total += (10 + len(read)) * c * out * positions
        total += slow(c, positions, 2, config.hidden[0], sines) + slow(1, positions, 2, config.hidden[4], 2)
        total += slow(1, c, 1, config.hidden[2], 2) + slow(1, c, 1, config.hidden[3], 2)
        h = config.hidden[1]
        for k in config.sizes:
            total += slow(c, k * k, 2, h, 2) + k * k * (c * h + h * h + 2 * h * h)  # pooled, mixed, and one a layer
    assert multiply_accumulates(model, (config.channels, config.size, config.size)) == total
    assert published_figures(model, (config.channels, config.size, config.size))[1] == round(total / 1e6, 2)


def slow(channels: int, positions: int, axes: int, hidden: int, layers: int) -> int:
    """Products of a network of coordinates."""
    return positions * (axes * hidden * (layers + 1) + hidden * hidden * layers + hidden * channels)


def test_norms_are_of_the_published_groups() -> None:
    model = made()
    strong, weak = 0.0, 0.0
    for name, p in model.state_dict().items():
        if name.startswith("head.") or not name.startswith("blocks."):
            continue
        inner = name.split(".", 2)[2]
        one_axis = inner.startswith(("channel_gate.", "pixel_channels."))
        gate = inner.startswith(("slow_gate.", "fast_gate."))
        slow = inner.startswith(("kernel.", "pixel_positions.")) or ".kernel." in inner
        if one_axis or inner == "bias":
            continue
        if gate or slow:
            weak += float(p.norm()) if inner.endswith(".weight") else 0.0
        else:
            strong += float(p.norm())
    assert model.norms().item() == pytest.approx(strong + 1e-6 * weak, rel=1e-5)


def test_wrong_configurations_are_named() -> None:
    with pytest.raises(HastenError, match="for each of its blocks"):
        TerminatorConfig(layers=(1,))
    with pytest.raises(HastenError, match="blocks before the one in front"):
        TerminatorConfig(earlier=((), (0,), (), (), ()))

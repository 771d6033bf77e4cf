"""Once-for-all: published sizes, sub-networks equal to what they are extracted to, sorting, codes."""

import random

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import (
    Architecture,
    OFAConfig,
    OnceForAll,
    SubNetwork,
    calibrate,
    from_params,
    macs,
    resized,
)

SMALL = OFAConfig(
    widths=(16, 24), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), depths=(1, 2),
    resolutions=(12, 16), stem=8, final=32, last=32, stem_stride=1, channels=1, classes=5, dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = OnceForAll(SMALL)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    for block in made.blocks:
        for matrix in block.transforms.values():
            torch.nn.init.normal_(matrix, std=0.2)
    return made.eval()


@pytest.mark.parametrize(
    ("depth", "expand", "kernel", "parameters", "millions"),
    [(4, 6, 7, 7_664_760, 566.17), (4, 6, 3, 7_299_960, 433.14), (4, 3, 3, 4_371_928, 226.19),
     (2, 3, 3, 3_410_792, 121.28), (2, 6, 7, 4_837_928, 282.63)],
)  # fmt: skip
def test_sizes_of_the_paper_s_space(depth, expand, kernel, parameters, millions):
    config = OFAConfig()
    with torch.device("meta"):
        network = SubNetwork(config, config.architecture(kernel, expand, depth))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert round(macs(network, 224) / 1e6, 2) == millions


def test_how_many_sub_networks():
    config = OFAConfig()
    assert config.count == (9**2 + 9**3 + 9**4) ** 5 == 7371**5
    assert config.features == 145
    with torch.device("meta"):
        network = SubNetwork(config, config.architecture(3, 3, 4))
    assert [round(macs(network, r) / 1e6, 1) for r in (128, 160, 192)] == [76.0, 116.9, 167.0]


def test_codes():
    config, rng = OFAConfig(), random.Random(0)
    for _ in range(1000):
        arch = config.sample(rng)
        row = config.encode(arch)
        assert config.decode(row) == arch
        assert sum(row) == 2 * sum(arch.depths) + 1
    with pytest.raises(HastenError, match="no code"):
        config.decode([0.0] * config.features)
    with pytest.raises(HastenError, match="kernels of a sub-network"):
        config.architecture(kernels=4)


def test_an_extracted_sub_network_is_the_same(net):
    rng = random.Random(1)
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        for _ in range(20):
            arch = SMALL.sample(rng)
            alone = net.extract(arch)
            torch.testing.assert_close(alone(x), net(x, arch), atol=1e-5, rtol=1e-5)
            # Ordinary convolutions of its own: the state fits a network that was never elastic.
            SubNetwork(SMALL, arch).load_state_dict(alone.state_dict())


def test_sorting_changes_nothing_of_the_whole(net):
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        before = net(x)
        net.sort_channels()
        torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)
        for block in net.blocks:
            sums = block.block.project[0].weight.abs().sum((0, 2, 3))
            assert (sums.diff() <= 1e-5).all()
        # With ratios already trained, their channels stay in front.
        for block in net.blocks:
            torch.nn.init.normal_(block.block.project[0].weight)
        arch, whole = SMALL.architecture(expands=4), SMALL.architecture()
        narrow, wide = net(x, arch), net(x, whole)
        fronts = [set(b.block.project[0].weight[0, : b.middle(4), 0, 0].tolist()) for b in net.blocks]
        net.sort_channels([4])
        torch.testing.assert_close(net(x, whole), wide, atol=1e-5, rtol=1e-5)
        for block, front in zip(net.blocks, fronts, strict=True):
            assert set(block.block.project[0].weight[0, : block.middle(4), 0, 0].tolist()) == front
        # Without squeeze-and-excite, whose hidden units depend on the width, the narrow network is the same too.
        assert narrow.shape == net(x, arch).shape


def test_kernel_matrices():
    torch.manual_seed(1)
    net = OnceForAll(SMALL)
    for block in net.blocks:
        assert sum(p.numel() for p in block.transforms.values()) == 706
        full = block.block.depthwise[0].weight
        channels = full.shape[0]
        torch.testing.assert_close(block.kernel(5, channels), full[:, :, 1:6, 1:6])
        torch.testing.assert_close(block.kernel(3, channels), full[:, :, 2:5, 2:5])
        # The 3x3 goes through the transformed 5x5, not straight from the 7x7.
        block.transforms["7to5"].data.mul_(2)
        torch.testing.assert_close(block.kernel(3, channels), 2 * full[:, :, 2:5, 2:5])
        block.transforms["7to5"].data.mul_(0.5)


def test_a_depth_runs_the_first_blocks(net):
    x = torch.randn(2, 1, 16, 16)
    arch = SMALL.architecture(depths=[1, 2])
    with torch.no_grad():
        y = net.first(net.stem(x))
        for i in (0, 2, 3):
            y = net.blocks[i](y, arch.kernels[i], arch.expands[i])
        torch.testing.assert_close(net(x, arch), net.head(y))


def test_gradients_are_zero_outside_the_part():
    torch.manual_seed(2)
    net = OnceForAll(SMALL).train()
    arch = SMALL.architecture(3, 3, [1, 2])
    net(torch.randn(4, 1, 16, 16), arch).square().sum().backward()
    assert all(p.grad is None for p in net.blocks[1].parameters())
    block = net.blocks[0]
    middle = block.middle(3)
    grads = (block.block.expand[0].weight.grad, block.block.depthwise[0].weight.grad, block.block.expand[1].weight.grad)
    for grad in grads:
        assert grad[:middle].abs().sum() > 0
        assert (grad[middle:] == 0).all()
    assert (block.block.project[0].weight.grad[:, middle:] == 0).all()
    outside = block.block.depthwise[0].weight.grad.clone()
    outside[:, :, 2:5, 2:5] = 0
    assert (outside == 0).all()


def test_calibration_gives_the_statistics_of_the_images(net):
    alone = net.extract(SMALL.architecture(3, 3, 1)).eval()
    x = torch.randn(60, 1, 16, 16) * 2 + 1
    weights = [p.clone() for p in alone.parameters()]
    calibrate(alone, x, batch=20)
    assert not alone.training
    assert all(torch.equal(a, b) for a, b in zip(weights, alone.parameters(), strict=True))
    with torch.no_grad():
        y = alone.stem[0](x)
    torch.testing.assert_close(alone.stem[1].running_mean, y.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    parts = y.view(3, 20, *y.shape[1:])
    torch.testing.assert_close(
        alone.stem[1].running_var, parts.transpose(1, 2).flatten(2).var(2).mean(0), atol=1e-3, rtol=1e-3
    )
    assert resized(x, 12).shape == (60, 1, 12, 12)


def test_saved_and_loaded(net, tmp_path):
    net.save(tmp_path / "whole")
    again = OnceForAll.load(tmp_path / "whole")
    assert again.config == SMALL
    assert not again.training
    x, arch = torch.randn(2, 1, 16, 16), SMALL.architecture(5, 4, [1, 2], 12)
    with torch.no_grad():
        torch.testing.assert_close(again(x, arch), net(x, arch), atol=1e-6, rtol=1e-6)
        alone = net.extract(arch)
        alone.save(tmp_path / "part")
        part = SubNetwork.load(tmp_path / "part")
        assert part.arch == arch
        torch.testing.assert_close(part(x), alone(x), atol=1e-6, rtol=1e-6)
    with pytest.raises(HastenError, match="holds no sub-network"):
        SubNetwork.load(tmp_path / "whole")
    with pytest.raises(HastenError, match="described by"):
        OnceForAll.load(tmp_path / "part")
    (tmp_path / "whole" / "model.safetensors").write_bytes((tmp_path / "part" / "model.safetensors").read_bytes())
    with pytest.raises(HastenError, match="no tensor"):
        OnceForAll.load(tmp_path / "whole")


@pytest.mark.parametrize(
    ("data", "wrong"),
    [([], "is described by"), ({"width": [8]}, "is described by"), ({"widths": ["8"]}, "widths of"),
     ({"widths": 8}, "widths of"), ({"stem": 8.5}, "stem of"), ({"stem": True}, "stem of"), ({"widths": [8]}, "equal")],
)  # fmt: skip
def test_broken_descriptions(data, wrong):
    with pytest.raises(HastenError, match=wrong):
        OFAConfig.from_dict(data)
    with pytest.raises(HastenError, match="not described whole"):
        Architecture.from_dict({"resolution": 12})


def test_points_of_the_search_space(net):
    params = {"resolution": 16, "depth-1": 1, "kernel-1-1": 5, "expand-1-1": 4, "depth-2": 2, "kernel-2-1": 3,
              "expand-2-1": 6, "kernel-2-2": 7, "expand-2-2": 3}  # fmt: skip
    assert from_params(SMALL, params) == SMALL.architecture([5, 3, 3, 7], [4, 3, 6, 3], [1, 2], 16)

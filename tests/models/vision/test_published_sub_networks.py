"""Published descriptions of sub-networks are read, and others are refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import Architecture, OFAConfig, SubNetwork, macs
from hasten.models.vision.published_sub_networks import read_sub_network, sub_network
from hasten.nn.convolutional import MBConv, make_divisible


def described(config: OFAConfig, arch: Architecture, conv: str = "conv", ratios: bool = True) -> dict[str, Any]:
    """A ``net.config`` as the authors' code writes it for this network, from the module's own layers."""
    with torch.device("meta"):
        network = SubNetwork(config, arch)
    assert isinstance(network.first, MBConv)
    width = config.scaled(config.stem)
    blocks: list[dict[str, Any]] = [{
        "name": "ResidualBlock",
        conv: {"name": "MBConvLayer", "in_channels": width, "out_channels": width, "kernel_size": 3, "stride": 1,
               "expand_ratio": 1, "mid_channels": width, "act_func": "relu", "use_se": False},
        "shortcut": {"name": "IdentityLayer"},
    }]  # fmt: skip
    inputs = width
    for stage, depth in enumerate(arch.depths):
        for j in range(depth):
            at, outputs = stage * config.depths[-1] + j, config.scaled(config.widths[stage])
            row = {
                "name": "MBConvLayer", "in_channels": inputs, "out_channels": outputs,
                "kernel_size": arch.kernels[at], "stride": config.strides[stage] if j == 0 else 1,
                "expand_ratio": arch.expands[at] if ratios else None,
                "mid_channels": make_divisible(round(inputs * arch.expands[at])),
                "act_func": config.activations[stage], "use_se": config.se[stage],
            }  # fmt: skip
            shortcut = {"name": "IdentityLayer", "in_channels": [outputs], "out_channels": [outputs]} if j else None
            blocks.append({"name": "ResidualBlock", conv: row, "shortcut": shortcut})
            inputs = outputs
    return {
        "name": "MobileNetV3", "bn": {"momentum": 0.1, "eps": 1e-5}, "blocks": blocks,
        "classifier": {"name": "LinearLayer", "in_features": 1280, "out_features": config.classes},
    }  # fmt: skip


@pytest.mark.parametrize("conv", ["conv", "mobile_inverted_conv"])
@pytest.mark.parametrize("multiplier", [1.0, 1.2])
def test_blocks_are_read(tmp_path: Path, conv: str, multiplier: float) -> None:
    config, rng = OFAConfig(multiplier=multiplier, classes=100), random.Random(0)
    for _ in range(10):
        arch = config.sample(rng)
        (tmp_path / "net.config").write_text(json.dumps(described(config, arch, conv)), "utf-8")
        (tmp_path / "run.config").write_text(json.dumps({"image_size": arch.resolution}), "utf-8")
        assert read_sub_network(tmp_path) == (config, arch)
        assert sub_network(described(config, arch, conv, ratios=False), arch.resolution) == (config, arch)


def test_lists_are_read() -> None:
    """The sub-network that the paper gives 226 M multiply-accumulates."""
    config, arch = sub_network({"wid": None, "ks": [3] * 20, "e": [3] * 20, "d": [4] * 5, "r": [224]})
    assert arch == OFAConfig().architecture(3, 3, 4, 224)
    with torch.device("meta"):
        assert round(macs(SubNetwork(config, arch), 224) / 1e6) == 226
    assert sub_network({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5})[1].resolution == 224


def test_other_resolutions_join_the_space() -> None:
    config, arch = sub_network({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 236})
    assert arch.resolution == 236 == config.resolutions[-1]
    assert config.encode(arch)[-1] == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ks": [3] * 19}, "kernels"),
        ({"e": [5] * 20}, "expands"),
        ({"d": [1] * 5}, "depths"),
        ({"ks": None}, "describes no published"),
        ({"r": 10**9}, "number of pixels"),
        ({"r": "big"}, "number of pixels"),
    ],
)
def test_lists_of_another_space_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(HastenError, match=told):
        sub_network({"ks": [3] * 20, "e": [3] * 20, "d": [2] * 5, "r": 224} | changed)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("out_channels", 25, "out_channels of block 1 in stage 1"), ("act_func", "relu6", "act_func"),
        ("use_se", True, "use_se"), ("stride", 1, "stride"), ("mid_channels", 50, "no expansion"),
        ("kernel_size", 9, "kernels"),
    ],
)  # fmt: skip
def test_blocks_of_another_space_are_refused(key: str, value: Any, told: str) -> None:
    data = described(OFAConfig(), OFAConfig().architecture(3, 3, 2))
    data["blocks"][1]["conv"][key] = value
    with pytest.raises(HastenError, match=told):
        sub_network(data)


def test_other_files_are_refused(tmp_path: Path) -> None:
    data = described(OFAConfig(), OFAConfig().architecture(3, 3, 4))
    with pytest.raises(HastenError, match="another space"):
        sub_network({**data, "name": "ProxylessNASNets"})
    with pytest.raises(HastenError, match="more stages or blocks"):
        sub_network({**data, "blocks": [*data["blocks"], data["blocks"][-1]]})
    with pytest.raises(HastenError, match="describes no published"):
        sub_network({"blocks": [{"shortcut": None}]})
    for text, told in (("[1]", "no description"), ("{", "not JSON")):
        (tmp_path / "net.json").write_text(text, "utf-8")
        with pytest.raises(HastenError, match=told):
            read_sub_network(tmp_path / "net.json")
    with pytest.raises(HastenError, match="cannot read"):
        read_sub_network(tmp_path / "none.json")

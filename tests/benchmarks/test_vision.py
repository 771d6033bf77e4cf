"""The benchmark of networks for images: its networks are of the published sizes that it states."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
# Parameters, and what the function's docstring says of them.
SIZES = {
    "resnet50": (25_557_032, "25,557,032 parameters"),
    "mobilenetv3": (5_483_032, "5,483,032 parameters"),
    "vit_small": (22_050_664, "22,050,664 parameters"),
}


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import vision

    yield vision
    for name in ("vision", "rows"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SIZES)
def test_networks_are_of_the_sizes_that_are_stated(vision: Any, name: str) -> None:
    build, _ = vision.NETWORKS[name]
    count, stated = SIZES[name]
    assert stated in re.sub(r"\s+", " ", build.__doc__)
    with torch.device("meta"):
        network, images = build(3)
        assert sum(p.numel() for p in network.parameters()) == count
        assert not network.training
        assert network(images).shape == (3, 1000)
    assert images.shape == (3, 3, 224, 224)


def test_every_network_can_be_tuned_without_another_library(vision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert {*SIZES, "lowformer_b1"} == set(vision.NETWORKS)
    for name, (build, _) in vision.NETWORKS.items():
        path, _, function = vision.source_of(name).rpartition(":")
        assert Path(path) == FOLDER / "vision.py"
        assert getattr(vision, function) is build

"""SimpleNets at their published sizes, and what a plain network keeps exactly."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import SimpleNet, SimpleNetConfig
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.simplenet import PUBLISHED, TIMM

# Name, classes, parameters, millions of multiply-accumulates.
CIFAR = [
    ("310k", 10, 312_362, 55.79),
    ("310k", 100, 318_212, 55.79),
    ("460k", 10, 456_446, 75.24),
    ("460k", 100, 465_536, 75.25),
    ("460k-port", 10, 385_790, 73.19),
    ("5m", 10, 5_498_378, 652.15),
    ("5m", 100, 5_521_508, 652.17),
    ("5m-extra-pool", 10, 5_498_378, 631.51),
]
IMAGENET = {
    "simplenet-small-{}-05": (1_506_792, (340.92, 427.63, 514.33, 687.74)),
    "simplenet-small-{}-075": (3_287_272, (758.85, 953.94, 1149.02, 1539.19)),
    "simplenet-5m-{}": (5_752_808, (1341.76, 1688.58, 2035.39, 2729.03)),
    "simplenet-9m-{}": (9_508_968, (2774.25, 3554.59, 4334.92, 6415.82)),
}


def sizes(name: str, image: int, classes: int) -> tuple[int, float]:
    with torch.device("meta"):
        model = SimpleNet.named(name, num_classes=classes)
    return sum(p.numel() for p in model.parameters()), multiply_accumulates(model, (3, image, image)) / 1e6


@pytest.mark.parametrize(("name", "classes", "parameters", "products"), CIFAR)
def test_published_sizes_at_32(name: str, classes: int, parameters: int, products: float) -> None:
    assert sizes(f"simplenet-cifar-{name}", 32, classes) == (parameters, pytest.approx(products, abs=0.006))


@pytest.mark.parametrize("name", IMAGENET)
def test_published_sizes_at_224(name: str) -> None:
    parameters, products = IMAGENET[name]
    for i, wanted in enumerate(products, 1):
        assert sizes(name.format(f"m{i}"), 224, 1000) == (parameters, pytest.approx(wanted, abs=0.006))


def test_every_published_name_is_held() -> None:
    held = {f"simplenet-cifar-{n}" for n, *_ in CIFAR} | {n.format(f"m{i}") for n in IMAGENET for i in range(1, 5)}
    assert held == PUBLISHED.keys()
    assert TIMM["simplenetv1_small_m1_05"] == "simplenet-small-m1-05"


def test_the_maximum_over_positions_knows_no_order() -> None:
    torch.manual_seed(0)
    model = SimpleNet(SimpleNetConfig("8 p 16")).eval()
    features = model.forward_features(torch.randn(2, 3, 16, 16))
    moved = features.flatten(2)[:, :, torch.randperm(64)].view_as(features)
    assert torch.equal(model.forward_head(moved), model.forward_head(features))


def test_the_largest_of_what_is_not_below_zero_is_the_largest_made_so() -> None:
    x = torch.randn(2, 3, 9, 9)
    pool, relu = torch.nn.MaxPool2d(2), torch.nn.ReLU()
    assert torch.equal(pool(relu(x)), relu(pool(x)))


def test_an_image_s_logits_know_no_other_image() -> None:
    torch.manual_seed(0)
    model, images = SimpleNet(SimpleNetConfig("8 p 16")), torch.randn(4, 3, 16, 16)
    model(images)  # statistics that are not those of the start
    alone = torch.cat([model.eval()(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)


def test_thirteen_convolutions_and_their_dropout() -> None:
    with torch.device("meta"):
        model = SimpleNet.named("simplenet-cifar-5m", dropout=0.1)
    kinds = [type(m).__name__ for m in model.modules()]
    assert kinds.count("Conv2d") == kinds.count("BatchNorm2d") == kinds.count("ReLU") == 13
    assert kinds.count("Dropout2d") == 13 + 4
    assert kinds.count("Dropout") == 1
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.05}


@pytest.mark.parametrize("layout", ["", "p 8", "8 q", "0", "8 -1"])
def test_wrong_layouts_are_told(layout: str) -> None:
    with pytest.raises(HastenError, match="a layout is words such as 64"):
        SimpleNetConfig(layout)


def test_wrong_strides_and_options_are_told() -> None:
    with pytest.raises(HastenError, match="strides are of the first of 1 convolutions"):
        SimpleNetConfig("8", (2, 2))
    with pytest.raises(HastenError, match="dropout below 1"):
        SimpleNet.named("simplenet-5m-m1", dropout=1.0)

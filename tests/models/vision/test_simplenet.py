"""SimpleNets at their published sizes, and what a plain network keeps exactly."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import fx, nn

from hasten.cost.growing import calibrate
from hasten.cost.preserving import check_same, fold_normalization
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


@pytest.mark.parametrize(("name", "parameters"), [("310k", 311_594), ("460k", 455_862), ("5m", 5_493_258)])
def test_their_first_nets_do_not_normalize_the_last_three_layers(name: str, parameters: int) -> None:
    """The parameters of the first published files, which are those of ours without three normalizations."""
    with torch.device("meta"):
        model = SimpleNet.named(f"simplenet-cifar-{name}")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    three = sum(p.numel() for norm in norms[-3:] for p in norm.parameters())
    assert sum(p.numel() for p in model.parameters()) - three == parameters


def test_the_half_wide_network_for_small_digits() -> None:
    with torch.device("meta"):
        model = SimpleNet.named("simplenet-cifar-310k", in_chans=1, scale=0.5)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(78_800, abs=50)
    assert multiply_accumulates(model, (1, 16, 16)) == pytest.approx(3.45e6, abs=5e3)


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


def settled(config: SimpleNetConfig, side: int = 16) -> Any:
    """In evaluation mode, with norms whose weights and statistics are drawn."""
    torch.manual_seed(0)
    model = SimpleNet(config)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("layout", [PUBLISHED["simplenet-cifar-310k"].layout, "8 8 p 16 16' p 8"])
def test_normalizations_fold_into_their_convolutions(layout: str) -> None:
    model, images = settled(SimpleNetConfig(layout, dropout=0.1)), torch.randn(2, 3, 32, 32)
    folded = fold_normalization(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    check_same(model, folded, (images,), 1e-5)


@pytest.mark.parametrize("name", ["simplenet-cifar-310k", "simplenet-small-m4-05"])
def test_it_is_one_sequence_of_modules(name: str) -> None:
    torch.manual_seed(0)
    model = SimpleNet.named(name, dropout=0.1, num_classes=10).eval()
    nodes = list(fx.symbolic_trace(model).graph.nodes)
    assert [nodes[0].op, nodes[-1].op] == ["placeholder", "output"]
    assert {node.op for node in nodes[1:-1]} == {"call_module"}
    assert all(node.all_input_nodes == [before] for before, node in pairwise(nodes))
    sequence = nn.Sequential(*(model.get_submodule(node.target) for node in nodes[1:-1]))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(sequence(images), model(images))


@pytest.mark.parametrize("name", ["simplenet-cifar-310k", "simplenet-small-m1-05"])
def test_weights_begin_uniform_as_xavier_s_for_relu(name: str) -> None:
    torch.manual_seed(0)
    for conv in (m for m in SimpleNet.named(name).modules() if isinstance(m, nn.Conv2d)):
        outputs, inputs, height, width = conv.weight.shape
        bound = math.sqrt(2) * math.sqrt(6 / ((inputs + outputs) * height * width))
        largest = float(conv.weight.detach().abs().max())
        assert 0.99 * bound < largest <= bound * (1 + 1e-6)
        assert float(conv.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)  # of a uniform draw


def test_channels_of_a_scale_are_rounded_as_in_the_published_code() -> None:
    assert [w for w, _, _ in SimpleNetConfig("15 5 7", scale=0.5).layers] == [8, 2, 4]  # halves to even ones


def dropouts(model: nn.Module) -> list[tuple[str, float]]:
    """Of each dropout what stands in front of it, and its chance."""
    parts = [m for m in model.modules() if not list(m.children())]
    return [(type(before).__name__, m.p) for before, m in pairwise(parts) if isinstance(m, nn.Dropout | nn.Dropout2d)]


def test_dropout_of_each_place() -> None:
    layout = PUBLISHED["simplenet-cifar-5m-extra-pool"].layout.split()
    pooled = [0.1 if word == "p" else 0.0 for word in layout]
    with torch.device("meta"):
        assert (
            dropouts(SimpleNet.named("simplenet-cifar-5m-extra-pool", dropout=[*pooled, 0.0]))
            == [("MaxPool2d", 0.1)] * 5
        )
        # The rates of the last phase on ImageNet: behind the second pooling and the two 1x1 convolutions.
        late = SimpleNet.named("simplenetv1_5m_m2", dropout={"11": 0.02, "12": 0.05, "13": 0.05})
        assert dropouts(late) == [("MaxPool2d", 0.02), ("ReLU", 0.05), ("ReLU", 0.05)]
        assert dropouts(SimpleNet(SimpleNetConfig("8", dropout={1: 0.5}))) == [("Flatten", 0.5)]
    assert SimpleNetConfig("8 p 8", dropout=0.2).dropouts == (0.2, 0.2, 0.2, 0.2)


@pytest.mark.parametrize("dropout", [0.1, (0.0, 0.1, 0.0, 0.2), {1: 0.1}])
def test_a_config_goes_through_json(dropout: Any) -> None:
    config = SimpleNetConfig("8 p 8'", (2,), 0.5, dropout, 1, 5)
    read = SimpleNetConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert read == config
    assert hash(read) == hash(config)


@pytest.mark.parametrize("dropout", [1.0, -0.1, math.nan, (0.1,), (0.1,) * 5, (0.0, 0.0, 0.0, 1.0), {3: 1.5}])
def test_wrong_dropout_is_told(dropout: Any) -> None:
    with pytest.raises(HastenError, match="dropout below 1, one number or 4 for a layout of 3 words"):
        SimpleNetConfig("8 p 8", dropout=dropout)


def test_dropout_of_places_that_are_not_there_is_told() -> None:
    with pytest.raises(HastenError, match=r"places from 0 to 3 in this layout: got \['4'\]"):
        SimpleNetConfig("8 p 8", dropout={4: 0.1})


def test_groups_stand_between_poolings() -> None:
    config = SimpleNetConfig("8 8 p 16 16' p p 8 p", strides=(2, 2, 2))
    assert config.groups == [[0, 1], [3, 4], [7]]
    assert config.widened(1).layout == "8 8 p 24 24' p p 8 p"
    assert config.deepened(1).layout == "8 8 p 16 16' 16' p p 8 p"
    assert config.deepened(0).strides == (2, 2, 1, 2)
    assert config.deepened(2).strides == (2, 2, 2)
    placed = SimpleNetConfig("8 p 8", dropout=(0.1, 0.2, 0.3, 0.4))
    assert placed.deepened(0).dropout == (0.1, 0.1, 0.2, 0.3, 0.4)
    for wrong in (-1, 3):
        with pytest.raises(HastenError, match=f"no group {wrong}: this layout has 3"):
            config.widened(wrong)
        with pytest.raises(HastenError, match=f"no group {wrong}: this layout has 3"):
            SimpleNet(config).deepened(wrong)
    with pytest.raises(HastenError, match="a factor from 1"):
        config.widened(0, 0.5)


GROWING = {
    "plain": SimpleNetConfig("4 4 p 6 6' p 5", channels=2),
    "strided": SimpleNetConfig("4 4 4 p 6", (2, 1, 2), channels=2),
    "with dropout": SimpleNetConfig("4 4 p 6 6' p 5 p", channels=2, dropout=0.1),
    "with dropout of places": SimpleNetConfig("4 4 p 6 p", channels=2, dropout=(0.0, 0.1, 0.2, 0.0, 0.0, 0.3)),
    "scaled": SimpleNetConfig("4 4 p 6 6 p 5", scale=0.75, channels=2),
}


@pytest.mark.parametrize("kind", GROWING)
def test_growth_keeps_what_is_computed_and_gives_a_simplenet(kind: str) -> None:
    model: SimpleNet = settled(GROWING[kind]).double()
    images = torch.randn(8, 2, 16, 16, dtype=torch.float64)
    for group in range(len(model.config.groups)):
        for move in ("deepened", "widened"):
            grown = getattr(model, move)(group, seed=group)
            assert grown.config == getattr(model.config, move)(group)
            calibrate(grown, (images,))
            check_same(model, grown, (images,), 1e-6)
            same = SimpleNet(grown.config)
            assert [str(m) for m in grown.modules()] == [str(m) for m in same.modules()]
            assert [p.shape for p in grown.parameters()] == [p.shape for p in same.parameters()]
            assert grown.levels == same.levels
            maps = grown.features_only()(images)
            assert [(m.shape[1], 16 // m.shape[2]) for m in maps] == [(v.channels, v.reduction) for v in same.levels]
    assert model.config == GROWING[kind]


@pytest.mark.parametrize("layout", ["", "p 8", "8 q", "0", "8 -1"])
def test_wrong_layouts_are_told(layout: str) -> None:
    with pytest.raises(HastenError, match="a layout is words such as 64"):
        SimpleNetConfig(layout)


def test_wrong_strides_and_options_are_told() -> None:
    with pytest.raises(HastenError, match="strides are of the first of 1 convolutions"):
        SimpleNetConfig("8", (2, 2))
    with pytest.raises(HastenError, match="dropout below 1"):
        SimpleNet.named("simplenet-5m-m1", dropout=1.0)
